"""Tables and files are written whole, and to the same bytes."""

import os

import polars as pl
import pyarrow.parquet as pq
import pytest

from sidr_core.errors import SidrError
from sidr_core.tables import sql
from sidr_core.tables.atomic import replacing, write_atomically
from sidr_core.tables.contracts import Popularity
from sidr_core.tables.files import read, write, write_table


def test_a_table_without_a_contract_has_the_bytes_of_a_plain_write(tmp_path):
    frame = pl.DataFrame({"a": [1, 2, None], "b": [["x"], [], ["y", "z"]]})
    write_table(frame, tmp_path / "a.parquet")
    pq.write_table(frame.to_arrow(), tmp_path / "b.parquet", compression="zstd")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert read(tmp_path / "a.parquet").equals(frame)


def test_a_contract_leaves_no_trace_in_the_file(tmp_path):
    """What a contract says of its columns is not in the file, so better words give the same bytes."""
    frame = pl.DataFrame({"item_id": ["a", "b"], "score": [2.0, 1.0]})
    write(frame, tmp_path / "a.parquet", Popularity)
    write_table(frame, tmp_path / "b.parquet", row_group=64_000)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert pq.read_schema(tmp_path / "a.parquet").field("item_id").metadata is None


@pytest.mark.parametrize("durable", [True, False])
def test_an_atomic_write_is_whole_or_nothing(tmp_path, durable):
    path = tmp_path / "note.json"
    write_atomically(path, "grün", durable=durable)
    assert path.read_bytes() == "grün".encode()
    with pytest.raises(RuntimeError), replacing(path, durable=durable) as partial:
        partial.write_bytes(b"half")
        assert path.read_bytes() == "grün".encode()
        assert partial.parent == tmp_path and partial.name.startswith(f".note.json.{os.getpid()}.")
        raise RuntimeError
    assert path.read_bytes() == "grün".encode()
    write_atomically(path, b"\x00\xff", durable=durable)
    assert path.read_bytes() == b"\x00\xff"
    assert [file.name for file in tmp_path.iterdir()] == ["note.json"]


def test_sql_has_the_memory_that_the_machine_gives_it(tmp_path, monkeypatch):
    limits = []
    for given in ("", "2GB"):
        monkeypatch.setenv(sql.MEMORY_VARIABLE, given)
        with sql.connect(tmp_path) as db:
            limits.append(sql.frame(db, "select current_setting('memory_limit') as it")["it"].item())
    assert limits == ["1.1 GiB", "1.8 GiB"]
    monkeypatch.setenv(sql.MEMORY_VARIABLE, "much")
    with pytest.raises(SidrError, match="no amount of memory"), sql.connect(tmp_path):
        pass
