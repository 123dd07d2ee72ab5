"""A store in a bucket: one winner, nothing half published, files fetched when opened, refs by compare-and-swap."""

import json
import os
import subprocess
import sys
import threading
import time
from datetime import timedelta

import polars as pl
import pytest

pytest.importorskip("obstore", reason="the extra `bucket` is not installed: pip install -c constraints.txt obstore")

from builders.s3_server import KEY, SECRET, S3Server
from sidr_core.errors import StoreError
from sidr_core.pipeline import bucket as bucket_module
from sidr_core.pipeline import catalog, live, resume_mirror
from sidr_core.pipeline import gc as garbage
from sidr_core.pipeline.bucket import Bucket
from sidr_core.pipeline.bucket_store import BucketStore
from sidr_core.pipeline.live import Live
from sidr_core.pipeline.place import open_store
from sidr_core.pipeline.report import Report
from sidr_core.pipeline.resume_mirror import MARK
from sidr_core.pipeline.store import MANIFEST, fingerprint, sealed_text, sha256_file

URL = "s3://shared/team/a"
FINGERPRINT = fingerprint("s", "1", {})


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(bucket_module, "RETRY", {"max_retries": 0, "retry_timeout": timedelta(seconds=1)})
    with S3Server() as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        yield running


@pytest.fixture
def host(server, tmp_path):
    """Opens the store as a machine of that name: with a working folder of its own."""
    return lambda name, url=URL: BucketStore(tmp_path / name, Bucket.at(url))


def write(text):
    def build(folder):
        (folder / "out.txt").write_text(text)
        (folder / "empty.txt").write_text("")
        return Report(metrics={"n": 1})

    return build


def refuse(folder):
    raise AssertionError("built again")


def names(server):
    """Names below the store, without digests: stage/MANIFEST.json, stage/out.txt, refs/…"""
    found = [name.removeprefix("team/a/").split("/") for name in server.objects]
    return sorted("/".join(parts) if parts[0] == "refs" else f"{parts[0]}/{parts[-1]}" for parts in found)


def age(server, days):
    server.objects = {name: (body, when - days * 86_400) for name, (body, when) in server.objects.items()}


# -- publish and read ------------------------------------------------------------------------


@pytest.mark.cluster("T2")
def test_another_host_reads_what_one_published(server, host):
    made, reused = host("a").obtain("s", "1", {"k": 1}, write("text"))
    again, reused_there = host("b").obtain("s", "1", {"k": 1}, refuse)
    assert (reused, reused_there) == (False, True)
    assert again.digest == made.digest
    assert again.path("out.txt").read_text() == "text"
    assert again.verified_folder().name == made.fingerprint
    assert names(server) == ["s/MANIFEST.json", "s/empty.txt", "s/out.txt"]


def test_the_same_key_has_the_same_fingerprint_as_in_a_folder(host, tmp_path):
    from sidr_core.pipeline.store import Store

    local, _ = Store(tmp_path / "store").obtain("s", "1", {"k": 1}, write("text"))
    shared, _ = host("a").obtain("s", "1", {"k": 1}, write("text"))
    assert (local.fingerprint, local.digest) == (shared.fingerprint, shared.digest)


def test_reuse_fetches_no_file_and_opening_fetches_each_once(server, host):
    host("a").obtain("s", "1", {}, write("x" * 5000))
    store = host("b")
    server.sent = 0
    found, _ = store.obtain("s", "1", {}, refuse)
    assert server.sent < 5000
    found.path("out.txt")
    after = server.sent
    assert after > 5000
    host("b").obtain("s", "1", {}, refuse)[0].path("out.txt")
    assert server.sent - after < 5000


def test_equal_bytes_of_another_output_are_not_fetched_again(server, host):
    host("a").obtain("s", "1", {}, write("x" * 5000))
    host("a").obtain("s", "2", {}, write("x" * 5000))
    store = host("b")
    store.obtain("s", "1", {}, refuse)[0].verified_folder()
    server.sent = 0
    store.obtain("s", "2", {}, refuse)[0].verified_folder()
    assert server.sent < 5000


def test_a_large_file_goes_and_comes_in_parts(server, host, monkeypatch):
    monkeypatch.setattr(bucket_module, "PART_BYTES", 5 * 2**20)
    content = os.urandom(2**20) * 12

    def build(folder):
        (folder / "big").write_bytes(content)

    host("a").obtain("s", "1", {}, build)
    server.requests.clear()
    assert host("b").obtain("s", "1", {}, refuse)[0].path("big").read_bytes() == content
    assert server.requests["GET"] == 2 + 3  # manifest, listing, parts


