"""The commands on a store in a bucket, from a machine that has nothing of it."""

import json

import pytest

pytest.importorskip("obstore", reason="the extra `bucket` is not installed: pip install -c constraints.txt obstore")

from builders.bucket import publish
from builders.s3_server import S3Server
from builders.small_world import ITEMS, SNAPSHOT
from sidr_core.cli import doctor
from sidr_core.pipeline.bucket import Bucket
from sidr_core.pipeline.bucket_store import BucketStore
from sidr_core.pipeline.profile import load_profile

URL = "s3://shared/team"


@pytest.fixture
def server(world, tmp_path, monkeypatch):
    """The small world, published into a bucket by another machine; `SIDR_HOME` stays the local one."""
    with S3Server() as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        publish(world.store, BucketStore(tmp_path / "publisher", Bucket.at(URL)))
        yield running


def test_an_empty_machine_says_the_same_as_the_one_that_built(server, sidr, tmp_path, monkeypatch):
    query = "select model, mode, metric, k, value from toys.evaluation order by all"
    commands = [
        ("show",),
        ("sql", query, "--format", "csv"),
        ("sql", "show all tables", "--format", "csv"),
        ("recommend", "--history", f"{ITEMS[2]},{ITEMS[3]}", "-k", "3"),
        ("status", "--format", "json"),
    ]
    here = [sidr(*command) for command in commands]
    monkeypatch.setenv("SIDR_HOME", str(tmp_path / "empty"))
    monkeypatch.setenv("SIDR_STORE", URL)
    there = [sidr(*command) for command in commands]
    assert [code for code, _, _ in there] == [0] * len(commands)
    assert [out for _, out, _ in there[:4]] == [out for _, out, _ in here[:4]]
    told, expected = (json.loads(one[4][1]) for one in (there, here))
    assert told["store"] == URL
    stages = [
        [(s["stage"], s["state"], s["fingerprint"]) for s in one["snapshots"][0]["stages"]] for one in (told, expected)
    ]
    assert stages[0] == stages[1]
    assert not (tmp_path / "empty" / "store").exists()


def test_status_fetches_no_file(server, sidr, tmp_path, monkeypatch):
    monkeypatch.setenv("SIDR_HOME", str(tmp_path / "empty"))
    monkeypatch.setenv("SIDR_STORE", URL)
    assert sidr("status")[0] == 0
    assert not list((tmp_path / "empty").rglob("*.parquet"))


@pytest.mark.long
def test_gc_lists_by_age_and_the_doctor_looks_at_the_bucket(server, sidr, tmp_path, monkeypatch):
    monkeypatch.setenv("SIDR_HOME", str(tmp_path / "empty"))
    monkeypatch.setenv("SIDR_STORE", URL)
    BucketStore(tmp_path / "other", Bucket.at(URL)).obtain(
        "evaluation", "old", {}, lambda f: (f / "x").write_text("x") and None
    )
    assert "nothing to delete" in sidr("gc")[1]
    server.objects = {name: (body, when - 8 * 86_400) for name, (body, when) in server.objects.items()}
    _, out, _ = sidr("gc")
    assert f"{URL}/evaluation/" in "".join(out.split()) and "1 output" in out
    assert "deleted: 1 output" in sidr("gc", "--yes")[1]
    assert "nothing to delete" in sidr("gc", "--yes")[1]
    findings = {finding.name: finding for finding in doctor.check_place(load_profile())}
    assert findings["bucket"].state == "ok" and URL in findings["store"].found
    server.conditions = False
    (finding,) = doctor.check_place(load_profile())
    assert (finding.name, finding.state) == ("store", "fail") and "If-None-Match" in finding.found
    assert sidr("show", "--snapshot", SNAPSHOT)[0] == 0  # reading goes on
