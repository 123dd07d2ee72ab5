"""Hostile things, and how a loader takes them.

Each payload that is code tries to create a canary file. A case names a thing, a loader and what is expected of the
two; :func:`outcome` runs it. `scripts/security_table.py` prints all outcomes.
"""

import io
import os
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np

from sidr_core.errors import SidrError


@dataclass(frozen=True)
class Case:
    """`run(folder, canary)` gives the loader the thing and says what came of it, or raises.

    Args:
        expected: a pattern of the whole outcome.
    """

    thing: str
    loader: str
    run: Callable[[Path, Path], str]
    expected: str = r"refused.*"

    def __str__(self) -> str:
        return re.sub(r"\W+", "-", f"{self.loader} {self.thing}")


def outcome(case: Case, folder: Path) -> tuple[str, bool]:
    """What became of a case, and whether its code ran. An error that is none of ours is a crash.

    `folder` is its own; the working folder lies in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    canary = folder / "canary"
    with patch.dict(os.environ, {"SIDR_HOME": str(folder / "home")}):
        try:
            said = case.run(folder, canary)
        except SidrError as error:
            said = f"refused ({error.found})"
        except Exception as error:
            said = f"crashed ({type(error).__name__}: {error})"
    return said.replace(str(folder), "…").replace("\n", " ")[:110], canary.exists()


class Evil:
    """Opens a file for writing when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return open, (str(self.canary), "w")


def pickled(canary: Path) -> bytes:
    return pickle.dumps(Evil(canary))


def torch_file(canary: Path) -> bytes:
    import torch

    out = io.BytesIO()
    torch.save({"weight": Evil(canary)}, out)
    return out.getvalue()


def npy(canary: Path) -> bytes:
    out = io.BytesIO()
    np.save(out, np.array([Evil(canary)], dtype=object), allow_pickle=True)
    return out.getvalue()


def npz(canary: Path) -> bytes:
    out = io.BytesIO()
    np.savez(out, centroids=np.array([Evil(canary)], dtype=object))
    return out.getvalue()


FILES = {"pickle": pickled, ".pt / .bin": torch_file, ".npy with objects": npy, ".npz with objects": npz}


def python(canary: Path) -> str:
    """A module that leaves the canary when it is imported, with the names that loaders look for."""
    body = "class Evil:\n    from_pretrained = load = staticmethod(lambda *a, **k: None)\n"
    return f"open({str(canary)!r}, 'w').close()\n{body}"


def expressions(canary: Path) -> list[str]:
    """Python expressions that leave the canary when they are evaluated."""
    call = f"open({str(canary)!r}, 'w')"
    return [
        call,
        f"__import__('os').system('touch {canary}')",
        f"[{call}]",
        f"[x for x in [{call}]]",
        f"(lambda: {call})()",
        f'f"{{{call}}}"',
        f"{{{call}: 1}}",
        f"[1, 2][{call} and 0]",
        f"1 if {call} else 2",
        f"(x := {call})",
        f"'a'.join([{call}.name])",
        f"().__class__.__base__.__subclasses__() and {call}",
    ]
