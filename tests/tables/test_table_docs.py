"""The words for tables: complete, and equal to the contracts."""

import polars as pl
import pytest

from sidr_core.pipeline.graph import STAGES
from sidr_core.tables import contracts
from sidr_core.tables import docs as table_docs

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
    for read in table.columns:
        column = schema.columns[read.name]
        assert column.dtype.type == ARROW[read.type]
        assert column.description == read.meaning
        assert (column.nullable, column.unique) == ("nullable" in read.rules, "unique" in read.rules)
        assert len(column.checks) == len(set(read.rules) - {"nullable", "unique"})


def test_every_contract_is_read():
    classes = [cls for cls in vars(contracts).values() if isinstance(cls, type) and issubclass(cls, contracts.Contract)]
    assert {cls.__name__ for cls in classes} - {"Contract"} == set(table_docs.tables())


def test_every_column_has_a_meaning_and_every_table_a_sentence():
    assert {contract for stage in STAGES for contract in stage.tables.values()} <= set(table_docs.tables())
    for table in table_docs.tables().values():
        assert table.about.endswith(".")
        assert [column.name for column in table.columns if not column.meaning] == []


def test_rules_read_as_phrases():
    columns = {column.name: column for column in table_docs.tables()["RawReviews"].columns}
    assert columns["rating"].rules == ("nullable", "≥ 0", "≤ 5")
    assert columns["split"].rules == ("nullable", "one of train, valid, test")
    text = {column.name: column for column in table_docs.tables()["TeacherQuarantine"].columns}["text"]
    assert text.rules == ("length max 500",)
    assert text.meaning == "the reply, neutralised and cut at 500 characters"


def test_a_contract_built_on_another_says_what_differs():
    metric, newer = (
        {column.name: column for column in table_docs.tables()[name].columns}
        for name in ("EvaluationTable", "Reevaluation")
    )
    assert newer["metric"] == metric["metric"]
    assert newer["split"].meaning.startswith("`newer`") and metric["split"].meaning == "`train`, `valid` or `test`"
