"""What the UI shows about an output: counts, cost, origin, tables, figures.

The UI plots every number of its own entry over the snapshots. So only those that matter most have one, about ten with
rows, seconds and size, in the order of `Stage.plots`; `all numbers` holds them all.
"""

import base64
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import dagster as dg

import sidr_core
from sidr_core.pipeline.profile import Profile
from sidr_core.pipeline.run import Outcome
from sidr_core.pipeline.stage import Stage
from sidr_core.pipeline.store import Artifact
from sidr_core.tables.docs import tables

#: Most metrics of a stage that are plotted.
MOST_PLOTS = 7
ALL_NUMBERS = "all numbers"
PREVIEW_ROWS = 5
PREVIEW_CHARACTERS = 120
#: Most bytes of a picture that is put into the event log.
MAX_PICTURE_BYTES = 400_000
#: The main table of a checkpoint.
_LOG = "training_log.parquet"


def of_definition(profile: Profile, stage: Stage, synthetic: bool) -> dict[str, Any]:
    """Metadata known before any run: the profile, the label of generated data, the columns, the source code."""
    columns = _contract_columns(stage)
    schema = {"dagster/column_schema": dg.TableSchema(list(columns.values()))} if columns else {}
    return {"profile": profile.name, "synthetic": synthetic, **schema, **_code_reference(stage)}


def of_outcome(stage: Stage, outcome: Outcome) -> dict[str, Any]:
    """Metadata of one materialization, in reading order: numbers, pages and pictures, rows, cost, origin."""
    artifact, manifest = outcome.artifact, outcome.artifact.manifest
    pictures = {  # as data URLs, because the UI serves no files
        name: f"data:image/png;base64,{base64.b64encode(artifact.path(name).read_bytes()).decode()}"
        for name in artifact.files
        if name.endswith(".png") and manifest["files"][name]["bytes"] <= MAX_PICTURE_BYTES
    }
    pages: dict[str, dg.MetadataValue] = {}
    for title, text in manifest["markdown"].items():
        for name, data in pictures.items():
            text = text.replace(f"]({name})", f"]({data})")
        pages[title] = dg.MetadataValue.md(text)
    figures = {
        f"figure: {name.removesuffix('.png')}": dg.MetadataValue.md(f"![{name}]({data})")
        for name, data in pictures.items()
        if not any(f"]({name})" in text for text in manifest["markdown"].values())
    }
    rows = _main_table(stage, artifact)
    facts: dict[str, Any] = {
        "reused": outcome.reused,
        "seconds": manifest["seconds"],
        "megabytes": round(sum(entry["bytes"] for entry in manifest["files"].values()) / 1e6, 3),
        "synthetic": artifact.synthetic,
        "fingerprint": artifact.fingerprint,
        "folder": dg.MetadataValue.path(str(artifact.folder)),
    }
    if outcome.started:
        facts["started"] = outcome.started
    metrics = manifest["metrics"]
    plotted = {name: metrics[name] for name in plots(stage, metrics) if name not in facts | rows | pages | figures}
    more = {
        **metrics,
        **{f"rows/{name}": count for name, count in row_counts(artifact).items()},
        "peak_memory_megabytes": round(manifest["peak_memory_bytes"] / 1e6),
    }
    return plotted | pages | figures | rows | {ALL_NUMBERS: dg.MetadataValue.json(more)} | facts


def plots(stage: Stage, metrics: Mapping[str, Any]) -> list[str]:
    """The metrics to plot, most important first; the first ones by name if the stage does not say which.

    >>> stage = Stage("s", "m:f", {}, (), "1", "", plots=("ndcg@10", "*_hr"))
    >>> plots(stage, {"b_hr": 1.0, "a_hr": 2.0, "loss": 3.0, "ndcg@10": 4.0, "note": "x"})
    ['ndcg@10', 'a_hr', 'b_hr']
    """
    numbers = sorted(name for name, value in metrics.items() if isinstance(value, (int, float)))
    chosen = [name for pattern in stage.plots or ("*",) for name in numbers if fnmatchcase(name, pattern)]
    return list(dict.fromkeys(chosen))[:MOST_PLOTS]


def row_counts(artifact: Artifact) -> dict[str, int]:
    """Rows per Parquet file, without the suffix."""
    files: Mapping[str, Any] = artifact.manifest["files"]
    return {name.removesuffix(".parquet"): entry["rows"] for name, entry in sorted(files.items()) if "rows" in entry}


def _main_name(stage: Stage) -> str:
    """The table of a stage to show: the one with its name, else the first with a contract."""
    return stage.name if stage.name in stage.tables else next(iter(stage.tables), stage.name)


def _contract_columns(stage: Stage) -> dict[str, dg.TableColumn]:
    """The columns of the stage's main table and their meanings, from its contract if it has one."""
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
    """First rows, row count and column schema of the stage's main table, if it has one."""
    name = next((name for name in (f"{_main_name(stage)}.parquet", _LOG) if name in artifact.files), None)
    if name is None:
        return {}
    if not artifact.is_here(name):  # reused from a bucket: five rows are not worth fetching it
        return {"dagster/row_count": artifact.manifest["files"][name]["rows"]}
    import pyarrow.parquet as pq

    path = artifact.path(name)
    schema = pq.read_schema(path)
    contract = _contract_columns(stage)
    columns = [contract.get(field.name) or dg.TableColumn(field.name, str(field.type)) for field in schema]
    batches = pq.ParquetFile(path).iter_batches(batch_size=PREVIEW_ROWS)
    rows = next(batches).to_pylist() if artifact.manifest["files"][name]["rows"] else []
    records = []
    for row in rows:
        texts = {column: "" if value is None else str(value) for column, value in row.items()}
        short = {name: f"{t[:PREVIEW_CHARACTERS]}…" if len(t) > PREVIEW_CHARACTERS else t for name, t in texts.items()}
        records.append(dg.TableRecord(short))
    preview_schema = dg.TableSchema([dg.TableColumn(field.name) for field in schema])
    return {
        "preview": dg.MetadataValue.table(records, schema=preview_schema),
        "dagster/row_count": artifact.manifest["files"][name]["rows"],
        "dagster/column_schema": dg.TableSchema(columns),
    }


def _code_reference(stage: Stage) -> dict[str, Any]:
    """Where the stage's function is defined. The file is read, not imported, which might load a model library."""
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
