"""The check of published tables against their contracts: what breaks one, and how it is reported."""

import dataclasses
from pathlib import Path

import pandera.polars as pa
import polars as pl
import pyarrow.parquet as pq
import pytest

from sidr_core.pipeline import schema_check
from sidr_core.pipeline.graph import STAGES, stage_named
from sidr_core.pipeline.stage import SCHEMA, Stage
from sidr_core.tables.contracts import Contract, Embeddings, Samples
from sidr_core.tables.vectors import vector_series


class Toys(Contract):
    name: str = pa.Field(unique=True)
    price: float = pa.Field(nullable=True, ge=0)
    size: pl.Int32
    parts: pl.List(pl.String) = pa.Field(nullable=True)  # type: ignore[valid-type]


def toys(**columns) -> pl.DataFrame:
    base = {"name": ["a", "b", "c"], "price": [1.0, None, 0.0], "size": [1, 2, 3], "parts": [["x"], [], None]}
    types = {"name": pl.String, "price": pl.Float64, "size": pl.Int32, "parts": pl.List(pl.String)}
    return pl.DataFrame(base, schema=types).with_columns(**columns)


def write(folder: Path, frame: pl.DataFrame, **options) -> Path:
    path = folder / "toys.parquet"
    pq.write_table(frame.to_arrow(), path, row_group_size=2, **options)
    return path


def violations(folder: Path, frame: pl.DataFrame, contract=Toys, batch_rows: int = 2, **options) -> list[str]:
    return schema_check.violations(write(folder, frame, **options), contract.to_schema(), batch_rows)


def test_a_table_that_keeps_its_contract_breaks_nothing(tmp_path):
    assert violations(tmp_path, toys()) == []
    assert violations(tmp_path, toys().clear()) == []


@pytest.mark.parametrize(
    ("frame", "lines"),
    [
        (toys(price=pl.Series([1.0, -3.0, None])), ["price breaks greater_than_or_equal_to(0), e.g. '-3.0'"]),
        (toys(size=pl.lit(None, dtype=pl.Int32)), ["size breaks not_nullable"]),
        (toys(size=pl.Series([1, 2, None], dtype=pl.Int32)), ["size breaks not_nullable"]),
        (toys(name=pl.Series(["a", "b", "a"])), ["name is not unique"]),
        (toys(size=pl.lit(1, dtype=pl.Int64)), ["size breaks dtype('Int32'), e.g. 'Int64'"]),
        (toys(extra=pl.lit(1)), ["extra breaks column_in_schema"]),
        (toys().drop("price"), ["price breaks column_in_dataframe"]),
        (
            toys(price=-1.0, name=pl.lit("a")),
            ["price breaks greater_than_or_equal_to(0), e.g. '-1.0'", "name is not unique"],
        ),
    ],
)
def test_each_broken_rule_is_a_line(tmp_path, frame, lines):
    assert violations(tmp_path, frame) == lines


def test_batches_and_missing_statistics_change_nothing(tmp_path):
    assert violations(tmp_path, toys(name=pl.Series(["a", "b", "a"])), batch_rows=1) == ["name is not unique"]
    missing = toys(size=pl.Series([1, None, 3], dtype=pl.Int32))
    assert violations(tmp_path, missing, write_statistics=False) == ["size breaks not_nullable"]
    assert violations(tmp_path, toys(), write_statistics=False) == []


def test_values_with_equal_hashes_are_not_taken_for_equal(tmp_path, monkeypatch):
    monkeypatch.setattr(pl.Series, "hash", lambda self: pl.Series([7] * len(self), dtype=pl.UInt64))
    assert violations(tmp_path, toys()) == []
    assert violations(tmp_path, toys(name=pl.Series(["a", "b", "b"]))) == ["name is not unique"]


def test_vectors_are_not_read_if_statistics_prove_that_none_is_null(tmp_path):
    vectors = vector_series(pl.Series([[1.0, 2.0]] * 3).list.to_array(2).to_numpy())
    frame = pl.DataFrame({"item_id": ["a", "b", "c"], "text_digest": ["x"] * 3, "vector": vectors})
    for options, read in (({}, ["item_id"]), ({"write_statistics": False}, ["item_id", "text_digest", "vector"])):
        with pq.ParquetFile(write(tmp_path, frame, **options)) as file:
            assert schema_check.columns_to_read(file, Embeddings.to_schema()) == read
    assert violations(tmp_path, frame, Embeddings) == []
    assert violations(tmp_path, frame.with_columns(vector=None).cast({"vector": pl.List(pl.Float32)}), Embeddings) == [
        "vector breaks not_nullable"
    ]


def test_a_missing_history_is_reported(tmp_path):
    rows = {"row_id": ["1"], "user_id": ["u"], "position": [1], "target_item_id": ["t"], "target_timestamp": [None]}
    types = {"position": pl.Int32, "target_timestamp": pl.Int64}
    frame = pl.DataFrame(rows, schema_overrides=types).with_columns(
        history_item_ids=pl.lit(None, dtype=pl.List(pl.String))
    )
    assert violations(tmp_path, frame.select(list(Samples.to_schema().columns)), Samples) == [
        "history_item_ids breaks not_nullable"
    ]


def stage(**tables: str) -> Stage:
    return dataclasses.replace(stage_named("item_embeddings"), checks=(), tables=tables)


def embeddings(folder: Path, name: str) -> None:
    frame = pl.DataFrame({"item_id": ["a"], "text_digest": ["x"], "vector": [[1.0]]})
    pq.write_table(frame.cast({"vector": pl.List(pl.Float32)}).to_arrow(), folder / f"{name}.parquet")


def test_the_check_says_what_it_saw(tmp_path):
    embeddings(tmp_path, "item_embeddings")
    check = schema_check.check(stage(item_embeddings="Embeddings", other="Items"), tmp_path)
    assert (check.name, check.passed, check.detail) == ("schema", True, "item_embeddings: 1 rows")


def test_a_table_without_a_contract_and_a_missing_one_fail_it(tmp_path):
    embeddings(tmp_path, "surprise")
    check = schema_check.check(stage(item_embeddings="Embeddings"), tmp_path)
    assert not check.passed
    assert "surprise: it has no contract" in check.detail and "item_embeddings: the table is missing" in check.detail


def test_the_wrong_contract_fails_it(tmp_path):
    embeddings(tmp_path, "item_embeddings")
    check = schema_check.check(stage(item_embeddings="Items"), tmp_path)
    assert not check.passed and "breaks column_in_dataframe" in check.detail


def test_every_stage_with_tables_promises_their_schema():
    from sidr_core.tables import contracts

    for step in STAGES:
        assert (SCHEMA in step.checks) == bool(step.tables)
        assert [check.name for check in step.checks].count("schema") <= 1
        for name in step.tables.values():
            assert issubclass(getattr(contracts, name), contracts.Contract)
