"""Runs the datasets of `profiles/ablations.yaml` and compares `sft/direct` on their common test rows.

    .venv/bin/python scripts/ablations.py                             # all, two at a time with one thread each
    .venv/bin/python scripts/ablations.py --only office_base,office_rkmeans
    .venv/bin/python scripts/ablations.py --tables                    # nothing is run

Prints Markdown for docs/log.md. It may be stopped at any moment and started again: what is published is reused,
and so are a language model's replies. Where a teacher's endpoint is on loopback and nothing answers there, the
packaged model is served for as long as the corpus is written.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

from local_teacher import CORPUS, environment, serving, upstream

from sidr_core.profile import PROFILES, Profile, home, load_profile
from sidr_core.report import compare
from sidr_core.store import Store

PROFILE = PROFILES / "ablations.yaml"
#: Tables, each compared with its first dataset.
FAMILIES = {
    "Quantizers": (
        "office_base",
        "office_rkmeans",
        "office_rkmeans_256",
        "office_balanced",
        "office_rqvae",
        "office_whitened",
        "office_fused",
    ),
    "Collision policies": ("office_rkmeans", "office_suffix", "office_share"),
    "Teachers": ("office_tasks_only", "office_base", "office_llm"),
}
#: Figures of a stage that a family is about, by how their names begin.
SHOWN = {
    "Quantizers": {"sid_codebook": ("",)},
    "Collision policies": {"sid_codebook": ("",)},
    "Teachers": {CORPUS: ("teacher_", "quarantined_", "examples_item_narrative", "examples_user_narrative")},
}
LOOPBACK = ("http://127.0.0.1", "http://localhost")
K = 10

_lock = threading.Lock()


def say(text: str) -> None:
    """One line on standard error, whole, whichever thread says it."""
    with _lock:
        print(text, file=sys.stderr, flush=True)


def run(profile: Profile, dataset: str, threads: int) -> bool:
    """Build a dataset's newest snapshot, stage by stage, each in a process of its own. Whether all went well."""
    config, snapshot = profile.dataset(dataset), profile.newest(dataset)
    logs = home() / "ablations"
    logs.mkdir(parents=True, exist_ok=True)
    for stage in upstream(config, "evaluation"):
        spec = logs / f"{dataset}.json"
        told = {"profile": str(PROFILE), "dataset": dataset, "snapshot": snapshot, "stage": stage.name}
        spec.write_text(json.dumps(told))
        endpoint = config.teacher.endpoint if stage.name == CORPUS else None
        local = endpoint is not None and endpoint.base_url.startswith(LOOPBACK)
        started = time.monotonic()
        with serving(endpoint.base_url, threads) if local and endpoint else nullcontext():
            command = [sys.executable, "-m", "sidr_core.run", str(spec)]
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


def tables(profile: Profile) -> None:
    """Print each family's datasets that are published: costs and codebooks, then the comparison."""
    store = Store(home() / "store")
    for title, datasets in FAMILIES.items():
        snapshot = profile.newest(datasets[0])
        ready = [name for name in datasets if store.current(name, snapshot, "recommendations")]
        print(f"\n# {title}\n")
        if len(ready) < 2:
            print(f"published: {', '.join(ready) or 'none'}; a comparison needs two")
            continue
        print(figures(store, ready, snapshot, SHOWN[title]))
        names = [compare.Name(name, "sft", "direct") for name in ready]
        # The counter is the same for all datasets: it sees items, not SIDs.
        names.append(compare.Name(ready[0], "item_item", "direct"))
        entries = [compare.read(store, name, snapshot, K) for name in names]
        settings = profile.dataset(ready[0]).evaluation
        found = compare.table(entries, K, settings)
        print(compare.page(found, snapshot, settings, any(entry.synthetic for entry in entries)))


def figures(store: Store, datasets: Sequence[str], snapshot: str, shown: Mapping[str, tuple[str, ...]]) -> str:
    """Seconds of the stages that differ and the figures of `shown`: one row per figure, one column per dataset."""
    columns = []
    for dataset in datasets:
        column: dict[str, object] = {}
        for stage in ("sid_codebook", CORPUS, "sft_checkpoint"):
            manifest = store.require(dataset, snapshot, stage).manifest
            column[f"{stage} seconds"] = round(manifest["seconds"], 1)
            column |= {
                name: value for name, value in manifest["metrics"].items() if name.startswith(shown.get(stage, ()))
            }
        columns.append(column)
    rows = list(dict.fromkeys(name for column in columns for name in column))
    lines = [f"| figure | {' | '.join(datasets)} |", "| --- |" + " ---: |" * len(datasets)]
    lines += [f"| {name} | {' | '.join(_short(column.get(name)) for column in columns)} |" for name in rows]
    return "\n".join(lines) + "\n"


def _short(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Run what is asked for, then print the tables; exit code 1 where a dataset failed."""
    everything = list(dict.fromkeys(name for datasets in FAMILIES.values() for name in datasets))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=lambda text: text.split(","), default=everything, metavar="a,b")
    parser.add_argument("--jobs", type=int, default=2, help="datasets at a time")
    parser.add_argument("--threads", type=int, default=1, help="of each")
    parser.add_argument("--tables", action="store_true", help="print what is published, run nothing")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.only if name not in everything]:
        parser.error(f"unknown dataset {unknown[0]}; known: {', '.join(everything)}")
    profile, failed = load_profile(str(PROFILE)), 0
    if not arguments.tables:
        with ThreadPoolExecutor(arguments.jobs) as pool:
            outcomes = list(pool.map(lambda name: run(profile, name, arguments.threads), arguments.only))
        failed = outcomes.count(False)
    tables(profile)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
