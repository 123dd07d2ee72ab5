"""Trained baselines: they learn what can be learnt, valid rows alone stop and choose, and a seed fixes every byte."""

import json
import shutil
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array as csr

from builders import small_world
from builders.small_world import ITEMS, SNAPSHOT, samples
from sidr_core.baselines import sequential, text_knn, tiger, training
from sidr_core.baselines.ranking import rankings, top_k
from sidr_core.baselines.sequences import Catalogue, padded, steps, windows
from sidr_core.errors import InputError, SidrError
from sidr_core.pipeline.profile import parse_profile
from sidr_core.pipeline.stage import Progress, StageInput, load_object
from sidr_core.settings import Gru4Rec, SasRec, Tiger, Trial
from sidr_core.settings.models import MODEL_NAMED
from sidr_core.sids.cooccurrence import cooccurrence_vectors
from sidr_core.sids.tokens import format_sid
from sidr_core.tables import contracts
from sidr_core.tables import files as tables

QUIET = Progress(lambda line: None)
NAMES = [f"i{n:02d}" for n in range(24)]
CODES = [(n // 8, n // 2 % 4, n % 2) for n in range(24)]
#: The item after each: every code moves one on, which makes two cycles of twelve.
NEXT = {n: CODES.index(((a + 1) % 3, (b + 1) % 4, 1 - c)) for n, (a, b, c) in enumerate(CODES)}
CODEBOOK = pl.DataFrame(
    {
        "item_id": NAMES,
        "codes": [list(codes) for codes in CODES],
        "sid": [format_sid(codes) for codes in CODES],
    },
    schema_overrides={"codes": pl.List(pl.Int32)},
)
ONE = (Trial(hidden_size=32, dropout=0.0, learning_rate=0.02),)


def rows_of(*rows: tuple[str, int, list[int], int]) -> pl.DataFrame:
    """Samples from (user, position, history, target)."""
    return pl.DataFrame(
        {
            "row_id": [f"{user}:{position}" for user, position, _, _ in rows],
            "user_id": [user for user, _, _, _ in rows],
            "position": pl.Series([position for _, position, _, _ in rows], dtype=pl.Int32),
            "history_item_ids": [[NAMES[n] for n in history] for _, _, history, _ in rows],
            "target_item_id": [NAMES[target] for _, _, _, target in rows],
            "target_timestamp": pl.Series([86_400 * position for _, position, _, _ in rows], dtype=pl.Int64),
        }
    )


def walk(user: str, start: int, length: int) -> tuple[str, int, list[int], int]:
    """A row in which every item is followed by the one that the cycle says."""
    items = [start]
    for _ in range(length):
        items.append(NEXT[items[-1]])
    return user, length, items[:-1], items[-1]


def catalogue() -> tuple[pl.DataFrame, Catalogue]:
    counts = pl.DataFrame({"item_id": NAMES, "score": [float(n % 3) for n in range(24)]})
    return counts, Catalogue.of(counts)


@pytest.fixture(scope="module")
def learnable() -> training.Rows:
    rng = np.random.default_rng(0)
    train = rows_of(*[walk(f"u{n}", int(rng.integers(24)), int(rng.integers(2, 7))) for n in range(200)])
    valid = rows_of(*[walk(f"v{n}", int(rng.integers(24)), int(rng.integers(1, 7))) for n in range(40)])
    return training.Rows(train, valid, *catalogue())


def first(lists: pl.DataFrame, rows: pl.DataFrame) -> float:
    """HR@1."""
    top = lists.filter(pl.col("rank") == 1).join(rows, on="row_id")
    assert top.height == rows.height
    return float((top["item_id"] == top["target_item_id"]).mean())


# -- what is learnt from --------------------------------------------------------------------------


def test_windows_hold_every_row_once_and_leave_out_what_a_newer_row_shows():
    _, items = catalogue()
    rows = rows_of(("u", 1, [1], 2), ("u", 2, [1, 2], 3), ("u", 3, [2, 3], 4), ("w", 1, [1], 2))
    shown = [[items.ids[n] for n in window] for window in windows(rows, items)]
    # u: the newest row, then 1 -> 2, the one step that it does not hold; the row between is covered
    assert shown == [["i02", "i03", "i04"], ["i01", "i02"], ["i01", "i02"]]


def test_steps_take_the_longest_history_of_each_step():
    _, items = catalogue()
    rows = rows_of(("u", 2, [2, 3], 4), ("u", 1, [1, 2], 3))
    shown = sorted(tuple(items.ids[n] for n in step) for step in steps(rows, items))
    assert shown == [("i01", "i02"), ("i01", "i02", "i03"), ("i02", "i03", "i04")]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.sampled_from("uvw"), st.lists(st.integers(0, 5), min_size=2, max_size=5)), min_size=1))
