"""The server under load that lasts: memory, another release a hundred times, too many questions, and `kill -9`.

    .venv/bin/python benchmarks/load_serving.py --dataset games
    .venv/bin/python benchmarks/load_serving.py --dataset games --questions 2000 --swaps 10

It works on a copy of SIDR_HOME. A second release is made there of the same checkpoint: its lists leave out what the
history holds, so that most answers of the two differ. Both go live by force, then `promote` and `rollback` take turns
while eight clients ask, and each answer is held against what the release that it names answered before.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import os
import shutil
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import yaml
from bench_serving import ask_all, connected, load, running
from machine import hardware

from sidr_core.pipeline.graph import stage_named
from sidr_core.pipeline.place import open_store
from sidr_core.pipeline.profile import load_profile
from sidr_core.pipeline.run import run_stage
from sidr_core.pipeline.stage import Progress
from sidr_core.serving import promotion, release
from sidr_core.tables import files as tables

MODELS = ["grpo/direct", "popularity/direct", "item_item/direct"]
CLIENTS, SWAP_SECONDS = 8, 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default=None)
    parser.add_argument("--questions", type=int, default=20_000)
    parser.add_argument("--swaps", type=int, default=100)
    chosen = parser.parse_args()
    dataset = chosen.dataset or load_profile().default_dataset
    print(f"{hardware()}; {dataset}; load {load()}", flush=True)
    with tempfile.TemporaryDirectory(prefix="sidr-load-") as folder:
        histories = two_releases(Path(folder), dataset)
        with running(dataset, "--reload", "0.1") as (port, process):
            steady(port, process, histories, chosen.questions)
            swaps(port, dataset, histories[:64], chosen.swaps)
        with running(dataset, "--queue", "32") as (port, process):
            asyncio.run(overload(port, histories))
            killed(port, process, histories[0])


def two_releases(folder: Path, dataset: str) -> list[list[str]]:
    """Copy the home, make two releases in it, the first of them live; the histories of its rows."""
    home = folder / "home"
    shutil.copytree(os.environ.get("SIDR_HOME", ".sidr"), home)
    own = yaml.safe_load(yaml.safe_dump(_plain(load_profile().raw)))
    os.environ |= {"SIDR_HOME": str(home), "SIDR_PROFILE": str(folder / "load.yaml")}
    fields = own["datasets"][dataset]
    fields["promotion"] = {"model": MODELS[0]}
    for seen in ("keep", "drop"):
        fields["decoding"] = fields.get("decoding", {}) | {"models": MODELS, "max_test_rows": 200, "seen": seen}
        (folder / "load.yaml").write_text(yaml.safe_dump(own))
        profile, store = load_profile(), open_store()
        snapshot = release.newest(profile, store, dataset).snapshot
        for stage in ("recommendations", "evaluation", "promotion"):
            run_stage(profile, dataset, snapshot, stage_named(stage), store, Progress())
        if seen == "keep":
            promotion.promote(profile, store, dataset, "the first one")
    rows = tables.read(store.require(dataset, snapshot, "recommendations").path("rows.parquet"))
    return rows["history_item_ids"].to_list()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def steady(port: int, process: psutil.Process, histories: list[list[str]], questions: int) -> None:
    """Memory before, half way and after."""
    asyncio.run(ask_all(port, histories, "direct", 10, 32, None, 200))  # the first ones fill pools and caches
    memory, started = [process.memory_info().rss], time.monotonic()
    for _ in range(2):
        asyncio.run(ask_all(port, histories, "direct", 10, 32, None, questions // 2))
        memory.append(process.memory_info().rss)
    sizes = ", ".join(f"{size / 2**20:,.0f}" for size in memory)
    rate = questions / (time.monotonic() - started)
    print(
        f"{questions:,} questions by 32 clients, {rate:.0f} a second: memory at the start, half way and at the end "
        f"{sizes} MiB; load {load()}",
        flush=True,
    )


def swaps(port: int, dataset: str, histories: list[list[str]], count: int) -> None:
    """Promote and roll back by turns, under load; hold every answer against its release."""
    profile, store = load_profile(), open_store()
    wanted: dict[str, list[Any]] = {}

    def swap(number: int) -> float:
        started = time.monotonic()
        if number % 2 == 0:
            promotion.promote(profile, store, dataset, "under load")
        else:
            promotion.rollback(store, dataset, "under load")
        goal = release.to_serve(profile, store, dataset).fingerprint
        while _health(port)["release"] != goal:
            assert time.monotonic() - started < SWAP_SECONDS, "the server does not follow"
            time.sleep(0.02)
        return time.monotonic() - started

    async def answers() -> list[Any]:
        async with connected(port) as asked:
            return [(await asked({"history": history, "mode": "direct"}))[2] for history in histories]

    for number in (0, 1):  # what each release answers when nothing else is going on
        wanted[_health(port)["release"]] = [_list(answer) for answer in asyncio.run(answers())]
        swap(number)
    first, second = wanted.values()
    differ = sum(one != other for one, other in zip(first, second, strict=True))
    outcome: collections.Counter[str] = collections.Counter()
    done = False

    async def client(start: int) -> None:
        async with connected(port) as asked:
            number = start
            while not done:
                number = (number + 1) % len(histories)
                status, _, told = await asked({"history": histories[number], "mode": "direct"})
                if status != 200:
                    outcome["failed"] += 1
                else:
                    outcome["right" if _list(told) == wanted[told["release"]][number] else "mixed"] += 1

    async def under_load() -> list[float]:
        nonlocal done
        clients = [asyncio.create_task(client(8 * number)) for number in range(CLIENTS)]
        took = [await asyncio.to_thread(swap, number) for number in range(count)]
        done = True
        await asyncio.gather(*clients)
        return took

    took = sorted(asyncio.run(under_load()))
    print(
        f"{count} swaps while {CLIENTS} clients asked: {outcome['right']:,} answers of the release that they name, "
        f"{outcome['failed']} failed, {outcome['mixed']} mixed (the two releases differ on {differ} of "
        f"{len(histories)} histories); from the decision to the first answer {took[len(took) // 2]:.1f} s (median), "
        f"{took[-1]:.1f} s at most; load {load()}",
        flush=True,
    )


async def overload(port: int, histories: list[list[str]]) -> None:
    """300 questions at once, to a queue of 32."""
    statuses: collections.Counter[int] = collections.Counter()
    waits: list[int] = []

    async def one(number: int) -> None:
        async with connected(port) as asked:
            status, headers, _ = await asked({"history": histories[number % len(histories)], "mode": "direct"})
            statuses[status] += 1
            if status == 429:
                waits.append(int(headers["retry-after"]))

    await asyncio.gather(*(one(number) for number in range(300)))
    told = ", ".join(f"{count} answered {status}" for status, count in sorted(statuses.items()))
    print(f"300 questions at once, a queue of 32: {told}, Retry-After {min(waits)} to {max(waits)} s", flush=True)


def killed(port: int, process: psutil.Process, history: list[str]) -> None:
    """`kill -9`, and the seconds to the next answer."""
    process.kill()
    started = time.monotonic()

    async def answered() -> bool:
        try:
            async with connected(port) as asked:
                return (await asked({"history": history, "mode": "direct"}))[0] == 200
        except (OSError, asyncio.IncompleteReadError):
            return False

    while not asyncio.run(answered()):
        time.sleep(0.01)
    print(f"kill -9: the next answer after {time.monotonic() - started:.1f} s; load {load()}", flush=True)


def _health(port: int) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=SWAP_SECONDS) as answer:
        return json.load(answer)


def _list(answer: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


if __name__ == "__main__":
    main()
