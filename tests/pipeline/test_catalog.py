"""The catalog is rewritten when it has to be, and only then."""

import duckdb
import pytest

from sidr_core.pipeline import catalog


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
    from sidr_core.cli import sql as cli_sql

    catalog.path(world.store).unlink()
    with duckdb.connect(str(catalog.path(world.store))) as connection:
        connection.execute("create schema toys; create view toys.evaluation as select 1 as before")
    cli_sql.sql("select count(*) as n from toys.evaluation", "csv")
    assert capsys.readouterr().out == f"n\n{shown(world.store)}\n"


def test_a_damaged_earlier_snapshot_does_not_keep_a_query_from_the_newest(world, capsys) -> None:
    from sidr_core.cli import sql as cli_sql
    from sidr_core.errors import StoreError

    dataset, _, _ = next(where for where in world.store.refs() if where[2] == "evaluation")
    world.store.set_ref(dataset, "1999-01", "evaluation", "0" * 32)
    cli_sql.sql("select count(*) as n from toys.evaluation", "csv")
    assert capsys.readouterr().out.startswith("n\n")
    with pytest.raises(StoreError, match="1999-01"):
        cli_sql.sql("select count(*) as n from toys.evaluation_all_snapshots", "csv")
