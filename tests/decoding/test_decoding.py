"""The SID index, the beam against brute force, and thoughts, on random tiny Qwen3 models."""

from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen3Config, Qwen3ForCausalLM

from sidr_core.decoding.beam import constrained_beam
from sidr_core.decoding.thinking import Thought, generate_thoughts, generate_tokens
from sidr_core.errors import SidrError
from sidr_core.sids.index import SidIndex

VOCAB, CODES, FIRST_SID = 96, 6, 40
RENDERER = SimpleNamespace(think_close_id=3, eos_id=1, pad_id=2, close_ids=[4, 3, 5])


@lru_cache
def model(seed: int = 0, attention: str = "sdpa") -> Qwen3ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        initializer_range=0.3,  # peaked distributions, so that ranks and values really differ
    )
    return Qwen3ForCausalLM._from_config(config, attn_implementation=attention).eval()


def token_id(token: str) -> int:
    """`<b_3>` -> an id of its own."""
    return FIRST_SID + "abcd".index(token[1]) * CODES + int(token[3:-1])


def codebook(sids: list[tuple[int, ...]]) -> pl.DataFrame:
    rows = {"item_id": [f"i{n:03d}" for n in range(len(sids))], "codes": [list(codes) for codes in sids]}
    return pl.DataFrame(rows, schema={"item_id": pl.String, "codes": pl.List(pl.Int32)})


def index_of(sids: list[tuple[int, ...]]) -> SidIndex:
    return SidIndex.build(codebook(sids), token_id)


@torch.no_grad()
def plain_beam(lm: Qwen3ForCausalLM, prompt: list[int], index: SidIndex, width: int) -> list[tuple[float, int]]:
    """Textbook beam search over token lists, one forward pass per beam."""
    beams: list[tuple[float, list[int]]] = [(0.0, [])]
    for _ in range(index.levels):
        grown = []
        for score, path in beams:
            log_probs = lm(input_ids=torch.tensor([prompt + path])).logits[0, -1].log_softmax(-1)
            grown += [(score + float(log_probs[t]), [*path, t]) for t in index.children(path)]
        beams = sorted(grown, key=lambda beam: -beam[0])[:width]
    return [(score, index.leaf(path)) for score, path in beams]


# -- index -------------------------------------------------------------------------------------


def test_index_by_hand() -> None:
    index = index_of([(1, 0), (0, 2), (1, 3), (0, 2)])
    assert index.levels == 2 and len(index) == 3
    assert index.sids == ("<a_0><b_2>", "<a_1><b_0>", "<a_1><b_3>")
    assert [index.items_of(leaf) for leaf in range(3)] == [["i001", "i003"], ["i000"], ["i002"]]
    assert [starts.tolist() for starts in index.starts] == [[0, 2], [0, 1, 3]]
    assert [ids.tolist() for ids in index.token_ids] == [[40, 41], [48, 46, 49]]
    assert index.tokens(1).tolist() == [46, 48, 49]
    assert index.children([]) == [40, 41] and index.children([41]) == [46, 49]
    assert index.leaf([41, 49]) == 2 and index.path(2) == [41, 49] and index.leaf_of["<a_1><b_3>"] == 2


@pytest.mark.parametrize("prefix", [[46], [40, 46], [40, 48], [7]])
def test_an_unknown_or_whole_prefix_raises(prefix: list[int]) -> None:
    with pytest.raises(ValueError, match=r"no SID begins|nothing may follow"):
        index_of([(1, 0), (0, 2)]).children(prefix)


def test_leaf_of_a_part_or_of_foreign_tokens_raises() -> None:
    for tokens in ([40], [40, 46], [40, 48, 1]):
        with pytest.raises(ValueError):
            index_of([(1, 0), (0, 2)]).leaf(tokens)


@pytest.mark.parametrize("sids", [[], [(1, 2), (1,)]])
def test_an_empty_or_ragged_codebook_is_refused(sids: list[tuple[int, ...]]) -> None:
    with pytest.raises(SidrError, match="cannot be indexed"):
        index_of(sids)


# -- beam --------------------------------------------------------------------------------------

levels = st.integers(1, 4)
catalogues = levels.flatmap(lambda n: st.lists(st.tuples(*[st.integers(0, CODES - 1)] * n), min_size=1, max_size=30))
prompts_of = st.lists(st.lists(st.integers(6, 39), min_size=1, max_size=9), min_size=1, max_size=5)


