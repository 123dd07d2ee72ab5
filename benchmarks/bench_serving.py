"""The server under load against the same decoder called question by question, on what is published in SIDR_HOME.

    .venv/bin/python benchmarks/bench_serving.py --dataset games
    .venv/bin/python benchmarks/bench_serving.py --dataset games --modes direct --clients 32 --steady 5000

`one by one` calls the decoder in this process, a question after the other, with the server's own code and without
HTTP. Then `sidr serve` is started on this machine, and as many clients as a column says ask it over HTTP, each its next
question as soon as it has its answer. Questions are histories of the evaluated rows. `--steady` asks so many more
questions and prints the server's memory before, half way and after.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import psutil
from machine import hardware

from sidr_core.pipeline.profile import load_profile
from sidr_core.pipeline.status import open_store
from sidr_core.serving import release
from sidr_core.serving.messages import Question
from sidr_core.serving.served import Served
from sidr_core.tables import files as tables

START_SECONDS = 180


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default=None)
    parser.add_argument("--modes", default="direct,thinking,merged")
    parser.add_argument("--clients", default="1,8,32")
    parser.add_argument("--seconds", type=float, default=20, help="per cell")
    parser.add_argument("--steady", type=int, default=0, help="further questions, in the first mode, by 32 clients")
    parser.add_argument("-k", type=int, default=10)
    chosen = parser.parse_args()
    modes, clients = chosen.modes.split(","), [int(count) for count in chosen.clients.split(",")]
    profile, store = load_profile(), open_store()
    dataset = chosen.dataset or profile.default_dataset
    place = release.newest(profile, store, dataset)
    opened = release.opened(store, place)
    histories = tables.read(opened.lists.path("rows.parquet"))["history_item_ids"].to_list()
    print(f"{hardware()}; {dataset}, snapshot {place.snapshot}, {len(histories):,} histories; load {load()}\n")
    print("| mode | how | requests/s | p50 ms | p95 ms | × one by one |\n| --- | --- | ---: | ---: | ---: | ---: |")
    alone = one_by_one(Served.load(opened), histories, modes, chosen.seconds, chosen.k)
    with running(dataset) as (port, process):
        for mode in modes:
            for count in clients:
                took, span = asyncio.run(ask_all(port, histories, mode, chosen.k, count, chosen.seconds))
                line(mode, f"{count} clients", took, span, alone[mode])
        if chosen.steady:
            memory = [process.memory_info().rss]
            for _ in range(2):
                asyncio.run(ask_all(port, histories, modes[0], chosen.k, 32, None, chosen.steady // 2))
                memory.append(process.memory_info().rss)
            sizes = ", ".join(f"{size / 2**20:,.0f}" for size in memory)
            print(f"\nmemory over {chosen.steady:,} questions ({modes[0]}): {sizes} MiB; load {load()}")


def load() -> str:
    """How busy the machine is: others may work on it."""
    return f"{psutil.getloadavg()[0]:.1f}"


def line(mode: str, how: str, took: list[float], span: float, alone: float) -> None:
    rate, (median, high) = len(took) / span, np.percentile(np.array(took) * 1000, [50, 95])
    print(f"| {mode} | {how} | {rate:.1f} | {median:.0f} | {high:.0f} | {rate / alone:.1f} |", flush=True)


def one_by_one(
    served: Served, histories: list[list[str]], modes: list[str], seconds: float, k: int
) -> dict[str, float]:
    """Requests per second of each mode without a server."""
    rates = {}
    for mode in modes:
        took: list[float] = []
        questions = itertools.cycle(histories)
        started = time.monotonic()
        while time.monotonic() - started < seconds:
            begun = time.monotonic()
            ask = served.ask(Question.model_validate({"history": next(questions), "mode": mode, "k": k}))
            served.answer(ask, served.find([ask])[0])
            took.append(time.monotonic() - begun)
        span = time.monotonic() - started
        rates[mode] = len(took) / span
        line(mode, "one by one", took, span, rates[mode])
    return rates


@contextmanager
def running(dataset: str) -> Iterator[tuple[int, psutil.Process]]:
    """`sidr serve` on a free port of this machine, ended by SIGTERM."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = "from sidr_core.cli.main import main; main()"
    command = [sys.executable, "-c", program, "serve", "--dataset", dataset, "--port", str(port)]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    started = time.monotonic()
    try:
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                break
            except OSError:
                if server.poll() is not None or time.monotonic() - started > START_SECONDS:
                    raise SystemExit("the server did not start; try `sidr serve` to see why") from None
                time.sleep(0.1)
        print(f"<!-- the server answered {time.monotonic() - started:.1f} s after its start -->", file=sys.stderr)
        yield port, psutil.Process(server.pid)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=60)


async def ask_all(
    port: int,
    histories: list[list[str]],
    mode: str,
    k: int,
    clients: int,
    seconds: float | None,
    most: int | None = None,
) -> tuple[list[float], float]:
    """Seconds of each answer, and of all: until `seconds` are over, or `most` questions are asked."""
    questions = itertools.islice(itertools.cycle(histories), most)
    took: list[float] = []
    started = time.monotonic()

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for history in questions:
            if seconds is not None and time.monotonic() - started > seconds:
                break
            body = json.dumps({"history": history, "mode": mode, "k": k}).encode()
            fields_sent = ("POST /recommend HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json")
            head = "\r\n".join([*fields_sent, f"Content-Length: {len(body)}", "", ""])
            begun = time.monotonic()
            writer.write(head.encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            fields = dict(row.lower().split(b": ", 1) for row in answer.split(b"\r\n")[1:] if b": " in row)
            told = await reader.readexactly(int(fields[b"content-length"]))
            assert answer.startswith(b"HTTP/1.1 200") and len(json.loads(told)["items"]) == k, (answer, told[:300])
            took.append(time.monotonic() - begun)
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(client() for _ in range(clients)))
    return took, time.monotonic() - started


if __name__ == "__main__":
    main()
