"""Builds datasets of a profile stage by stage, each stage in its own process: shared by the study scripts.

It can be stopped at any moment and started again: published outputs are reused, and so are the replies of a
language model. If a teacher's endpoint is on loopback and no server answers there, the packaged model is served
while the corpus is written.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

from local_teacher import CORPUS, environment, serving, upstream

from sidr_core.pipeline.profile import PROFILES, Profile, home

LOOPBACK = ("http://127.0.0.1", "http://localhost")

_lock = threading.Lock()


def say(text: str) -> None:
    """Print one line to standard error; lines of several threads do not mix."""
    with _lock:
        print(text, file=sys.stderr, flush=True)


def parse(doc: str | None, everything: Sequence[str]) -> argparse.Namespace:
    """The options of every study: `only`, `jobs`, `threads`, `tables`."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(everything), metavar="a,b")
    parser.add_argument("--jobs", type=int, default=2, help="datasets at a time")
    parser.add_argument("--threads", type=int, default=1, help="threads of each dataset")
    parser.add_argument("--tables", action="store_true", help="print what is published, run nothing")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.only if name not in everything]:
        parser.error(f"unknown dataset {unknown[0]}; known: {', '.join(everything)}")
    return arguments


def run_all(profile: Profile, arguments: argparse.Namespace) -> int:
    """Build the datasets of :func:`parse`; returns how many failed."""
    if arguments.tables:
        return 0
    with ThreadPoolExecutor(arguments.jobs) as pool:
        outcomes = list(pool.map(lambda name: run(profile, name, arguments.threads), arguments.only))
    return outcomes.count(False)


def run(profile: Profile, dataset: str, threads: int) -> bool:
    """Build a dataset's newest snapshot down to its evaluation; returns whether that succeeded."""
    config, snapshot = profile.dataset(dataset), profile.newest(dataset)
    logs = home() / profile.name
    logs.mkdir(parents=True, exist_ok=True)
    for stage in upstream(config, "evaluation"):
        spec = logs / f"{dataset}.json"
        path = str(PROFILES / f"{profile.name}.yaml")
        spec.write_text(json.dumps({"profile": path, "dataset": dataset, "snapshot": snapshot, "stage": stage.name}))
        endpoint = config.teacher.endpoint if stage.name == CORPUS else None
        local = endpoint is not None and endpoint.base_url.startswith(LOOPBACK)
        started = time.monotonic()
        with serving(endpoint.base_url, threads) if local and endpoint else nullcontext():
            command = [sys.executable, "-m", "sidr_core.pipeline.run", str(spec)]
            with (logs / f"{dataset}.log").open("a") as log:
                done = subprocess.run(
                    command, env=environment(threads), stdout=subprocess.PIPE, stderr=log, text=True, check=False
                )
        if done.returncode:
            say(f"{dataset}/{stage.name} failed; see {logs / dataset}.log")
            return False
        reused = json.loads(done.stdout.splitlines()[-1])["reused"]
        say(f"{dataset}/{stage.name}: {'reused' if reused else 'built'}, {time.monotonic() - started:.1f} s")
    return True
