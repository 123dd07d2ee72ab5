"""The lists behind a claim card made again from their checkpoint, and compared with the stored ones."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace

import polars as pl

from sidr_core.errors import InputError
from sidr_core.evaluation.claims import Card
from sidr_core.evaluation.protocol import lists_of
from sidr_core.pipeline.graph import stage_named
from sidr_core.pipeline.stage import Inputs, Progress, StageInput
from sidr_core.pipeline.store import Artifact, Store
from sidr_core.settings import DatasetConfig, Decoding, Window
from sidr_core.tables import files as tables
from sidr_core.tables.columns import ITEM_ID, RANK, ROW_ID, SID

_FILE = "recommendations.parquet"
_STAGE = "recommendations"


def rebuilt(card: Card, store: Store, progress: Progress) -> list[str]:
    """How the lists that the stage makes now, of the card's list and its baseline, differ from the stored ones.

    The stage runs with the settings and inputs of the stored output, in a store of its own: nothing is reused, and
    nothing of it stays. Scores may differ in their last bits on another machine, so places are compared.

    Args:
        card: one that is true, as far as the stored files go.

    Raises:
        InputError: this code makes other lists on purpose, or what they were made from is gone.
    """
    stage = stage_named(_STAGE)
    artifact = store.open(_STAGE, card.stages[_STAGE].fingerprint)
    assert artifact is not None, "the card was verified"
    if artifact.manifest["code_version"] != stage.code_version:
        raise InputError(
            "the lists cannot be made again",
            expected=f"the stage {_STAGE} in code version {artifact.manifest['code_version']}, which made them",
            found=f"code version {stage.code_version}",
            fix="check out the release that made the card",
        )
    names = tuple(dict.fromkeys([card.name, card.baseline or card.name]))
    sections = artifact.manifest["key"]["config"]
    config = SimpleNamespace(dataset=sections["dataset"], snapshot=Window.model_validate(sections["snapshot"]))
    for section in sections.keys() - {"dataset", "snapshot", "decoding"}:
        kind = DatasetConfig.model_fields[section].annotation
        setattr(config, section, kind.model_validate(sections[section]))  # type: ignore[union-attr]
    config.decoding = Decoding.model_validate({**sections["decoding"], "models": names})
    reads = stage.reads(config)  # type: ignore[arg-type]
    stages = {name: StageInput(_input(store, artifact, name), files, _STAGE) for name, files in reads.items()}
    with tempfile.TemporaryDirectory(prefix="sidr-rebuild-") as folder:
        out_dir = Path(folder) / "out"
        out_dir.mkdir()
        inputs = Inputs(stages, Store(Path(folder) / "store"), synthetic=artifact.synthetic)
        stage.load()(inputs, config, out_dir, progress)  # type: ignore[arg-type]
        made = tables.read(out_dir / _FILE)
    stored = tables.read(artifact.path(_FILE))
    return [line for name in names for line in _unlike(name, lists_of(stored, name), lists_of(made, name))]


def _input(store: Store, artifact: Artifact, stage: str) -> Artifact:
    """An output that the lists were made from."""
    fp = artifact.manifest["lineage"].get(stage, "none")
    output = store.open(stage, fp)
    if output is None:
        raise InputError(
            "the lists cannot be made again",
            expected=f"{stage}/{fp}, which they were made from, in {store.root}",
            found="none",
            fix="materialize the dataset again, and use the new cards",
        )
    return output


def _unlike(name: str, stored: pl.DataFrame, made: pl.DataFrame) -> list[str]:
    """What two tables of lists of one model do not share, in a sentence; nothing if they are alike."""
    columns = [ROW_ID, RANK, ITEM_ID, SID]
    other = stored.select(columns).join(made.select(columns), on=columns, how="anti")
    if other.is_empty() and stored.height == made.height:
        return []
    return [
        f"{name}: made again, {other.height:,} of {stored.height:,} places differ, in {other[ROW_ID].n_unique():,} of "
        f"{stored[ROW_ID].n_unique():,} lists"
    ]