@settings(max_examples=30, deadline=None, derandomize=True)  # a near tie may fall either way
@given(data=st.data(), sids=catalogues, prompts=prompts_of, seed=st.integers(0, 3))
def test_a_narrow_beam_equals_textbook_beam_search(data, sids, prompts, seed) -> None:
    index = index_of(sids)
    width = data.draw(st.integers(1, len(index)))
    beams = constrained_beam(model(seed), prompts, index, beam_width=width, batch_size=3, pad_id=2)
    for row, prompt in enumerate(prompts):
        expected = plain_beam(model(seed), prompt, index, width)
        assert len(set(beams.leaf[row])) == width
        assert (np.diff(beams.scores[row]) <= 0).all()
        np.testing.assert_allclose(beams.scores[row], [score for score, _ in expected], atol=1e-4)


def random_case(rows: int) -> tuple[SidIndex, list[list[int]]]:
    draw = np.random.default_rng(5)
    sids = sorted({tuple(int(c) for c in draw.integers(0, CODES, 3)) for _ in range(60)})
    return index_of(sids), [draw.integers(6, 40, draw.integers(1, 30)).tolist() for _ in range(rows)]


def test_batching_and_padding_change_nothing() -> None:
    index, prompts = random_case(11)
    together = constrained_beam(model(), prompts, index, beam_width=8, batch_size=11, pad_id=2)
    for row, prompt in enumerate(prompts):
        alone = constrained_beam(model(), [prompt], index, beam_width=8, batch_size=1, pad_id=0)
        assert together.leaf[row].tolist() == alone.leaf[0].tolist()
        np.testing.assert_allclose(together.scores[row], alone.scores[0], atol=1e-4)


def test_eager_attention_gives_the_same() -> None:
    index, prompts = random_case(5)
    sdpa = constrained_beam(model(), prompts, index, beam_width=8, batch_size=5, pad_id=2)
    eager = constrained_beam(model(0, "eager"), prompts, index, beam_width=8, batch_size=5, pad_id=2)
    assert sdpa.leaf.tolist() == eager.leaf.tolist()
    np.testing.assert_allclose(sdpa.scores, eager.scores, atol=1e-4)


def test_equal_scores_are_ordered_by_sid() -> None:
    torch.manual_seed(0)
    uniform = Qwen3ForCausalLM(model().config).eval()
    torch.nn.init.zeros_(uniform.lm_head.weight)
    index, prompts = random_case(3)
    beams = constrained_beam(uniform, prompts, index, beam_width=7, batch_size=3, pad_id=2)
    assert beams.leaf.tolist() == [list(range(7))] * 3
    np.testing.assert_allclose(beams.scores, -3 * np.log(VOCAB), rtol=1e-6)


class TwoPaths(torch.nn.Module):
    """After the prompt <a_1> beats <a_0> by one; after these, <a_0>'s child gains that one back."""

    config, device, dtype = SimpleNamespace(_attn_implementation="sdpa"), torch.device("cpu"), torch.float32

    def forward(self, input_ids: torch.Tensor, **_: object) -> SimpleNamespace:
        a0, a1, b0, b1 = (token_id(t) for t in ("<a_0>", "<a_1>", "<b_0>", "<b_1>"))
        then = {a0: (b0, b1), a1: (b0, b1)}
        logits = torch.full((*input_ids.shape, VOCAB), -torch.inf)
        for row, col in np.ndindex(*input_ids.shape):
            best, second = then.get(int(input_ids[row, col]), (a1, a0))
            logits[row, col, best], logits[row, col, second] = 1.0, 0.0
        return SimpleNamespace(logits=logits, past_key_values=None)


def test_a_tie_of_two_branches_is_settled_by_sid_whichever_led_before() -> None:
    """<a_0><b_0> scores 0 + 1 and <a_1><b_1> scores 1 + 0: equal, though <a_1> led at the first level."""
    index = index_of([(0, 0), (1, 1)])
    beams = constrained_beam(TwoPaths(), [[6]], index, beam_width=2, batch_size=1, pad_id=2)  # type: ignore[arg-type]
    assert beams.scores[0, 0] == beams.scores[0, 1]
    assert beams.leaf.tolist() == [[0, 1]]


