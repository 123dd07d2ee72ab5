"""The examples in docstrings of the core hold."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

import sidr_core

_ROOT = Path(sidr_core.__file__).parent
_MODULES = sorted(
    ".".join(("sidr_core", *path.relative_to(_ROOT).with_suffix("").parts))
    for path in _ROOT.rglob("*.py")
    if ">>> " in path.read_text()
)


@pytest.mark.parametrize("name", _MODULES)
def test_examples_hold(name):
    outcome = doctest.testmod(import_module(name))
    assert outcome.attempted and not outcome.failed
