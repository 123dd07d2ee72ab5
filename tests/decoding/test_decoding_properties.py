"""The beam against brute force over random catalogues, depths, beams, batches, architectures and scorings."""

import copy
import re
from functools import lru_cache

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from sidr_core.decoding.beam import constrained_beam
from sidr_core.decoding.head import head_of
from sidr_core.decoding.lists import rankings_of
from sidr_core.errors import SidrError
from sidr_core.sids.index import SidIndex

VOCAB, CODES, FIRST_SID = 110, 5, 40
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.3,  # peaked distributions, so that ranks and values really differ
}


@lru_cache
def model(name: str):
    """Five kinds of head: plain, tied, biased, tied with learned positions, and one whose logits are scaled."""
    torch.manual_seed(3)
    made = {
        "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, num_key_value_heads=2, head_dim=8)),
        "llama-tied": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True)),
        "phi-bias": lambda: PhiForCausalLM(PhiConfig(**SHAPE)),
        "gpt2": lambda: GPT2LMHeadModel(
            GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.3)
        ),
        "granite-scaled": lambda: GraniteForCausalLM(GraniteConfig(**SHAPE, logits_scaling=1.7)),
    }[name]()
    if name == "phi-bias":
        torch.nn.init.normal_(made.lm_head.bias, std=2.0)
    return made.eval()


MODELS = ["qwen3", "llama-tied", "phi-bias", "gpt2", "granite-scaled"]


def index_of(sids: list[tuple[int, ...]]) -> SidIndex:
    book = pl.DataFrame(
        {"item_id": [f"i{n}" for n in range(len(sids))], "codes": [list(codes) for codes in sids]},
        schema={"item_id": pl.String, "codes": pl.List(pl.Int32)},
    )
    # Ids of a level fall where codes rise: nothing may lean on their order.
    return SidIndex.build(book, lambda token: FIRST_SID + "abcde".index(token[1]) * CODES + 4 - int(token[3:-1]))


@torch.no_grad()
def brute_scores(lm, prompt: list[int], index: SidIndex, scoring: str) -> np.ndarray:
    """Score of every SID by one plain forward pass each: no cache, no padding, no trie."""
    paths = [index.path(leaf) for leaf in range(len(index))]
    logits = lm(input_ids=torch.tensor([prompt + path for path in paths])).logits[:, len(prompt) - 1 :]
    scores = torch.zeros(len(paths))
    for level in range(index.levels):
        at_level = logits[:, level]
        if scoring == "sliced":
            others = torch.ones(VOCAB, dtype=torch.bool)
            others[torch.from_numpy(index.tokens(level)).long()] = False
            at_level = at_level.masked_fill(others, -torch.inf)
        tokens = torch.tensor([path[level] for path in paths])
        scores += at_level.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    return scores.numpy()


catalogues = st.integers(1, 5).flatmap(
    lambda n: st.lists(st.tuples(*[st.integers(0, CODES - 1)] * n), min_size=1, max_size=25)
)
prompts_of = st.lists(st.lists(st.integers(6, 39), min_size=1, max_size=7), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(MODELS),
    scoring=st.sampled_from(["exact", "sliced"]),
    sids=catalogues,
    head=st.lists(st.integers(6, 39), max_size=14),
    tails=prompts_of,
    batch_size=st.integers(1, 5),
)
def test_a_full_beam_is_the_whole_catalogue_in_order(name, scoring, sids, head, tails, batch_size) -> None:
    index, prompts = index_of(sids), [head + tail for tail in tails]
    beams = constrained_beam(
        model(name), prompts, index, beam_width=len(index), batch_size=batch_size, pad_id=2, scoring=scoring
    )
    for row, prompt in enumerate(prompts):
        scores = brute_scores(model(name), prompt, index, scoring)
        assert sorted(beams.leaf[row]) == list(range(len(index)))
        np.testing.assert_allclose(beams.scores[row], scores[beams.leaf[row]], atol=2e-4)
        np.testing.assert_allclose(beams.scores[row], np.sort(scores)[::-1], atol=2e-4)


