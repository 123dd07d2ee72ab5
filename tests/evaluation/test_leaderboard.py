"""The leaderboard: places among measured lists, published figures apart, and the page made of several."""

import importlib.util
import shutil
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from builders.small_world import MODELS, SNAPSHOT
from sidr_core.evaluation.leaderboard import grids, leaderboard, page
from sidr_core.recommending.published import Published, of_split
from sidr_core.tables import contracts
from sidr_core.tables import files as tables

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "results_doc.py"


def evaluation(**ndcg: float) -> pl.DataFrame:
    """model=NDCG@10; HR is twice that, and SID level higher still."""
    rows = [
        {"model": model, "metric": metric, "level": level, "k": k, "value": factor * value * (1 + (level == "sid"))}
        for model, value in ndcg.items()
        for level in ("item", "sid")
        for k in (1, 5, 10)
        for metric, factor in (("hr", 2), ("ndcg", 1), ("mrr", 0.5), ("novelty", 30))
    ]
    context = {"dataset": "office", "snapshot": "2018-10", "split": "test", "mode": "direct", "seed": 7}
    context |= {"checkpoint": "0123456789abcdef", "seen_until": "2018-06-01", "evaluated_at": "now"}
    numbers = {"n_rows": 4866, "n_users": 2024}
    frame = pl.DataFrame([context | numbers | row for row in rows], schema_overrides={"k": pl.Int32})
    ends = {"ci_low": pl.col("value") - 0.01, "ci_high": pl.col("value") + 0.01}
    return frame.with_columns(**ends, beam_width=pl.lit(20, pl.Int32))


def test_places_are_by_ndcg_and_equal_values_share_one():
    table = leaderboard(evaluation(a=0.1, b=0.3, c=0.1, d=0.05))
    contracts.Leaderboard.validate(table)
    lines = table.select("model", "place").unique(maintain_order=True).rows()
    assert lines == [("b", 1), ("a", 2), ("c", 2), ("d", 4)]
    assert table.height == 4 * 2 * 2 and set(table["level"]) == {"item"} and set(table["k"]) == {5, 10}
    row = table.row(0, named=True)
    assert (row["seed"], row["checkpoint"], row["n_rows"], row["beam_width"]) == (7, "0123456789abcdef", 4866, 20)
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((row["value"] - 0.01, row["value"] + 0.01))


def test_what_could_be_known_at_best_stands_below_the_places_without_one():
    table = leaderboard(evaluation(a=0.1, optimal=0.4, b=0.3))
    contracts.Leaderboard.validate(table)
    lines = table.select("model", "origin", "place").unique(maintain_order=True).rows()
    assert lines == [("b", "measured", 1), ("a", "measured", 2), ("optimal", "optimal", None)]
    assert "the best that could be known" in page(table, True) and "optimal" not in page(
        leaderboard(evaluation(a=0.1)), True
    )


def test_published_figures_have_no_place_however_high_they_are():
    others = of_split("minionerec", 4866, 2024)
    table = leaderboard(evaluation(a=0.01, b=0.02), others)
    contracts.Leaderboard.validate(table)
    published = table.filter(pl.col("origin") == "published")
    assert published.height == 4 * len(others)
    for name in ("place", "ci_low", "seed", "checkpoint", "mode", "seen_until", "beam_width"):
        assert published[name].null_count() == published.height, name
    assert set(published["level"]) == {"sid"} and published["reference"].null_count() == 0
    assert table.filter(pl.col("place") == 1)["model"].unique().to_list() == ["b"]
    measured, beside = grids(table)
    assert len(measured.rows) == 2 and len(beside.rows) == len(others)
    assert "place" not in beside.header and all(row[-1] == "published" for row in beside.rows)


def test_published_figures_belong_to_a_whole_published_split():
    assert len(of_split("minionerec", 4866, 2024)) > 20 and len(of_split("minionerec", 4533, 1987)) > 20
    assert of_split("amazon_2018", 4866, 2024) == ()  # the same size by chance
    assert of_split("minionerec", 1000, 424) == ()  # a part of the rows
    named = {one.model: one for one in of_split("minionerec", 4533, 1987) if "table 2" in one.reference}
    assert named["SIDReasoner"].figures == (
        ("hr", 5, 0.1109),
        ("ndcg", 5, 0.0905),
        ("hr", 10, 0.1438),
        ("ndcg", 10, 0.1010),
    )


@pytest.mark.parametrize("size", [(4866, 2024), (4533, 1987)])
def test_published_figures_are_possible(size):
    """NDCG is at most HR, both grow with k, and no line is there twice."""
    others = of_split("minionerec", *size)
    assert len({(one.model, one.reference) for one in others}) == len(others)
    for one in others:
        assert 0 < one.ndcg_5 <= one.hr_5 <= one.hr_10 < 1 and one.ndcg_5 <= one.ndcg_10 <= one.hr_10, one


def test_figures_that_no_ranking_has_are_told():
    def line(hr_5, ndcg_5, hr_10, ndcg_10):
        return Published("m", hr_5, ndcg_5, hr_10, ndcg_10, "r").consistent

    # 0.0300 more hits at places 6 to 10 add 0.0300 / log2 11 = 0.00867 to 0.0300 / log2 7 = 0.01069, and rounding
    # moves that by at most 0.0001 / log2 11 + 0.0001 = 0.00013 and 0.0001 / log2 7 + 0.0001 = 0.00014.
    assert line(0.1, 0.08, 0.13, 0.0886) and line(0.1, 0.08, 0.13, 0.0908)
    assert not line(0.1, 0.08, 0.13, 0.0885) and not line(0.1, 0.08, 0.13, 0.0909)
    assert line(0.1, 0.08, 0.1, 0.08) and not line(0.1, 0.08, 0.1, 0.0803)