def test_every_row_is_the_end_of_some_step_and_inside_some_window(found):
    _, items = catalogue()
    rows = rows_of(*[(user, n, sequence[:-1], sequence[-1]) for n, (user, sequence) in enumerate(found)])
    numbers = {(items.number[NAMES[s[-2]]], items.number[NAMES[s[-1]]]) for _, s in found}
    ends = {(step[-2], step[-1]) for step in steps(rows, items)}
    inside = {pair for window in windows(rows, items) for pair in pairwise(window)}
    assert numbers <= ends and numbers <= inside
    assert len(windows(rows, items)) <= len(found)


def test_an_unknown_history_item_is_named():
    _, items = catalogue()
    rows = rows_of(("u", 1, [1], 2)).with_columns(pl.Series("history_item_ids", [["nowhere"]]))
    with pytest.raises(InputError, match="nowhere"):
        items.histories(rows)


def test_padding_stands_on_the_right():
    assert padded([[1], [2, 3]], 9).tolist() == [[1, 9], [2, 3]]


def test_an_epoch_has_every_sequence_once_and_a_new_order():
    lengths = [n % 7 for n in range(300)]
    generator = torch.Generator().manual_seed(1)
    one, two = (training.batches(lengths, 8, generator) for _ in range(2))
    assert sorted(row for batch in one for row in batch) == list(range(300))
    assert one != two
    assert training.batches(lengths, 8, torch.Generator().manual_seed(1)) == one
    spread = [max(lengths[row] for row in batch) - min(lengths[row] for row in batch) for batch in one]
    assert np.mean(spread) < 1


# -- learning -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "settings", "extra"),
    [
        ("sasrec", SasRec(start="cooccurrence", trials=ONE, epochs=6, batch_size=16, patience=6), {"heads": 2}),
        ("gru4rec", Gru4Rec(start="noise", trials=ONE, epochs=9, batch_size=16, patience=9), {}),
    ],
)
def test_models_over_item_ids_learn_a_cycle(learnable, kind, settings, extra):
    fitted = sequential.train(kind, settings, extra, learnable, None, QUIET)
    fresh = rows_of(*[walk(f"t{n}", n, 1 + n % 6) for n in range(24)])
    assert first(fitted.ranker.rank(fresh, 10), fresh) >= 0.95
    assert fitted.best["ndcg@10"] > 0.97
    lists = fitted.ranker.rank(fresh, 24).group_by("row_id").agg(pl.col("item_id").n_unique())
    assert set(lists["item_id"]) == {24}


def test_items_bought_together_start_near_each_other(learnable):
    still = Trial(hidden_size=32, dropout=0.0, learning_rate=1e-12)
    settings = SasRec(start="cooccurrence", trials=(still,), epochs=1)
    fitted = sequential.train("sasrec", settings, {"heads": 2}, learnable, None, QUIET)
    known, vectors = cooccurrence_vectors(learnable.train, learnable.catalogue.ids.to_list(), 32, settings.seed)
    table = fitted.ranker.module.table().detach()[known].numpy()
    lengths = np.linalg.norm(table, axis=1)
    assert len(known) == 24
    assert np.allclose(table @ table.T / np.outer(lengths, lengths), vectors @ vectors.T, atol=0.02)


def test_items_of_the_same_words_start_near_each_other_in_the_last_quarter(learnable):
    still = Trial(hidden_size=32, dropout=0.0, learning_rate=1e-12)
    names = learnable.catalogue.ids.to_list()
    titles = [f"{'red' if n % 2 else 'blue'} {'pen' if n % 3 else 'ink'} of {n}" for n in range(len(names))]
    items = pl.DataFrame({"item_id": names, "title": titles, "brand": "", "category": ""})
    fitted = sequential.train("sasrec", SasRec(trials=(still,), epochs=1), {"heads": 2}, learnable, items, QUIET)
    words = fitted.ranker.module.table().detach()[:, 24:].numpy()
    assert np.allclose(np.linalg.norm(words, axis=1), 0.25, atol=1e-4)
    alike = words @ words.T / 0.25**2
    assert alike[1, 5] == pytest.approx(1, abs=1e-3) and alike[0, 6] == pytest.approx(1, abs=1e-3)
    assert alike[0, 1] < 0.5  # blue ink, red pen
    known, vectors = cooccurrence_vectors(learnable.train, names, 24, 42)
    table = fitted.ranker.module.table().detach()[known, :24].numpy()
    assert np.allclose(table @ table.T / 0.25, vectors @ vectors.T, atol=0.02)