def test_the_number_of_forward_passes_is_the_number_of_levels() -> None:
    index, prompts = random_case(4)
    constrained_beam(model(), prompts[:1], index, beam_width=5, batch_size=4, pad_id=2)  # looks at the model's head
    calls = []
    hook = model().model.register_forward_hook(lambda *_: calls.append(1))
    constrained_beam(model(), prompts, index, beam_width=5, batch_size=4, pad_id=2)
    hook.remove()
    assert len(calls) == index.levels


def test_a_shared_beginning_and_equal_prompts_are_read_once() -> None:
    index, (head, *tails) = random_case(6)
    head = (head * 10)[:20]
    prompts = [head + tail for tail in tails for _ in range(3)]
    constrained_beam(model(), prompts[:1], index, beam_width=5, batch_size=1, pad_id=2)  # looks at the model's head
    read = []
    hook = model().model.register_forward_hook(
        lambda _module, _args, fields, _out: read.append(fields["input_ids"].numel()), with_kwargs=True
    )
    beams = constrained_beam(model(), prompts, index, beam_width=5, batch_size=99, pad_id=2)
    hook.remove()
    longest = max(map(len, tails))
    assert read == [20, 5 * longest, 5 * 5, 5 * 5]
    for row, prompt in enumerate(prompts):
        alone = constrained_beam(model(), [prompt], index, beam_width=5, batch_size=1, pad_id=2)
        assert beams.leaf[row].tolist() == alone.leaf[0].tolist()
        np.testing.assert_allclose(beams.scores[row], alone.scores[0], atol=1e-4)


@pytest.mark.parametrize("width", [0, 3])
def test_a_beam_that_cannot_be_filled_is_refused(width: int) -> None:
    with pytest.raises(SidrError, match="cannot be filled"):
        constrained_beam(model(), [[6]], index_of([(0,), (1,), (1,)]), beam_width=width, batch_size=1, pad_id=2)


def windowed(window: int) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    shape = {**model().config.to_dict(), "layer_types": None, "use_sliding_window": True, "sliding_window": window}
    return Qwen3ForCausalLM._from_config(Qwen3Config(**{**shape, "max_window_layers": 0}), attn_implementation="sdpa")


def test_a_window_that_hides_nothing_changes_nothing_and_a_narrow_one_is_refused() -> None:
    index, prompts = random_case(5)
    options = {"beam_width": 8, "batch_size": 5, "pad_id": 2}
    wide = constrained_beam(windowed(64), prompts, index, **options)
    assert wide.leaf.tolist() == constrained_beam(model(), prompts, index, **options).leaf.tolist()
    with pytest.raises(SidrError, match="window 40"):
        constrained_beam(windowed(40), prompts, index, **options)


def test_a_model_that_gives_no_numbers_is_refused() -> None:
    broken = Qwen3ForCausalLM(model().config)
    torch.nn.init.constant_(broken.lm_head.weight, torch.nan)
    with pytest.raises(SidrError, match="not numbers"):
        constrained_beam(broken, [[6]], index_of([(0,), (1,)]), beam_width=2, batch_size=1, pad_id=2)


def test_decoding_leaves_the_mode_of_the_model() -> None:
    lm = Qwen3ForCausalLM(model().config).train()
    constrained_beam(lm, [[6]], index_of([(0,), (1,)]), beam_width=1, batch_size=1, pad_id=2)
    assert lm.training and all(p.requires_grad for p in lm.parameters())


def test_an_empty_prompt_is_refused_and_no_prompt_gives_no_row() -> None:
    index = index_of([(0,), (1,)])
    with pytest.raises(ValueError, match="prompt 1 has no token"):
        constrained_beam(model(), [[6], []], index, beam_width=1, batch_size=2, pad_id=2)
    assert constrained_beam(model(), [], index, beam_width=2, batch_size=2, pad_id=2).leaf.shape == (0, 2)


# -- thoughts ----------------------------------------------------------------------------------


@torch.no_grad()
def plain_greedy(lm: Qwen3ForCausalLM, prompt: list[int], max_tokens: int) -> Thought:
    ids: list[int] = []
    for _ in range(max_tokens):
        token = int(lm(input_ids=torch.tensor([prompt + ids])).logits[0, -1].argmax())
        if token in (1, 2, 3):
            stripped = ids[:-1] if token == 3 and ids[-1:] == [4] else ids
            return Thought(tuple(stripped), token == 3)
        ids.append(token)
    return Thought(tuple(ids), False)


