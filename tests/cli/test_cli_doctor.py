"""`sidr doctor`: each check finds what was broken on purpose, and says what to do."""

import json
import shutil
import sqlite3
import subprocess
import sys
from types import SimpleNamespace

import pytest

from sidr_core.cli import doctor as cli_doctor
from sidr_core.cli import doctor_environment as environment
from sidr_core.cli.doctor_environment import FAIL, OK, WARN
from sidr_core.pipeline.profile import parse_profile
from sidr_core.pipeline.store import Store
from sidr_core.remote.ledger import Cost, Ledger
from sidr_core.settings.corpus import Budget

SAMPLE = {"kind": "sample", "category": "games"}
NOTHING = Cost(0, 0)
REMOTE = {"kind": "openai", "endpoint": {"model": "m", "api_key_env": "DOCTOR_KEY"}}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty working folder; the code location is not loaded again for every check."""
    monkeypatch.setenv("SIDR_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DOCTOR_KEY", raising=False)
    loaded = environment.Finding("code location", OK, "sidr_assets loads")
    monkeypatch.setattr(environment, "code_location", lambda: loaded)
    return tmp_path / "home"


def by_name(findings):
    return {finding.name: finding for finding in findings}


def of(spent=NOTHING, **fields):
    """Findings about a profile with one dataset, by name."""
    raw = {"source": SAMPLE, "snapshots": {"start": "2020-01", "end": "2020-02"}, **fields}
    profile = parse_profile("test", {"datasets": {"toys": raw}})
    return by_name(cli_doctor.check_profile(profile, spent))


def test_the_installed_environment_is_sound(home, sidr):
    code, out, _ = sidr("doctor", "--format", "json")
    report = json.loads(out)
    assert (code, report["ok"]) == (0, True)
    checks = {check["name"]: check for check in report["checks"]}
    assert {"python", "packages", "dagster", "torch", "minilm", "memory", "disk", "ledger"} <= set(checks)
    assert "1.13" in checks["dagster"]["found"] and checks["dagster"]["state"] == OK
    assert checks["home"]["found"].endswith("will be made") and not home.exists()
    code, out, _ = sidr("doctor")
    assert code == 0 and "0 failed" in out


def test_a_failed_check_is_exit_code_1(home, sidr, monkeypatch):
    monkeypatch.setenv("SIDR_PROFILE", "quickstrat")
    code, out, err = sidr("doctor")
    assert (code, err) == (1, "")
    assert "there is no profile 'quickstrat'" in out and "fix: did you mean 'quickstart'?" in out and "1 failed" in out


def test_no_model_library_is_imported():
    script = (
        "import sys\n"
        "from sidr_core.cli import doctor, gc, status\n"
        "heavy = {'torch', 'transformers', 'dagster', 'polars', 'duckdb', 'openai'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_dagster_releases_are_compared_across_its_two_numberings():
    same = {"dagster": "1.13.27", "dagster-rest-resources": "0.29.27", "dagster-webserver": "1.13.27"}
    others = {"dagster-ray": "0.4.8", "dagster-openlineage": "0.2.1"}  # have releases of their own
    assert environment.dagster_release(same | others).found == "1.13.27, 3 packages of one release"
    assert environment.dagster_release(same).state == OK
    skewed = environment.dagster_release({**same, "dagster-webserver": "1.13.26"})
    assert skewed.state == FAIL and "1.13.26: dagster-webserver" in skewed.found
    assert environment.dagster_release({}).state == FAIL


def test_packages_that_are_missing_old_or_other_than_pinned():
    installed = environment.installed_packages()
    old = environment.required_packages({**installed, "duckdb": "0.1"})
    assert (old.state, "duckdb 0.1" in old.found) == (FAIL, True)
    missing = environment.required_packages({name: v for name, v in installed.items() if name != "polars"})
    assert (missing.state, "polars is not installed" in missing.found) == (FAIL, True)
    other = environment.required_packages({**installed, "rich": "99.0"})
    assert (other.state, "rich 99.0 (tested with" in other.found) == (WARN, True)


def test_installed_without_its_repository(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    packages = environment.required_packages({**environment.installed_packages(), "torch": "2.13.0+cpu"})
    assert (packages.state, packages.found) == (OK, "all required ones")
    assert environment.dagster_home().fix.startswith("copy dagster.yaml")


def test_torch_is_known_without_importing_it(tmp_path):
    (tmp_path / "version.py").write_text(
        "from typing import Optional\n__version__ = '2.13.0+cu130'\ncuda: Optional[str] = '13.0'\nx = print('run')\n"
    )
    assert environment.assigned_literals(tmp_path / "version.py") == {"__version__": "2.13.0+cu130", "cuda": "13.0"}


def test_disk_memory_and_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    for free, state in ((0.4e9, FAIL), (4e9, WARN), (6e9, OK)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        disk = by_name(environment.machine(tmp_path))["disk"]
        assert (disk.state, bool(disk.fix)) == (state, state != OK)
    (tmp_path / "file").write_text("")
    assert by_name(environment.machine(tmp_path / "file"))["home"].state == FAIL


def test_dagster_home(tmp_path, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "none"))
    assert environment.dagster_home().state == FAIL
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    assert environment.dagster_home().state == WARN
    (tmp_path / "dagster.yaml").write_text("")
    assert environment.dagster_home().state == OK


def test_sources_are_looked_for_and_not_read(home, tmp_path):
    reviews = tmp_path / "reviews.jsonl.gz"
    source = {"kind": "amazon_2018", "reviews": [f"{reviews}#sha256={'0' * 64}"], "items": ["https://x.org/i.gz"]}
    assert of(source=source)["source toys"].state == FAIL
    reviews.write_bytes(b"no gzip at all")
    finding = of(source=source)["source toys"]
    assert finding.state == OK and "1 files" in finding.found and "1 to be fetched" in finding.found
    assert not home.exists()  # nothing fetched, no checksum kept
    assert of(teacher={"general": {"path": str(tmp_path / "none")}})["general toys"].state == FAIL
    assert of(base_model={"kind": "pretrained", "name": "/no/such"})["model toys"].state == FAIL
    assert of(encoder={"model": "sentence-transformers/x"})["encoder toys"].state == OK


def test_a_model_folder_that_training_would_refuse_is_told_before_anything_is_paid(home, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    named = {"base_model": {"kind": "pretrained", "name": str(folder)}}
    for file, lacking in (("config.json", "no config.json"), ("model.safetensors", "no *.safetensors")):
        finding = of(**named)["model toys"]
        assert finding.state == FAIL and lacking in finding.found
        (folder / file).write_text("{}")
    assert of(**named)["model toys"].state == OK
    (folder / "training_args.bin").write_bytes(b"")
    finding = of(**named)["model toys"]
    assert finding.state == FAIL and "training_args.bin" in finding.found and "remove this file" in finding.fix


def test_keys_are_named_and_never_shown(home, monkeypatch):
    missing = of(teacher=REMOTE)["key toys.teacher"]
    assert missing.state == FAIL and "DOCTOR_KEY" in missing.fix
    monkeypatch.setenv("DOCTOR_KEY", "sk-secret")
    findings = of(teacher=REMOTE)
    assert findings["key toys.teacher"].state == OK
    assert "secret" not in str(findings)
    monkeypatch.delenv("DOCTOR_KEY")
    for url, state in (("http://127.0.0.1:8000/v1", OK), ("https://models.example.org/v1", WARN)):
        endpoint = {**REMOTE["endpoint"], "base_url": url}
        assert of(encoder={"model": "m", "endpoint": endpoint})["key toys.encoder"].state == state


def test_the_ledger_and_what_the_budget_leaves(home):
    assert cli_doctor.check_ledger()[0].state == OK and not home.exists()
    ledger = Ledger(home / "ledger.sqlite")
    ledger.reserve("k", Cost(100, 250_000_000), Budget())
    ledger.close()
    finding, spent = cli_doctor.check_ledger()
    assert finding.state == OK and spent == Cost(100, 250_000_000)
    teacher = {**REMOTE, "budget": {"usd": 1.0, "tokens": 100}, "price": {"input": 1}}
    left = of(spent, teacher=teacher)["budget toys"]
    assert (left.state, left.found) == (WARN, "0.7500 of 1.0 USD and 0 of 100 tokens left")
    with sqlite3.connect(home / "ledger.sqlite") as db:
        db.execute("DROP TRIGGER account_update")
        db.execute("UPDATE account SET nano_usd = 1")
    db.close()
    finding, spent = cli_doctor.check_ledger()
    assert (finding.state, spent) == (FAIL, None) and "add up" in finding.found
    (home / "ledger.sqlite").write_bytes(b"SQLite format 3\0" + b"x" * 5000)
    for beside in home.glob("ledger.sqlite-*"):
        beside.unlink()
    assert cli_doctor.check_ledger()[0].state == FAIL


def test_leftovers_are_counted(home):
    store = Store(home / "store")
    assert [finding.state for finding in cli_doctor.check_store(store)] == [OK]
    made, _ = store.obtain("interactions", "1", {}, lambda folder: (folder / "x").write_text("x") and None)
    store.set_ref("toys", "2020-01", "interactions", made.fingerprint)
    findings = by_name(cli_doctor.check_store(store))
    assert findings["leftovers"].found == "none" and findings["catalog"].state == WARN
    (store.root / "interactions" / f".tmp-{made.fingerprint}-1-x").mkdir()
    leftovers = by_name(cli_doctor.check_store(store))["leftovers"]
    assert leftovers.state == WARN and leftovers.found.startswith("1 temporary")
