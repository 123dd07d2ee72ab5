"""`sidr doctor`: each check finds what was broken on purpose, and says what to do."""

import json
import shutil
import sqlite3
import subprocess
import sys

import pytest

from sidr_core.cli import doctor as cli_doctor
from sidr_core.cli import environment
from sidr_core.cli.environment import FAIL, OK, WARN
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


def of(spent=NOTHING, **fields):
    """Findings about a profile with one dataset, by name."""
    raw = {"source": SAMPLE, "snapshots": {"start": "2020-01", "end": "2020-02"}, **fields}
    profile = parse_profile("test", {"datasets": {"toys": raw}})
    return {found.name: found for found in cli_doctor._of_profile(profile, spent)}


def test_the_installed_environment_is_sound(home, sidr):
    code, out, _ = sidr("doctor", "--format", "json")
    told = json.loads(out)
    assert (code, told["ok"]) == (0, True)
    found = {check["name"]: check for check in told["checks"]}
    assert {"python", "packages", "dagster", "torch", "minilm", "memory", "disk", "ledger"} <= set(found)
    assert "1.13" in found["dagster"]["found"] and found["dagster"]["state"] == OK
    assert found["home"]["found"].endswith("will be made") and not home.exists()
    code, out, _ = sidr("doctor")
    assert code == 0 and "0 failed" in out


def test_a_failed_check_is_exit_code_1(home, sidr, monkeypatch):
    monkeypatch.setenv("SIDR_PROFILE", "quickstrat")
    code, out, err = sidr("doctor")
    assert (code, err) == (1, "")
    assert "there is no profile 'quickstrat'" in out and "fix: set SIDR_PROFILE" in out and "1 failed" in out
    code, _, err = sidr("doctor", "--format", "xml")
    assert code == 1 and "table or json" in err


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
    assert environment._dagster_release(same).state == OK
    skewed = environment._dagster_release({**same, "dagster-webserver": "1.13.26"})
    assert skewed.state == FAIL and "1.13.26: dagster-webserver" in skewed.found
    assert environment._dagster_release({}).state == FAIL


def test_packages_that_are_missing_old_or_other_than_pinned(monkeypatch):
    installed = environment._installed()
    monkeypatch.setattr(environment, "_installed", lambda: {**installed, "duckdb": "0.1"})
    assert (environment._required().state, "duckdb 0.1" in environment._required().found) == (FAIL, True)
    monkeypatch.setattr(environment, "_installed", lambda: {k: v for k, v in installed.items() if k != "polars"})
    assert "polars is not installed" in environment._required().found
    monkeypatch.setattr(environment, "_installed", lambda: {**installed, "rich": "99.0"})
    assert environment._required().state == WARN and "rich 99.0 (tested with" in environment._required().found


def test_torch_is_known_without_importing_it(tmp_path):
    (tmp_path / "version.py").write_text(
        "from typing import Optional\n__version__ = '2.13.0+cu130'\ncuda: Optional[str] = '13.0'\nx = print('run')\n"
    )
    assert environment._assigned(tmp_path / "version.py") == {"__version__": "2.13.0+cu130", "cuda": "13.0"}


def test_disk_memory_and_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    used = shutil._ntuple_diskusage
    for free, state in ((0.4e9, FAIL), (4e9, WARN), (6e9, OK)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: used(1e12, 0, free))
        (disk,) = [found for found in environment.machine(tmp_path) if found.name == "disk"]
        assert (disk.state, bool(disk.fix)) == (state, state != OK)
    (tmp_path / "file").write_text("")
    (home,) = [found for found in environment.machine(tmp_path / "file") if found.name == "home"]
    assert home.state == FAIL


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
    found = of(source=source)["source toys"]
    assert found.state == OK and "1 files" in found.found and "1 to be fetched" in found.found
    assert not home.exists()  # nothing fetched, no checksum kept
    assert of(teacher={"general": {"path": str(tmp_path / "none")}})["general toys"].state == FAIL
    assert of(base_model={"kind": "pretrained", "name": "/no/such"})["model toys"].state == FAIL
    assert of(encoder={"model": "sentence-transformers/x"})["encoder toys"].state == OK


def test_keys_are_named_and_never_shown(home, monkeypatch):
    missing = of(teacher=REMOTE)["key toys.teacher"]
    assert missing.state == FAIL and "DOCTOR_KEY" in missing.fix
    monkeypatch.setenv("DOCTOR_KEY", "sk-secret")
    found = of(teacher=REMOTE)
    assert found["key toys.teacher"].state == OK
    assert "secret" not in str(found)
    monkeypatch.delenv("DOCTOR_KEY")
    for url, state in (("http://127.0.0.1:8000/v1", OK), ("https://models.example.org/v1", WARN)):
        endpoint = {**REMOTE["endpoint"], "base_url": url}
        assert of(encoder={"model": "m", "endpoint": endpoint})["key toys.encoder"].state == state


def test_the_ledger_and_what_the_budget_leaves(home):
    assert cli_doctor._ledger()[0].state == OK and not home.exists()
    ledger = Ledger(home / "ledger.sqlite")
    ledger.reserve("k", Cost(100, 250_000_000), Budget())
    ledger.close()
    found, spent = cli_doctor._ledger()
    assert found.state == OK and spent == Cost(100, 250_000_000)
    teacher = {**REMOTE, "budget": {"usd": 1.0, "tokens": 100}, "price": {"input": 1}}
    left = of(spent, teacher=teacher)["budget toys"]
    assert (left.state, left.found) == (WARN, "0.7500 of 1.0 USD and 0 of 100 tokens left")
    with sqlite3.connect(home / "ledger.sqlite") as db:
        db.execute("DROP TRIGGER account_update")
        db.execute("UPDATE account SET nano_usd = 1")
    db.close()
    found, spent = cli_doctor._ledger()
    assert (found.state, spent) == (FAIL, None) and "add up" in found.found
    (home / "ledger.sqlite").write_bytes(b"SQLite format 3\0" + b"x" * 5000)
    for beside in home.glob("ledger.sqlite-*"):
        beside.unlink()
    assert cli_doctor._ledger()[0].state == FAIL


def test_leftovers_are_counted(home):
    store = Store(home / "store")
    assert [found.state for found in cli_doctor._left(store)] == [OK]
    made, _ = store.obtain("interactions", "1", {}, lambda folder: (folder / "x").write_text("x") and None)
    store.set_ref("toys", "2020-01", "interactions", made.fingerprint)
    found = {one.name: one for one in cli_doctor._left(store)}
    assert found["leftovers"].found == "none" and found["catalog"].state == WARN
    (store.root / "interactions" / f".tmp-{made.fingerprint}-1-x").mkdir()
    found = {one.name: one for one in cli_doctor._left(store)}
    assert found["leftovers"].state == WARN and found["leftovers"].found.startswith("1 temporary")
