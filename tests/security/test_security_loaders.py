"""Every hostile thing at every loader: refused, put away or read as data, and no canary."""

import pickle
import re
import sys

import data_cases
import file_cases
import hostile
import model_cases
import name_cases
import numpy as np
import pytest
import torch

CASES = [*model_cases.all_cases(), *file_cases.all_cases(), *data_cases.all_cases(), *name_cases.all_cases()]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_outcome(case, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))  # a case may add to it
    said, ran = hostile.outcome(case, tmp_path / "case")
    assert not ran, said
    assert re.fullmatch(case.expected, said), said
    assert not list(tmp_path.rglob("canary*"))


def test_the_payloads_do_work(tmp_path):
    """Each leaves its canary where it is read without care: else the cases above would prove nothing."""
    careless = {
        hostile.pickled: lambda path: pickle.loads(path.read_bytes()),
        hostile.torch_file: lambda path: torch.load(path, weights_only=False),
        hostile.npy: lambda path: np.load(path, allow_pickle=True),
        hostile.npz: lambda path: np.load(path, allow_pickle=True)["centroids"],
    }
    for make, read in careless.items():
        canary, path = tmp_path / make.__name__, tmp_path / f"{make.__name__}.file"
        path.write_bytes(make(canary))
        read(path)
        assert canary.exists(), make.__name__
    exec(hostile.python(tmp_path / "module"))
    assert (tmp_path / "module").exists()
    for number in range(len(hostile.expressions(tmp_path))):
        canary = tmp_path / f"expression{number}"
        eval(hostile.expressions(canary)[number])
        assert canary.exists(), hostile.expressions(canary)[number]


def test_sound_things_are_read(tmp_path):
    """The folder in which things are planted is read by all loaders, and the stopped training goes on."""
    for name, load in model_cases.FOLDERS.items():
        assert load(model_cases.sound()).startswith("read"), name
    case = next(case for case in CASES if "training_args" in case.thing)
    assert hostile.outcome(case, tmp_path)[0].startswith("not read: training went on")
