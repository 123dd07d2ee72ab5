"""The one place where outputs are published and read.

`<root>/<stage>/<fingerprint>/` holds the files of one output and, written last, `MANIFEST.json`.
`<root>/refs/<dataset>/<snapshot>/<stage>.json` says which fingerprint is current, and
`<root>/live/<dataset>.json` what is live (`sidr_core/pipeline/live.py`). A reader opens through the manifest
only, so a `kill -9` at any moment leaves either the complete old output or the complete new one. Deletion goes the
other way round: the manifest first. A reader that holds an output is safe from it.
Why not a stock IO manager: under `kill -9` those leave torn or empty outputs (docs/architecture.md).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import time
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidr_core.errors import NotMaterialized, StoreError
from sidr_core.pipeline import live
from sidr_core.pipeline.host import PeakMemory, versions
from sidr_core.tables.atomic import fsync, write_atomically

if TYPE_CHECKING:
    from sidr_core.pipeline.bucket import Bucket
    from sidr_core.pipeline.report import Report

MANIFEST = "MANIFEST.json"
_FINGERPRINT = re.compile(r"[0-9a-f]{32}")


def canonical_json(value: Any) -> str:
    """JSON text that is equal for equal values: sorted keys, no blanks, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def fingerprint(stage: str, code_version: str, key: Mapping[str, Any]) -> str:
    """First 32 hex digits of the sha256 over everything that determines an output."""
    text = canonical_json({"stage": stage, "code_version": code_version, "key": key})
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


