"""The store: reuse, atomic publish, damage, locks, refs."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import polars as pl
import pytest

from sidr_core.errors import NotMaterialized, StoreError
from sidr_core.pipeline.report import Check, Report
from sidr_core.pipeline.store import MANIFEST, Store, canonical_json, fingerprint


def write(text):
    def build(folder):
        (folder / "out.txt").write_text(text)
        return Report(metrics={"n": 1}, checks=(Check("ok", True),))

    return build


def refuse(folder):
    raise AssertionError("built again")


def test_fingerprint_depends_on_everything_that_determines_the_output():
    base = fingerprint("stage", "1", {"a": 1, "b": 2})
    assert base == fingerprint("stage", "1", {"b": 2, "a": 1})
    assert len({base, fingerprint("other", "1", {"a": 1, "b": 2}), fingerprint("stage", "2", {"a": 1, "b": 2})}) == 3
    assert fingerprint("stage", "1", {"a": 1, "b": 3}) != base


def test_nan_in_a_key_is_refused():
    with pytest.raises(ValueError):
        canonical_json({"x": float("nan")})


def test_second_request_reuses(tmp_path):
    store = Store(tmp_path)
    first, reused_first = store.obtain("s", "1", {"a": 1}, write("x"))
    second, reused_second = store.obtain("s", "1", {"a": 1}, refuse)
    assert (reused_first, reused_second) == (False, True)
    assert first.digest == second.digest
    assert second.path("out.txt").read_text() == "x"


def test_equal_bytes_have_equal_digests_under_another_code_version(tmp_path):
    store = Store(tmp_path)
    one, _ = store.obtain("s", "1", {}, write("x"))
    two, _ = store.obtain("s", "2", {}, write("x"))
    three, _ = store.obtain("s", "3", {}, write("y"))
    assert one.fingerprint != two.fingerprint
    assert one.digest == two.digest != three.digest


def test_manifest_counts_rows_bytes_and_versions(tmp_path):
    store = Store(tmp_path)

    def build(folder):
        pl.DataFrame({"a": [1, 2, 3]}).write_parquet(folder / "t.parquet")

    made, _ = store.obtain("s", "1", {"k": 2}, build, synthetic=True)
    entry = made.manifest["files"]["t.parquet"]
    assert entry["rows"] == 3
    assert entry["bytes"] == made.path("t.parquet").stat().st_size
    assert made.manifest["peak_memory_bytes"] > 0
    assert made.manifest["versions"]["duckdb"]
    assert made.synthetic


def test_failed_build_publishes_nothing_and_leaves_no_litter(tmp_path):
    store = Store(tmp_path)

    def build(folder):
        (folder / "half").write_text("x")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        store.obtain("s", "1", {}, build)
    assert store.open("s", fingerprint("s", "1", {})) is None
    assert not list((tmp_path / "s").glob(".tmp-*"))


@pytest.mark.parametrize("damage", ["flip", "remove", "truncate", "foreign", "manifest", "symlink"])
def test_damage_is_noticed_and_rebuilt(tmp_path, damage):
    store = Store(tmp_path)
    made, _ = store.obtain("s", "1", {}, write("hello"))
    file = made.folder / "out.txt"
    if damage == "flip":
        file.write_text("jello")
    elif damage == "remove":
        file.unlink()
    elif damage == "truncate":
        file.write_text("")
    elif damage == "foreign":
        (made.folder / "extra").write_text("x")
    elif damage == "symlink":
        (tmp_path / "elsewhere").write_text("hello")
        file.unlink()
        file.symlink_to(tmp_path / "elsewhere")
    else:
        manifest = json.loads((made.folder / MANIFEST).read_text())
        manifest["metrics"]["n"] = 2
        (made.folder / MANIFEST).write_text(json.dumps(manifest))
    found = store.open("s", made.fingerprint)
    if damage == "manifest":
        assert found is None
    else:
        with pytest.raises(StoreError, match=r"out.txt|extra"):
            found.verified_folder()
    rebuilt, reused = store.obtain("s", "1", {}, write("hello"))
    assert not reused
    assert rebuilt.path("out.txt").read_text() == "hello"
    assert store.obtain("s", "1", {}, refuse)[1]


def test_reading_an_undeclared_name_is_an_error(tmp_path):
    made, _ = Store(tmp_path).obtain("s", "1", {}, write("x"))
    with pytest.raises(StoreError, match="no such file"):
        made.path("../../etc/passwd")


def test_refs(tmp_path):
    store = Store(tmp_path)
    made, _ = store.obtain("s", "1", {}, write("x"))
    with pytest.raises(NotMaterialized, match="games/s"):
        store.require("games", "2018-10", "s")
    store.set_ref("games", "2018-10", "s", made.fingerprint)
    assert store.require("games", "2018-10", "s").fingerprint == made.fingerprint
    assert store.refs() == [("games", "2018-10", "s")]


WRITER = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path
    from sidr_core.pipeline.store import Store
    def build(folder):
        for i in range(40):
            (folder / f"{i}.txt").write_text("x" * 10000)
            time.sleep(float(sys.argv[2]))
        print("built", flush=True)
    made, reused = Store(Path(sys.argv[1])).obtain("s", "1", {}, build)
    print("reused" if reused else "published", flush=True)
    """
)


def start(tmp_path, pause):
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path), str(pause)], stdout=subprocess.PIPE, text=True
    )


def test_two_writers_publish_once(tmp_path):
    writers = [start(tmp_path, 0.01) for _ in range(3)]
    outputs = [writer.communicate(timeout=60)[0] for writer in writers]
    assert sorted(output.split()[-1] for output in outputs) == ["published", "reused", "reused"]


def test_kill_at_random_moments_leaves_nothing_torn(tmp_path):
    """Killed 8 times over build and publish: a reader sees nothing or the whole; the next run completes."""
    store = Store(tmp_path)
    fp = fingerprint("s", "1", {})
    for round_ in range(8):
        writer = start(tmp_path, 0.005)
        time.sleep(0.2 + 0.06 * round_)
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        found = store.open("s", fp)
        if found is not None:
            found.verified_folder()
            break
    assert start(tmp_path, 0).communicate(timeout=60)[0].split()[-1] in ("published", "reused")
    assert len(store.open("s", fp).verified_folder().joinpath("39.txt").read_text()) == 10000
    assert not list((tmp_path / "s").glob(".tmp-*"))
