"""The words for tables: complete, equal to the contracts, and docs/tables.md is up to date."""

import importlib.util
from pathlib import Path

import polars as pl
import pytest

from sidr_core.pipeline.graph import STAGES
from sidr_core.tables import contracts
from sidr_core.tables import docs as table_docs

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "tables_doc.py"
ARROW = {
    "string": pl.String,
    "float64": pl.Float64,
    "bool": pl.Boolean,
    "int64": pl.Int64,
    "int32": pl.Int32,
    "list<string>": pl.List(pl.String),
    "list<float32>": pl.List(pl.Float32),
    "list<int32>": pl.List(pl.Int32),
}


@pytest.mark.parametrize("name", sorted(table_docs.tables()))
def test_the_text_of_a_contract_says_what_pandera_enforces(name):
    schema = getattr(contracts, name).to_schema()
    table = table_docs.tables()[name]
    assert [column.name for column in table.columns] == list(schema.columns)
    for told in table.columns:
        column = schema.columns[told.name]
        assert column.dtype.type == ARROW[told.type]
        assert (column.nullable, column.unique) == ("nullable" in told.rules, "unique" in told.rules)
        assert len(column.checks) == len(set(told.rules) - {"nullable", "unique"})


def test_every_contract_is_told():
    classes = [cls for cls in vars(contracts).values() if isinstance(cls, type) and issubclass(cls, contracts.Contract)]
    assert {cls.__name__ for cls in classes} - {"Contract"} == set(table_docs.tables())


def test_every_published_column_has_a_meaning_and_every_table_a_sentence():
    for name in {contract for stage in STAGES for contract in stage.tables.values()}:
        table = table_docs.tables()[name]
        assert table.about.endswith(".")
        assert [column.name for column in table.columns if not column.meaning] == []


def test_no_meaning_is_left_over():
    columns = {(name, column.name) for name, table in table_docs.tables().items() for column in table.columns}
    used = {name for _, name in columns} | {f"{table}.{name}" for table, name in columns}
    assert set(table_docs.MEANINGS) <= used


def test_rules_read_as_phrases():
    columns = {column.name: column for column in table_docs.tables()["RawReviews"].columns}
    assert columns["rating"].rules == ("nullable", "≥ 0", "≤ 5")
    assert columns["split"].rules == ("nullable", "one of train, valid, test")
    text = {column.name: column for column in table_docs.tables()["TeacherQuarantine"].columns}["text"]
    assert text.rules == ("length max 500",)
    assert text.meaning == "the reply, neutralised and cut at 500 characters"


def test_the_page_is_up_to_date():
    """If not: `.venv/bin/python scripts/tables_doc.py`."""
    spec = importlib.util.spec_from_file_location("tables_doc", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.TARGET.read_text() == module.text()
