"""The key reaches the server and nothing else; and the estimate of the command line.

Both run the real corpus stage against the scripted server.
"""

import logging
import os
import pickle
import traceback
from pathlib import Path

import pytest
import yaml

from builders import small_world
from builders.remote import ScriptedServer, client, notes
from builders.stage import QUIET
from sidr_core.cli import estimate as cli_estimate
from sidr_core.cli import main as cli
from sidr_core.pipeline.graph import stage_named
from sidr_core.pipeline.profile import load_profile
from sidr_core.pipeline.run import run_stage
from sidr_core.pipeline.stage import Progress
from sidr_core.remote import batch, retry
from sidr_core.remote.errors import EndpointError
from sidr_core.remote.ledger import Ledger, ledger_path

CANARY = "sk-canary-7f3e9a1b5d"


@pytest.fixture(autouse=True)
def canary(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    monkeypatch.setattr(retry, "BASE", 0.01)
    monkeypatch.setattr(batch, "POLL_SECONDS", 0.01)


def taught(server, monkeypatch, tmp_path, **teacher):
    """The profile of the small world with a language model as teacher; SIDR_PROFILE names it."""
    raw = yaml.safe_load(Path(os.environ["SIDR_PROFILE"]).read_text())
    place = {"base_url": server.base_url, "model": "m", "give_up_after": 500}
    price = {"input": 1.0, "output": 2.0}
    raw["datasets"]["toys"]["teacher"] = {"kind": "openai", "endpoint": place, "price": price, **teacher}
    path = tmp_path / "taught.yaml"
    path.write_text(yaml.safe_dump(raw))
    monkeypatch.setenv("SIDR_PROFILE", str(path))
    return load_profile()


def build(world, profile, lines):
    stage = stage_named("synthetic_corpus")
    return run_stage(profile, "toys", small_world.SNAPSHOT, stage, world.store, Progress(lines.append))


def holders(folder):
    """Files that hold the key."""
    return [path for path in folder.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]


@pytest.mark.parametrize("in_batches", [False, True])
def test_a_full_run_leaves_the_key_nowhere(world, tmp_path, monkeypatch, caplog, capfd, in_batches):
    caplog.set_level(logging.DEBUG)
    lines = []
    with ScriptedServer() as server:
        outcome = build(world, taught(server, monkeypatch, tmp_path, batch=in_batches), lines)
        assert server.authorizations == {f"Bearer {CANARY}"}  # so there was a key that could have leaked
        assert server.calls > 20
    assert ledger_path().is_file() and ledger_path().is_relative_to(tmp_path)
    assert holders(tmp_path) == []
    told = capfd.readouterr()
    assert CANARY not in "\n".join([*lines, caplog.text, told.out, told.err, repr(outcome)])
    assert "sdk" in caplog.text.lower() or "HTTP" in caplog.text  # the SDK did log at this level


@pytest.mark.parametrize("in_batches", [False, True])
@pytest.mark.parametrize("fault", ["401", "400", "hang"])
def test_an_error_does_not_tell_the_key(tmp_path, monkeypatch, caplog, fault, in_batches):
    caplog.set_level(logging.DEBUG)
    with ScriptedServer(fault=fault, line=lambda number, body: fault.replace("hang", "missing")) as server:
        asking = client(server, tmp_path / "l.sqlite", batch=in_batches, retries=0, timeout_seconds=0.2)
        with pytest.raises(Exception) as raised:
            asking.ask(notes(5), QUIET)
        assert f"Bearer {CANARY}" in server.authorizations
    error = raised.value
    shown = "".join(traceback.format_exception(error))
    assert CANARY not in shown + repr(error) + str(vars(error)) + caplog.text
    assert CANARY.encode() not in pickle.dumps(error)
    assert holders(tmp_path) == []


def test_the_server_does_try_to_tell_it(tmp_path):
    """Its 401 quotes the key, as the real one does; ours shows that something was said."""
    with ScriptedServer(fault="401") as server, pytest.raises(EndpointError, match=r"provided: \[key\]"):
        client(server, tmp_path / "l.sqlite").ask(notes(1), QUIET)


# -- sidr estimate -------------------------------------------------------------------------------


def test_rules_cost_nothing(world, capsys):
    cli_estimate.estimate(None, None)
    assert "costs nothing" in capsys.readouterr().out


def rows_of(text):
    """Numbers of the printed table: kind -> cells."""
    cells = [line.split() for line in text.splitlines()]
    return {row[0]: row[1:] for row in cells if len(row) == 6}


def test_estimate_before_during_and_after(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    with ScriptedServer() as server:
        profile = taught(server, monkeypatch, tmp_path, budget={"usd": 0.001})
        monkeypatch.delenv("OPENAI_API_KEY")
        monkeypatch.setattr("sys.argv", ["sidr", "estimate"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0
        before = capsys.readouterr().out
        assert server.requests == 0
        assert "nothing is measured yet" in before and "do not fit" in before
        rows = rows_of(before)
        assert rows["item_analysis"][:2] == ["0", "16"] and rows["item_narrative"][:2] == ["0", "16"]
        taught_well = taught(server, monkeypatch, tmp_path, budget={"usd": 5.0})
        build(world, taught_well, [])
        cli_estimate.estimate("toys", small_world.SNAPSHOT)
        after = capsys.readouterr().out
        assert profile.name == taught_well.name
        total = rows_of(after)["all"]
        assert total[1:] == ["0", "0", "0", "0.0000"] and int(total[0]) == int(rows["all"][1])
        spent = Ledger(ledger_path()).total
        assert f"{spent.usd:,.4f} USD and {spent.tokens:,} tokens, of these 0.0000 USD" in after
        assert f"Budget left: {5 - spent.usd:,.4f} of 5.0 USD; the calls fit." in after
