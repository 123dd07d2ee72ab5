"""Copies of resume points in a bucket, so that a training goes on where another machine was when it died.

A resume point is a folder `checkpoint-<step>` with a file `COMPLETE`, written last, which names the files that the
point needs and their sha256; names are relative to the point, and may lead to files beside it that never change. The
newest point is copied while the training goes on, its mark last; older ones are deleted then.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sidr_core.errors import StoreError
from sidr_core.pipeline.bucket import Bucket
from sidr_core.pipeline.store import sha256_file

MARK = "COMPLETE"
_POINT = re.compile(r"checkpoint-([0-9]{1,18})", re.ASCII)
_POLL_SECONDS = 1.0


class ResumeMirror:
    """The copy of one folder of resume points.

    Args:
        prefix: of its objects, with a `/` at the end.
        folder: where the points lie here.
        say: told when a copy fails; the training goes on without it.
    """

    def __init__(self, bucket: Bucket, prefix: str, folder: Path, say: Callable[[str], None] | None) -> None:
        self._bucket, self._prefix, self._folder = bucket, prefix, folder
        self._say = say or (lambda line: None)
        self._copied: str | None = None

    def fetch(self) -> None:
        """Bring the newest point of the bucket here, if it is newer than those that are here."""
        sizes = {one.name.removeprefix(self._prefix): one.bytes for one in self._bucket.list(self._prefix)}
        point = _newest({name.partition("/")[0] for name in sizes if name.endswith(f"/{MARK}")})
        here = _newest(self._whole_points())
        if point is None or (here is not None and _step(here) >= _step(point)):
            return
        mark = (self._bucket.get(f"{self._prefix}{point}/{MARK}") or (b"", None))[0]
        with suppress(ValueError, AttributeError):  # not a mark of ours: the training starts from its beginning
            for name, digest in json.loads(mark).items():
                path = Path(os.path.normpath(self._folder / point / name))
                relative = path.relative_to(self._folder).as_posix()  # a name that leads elsewhere is refused here
                if path.is_file() and sha256_file(path) == digest:
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                self._bucket.download(self._prefix + relative, path, sizes.get(relative, 0))
            (self._folder / point / MARK).write_bytes(mark)  # whoever resumes compares all digests
            self._copied = point
            self._say(f"fetched resume point {point} from {self._bucket.url}")

    @contextmanager
    def following(self) -> Iterator[None]:
        """Copy each new point while the block runs, and the last one if it fails."""
        ended = threading.Event()

        def follow() -> None:
            while not ended.wait(_POLL_SECONDS):
                self.copy()

        thread = threading.Thread(target=follow, name="resume_mirror", daemon=True)
        thread.start()
        try:
            yield
        except Exception:
            ended.set()
            thread.join()
            self.copy()
            raise
        finally:
            ended.set()
            thread.join()

    def copy(self) -> None:
        """Copy the newest point, unless that is done; what fails is told, and tried again with the next point."""
        point = _newest(self._whole_points())
        if point is None or point == self._copied:
            return
        self._copied = point
        aside = self._folder / f".copied-{os.getpid()}"
        try:
            files = self._linked(point, aside)
            there = {one.name: one.bytes for one in self._bucket.list(self._prefix)}
            for name in files:
                path, beside = aside / name, not name.startswith(f"{point}/")
                if not beside or there.get(self._prefix + name) != path.stat().st_size:
                    self._bucket.upload(path, self._prefix + name)
            wanted = {self._prefix + name for name in files}
            self._bucket.delete([name for name in there if name not in wanted])
        except StoreError as error:
            self._say(f"resume point {point} is not in {self._bucket.url}: {error.found}; the training goes on")
        except (OSError, ValueError, AttributeError):  # a newer point has taken its place
            self._copied = None
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def _linked(self, point: str, aside: Path) -> list[str]:
        """Links to the files of a point, which the training may delete meanwhile; their names, the mark last."""
        named = json.loads((self._folder / point / MARK).read_text())
        paths = [Path(os.path.normpath(self._folder / point / name)) for name in (*named, MARK)]
        names = [path.relative_to(self._folder).as_posix() for path in paths]
        for name in names:
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            os.link(self._folder / name, aside / name)
        return names

    def _whole_points(self) -> set[str]:
        return {mark.parent.name for mark in self._folder.glob(f"checkpoint-*/{MARK}")}


def _newest(points: set[str]) -> str | None:
    known = [point for point in points if _POINT.fullmatch(point)]
    return max(known, key=_step, default=None)


def _step(point: str) -> int:
    return int(point.rpartition("-")[2])
