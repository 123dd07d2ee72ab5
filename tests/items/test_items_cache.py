"""The cache of vectors: what is found again, crashes, damage, several processes, many segments."""

import hashlib
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidr_core.errors import InputError
from sidr_core.items import cache as cache_module
from sidr_core.items.cache import VectorCache


def digests(*names: object) -> np.ndarray:
    """(n, 32) digests of names."""
    joined = b"".join(hashlib.sha256(str(name).encode()).digest() for name in names)
    return np.frombuffer(joined, dtype=np.uint8).reshape(-1, 32)


def vectors(*values: float) -> np.ndarray:
    return np.array([[value, -value] for value in values], dtype=np.float32)


def opened(folder: Path) -> VectorCache:
    return VectorCache(folder, lambda line: None)


def filled(folder: Path, *values: float) -> None:
    with opened(folder) as cache:
        cache.put(digests(*values), vectors(*values))


def test_finds_what_was_put_and_nothing_else(tmp_path: Path):
    filled(tmp_path, 1.5, 2.5)
    found, got = opened(tmp_path).get(digests(2.5, "other", 1.5, 2.5))
    assert found.tolist() == [True, False, True, True]
    assert got.tolist() == [[2.5, -2.5], [0, 0], [1.5, -1.5], [2.5, -2.5]]
    assert got.dtype == np.float32


def test_an_empty_cache_knows_nothing(tmp_path: Path):
    cache = opened(tmp_path / "new")
    found, got = cache.get(digests(1, 2))
    assert (found.any(), got.shape, len(cache), cache.dimension) == (False, (2, 0), 0, None)


def test_what_is_put_is_found_after_a_flush_in_the_same_process(tmp_path: Path):
    with opened(tmp_path) as cache:
        cache.put(digests(1), vectors(1))
        cache.flush()
        cache.put(digests(2), vectors(2))
        cache.flush()
        assert cache.get(digests(1, 2))[1].tolist() == [[1, -1], [2, -2]]
        assert len(cache) == 2


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(st.integers(0, 60), max_size=12), max_size=8), st.lists(st.integers(0, 60), max_size=20))
def test_behaves_like_a_dict(tmp_path_factory, batches, asked):
    folder = tmp_path_factory.mktemp("cache")
    for batch in batches:
        filled(folder, *batch) if batch else None
    known = {value for batch in batches for value in batch}
    found, got = opened(folder).get(digests(*asked))
    assert found.tolist() == [value in known for value in asked]
    assert [row[0] for row in got.tolist() if len(row)] == [v * (v in known) for v in asked if batches and known]


def test_digests_that_share_their_first_bytes_are_told_apart(tmp_path: Path):
    alike = digests("a", "a", "a").copy()
    alike[:, 31] = [1, 2, 3]
    with opened(tmp_path) as cache:
        cache.put(alike[:2], vectors(1, 2))
    found, got = opened(tmp_path).get(alike)
    assert found.tolist() == [True, True, False]
    assert got[:2].tolist() == vectors(1, 2).tolist()


def test_a_failure_keeps_what_came_before(tmp_path: Path):
    with pytest.raises(RuntimeError), opened(tmp_path) as cache:
        cache.put(digests(1), vectors(1))
        raise RuntimeError
    assert opened(tmp_path).get(digests(1))[0].all()


def test_segments_are_written_when_full_and_when_old(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(cache_module, "SEGMENT_ROWS", 3)
    cache = opened(tmp_path)
    cache.put(digests(1, 2), vectors(1, 2))
    assert not list(tmp_path.glob("*.npy"))
    cache.put(digests(3), vectors(3))
    assert len(list(tmp_path.glob("*.npy"))) == 1
    monkeypatch.setattr(cache_module, "SEGMENT_SECONDS", 0.0)
    cache.put(digests(4), vectors(4))
    assert len(list(tmp_path.glob("*.npy"))) == 2
    assert opened(tmp_path).get(digests(1, 2, 3, 4))[0].all()


def test_a_damaged_segment_is_put_away_and_said(tmp_path: Path):
    filled(tmp_path, 1)
    filled(tmp_path, 2)
    path = next(path for path in tmp_path.glob("*.npy") if digests(1).tobytes() in path.read_bytes())
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    said: list[str] = []
    cache = VectorCache(tmp_path, said.append)
    assert cache.get(digests(1, 2))[0].tolist() == [False, True]
    assert len(said) == 1 and path.name in said[0]
    assert path.with_suffix(".damaged").exists() and not path.exists()
    VectorCache(tmp_path, said.append)
    assert len(said) == 1  # put away once, not told again


def test_another_length_is_refused_and_changes_nothing(tmp_path: Path):
    filled(tmp_path, 1)
    with opened(tmp_path) as cache, pytest.raises(InputError, match="another length"):
        cache.put(digests(2), np.ones((1, 3), dtype=np.float32))
    assert opened(tmp_path).get(digests(1, 2))[0].tolist() == [True, False]


def write_forever(folder: str) -> None:
    cache = opened(Path(folder))
    for start in range(10_000_000):
        cache.put(digests(*range(start * 5, start * 5 + 5)), vectors(*range(start * 5, start * 5 + 5)))
        cache.flush()


def test_a_kill_leaves_whole_segments(tmp_path: Path):
    """Killed at a moment of its own choosing, each kept vector is there and right."""
    context = multiprocessing.get_context("fork")
    for _ in range(5):
        process = context.Process(target=write_forever, args=(str(tmp_path),))
        process.start()
        before = len(list(tmp_path.glob("*.npy")))
        while len(list(tmp_path.glob("*.npy"))) < before + 3:
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)  # type: ignore[arg-type]
        process.join()
    said: list[str] = []
    cache = VectorCache(tmp_path, said.append)
    found, got = cache.get(digests(*range(5 * len(cache))))
    assert not said and len(cache) >= 15
    assert np.array_equal(got[found][:, 0], np.flatnonzero(found).astype(np.float32))
    assert found[:15].all()


def test_two_writers_do_not_disturb_each_other(tmp_path: Path):
    first, second = opened(tmp_path), opened(tmp_path)
    for cache in (first, second):
        cache.put(digests(1), vectors(1))
    second.put(digests(2), vectors(2))
    first.flush()
    second.flush()
    assert opened(tmp_path).get(digests(1, 2))[1].tolist() == [[1, -1], [2, -2]]
