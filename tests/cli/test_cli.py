"""The command line on the small published world: what it prints, and how it refuses."""

import csv
import io
import json
import subprocess
import sys

import polars as pl
import pytest
import yaml

from builders import small_world
from builders.small_world import SNAPSHOT
from sidr_core.cli.recommend import history_items
from sidr_core.evaluation import cases
from sidr_core.pipeline.gc import size as size_of
from sidr_core.pipeline.graph import stages_of
from sidr_core.pipeline.status import states
from sidr_core.tables import files as tables


def refused(result: tuple[int, str, str], *texts: str) -> None:
    code, _, err = result
    assert code == 1
    assert err.startswith("error: ") and "expected:" in err and "found:" in err and "fix:" in err
    assert "Traceback" not in err
    for text in texts:
        assert text in err


def test_help_imports_nothing_heavy():
    script = (
        "import sys, sidr_core.cli.main as cli; sys.argv = ['sidr', '--help']\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'polars', 'duckdb', 'pandera', 'matplotlib', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for command in ("status", "sql", "recommend", "explain", "newest", "show"):
        assert command in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("status", "--format", "none"),
        ("doctor", "--format", "none"),
        ("sql", "select 1", "--format", "none"),
        ("compare", "toys/sft/direct", "toys/grpo/direct", "--format", "none"),
        ("recommend", "--user", "user0", "--mode", "none"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_an_unknown_choice_is_a_usage_error_that_lists_the_known_ones(sidr, arguments):
    code, _, err = sidr(*arguments)
    assert code == 2 and "Usage:" in err
    assert "'none' is not one of '" in " ".join(err.replace("│", " ").split())


# -- newest, show --------------------------------------------------------------------------------


def test_newest_is_the_last_window_of_the_profile(world, sidr):
    assert sidr("newest") == (0, "2020-02\n", "")
    assert sidr("newest", "--dataset", "toys")[1] == "2020-02\n"


def test_an_unknown_dataset_names_the_near_one(world, sidr):
    for command in (["newest"], ["show"], ["status"], ["recommend", "--user", "user0"], ["explain", "--user", "user0"]):
        refused(sidr(*command, "--dataset", "toy"), "no dataset 'toy'", "did you mean 'toys'?")


def test_show_is_short_and_says_synthetic_and_what_thinking_gave(world, sidr):
    code, out, _ = sidr("show")
    assert code == 0 and len(out.splitlines()) <= 25
    assert "synthetic sample data" in out and "grpo/thinking − grpo/direct" in out
    assert "user0:4 thought: " in out and "user1:" in out
    table = tables.read(world.store.require("toys", SNAPSHOT, "evaluation").path("evaluation.parquet"))
    item = table.filter((pl.col("metric") == "ndcg") & (pl.col("k") == 5) & (pl.col("level") == "item"))
    best = item.sort("value", descending=True, maintain_order=True).row(0, named=True)
    first = out.splitlines()[2]
    assert first.startswith(f" 1 {best['model']}/{best['mode']} ") and f"{best['value']:.4f} [" in first


def test_show_all_prints_every_list_and_difference(world, sidr):
    code, out, _ = sidr("show", "--all")
    assert code == 0
    assert "synthetic sample data" in out
    table = tables.read(world.store.require("toys", SNAPSHOT, "evaluation").path("evaluation.parquet"))
    row = table.filter(
        (pl.col("model") == "item_item")
        & (pl.col("metric") == "ndcg")
        & (pl.col("k") == 5)
        & (pl.col("level") == "item")
    ).row(0, named=True)
    line = next(line for line in out.splitlines() if line.strip().startswith("item_item/direct"))
    assert f"{row['value']:.4f} [{row['ci_low']:.4f}, {row['ci_high']:.4f}]" in line
    assert "grpo/thinking − grpo/direct" in out


def test_show_of_a_snapshot_that_was_not_made_says_how_to_make_it(world, sidr):
    refused(
        sidr("show", "--snapshot", "2020-01"), "toys/evaluation has no published output", "dagster asset materialize"
    )
    refused(sidr("show", "--snapshot", "1999-01"), "there is no snapshot '1999-01'")


# -- status --------------------------------------------------------------------------------------


def test_status_of_a_world_that_is_current(world, sidr):
    code, out, _ = sidr("status")
    assert code == 0
    evaluation = world.store.require("toys", SNAPSHOT, "evaluation")
    assert evaluation.fingerprint[:8] in out
    assert "stale" not in out


def test_status_of_an_empty_store(world, sidr, monkeypatch, tmp_path):
    monkeypatch.setenv("SIDR_HOME", str(tmp_path / "none"))
    code, out, _ = sidr("status", "--dataset", "toys")
    assert code == 0
    stages = len(stages_of(world.profile.dataset("toys")))
    assert f"nothing is published yet; refresh: {stages} stages, never built before" in out
    assert "raw_reviews" not in out


# -- gc ------------------------------------------------------------------------------------------


def test_gc_retires_what_the_profile_does_not_have(world, sidr):
    fp = world.store.ref("toys", SNAPSHOT, "evaluation")
    for dataset, snapshot in (("gone", SNAPSHOT), ("toys", "1999-01")):
        world.store.set_ref(dataset, snapshot, "evaluation", fp)
    assert "nothing to delete" in sidr("gc")[1]
    assert "2 snapshot" in sidr("gc", "--unlisted")[1]
    assert len({ref[:2] for ref in world.store.refs()}) == 3
    assert "deleted: 2 snapshot" in sidr("gc", "--unlisted", "--yes")[1]
    assert {ref[:2] for ref in world.store.refs()} == {("toys", SNAPSHOT)}
    assert world.store.ref("toys", SNAPSHOT, "evaluation") == fp


def test_gc_lists_first_and_deletes_on_yes(world, sidr):
    store = world.store
    before = [(one.stage, one.state) for one in states(world.profile, world.store, "toys")]
    artifact, _ = store.obtain("interactions", "1", {}, lambda folder: (folder / "out.txt").write_text("old") and None)
    fp = artifact.fingerprint
    del artifact  # what is held is not deleted
    size = size_of(store.root / "interactions" / fp)
    for arguments in ((), ("--dry-run",), ("--yes", "--dry-run")):
        code, out, _ = sidr("gc", *arguments)
        assert code == 0
        assert f"would go: 1 output; {size / 1e6:,.1f} MB ({size:,} bytes)" in out and fp in out
        assert store.open("interactions", fp) is not None
    code, out, _ = sidr("gc", "--yes")
    assert code == 0 and "deleted: 1 output" in out
    assert store.open("interactions", fp) is None
    assert "nothing to delete" in sidr("gc")[1]
    assert [(one.stage, one.state) for one in states(world.profile, world.store, "toys")] == before


# -- sql -----------------------------------------------------------------------------------------


def test_sql_as_json_csv_and_table(world, sidr):
    query = "select row_id, history_item_ids, null as nothing from toys.interactions_test order by 1 limit 2"
    code, out, _ = sidr("sql", query, "--format", "json")
    assert code == 0
    assert json.loads(out)[0] == {
        "row_id": "user0:4",
        "history_item_ids": ["A00", "A01", "A02", "A03"],
        "nothing": None,
    }
    code, out, _ = sidr("sql", query, "--format", "csv")
    assert [row[0] for row in csv.reader(io.StringIO(out))] == ["row_id", "user0:4", "user0:5"]
    code, out, _ = sidr("sql", query)
    assert code == 0 and "history_item_ids" in out and "user0:5" in out
    assert sidr("sql", "select 1 as x where false", "-f", "json")[1] == "[]\n"


def test_sql_tells_that_a_table_was_cut(world, sidr):
    code, out, _ = sidr("sql", "select * from range(500)")
    assert code == 0
    assert "the first 100 rows" in out
    assert " 99 " in out and " 100 " not in out.replace("first 100 rows", "")
    assert len(sidr("sql", "select * from range(500)", "-f", "csv")[1].splitlines()) == 501


def test_sql_cannot_write_and_names_its_errors(world, sidr):
    refused(sidr("sql", "create table toys.x as select 1"), "read-only")
    refused(sidr("sql", "drop view toys.evaluation"), "read-only")
    refused(sidr("sql", "select * from toys.evaluatoin"), "evaluatoin")


def test_sql_without_anything_published(world, sidr, monkeypatch, tmp_path):
    monkeypatch.setenv("SIDR_HOME", str(tmp_path / "none"))
    refused(sidr("sql", "select 1"), "nothing is published yet", "make run")


def test_control_characters_do_not_reach_the_terminal(world, sidr):
    code, out, _ = sidr("sql", "select chr(27) || '[31mred' as title")
    assert code == 0
    assert "\x1b[31mred" not in out and "[31mred" in out


# -- recommend, explain --------------------------------------------------------------------------


def places(out: str) -> list[list[str]]:
    """Lines of the printed list, cut at blanks."""
    lines = [line.split() for line in out.splitlines()]
    return [line for line in lines if line and line[0].isdigit()]


def test_recommend_for_a_user_gives_the_stages_own_list(world, sidr):
    """The history of --history is that of a test row, so the list must be the published one."""
    row = small_world.samples(4, 2).row(0, named=True)
    code, out, _ = sidr("recommend", "--history", ",".join(row["history_item_ids"]), "-k", "5")
    assert code == 0
    table = tables.read(world.store.require("toys", SNAPSHOT, "recommendations").path("recommendations.parquet"))
    listed = table.filter(
        (pl.col("row_id") == row["row_id"]) & (pl.col("model") == "grpo") & (pl.col("mode") == "thinking")
    )
    expected = listed.sort("rank").head(5)
    assert [line[3] for line in places(out)] == expected["item_id"].to_list()
    assert [float(line[5]) for line in places(out)] == pytest.approx(expected["score"].to_list(), abs=1e-3)
    assert "Toy A03  <a_0><b_3>" in out
    assert "Thought (not closed by the model)" in out
    assert "synthetic sample data" in out


def test_recommend_direct_has_no_thought_and_the_length_asked_for(world, sidr):
    code, out, _ = sidr("recommend", "--user", "user1", "--mode", "direct", "-k", "9")
    assert code == 0
    assert "Thought" not in out
    assert [line[0] for line in places(out)] == [str(n) for n in range(1, 10)]
    history = out.split("History")[1].split("place")[0]
    assert [word for word in history.split() if word.startswith("A")] == ["A02", "A03", "A04", "A05", "A06", "A07"]


def test_recommend_leaves_out_the_history_where_the_dataset_does(world, sidr, tmp_path, monkeypatch):
    raw = json.loads(json.dumps(small_world.profile(seen="drop").raw))
    (tmp_path / "dropping.yaml").write_text(yaml.safe_dump(raw))
    history = ("recommend", "--history", "A01,A02,A03", "--mode", "direct")
    assert {"A01", "A02", "A03"} & {line[3] for line in places(sidr(*history, "-k", "15")[1])}
    monkeypatch.setenv("SIDR_PROFILE", str(tmp_path / "dropping.yaml"))
    code, out, _ = sidr(*history, "-k", "12")
    assert code == 0 and len({line[3] for line in places(out)} - {"A01", "A02", "A03"}) == len(places(out)) == 12
    refused(sidr(*history, "-k", "13"), "-k of 1 to 12", "decoding.seen")


def test_an_id_with_a_comma_can_be_named():
    known = {"A", "a,b", 'x"y'}
    assert history_items("a,b", known) == ["a,b"]
    assert history_items('A,"a,b", A', known) == ["A", "a,b", "A"]
    assert history_items('x"y', known) == ['x"y']
    assert history_items(" , ", known) == []


def test_recommend_refuses_what_it_cannot_serve(world, sidr):
    refused(sidr("recommend"), "either --user or --history")
    refused(sidr("recommend", "--user", "user0", "--history", "A01"), "either --user or --history")
    refused(sidr("recommend", "--user", "usr0"), "there is no user 'usr0'", "did you mean", "user0")
    refused(sidr("recommend", "--history", "A01,A99"), "there is no item 'A99'", "did you mean")
    refused(sidr("recommend", "--history", " , "), "there is no item ''")
    refused(sidr("recommend", "--user", "user0", "-k", "16"), "a list of 16 cannot be filled", "15")


def test_explain_shows_history_thought_list_and_truth(world, sidr):
    code, out, _ = sidr("explain", "--user", "user0")
    assert code == 0
    for text in ("row user0:5", "Toy A04", "Thought", "Truth", "Toy A05  A05  <a_1><b_1>", "Place of the truth"):
        assert text in out
    assert "item_item/direct: 1" in out  # every user moves one item on: the counter knows
    assert "popularity/direct: 5" in out  # A01 to A12 are one target each, and ties go by name


def test_explain_takes_another_row_and_model(world, sidr):
    code, out, _ = sidr("explain", "--user", "user0", "--row", "user0:4", "--model", "item_item/direct", "-k", "2")
    assert code == 0
    assert "row user0:4" in out and "Thought" not in out
    assert len(places(out)) == 2


def test_explain_refuses_what_is_not_published(world, sidr):
    refused(sidr("explain", "--user", "user9"), "there is no user 'user9'", "did you mean")
    refused(sidr("explain", "--user", "user0", "--row", "user1:4"), "there is no row 'user1:4'")
    refused(sidr("explain", "--user", "user0", "--model", "grpo/thought"), "there is no model", "grpo/thinking")


def test_thoughts_are_printed_with_titles():
    import doctest

    assert doctest.testmod(cases).attempted >= 2
    assert doctest.testmod(cases).failed == 0
    titles, sids = {"A": "Chess", "B": "Go"}, {"A": "<a_0><b_1>", "B": "<a_0><b_1>"}
    assert cases.ItemTitles(titles, sids).resolve("<a_0><b_1>") == "<a_0><b_1> (Chess / Go)"
    assert cases.ItemTitles(titles, {}).resolve("no SID here") == "no SID here"
