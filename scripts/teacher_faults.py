"""What the teacher's client does when its server fails, when it is killed, and how fast it is.

    .venv/bin/python scripts/teacher_faults.py                 the fault matrix
    .venv/bin/python scripts/teacher_faults.py --kills 50      kill -9 during generation
    .venv/bin/python scripts/teacher_faults.py --throughput    share of the ideal at a latency of 1 s

The server is `tests/faults/scripted_server.py`, on loopback; it charges for every request that it works on, also when
the client never sees the reply. Each mode prints a Markdown table and exits with 1 if a promise is broken.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "faults"))

from scripted_server import ScriptedServer  # noqa: E402

from sidr_core.errors import SidrError  # noqa: E402
from sidr_core.pipeline.stage import Progress  # noqa: E402
from sidr_core.remote import retry  # noqa: E402
from sidr_core.remote.client import Client, Reply, Request  # noqa: E402
from sidr_core.remote.ledger import Ledger  # noqa: E402
from sidr_core.settings import Budget, Endpoint, Price  # noqa: E402

FAULTS = (
    "429", "429_date", "500", "503", "refused", "hang", "drip", "truncated", "cut", "reset", "empty_choices",
    "not_json", "wrong_schema", "refusal", "length", "content_filter", "error_200", "quota", "401",
)  # fmt: skip
#: USD per million tokens of the pretended model.
PRICE = Price(input=1.0, output=2.0)
QUIET = Progress(lambda line: None)
#: Seconds: fast clocks, so that a matrix takes minutes. The ratios are those of the real settings.
TIMEOUT, BASE, LONGEST = 0.4, 0.02, 0.3


class Note(BaseModel):
    """What the scripted server writes."""

    model_config = ConfigDict(extra="forbid")
    text: str
    score: int


def requests(count: int) -> list[Request]:
    """So many distinct requests of like size."""
    return [Request("note", "You write notes.", f"Note number {n}, please.", Note, 48, 0.5) for n in range(count)]


def client(
    base_url: str, path: Path, *, concurrency: int = 16, usd: float | None = 1.0, timeout: float = TIMEOUT
) -> Client:
    """A client of the pretended model."""
    endpoint = Endpoint(base_url=base_url, model="pretended", timeout_seconds=timeout, concurrency=concurrency)
    return Client(endpoint, Ledger(path), Budget(usd=usd), PRICE)


def intact(path: Path) -> bool:
    """Whether SQLite finds nothing wrong with a ledger."""
    with closing(sqlite3.connect(path)) as db:
        return db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@dataclass(frozen=True)
class Cell:
    """One fault, so many times: what happened, and what happened when the server was well again."""

    fault: str
    times: str
    seconds: float
    bound: float
    sent: int
    charged: float
    account: float
    budget: float
    outcome: str
    resumed: bool
    intact: bool

    @property
    def kept(self) -> bool:
        """Whether every promise was kept."""
        spent = self.charged <= self.account + 1e-9 and self.account <= self.budget + 1e-9
        return self.seconds <= self.bound and spent and self.resumed and self.intact


def time_bound(endpoint: Endpoint, count: int) -> float:
    """Seconds after which a run over `count` requests has ended, whatever the server does.

    Each worker's share of the requests, with all attempts and waits and one repair, plus 2 s for this machine.
    """
    share = -(-count // endpoint.concurrency)
    waits = sum(min(LONGEST, BASE * 2**attempt) + 0.05 for attempt in range(endpoint.retries))
    return 2 * share * ((endpoint.retries + 1) * endpoint.timeout_seconds + waits) + 2


def run_cell(fault: str, times: int | None, folder: Path, count: int = 64, usd: float = 1.0) -> Cell:
    """Run into a fault, then again on a healthy server with the same ledger and ten times the budget."""
    path = folder / f"{fault}-{times}-{usd}.sqlite"
    refused = fault == "refused"
    server = ScriptedServer(fault="ok" if refused else fault, times=times, latency=0.02)
    asking = client(server.base_url, path, usd=usd)
    if not refused:
        server.start()
    elif times is not None:
        threading.Thread(target=_start_after, args=(server, path, times), daemon=True).start()
    before, outcome = time.monotonic(), "complete"
    try:
        replies = asking.ask(requests(count), QUIET)
    except SidrError as error:
        outcome = type(error).__name__
    else:
        if bad := [reply.reason for reply in replies if reply.value is None]:
            outcome = f"complete, {len(bad)} quarantined ({', '.join(sorted(set(bad)))})"
    seconds = time.monotonic() - before
    charged, sent, account = server.usd(PRICE.input, PRICE.output), server.requests, asking.ledger.total.usd
    if not refused or times is not None:
        server.stop()
    filed = sum(asking.answered(request) is not None for request in requests(count))
    resumed = _resumes(path, count, filed)
    bound = time_bound(asking.endpoint, count)
    shown = "for ever" if times is None else f"{times}×"
    return Cell(fault, shown, seconds, bound, sent, charged, account, usd, outcome, resumed, intact(path))


def _start_after(server: ScriptedServer, path: Path, attempts: int) -> None:
    """Start a server once so many connections to it were refused, by the account of the client."""
    with closing(sqlite3.connect(path)) as db:
        while db.execute("SELECT count(*) FROM account WHERE what = 'free'").fetchone()[0] < attempts:
            time.sleep(0.002)
    server.start()


def _resumes(path: Path, count: int, filed: int) -> bool:
    """Whether a healthy server lets the run end, and is asked nothing that is on file."""
    with ScriptedServer() as server:
        asking = client(server.base_url, path, usd=10.0)
        on_file = asking.estimate(requests(count)).reused
        replies = asking.ask(requests(count), QUIET)
        useful = sum(reply.value is not None for reply in replies)
        again = server.requests
        asking.ask(requests(count), QUIET)
        # A reply on file whose form was wrong still has its one repair, which is a new request.
        return useful >= filed and len(replies) == count and server.requests == again <= count - min(on_file, filed)


def matrix(faults: Iterable[str], repeats: Sequence[int | None], folder: Path) -> bool:
    """Print the fault matrix; True if every promise was kept."""
    print(
        "| fault | times | seconds (bound) | requests sent | charged USD | account USD | outcome | resumed | ledger |"
    )
    print("| --- | --- | ---: | ---: | ---: | ---: | --- | --- | --- |")
    cells = [_print(run_cell(fault, times, folder)) for fault in faults for times in repeats]
    print("\nA tight budget: room for the worst case of five calls, and for the true cost of all but a few:\n")
    print(
        "| fault | times | seconds (bound) | requests sent | charged USD | account USD | outcome | resumed | ledger |"
    )
    print("| --- | --- | ---: | ---: | ---: | ---: | --- | --- | --- |")
    for fault, times in (("ok", None), ("hang", 10), ("reset", 10), ("wrong_schema", 10)):
        cells.append(_print(run_cell(fault, times, folder, usd=0.003)))
    broken = [f"{cell.fault} {cell.times}" for cell in cells if not cell.kept]
    print(f"\n{len(cells)} cells, promises broken in {len(broken)}: {', '.join(broken) or 'none'}")
    return not broken


def _print(cell: Cell) -> Cell:
    resumed, sound = "yes" if cell.resumed else "**no**", "intact" if cell.intact else "**damaged**"
    print(
        f"| {cell.fault} | {cell.times} | {cell.seconds:.2f} ({cell.bound:.0f}) | {cell.sent} | {cell.charged:.5f} | "
        f"{cell.account:.5f} of {cell.budget:g} | {cell.outcome} | {resumed} | {sound} |",
        flush=True,
    )
    return cell


# -- kill -9 -------------------------------------------------------------------------------------


def kills(count: int, folder: Path, asked: int = 2000, concurrency: int = 16, seed: int = 7) -> bool:
    """Kill a generating process `count` times; True if every promise was kept."""
    chance = random.Random(seed)
    most = max(2, 2 * asked // (count + 10))
    repeated, sound = [], True
    with ScriptedServer(latency=0.05) as server:
        for _ in range(count):
            start, before = server.calls, server.repeated
            child = _child(server.base_url, folder / "killed.sqlite", asked, concurrency, folder / "killed.json")
            target = start + chance.randint(1, most)
            while server.calls < target and child.poll() is None:
                time.sleep(0.002)
            time.sleep(chance.uniform(0, 0.05))
            child.send_signal(signal.SIGKILL)
            died = child.wait() == -signal.SIGKILL
            repeated.append(server.repeated - before)
            sound = sound and died and intact(folder / "killed.sqlite")
        before = server.repeated
        ended = _child(server.base_url, folder / "killed.sqlite", asked, concurrency, folder / "killed.json").wait()
        repeated.append(server.repeated - before)
        charged, account = server.usd(PRICE.input, PRICE.output), Ledger(folder / "killed.sqlite").total.usd
        calls = server.calls
    with ScriptedServer(latency=0.05) as server:
        _child(server.base_url, folder / "whole.sqlite", asked, concurrency, folder / "whole.json").wait()
    same = ended == 0 and (folder / "killed.json").read_bytes() == (folder / "whole.json").read_bytes()
    per_kill = repeated[1:]  # what one kill cost is seen in the life after it
    print("| kills | requests | paid calls | repeated per kill: mean | most | ledger | replies | charged | account |")
    print("| ---: | ---: | ---: | ---: | ---: | --- | --- | ---: | ---: |")
    print(
        f"| {count} | {asked:,} | {calls:,} | {sum(per_kill) / len(per_kill):.1f} | {max(per_kill)} | "
        f"{'intact' if sound else '**damaged**'} | {'identical' if same else '**differ**'} | {charged:.4f} USD | "
        f"{account:.4f} USD |"
    )
    return sound and same and max(per_kill) <= concurrency and charged <= account + 1e-9


def _child(base_url: str, path: Path, asked: int, concurrency: int, out: Path) -> subprocess.Popen[bytes]:
    words = ["--child", base_url, str(path), str(asked), str(concurrency), str(out)]
    return subprocess.Popen([sys.executable, str(Path(__file__).resolve()), *words])


def child(base_url: str, path: str, asked: str, concurrency: str, out: str) -> None:
    """The process that is killed: asks, and writes its replies when it gets to the end."""
    asking = client(base_url, Path(path), concurrency=int(concurrency), usd=None, timeout=30)
    replies = asking.ask(requests(int(asked)), QUIET)
    Path(out).write_text(json.dumps([_plain(reply) for reply in replies]))


def _plain(reply: Reply) -> object:
    return reply.value.model_dump() if reply.value else reply.reason


# -- throughput ----------------------------------------------------------------------------------


def throughput(folder: Path, latency: float = 1.0, concurrency: int = 32, count: int = 640) -> bool:
    """Time a run against its ideal, `count · latency / concurrency`; True at 0.9 or more and 0 calls on a rerun.

    Loading the SDK, once per process, is left out of the time; opening the connections is not.
    """
    import openai  # noqa: F401

    with ScriptedServer(latency=latency) as server:
        asking = client(server.base_url, folder / "throughput.sqlite", concurrency=concurrency, timeout=60)
        before = time.monotonic()
        asking.ask(requests(count), QUIET)
        seconds, at_once, first = time.monotonic() - before, server.most_at_once, server.requests
        asking.ask(requests(count), QUIET)
        second = server.requests - first
    ideal = count * latency / concurrency
    print("| latency | concurrency | requests | seconds | ideal | share | most at once | calls of a second run |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    print(
        f"| {latency:g} s | {concurrency} | {count} | {seconds:.2f} | {ideal:.2f} | {ideal / seconds:.3f} | "
        f"{at_once} | {second} |"
    )
    return ideal / seconds >= 0.9 and second == 0 and at_once == concurrency


def main() -> int:
    """Run the mode that was asked for; 0 if every promise was kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int)
    parser.add_argument("--throughput", action="store_true")
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(*args.child)
        return 0
    retry.BASE, retry.LONGEST = BASE, LONGEST
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(f"{os.cpu_count()} CPU cores, Python {sys.version.split()[0]}; scripts/{Path(__file__).name}\n")
        if args.kills:
            return 0 if kills(args.kills, folder) else 1
        if args.throughput:
            return 0 if throughput(folder) else 1
        return 0 if matrix(FAULTS, (1, 10, None), folder) else 1


if __name__ == "__main__":
    sys.exit(main())
