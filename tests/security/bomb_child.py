"""Run by test_security_memory in a process of its own: reads one bomb and prints what it cost.

python bomb_child.py <case> <folder>
"""

import json
import os
import resource
import sys
import time
import zlib
from pathlib import Path

LIMIT = 3 << 30  # of address space: beyond it the process fails instead of the machine
ZEROS, GIGABYTE = 16 << 20, 1 << 30


def member(data: bytes, times: int = 1) -> bytes:
    """A gzip member of `data`; several of them one after the other are one gzip file."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return (packer.compress(data) + packer.flush()) * times


def amazon(folder: Path, reviews: bytes, items: bytes) -> dict:
    (folder / "r.json.gz").write_bytes(reviews)
    (folder / "m.json.gz").write_bytes(items)
    return {"kind": "amazon_2018", "reviews": [str(folder / "r.json.gz")], "items": [str(folder / "m.json.gz")]}


def stage(folder: Path, name: str, source: dict) -> str:
    from builders.reviews import Bench

    made = Bench(folder / "home", source, filters={"max_quarantine_share": 1.0, "k_core": 1}).run(name)
    return f"read, {made.manifest['metrics']['quarantined']} quarantined"


def one_line(folder: Path) -> str:
    """A gigabyte of zeros in one line, between sound records: of reviews."""
    from builders.reviews import item, review

    sound = member((review("U1", "I1") + "\n").encode())
    bomb = sound + member(b"\0" * ZEROS, GIGABYTE // ZEROS) + member(b"\n") + sound
    return stage(folder, "raw_reviews", amazon(folder, bomb, member(item("I1").encode())))


def one_line_of_items(folder: Path) -> str:
    from builders.reviews import item, review

    sound = member((item("I1") + "\n").encode())
    bomb = sound + member(b"\0" * ZEROS, GIGABYTE // ZEROS) + member(b"\n") + sound
    return stage(folder, "raw_items", amazon(folder, member(review("U1", "I1").encode()), bomb))


def first_line(folder: Path) -> str:
    """Zeros and nothing else: what is it?"""
    return stage(folder, "raw_reviews", amazon(folder, member(b"\0" * ZEROS, GIGABYTE // ZEROS), b""))


def blank_lines(folder: Path) -> str:
    """256 million blank lines before anything."""
    return stage(folder, "raw_reviews", amazon(folder, member(b"\n" * ZEROS, 16), b""))


def short_lines(folder: Path) -> str:
    """Two hundred thousand lines that are no review."""
    from builders.reviews import review

    bomb = member((review("U1", "I1") + "\n").encode()) + member(b"{}\n" * 100_000, 2)
    return stage(folder, "raw_reviews", amazon(folder, bomb, b""))


def whole_file(folder: Path) -> str:
    """A gigabyte after the header of a file that is read at once."""
    names = "user_id,history_item_title,item_title,history_item_id,item_id,history_item_sid,item_sid"
    row = "A1,\"['T']\",T,[1],1,\"['<a_1>']\",<a_1>\n"
    bomb = member(f"{names}\n{row}".encode()) + member(b"x" * ZEROS, GIGABYTE // ZEROS)
    (folder / "t.csv.gz").write_bytes(bomb)
    (folder / "i.txt").write_text("<a_1>\tThing\t1\n")
    split = dict.fromkeys(("train", "valid", "test"), str(folder / "t.csv.gz"))
    return stage(folder, "raw_reviews", {"kind": "minionerec", **split, "info": str(folder / "i.txt")})


def csv_quote(folder: Path) -> str:
    """A table whose second line opens a quote that never closes."""
    bomb = member(b'user_id,item_id,timestamp\nU1,I1,1527811200\n"') + member(b"x,\n" * (ZEROS // 3))
    (folder / "t.csv.gz").write_bytes(bomb)
    return stage(folder, "raw_reviews", {"kind": "tables", "reviews": [str(folder / "t.csv.gz")]})


def json_values(folder: Path) -> str:
    """Deep nesting, endless digits and numbers that are none, in reviews and in items."""
    from builders.reviews import item, review

    digits = "9" * 1_000_000
    values = ["[" * 1_000_000, '{"a":' * 1_000_000, digits, "-" + digits, f"1e{digits}", "1e999", "NaN", "-Infinity"]
    values += ["[" * 100_000 + "]" * 100_000, '"' + "x" * 1_000_000 + '"']
    reviews = [review("U1", "I1"), *(review("U1", "I1").replace("5.0", value) for value in values)]
    items = [item("I1"), *(item(f"E{n}").replace('"Thing', f'{v}, "x": "Thing') for n, v in enumerate(values))]
    source = amazon(folder, member("\n".join(reviews).encode()), member("\n".join(items).encode()))
    return f"{stage(folder, 'raw_reviews', source)}; items: {stage(folder, 'raw_items', source)}"


def parquet(folder: Path, **columns: object) -> str:
    """A table source of one Parquet file with these columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path := folder / "t.parquet", compression="zstd", store_schema=False)
    assert path.stat().st_size < 100_000
    return stage(folder, "raw_reviews", {"kind": "tables", "reviews": [str(path)]})


