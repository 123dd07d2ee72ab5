"""Names and values cannot become SQL; `sidr sql` reads published tables and nothing else."""

import contextlib
import os
import re
from pathlib import Path

import duckdb
import polars as pl
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from builders.reviews import JUNE_2018, Bench, amazon, item, review, rows
from sidr_core.cli import sql as cli_sql
from sidr_core.errors import ProfileError, SidrError
from sidr_core.pipeline import catalog
from sidr_core.pipeline.profile import parse_profile
from sidr_core.tables.sql import quoted

#: Pieces of which hostile texts are made.
PIECES = [
    *("'", "''", '"', '""', ";", "--", "/*", "*/", "$$", "$1", "$path", "?", "%", "\\", "\\'", "{}", "[*]", "*", "::"),
    *(
        "select",
        "union all",
        "drop table x",
        "copy (select 1) to 'canary'",
        "attach 'canary'",
        "main.",
        " ",
        "\n",
        "\t",
    ),
    *("é", "\u2028", "\U0001f600", "\u0301", "\u202e", "x", "0", "NULL", "nan", "true", "\x7f", "\x01"),
]
hostile = st.one_of(
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=8).map("".join),
    st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), min_size=1, max_size=30),
)
MANY = settings(max_examples=500, deadline=None, database=None)
FIELDS = {"source": {"kind": "sample", "category": "games"}, "snapshots": {"start": "2018-03", "end": "2018-10"}}


@pytest.fixture(scope="module")
def db():
    with duckdb.connect(config={"enable_external_access": False}) as connection:
        yield connection


@pytest.fixture(autouse=True)
def no_canary(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.rglob("canary*"))


@MANY
@given(hostile)
@example("'; copy (select 1) to 'canary'; --")
def test_what_is_quoted_stays_a_text(db, text):
    for quote in (quoted, catalog._text):
        assert db.execute(f"select {quote(text)}").fetchall() == [(text,)]


@MANY
@given(hostile)
@example("\"; copy (select 1) to 'canary'; --")
def test_a_name_stays_a_name(db, text):
    result = db.execute(f"select 1 as {catalog._name(text)}")
    assert [column[0] for column in result.description] == [text]
    assert result.fetchall() == [(1,)]


@MANY
@given(hostile)
@example("main")
@example("Toys")
def test_a_dataset_has_a_plain_name_or_none(db, text):
    """What a profile lets through can stand in SQL as it is, quoted or not."""
    try:
        profile = parse_profile("p", {"datasets": {"toys": FIELDS, text: FIELDS}})
    except ProfileError:
        return
    if text == "toys":
        return
    assert text in profile.datasets and re.fullmatch("[A-Za-z][A-Za-z0-9_]{0,63}", text)
    db.execute(f'create schema "{text}"; drop schema "{text}"')


# A "<" may begin markup, which cleaning cuts out of a title, and an item without a title is left out.
whole = hostile.filter(lambda text: text.strip() and "<" not in text)


@settings(  # a failure is not shrunk: that takes minutes
    max_examples=2, deadline=None, database=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate]
)
@given(st.lists(whole, min_size=125, max_size=125, unique_by=str.strip))
def test_users_items_and_titles_pass_through_all_tables(tmp_path_factory, texts):
    """2 times 125 texts as user, item, title, brand, category and name of a file, from the source to the catalog."""
    folder = tmp_path_factory.mktemp("sql")
    os.environ["SIDR_HOME"] = str(folder / "home")
    try:
        lines = [review(text, other, JUNE_2018 + n) for n, text in enumerate(texts) for other in (text, texts[n - 1])]
        items = [item(text, f"Thing {text}", brand=text, category=[text], description=[text]) for text in texts]
        bench = Bench(folder / "home", amazon(folder / "a'b;--", lines, items), filters={"k_core": 1})
        log = rows(bench.interactions(), "interactions")
        ids = set(pl.Series(texts).str.strip_chars())  # blanks around an id are cut off
        assert set(log["user_id"]) == set(log["item_id"]) == ids
        catalog.refresh(bench.store)
        with duckdb.connect(str(catalog.path(bench.store)), read_only=True) as connection:
            names = connection.execute("select distinct user_id from d.raw_reviews_all_snapshots").fetchall()
        assert {name for (name,) in names} == ids
    finally:
        del os.environ["SIDR_HOME"]
    assert not list(folder.rglob("canary*"))


