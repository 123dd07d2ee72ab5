"""What can be deleted from a bucket. No lock reaches other machines, so age decides: what is young stays."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from sidr_core.pipeline.bucket import Stat
from sidr_core.pipeline.bucket_store import RESUME, BucketStore
from sidr_core.pipeline.removable import Kind, Removable

#: Name of a folder below an output ("" for all of it), its kind, why it can go, its objects.
_Found = tuple[str, Kind, str, list[Stat]]


def find(store: BucketStore, keep: set[tuple[str, str]], oldest: float, stages: set[str]) -> Iterator[Removable]:
    """Outputs that nobody needs, and what dead or slower writers left beside others; all of it older than `oldest`.

    Args:
        keep: (stage, fingerprint) of what is needed.
        oldest: unix seconds.
        stages: names of the pipeline's stages; other outputs are parts of theirs.
    """
    for (stage, fp), objects in sorted(store.objects_by_output().items()):
        artifact = store.open(stage, fp)
        if artifact is not None and (stage, fp) not in keep:
            kind: Kind = "output" if stage in stages else "part"
            found: list[_Found] = [("", kind, "no snapshot refers to it", objects)]
        else:
            found = _beside(store.writer_of(artifact), objects)
        for name, kind, why, left in found:
            if max(one.written for one in left) <= oldest:
                path = store.root / stage / fp / name
                yield Removable(kind, path, sum(one.bytes for one in left), why, stage, fp, in_bucket=True)


def _beside(writer: str | None, objects: list[Stat]) -> list[_Found]:
    """Folders below an output other than that of the writer whose files count."""
    folders: dict[str, list[Stat]] = defaultdict(list)
    for one in objects:
        _, _, folder, *rest = one.name.split("/")
        if folder != writer and (rest or writer is None):
            folders[folder].append(one)
    why = "no manifest names it" if writer is None else "another writer was first, or its output is published"
    return [(name, "unfinished" if name == RESUME else "temporary", why, left) for name, left in folders.items()]


def drop(store: BucketStore, removable: Removable) -> bool:
    """Delete it. Returns whether it is gone; False if it has come to be needed since it was found."""
    where = f"{removable.stage}/{removable.fingerprint}/"
    if removable.path.name == removable.fingerprint:
        return store.remove(removable.stage, removable.fingerprint)
    if removable.path.name == store.writer_of(store.open(removable.stage, removable.fingerprint)):
        return False
    below = [one.name for one in store.bucket.list(where)]
    mine = where + removable.path.name
    store.bucket.delete([name for name in below if name == mine or name.startswith(f"{mine}/")])
    return True
