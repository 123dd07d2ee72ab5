"""The curve of NDCG against tokens: hand-made rows, and a small checkpoint."""

import importlib.util
import sys
from pathlib import Path

import polars as pl
import pytest

from builders import small_world
from builders.remote import load
from builders.small_world import edit_meta, spoil
from sidr_core.errors import InputError
from sidr_core.models import checkpoint
from sidr_core.pipeline.stage import Progress
from sidr_core.settings import Decoding, Evaluation
from sidr_core.tables import files as tables

scaling = load("scripts/thought_scaling.py")
SETTINGS = Evaluation(bootstrap=200, least_users=2)
SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "inference_scaling.py"


def lines(traces: int, cap: int, tokens: float, ndcg: float) -> pl.DataFrame:
    users = [f"u{n}" for n in range(20)]
    return pl.DataFrame(
        {
            "traces": traces,
            "cap": cap,
            "row_id": users,
            "user_id": users,
            "tokens": tokens,
            "closed": 1.0,
            "ndcg": ndcg,
            "oracle": ndcg + 0.1,
        }
    )


def measured() -> pl.DataFrame:
    return pl.concat([lines(0, 0, 0.0, 0.4), lines(1, 8, 6.0, 0.3), lines(2, 8, 13.0, 0.5), lines(4, 8, 27.0, 0.4)])


def test_each_setting_is_compared_with_the_direct_list():
    found = scaling.table(measured(), SETTINGS)
    assert found.select("traces", "cap", "tokens", "ndcg", "difference", "verdict").rows() == [
        (0, 0, 0.0, pytest.approx(0.4), None, None),
        (1, 8, 6.0, pytest.approx(0.3), pytest.approx(-0.1), "lower"),
        (2, 8, 13.0, pytest.approx(0.5), pytest.approx(0.1), "higher"),
        (4, 8, 27.0, pytest.approx(0.4), 0.0, "too few rows to tell"),
    ]
    assert found["p_holm"].drop_nulls().to_list() == pytest.approx([3 * 2 / 201, 3 * 2 / 201, 1.0])


def test_the_page_labels_the_oracle_and_shows_it_only_where_thoughts_are_several():
    found = scaling.table(measured(), SETTINGS)
    rows = {row[0]: row for row in scaling.grid(found, 10).rows}
    assert rows["direct"][-1] == rows["1 x 8"][-1] == "" and rows["2 x 8"][-1] == "0.6000"
    text = scaling.page(found, 10, SETTINGS, 1.0, "toys", synthetic=True)
    assert "oracle best of N" in text and "upper bound that needs the answer" in text and "synthetic" in text


def test_the_curve_is_the_same_picture_twice(tmp_path):
    found = scaling.table(measured(), SETTINGS)
    for name in ("a", "b"):
        scaling.curve(found, 10, tmp_path / name, "toys")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_checkpoint_is_measured_row_by_row(tmp_path):
    small_world.checkpoint_of(tmp_path, "grpo", 3)
    loaded, rows = checkpoint.load(tmp_path), small_world.samples(4, 2)
    decoding = Decoding(beam_width=5, batch_size=4, models=())
    pairs = [(1, 3), (2, 3), (2, 6)]
    quiet = Progress(lambda line: None)
    found = scaling.measure(loaded, rows, small_world.codebook(), decoding, pairs, 5, quiet)
    assert found.select("traces", "cap").unique(maintain_order=True).rows() == [(0, 0), *pairs]
    assert found.height == 4 * rows.height
    for traces, cap in pairs:
        part = found.filter((pl.col("traces") == traces) & (pl.col("cap") == cap))
        assert part["tokens"].max() <= traces * cap and part["row_id"].to_list() == sorted(rows["row_id"])
    assert found.filter(pl.col("traces") == 0)["tokens"].sum() == 0
    again = scaling.measure(loaded, rows, small_world.codebook(), decoding, pairs, 5, quiet)
    assert found.equals(again)


def test_a_cut_off_beyond_the_beam_makes_no_hit_of_a_miss(tmp_path):
    small_world.checkpoint_of(tmp_path, "grpo", 3)
    loaded, rows = checkpoint.load(tmp_path), small_world.samples(4, 2)
    decoding = Decoding(beam_width=2, batch_size=4, models=())

    def oracle(k: int) -> list[float]:
        quiet = Progress(lambda line: None)
        found = scaling.measure(loaded, rows, small_world.codebook(), decoding, [(2, 3)], k, quiet)
        return found.filter(pl.col("traces") == 2)["oracle"].to_list()

    assert oracle(2) == oracle(9) and 0.0 in oracle(2)


def test_the_page_warns_where_the_draws_are_too_few():
    found = scaling.table(measured(), SETTINGS)
    assert "cannot tell" not in scaling.page(found, 10, SETTINGS, 1.0, "toys", synthetic=True)
    few = scaling.page(found, 10, Evaluation(bootstrap=119), 1.0, "toys", synthetic=True)
    assert "**119 draws cannot tell any of so many from 0: 120 are needed.**" in few


# -- the script ----------------------------------------------------------------------------------


@pytest.fixture
def script(world, monkeypatch, tmp_path):
    """Runs `scripts/inference_scaling.py` on the small world; gives the page."""
    spec = importlib.util.spec_from_file_location("inference_scaling", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*arguments: str) -> str:
        out = ["--out", str(tmp_path), "--dataset", "toys", "--traces", "1", "--caps", "3", "--rows", "4"]
        monkeypatch.setattr(sys, "argv", ["inference_scaling.py", *out, *arguments])
        module.main()
        return (tmp_path / "inference_scaling.md").read_text()

    return run


def test_the_script_measures_up_to_the_beam_width(script, capsys):
    assert "NDCG@5" in script("-k", "5")
    for k in ("0", "6"):
        with pytest.raises(SystemExit):
            script("-k", k)
        assert "from 1 to the beam width, 5" in capsys.readouterr().err


def test_the_script_refuses_test_rows_that_training_has_seen_past(world, script):
    spoil(world, "grpo_checkpoint", edit_meta(seen_until="2020-02-28"))
    with pytest.raises(InputError, match="grpo_checkpoint has seen what came after"):
        script("-k", "5")
    assert "4 valid rows" in script("-k", "5", "--split", "valid")


def test_the_script_refuses_a_checkpoint_of_other_interactions(world, script):
    spoil(world, "grpo_checkpoint", edit_meta(made_from={"interactions": "f" * 64}))
    for split in ("valid", "test"):
        with pytest.raises(InputError, match="grpo_checkpoint was trained on other interactions"):
            script("-k", "5", "--split", split)


def test_the_direct_line_is_the_published_list(world):
    """Test rows of the small world: the same gains as the evaluation's own."""
    store = world.store
    loaded = checkpoint.load(store.require("toys", small_world.SNAPSHOT, "grpo_checkpoint").verified_folder())
    rows = small_world.samples(4, 2)
    config = world.profile.dataset("toys")
    found = scaling.measure(
        loaded, rows, small_world.codebook(), config.decoding, [(1, 6)], 5, Progress(lambda line: None)
    )
    table = tables.read(store.require("toys", small_world.SNAPSHOT, "evaluation").path("evaluation.parquet"))
    for mode, traces in (("direct", 0), ("thinking", 1)):
        published = table.filter(
            (pl.col("model") == "grpo") & (pl.col("mode") == mode) & (pl.col("metric") == "ndcg") & (pl.col("k") == 5)
        ).filter(pl.col("level") == "item")["value"]
        assert found.filter(pl.col("traces") == traces)["ndcg"].mean() == pytest.approx(published[0])