@given(hostile, hostile.filter(lambda text: text.strip()))
@settings(max_examples=10, deadline=None, database=None)
def test_columns_of_a_table_may_have_any_name(tmp_path_factory, name, other):
    """The map of columns of a `tables` source: the column is found by its whole name or reported missing."""
    folder = tmp_path_factory.mktemp("columns")
    os.environ["SIDR_HOME"] = str(folder / "home")
    names = {"user_id": name, "item_id": f"{name}2", "timestamp": f"{name}3"}
    data = {names["user_id"]: ["u"], names["item_id"]: [other], names["timestamp"]: [JUNE_2018]}
    pl.DataFrame(data).write_parquet(folder / "t.parquet")
    try:
        source = {"kind": "tables", "reviews": [str(folder / "t.parquet")], "review_columns": names}
        found = rows(Bench(folder / "home", source).run("raw_reviews"), "raw_reviews")
        assert found.select("user_id", "item_id").rows() == [("u", pl.Series([other]).str.strip_chars()[0])]
        missing = {"kind": "tables", "reviews": [str(folder / "t.parquet")], "review_columns": {"user_id": f"{name}x"}}
        with pytest.raises(SidrError, match="no column"):
            Bench(folder / "home", missing).run("raw_reviews")
    finally:
        del os.environ["SIDR_HOME"]


# -- sidr sql ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A working folder with a catalog, and a secret beside it."""
    folder = tmp_path_factory.mktemp("published")
    before = os.environ.get("SIDR_HOME")
    os.environ["SIDR_HOME"] = str(folder / "home")
    lines = [review("U1", "I1"), review("U2", "I1")]
    bench = Bench(folder / "home", amazon(folder, lines, [item("I1")]), filters={"k_core": 1})
    bench.run("raw_reviews")
    catalog.refresh(bench.store)
    (folder / "secret.csv").write_text("secret\nhunter2\n")
    with duckdb.connect(str(folder / "other.duckdb")) as other:
        other.execute("create table secret as select 'hunter2' as secret")
    yield folder
    if before is None:
        del os.environ["SIDR_HOME"]
    else:
        os.environ["SIDR_HOME"] = before


def files(folder: Path) -> list[Path]:
    """All below a folder but the caches, in which digests of source files are remembered."""
    return sorted(path for path in folder.rglob("*") if "cache" not in path.relative_to(folder).parts)


READS = [
    "select count(*) from d.raw_reviews",
    "from d.raw_reviews",
    "show all tables",
    "describe d.raw_reviews",
    "summarize d.raw_reviews",
    "with a as (select 1 as x) select x from a",
    "values (1)",
]
FORBIDDEN = [
    "copy (select 1) to '{out}/canary.csv'",
    "copy (select 1) to '{store}/canary.csv'",
    "copy d.raw_reviews to '{store}/canary.parquet' (format parquet)",
    "explain analyze copy (select 1) to '{store}/canary.csv'",
    "export database '{store}/canary'",
    "export database '{out}/canary'",
    "attach '{out}/other.duckdb' as other",
    "attach '{out}/canary.duckdb' as other",
    "attach ':memory:' as other",
    "select * from '{out}/secret.csv'",
    "select * from read_csv('{out}/secret.csv')",
    "select * from read_text('{out}/secret.csv')",
    "select * from read_text('{store}/../../secret.csv')",
    "select * from read_blob('/etc/passwd')",
    "select * from glob('{out}/*')",
    "select * from sniff_csv('{out}/secret.csv')",
    "select * from read_duckdb('{out}/other.duckdb', table_name = 'secret')",
    "select * from read_csv('http://127.0.0.1:9/x')",
    "select * from query('copy (select 1) to ''{store}/canary''')",
    "install httpfs",
    "load httpfs",
    "load '{out}/canary.duckdb_extension'",
    "set enable_external_access = true",
    "reset enable_external_access",
    "set allowed_directories = ['/']",
    "pragma enable_profiling",
    "pragma profiling_output = '{out}/canary'",
    "create table d.canary as select 1",
    "create temp table canary as select 1",
    "create secret canary (type s3)",
    "drop view d.raw_reviews",
    "checkpoint",
    "prepare x as copy (select 1) to '{store}/canary'",
    "call enable_logging(storage = 'file', storage_path = '{out}/canary')",
    "select 1; copy (select 1) to '{store}/canary'",
    "select 1; select 2",
    "-- nothing",
    "",
]


@pytest.mark.parametrize("query", READS)
def test_sql_reads_published_tables(published, query, capsys):
    cli_sql.sql(query, "json")
    assert capsys.readouterr().out.startswith("[\n")


@pytest.mark.parametrize("query", FORBIDDEN)
def test_sql_does_nothing_else(published, query, capsys):
    before = files(published)
    with pytest.raises(SidrError, match="the query failed"):
        cli_sql.sql(query.format(out=published, store=published / "home" / "store"), "json")
    assert "hunter2" not in capsys.readouterr().out
    assert files(published) == before


def test_sql_does_not_see_variables_of_python(published):
    frame = pl.DataFrame({"secret": ["hunter2"]})
    assert len(frame) == 1
    with pytest.raises(SidrError, match="the query failed"):
        cli_sql.sql("select * from frame", "json")


@settings(max_examples=60, deadline=None, database=None)
@given(hostile)
def test_sql_of_any_text_changes_nothing(published, text):
    before = files(published)
    with contextlib.suppress(SidrError):
        cli_sql.sql(text, "csv")
    assert files(published) == before
    assert not Path("canary").exists()
