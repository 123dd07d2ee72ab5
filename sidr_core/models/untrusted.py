"""Model folders of any origin: what they may not hold, and whatever a library raises over one as one clear error.

Refused are files that can run code when they are read, that stand for another model, or that lie elsewhere, and
configurations that ask for native code of the hub: with the package `kernels` installed, the library fetches and runs
what an attention implementation such as `org/name` names, even where only local files are asked for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

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
#: Implementations (`attn_implementation`, `experts_implementation` and their like) that are part of the library.
#: `flash_attention_2` is not: without its package the library fetches a kernel of the hub in its place.
_IMPLEMENTATIONS = frozenset({"", "eager", "sdpa", "flex_attention", "grouped_mm", "batched_mm"})
_CONFIGS = "*config*.json"


class Untrusted(NamedTuple):
    """What a model folder may not hold, and what its owner can do."""

    found: str
    fix: str


def untrusted_file(folder: Path) -> Untrusted | None:
    """The first file in a folder or below it that is refused, by its path from there; None if there is none.

    So is a link to a folder, which is not looked into, an index of shards that names anything but safetensors
    beside it, and a configuration with more layers than any model has or with code of the hub. Links to files are
    plain: the hub's cache is made of them.
    """
    refused = (
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if any(map(path.match, _PATTERNS)) or (path.is_symlink() and path.is_dir())
    )
    if name := min(refused, default=None):
        return Untrusted(
            f"{name}, which can run code when it is read or stands for another model",
            "remove this file from the folder, or copy its safetensors, JSON and tokenizer files into a folder of "
            "their own",
        )
    contents = (
        f"{path.relative_to(folder).as_posix()}, which holds {problem!r}"
        for pattern, judge in ((_INDEX, _untrusted_shard), ("config.json", _layers_without_end), (_CONFIGS, hub_code))
        for path in sorted(folder.rglob(pattern))
        if (problem := _judged(path, judge)) is not None
    )
    if problem := next(contents, None):
        return Untrusted(problem, "correct or remove this entry, or take the folder from its source again")
    return None


def untrusted_hub_model(name: str, revision: str | None = None) -> Untrusted | None:
    """Whether the configuration of a hub's model asks for code of the hub; read from the cache or fetched.

    Its other files are the library's business: safetensors alone, and no remote code, are asked for.
    """
    from transformers.utils.hub import cached_file

    for file in ("config.json", "sentence_bert_config.json"):
        path = cached_file(
            name,
            file,
            revision=revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
        )
        if path and (problem := _judged(Path(path), hub_code)) is not None:
            return Untrusted(f"{file}, which holds {problem!r}", "take another model, or a corrected copy in a folder")
    return None


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


def hub_code(config: Any) -> str | None:
    """The first implementation in a configuration, on any level, that may be native code of the hub."""
    entries = config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else ()
    for name, value in entries:
        if str(name).endswith(("_implementation", "_implementation_internal")):
            chosen = value.values() if isinstance(value, dict) else [value]
            if any(one is not None and (not isinstance(one, str) or one not in _IMPLEMENTATIONS) for one in chosen):
                return f"{name}: {value}"[:100]
        elif name in ("use_kernels", "allow_all_kernels") and value:
            return f"{name}: {value}"[:100]
        elif (problem := hub_code(value)) is not None:
            return problem
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
