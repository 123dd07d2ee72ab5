"""Vectors between numpy, polars and Parquet."""

from pathlib import Path

import numpy as np
import pandera.errors
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from sidr_core.errors import StoreError
from sidr_core.tables import files as tables
from sidr_core.tables.contracts import Embeddings
from sidr_core.tables.vectors import VectorTable, iter_vectors, read_vectors, series_vectors, vector_series


def numbers(rows: int, width: int) -> np.ndarray:
    return np.arange(rows * width, dtype=np.float32).reshape(rows, width) / 7


def embeddings(rows: int, start: int = 0) -> pl.DataFrame:
    ids = [f"i{n:05}" for n in range(start, start + rows)]
    return pl.DataFrame({"item_id": ids, "text_digest": ids, "vector": vector_series(numbers(rows, 3) + start)})


@settings(deadline=None)
@given(arrays.arrays(np.float32, st.tuples(st.integers(1, 40), st.integers(1, 9)), elements=st.floats(width=32)))
def test_series_and_back_is_bit_for_bit(matrix):
    series = vector_series(matrix)
    assert series.dtype == pl.List(pl.Float32)
    assert series_vectors(series).tobytes() == matrix.tobytes()


def test_series_holds_one_list_per_row():
    assert vector_series(np.array([[1, 2], [3, 4]])).to_list() == [[1.0, 2.0], [3.0, 4.0]]
    assert series_vectors(vector_series(numbers(5, 2))[1:3]).tolist() == numbers(5, 2)[1:3].tolist()


def test_read_gives_all_rows_in_file_order_across_row_groups(tmp_path: Path):
    path = tmp_path / "a.parquet"
    matrix = numbers(1000, 3)
    pq.write_table(pl.DataFrame({"vector": vector_series(matrix)}).to_arrow(), path, row_group_size=90)
    assert np.array_equal(read_vectors(path), matrix)
    blocks = list(iter_vectors(path, rows=256))
    assert max(map(len, blocks)) <= 256 and np.array_equal(np.concatenate(blocks), matrix)


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.large_list(pa.float64()), pa.list_(pa.float32(), 2)])
def test_read_takes_any_kind_of_list(tmp_path: Path, kind: pa.DataType):
    pq.write_table(pa.table({"vector": pa.array([[1, 2], [3, 4]], type=kind)}), tmp_path / "a.parquet")
    found = read_vectors(tmp_path / "a.parquet")
    assert found.dtype == np.float32 and found.tolist() == [[1, 2], [3, 4]]


def test_a_file_without_rows_gives_no_vectors(tmp_path: Path):
    pq.write_table(pa.table({"vector": pa.array([], type=pa.list_(pa.float32()))}), tmp_path / "a.parquet")
    assert read_vectors(tmp_path / "a.parquet").shape == (0, 0)


@pytest.mark.parametrize("rows", [[[1, 2], [1]], [[1, None], [1, 2]], [[1, 2], None]])
def test_ragged_or_missing_vectors_are_refused(tmp_path: Path, rows):
    pq.write_table(pa.table({"vector": pa.array(rows, type=pa.list_(pa.float32()))}), tmp_path / "a.parquet")
    with pytest.raises(StoreError, match="one length"):
        read_vectors(tmp_path / "a.parquet")


def test_another_length_in_a_later_block_is_refused(tmp_path: Path):
    rows = pa.array([[1, 2], [1, 2, 3]], type=pa.list_(pa.float32()))
    pq.write_table(pa.table({"vector": rows}), tmp_path / "a.parquet")
    with pytest.raises(StoreError, match="one length"):
        list(iter_vectors(tmp_path / "a.parquet", rows=1))


def test_table_in_blocks_holds_the_rows_of_a_table_at_once(tmp_path: Path):
    with VectorTable(tmp_path / "blocks.parquet", Embeddings) as table:
        table.write(embeddings(5).select("vector", "item_id", "text_digest"))
        table.write(embeddings(3, start=5))
    assert pq.read_metadata(tmp_path / "blocks.parquet").num_row_groups == 2
    assert tables.read(tmp_path / "blocks.parquet").equals(pl.concat([embeddings(5), embeddings(3, start=5)]))


def test_table_refuses_a_block_that_breaks_the_contract(tmp_path: Path):
    with VectorTable(tmp_path / "a.parquet", Embeddings) as table, pytest.raises(pandera.errors.SchemaErrors):
        table.write(embeddings(2).with_columns(text_digest=pl.lit(1)))
