"""The small world with merged and mixed lists, a server over it, and one on a real port."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from builders import small_world
from builders.small_world import World
from sidr_core.serving import release
from sidr_core.serving.app import Server, application
from sidr_core.serving.batcher import Batcher
from sidr_core.serving.counts import Counts
from sidr_core.serving.follow import Follower
from sidr_core.serving.gate import LOOPBACK, Limits
from sidr_core.serving.served import Served

MODES = {"direct": "grpo/direct", "thinking": "grpo/thinking", "merged": "grpo/merged", "mixed": "grpo_mixed/direct"}
MODELS = (*MODES.values(), "popularity/direct", "item_item/direct")


def build(home: Path) -> World:
    """The small world down to the lists of `MODELS`."""
    made = small_world.build(home)
    world = World(made.store, small_world.profile(models=MODELS))
    for stage in ("baseline_shortcut", "baseline_sasrec", "recommendations"):
        world.run(stage)
    return world


def write_profile(world: World, path: Path) -> None:
    """The profile of a world as a file, for commands."""
    path.write_text(yaml.safe_dump(small_world.plain(world.profile.raw)))


def server_over(
    world: World, *, limits: Limits | None = None, batch_size: int = 8, most_waiting: int = 64, seconds: float = 30
) -> Server:
    """A server that looks for another release only when it is told to."""
    told: list[str] = []
    follower = Follower(
        lambda: release.newest(world.profile, world.store, "toys"),
        lambda place: Served.load(release.opened(world.store, place)),
        told.append,
        0,
    )
    counts: Counts
    batcher = Batcher(batch_size, most_waiting, lambda rows, seconds, mode: counts.decoded(rows, seconds, mode))
    counts = Counts(lambda: batcher.waiting, lambda: follower.swaps, lambda: follower.failures)
    server = Server(follower, batcher, counts, limits or Limits(frozenset(LOOPBACK)), seconds)
    vars(follower)["told"] = told
    return server


@contextmanager
def on_a_port(server: Server) -> Iterator[str]:
    """The server on a free port of this machine; gives its address, and stops it as SIGTERM would."""
    import uvicorn

    config = uvicorn.Config(application(server), host="127.0.0.1", port=0, log_level="error", access_log=False)
    listening = uvicorn.Server(config)
    thread = threading.Thread(target=listening.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not listening.started and time.monotonic() < deadline:
        time.sleep(0.01)
    port = listening.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        listening.should_exit = True
        thread.join(timeout=30)
