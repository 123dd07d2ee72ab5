"""What a server would gain that keeps the key-value cache of a history which grew by one item.

    .venv/bin/python benchmarks/bench_prefix.py OUT        # a folder of `sidr export`

Sessions grow item by item; each state is asked twice in turns: as the server does, the whole prompt read anew, and
from the cache of the state before, cut to the tokens that both prompts begin with. Without HTTP, direct mode, one
question at a time, on the checkpoint of the folder and on a random one of 512 x 8. Milliseconds of the processor.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import hardware
from transformers import Qwen3Config, Qwen3ForCausalLM

from sidr_core.corpus.prompts import next_item
from sidr_core.decoding import batching, beam
from sidr_core.models import checkpoint
from sidr_core.serving.export import MODEL, REFERENCE, read_lists
from sidr_core.tables.columns import DIRECT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sessions", type=int, default=6, help="the longest histories of the reference")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    loaded = checkpoint.load(chosen.folder / MODEL, device="cpu")
    rows = sorted(read_lists(chosen.folder / REFERENCE), key=lambda row: -len(row["history"]))[: chosen.sessions]
    sessions = [
        [
            tuple(loaded.renderer.prompt(next_item(row["history"][:n]), DIRECT))
            for n in range(1, len(row["history"]) + 1)
        ]
        for row in rows
    ]
    longest = max(len(prompt) for prompts in sessions for prompt in prompts)
    print(f"{hardware()}; {len(sessions)} sessions of up to {len(sessions[0])} items, {longest} tokens\n")
    print("| model | prompt tokens | anew ms | from the cache ms | of these read ms | cache KiB | scores differ |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=loaded.model.config.vocab_size, hidden_size=512, num_hidden_layers=8, intermediate_size=1536,
        num_attention_heads=8, num_key_value_heads=4, head_dim=64, max_position_embeddings=2048,
    )  # fmt: skip
    for model in (loaded.model, Qwen3ForCausalLM(config).eval()):
        measure(model, sessions, loaded)


class Kept:
    """Stands in for `prefill`: goes on from the cache of the last prompt."""

    def __init__(self) -> None:
        self.tokens: tuple[int, ...] = ()
        self.cache: Any = None
        self.processor = 0.0

    def prefill(self, forward: Any, prompts: list[tuple[int, ...]], pad_id: int, device: torch.device) -> Any:
        begun = time.process_time()
        (prompt,) = prompts
        shared = 0
        while shared < min(len(self.tokens), len(prompt) - 1) and self.tokens[shared] == prompt[shared]:
            shared += 1
        if shared:
            self.cache.crop(shared - self.cache.get_seq_length())  # beams and all behind the shared tokens
        else:
            self.cache = None
        ids, mask, positions = batching.left_pad([prompt[shared:]], pad_id, device)
        mask = torch.cat([mask.new_ones(1, shared), mask], dim=1)
        output = forward(
            input_ids=ids, attention_mask=mask, position_ids=positions + shared, past_key_values=self.cache
        )
        self.tokens, self.cache = prompt, output.past_key_values
        self.processor += time.process_time() - begun
        return output, mask, positions[:, -1:] + shared


def measure(model: Any, sessions: list[list[tuple[int, ...]]], loaded: checkpoint.Loaded) -> None:
    """Print a line per third of the length."""
    width = min(20, len(loaded.index))
    found: list[tuple[int, float, float, float, float]] = []
    size = 0
    for prompts in sessions:
        kept = Kept()
        for prompt in prompts:
            spent, lists, read = [], [], kept.processor
            for way in (batching.prefill, kept.prefill):
                vars(beam)["prefill"] = way
                begun = time.process_time()
                ranked = beam.constrained_beam(
                    model, [prompt], loaded.index, beam_width=width, batch_size=1, pad_id=loaded.renderer.pad_id
                )
                spent.append(time.process_time() - begun)
                lists.append(ranked)
            size = max(size, sum(layer.keys.nbytes + layer.values.nbytes for layer in kept.cache.layers))
            apart = float(np.abs(lists[0].scores - lists[1].scores).max())
            found.append((len(prompt), spent[0], spent[1], kept.processor - read, apart))
    table = np.array(sorted(found))
    name = f"{model.config.hidden_size} x {model.config.num_hidden_layers}"
    for third in np.array_split(table, 3):
        tokens, anew, cached, read, _ = third.mean(axis=0) * [1, 1000, 1000, 1000, 1]
        cells = f"{anew:.1f} | {cached:.1f} | {read:.1f} | {size / 1024:.0f} | {third[:, 4].max():.0e}"
        print(f"| {name} | {tokens:.0f} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
