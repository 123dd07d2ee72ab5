"""Writes docs/tables.md from the contracts and the graph; a test fails where the file is out of date.

.venv/bin/python scripts/tables_doc.py
"""

from __future__ import annotations

from pathlib import Path

from sidr_core.pipeline.graph import STAGES
from sidr_core.tables.docs import Table, tables

TARGET = Path(__file__).resolve().parent.parent / "docs" / "tables.md"
HEAD = """# Tables

Made by `scripts/tables_doc.py` from `sidr_core/contracts.py`; do not edit. Every table is a Parquet file of an
asset, and a view of `catalog.duckdb` in the schema of its dataset (`sidr sql "select … from games.evaluation"`).
The blocking check `schema` holds each published file against its contract. No column is null unless `nullable`.
"""


def text() -> str:
    """The whole page."""
    parts = [HEAD, "| view | file of the asset | a row is |", "| --- | --- | --- |"]
    known = tables()
    for stage in STAGES:
        for file, contract in stage.tables.items():
            view = stage.name if file == stage.name else f"{stage.name}_{file}"
            row = f"[{contract}](#{contract.lower()})"
            parts.append(f"| `{view}` | `{stage.name}` / `{file}.parquet` | {row} |")
    published = [name for stage in STAGES for name in stage.tables.values()]
    for name in dict.fromkeys(published):
        parts += ["", *_section(known[name])]
    return "\n".join(parts) + "\n"


def _section(table: Table) -> list[str]:
    lines = [
        f"## {table.name}",
        "",
        table.about,
        "",
        "| column | type | rules | meaning |",
        "| --- | --- | --- | --- |",
    ]
    for column in table.columns:
        cells = f"`{column.name}`", f"`{column.type}`", ", ".join(column.rules), column.meaning
        lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    TARGET.write_text(text())
    print(f"{TARGET.name} written")
