"""The catalog is rewritten when it has to be, and only then; and how a query gets on without one."""

import shutil

import duckdb
import pytest

from sidr_core.cli import sql as cli_sql
from sidr_core.errors import StoreError
from sidr_core.pipeline import catalog
from sidr_core.pipeline.profile import parse_profile

COUNT = "select count(*) as n from toys.evaluation"


def shown(store) -> int:
    with duckdb.connect(str(catalog.path(store)), read_only=True) as connection:
        return connection.execute("select count(*) from toys.evaluation").fetchone()[0]


def test_of_the_same_outputs_it_is_left_alone(world) -> None:
    before = catalog.path(world.store).stat().st_ino
    assert world.run("evaluation").reused
    assert catalog.path(world.store).stat().st_ino == before
    catalog.refresh(world.store)
    assert catalog.path(world.store).stat().st_ino != before


def test_a_damaged_or_missing_one_is_rewritten_by_a_run_that_reuses_all(world) -> None:
    rows = shown(world.store)
    for damage in (lambda path: path.write_bytes(b"no database"), lambda path: path.unlink()):
        damage(catalog.path(world.store))
        assert world.run("evaluation").reused
        assert shown(world.store) == rows


def test_one_of_another_current_output_is_rewritten(world) -> None:
    """As after a kill between the new ref and the new catalog."""
    dataset, snapshot, _ = next(where for where in world.store.refs() if where[2] == "evaluation")
    store, before = world.store, catalog.path(world.store).stat().st_ino
    store.set_ref(dataset, "1999-01", "evaluation", store.ref(dataset, snapshot, "evaluation"))
    assert world.run("evaluation").reused
    assert catalog.path(store).stat().st_ino != before


def test_a_query_after_a_kill_reads_what_is_current(world, capsys) -> None:
    """The ref has moved, the catalog is of before: the query brings it up to date and checks what it reads."""
    catalog.path(world.store).unlink()
    with duckdb.connect(str(catalog.path(world.store))) as connection:
        connection.execute("create schema toys; create view toys.evaluation as select 1 as before")
    cli_sql.sql("select count(*) as n from toys.evaluation", "csv")
    assert capsys.readouterr().out == f"n\n{shown(world.store)}\n"


def test_a_damaged_earlier_snapshot_does_not_keep_a_query_from_the_newest(world, capsys) -> None:
    dataset, _, _ = next(where for where in world.store.refs() if where[2] == "evaluation")
    world.store.set_ref(dataset, "1999-01", "evaluation", "0" * 32)
    cli_sql.sql("select count(*) as n from toys.evaluation", "csv")
    assert capsys.readouterr().out.startswith("n\n")
    with pytest.raises(StoreError, match="1999-01"):
        cli_sql.sql("select count(*) as n from toys.evaluation_all_snapshots", "csv")


def test_a_wal_that_another_program_left_does_not_block_queries(world, capsys) -> None:
    rows = shown(world.store)
    with duckdb.connect(str(world.store.root / "other.duckdb")) as other:
        other.execute("create table t as select 1; checkpoint; insert into t values (2)")
        wal = catalog.path(world.store).with_name("catalog.duckdb.wal")
        shutil.copy(world.store.root / "other.duckdb.wal", wal)
    cli_sql.sql(COUNT, "csv")
    assert capsys.readouterr().out == f"n\n{rows}\n"
    assert not wal.exists()


def test_a_home_that_cannot_be_written_is_queried(world, capsys, monkeypatch) -> None:
    rows = shown(world.store)
    catalog.path(world.store).write_bytes(b"of an earlier version, or moved here")

    def no_lock(*args: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(catalog, "refresh", no_lock)
    cli_sql.sql(COUNT, "csv")
    assert capsys.readouterr().out == f"n\n{rows}\n"


@pytest.mark.parametrize("call", ["query('select * from toys.evaluation')", "query_table('toys.evaluation')"])
def test_a_query_in_a_string_is_checked_for_damage_too(world, call) -> None:
    path = world.store.require("toys", "2020-02", "evaluation").folder / "evaluation.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError, match="damaged"):
        cli_sql.sql(f"select count(*) from {call}", "csv")


def test_a_query_says_when_its_numbers_are_of_other_settings(world, capsys, monkeypatch) -> None:
    cli_sql.sql(COUNT, "csv")
    assert capsys.readouterr().err == ""
    fields = {**world.profile.raw["datasets"]["toys"], "evaluation": {"ks": [1, 3, 5], "bootstrap": 300}}
    other = parse_profile("other", {"datasets": {"toys": fields}})
    monkeypatch.setattr(cli_sql, "load_profile", lambda: other)
    cli_sql.sql(COUNT, "csv")
    said = capsys.readouterr().err
    assert "toys/evaluation of 2020-02 is not what profile other would make now" in said
    assert "evaluation.bootstrap: 200 -> 300" in said
    elsewhere = parse_profile("elsewhere", {"datasets": {"others": fields}})
    monkeypatch.setattr(cli_sql, "load_profile", lambda: elsewhere)
    cli_sql.sql(COUNT, "csv")
    assert "toys of 2020-02 is not in profile elsewhere" in capsys.readouterr().err
