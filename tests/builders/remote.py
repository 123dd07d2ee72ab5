"""What the tests of `sidr_core.remote` share: the scripted server, a reply model and a client with fast clocks."""

import importlib.util
import sys
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from sidr_core.remote.batch import BatchClient
from sidr_core.remote.client import Client, Request
from sidr_core.remote.ledger import Ledger
from sidr_core.settings import Budget, Endpoint, Price

ROOT = Path(__file__).resolve().parents[2]


def load(path: str):
    """A module outside of packages, by its path below the repository."""
    name = Path(path).stem
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / path)
        assert spec and spec.loader
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


scripted_server = load("tests/faults/scripted_server.py")
ScriptedServer = scripted_server.ScriptedServer
#: USD per million tokens.
PRICE = Price(input=1.0, output=2.0)


class Note(BaseModel):
    model_config = ConfigDict(extra="forbid")
    text: str
    score: int


def note(n, **fields):
    values = dict(
        kind="note", system="You write.", user=f"about {n}", schema=Note, max_output_tokens=48, temperature=0.5
    )
    return Request(**{**values, **fields})


def notes(count):
    return [note(n) for n in range(count)]


def endpoint(server="http://127.0.0.1:9/v1", **fields):
    url = server if isinstance(server, str) else server.base_url
    values = dict(model="m", timeout_seconds=5, retries=2, concurrency=4, give_up_after=5)
    return Endpoint(base_url=url, **{**values, **fields})


def client(server, path, *, budget=None, form="json_schema", batch=False, price=PRICE, **fields):
    ledger = path if isinstance(path, Ledger) else Ledger(path)
    kind = BatchClient if batch else Client
    return kind(endpoint(server, **fields), ledger, budget or Budget(), price, form)
