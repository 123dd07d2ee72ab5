"""Model folders of any origin: what they may not hold, and whatever a library raises over one as one clear error.

Refused are files that can run code when they are read, that stand for another model, or that lie elsewhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sidr_core.errors import SidrError
from sidr_core.models.quiet import quiet

#: Pickles and other formats that are no plain numbers, Python, and adapters: the library would load those over the
#: weights that lie beside them, or fetch the model that they name.
_PATTERNS = (
    *("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.joblib", "*.npy", "*.npz", "*.msgpack", "*.h5"),
    *("*.py", "*.pyc", "*.so", "adapter_config.json"),
)
#: The library opens what an index names by the path that stands there.
_INDEX = "*.safetensors.index.json"
_LONGEST = 64 << 20
#: Models are built to the shape that `config.json` tells before any weight is looked at: one layer after the other.
_MOST_LAYERS = 1_000
_LAYERS = re.compile(r"layers?$|blocks?$")


def untrusted_file(folder: Path) -> str | None:
    """The first file in a folder or below it that is refused, by its path from there; None if there is none.

    So is a link to a folder, which is not looked into, an index of shards that names anything but safetensors
    beside it, and a configuration with more layers than any model has. Links to files are plain: the hub's cache is
    made of them.
    """
    refused = (
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if any(map(path.match, _PATTERNS)) or (path.is_symlink() and path.is_dir())
    )
    contents = (
        f"{path.relative_to(folder).as_posix()}, which holds {problem!r}"
        for pattern, judge in ((_INDEX, _untrusted_shard), ("config.json", _layers_without_end))
        for path in sorted(folder.rglob(pattern))
        if (problem := _judged(path, judge)) is not None
    )
    return min(refused, default=None) or next(contents, None)


def _judged(path: Path, judge: Callable[[Any], str | None]) -> str | None:
    """What `judge` finds wrong with the value of a JSON file."""
    try:
        return judge(json.loads(path.read_text())) if path.stat().st_size <= _LONGEST else "more than is read"
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        return f"nothing that can be read ({type(error).__name__})"


def _untrusted_shard(index: Any) -> str | None:
    """What an index of shards names and should not."""
    shards: list[Any] = list(index["weight_map"].values())
    return next((str(shard)[:100] for shard in shards if not _is_beside(shard)), None)


def _layers_without_end(config: Any) -> str | None:
    """A number of layers beyond all models, on any level of a configuration."""
    for name, value in config.items():
        if isinstance(value, dict) and (problem := _layers_without_end(value)):
            return problem
        if isinstance(value, int | float) and value > _MOST_LAYERS and _LAYERS.search(name):
            return f"{name}: {value}"[:100]
    return None


def _is_beside(shard: Any) -> bool:
    return isinstance(shard, str) and shard.endswith(".safetensors") and not set("/\\\0") & set(shard)


@contextmanager
def reading(refuse: Callable[[str], SidrError]) -> Iterator[None]:
    """Has the library read a model folder, without its messages; what it raises becomes the error of `refuse`.

    That may be anything: a broken tokenizer is a bare Exception, a number too large a RuntimeError. Too little
    memory is no fault of the folder.
    """
    import torch

    try:
        with quiet():
            yield
    except (SidrError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        text = str(error).strip()
        raise refuse((text.splitlines()[0] if text else type(error).__name__)[:300]) from error
