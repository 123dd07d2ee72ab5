"""The server under load against the same decoder called question by question, on what is published in SIDR_HOME.

    .venv/bin/python benchmarks/bench_serving.py --dataset games
    .venv/bin/python benchmarks/bench_serving.py --dataset games --modes direct --clients 32

`one by one` calls the decoder in this process, a question after the other, with the server's own code and without
HTTP. In turns with it, as many clients as a column says ask `sidr serve` on this machine over HTTP, each its next
question as soon as it has its answer; all of it `--rounds` times, since others may work on the machine, and each line
has its load. Questions are histories of the evaluated rows.
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
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import numpy as np
import psutil
from machine import hardware

from sidr_core.pipeline.place import open_store
from sidr_core.pipeline.profile import load_profile
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
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("-k", type=int, default=10)
    chosen = parser.parse_args()
    modes, clients = chosen.modes.split(","), [int(count) for count in chosen.clients.split(",")]
    profile, store = load_profile(), open_store()
    dataset = chosen.dataset or profile.default_dataset
    place = release.newest(profile, store, dataset)
    opened = release.opened(store, place)
    histories = tables.read(opened.lists.path("rows.parquet"))["history_item_ids"].to_list()
    print(f"{hardware()}; {dataset}, snapshot {place.snapshot}, {len(histories):,} histories; load {load()}\n")
    served = Served.load(opened)
    with running(dataset) as (port, process):
        print("| mode | how | requests/s | p50 ms | p95 ms | × one by one | CPU ms each | × one by one | load |")
        print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
        for mode in modes * chosen.rounds:
            alone = one_by_one(served, histories, mode, chosen.seconds, chosen.k)
            for count in clients:
                before = spent(process)
                took, span = asyncio.run(ask_all(port, histories, mode, chosen.k, count, chosen.seconds))
                line(mode, f"{count} clients", took, span, spent(process) - before, alone)


def load() -> str:
    """How busy the machine is: others may work on it."""
    return f"{psutil.getloadavg()[0]:.1f}"


def spent(process: psutil.Process) -> float:
    """Seconds of the processor, which others on the machine disturb less than the clock."""
    return sum(process.cpu_times()[:2])


def line(
    mode: str, how: str, took: list[float], span: float, processor: float, alone: tuple[float, float] | None = None
) -> tuple[float, float]:
    """Print a cell, against one question after the other; gives its requests per second and CPU seconds each."""
    rate, each = len(took) / span, processor / len(took)
    of_rate, of_each = alone or (rate, each)
    median, high = np.percentile(np.array(took) * 1000, [50, 95])
    cells = f"{rate:.1f} | {median:.0f} | {high:.0f} | {rate / of_rate:.1f} | {each * 1000:.1f} | {of_each / each:.1f}"
    print(f"| {mode} | {how} | {cells} | {load()} |", flush=True)
    return rate, each


def one_by_one(served: Served, histories: list[list[str]], mode: str, seconds: float, k: int) -> tuple[float, float]:
    """Requests per second and CPU seconds of a question, without a server."""
    took: list[float] = []
    questions = itertools.cycle(histories)
    started, before = time.monotonic(), time.process_time()
    while time.monotonic() - started < seconds:
        begun = time.monotonic()
        ask = served.ask(Question.model_validate({"history": next(questions), "mode": mode, "k": k}))
        served.answer(ask, served.find([ask])[0])
        took.append(time.monotonic() - begun)
    span = time.monotonic() - started
    return line(mode, "one by one", took, span, time.process_time() - before)


@contextmanager
def running(dataset: str, *options: str) -> Iterator[tuple[int, psutil.Process]]:
    """`sidr serve` on a free port of this machine, ended by SIGTERM: the port, and the process that serves."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = "from sidr_core.cli.main import main; main()"
    command = [sys.executable, "-c", program, "serve", "--dataset", dataset, "--port", str(port), *options]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    started = time.monotonic()
    try:
        wait_for(port, server, started)
        parent = psutil.Process(server.pid)
        serving = (parent.children() or [parent])[0]
        spent = sum(sum(process.cpu_times()[:2]) for process in {parent, serving})
        print(f"start to first answer: {time.monotonic() - started:.1f} s, {spent:.1f} s of the processor", flush=True)
        yield port, serving
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=60)


def wait_for(port: int, server: subprocess.Popen[bytes], started: float) -> None:
    """Until the server answers."""
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=START_SECONDS).close()
            return
        except OSError:
            if server.poll() is not None or time.monotonic() - started > START_SECONDS:
                raise SystemExit("the server did not start; try `sidr serve` to see why") from None
            time.sleep(0.1)


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
        async with connected(port) as asked:
            for history in questions:
                if seconds is not None and time.monotonic() - started > seconds:
                    break
                begun = time.monotonic()
                status, _, told = await asked({"history": history, "mode": mode, "k": k})
                assert status == 200 and len(told["items"]) == k, (status, told)
                took.append(time.monotonic() - begun)

    await asyncio.gather(*(client() for _ in range(clients)))
    return took, time.monotonic() - started


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Callable[[dict[str, Any]], Awaitable[tuple[int, dict[str, str], Any]]]]:
    """A connection that is kept: asks `/recommend`, and gives status, headers and body of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def asked(question: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
        body = json.dumps(question).encode()
        fields = ("POST /recommend HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json")
        writer.write("\r\n".join([*fields, f"Content-Length: {len(body)}", "", ""]).encode() + body)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = dict(row.lower().split(": ", 1) for row in head[1:] if ": " in row)
        return int(head[0].split()[1]), headers, json.loads(await reader.readexactly(int(headers["content-length"])))

    try:
        yield asked
    finally:
        writer.close()
        await writer.wait_closed()


if __name__ == "__main__":
    main()
