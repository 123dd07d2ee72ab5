"""The one place where outputs are published and read.

`<root>/<stage>/<fingerprint>/` holds the files of one output and, written last, `MANIFEST.json`.
`<root>/refs/<dataset>/<snapshot>/<stage>.json` says which fingerprint is current. A reader opens
through the manifest only, so a `kill -9` at any moment leaves the old output or the new one, whole.
Deleting goes the other way round: the manifest first. A reader that is to be safe from it holds the output.
Why our own: measured under `kill -9`, stock IO managers leave torn or empty outputs
(docs/architecture.md).
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
from sidr_core.pipeline.host import PeakMemory, versions

if TYPE_CHECKING:
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
            hashed: gives the sha256 of a file; one that remembers it does not see a byte that rots on the disk.

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

    def verified_folder(self) -> Path:
        """The folder, once every file in it is checked and no foreign file lies there."""
        for name in self.files:
            self.path(name)
        # A link to a folder is no file, but what is opened by its name would be.
        there = (p for p in self.folder.rglob("*") if p.is_file() or p.is_symlink())
        present = {p.relative_to(self.folder).as_posix() for p in there}
        if foreign := present - set(self.files) - {MANIFEST}:
            raise self._damaged(sorted(foreign)[0], "only files of the manifest", "a foreign file")
        return self.folder

    def hold(self) -> bool:
        """Keep :meth:`Store.remove` away as long as this object lives; False where the output is gone already."""
        path = self.folder / MANIFEST
        if not self._held:
            try:
                descriptor = os.open(path, os.O_RDONLY)
                weakref.finalize(self, os.close, descriptor)
                with contextlib.suppress(OSError):  # no such locks on this file system: then nothing is removed either
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
    """Publishes and finds outputs below `root` (a local or shared folder)."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root).absolute()

    # -- outputs -----------------------------------------------------------------------------

    def open(self, stage: str, fp: str) -> Artifact | None:
        """The published output, or None. An unreadable or foreign manifest counts as none."""
        folder = self.root / stage / fp
        manifest = _read_json(folder / MANIFEST)
        seal = manifest.pop("seal", None)
        try:
            whole = seal == _seal(manifest)
        except ValueError:  # NaN, which we never write
            whole = False
        if not whole or (manifest["stage"], manifest["fingerprint"]) != (stage, fp):
            return None
        return Artifact(folder, manifest)

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
        """Reuse the output for this key, or build and publish it. Returns it, held, and whether it was reused.

        Args:
            build: writes files into the folder it is given.
            synthetic: label carried into the manifest.
            say: told when the caller has to wait for another process.
            extra: further manifest fields; `finish` adds those known only after the build.
        """
        from filelock import FileLock, Timeout

        fp = fingerprint(stage, code_version, key)
        if (found := self.sound(stage, fp)) is not None:
            self.tidy(stage, fp)
            return found, True
        parent = self.root / stage
        parent.mkdir(parents=True, exist_ok=True)
        lock_path = self.lock_path(stage, fp)
        # flock is released by the kernel when its owner dies: taking over needs no guessing by pid.
        lock = FileLock(lock_path)
        try:
            lock.acquire(timeout=0.05)
        except Timeout:
            who = ""
            with contextlib.suppress(FileNotFoundError):  # it has just finished, or not yet begun
                who = lock_path.with_suffix(".owner").read_text()
            if say:
                say(f"{stage}: waiting for {who or 'another process'}, which is writing the same output")
            lock.acquire()
        try:
            lock_path.with_suffix(".owner").write_text(f"pid {os.getpid()} on {platform.node()}")
            if (found := self.sound(stage, fp)) is not None:
                return found, True
            made = self._build(stage, fp, code_version, key, build, synthetic, extra, finish)
            made.hold()
            return made, False
        finally:
            lock_path.with_suffix(".owner").unlink(missing_ok=True)
            lock.release()

    def sound(self, stage: str, fp: str) -> Artifact | None:
        """The output, held, if every byte of it is as published; a damaged one is treated as absent."""
        artifact = self.open(stage, fp)
        if artifact is None or not artifact.hold():
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
        extra: Mapping[str, Any] | None,
        finish: Callable[[], Mapping[str, Any]] | None,
    ) -> Artifact:
        final = self.root / stage / fp
        for litter in self._temporary(stage, fp):
            shutil.rmtree(litter, ignore_errors=True)
        tmp = final.parent / f".tmp-{fp}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        tmp.mkdir()
        started = time.monotonic()
        try:
            with PeakMemory() as memory:
                report = build(tmp)
            manifest = {
                "stage": stage,
                "fingerprint": fp,
                "code_version": code_version,
                "key": dict(key),
                "synthetic": synthetic() if callable(synthetic) else synthetic,
                "files": {name: _describe(tmp / name) for name in _list_files(tmp)},
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
            _publish(tmp, final, manifest)
            shutil.rmtree(self.resume_folder(stage, fp), ignore_errors=True)
        except BaseException:
            shutil.rmtree(tmp, ignore_errors=True)
            raise
        return Artifact(final, manifest)

    def tidy(self, stage: str, fp: str) -> None:
        """Delete what a crash between the publication of an output and the end of its writer left beside it."""
        owner = self.lock_path(stage, fp).with_suffix(".owner")
        unfinished = self.resume_folder(stage, fp)
        if not (owner.exists() or unfinished.exists() or self._temporary(stage, fp)):
            return
        with self.owned(stage, fp) as mine:
            if mine:
                self._discard(unfinished, fp)
                owner.unlink(missing_ok=True)

    def _temporary(self, stage: str, fp: str) -> list[Path]:
        """Temporary folders of an output; who owns it knows that their writers are dead."""
        return list((self.root / stage).glob(f".tmp-{fp}-*"))

    def resume_folder(self, stage: str, fp: str) -> Path:
        """Where unfinished work on an output lies until it is published; not created here."""
        return self.root / stage / f".resume-{fp}"

    def lock_path(self, stage: str, fp: str) -> Path:
        """The lock of who writes an output; not created here."""
        return self.root / stage / f".{fp}.lock"

    @contextmanager
    def owned(self, stage: str, fp: str) -> Iterator[bool]:
        """Own the right to write an output inside the block; False, at once, where another process has it.

        While it is owned, whatever temporary folders of the output there are belong to the dead.
        """
        from filelock import FileLock, Timeout

        lock = FileLock(self.lock_path(stage, fp))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            mine = False
        else:
            mine = True
        try:
            yield mine
        finally:
            lock.release()

    def remove(self, stage: str, fp: str) -> bool:
        """Delete an output that no ref names.

        Returns:
            Whether it is gone; False where a ref names it, or a process writes or holds it.
        """
        final = self.root / stage / fp
        with self.owned(stage, fp) as mine:
            if not mine or not self._retract(stage, fp):
                return False
            self._discard(final, fp)
        return True

    def drop_resume_folder(self, stage: str, fp: str) -> bool:
        """Delete unfinished work on an output. Returns whether it is gone; False where a process is at it."""
        with self.owned(stage, fp) as mine:
            if mine:
                self._discard(self.resume_folder(stage, fp), fp)
        return mine

    def _discard(self, folder: Path, fp: str) -> None:
        """Delete a folder of an output that is owned; it is out of sight before it is incomplete."""
        aside = folder.with_name(f".tmp-{fp}-aside-{uuid.uuid4().hex[:8]}")
        with contextlib.suppress(FileNotFoundError):
            os.replace(folder, aside)
        for litter in self._temporary(folder.parent.name, fp):
            shutil.rmtree(litter)

    def _retract(self, stage: str, fp: str) -> bool:
        """Delete the manifest, unless the output is current or held: from then on it counts as none."""
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
            # Whoever makes an output current holds it before: no ref to it can come up from here on.
            if self._is_current(stage, fp):
                return False
            path.unlink()
            _fsync(path.parent)
        finally:
            os.close(descriptor)
        return True

    # -- refs --------------------------------------------------------------------------------

    def set_ref(self, dataset: str, snapshot: str, stage: str, fp: str) -> None:
        """Make `fp` the current output of a stage for a snapshot; who calls holds it."""
        from filelock import FileLock

        path = self._ref_path(dataset, snapshot, stage)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir() and not path.is_symlink():  # damage: a file cannot be moved over it
            shutil.rmtree(path)
        with FileLock(self.root / "refs" / ".lock"):
            for litter in path.parent.glob(f".{path.name}.*"):  # we hold the lock: its writer is dead
                litter.unlink(missing_ok=True)
            _write_atomically(path, canonical_json({"fingerprint": fp}))

    def ref(self, dataset: str, snapshot: str, stage: str) -> str | None:
        """The current fingerprint, or None."""
        fp = _read_json(self._ref_path(dataset, snapshot, stage)).get("fingerprint")
        return fp if isinstance(fp, str) and _FINGERPRINT.fullmatch(fp) else None

    def _ref_path(self, dataset: str, snapshot: str, stage: str) -> Path:
        return self.root / "refs" / dataset / snapshot / f"{stage}.json"

    def current(self, dataset: str, snapshot: str, stage: str) -> Artifact | None:
        """The current output of a stage for a snapshot, or None."""
        fp = self.ref(dataset, snapshot, stage)
        return self.open(stage, fp) if fp else None

    def find(self, dataset: str, snapshot: str, stage: str) -> Artifact | None:
        """Like :meth:`current`, but None only where there never was one: what is damaged is not absent.

        Raises:
            StoreError: there is one, and its ref or its manifest is damaged or missing.
        """
        path = self._ref_path(dataset, snapshot, stage)
        while os.path.lexists(path):
            fp = self.ref(dataset, snapshot, stage)
            artifact = self.open(stage, fp) if fp else None
            if artifact is not None:
                return artifact
            if fp == self.ref(dataset, snapshot, stage):  # else removed just now: the ref has moved on
                damaged = path if fp is None else self.root / stage / fp / MANIFEST
                raise StoreError(
                    f"{dataset}/{stage} of snapshot {snapshot}: {damaged.relative_to(self.root)} is damaged",
                    expected="the file as it was published",
                    found="other content" if os.path.lexists(damaged) else "nothing",
                    fix=f"{_how_to_make(dataset, snapshot, stage)}: what is damaged is set aside and rebuilt",
                )
        return None

    def require(self, dataset: str, snapshot: str, stage: str) -> Artifact:
        """Like :meth:`find`, but held, and an absent output is an error that says how to make it."""
        artifact = self.find(dataset, snapshot, stage)
        while artifact is not None and not artifact.hold():  # removed just now: the ref has moved on
            artifact = self.find(dataset, snapshot, stage)
        if artifact is None:
            raise NotMaterialized(
                f"{dataset}/{stage} has no published output for snapshot {snapshot}",
                expected="an output in the store",
                found=f"none below {self.root}",
                fix=f"{_how_to_make(dataset, snapshot, stage)}   (or select '{dataset}/*' for all)",
            )
        return artifact

    def refs(self) -> list[tuple[str, str, str]]:
        """All (dataset, snapshot, stage) that have a current output."""
        base = self.root / "refs"
        return sorted((p.parent.parent.name, p.parent.name, p.stem) for p in base.glob("*/*/*.json"))

    def _is_current(self, stage: str, fp: str) -> bool:
        return any(self.ref(*where) == fp for where in self.refs() if where[2] == stage)


def _how_to_make(dataset: str, snapshot: str, stage: str) -> str:
    select = f"'key:\"{dataset}/{stage}\"'"
    return f"run: dagster asset materialize -m sidr_assets --select {select} --partition {snapshot}"


def _read_json(path: Path) -> dict[str, Any]:
    """The mapping in a file; an empty one where there is no such file or anything else in it."""
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _seal(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(manifest).encode()).hexdigest()


def _list_files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def _describe(path: Path) -> dict[str, Any]:
    entry: dict[str, Any] = {"sha256": sha256_file(path), "bytes": path.stat().st_size}
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        entry["rows"] = pq.read_metadata(path).num_rows
    return entry


def _publish(tmp: Path, final: Path, manifest: dict[str, Any]) -> None:
    """Move `tmp` into place and write the manifest last, each step durable before the next."""
    for name in manifest["files"]:
        _fsync(tmp / name)
    _fsync(tmp)
    if os.path.lexists(final):  # a publish that was cut short, or a damaged output: it has no valid manifest
        aside = final.with_name(f".tmp-{final.name}-aside-{uuid.uuid4().hex[:8]}")
        os.replace(final, aside)
        if aside.is_symlink() or not aside.is_dir():
            aside.unlink()
        else:
            shutil.rmtree(aside, ignore_errors=True)
    os.replace(tmp, final)
    _fsync(final.parent)
    sealed = {**manifest, "seal": _seal(json.loads(canonical_json(manifest)))}
    try:
        _write_atomically(final / MANIFEST, json.dumps(sealed, indent=1, sort_keys=True, allow_nan=False))
    except OSError:  # a full disk: without its manifest it is only in the way
        shutil.rmtree(final, ignore_errors=True)
        raise


def _write_atomically(path: Path, text: str) -> None:
    tmp = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}")
    try:
        with tmp.open("w") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)
    _fsync(path.parent)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
