"""Constrained beam search against the two usual ways, in one run: end to end, one masked step, and the index alone.

    .venv/bin/python benchmarks/bench_decoding.py                     # everything, full size
    .venv/bin/python benchmarks/bench_decoding.py --users 8 --items 3500 --part step
    .venv/bin/python benchmarks/bench_decoding.py --differences       # exact against sliced, on a published checkpoint

`sidr exact` and `sidr sliced` are `constrained_beam`. `callback` is `model.generate(prefix_allowed_tokens_fn=…)` with
the legal tokens in a dictionary by tuple. `strings` is `model.generate` with a logits processor as public code for
this task has it (docs/method.md, "Pitfalls"): a dictionary by the text of the token ids, a second log-softmax, a mask
of -1e6.
All get the same batches, sorted by length, the same prompts and the same beam; prompts share a head, as a system
turn does. Catalogues are random SIDs of 3 levels of 256 codes. Weights are random but for SmolLM2.

The masked step takes hidden states (32 x 50 beams) to the 50 best continuations of each prompt, at the second and the
third token: projection to logits, normaliser, mask, choice. The body of the model is not in it.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import transformers
from machine import processor
from transformers import LogitsProcessor, LogitsProcessorList, Qwen3Config, Qwen3ForCausalLM
from transformers.generation.logits_process import PrefixConstrainedLogitsProcessor

from sidr_core.decoding import beam
from sidr_core.decoding.batching import batches, left_pad
from sidr_core.decoding.head import Head
from sidr_core.sids.index import SidIndex

LEVELS, CODES, PAD = 3, 256, 0
ROWS, BEAMS = 32, 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("all", "index", "step", "end"), default="all")
    parser.add_argument("--users", type=int, default=64)
    parser.add_argument("--items", default="3500,100000,1000000", help="catalogue sizes; end to end takes the first")
    parser.add_argument("--beams", default="10,50")
    parser.add_argument("--models", default="2-layer,smollm2-135m")
    parser.add_argument("--vocab", type=int, default=152_000, help="of the masked step and of the 2-layer model")
    parser.add_argument("--hidden", type=int, default=128, help="of the masked step and of the 2-layer model")
    parser.add_argument("--batch", type=int, default=ROWS)
    parser.add_argument("--repeats", type=int, default=3, help="of the masked step; the median is printed")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--differences", action="store_true", help="exact and sliced lists on valid rows")
    parser.add_argument("--checkpoint", default="sft_checkpoint", help="stage whose checkpoint --differences reads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    gpu = f", {torch.cuda.get_device_name()}" if args.device.startswith("cuda") else ""
    print(
        f"{processor()}, {os.cpu_count()} CPUs{gpu}; {args.threads} threads, "
        f"{args.device}. Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}.\n"
    )
    if args.differences:
        return differences(args)
    sizes = [int(size) for size in args.items.split(",")]
    catalogues = {size: catalogue(size) for size in sizes}
    if args.part in ("all", "index"):
        index_table(catalogues)
    if args.part in ("all", "step"):
        step_table(args, catalogues)
    if args.part in ("all", "end"):
        end_table(args, catalogues[sizes[0]])


def catalogue(size: int) -> np.ndarray:
    """`size` distinct random SIDs, (size, LEVELS)."""
    draws = np.random.default_rng(1).choice(CODES**LEVELS, size, replace=False)
    return np.stack(np.unravel_index(np.sort(draws), (CODES,) * LEVELS), axis=1)


def index_of(codes: np.ndarray, first_id: int) -> SidIndex:
    """The index; SID tokens have the ids from `first_id` on."""
    book = pl.DataFrame({"item_id": [f"B{n:08d}" for n in range(len(codes))]}).with_columns(
        pl.Series("codes", codes.astype(np.int32)).cast(pl.List(pl.Int32))
    )
    return SidIndex.build(book, lambda token: first_id + "abc".index(token[1]) * CODES + int(token[3:-1]))


def seconds(call: Callable[[], Any], device: str) -> tuple[float, Any]:
    """Wall time of a call and what it returned."""
    started = time.perf_counter()
    found = call()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - started, found


# -- the two usual ways ------------------------------------------------------------------------------


def by_tuple(index: SidIndex) -> dict[tuple[int, ...], list[int]]:
    """Prefix -> legal next tokens."""
    prefixes: list[tuple[int, ...]] = [()]
    found: dict[tuple[int, ...], list[int]] = {}
    for starts, tokens in zip(index.starts, index.token_ids, strict=True):
        below = []
        for prefix, first, last in zip(prefixes, starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            found[prefix] = tokens[first:last].tolist()
            below += [(*prefix, token) for token in found[prefix]]
        prefixes = below
    return found


def callback(legal: dict[tuple[int, ...], list[int]], prompt_length: int) -> Callable[[int, torch.Tensor], list[int]]:
    """For `prefix_allowed_tokens_fn`."""
    return lambda _row, ids: legal[tuple(ids[prompt_length:].tolist())]


class StringProcessor(LogitsProcessor):
    """The rule of public code: look the text of the last tokens up, add -1e6 to all but what is found."""

    def __init__(self, legal: dict[str, list[int]], beams: int) -> None:
        self.legal, self.beams, self.count = legal, beams, 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = torch.nn.functional.log_softmax(scores, dim=-1)
        mask = torch.full_like(scores, -1_000_000)
        for row, beams in enumerate(input_ids.view(-1, self.beams, input_ids.shape[-1])):
            for number, sent in enumerate(beams):
                key = "-".join(str(token) for token in sent[len(sent) - self.count :].tolist())
                if allowed := self.legal.get(key, []):
                    mask[row * self.beams + number, allowed] = 0
        self.count += 1
        return scores + mask


def by_string(legal: dict[tuple[int, ...], list[int]]) -> dict[str, list[int]]:
    return {"-".join(map(str, prefix)): tokens for prefix, tokens in legal.items()}


# -- index -------------------------------------------------------------------------------------------


def index_table(catalogues: dict[int, np.ndarray]) -> None:
    print("| items | build, s | save, s | file, MB | map from file, ms | dictionary by tuple, s |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for size, codes in catalogues.items():
        built, index = seconds(partial(index_of, codes, 1000), "cpu")
        with tempfile.TemporaryDirectory() as name:
            path = Path(name) / "index.safetensors"
            saved, _ = seconds(partial(index.save, path, "x"), "cpu")
            mapped, _ = seconds(partial(SidIndex.load, path, "x"), "cpu")
            megabytes = path.stat().st_size / 1e6
        rival, _ = seconds(partial(by_tuple, index), "cpu")
        print(
            f"| {size:,} | {built:.2f} | {saved:.3f} | {megabytes:.1f} | {mapped * 1e3:.1f} | {rival:.2f} |", flush=True
        )
    print()


# -- one masked step ---------------------------------------------------------------------------------


def step_table(args: argparse.Namespace, catalogues: dict[int, np.ndarray]) -> None:
    print(f"Masked step, {ROWS} x {BEAMS} beams, vocabulary {args.vocab:,}, hidden size {args.hidden}\n")
    print("| items | way | ms per step | of it after the logits | against callback | same choice as exact |")
    print("| ---: | --- | ---: | ---: | ---: | ---: |")
    torch.manual_seed(0)
    weight = (torch.randn(args.vocab, args.hidden) / args.hidden**0.5).to(args.device)
    states = torch.randn(ROWS, BEAMS, args.hidden).to(args.device)
    with torch.inference_mode():
        for size, codes in catalogues.items():
            index = index_of(codes, args.vocab - LEVELS * CODES)
            legal = by_tuple(index)
            nodes = [random_nodes(index, level) for level in (1, 2)]
            ways = {
                "callback": partial(rival_steps, index, nodes, states, weight, callback(legal, 0), args),
                "strings": partial(rival_steps, index, nodes, states, weight, by_string(legal), args),
                "sidr exact": partial(our_steps, index, nodes, states, weight, False, args),
                "sidr sliced": partial(our_steps, index, nodes, states, weight, True, args),
                "sidr exact, a filter for all": partial(our_steps, index, nodes, states, weight, False, args, 1),
                "sidr exact, a filter per row": partial(our_steps, index, nodes, states, weight, False, args, ROWS),
            }
            took, after, chosen = {}, {}, {}
            for way, run in ways.items():
                took[way], after[way], chosen[way] = run()
            for way in ways:
                same = np.mean([a == b for a, b in zip(chosen[way], chosen["sidr exact"], strict=True)])
                agreement = "–" if "filter" in way else f"{same:.1%}"
                shown = "–" if way.startswith("sidr") else f"{after[way] * 1e3:.1f}"
                ratio = took["callback"] / took[way]
                print(
                    f"| {size:,} | {way} | {took[way] * 1e3:.1f} | {shown} | {ratio:.1f} x | {agreement} |", flush=True
                )
    print()


def random_nodes(index: SidIndex, level: int) -> torch.Tensor:
    """BEAMS different nodes of a level for each row, ascending as the search keeps them, (ROWS, BEAMS)."""
    draw, count = np.random.default_rng(level), len(index.token_ids[level - 1])
    return torch.from_numpy(np.stack([np.sort(draw.choice(count, BEAMS, replace=False)) for _ in range(ROWS)]))


def our_steps(
    index: SidIndex,
    nodes: list[torch.Tensor],
    states: torch.Tensor,
    weight: torch.Tensor,
    sliced: bool,
    args: Any,
    filters: int = 0,
) -> tuple[float, float, list[list[int]]]:
    """Seconds per step, nothing, and the tokens chosen per row. `filters`: so many, each of half the items.

    The masks of the nodes are made once per list, and a third of that time is counted per step.
    """
    trie = beam.Trie(index, states.device)
    leaves = np.random.default_rng(0).random((filters, len(index))) < 0.5

    def masks() -> list[torch.Tensor] | None:
        return beam.allowed_nodes(index, leaves, states.device) if filters else None

    made, allowed = seconds(masks, args.device)
    search = beam.Search(trie, BEAMS, allowed=allowed)
    head = Head(None, None, weight, None, sliced)  # type: ignore[arg-type]
    scores = torch.zeros(ROWS, BEAMS, device=states.device)

    def step(level: int, at: torch.Tensor) -> torch.Tensor:
        log_probs = head.log_probs(states, trie.levels[level])
        kept, _, parents = beam.extend(log_probs, at, scores, search, level)
        return parents * 10**6 + trie.tokens[level][kept]

    took, chosen = [], []
    for level, at in zip((1, 2), nodes, strict=True):
        at = at.to(states.device)
        share = made / LEVELS if filters else 0.0
        took += [seconds(partial(step, level, at), args.device)[0] + share for _ in range(args.repeats)]
        chosen += np.sort(step(level, at).cpu().numpy(), axis=1).tolist()
    return float(np.median(took)), 0.0, chosen


def rival_steps(
    index: SidIndex, nodes: list[torch.Tensor], states: torch.Tensor, weight: torch.Tensor, legal: Any, args: Any
) -> tuple[float, float, list[list[int]]]:
    """The step as `generate` does it: logits, log-softmax, processor, top 2 B over beams x vocabulary."""
    took, after, chosen = [], [], []
    for level, at in zip((1, 2), nodes, strict=True):
        paths = torch.tensor([prefix(index, level, int(node)) for node in at.flatten()], device=states.device)

        def process(logits: torch.Tensor, paths: torch.Tensor = paths, level: int = level) -> torch.Tensor:
            if isinstance(legal, dict):
                processor: Any = StringProcessor(legal, BEAMS)
                processor.count = level
            else:
                processor = PrefixConstrainedLogitsProcessor(legal, BEAMS)
            masked = processor(paths, logits.float().log_softmax(dim=-1))
            return masked.view(ROWS, -1).topk(2 * BEAMS, dim=1).indices[:, :BEAMS]

        for _ in range(args.repeats):
            head, logits = seconds(lambda: states.flatten(0, 1) @ weight.T, args.device)
            rest, best = seconds(partial(process, logits), args.device)
            took.append(head + rest)
            after.append(rest)
        best = best.cpu().numpy()
        chosen += np.sort(best // args.vocab * 10**6 + best % args.vocab, axis=1).tolist()
    return float(np.median(took)), float(np.median(after)), chosen


def prefix(index: SidIndex, level: int, node: int) -> list[int]:
    """Token ids on the way to a node of a level."""
    ids = []
    for at in range(level - 1, -1, -1):
        ids.append(int(index.token_ids[at][node]))
        node = int(np.searchsorted(index.starts[at], node, side="right")) - 1
    return ids[::-1]


# -- end to end --------------------------------------------------------------------------------------


def end_table(args: argparse.Namespace, codes: np.ndarray) -> None:
    print(f"End to end: {args.users} users, batches of {args.batch}, {len(codes):,} items\n")
    print("| model | beam | way | users/s | against callback | same list as sidr exact |")
    print("| --- | ---: | --- | ---: | ---: | ---: |")
    for name in args.models.split(","):
        model = load(name, args)
        if model is None:
            print(f"| {name} | | | failed: the package with its weights is not installed | | |")
            continue
        index = index_of(codes, model.config.vocab_size - LEVELS * CODES)
        asked = prompts(args.users, index)
        legal = by_tuple(index)
        for width in map(int, args.beams.split(",")):
            ways: dict[str, Callable[[], np.ndarray]] = {
                "sidr exact": partial(ours, model, asked, index, width, args, "exact"),
                "sidr sliced": partial(ours, model, asked, index, width, args, "sliced"),
                "callback": partial(generated, model, asked, index, width, args, legal),
                "strings": partial(generated, model, asked, index, width, args, by_string(legal)),
            }
            took, lists = {}, {}
            ours(model, asked[:2], index, width, args, "exact")  # warm
            for way, run in ways.items():
                took[way], lists[way] = seconds(run, args.device)
            for way in ways:
                same = (lists[way] == lists["sidr exact"]).all(axis=1).mean()
                speed, ratio = len(asked) / took[way], took["callback"] / took[way]
                print(f"| {name} | {width} | {way} | {speed:.2f} | {ratio:.1f} x | {same:.1%} |", flush=True)
    print()


def load(name: str, args: argparse.Namespace) -> Any:
    """A random 2-layer model, or the packaged one with rows for the SID tokens; None where it is not installed."""
    torch.manual_seed(0)
    if name == "2-layer":
        shape = Qwen3Config(
            vocab_size=args.vocab,
            hidden_size=args.hidden,
            intermediate_size=3 * args.hidden,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=args.hidden // 4,
            tie_word_embeddings=True,
            initializer_range=0.1,
        )
        return Qwen3ForCausalLM._from_config(shape, attn_implementation="sdpa").eval().to(args.device)
    from sidr_core.errors import InputError
    from sidr_core.models import packaged
    from sidr_core.pipeline.profile import home

    try:
        folder = packaged.prepare(home() / "cache" / "models", packaged.packaged(name))
    except (InputError, KeyError):
        return None
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa")
    # Not the library's mean of the old rows: all SIDs would tie, and rounding would order them.
    model.resize_token_embeddings(model.config.vocab_size + LEVELS * CODES, mean_resizing=False)
    return model.eval().to(args.device)


def prompts(users: int, index: SidIndex) -> list[list[int]]:
    """A head of 60 tokens, a history of 1 to 10 SIDs with a separator each, a tail of 12 tokens."""
    draw = np.random.default_rng(2)
    head, tail = draw.integers(10, 900, 60).tolist(), draw.integers(10, 900, 12).tolist()
    found = []
    for _ in range(users):
        items = draw.integers(0, len(index), draw.integers(1, 11))
        found.append(head + [token for item in items for token in [*index.path(int(item)), 9]] + tail)
    return found


def ours(model: Any, asked: list[list[int]], index: SidIndex, width: int, args: Any, scoring: Any) -> np.ndarray:
    return beam.constrained_beam(
        model, asked, index, beam_width=width, batch_size=args.batch, pad_id=PAD, scoring=scoring
    ).leaf


@torch.inference_mode()
def generated(model: Any, asked: list[list[int]], index: SidIndex, width: int, args: Any, legal: Any) -> np.ndarray:
    """Leaves (users, width) of beam search by `generate`."""
    found = np.zeros((len(asked), width), dtype=np.int64)
    plain = transformers.GenerationConfig(
        num_beams=width,
        num_return_sequences=width,
        max_new_tokens=LEVELS,
        do_sample=False,
        length_penalty=0.0,
        early_stopping=True,
        pad_token_id=PAD,
    )
    for rows in batches(asked, args.batch):
        ids, mask, _ = left_pad([asked[row] for row in rows], PAD, model.device)
        if isinstance(next(iter(legal)), str):
            rule: dict[str, Any] = {"logits_processor": LogitsProcessorList([StringProcessor(legal, width)])}
        else:
            rule = {"prefix_allowed_tokens_fn": callback(legal, ids.shape[1])}
        written = model.generate(ids, attention_mask=mask, generation_config=plain, **rule)[:, ids.shape[1] :]
        leaves = [index.leaf(tokens) for tokens in written.tolist()]
        found[rows] = np.array(leaves).reshape(len(rows), width)
    return found


# -- exact against sliced ----------------------------------------------------------------------------


def differences(args: argparse.Namespace) -> None:
    """How far the two scorings' lists differ on valid rows of the default dataset's newest snapshot."""
    from sidr_core.corpus.prompts import next_item
    from sidr_core.models import checkpoint
    from sidr_core.pipeline.place import open_store
    from sidr_core.pipeline.profile import load_profile
    from sidr_core.pipeline.status import newest_published
    from sidr_core.recommending.rows import history_sids
    from sidr_core.tables import files as tables
    from sidr_core.tables.columns import DIRECT, ITEM_ID, SID, TARGET
    from sidr_core.tables.samples import subset

    profile = load_profile()
    store = open_store(profile)
    dataset = profile.default_dataset
    snapshot = newest_published(profile, store, dataset, args.checkpoint, None)
    loaded = checkpoint.load(store.require(dataset, snapshot, args.checkpoint).verified_folder(), args.device)
    codebook = tables.read(store.require(dataset, snapshot, "sid_codebook").path("sid_codebook.parquet"))
    valid = tables.read(store.require(dataset, snapshot, "interactions").path("valid.parquet"))
    rows = subset(valid, args.users, 0)
    asked = [loaded.renderer.prompt(next_item(history), DIRECT) for history in history_sids(rows, codebook)]
    sid_of = dict(codebook.select(ITEM_ID, SID).iter_rows())
    targets = np.array([loaded.index.leaf_of[sid_of[item]] for item in rows[TARGET]])
    print(f"{dataset}, {snapshot}, {args.checkpoint}, {len(asked)} valid rows, {len(loaded.index):,} SIDs\n")
    print("| beam | same top 10, in order | same set | shared of 10 | Kendall's tau of the shared | "
          "same first | NDCG@10 exact | sliced |")  # fmt: skip
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for width in (int(width) for width in args.beams.split(",")):
        exact, sliced = (
            ours(loaded.model, asked, loaded.index, width, args, way)[:, :10] for way in ("exact", "sliced")
        )
        shared = [len(set(a) & set(b)) / exact.shape[1] for a, b in zip(exact.tolist(), sliced.tolist(), strict=True)]
        figures = [(exact == sliced).all(axis=1).mean(), np.mean(np.array(shared) == 1), np.mean(shared)]
        taus = [kendall(a, b) for a, b in zip(exact.tolist(), sliced.tolist(), strict=True)]
        cells = [f"{figure:.1%}" for figure in figures] + [f"{np.nanmean(taus):.3f}"]
        cells += [f"{(exact[:, 0] == sliced[:, 0]).mean():.1%}"]
        cells += [f"{((way == targets[:, None]) / np.log2(np.arange(way.shape[1]) + 2)).sum(1).mean():.4f}"
                  for way in (exact, sliced)]  # fmt: skip
        print(f"| {width} | {' | '.join(cells)} |")


def kendall(a: list[int], b: list[int]) -> float:
    """Kendall's tau of what two lists share; nan where that is one item or none."""
    place = {leaf: n for n, leaf in enumerate(b)}
    order = [place[leaf] for leaf in a if leaf in place]
    pairs = [(x < y) - (x > y) for n, x in enumerate(order) for y in order[n + 1 :]]
    return float(np.mean(pairs)) if pairs else float("nan")


if __name__ == "__main__":
    main()