def test_tiger_learns_a_cycle(learnable):
    trials = (Trial(hidden_size=32, dropout=0.0, learning_rate=0.005),)
    chosen = Tiger(trials=trials, epochs=8, batch_size=16, layers=2, heads=2, patience=6)
    fitted = tiger.train(chosen, learnable, CODEBOOK, QUIET)
    fresh = rows_of(*[walk(f"t{n}", n, 1 + n % 6) for n in range(24)])
    lists = rankings(fitted.ranker, fresh, CODEBOOK, 10)
    assert first(lists, fresh) >= 0.95
    assert set(lists.group_by("row_id").agg(pl.col("sid").n_unique())["sid"]) == {10}


def test_what_comes_later_is_not_seen():
    """The state at a place depends on the places up to it: exactly what prediction may use."""
    torch.manual_seed(0)
    for module in (sequential.Attention(24, 6, 16, 2, 2, 0.0), sequential.Recurrent(24, 6, 16, 1, 0.0)):
        module.eval()
        long = torch.tensor([[3, 4, 5, 6]])
        assert torch.allclose(module(long)[:, :2], module(long[:, :2]), atol=1e-6)
        changed = torch.tensor([[3, 4, 9, 24]])
        assert torch.allclose(module(changed)[:, :2], module(long)[:, :2], atol=1e-6)
        assert not torch.allclose(module(changed)[:, 2], module(long)[:, 2], atol=1e-3)


def test_the_loss_in_slices_has_the_gradients_of_the_whole(monkeypatch):
    torch.manual_seed(0)
    module = sequential.Attention(24, 6, 16, 1, 2, 0.0)
    items, wanted = torch.randint(24, (5, 4)), torch.randint(24, (20,))
    whole = torch.nn.functional.cross_entropy(module(items).flatten(0, 1) @ module.table().T, wanted)
    whole.backward()
    expected = [parameter.grad.clone() for parameter in module.parameters()]
    module.zero_grad()
    monkeypatch.setattr(sequential, "_LOGITS", 24 * 3)
    assert sequential._backward(module(items).flatten(0, 1), wanted, module) == pytest.approx(whole.item(), rel=1e-5)
    for parameter, gradient in zip(module.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, gradient, atol=1e-6)


def test_tigers_beam_is_exhaustive_search_where_it_is_wide_enough(learnable):
    torch.manual_seed(0)
    settings = Tiger(trials=(Trial(hidden_size=16, dropout=0.0),), layers=1, heads=2)
    ranker = tiger.SidRanker(
        tiger._module(tiger._shape(settings.trials[0], settings), CODEBOOK), CODEBOOK, beam_width=24
    )
    ranker.module.eval()
    some = learnable.valid.head(3)
    lists = ranker.rank(some, 24)
    for row in some.iter_rows(named=True):
        prompt = torch.tensor([ranker._prompt(row["history_item_ids"])])
        scores = {}
        for item in NAMES:
            labels = torch.tensor([ranker._ids[item]])
            with torch.inference_mode():
                logits = ranker.module(input_ids=prompt, labels=labels).logits.log_softmax(-1)
            scores[item] = float(logits[0].gather(1, labels[0, :, None]).sum())
        found = lists.filter(pl.col("row_id") == row["row_id"]).sort("rank")
        assert found["item_id"].to_list() == sorted(NAMES, key=lambda item: -scores[item])
        assert found["score"].to_list() == pytest.approx(sorted(scores.values(), reverse=True), abs=1e-4)


# -- choosing -------------------------------------------------------------------------------------