class Artifact:
    """A published output, read through its manifest."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder, self.manifest = folder, manifest
        self._verified: set[str] = set()
        self._held = False

    @property
    def stage(self) -> str:
        return self.manifest["stage"]

    @property
    def fingerprint(self) -> str:
        return self.manifest["fingerprint"]

    @property
    def digest(self) -> str:
        """Content digest: sha256 over the names and hashes of all files."""
        return self.digest_of(self.files)

    @property
    def synthetic(self) -> bool:
        return self.manifest["synthetic"]

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(sorted(self.manifest["files"]))

    def digest_of(self, names: Iterable[str]) -> str:
        """Content digest of some of the files."""
        files = self.manifest["files"]
        text = canonical_json([[name, files[name]["sha256"]] for name in sorted(names)])
        return hashlib.sha256(text.encode()).hexdigest()

    def path(self, name: str, hashed: Callable[[Path], str] = sha256_file) -> Path:
        """Path of a file, its bytes checked once per process.

        Args:
            hashed: gives the sha256 of a file; one that remembers it does not notice bytes that change on the disk.

        Raises:
            StoreError: the file is not in the manifest, is missing, or differs from it.
        """
        entry = self.manifest["files"].get(name)
        path = self.folder / name
        if entry is None:
            raise self._damaged(name, f"one of {', '.join(self.files)}", "no such file in the manifest")
        if name not in self._verified:
            if not path.is_file() or path.is_symlink():
                raise self._damaged(name, f"a file of {entry['bytes']} bytes", "nothing")
            if path.stat().st_size != entry["bytes"] or hashed(path) != entry["sha256"]:
                raise self._damaged(name, f"sha256 {entry['sha256'][:16]}…", "other bytes")
            self._verified.add(name)
        return path

    def is_here(self, name: str) -> bool:
        """Whether a file of the manifest can be opened without fetching it from elsewhere."""
        return True

    def schema_only(self, name: str) -> Path:
        """Path of a Parquet file of which the schema alone is needed; its rows are not checked."""
        return self.folder / name

    def verified_folder(self) -> Path:
        """The folder, after checking every file in it and that it contains no other file."""
        for name in self.files:
            self.path(name)
        # A link to a folder is not a file, but files could be opened through it.
        paths = (p for p in self.folder.rglob("*") if p.is_file() or p.is_symlink())
        present = {p.relative_to(self.folder).as_posix() for p in paths}
        if foreign := present - set(self.files) - {MANIFEST}:
            raise self._damaged(sorted(foreign)[0], "only files of the manifest", "a foreign file")
        return self.folder

    def hold(self) -> bool:
        """Keep :meth:`Store.remove` from deleting it while this object lives; False if it is deleted already."""
        path = self.folder / MANIFEST
        if not self._held:
            try:
                descriptor = os.open(path, os.O_RDONLY)
                weakref.finalize(self, os.close, descriptor)
                with contextlib.suppress(OSError):  # a file system without locks: then nothing is removed either
                    fcntl.flock(descriptor, fcntl.LOCK_SH)
                self._held = os.path.samestat(os.fstat(descriptor), path.stat())
            except (FileNotFoundError, NotADirectoryError):
                return False
        return self._held

    def _damaged(self, name: str, expected: str, found: str) -> StoreError:
        return StoreError(
            f"{self.stage}/{self.fingerprint}/{name} is damaged",
            expected=expected,
            found=found,
            fix="materialize the asset again: the damaged output is set aside and rebuilt",
        )


class Store:
    """Publishes and finds outputs below `root` (a local or shared folder).

    Attributes:
        keeps_catalog: whether the catalog is rewritten after each stage, or only when someone asks for it.
    """

    keeps_catalog = True

    def __init__(self, root: Path) -> None:
        self.root = Path(root).absolute()

    @property
    def home(self) -> Path:
        """The working folder, which has the catalog and the caches."""
        return self.root.parent

    @property
    def live_at(self) -> Path | Bucket:
        """Where it is written what is live (`sidr_core/pipeline/live.py`): beside the outputs."""
        return self.root

    @property
    def place(self) -> str:
        """Where the outputs lie, for people."""
        return str(self.root)

    # -- outputs -----------------------------------------------------------------------------

    def open(self, stage: str, fp: str) -> Artifact | None:
        """The published output, or None. An unreadable or foreign manifest counts as none."""
        manifest = sealed_manifest(self._read(f"{stage}/{fp}/{MANIFEST}"), stage, fp)
        return None if manifest is None else Artifact(self.root / stage / fp, manifest)

    def obtain(
        self,
        stage: str,
        code_version: str,
        key: Mapping[str, Any],
        build: Callable[[Path], Report | None],
        *,
        synthetic: bool | Callable[[], bool] = False,
        say: Callable[[str], None] | None = None,
        extra: Mapping[str, Any] | None = None,
        finish: Callable[[], Mapping[str, Any]] | None = None,
    ) -> tuple[Artifact, bool]:
        """Reuse the output for this key, or build and publish it; returns it, held, and whether it was reused.

        Args:
            build: writes files into the folder it is given.
            synthetic: label written into the manifest.
            say: called with a message when another process has to be waited for.
            extra: further manifest fields; `finish` gives those that are known only after the build.
        """
        from filelock import FileLock, Timeout

        fp = fingerprint(stage, code_version, key)
        if (artifact := self.sound(stage, fp)) is not None:
            self.tidy(stage, fp)
            return artifact, True
        parent = self.root / stage
        parent.mkdir(parents=True, exist_ok=True)
        lock_path = self.lock_path(stage, fp)
        # The kernel releases the lock when its owner dies, so taking over needs no guess by pid.
        lock = FileLock(lock_path)
        try:
            lock.acquire(timeout=0.05)
        except Timeout:
            owner = ""
            with contextlib.suppress(FileNotFoundError):  # it has just finished, or not started yet
                owner = lock_path.with_suffix(".owner").read_text()
            if say:
                say(f"{stage}: waiting for {owner or 'another process'}, which is writing the same output")
            lock.acquire()
        try:
            lock_path.with_suffix(".owner").write_text(f"pid {os.getpid()} on {platform.node()}")
            if (artifact := self.sound(stage, fp)) is not None:
                return artifact, True
            artifact = self._build(stage, fp, code_version, key, build, synthetic, say, extra, finish)
            artifact.hold()
            return artifact, False
        finally:
            lock_path.with_suffix(".owner").unlink(missing_ok=True)
            lock.release()

    def held(self, stage: str, fp: str) -> Artifact | None:
        """The published output, held, or None if there is none."""
        artifact = self.open(stage, fp)
        return artifact if artifact is not None and artifact.hold() else None

    def sound(self, stage: str, fp: str) -> Artifact | None:
        """The output, held, if every byte of it is as published; a damaged one counts as absent."""
        artifact = self.held(stage, fp)
        if artifact is None:
            return None
        try:
            artifact.verified_folder()
        except StoreError:
            return None
        return artifact

    def _build(
        self,
        stage: str,
        fp: str,
        code_version: str,
        key: Mapping[str, Any],
        build: Callable[[Path], Report | None],
        synthetic: bool | Callable[[], bool],
        say: Callable[[str], None] | None,
        extra: Mapping[str, Any] | None,
        finish: Callable[[], Mapping[str, Any]] | None,
    ) -> Artifact:
        final = self.root / stage / fp
        for leftover in self._temporary(stage, fp):
            shutil.rmtree(leftover, ignore_errors=True)
        tmp = final.parent / f".tmp-{fp}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        tmp.mkdir()
        try:
            with self._working_on(stage, fp, say):
                started = time.monotonic()
                with PeakMemory() as memory:
                    report = build(tmp)
            names = sorted(p.relative_to(tmp).as_posix() for p in tmp.rglob("*") if p.is_file())
            manifest = {
                "stage": stage,
                "fingerprint": fp,
                "code_version": code_version,
                "key": dict(key),
                "synthetic": synthetic() if callable(synthetic) else synthetic,
                "files": {name: _describe(tmp / name) for name in names},
                "metrics": dict(report.metrics) if report else {},
                "markdown": dict(report.markdown) if report else {},
                "checks": [vars(check) for check in report.checks] if report else [],
                "seconds": round(time.monotonic() - started, 3),
                "peak_memory_bytes": memory.peak,
                "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
                "versions": versions(),
                **(extra or {}),
                **(finish() if finish else {}),
            }
            artifact = self._publish(tmp, final, manifest, say)
            self._drop_resume(stage, fp)
        except BaseException:
            shutil.rmtree(tmp, ignore_errors=True)
            raise
        return artifact

    def _working_on(
        self, stage: str, fp: str, say: Callable[[str], None] | None
    ) -> contextlib.AbstractContextManager[None, None]:
        """What surrounds the build of an output."""
        return contextlib.nullcontext()

    def _publish(self, tmp: Path, final: Path, manifest: dict[str, Any], say: Callable[[str], None] | None) -> Artifact:
        """Rename `tmp` into place and write the manifest last; each step is on disk before the next."""
        for name in manifest["files"]:
            fsync(tmp / name)
        for folder in {(tmp / name).parent for name in manifest["files"]} | {tmp}:
            fsync(folder)
        move_into_place(tmp, final)
        fsync(final.parent)
        try:
            write_atomically(final / MANIFEST, sealed_text(manifest))
        except OSError:  # a full disk: without its manifest the output is useless
            shutil.rmtree(final, ignore_errors=True)
            raise
        return Artifact(final, manifest)

    def _drop_resume(self, stage: str, fp: str) -> None:
        """Delete the unfinished work on an output that is published now; whatever fails, the output is there."""
        shutil.rmtree(self.resume_folder(stage, fp), ignore_errors=True)

    def tidy(self, stage: str, fp: str) -> None:
        """Delete what is left beside an output if its writer crashed just after publishing it."""
        owner = self.lock_path(stage, fp).with_suffix(".owner")
        unfinished = self.resume_folder(stage, fp)
        if not (owner.exists() or unfinished.exists() or self._temporary(stage, fp)):
            return
        with self.owned(stage, fp) as is_owned:
            if is_owned:
                self._discard(unfinished, fp)
                owner.unlink(missing_ok=True)

    def _temporary(self, stage: str, fp: str) -> list[Path]:
        """Temporary folders of an output; once its lock is held, their writers are dead."""
        return list((self.root / stage).glob(f".tmp-{fp}-*"))

    def resume_folder(self, stage: str, fp: str) -> Path:
        """Folder for unfinished work on an output, deleted when it is published; not created here."""
        return self.root / stage / f".resume-{fp}"

    def lock_path(self, stage: str, fp: str) -> Path:
        """Lock file of the process that writes an output; not created here."""
        return self.root / stage / f".{fp}.lock"

    @contextmanager
    def owned(self, stage: str, fp: str) -> Iterator[bool]:
        """Hold the lock of an output's writer inside the block; gives False, at once, if another process has it.

        While it is held, any temporary folder of the output was left by a dead process.
        """
        from filelock import FileLock, Timeout

        lock = FileLock(self.lock_path(stage, fp))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            is_owned = False
        else:
            is_owned = True
        try:
            yield is_owned
        finally:
            lock.release()

    def remove(self, stage: str, fp: str) -> bool:
        """Delete an output that no ref names, and that is not live.

        Returns:
            Whether it is gone; False if a ref or an alias names it, or a process writes or holds it.
        """
        final = self.root / stage / fp
        with self.owned(stage, fp) as is_owned:
            if not is_owned or not self._retract(stage, fp):
                return False
            self._discard(final, fp)
        return True

    def drop_resume_folder(self, stage: str, fp: str) -> bool:
        """Delete unfinished work on an output. Returns whether it is gone; False if a process is working on it."""
        with self.owned(stage, fp) as is_owned:
            if is_owned:
                self._discard(self.resume_folder(stage, fp), fp)
        return is_owned

    def _discard(self, folder: Path, fp: str) -> None:
        """Delete a folder of an output whose lock is held; it is renamed first, so no reader sees it incomplete."""
        aside = folder.with_name(f".tmp-{fp}-aside-{uuid.uuid4().hex[:8]}")
        with contextlib.suppress(FileNotFoundError):
            os.replace(folder, aside)
        for leftover in self._temporary(folder.parent.name, fp):
            shutil.rmtree(leftover)

    def _retract(self, stage: str, fp: str) -> bool:
        """Delete the manifest, so that the output counts as absent, unless it is current or held."""
        path = self.root / stage / fp / MANIFEST
        try:
            descriptor = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            return not self._is_current(stage, fp)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return False
        try:
            # A process holds an output before it makes it current: no new ref to this one can appear now.
            if self._is_current(stage, fp):
                return False
            path.unlink()
            fsync(path.parent)
        finally:
            os.close(descriptor)
        return True

    # -- refs --------------------------------------------------------------------------------

    def set_ref(self, dataset: str, snapshot: str, stage: str, fp: str) -> None:
        """Make `fp` the current output of a stage for a snapshot; the caller holds it."""
        from filelock import FileLock

        path = self.root / ref_name(dataset, snapshot, stage)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir() and not path.is_symlink():  # damage: a file cannot be renamed over it
            shutil.rmtree(path)
        with FileLock(self.root / "refs" / ".lock"):
            for leftover in path.parent.glob(f".{path.name}.*"):  # we hold the lock: its writer is dead
                leftover.unlink(missing_ok=True)
            write_atomically(path, canonical_json({"fingerprint": fp}))

    def ref(self, dataset: str, snapshot: str, stage: str) -> str | None:
        """The current fingerprint, or None."""
        return _named_fingerprint(self._read(ref_name(dataset, snapshot, stage)))

    def _read(self, name: str) -> str | None:
        """The text of a ref or a manifest, by its name below the store; None if there is none, "" for no text."""
        path = self.root / name
        try:
            return path.read_text()
        except (FileNotFoundError, NotADirectoryError):
            return "" if os.path.lexists(path) else None
        except (IsADirectoryError, UnicodeDecodeError):
            return ""

    def current(self, dataset: str, snapshot: str, stage: str) -> Artifact | None:
        """The current output of a stage for a snapshot, or None."""
        fp = self.ref(dataset, snapshot, stage)
        return self.open(stage, fp) if fp else None

    def find(self, dataset: str, snapshot: str, stage: str) -> Artifact | None:
        """Like :meth:`current`, but None only if there never was one.

        Raises:
            StoreError: there is one, but its ref or its manifest is damaged or missing.
        """
        name = ref_name(dataset, snapshot, stage)
        while (text := self._read(name)) is not None:
            fp = _named_fingerprint(text)
            artifact = self.open(stage, fp) if fp else None
            if artifact is not None:
                return artifact
            if text == self._read(name):  # else removed just now: the ref has moved on
                damaged = name if fp is None else f"{stage}/{fp}/{MANIFEST}"
                raise StoreError(
                    f"{dataset}/{stage} of snapshot {snapshot}: {damaged} is damaged",
                    expected="the file as it was published",
                    found="nothing" if self._read(damaged) is None else "other content",
                    fix=f"{_how_to_make(dataset, snapshot, stage)}: the damaged output is set aside and rebuilt",
                )
        return None

    def require(self, dataset: str, snapshot: str, stage: str) -> Artifact:
        """Like :meth:`find`, but held; an absent output is an error that says how to make it."""
        artifact = self.find(dataset, snapshot, stage)
        while artifact is not None and not artifact.hold():  # removed just now: the ref has moved on
            artifact = self.find(dataset, snapshot, stage)
        if artifact is None:
            raise NotMaterialized(
                f"{dataset}/{stage} has no published output for snapshot {snapshot}",
                expected="an output in the store",
                found=f"none below {self.place}",
                fix=f"{_how_to_make(dataset, snapshot, stage, above='+')}   (or select '{dataset}/*' for all)",
            )
        return artifact

    def exists(self, stage: str, fp: str) -> bool:
        """Whether anything is left of an output, sound or not."""
        return os.path.lexists(self.root / stage / fp)

    def lineage(self, artifact: Artifact) -> dict[str, Artifact]:
        """Stage -> output, of an output and of all that it was made from, recursively; of two of a stage the nearer.

        Left out is what is no longer there, and what belongs to earlier snapshots.
        """
        found: dict[str, Artifact] = {}
        waiting = [artifact]
        for output in waiting:
            if output.stage in found:
                continue
            found[output.stage] = output
            inputs = (self.open(*named) for named in output.manifest.get("lineage", {}).items() if "/" not in named[0])
            waiting += [one for one in inputs if one is not None]
        return found

    def refs(self) -> list[tuple[str, str, str]]:
        """All (dataset, snapshot, stage) that have a current output."""
        base = self.root / "refs"
        return sorted((p.parent.parent.name, p.parent.name, p.stem) for p in base.glob("*/*/*.json"))

    def _is_current(self, stage: str, fp: str) -> bool:
        named = any(self.ref(*where) == fp for where in self.refs() if where[2] == stage)
        return named or (stage, fp) in live.kept(self.live_at)


def ref_name(dataset: str, snapshot: str, stage: str) -> str:
    """Name of the ref of a stage for a snapshot, below the store."""
    return f"refs/{dataset}/{snapshot}/{stage}.json"


def _named_fingerprint(ref: str | None) -> str | None:
    """The fingerprint that the text of a ref names; None if it names none."""
    fp = _mapping(ref).get("fingerprint")
    return fp if isinstance(fp, str) and _FINGERPRINT.fullmatch(fp) else None


def _how_to_make(dataset: str, snapshot: str, stage: str, above: str = "") -> str:
    """The command that makes an output; with `above="+"` also all that it is made from, where that is missing too."""
    select = f"'{above}key:\"{dataset}/{stage}\"'"
    return f"run: dagster asset materialize -m sidr_assets --select {select} --partition {snapshot}"


def _mapping(text: str | None) -> dict[str, Any]:
    """The mapping in a JSON text; an empty one if it is missing or contains anything else."""
    try:
        value = json.loads(text or "")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def sealed_text(manifest: Mapping[str, Any]) -> str:
    """A manifest with its own hash, as it is published."""
    sealed = {**manifest, "seal": _seal(json.loads(canonical_json(manifest)))}
    return json.dumps(sealed, indent=1, sort_keys=True, allow_nan=False)


def sealed_manifest(text: str | None, stage: str, fp: str) -> dict[str, Any] | None:
    """The manifest in a text, if it is that of this output, as it was published."""
    manifest = _mapping(text)
    seal = manifest.pop("seal", None)
    try:
        is_sealed = seal == _seal(manifest)
    except ValueError:  # NaN, which we never write
        is_sealed = False
    return manifest if is_sealed and (manifest["stage"], manifest["fingerprint"]) == (stage, fp) else None


def _seal(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(manifest).encode()).hexdigest()


def _describe(path: Path) -> dict[str, Any]:
    entry: dict[str, Any] = {"sha256": sha256_file(path), "bytes": path.stat().st_size}
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        entry["rows"] = pq.read_metadata(path).num_rows
    return entry


def move_into_place(tmp: Path, final: Path) -> None:
    """Rename a folder to `final`, and remove what stands there."""
    if os.path.lexists(final):  # a publication that was cut short, or a damaged output: without a valid manifest
        aside = final.with_name(f".tmp-{final.name}-aside-{uuid.uuid4().hex[:8]}")
        os.replace(final, aside)
        if aside.is_symlink() or not aside.is_dir():
            aside.unlink()
        else:
            shutil.rmtree(aside, ignore_errors=True)
    os.replace(tmp, final)
