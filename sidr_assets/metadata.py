"""What the UI shows about an output: counts, cost, origin, tables, pictures. Plain numbers are plotted
over snapshots.
"""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg

import sidr_core
from sidr_core.pipeline.profile import Profile
from sidr_core.pipeline.run import Outcome
from sidr_core.pipeline.stage import Stage
from sidr_core.pipeline.store import Artifact
from sidr_core.tables.docs import tables

PREVIEW_ROWS = 5
PREVIEW_CHARACTERS = 120
#: Bytes of a picture that is still put into the event log.
LARGEST_PICTURE = 400_000
#: What a checkpoint has for a table.
_LOG = "training_log.parquet"


def of_definition(profile: Profile, stage: Stage, synthetic: bool) -> dict[str, Any]:
    """Metadata known before any run: the profile, the label of generated data, the columns, where the code is."""
    told = _promised_columns(stage)
    columns = {"dagster/column_schema": dg.TableSchema(list(told.values()))} if told else {}
    return {"profile": profile.name, "synthetic": synthetic, **columns, **_code_reference(stage)}


def of_outcome(stage: Stage, outcome: Outcome) -> dict[str, Any]:
    """Metadata of one materialization, in reading order: pages and pictures, numbers, rows, cost, origin."""
    artifact, manifest = outcome.artifact, outcome.artifact.manifest
    pictures = _pictures(artifact)
    pages = {title: dg.MetadataValue.md(_shown(text, pictures)) for title, text in manifest["markdown"].items()}
    drawn = {
        f"figure: {name.removesuffix('.png')}": dg.MetadataValue.md(f"![{name}]({data})")
        for name, data in pictures.items()
        if not any(f"]({name})" in text for text in manifest["markdown"].values())
    }
    rows = _main_table(stage, artifact) | {f"rows/{name}": count for name, count in row_counts(artifact).items()}
    told: dict[str, Any] = {
        "reused": outcome.reused,
        "seconds": manifest["seconds"],
        "megabytes": round(sum(entry["bytes"] for entry in manifest["files"].values()) / 1e6, 3),
        "peak_memory_megabytes": round(manifest["peak_memory_bytes"] / 1e6),
        "synthetic": artifact.synthetic,
        "fingerprint": artifact.fingerprint,
        "folder": dg.MetadataValue.path(str(artifact.folder)),
    }
    if outcome.started:
        told["started"] = outcome.started
    numbers = {name: value for name, value in manifest["metrics"].items() if name not in told | rows | pages | drawn}
    return pages | drawn | numbers | rows | told


def row_counts(artifact: Artifact) -> dict[str, int]:
    """Rows per Parquet file, without the suffix."""
    files: Mapping[str, Any] = artifact.manifest["files"]
    return {name.removesuffix(".parquet"): entry["rows"] for name, entry in sorted(files.items()) if "rows" in entry}


def _main_name(stage: Stage) -> str:
    """The table to show of a stage: the one of its own name, else the first that it promises."""
    return stage.name if stage.name in stage.tables else next(iter(stage.tables), stage.name)


def _promised_columns(stage: Stage) -> dict[str, dg.TableColumn]:
    """The columns of the stage's main table by its contract, where it has one, with their meaning."""
    if not stage.tables:
        return {}
    return {
        column.name: dg.TableColumn(
            column.name,
            column.type,
            column.meaning,
            dg.TableColumnConstraints(
                nullable="nullable" in column.rules,
                unique="unique" in column.rules,
                other=[rule for rule in column.rules if rule not in ("nullable", "unique")],
            ),
        )
        for column in tables()[stage.tables[_main_name(stage)]].columns
    }


def _main_table(stage: Stage, artifact: Artifact) -> dict[str, Any]:
    """First rows, row count and column schema of the stage's main table, where there is one."""
    name = next((name for name in (f"{_main_name(stage)}.parquet", _LOG) if name in artifact.files), None)
    if name is None:
        return {}
    import pyarrow.parquet as pq

    path = artifact.path(name)
    schema = pq.read_schema(path)
    promised = _promised_columns(stage)
    columns = [promised.get(field.name) or dg.TableColumn(field.name, str(field.type)) for field in schema]
    batches = pq.ParquetFile(path).iter_batches(batch_size=PREVIEW_ROWS)
    rows = next(batches).to_pylist() if artifact.manifest["files"][name]["rows"] else []
    records = [dg.TableRecord({column: _short(value) for column, value in row.items()}) for row in rows]
    preview_schema = dg.TableSchema([dg.TableColumn(field.name) for field in schema])
    return {
        "preview": dg.MetadataValue.table(records, schema=preview_schema),
        "dagster/row_count": artifact.manifest["files"][name]["rows"],
        "dagster/column_schema": dg.TableSchema(columns),
    }


def _short(value: Any) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= PREVIEW_CHARACTERS else f"{text[:PREVIEW_CHARACTERS]}…"


def _pictures(artifact: Artifact) -> dict[str, str]:
    """Every PNG of the output as a data URL: the UI serves no files."""
    return {
        name: f"data:image/png;base64,{base64.b64encode(artifact.path(name).read_bytes()).decode()}"
        for name in artifact.files
        if name.endswith(".png") and artifact.manifest["files"][name]["bytes"] <= LARGEST_PICTURE
    }


def _shown(text: str, pictures: Mapping[str, str]) -> str:
    """A page whose links to the output's own pictures hold the pictures themselves."""
    for name, data in pictures.items():
        text = text.replace(f"]({name})", f"]({data})")
    return text


def _code_reference(stage: Stage) -> dict[str, Any]:
    """Where the body of the stage is defined. The file is read, not imported: that may load a model library."""
    module, _, function = stage.run.partition(":")
    source = Path(sidr_core.__file__).parent.joinpath(*module.split(".")[1:]).with_suffix(".py")
    if not source.is_file():
        return {}
    lines = source.read_text().splitlines()
    line = next((n for n, text in enumerate(lines, 1) if text.startswith(f"def {function}(")), 1)
    reference = dg.LocalFileCodeReference(
        file_path=str(source), line_number=line, label=stage.run.removeprefix("sidr_core.")
    )
    return {"dagster/code_references": dg.CodeReferencesMetadataValue(code_references=[reference])}