class Scripted:
    """A learner whose valid lists are told: the place of the target in each epoch, for each trial."""

    def __init__(self, script: list[int]) -> None:
        self.module = torch.nn.Linear(1, 1)
        self._script, self.epoch = iter(script), 0

    def lengths(self) -> list[int]:
        return [2]

    def backward(self, rows: list[int]) -> float:
        self.epoch += 1
        for parameter in self.module.parameters():
            parameter.grad = torch.zeros_like(parameter)
        with torch.no_grad():
            self.module.weight.fill_(float(self.epoch))
        return 1.0

    def rank(self, rows: pl.DataFrame, k: int) -> pl.DataFrame:
        place = next(self._script)
        others = [name for name in NAMES if name != NAMES[0]]
        listed = [*others[: place - 1], NAMES[0], *others[place - 1 :]][:k]
        return pl.DataFrame(
            {"row_id": "v:1", "rank": pl.Series(range(1, k + 1), dtype=pl.Int32), "item_id": listed}
        ).with_columns(score=-pl.col("rank").cast(pl.Float64))


def test_training_stops_after_patience_and_keeps_the_best_epoch_of_all_trials():
    scripts = iter([Scripted([5, 3, 4, 4, 1]), Scripted([6, 2, 2, 2, 1]), Scripted([9, 9, 9])])
    settings = SasRec(trials=(ONE[0], ONE[0], ONE[0]), epochs=5, patience=2)
    valid, (_, items) = rows_of(("v", 1, [1], 0)), catalogue()
    fitted = training.fit(lambda trial: next(scripts), settings, valid, items.as_codebook, QUIET)
    # the first place would have come in the fifth epoch, after two without a better list
    assert fitted.log.group_by("trial", maintain_order=True).len()["len"].to_list() == [4, 4, 3]
    assert (fitted.best["trial"], fitted.best["epoch"]) == (2, 2)
    assert fitted.best["ndcg@10"] == pytest.approx(1 / np.log2(3)) and fitted.best["hr@10"] == 1
    assert fitted.ranker.module.weight.item() == 2.0
    assert fitted.log.filter("chosen").select("trial", "epoch").rows() == [(2, 2)]


def test_a_loss_that_is_no_number_stops_the_training():
    learner = Scripted([1])
    learner.backward = lambda rows: float("nan")  # type: ignore[method-assign]
    valid, (_, items) = rows_of(("v", 1, [1], 0)), catalogue()
    with pytest.raises(SidrError, match="diverged"):
        training.fit(lambda trial: learner, SasRec(trials=ONE), valid, items.as_codebook, QUIET)


# -- text -----------------------------------------------------------------------------------------


def test_text_neighbours_by_hand():
    items = Catalogue(pl.Series(["a", "b", "c"]))
    vectors = np.array([[1, 0], [0, 1], [0.6, 0.8]], dtype=np.float32)
    rows = pl.DataFrame({"row_id": ["r"], "history_item_ids": [["a", "b"]]})
    found = text_knn.TextRanker(vectors, items, decay=0.5, repeats=True).rank(rows, 3)
    # the mean of (0.5, 1) and its cosines to a, b, c
    assert found["item_id"].to_list() == ["c", "b", "a"]
    assert found["score"].to_list() == pytest.approx([1.1 / 1.25**0.5, 1 / 1.25**0.5, 0.5 / 1.25**0.5])
    alone = text_knn.TextRanker(vectors, items, decay=0.5, repeats=False).rank(rows, 3)
    assert alone["item_id"].to_list() == ["c", "a", "b"]  # of the history, last, by popularity


def test_equal_scores_go_to_the_more_popular_item():
    _, items = catalogue()
    assert items.ids.head(3).to_list() == ["i02", "i05", "i08"]  # the score is n % 3, then the item id
    flat = text_knn.TextRanker(np.ones((24, 1), dtype=np.float32), items, 1.0, repeats=True)
    assert flat.rank(rows_of(("u", 1, [1], 2)), 3)["item_id"].to_list() == ["i02", "i05", "i08"]


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 6), st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=1, max_size=5))
def test_the_first_k_are_those_of_a_stable_sort(k, table):
    block = np.array(table, dtype=np.float32)
    frame = top_k([block], pl.Series([f"r{n}" for n in range(len(block))]), pl.Series(list("abcdef")), k)
    expected = np.argsort(-block, axis=1, kind="stable")[:, :k]
    assert frame["item_id"].to_list() == [list("abcdef")[n] for row in expected for n in row]


# -- stages ---------------------------------------------------------------------------------------