@pytest.mark.cluster("T1")
def test_two_hosts_race_and_one_wins(server, host):
    """Ten races, in `make cluster` a hundred; each ends with one output, one manifest, and no file of the loser."""
    races = int(os.environ.get("SIDR_RACES", "10"))
    for number in range(races):
        barrier = threading.Barrier(2)
        results = {}

        def run(name, number=number, barrier=barrier, results=results):
            def build(folder):
                write(f"text {number}")(folder)
                barrier.wait(20)

            results[name] = host(name).obtain("s", "1", {"k": number}, build)[0]

        threads = [threading.Thread(target=run, args=(name,)) for name in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        a, b = results["a"], results["b"]
        assert a.manifest == b.manifest
        assert a.path("out.txt").read_text() == b.path("out.txt").read_text() == f"text {number}"
    assert names(server) == sorted(["s/MANIFEST.json", "s/empty.txt", "s/out.txt"] * races)


@pytest.mark.cluster("T1")
def test_other_bytes_for_the_same_key_are_told_and_the_first_counts(server, host):
    said = []

    def slow(folder):
        host("b").obtain("s", "1", {}, write("first"))
        write("second")(folder)

    artifact, _ = host("a").obtain("s", "1", {}, slow, say=said.append)
    assert artifact.path("out.txt").read_text() == "first"
    assert len(said) == 1 and "other bytes for the same inputs" in said[0]
    assert names(server) == ["s/MANIFEST.json", "s/empty.txt", "s/out.txt"]


# -- refs ------------------------------------------------------------------------------------


@pytest.mark.cluster("T2")
def test_refs_are_seen_by_all_hosts(host):
    store = host("a")
    made, _ = store.obtain("s", "1", {}, write("x"))
    store.set_ref("toys", "2020-01", "s", made.fingerprint)
    there = host("b")
    assert there.refs() == [("toys", "2020-01", "s")]
    assert there.require("toys", "2020-01", "s").digest == made.digest
    assert there.current("toys", "2020-02", "s") is None


@pytest.mark.cluster("T1")
def test_a_ref_that_another_host_moved_is_read_again_before_it_is_written(server, host):
    store = host("a")
    fps = [store.obtain("s", "1", {"k": n}, write(f"{n}"))[0].fingerprint for n in range(3)]
    store.set_ref("toys", "2020-01", "s", fps[0])
    moved = []

    def move(method, name):
        if method == "PUT" and "refs/" in name and not moved:  # just before the write of a arrives
            body = json.dumps({"fingerprint": fps[1]}, separators=(",", ":")).encode()
            moved.append(server.objects.__setitem__(name, (body, time.time())))
        return False

    server.breaks = move
    server.requests.clear()
    store.set_ref("toys", "2020-01", "s", fps[2])
    assert server.requests["PUT"] == 2  # the first was refused: the ref had another version
    assert host("b").ref("toys", "2020-01", "s") == fps[2]


@pytest.mark.cluster("T1")
def test_what_one_host_promotes_is_live_on_all_and_one_of_two_decides(server, host, monkeypatch):
    store, there = host("a"), host("b")
    fps = [store.obtain("s", "1", {"k": n}, write(f"{n}"))[0].fingerprint for n in range(3)]
    sides = [Live("toys", "2020-01", f"grpo/{n}", {"evaluation": "e", "s": fp}) for n, fp in enumerate(fps)]
    live.decide(there.live_at, "toys", {"decision": "rejected"}, None)
    live.decide(store.live_at, "toys", {"decision": "promoted"}, None, (sides[0], None))
    assert live.read(there.live_at, "toys").live == sides[0]

    def other_first(name, content, version):
        live.decide(there.live_at, "toys", {"decision": "promoted"}, sides[0], (sides[1], sides[0]))
        return Bucket.swap(store.bucket, name, content, version)

    monkeypatch.setattr(store.bucket, "swap", other_first)
    with pytest.raises(StoreError, match="what is live changed meanwhile"):
        live.decide(store.live_at, "toys", {"decision": "promoted"}, sides[0], (sides[2], sides[0]))
    state = live.read(store.live_at, "toys")
    assert (state.live, state.before) == (sides[1], sides[0])
    decisions = [(entry["number"], entry["decision"]) for entry in live.entries(store.live_at, "toys")]
    assert decisions == [(1, "rejected"), (2, "promoted"), (3, "promoted")]
    age(server, 30)
    collect(store)
    assert [there.open("s", fp) is not None for fp in fps] == [True, True, False]


def test_an_output_that_is_deleted_while_it_becomes_current_is_told(host):
    store = host("a")
    made, _ = store.obtain("s", "1", {}, write("x"))
    assert host("b").remove("s", made.fingerprint)
    with pytest.raises(StoreError, match="was deleted while it became current"):
        store.set_ref("toys", "2020-01", "s", made.fingerprint)


# -- faults ----------------------------------------------------------------------------------


def test_wrong_credentials_are_one_error_without_the_key(server, host, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA-OF-NOBODY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another-secret")
    with pytest.raises(StoreError) as caught:
        host("a").obtain("s", "1", {}, refuse)
    text = str(caught.value)
    assert "credentials" in text and "403" in text and "InvalidAccessKeyId" in text
    assert not any(secret in text for secret in ("AKIA-OF-NOBODY", "another-secret", KEY, SECRET))
    assert server.objects == {}


@pytest.mark.cluster("T1")
def test_a_server_that_ignores_conditions_is_refused_before_anything_is_built(server, host):
    server.conditions = False
    with pytest.raises(StoreError, match="cannot hold a store") as caught:
        host("a").obtain("s", "1", {}, refuse)
    assert "ignores `If-None-Match: *`" in caught.value.found
    assert server.objects == {}


@pytest.mark.cluster("T3")
@pytest.mark.parametrize("nth", [1, 2, 3])  # a file, the other, the manifest
def test_a_lost_network_in_an_upload_publishes_nothing(server, host, nth):
    store = host("a")
    store.trust()
    uploads = []

    def lost(method, name):
        uploads.extend([name] if method == "PUT" else [])
        return len(uploads) >= nth

    server.breaks = lost
    with pytest.raises(StoreError, match="could not") as caught:
        store.obtain("s", "1", {}, write("x"))
    assert "nothing half done is ever read" in caught.value.fix
    server.breaks = lambda method, name: False
    assert host("b").sound("s", FINGERPRINT) is None
    assert host("b").obtain("s", "1", {}, write("x"))[1] is False
    age(server, 8)
    collect(host("b"))
    assert [name for name in names(server) if name != "s/MANIFEST.json"] == []


@pytest.mark.cluster("T3")
def test_a_lost_answer_to_the_manifest_is_no_loss(host):
    """The server wrote it, and a second attempt is told that it exists: it is our own."""
    create = Bucket.create

    def twice(self, name, content):
        return create(self, name, content) and not name.endswith(MANIFEST)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bucket, "create", twice)
        made, _ = host("a").obtain("s", "1", {}, write("x"))
    assert made.path("out.txt").read_text() == "x"
    assert host("b").obtain("s", "1", {}, refuse)[0].path("out.txt").read_text() == "x"


CHILD = """
import os, signal, sys
from pathlib import Path
from sidr_core.pipeline import bucket_store
from sidr_core.pipeline.bucket import Bucket

bucket_store.BucketStore._claim = lambda self, ours: os.kill(os.getpid(), signal.SIGKILL)
store = bucket_store.BucketStore(Path(sys.argv[1]), Bucket.at(sys.argv[2]))
store.obtain("s", "1", {}, lambda folder: (folder / "out.txt").write_text("half") and None)
"""


@pytest.mark.cluster("T3")
def test_killed_between_upload_and_manifest_leaves_nothing_to_read(server, host, tmp_path):
    done = subprocess.run([sys.executable, "-c", CHILD, str(tmp_path / "a"), URL], env=dict(os.environ), timeout=60)
    assert done.returncode == -9
    assert names(server) == ["s/out.txt"]
    store = host("a")
    assert store.sound("s", FINGERPRINT) is None
    assert store.obtain("s", "1", {}, write("whole"))[0].path("out.txt").read_text() == "whole"
    made = store.open("s", FINGERPRINT)
    store.set_ref("toys", "2020-01", "s", made.fingerprint)
    assert collect(store) == set()  # young
    age(server, 8)
    assert {kind for kind, _ in collect(store)} == {"temporary"}
    assert names(server) == ["refs/toys/2020-01/s.json", "s/MANIFEST.json", "s/empty.txt", "s/out.txt"]


@pytest.mark.cluster("T7")
def test_a_flipped_byte_in_the_cache_is_fetched_again(host):
    host("a").obtain("s", "1", {}, write("text"))
    path = host("b").obtain("s", "1", {}, refuse)[0].path("out.txt")
    path.write_text("tEXt")
    assert host("b").obtain("s", "1", {}, refuse)[0].path("out.txt").read_text() == "text"


@pytest.mark.cluster("T7")
@pytest.mark.parametrize("harm", ["flip", "cut", "delete"])
def test_damage_in_the_bucket_is_named_and_made_good_by_the_next_run(server, host, harm):
    made, _ = host("a").obtain("s", "1", {}, write("text"))
    (name,) = [name for name in server.objects if name.endswith("out.txt")]
    body, when = server.objects.pop(name)
    if harm != "delete":
        server.objects[name] = (b"tEXt" if harm == "flip" else body[:2], when)
    with pytest.raises(StoreError, match=r"s/.*/out\.txt is damaged"):
        host("b").open("s", made.fingerprint).path("out.txt")
    again, reused = host("c").obtain("s", "1", {}, write("text"))
    assert not reused
    assert host("b").obtain("s", "1", {}, refuse)[0].path("out.txt").read_text() == "text"
    assert again.digest == made.digest


@pytest.mark.cluster("T7")
def test_a_damaged_manifest_is_replaced(server, host):
    host("a").obtain("s", "1", {}, write("text"))
    (name,) = [name for name in server.objects if name.endswith(MANIFEST)]
    server.objects[name] = (server.objects[name][0].replace(b'"n": 1', b'"n": 2'), time.time())
    artifact, reused = host("b").obtain("s", "1", {}, write("text"))
    assert not reused and artifact.manifest["metrics"] == {"n": 1}
    assert host("c").obtain("s", "1", {}, refuse)[1]


# -- resume points ---------------------------------------------------------------------------


def point(store, step, weights):
    """A whole resume point of the only output, as a training writes it; gives its folder."""
    folder = store.resume_folder("s", FINGERPRINT)
    made = folder / f"checkpoint-{step}"
    made.mkdir(parents=True)
    (made / "weights").write_text(weights)
    (folder / "best-1.safetensors").write_text("best")
    digests = {name: sha256_file(made / name) for name in ("weights", "../best-1.safetensors")}
    (made / MARK).write_text(json.dumps(digests))
    return made


def dies(store, server, *points):
    """A training that leaves resume points and dies; each is in the bucket before the next is written."""

    def build(folder):
        for step, weights in points:
            made = point(store, step, weights)
            wait_for(lambda made=made: any(name.endswith(f"{made.name}/{MARK}") for name in server.objects))
        raise RuntimeError("the node is gone")

    with pytest.raises(RuntimeError, match="the node is gone"):
        store.obtain("s", "1", {}, build)


def wait_for(condition):
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.cluster("T4")
def test_another_host_goes_on_from_the_newest_resume_point(server, host, monkeypatch):
    monkeypatch.setattr(resume_mirror, "_POLL_SECONDS", 0.01)
    dies(host("a"), server, (10, "ten"), (20, "twenty"))
    wait_for(lambda: not any("checkpoint-10" in name for name in server.objects))
    there, seen = host("b"), {}

    def build(folder):
        resumed = there.resume_folder("s", FINGERPRINT)
        seen.update({path.name: path.read_text() for path in resumed.rglob("*") if path.is_file()})
        write("done")(folder)

    there.obtain("s", "1", {}, build)
    assert (seen["weights"], seen["best-1.safetensors"]) == ("twenty", "best")
    assert names(server) == ["s/MANIFEST.json", "s/empty.txt", "s/out.txt"]  # they go with the publication


def test_a_point_whose_mark_leads_elsewhere_is_not_fetched(server, host, tmp_path):
    store = host("b")
    store.trust()
    prefix = f"team/a/s/{FINGERPRINT}/resume/checkpoint-7/"
    server.objects[f"{prefix}x"] = (b"evil", time.time())
    server.objects[f"{prefix}{MARK}"] = (json.dumps({"../../../../../x": "0" * 64}).encode(), time.time())
    store.obtain("s", "1", {}, write("done"))
    assert [path for path in tmp_path.rglob("x")] == []


@pytest.mark.cluster("T4")
def test_a_training_goes_on_where_its_points_cannot_be_copied(server, host, monkeypatch):
    monkeypatch.setattr(resume_mirror, "_POLL_SECONDS", 0.01)
    store, said = host("a"), []

    def build(folder):
        server.breaks = lambda method, name: "/resume/" in name and method == "PUT"
        point(store, 10, "ten")
        wait_for(lambda: said)
        write("done")(folder)

    store.obtain("s", "1", {}, build, say=said.append)
    assert "checkpoint-10 is not in s3://shared/team/a" in said[0]
    assert host("b").obtain("s", "1", {}, refuse)[1]


@pytest.mark.parametrize("name", ["../../../escaped", "/tmp/escaped", "a/../../escaped", "a//b"])
def test_a_manifest_whose_names_lead_elsewhere_counts_as_none(server, host, name):
    made, _ = host("a").obtain("s", "1", {}, write("x"))
    manifest = {**made.manifest, "files": {name: made.manifest["files"]["out.txt"]}}
    (key,) = [key for key in server.objects if key.endswith(MANIFEST)]
    server.objects[key] = (sealed_text(manifest).encode(), time.time())
    assert host("b").open("s", made.fingerprint) is None


# -- garbage ---------------------------------------------------------------------------------


def collect(store, days=7.0, **options):
    return {(one.kind, one.stage) for one in garbage.find(store, days, **options) if garbage.drop(store, one)}


def test_garbage_goes_by_age_and_what_is_current_stays(server, host):
    store = host("a")
    part, _ = store.obtain("decoded", "1", {}, write("part"))
    old, _ = store.obtain("evaluation", "1", {"k": 1}, write("old"))
    new, _ = store.obtain("evaluation", "1", {"k": 2}, write("new"), extra={"parts": [("decoded", part.fingerprint)]})
    store.set_ref("toys", "2020-01", "evaluation", new.fingerprint)
    assert collect(store) == set()
    age(server, 8)
    assert collect(host("b")) == {("output", "evaluation")}
    assert store.open("evaluation", old.fingerprint) is None
    assert store.sound("evaluation", new.fingerprint) and store.sound("decoded", part.fingerprint)


def test_a_ref_that_is_set_while_its_output_is_deleted_keeps_it(server, host):
    made, _ = host("a").obtain("s", "1", {}, write("x"))

    def between(method, name):
        if method == "POST" and not any(name.startswith("team/a/refs") for name in server.objects):
            text = json.dumps({"fingerprint": made.fingerprint}, separators=(",", ":")).encode()
            server.objects["team/a/refs/toys/2020-01/s.json"] = (text, time.time())
        return False

    server.breaks = between
    assert host("b").remove("s", made.fingerprint) is False
    assert host("c").require("toys", "2020-01", "s").path("out.txt").read_text() == "x"


# -- the catalog -----------------------------------------------------------------------------


def test_views_have_their_columns_before_any_row_is_fetched(server, host):
    store = host("a")

    def build(folder):
        frame = pl.DataFrame({"metric": ["ndcg"] * 200_000, "value": [float(n) for n in range(200_000)]})
        frame.write_parquet(folder / "evaluation.parquet")

    made, _ = store.obtain("evaluation", "1", {}, build)
    store.set_ref("toys", "2020-01", "evaluation", made.fingerprint)
    size = made.manifest["files"]["evaluation.parquet"]["bytes"]
    there = host("b")
    server.sent = 0
    catalog.refresh(there)
    assert server.sent < 80_000 < size
    import duckdb

    with duckdb.connect(str(catalog.path(there)), read_only=True) as connection:
        assert [row[0] for row in connection.execute("describe toys.evaluation").fetchall()] == ["metric", "value"]
        with pytest.raises(duckdb.Error):
            connection.execute("select sum(value) from toys.evaluation").fetchall()
        list(catalog.files(there, "toys", "evaluation"))
        assert connection.execute("select max(value) from toys.evaluation").fetchone() == (199_999.0,)


# -- where the store lies --------------------------------------------------------------------


def test_the_environment_or_the_profile_names_the_store(server, tmp_path, monkeypatch):
    profile = tmp_path / "p.yaml"
    text = "datasets: {toys: {source: {kind: sample, category: games}, snapshots: {start: 2020-01, end: 2020-02}}}"
    profile.write_text(text)
    monkeypatch.setenv("SIDR_PROFILE", str(profile))
    monkeypatch.setenv("SIDR_HOME", str(tmp_path / "home"))
    assert open_store().root == tmp_path / "home" / "store"
    profile.write_text(f"store: {{url: 's3://of/profile'}}\n{text}")
    assert open_store().place == "s3://of/profile"
    monkeypatch.setenv("SIDR_STORE", URL)
    assert open_store().place == URL
    for wrong in ("s3://key:secret@bucket/x", "az://c/p?sig=secret", "ftp://x", "bucket"):
        monkeypatch.setenv("SIDR_STORE", wrong)
        with pytest.raises(Exception, match="without user, password or query") as caught:
            open_store()
        assert "secret" not in str(caught.value)


def test_a_mounted_folder_is_a_store_too(tmp_path):
    url = f"file://{tmp_path / 'shared'}"
    one, two = (BucketStore(tmp_path / name, Bucket.at(url)) for name in "ab")
    made, _ = one.obtain("s", "1", {}, write("x"))
    one.set_ref("toys", "2020-01", "s", made.fingerprint)
    assert two.require("toys", "2020-01", "s").path("out.txt").read_text() == "x"
    assert two.obtain("s", "1", {}, refuse)[1]
