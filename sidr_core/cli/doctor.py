"""`sidr doctor`: checks that everything this profile needs is there, and says what to do if not."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sidr_core.cli import doctor_environment as environment
from sidr_core.cli.doctor_environment import FAIL, OK, WARN, Finding
from sidr_core.errors import SidrError
from sidr_core.items.encoders import PACKAGED
from sidr_core.models.packaged import packaged
from sidr_core.models.untrusted import untrusted_file
from sidr_core.pipeline import gc as garbage
from sidr_core.pipeline.bucket_store import BucketStore
from sidr_core.pipeline.catalog import path as catalog_path
from sidr_core.pipeline.place import open_store, store_url
from sidr_core.pipeline.profile import Profile, home, load_profile
from sidr_core.pipeline.store import Store
from sidr_core.remote.endpoint import PLACEHOLDER, host_of, is_loopback, read_key
from sidr_core.reviews.files import located
from sidr_core.settings import DatasetConfig, PackagedModel, PretrainedModel
from sidr_core.settings.sources import SingleSource, single_sources

if TYPE_CHECKING:
    from sidr_core.remote.ledger import Cost


def doctor(form: str) -> int:
    """Print a line per check, or all as `json`. Returns the exit code: 1 if a check failed, else 0."""
    findings = list(all_checks())
    failed = any(finding.state == FAIL for finding in findings)
    if form == "json":
        print(json.dumps({"ok": not failed, "checks": [vars(finding) for finding in findings]}, indent=1))
        return int(failed)
    from rich.table import Table
    from rich.text import Text

    from sidr_core.render.terminal import console
    from sidr_core.render.text import printable

    colours = {OK: "green", WARN: "yellow", FAIL: "bold red"}
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        text = Text(printable(finding.found))
        if finding.fix:
            text.append(f"\nfix: {printable(finding.fix)}", style="bold")
        table.add_row(Text(finding.state, style=colours[finding.state]), finding.name, text)
    screen = console()
    screen.print(table)
    counts = Counter(finding.state for finding in findings)
    screen.print(f"{counts[OK]} ok, {counts[WARN]} to look at, {counts[FAIL]} failed")
    return int(failed)


def all_checks() -> Iterator[Finding]:
    """All checks: the environment, the ledger, the profile, and what is left over in the store."""
    yield from environment.packages()
    yield from environment.machine(home())
    yield environment.dagster_home()
    yield environment.code_location()
    ledger, spent = check_ledger()
    yield ledger
    try:
        profile = load_profile()
    except SidrError as error:
        yield _failed("profile", error)
    else:
        yield Finding("profile", OK, f"{profile.name}: {', '.join(profile)}")
        yield from check_profile(profile, spent)
        yield from check_place(profile)


# -- the profile -----------------------------------------------------------------------------


def check_profile(profile: Profile, spent: Cost | None) -> Iterator[Finding]:
    """Each source, model and endpoint once, under the first dataset that has it.

    Args:
        spent: so far, by the ledger; None if the ledger cannot be read.
    """
    seen: set[str] = set()
    for name, config in profile.datasets.items():
        of_files = (_sources(name, config), _models(name, config))
        parts = (*of_files, _keys(name, config), _budget(name, config, spent), _cluster(name, config, profile))
        for finding in (finding for part in parts for finding in part):
            if (subject := f"{finding.name.split()[0]} {finding.found}") not in seen:
                seen.add(subject)
                yield finding


def _sources(dataset: str, config: DatasetConfig) -> Iterator[Finding]:
    for source in single_sources(config.source):
        try:
            yield Finding(f"source {dataset}", OK, _source_files(source))
        except SidrError as error:
            yield _failed(f"source {dataset}", error)
    if (general := config.teacher.general) is not None:
        if Path(general.path).expanduser().is_file():
            yield Finding(f"general {dataset}", OK, f"file {general.path}")
        else:
            fix = "correct `teacher.general.path`, or remove `general`"
            yield Finding(f"general {dataset}", FAIL, f"no file {general.path}", fix)


def _source_files(source: SingleSource) -> str:
    """Kind, files and size of a source. Raises SidrError if a file is missing."""
    if source.kind == "sample":
        return f"sample {source.category}, seed {source.seed}: generated"
    suffixes: tuple[str, ...] = ()
    if source.kind == "tables":
        from sidr_core.reviews.source_files import TABLE_SUFFIXES as suffixes
    values = [value for field in source.PATHS if (value := getattr(source, field))]
    patterns = [pattern for value in values for pattern in ((value,) if isinstance(value, str) else value)]
    paths = [path for pattern in patterns for path in located(pattern, source.kind, suffixes)]
    urls = sum("://" in pattern for pattern in patterns)
    size = sum(path.stat().st_size for path in paths)
    fetched = f", {urls} to be fetched" if urls else ""
    return f"{source.kind}: {len(paths)} files, {size / 1e6:,.1f} MB{fetched} ({patterns[0]})"


def _models(dataset: str, config: DatasetConfig) -> Iterator[Finding]:
    base, encoder = config.base_model, config.encoder
    if isinstance(base, PackagedModel):
        try:
            yield Finding(f"model {dataset}", OK, f"{base.name} in {packaged(base.name).source()}")
        except SidrError as error:
            yield _failed(f"model {dataset}", error)
        if importlib.util.find_spec("gguf") is None:
            yield Finding(f"reader {dataset}", FAIL, "gguf is not installed: it unpacks the model", "pip install gguf")
    elif isinstance(base, PretrainedModel):
        yield _pretrained(f"model {dataset}", base.name)
    if encoder.endpoint is None and encoder.model != PACKAGED:
        yield _pretrained(f"encoder {dataset}", encoder.model)


def _pretrained(name: str, model: str) -> Finding:
    """A folder, or an id of the Hugging Face hub; the hub is not asked."""
    if (folder := Path(model).expanduser()).is_dir():
        if untrusted := untrusted_file(folder):
            return Finding(name, FAIL, f"folder {model} holds {untrusted.found}", untrusted.fix)
        for file in ("config.json", "*.safetensors"):
            if not any(folder.rglob(file)):
                return Finding(name, FAIL, f"folder {model} holds no {file}", "name a folder that holds the model")
        return Finding(name, OK, f"folder {model}")
    if model.startswith(("/", ".", "~")) or model.count("/") > 1:
        return Finding(name, FAIL, f"there is no folder {model}", "correct the path in the profile")
    return Finding(name, OK, f"{model}, from the Hugging Face hub or its cache")


def _keys(dataset: str, config: DatasetConfig) -> Iterator[Finding]:
    for section, endpoint in (("teacher", config.teacher.endpoint), ("encoder", config.encoder.endpoint)):
        if endpoint is None or (section == "teacher" and config.teacher.kind == "rules"):
            continue
        name, host = f"key {dataset}.{section}", host_of(endpoint)
        try:
            key = read_key(endpoint)
        except SidrError as error:
            yield _failed(name, error)
            continue
        variable = f"{endpoint.api_key_env} for {host}"
        if key != PLACEHOLDER:
            yield Finding(name, OK, f"{variable} is set")
        elif is_loopback(host):
            yield Finding(name, OK, f"{variable} is not set; a server on this machine needs none")
        else:
            fix = f"export {endpoint.api_key_env}=… if the server asks for a key"
            yield Finding(name, WARN, f"{variable} is not set", fix)


def _budget(dataset: str, config: DatasetConfig, spent: Cost | None) -> Iterator[Finding]:
    """What is left of the budget; nothing if the ledger cannot be read."""
    budget = config.teacher.budget
    if spent is None or config.teacher.kind == "rules" or (budget.usd is None and budget.tokens is None):
        return
    usd, tokens = spent.usd, spent.tokens
    left = [f"{budget.usd - usd:,.4f} of {budget.usd:,} USD"] if budget.usd is not None else []
    left += [f"{budget.tokens - tokens:,} of {budget.tokens:,} tokens"] if budget.tokens is not None else []
    exhausted = (budget.usd is not None and usd >= budget.usd) or (
        budget.tokens is not None and tokens >= budget.tokens
    )
    fix = "raise `teacher.budget`: until then the corpus stays incomplete" if exhausted else ""
    yield Finding(f"budget {dataset}", WARN if exhausted else OK, f"{' and '.join(left)} left", fix)


def _cluster(dataset: str, config: DatasetConfig, profile: Profile) -> Iterator[Finding]:
    """The Ray cluster of the stages that leave this machine; one that is down now may be up when they run."""
    if config.launch.kind != "ray":
        return
    from sidr_core.pipeline import on_ray

    try:
        yield Finding(f"cluster {dataset}", OK, on_ray.answer(config.launch))
    except SidrError as error:
        failed = _failed(f"cluster {dataset}", error)
        yield Finding(failed.name, WARN, failed.found, failed.fix)
    if store_url(profile) is None:
        fix = "set SIDR_STORE or `store.url` to a bucket, unless all nodes mount that folder"
        yield Finding(f"nodes {dataset}", WARN, f"a node that has no {home()} finds no input", fix)


# -- the working folder ----------------------------------------------------------------------


def check_ledger() -> tuple[Finding, Cost | None]:
    """Whether the ledger is sound, and what was spent (None if it cannot be read); it is not created here."""
    from sidr_core.remote.ledger import Cost, Ledger, ledger_path

    try:
        path = ledger_path()
        if isinstance(path, Path) and not path.is_file():
            return Finding("ledger", OK, "none yet: no paid server was called"), Cost(0, 0)
        ledger = Ledger(path)
        ledger.verify()
    except SidrError as error:
        return _failed("ledger", error), None
    total = ledger.total
    ledger.close()
    return Finding("ledger", OK, f"sound; {total.usd:,.4f} USD and {total.tokens:,} tokens so far"), total


def check_place(profile: Profile) -> Iterator[Finding]:
    """The checks of the store that the profile or the environment names; of a bucket first whether it can hold one."""
    try:
        store = open_store(profile)
        if isinstance(store, BucketStore):
            store.bucket.probe()
            yield Finding("bucket", OK, f"{store.place} answers and honours conditional writes")
        yield from check_store(store)
    except SidrError as error:
        yield _failed("store", error)


def check_store(store: Store) -> Iterator[Finding]:
    """Size of the store, what in it can be deleted (the size includes that), and whether there is a catalog."""
    refs = len(store.refs())
    if not refs and not store.root.is_dir():
        yield Finding("store", OK, f"nothing below {store.place} yet")
        return
    count: Counter[str] = Counter()
    freed: Counter[str] = Counter()
    for removable in garbage.find(store, days=7):
        count[removable.kind] += 1
        freed[removable.kind] += removable.bytes
    size = store.size() if isinstance(store, BucketStore) else garbage.size(store.root)
    yield Finding("store", OK, f"{refs:,} current outputs, {size / 1e6:,.1f} MB below {store.place}")
    resumable = sum(1 for _ in store.root.glob("*/.resume-*")) - count["unfinished"]
    resume = f"; {resumable} trainings can go on from a resume point" if resumable else ""
    if count:
        kinds = ", ".join(f"{number:,} {kind}" for kind, number in sorted(count.items()))
        state = WARN if count["temporary"] else OK  # the rest is history, not damage
        yield Finding("leftovers", state, f"{kinds}; {freed.total() / 1e6:,.1f} MB{resume}", "sidr gc lists them")
    else:
        yield Finding("leftovers", OK, f"none{resume}")
    if refs and store.keeps_catalog and not catalog_path(store).is_file():
        yield Finding("catalog", WARN, "there are outputs but no catalog", "materialize any asset again")


def _failed(name: str, error: SidrError) -> Finding:
    return Finding(name, FAIL, f"{error.what}: expected {error.expected}, found {error.found}", error.fix)