def repeated(value: object, rows: int) -> object:
    """A column of one value, which is held once."""
    import numpy as np
    import pyarrow as pa

    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, dtype=np.int32)), pa.array([value]))


def parquet_text(folder: Path) -> str:
    """A million users of a megabyte each: a terabyte in 20 KB."""
    return parquet(
        folder,
        user_id=repeated("x" * 1_000_000, 1_000_000),
        item_id=repeated("I1", 1_000_000),
        timestamp=repeated(1_527_811_200, 1_000_000),
    )


def parquet_list(folder: Path) -> str:
    """One row with a list of 16 million texts of a kilobyte."""
    import pyarrow as pa

    texts = pa.ListArray.from_arrays(pa.array([0, 1 << 24], pa.int32()), repeated("x" * 1000, 1 << 24))
    return parquet(folder, user_id=pa.array(["u"]), item_id=texts, timestamp=pa.array([1_527_811_200]))


def parquet_rows(folder: Path) -> str:
    """Two million equal rows in a few KB."""
    rows = 2_000_000
    times = repeated(1_527_811_200, rows)
    return parquet(folder, user_id=repeated("u", rows), item_id=repeated("i", rows), timestamp=times)


def parquet_depth(folder: Path) -> str:
    """A schema of 2,000 levels."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    deep = pa.array([1])
    for _ in range(2000):
        deep = pa.StructArray.from_arrays([deep], ["a"])
    columns = {"user_id": deep, "item_id": pa.array(["i"]), "timestamp": pa.array([1_527_811_200])}
    pq.write_table(pa.table(columns), folder / "t.parquet", store_schema=False)
    return stage(folder, "raw_reviews", {"kind": "tables", "reviews": [str(folder / "t.parquet")]})


def yaml_aliases(folder: Path) -> str:
    import data_cases
    import hostile

    said = [
        hostile.outcome(case, folder / str(n))[0]
        for n, case in enumerate(data_cases.all_cases())
        if case.loader == "profile"
    ]
    return f"refused {sum(text.startswith('refused') for text in said)} of {len(said)}"


def peak() -> int:
    """The most memory of this process so far, in KB. (`ru_maxrss` begins with that of the process that started it.)"""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def main() -> None:
    import polars  # noqa: F401  what every process loads is no part of the cost

    import sidr_core.reviews.raw  # noqa: F401
    from sidr_core.errors import SidrError

    name, folder = sys.argv[1], Path(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))
    os.environ["SIDR_HOME"] = str(folder / "home")
    before, started = peak(), time.process_time()
    try:
        said = globals()[name](folder)
    except SidrError as error:
        said = f"refused ({error.found[:60]})"
    print(json.dumps({"said": said, "mb": (peak() - before) // 1024, "seconds": time.process_time() - started}))


if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    sys.path[:0] = [str(here), str(here.parent)]
    main()