@settings(max_examples=40, deadline=None, derandomize=True)  # a near tie may fall either way
@given(data=st.data(), name=st.sampled_from(MODELS), sids=catalogues, prompts=prompts_of)
def test_a_narrow_beam_names_distinct_items_at_their_scores_whatever_the_batch(data, name, sids, prompts) -> None:
    index = index_of(sids)
    width = data.draw(st.integers(1, len(index)))
    scoring = data.draw(st.sampled_from(["exact", "sliced"]))
    options = {"beam_width": width, "pad_id": 2, "scoring": scoring}
    beams = constrained_beam(model(name), prompts, index, batch_size=4, **options)
    alone = constrained_beam(model(name), prompts, index, batch_size=1, **options)
    assert beams.leaf.tolist() == alone.leaf.tolist()
    np.testing.assert_allclose(beams.scores, alone.scores, atol=2e-4)
    for row, prompt in enumerate(prompts):
        assert len(set(beams.leaf[row])) == width and beams.leaf[row].max() < len(index)
        assert (np.diff(beams.scores[row]) <= 0).all()
        scores = brute_scores(model(name), prompt, index, scoring)
        np.testing.assert_allclose(beams.scores[row], scores[beams.leaf[row]], atol=2e-4)


@settings(max_examples=25, deadline=None)
@given(
    scoring=st.sampled_from(["exact", "sliced"]),
    sids=catalogues,
    rows=st.integers(1, 3),
    contexts=st.integers(2, 4),
    batch_size=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_contexts_are_averaged(scoring, sids, rows, contexts, batch_size, seed) -> None:
    """The score of a SID is the log of the mean of its brute-force probabilities."""
    index, draw = index_of(sids), np.random.default_rng(seed)
    prompts = [draw.integers(6, 40, draw.integers(1, 12)).tolist() for _ in range(rows * contexts)]
    beams = constrained_beam(
        model("qwen3"),
        prompts,
        index,
        beam_width=len(index),
        batch_size=batch_size,
        pad_id=2,
        scoring=scoring,
        contexts=contexts,
    )
    assert beams.by_context is not None
    for row in range(rows):
        each = np.stack(
            [brute_scores(model("qwen3"), prompts[row * contexts + n], index, scoring) for n in range(contexts)]
        )
        mean = np.log(np.exp(each).mean(axis=0))
        assert sorted(beams.leaf[row]) == list(range(len(index)))
        np.testing.assert_allclose(beams.scores[row], mean[beams.leaf[row]], atol=2e-4)
        np.testing.assert_allclose(beams.scores[row], np.sort(mean)[::-1], atol=2e-4)
        np.testing.assert_allclose(beams.by_context[row], each[:, beams.leaf[row]], atol=2e-4)


@pytest.mark.parametrize("name", MODELS)
def test_only_a_head_that_is_not_a_linear_map_needs_whole_logits(name: str) -> None:
    with torch.no_grad():
        head = head_of(model(name), [6, 7, 8], sliced=False)
    assert (head.body is None) == (name == "granite-scaled")
    assert (head.bias is None) == (name != "phi-bias")


def test_a_model_is_tried_once_for_each_head() -> None:
    lone, passes = copy.deepcopy(model("qwen3")), []
    lone.register_forward_hook(lambda *_: passes.append(1))
    with torch.no_grad():
        heads = [head_of(lone, [6, 7, 8], sliced=sliced) for sliced in (False, True)]
        assert len(passes) == 1 and all(head.body is not None for head in heads)
        lone.set_output_embeddings(Capped(lone.get_output_embeddings()))
        capped = [head_of(lone, [6, 7, 8], sliced=False) for _ in range(2)]
    assert len(passes) == 2 and all(head.body is None for head in capped)


class Capped(torch.nn.Module):
    """A head whose logits are no linear map of its states."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer, self.weight = layer, layer.weight

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.layer(states))


def test_equal_contexts_change_nothing() -> None:
    index = index_of([(a, b) for a in range(5) for b in range(5)])
    prompts = [[6, 7, 8], [9, 10]]
    one = constrained_beam(model("qwen3"), prompts, index, beam_width=6, batch_size=4, pad_id=2)
    doubled = [prompt for prompt in prompts for _ in range(2)]
    two = constrained_beam(model("qwen3"), doubled, index, beam_width=6, batch_size=4, pad_id=2, contexts=2)
    assert one.leaf.tolist() == two.leaf.tolist() and one.by_context is None
    np.testing.assert_allclose(one.scores, two.scores, atol=1e-5)


def test_an_index_mapped_from_its_file_is_the_one_that_was_built(tmp_path) -> None:
    index = index_of([(1, 0), (0, 2), (1, 3), (0, 2)])
    index.save(tmp_path / "i.safetensors", "made from this")
    mapped = SidIndex.load(tmp_path / "i.safetensors", "made from this")
    assert mapped is not None and mapped.sids == index.sids
    assert [mapped.items_of(leaf) for leaf in range(3)] == [["i1", "i3"], ["i0"], ["i2"]]
    assert [mapped.path(leaf) for leaf in range(3)] == [index.path(leaf) for leaf in range(3)]
    assert not mapped.starts[0].flags.owndata and not mapped.starts[0].flags.writeable
    assert SidIndex.load(tmp_path / "i.safetensors", "made from another table") is None
    assert SidIndex.load(tmp_path / "none.safetensors", "made from this") is None
    whole = (tmp_path / "i.safetensors").read_bytes()
    for cut in range(0, len(whole), 7):
        (tmp_path / "cut.safetensors").write_bytes(whole[:cut])
        assert SidIndex.load(tmp_path / "cut.safetensors", "made from this") is None


def mixture(each: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """log Σ w p over the weights above 0, and w log p for each below, of log-probabilities (N, S)."""
    above = weights > 0
    mean = np.log((weights[above, None] * np.exp(each[above].astype(float))).sum(axis=0))
    return mean + (weights[~above, None] * each[~above]).sum(axis=0)


@settings(max_examples=25, deadline=None)
@given(
    scoring=st.sampled_from(["exact", "sliced"]),
    sids=catalogues,
    rows=st.integers(1, 3),
    contexts=st.integers(1, 4),
    per_row=st.booleans(),
    batch_size=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_contexts_are_mixed_by_their_weights(scoring, sids, rows, contexts, per_row, batch_size, seed) -> None:
    """Some weights are 0 and some below it; each row has its own, or all rows have the same."""
    index, draw = index_of(sids), np.random.default_rng(seed)
    prompts = [draw.integers(6, 40, draw.integers(1, 12)).tolist() for _ in range(rows * contexts)]
    weights = draw.choice([-0.5, -0.1, 0.0, 0.3, 0.7, 1.0], size=(rows if per_row else 1, contexts)).astype(np.float32)
    weights[:, 0] = 0.6
    options = {"batch_size": batch_size, "pad_id": 2, "scoring": scoring, "contexts": contexts}
    given_weights = weights if per_row else weights[0]
    beams = constrained_beam(model("qwen3"), prompts, index, beam_width=len(index), weights=given_weights, **options)
    narrow = constrained_beam(
        model("qwen3"), prompts, index, beam_width=(len(index) + 1) // 2, weights=given_weights, **options
    )
    for row in range(rows):
        each = np.stack(
            [brute_scores(model("qwen3"), prompts[row * contexts + n], index, scoring) for n in range(contexts)]
        )
        expected = mixture(each, weights[row % len(weights)])
        assert sorted(beams.leaf[row]) == list(range(len(index)))
        np.testing.assert_allclose(beams.scores[row], expected[beams.leaf[row]], atol=5e-4)
        np.testing.assert_allclose(beams.scores[row], np.sort(expected)[::-1], atol=5e-4)
        assert len(set(narrow.leaf[row])) == narrow.leaf.shape[1]
        np.testing.assert_allclose(narrow.scores[row], expected[narrow.leaf[row]], atol=5e-4)


@pytest.mark.parametrize("weights", [[0.0, 0.0], [-1.0, 0.0], [1.0], [1.0, np.nan], [[1.0, 1.0]] * 3])
def test_weights_that_fit_no_row_are_refused(weights) -> None:
    with pytest.raises(ValueError, match="weights"):
        constrained_beam(
            model("qwen3"), [[6], [7]] * 2, index_of([(0,), (1,)]), beam_width=1, batch_size=2, pad_id=2, contexts=2,
            weights=np.array(weights),
        )  # fmt: skip


# -- filters -----------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    scoring=st.sampled_from(["exact", "sliced"]),
    sids=catalogues,
    rows=st.integers(1, 4),
    contexts=st.integers(1, 2),
    per_row=st.booleans(),
    batch_size=st.integers(1, 5),
    seed=st.integers(0, 999),
)
def test_a_filtered_list_is_the_unfiltered_ranking_without_the_others(
    scoring, sids, rows, contexts, per_row, batch_size, seed
) -> None:
    index, draw = index_of(sids), np.random.default_rng(seed)
    prompts = [draw.integers(6, 40, draw.integers(1, 9)).tolist() for _ in range(rows * contexts)]
    allowed = draw.random((rows if per_row else 1, len(index))) < draw.choice([0.1, 0.5, 0.9])
    allowed[:, draw.integers(len(index))] = True
    options = {"batch_size": batch_size, "pad_id": 2, "scoring": scoring, "contexts": contexts}
    whole = constrained_beam(model("qwen3"), prompts, index, beam_width=len(index), **options)
    filtered = constrained_beam(
        model("qwen3"), prompts, index, beam_width=len(index), allowed=allowed if per_row else allowed[0], **options
    )
    for row in range(rows):
        mask = allowed[row % len(allowed)]
        length = int(mask.sum())
        kept = mask[whole.leaf[row]]
        assert filtered.leaf[row, :length].tolist() == whole.leaf[row][kept].tolist()
        np.testing.assert_allclose(filtered.scores[row, :length], whole.scores[row][kept], atol=1e-5)
        assert (filtered.leaf[row, length:] == -1).all() and np.isneginf(filtered.scores[row, length:]).all()


@settings(max_examples=40, deadline=None, derandomize=True)  # a near tie may fall either way
@given(data=st.data(), sids=catalogues, prompts=prompts_of, seed=st.integers(0, 999))
def test_a_narrow_filtered_beam_is_that_of_a_catalogue_of_the_allowed_items_and_never_short(
    data, sids, prompts, seed
) -> None:
    index, draw = index_of(sids), np.random.default_rng(seed)
    width = data.draw(st.integers(1, len(index)))
    allowed = draw.random((len(prompts), len(index))) < 0.5
    allowed[np.arange(len(prompts)), draw.integers(len(index), size=len(prompts))] = True
    options = {"batch_size": 3, "pad_id": 2}
    filtered = constrained_beam(model("qwen3"), prompts, index, beam_width=width, allowed=allowed, **options)
    codes = [[int(token[3:-1]) for token in re.findall(r"<[a-e]_\d+>", sid)] for sid in index.sids]
    for row, prompt in enumerate(prompts):
        few = index_of([tuple(codes[leaf]) for leaf in np.flatnonzero(allowed[row])])
        length = min(width, len(few))
        alone = constrained_beam(model("qwen3"), [prompt], few, beam_width=length, **options)
        listed = filtered.leaf[row, :length]
        assert [index.sids[leaf] for leaf in listed] == [few.sids[leaf] for leaf in alone.leaf[0]]
        np.testing.assert_allclose(filtered.scores[row, :length], alone.scores[0], atol=2e-4)
        assert (filtered.leaf[row, length:] == -1).all()


def test_an_empty_filter_and_one_of_another_catalogue_are_refused() -> None:
    options = {"beam_width": 1, "batch_size": 2, "pad_id": 2}
    with pytest.raises(SidrError, match="none in row 1"):
        mask = np.array([[True, False], [False, False]])
        constrained_beam(model("qwen3"), [[6], [7]], index_of([(0,), (1,)]), allowed=mask, **options)
    with pytest.raises(ValueError, match="1 rows of 2 SIDs"):
        constrained_beam(model("qwen3"), [[6]], index_of([(0,), (1,)]), allowed=np.ones(3, dtype=bool), **options)


def test_items_of_one_sid_are_filtered_apart() -> None:
    """i0 and i2 share a SID; only i2 may be listed, and of the other SIDs i1."""
    index = index_of([(1, 0), (0, 2), (1, 0), (3, 3)])
    assert index.item_ids.to_list() == ["i1", "i0", "i2", "i3"]
    items = np.isin(index.item_ids.to_numpy(), ["i1", "i2"])
    allowed = index.leaves_with(items)
    assert allowed.tolist() == [True, True, False]
    beams = constrained_beam(model("qwen3"), [[6, 7]], index, beam_width=3, batch_size=1, pad_id=2, allowed=allowed)
    ranking = rankings_of(beams, index, ["r"], items)
    assert sorted(ranking["item_id"]) == ["i1", "i2"] and ranking["rank"].to_list() == [1, 2]
    assert rankings_of(beams, index, ["r"]).height == 3
