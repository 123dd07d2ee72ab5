"""Seconds of a training step by the number of threads, and whether the weights after the steps are equal, bit for bit.

Forward, backward and AdamW of two small models in float32. Run it beside other work: the question is what a second
thread costs there. With OMP_WAIT_POLICY=ACTIVE threads spin while they wait. For the table of docs/performance.md.

    .venv/bin/python benchmarks/bench_threads.py                      # threads wait asleep, as everywhere here
    OMP_WAIT_POLICY=ACTIVE .venv/bin/python benchmarks/bench_threads.py
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

import sidr_core  # noqa: F401 # it sets how threads wait, before torch is loaded

import torch  # isort: skip
from transformers import LlamaConfig, LlamaForCausalLM  # isort: skip

ROWS, TOKENS, ANSWER = 32, 96, 4
#: hidden size, layers, heads, key and value heads, feed-forward width, vocabulary
SIZES = {"0.9 M": (128, 3, 4, 2, 384, 2048), "6.8 M": (256, 6, 8, 4, 768, 8192)}


def steps(size: tuple[int, ...], threads: int, count: int) -> tuple[float, float, torch.Tensor]:
    """Median seconds of a step, seconds of processor per step, and all weights at the end."""
    hidden, layers, heads, kv_heads, width, vocabulary = size
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
        intermediate_size=width, vocab_size=vocabulary, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    seconds, processor = [], time.process_time()
    for _ in range(count):
        started = time.perf_counter()
        ids = torch.randint(0, vocabulary, (ROWS, TOKENS))
        states = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, -ANSWER - 1 : -1]
        loss = torch.nn.functional.cross_entropy(model.lm_head(states).flatten(0, 1), ids[:, -ANSWER:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - started)
    weights = torch.cat([weight.detach().flatten() for weight in model.parameters()])
    return statistics.median(seconds[1:]), (time.process_time() - processor) / count, weights


def main() -> None:
    """Time one and two threads in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print(f"threads wait: {os.environ['OMP_WAIT_POLICY']}; load {os.getloadavg()[0]:.1f}")
    for name, size in SIZES.items():
        for _ in range(args.rounds):
            one, two = (steps(size, threads, args.steps) for threads in (1, 2))
            equal = "equal" if torch.equal(one[2], two[2]) else "other"
            print(
                f"{name} parameters: 1 thread {one[0]:.3f} s a step ({one[1]:.2f} s of processor), "
                f"2 threads {two[0]:.3f} s ({two[1]:.2f} s), {equal} weights"
            )


if __name__ == "__main__":
    main()