@lru_cache
def stopping_model() -> Qwen3ForCausalLM:
    """Random weights whose head likes the closing tag, the end token and the newline."""
    torch.manual_seed(1)
    lm = Qwen3ForCausalLM(model().config).eval()
    with torch.no_grad():
        lm.lm_head.weight[[1, 3, 4]] *= 1.6
    return lm


def test_batched_greedy_thoughts_equal_plain_decoding() -> None:
    draw = np.random.default_rng(2)
    prompts = [draw.integers(6, 40, draw.integers(1, 20)).tolist() for _ in range(40)]
    expected = [plain_greedy(stopping_model(), prompt, 25) for prompt in prompts]
    # The case must hold every kind of ending, or it shows nothing.
    assert {thought.closed for thought in expected} == {True, False}
    assert len({len(thought.ids) for thought in expected}) > 4
    assert any(len(thought.ids) < 25 and not thought.closed for thought in expected)
    for batch_size in (1, 7, 40):
        thoughts = generate_thoughts(stopping_model(), prompts, max_tokens=25, batch_size=batch_size, renderer=RENDERER)
        assert thoughts == expected


def test_sampled_thoughts_depend_on_the_seed_and_not_on_the_batch() -> None:
    prompts = [[6, 7, 8], [9], [10, 11, 12, 13], [6, 7, 8]] * 4
    runs = {
        (seed, batch_size): generate_thoughts(
            stopping_model(),
            prompts,
            max_tokens=12,
            batch_size=batch_size,
            renderer=RENDERER,
            temperature=1.0,
            seed=seed,
        )
        for seed in (0, 1)
        for batch_size in (1, 5, 16)
    }
    assert runs[0, 1] == runs[0, 5] == runs[0, 16]
    assert runs[1, 1] == runs[1, 16]
    assert runs[0, 1] != runs[1, 1]
    assert runs[0, 1][0] != runs[0, 1][3]  # same prompt, another draw


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_groups_of_equal_prompts_are_read_once_and_give_the_same_texts(temperature: float) -> None:
    draw = np.random.default_rng(4)
    head = draw.integers(6, 40, 12).tolist()
    tails = [draw.integers(6, 40, length).tolist() for length in (3, 9, 5)]
    prompts = [head + tail for tail in tails for _ in range(4)]
    options = {"stops": (1, 2, 3), "pad_id": 2, "max_tokens": 10, "temperature": temperature, "seed": 3}
    read = []
    hook = stopping_model().register_forward_hook(
        lambda _module, _args, fields, _out: read.append(tuple(fields["input_ids"].shape)), with_kwargs=True
    )
    together = generate_tokens(stopping_model(), prompts, batch_size=12, **options)
    hook.remove()
    assert read[:2] == [(1, 12), (3, 9)] and read[2][0] <= 12
    assert together == generate_tokens(stopping_model(), prompts, batch_size=1, **options)
    assert (len({tuple(text) for text in together[:4]}) == 1) == (temperature == 0)


def test_sampling_follows_the_model_at_the_given_temperature() -> None:
    """Frequencies of the first token over 4,000 draws against the softmax, within 4 standard errors."""
    rows, temperature = 4000, 1.7
    thoughts = generate_thoughts(
        model(2), [[9, 8]] * rows, max_tokens=1, batch_size=rows, renderer=RENDERER, temperature=temperature
    )
    with torch.no_grad():
        probs = (model(2)(input_ids=torch.tensor([[9, 8]])).logits[0, -1] / temperature).softmax(-1).numpy()
    for token in np.argsort(-probs)[:5]:
        if token in (1, 2, 3):
            continue
        share = np.mean([thought.ids == (token,) for thought in thoughts])
        assert abs(share - probs[token]) < 4 * np.sqrt(probs[token] / rows)


def test_the_cap_counts_the_closing_tag_and_an_unclosed_thought_says_so() -> None:
    forced = Qwen3ForCausalLM(model().config).eval()
    torch.nn.init.zeros_(forced.lm_head.weight)  # uniform: the first id, 0, wins
    options = {"batch_size": 2, "renderer": RENDERER}
    assert generate_thoughts(forced, [[6], [7]], max_tokens=3, **options) == [Thought((0, 0, 0), False)] * 2
    always_close = SimpleNamespace(**{**vars(RENDERER), "think_close_id": 0, "close_ids": [4, 0, 5]})
    options["renderer"] = always_close
    assert generate_thoughts(forced, [[6], [7]], max_tokens=1, **options) == [Thought((), True)] * 2