def test_published_lines_that_contradict_themselves_are_marked():
    marked = set()
    for name, size in (("office", (4866, 2024)), ("industrial", (4533, 1987))):
        others = of_split("minionerec", *size)
        table = leaderboard(evaluation(a=0.01), others)
        lines = table.filter(pl.col("reference").str.contains("contradict")).select("model", "reference").unique()
        marked |= {(name, model, reference.split(",")[0]) for model, reference in lines.iter_rows()}
    assert marked == {
        ("office", "TIGER", "arXiv 2603.23183"),
        ("office", "TIGER", "arXiv 2510.24431"),
        ("office", "S-DPO", "arXiv 2510.24431"),
        ("industrial", "R²ec", "arXiv 2603.23183"),
    }


def test_the_page_keeps_both_apart_and_says_why():
    others = of_split("minionerec", 4866, 2024)
    text = page(leaderboard(evaluation(a=0.1), others), False)
    first, second = text.split("## Published, SID level, not ranked")
    assert "| 1 | a/direct | 0.2000 [0.1900, 0.2100] | 0.1000 [0.0900, 0.1100] |" in first
    assert "| 4,866 | 20 | 7 | 2018-06-01 | 0123456789ab |" in first
    assert "SIDReasoner |" not in first and "| SIDReasoner | 0.1373 | 0.1119 | 0.1648 | 0.1208 | 4,866 |" in second
    assert "not a comparison at equal data" in second
    assert "Published" not in page(leaderboard(evaluation(a=0.1)), False)


# -- the stage and the document ------------------------------------------------------------------


def test_the_stage_places_every_list_and_shows_nothing_published(world):
    artifact = world.store.require("toys", SNAPSHOT, "leaderboard")
    table = tables.read(artifact.path("leaderboard.parquet"))
    measured = tables.read(world.store.require("toys", SNAPSHOT, "evaluation").path("evaluation.parquet"))
    assert set(table.select("model", "mode").iter_rows()) == set(measured.select("model", "mode").iter_rows())
    assert table["place"].min() == 1 and set(table["origin"]) == {"measured"}
    ndcg = table.filter(pl.col("metric") == "ndcg").sort("place")["value"].to_list()
    assert ndcg == sorted(ndcg, reverse=True)
    assert artifact.path("leaderboard.png").read_bytes()[:4] == b"\x89PNG"
    assert "synthetic sample data" in artifact.path("leaderboard.md").read_text()
    assert artifact.manifest["markdown"]["leaderboard"].startswith("# Leaderboard")
    # Lists of equal value share a place, and are two lists all the same.
    assert artifact.manifest["metrics"]["lists"] == len(MODELS) and table["place"].n_unique() < len(MODELS)


@pytest.fixture
def results_doc():
    spec = importlib.util.spec_from_file_location("results_doc", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_document_names_command_snapshot_and_digests(world, results_doc, tmp_path):
    home, target = str(world.store.root.parent), tmp_path / "results.md"
    argv = ["--home", home, "--dataset", f"toys:{SNAPSHOT}", "--out", str(target)]
    assert results_doc.main(argv) == 0
    text = target.read_text()
    artifact = world.store.require("toys", SNAPSHOT, "leaderboard")
    assert f"## toys, snapshot {SNAPSHOT} (synthetic sample data)" in text
    assert artifact.digest[:12] in text and artifact.fingerprint[:12] in text
    assert "item_item/direct" in text and "### Measured, item level" in text
    assert f"--home home --dataset toys:{SNAPSHOT}\n" in text and home not in text
    # The newest snapshot where none is named; the same bytes again.
    assert results_doc.main([*argv[:3], "toys", *argv[4:]]) == 0
    assert target.read_text() == text.replace(f"--dataset toys:{SNAPSHOT}", "--dataset toys")


def test_the_document_never_pairs_a_leaderboard_with_another_evaluation(world, results_doc, tmp_path, capsys):
    target = tmp_path / "results.md"
    argv = ["--home", str(world.store.root.parent), "--dataset", "toys", "--out", str(target)]
    made_of = world.store.require("toys", SNAPSHOT, "evaluation")
    config = world.profile.dataset("toys")
    again = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"seed": 1})})
    newer = world.run("evaluation", replace(world.profile, datasets={"toys": again})).artifact
    assert newer.fingerprint != made_of.fingerprint
    assert results_doc.main(argv) == 0 and made_of.fingerprint[:12] in target.read_text()
    target.unlink()
    shutil.rmtree(made_of.folder)
    assert results_doc.main(argv) == 1
    told = capsys.readouterr().err
    assert made_of.fingerprint[:12] in told and "materialize leaderboard again" in told and not target.exists()


def test_the_document_of_what_is_not_published_is_refused(world, results_doc, tmp_path, capsys):
    target = tmp_path / "results.md"
    argv = ["--home", str(world.store.root.parent), "--dataset", "tools", "--out", str(target)]
    assert results_doc.main(argv) == 1
    assert "tools/leaderboard" in capsys.readouterr().err and not target.exists()
