"""Single files of tensors, arrays and tables that hold code, or promise more than they hold."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import hostile
import numpy as np
from hostile import Case

from sidr_core.pipeline.stage import Progress


def codebook(path: Path) -> str:
    from sidr_core.sids.quantize import Codebook

    return f"read {Codebook.load(path)}"


def sid_index(path: Path) -> str:
    from sidr_core.sids.index import SidIndex

    found = SidIndex.load(path, "digest")
    return "not read: the table is" if found is None else f"read {found}"


def baseline(path: Path) -> str:
    import torch

    from sidr_core.baselines import training

    shutil.copy(path, path.with_name(training.WEIGHTS))
    training.load_weights(torch.nn.Linear(2, 2), path.parent)
    return "read"


def best_weights(path: Path) -> str:
    import torch

    from sidr_core.training.resume import BestCheckpoint

    shutil.copy(path, path.with_name("best-1.safetensors"))
    state = SimpleNamespace(log_history=[{"step": 1, "eval_ndcg@10": 1.0}])
    accelerator = SimpleNamespace(unwrap_model=lambda model: model)
    trainer = SimpleNamespace(state=state, accelerator=accelerator, model=torch.nn.Linear(2, 2))
    BestCheckpoint(trainer, lambda model: {}, path.parent, Progress(lambda line: None)).load()
    return "read"


def vector_cache(path: Path) -> str:
    from sidr_core.items.cache import VectorCache

    segment = path.with_name(f"{hashlib.sha256(path.read_bytes()).hexdigest()}.npy")  # as if it were sound
    path.rename(segment)
    said: list[str] = []
    found, _ = VectorCache(path.parent, said.append).get(np.zeros((1, 32), dtype=np.uint8))
    return "put away as damaged" if said and not found.any() and not segment.exists() else "read"


def vectors(path: Path) -> str:
    from sidr_core.tables.vectors import read_vectors

    return f"read {read_vectors(path)}"


def table(path: Path) -> str:
    from sidr_core.tables import files as tables

    return f"read {tables.read(path)}"


def source(path: Path) -> str:
    from builders.reviews import Bench

    shutil.copy(path, named := path.with_name("reviews.parquet"))
    Bench(path.parent / "home", {"kind": "tables", "reviews": [str(named)]}).run("raw_reviews")
    return "read"


SINGLE: dict[str, tuple[Callable[[Path], str], str]] = {
    "codebook": (codebook, "refused .*"),
    "SID index": (sid_index, "not read: the table is"),
    "weights of a baseline": (baseline, "refused .*"),
    "best weights of a training": (best_weights, "refused .*"),
    "vector cache": (vector_cache, "put away as damaged"),
    "vectors of a table": (vectors, "refused .*"),
    "published table": (table, "refused .*"),
    "tables source": (source, "refused .*"),
}


def header(fields: object, size: int | None = None) -> Callable[[Path], bytes]:
    """A safetensors file with this header, whose length is said to be `size`, and eight bytes of numbers."""
    text = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return lambda canary: (len(text) if size is None else size).to_bytes(8, "little") + text + b"\0" * 8


#: What looks like the format of tensors and is not.
TENSORS: dict[str, Callable[[Path], bytes]] = {
    "nothing": lambda canary: b"",
    "header of 2^63 bytes": header({}, 2**63),
    "header of 90 MB in 10 bytes": header({}, 90 << 20),
    "header of 100,000 levels": header(b'{"a":' * 100_000),
    "tensor of 2^40 numbers in 8 bytes": header(
        {"weight": {"dtype": "F32", "shape": [2**20, 2**20], "data_offsets": [0, 2**42]}}
    ),
    "tensor of 2^64 numbers": header({"weight": {"dtype": "F32", "shape": [2**32, 2**32], "data_offsets": [0, 8]}}),
    "tensor before the file": header({"weight": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}),
    "tensor of another name": header({"evil": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}),
    "a list of names that is none": header(
        {
            "__metadata__": {"projections": "[" * 100_000},
            "weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        }
    ),
}
OF_TENSORS = ("codebook", "SID index", "weights of a baseline", "best weights of a training")


def one_file(make: Callable[[Path], bytes], load: Callable[[Path], str]) -> Callable[[Path, Path], str]:
    def run(folder: Path, canary: Path) -> str:
        place = folder / "files" / "file"
        place.parent.mkdir()
        place.write_bytes(make(canary))
        return load(place)

    return run


def parquet_with_pickled_type(load: Callable[[Path], str]) -> Callable[[Path, Path], str]:
    """Arrow's Python extension types once were pickles in the file's metadata (CVE-2023-47248)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def run(folder: Path, canary: Path) -> str:
        evil = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": b"\x80"}
        evil[b"ARROW:extension:metadata"] = hostile.pickled(canary)
        kinds = {"vector": pa.list_(pa.float32()), "user_id": pa.string(), "item_id": pa.string()}
        fields = [pa.field(name, kind, metadata=evil) for name, kind in kinds.items()]
        schema = pa.schema([*fields, pa.field("timestamp", pa.int64())])
        rows = {"vector": [[1.0, 2.0]], "user_id": ["u"], "item_id": ["i"], "timestamp": [1_527_811_200]}
        pq.write_table(pa.table(rows, schema), path := folder / "file")
        return f"{load(path).partition(' ')[0]} as the plain type"

    return run


def all_cases() -> list[Case]:
    cases = [
        Case(thing, name, one_file(make, load), expected)
        for thing, make in hostile.FILES.items()
        for name, (load, expected) in SINGLE.items()
    ]
    cases += [
        Case(thing, name, one_file(make, SINGLE[name][0]), SINGLE[name][1])
        for thing, make in TENSORS.items()
        for name in OF_TENSORS
    ]
    return [
        *cases,
        Case("Parquet with a pickled type", "vectors of a table", parquet_with_pickled_type(vectors), "read as .*"),
        Case("Parquet with a pickled type", "tables source", parquet_with_pickled_type(source), "read as .*"),
    ]