STAGES = ("shortcut", "text_knn", "gru4rec", "sasrec", "tiger")
#: Nothing is trained: valid rows choose.
CHOSEN = ("shortcut", "text_knn")


def opened(world, name: str) -> dict[str, StageInput]:
    """What a stage that ranks by this baseline would be given."""
    stages = (f"baseline_{name}", "sid_codebook")
    return {stage: StageInput(world.store.require("toys", SNAPSHOT, stage), ("*",), "a test") for stage in stages}


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_writes_the_same_bytes_again_and_loads_what_it_wrote(world, tmp_path, name):
    artifact = world.run(f"baseline_{name}").artifact
    shutil.rmtree(world.store.root / f"baseline_{name}")
    again = world.run(f"baseline_{name}")
    assert not again.reused and again.artifact.digest == artifact.digest
    meta = json.loads(artifact.path("meta.json").read_text())
    assert (meta["seed"], meta["seen_until"]) == (0 if name in CHOSEN else 42, "2020-01-28")
    assert meta["valid_rows"] == 6 and meta["synthetic"] is True
    log = tables.read(artifact.path(f"baseline_{name}.parquet"))
    (contracts.ChoiceLog if name in CHOSEN else contracts.BaselineLog).validate(log)
    chosen = log.filter("chosen")
    assert chosen.height == 1 and chosen["ndcg_10"][0] == meta["chosen"]["ndcg@10"] == log["ndcg_10"].max()
    assert set(artifact.files) == {f"baseline_{name}.parquet", "items.parquet", "meta.json", "model.safetensors"}
    # valid lists of the weights on disk score what the log says
    config = world.profile.dataset("toys")
    wide = config.model_copy(update={"decoding": config.decoding.model_copy(update={"beam_width": 10})})
    ranker = load_object(MODEL_NAMED[name].ranker)(opened(world, name), wide)
    codebook = small_world.codebook() if name == "tiger" else ranker.catalogue.as_codebook
    assert training.measure(ranker, samples(3, 1), codebook)["ndcg@10"] == pytest.approx(meta["chosen"]["ndcg@10"])


def test_text_neighbours_by_tfidf_are_an_option(world):
    vectors = np.array([[1, 0], [0, 1], [0.6, 0.8], [0, 0]], dtype=np.float32)
    items, rows = Catalogue(pl.Series(list("abcd"))), pl.DataFrame({"row_id": ["r"], "history_item_ids": [["a", "b"]]})
    dense, few = (
        text_knn.TextRanker(form(vectors), items, 0.5, repeats=True).rank(rows, 4) for form in (np.array, csr)
    )
    assert few["item_id"].equals(dense["item_id"]) and few["score"].to_list() == pytest.approx(dense["score"].to_list())
    fields = world.profile.dataset("toys").model_dump(mode="json") | {"text_knn": {"vectors": "tfidf"}}
    profile = parse_profile("test", {"datasets": {"toys": fields}})
    world.run("baseline_text_knn", profile)
    ranker = text_knn.load(opened(world, "text_knn"), profile.dataset("toys"))
    first = ranker.rank(samples(3, 1), 1)
    assert first["score"].to_list() == pytest.approx([1.0] * 6), "all toys share their one word, and no other"


def test_tiger_of_another_codebook_is_refused(world, tmp_path):
    world.run("baseline_tiger")
    tables.write(small_world.codebook().head(15), tmp_path / "fewer.parquet", contracts.Codebook)
    inputs = opened(world, "tiger") | {"sid_codebook": SimpleNamespace(path=lambda name: tmp_path / "fewer.parquet")}
    with pytest.raises(SidrError, match="another codebook"):
        tiger.load(inputs, world.profile.dataset("toys"))


def test_weights_that_do_not_fit_are_refused(tmp_path):
    module = torch.nn.Linear(2, 2)
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}, tmp_path / training.WEIGHTS)
    with pytest.raises(SidrError, match="does not fit"):
        training.load_weights(module, tmp_path)


def test_items_without_a_vector_are_counted():
    with pytest.raises(InputError, match="15 items have no text vector"):
        text_knn._vectors(pl.DataFrame({"item_id": ["A00"], "vector": [[1.0, 0.0]]}), Catalogue(pl.Series(ITEMS)))


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="hidden_size 18 is no multiple of heads 4"):
        SasRec(heads=4, trials=(Trial(hidden_size=18),))
