"""Corrupted input: what is injected is quarantined, exactly, and nothing else changes.

Damaged records of each sort are put between the records of a sound file of each layout, at the first place, the last
place, a random one, at 0.1 % and at half of all, and the real stage reads the file. The quarantine must hold exactly
the injected lines with the reason that fits, and the output must equal that of the sound file, line numbers aside,
which must be the true ones. Then whole files are damaged, and downloads disturbed.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import input_files
import polars as pl
from input_kinds import ALL, DUPLICATE, TIMES, Kind, kinds
from polars.testing import assert_frame_equal

from builders.reviews import Bench, rows
from sidr_core.errors import SidrError

#: Records of a sound file.
RECORDS = 20_000
#: Where damage is put: name -> places (0 is before the first record) out of so many records.
PLACES = {
    "first": lambda rng, records: [0],
    "one": lambda rng, records: [rng.randrange(1, records)],
    "last": lambda rng, records: [records],
    "0.1 %": lambda rng, records: sorted(rng.choices(range(records + 1), k=max(2, records // 1000))),
    "50 %": lambda rng, records: sorted([0, records, *rng.choices(range(records + 1), k=records - 2)]),
}
_LENIENT = {"max_quarantine_share": 1.0}


class Ground:
    """A sound file of one kind and what the stage makes of it."""

    def __init__(self, kind: Kind, home: Path, records: int) -> None:
        self.kind, self.home, self._runs = kind, home, 0
        self.sound = [kind.record(number) for number in range(records)]
        kind.put(self._folder(), self.sound)
        self.expected, self.refused, _ = self.read()
        assert self.refused.is_empty(), f"{kind.name}: the sound file has refused lines"

    def _folder(self) -> Path:
        return self.home / f"data{self._runs}"

    def new(self) -> Path:
        """An empty folder for another version of the file."""
        self._runs += 1
        self._folder().mkdir(parents=True)
        return self._folder()

    def read(self, **filters: object) -> tuple[pl.DataFrame, pl.DataFrame, dict]:
        """Accepted, refused and metrics of the newest version. Raises SidrError as the stage does."""
        bench = Bench(self.home, self.kind.source(self._folder()), filters={**_LENIENT, **filters})
        made = bench.run(self.kind.stage)
        return rows(made, self.kind.stage), rows(made, "quarantine"), dict(made.manifest["metrics"])

    def mixed(self, fault: str, places: list[int], rng: random.Random) -> tuple[list, list[int], list[int]]:
        """Records with damaged ones at places; the line numbers of these, and those of the sound ones."""
        table, bad, good = [], [], []
        waiting = list(reversed(places))
        number = len(self.kind.header) + 1
        widths = [1] * len(self.sound)
        if self.kind.write is not None:
            widths = [self.kind.write(record).count(b"\n") + 1 for record in self.sound]
        for place in range(len(self.sound) + 1):
            while waiting and waiting[-1] == place:
                waiting.pop()
                copied = max(place - 1, 0) if fault == DUPLICATE else rng.randrange(len(self.sound))
                damaged = self.sound[copied] if fault == DUPLICATE else self.kind.damaged(fault, copied)
                table.append(damaged)
                bad.append(number)
                number += widths[copied] if fault == DUPLICATE else max(1, _lines(damaged))
            if place < len(self.sound):
                table.append(self.sound[place])
                good.append(number)
                number += widths[place]
        return table, bad, good


def _lines(damaged: object) -> int:
    return damaged.count(b"\n") + 1 if isinstance(damaged, bytes) else 1


def cell(ground: Ground, fault: str, where: str, seed: int) -> tuple[int, int, list[str]]:
    """One damaged file: how many records were injected, how many were caught, and what is wrong."""
    kind = ground.kind
    rng = random.Random(f"{kind.name}/{fault}/{where}/{seed}")
    places = PLACES[where](rng, len(ground.sound))
    if fault == "BOM" and not kind.header:
        places = [max(place, 1) for place in places]  # at the start of the file it is no fault
    table, bad, good = ground.mixed(fault, places, rng)
    kind.put(ground.new(), table)
    try:
        accepted, refused, metrics = ground.read()
    except SidrError as error:
        return len(bad), 0, [f"{kind.name}, {fault}, {where}: {error}"]
    return (len(bad), *_compared(ground, fault, where, (bad, good), (accepted, refused, metrics)))


def _compared(
    ground: Ground, fault: str, where: str, lines: tuple[list[int], list[int]], found: tuple
) -> tuple[int, list[str]]:
    kind, (bad, good), (accepted, refused, metrics) = ground.kind, lines, found
    wrong: list[str] = []
    if fault == DUPLICATE:
        caught = _duplicates(kind, bad, refused, metrics, wrong)
        if kind.name == "minionerec train":  # every row of a published split counts
            return len(accepted) - len(ground.expected), wrong
        accepted, expected = accepted.drop("line"), ground.expected.drop("line")
    else:
        caught = len(set(refused["line"]) & set(bad))
        if refused["line"].to_list() != bad or refused["file"].n_unique() > 1:
            odd = sorted(set(refused["line"]) ^ set(bad))
            wrong.append(f"lines {odd[:5]} ({len(odd)}) are refused and sound, or damaged and accepted")
        if set(refused["reason"]) != {kind.reasons[fault]}:
            wrong.append(f"reasons {sorted(set(refused['reason']))} instead of {kind.reasons[fault]}")
        expected = _numbered(ground, good)
    try:
        assert_frame_equal(accepted, expected, check_exact=True)
    except AssertionError as error:
        wrong.append(f"other records than of the sound file: {str(error).splitlines()[0]}")
    return caught, [f"{kind.name}, {fault}, {where}: {text}" for text in wrong]


def _duplicates(kind: Kind, bad: list[int], refused: pl.DataFrame, metrics: dict, wrong: list[str]) -> int:
    """How many repeats were dropped."""
    if kind.stage == "raw_items":
        if set(refused["reason"]) != {"duplicate_item"}:
            wrong.append(f"reasons {sorted(set(refused['reason']))}")
        return len(refused)
    if not refused.is_empty():
        wrong.append("repeats are refused instead of dropped")
    return metrics["exact_duplicates"]


def _numbered(ground: Ground, good: list[int]) -> pl.DataFrame:
    """The expected output with the line numbers that sound records have in the damaged file."""
    mine = pl.col("file") == ground.kind.file if "/" in ground.kind.file else pl.lit(True)
    one = ground.expected.filter(mine)
    assert len(one) == len(good)
    moved = one.with_columns(pl.Series("line", good, dtype=pl.Int64))
    return pl.concat([moved, ground.expected.filter(~mine)])


def matrix(kind: Kind, home: Path, records: int, seed: int, faults: tuple[str, ...] = ALL) -> Iterator[tuple]:
    """(fault, where -> (injected, caught), what is wrong) for each fault of a kind; no cells where it has none."""
    ground = Ground(kind, home, records)
    for fault in faults:
        cells: dict[str, tuple[int, int]] = {}
        wrong: list[str] = []
        for where in PLACES if fault in kind.reasons else ():
            if (fault == "10 MB line" or (kind.per_file and fault in TIMES[4:])) and where == "50 %":
                continue  # too large to write; a file that is half in another unit has no unit
            if fault == "BOM" and where == "first" and not kind.header:
                continue
            injected, caught, found = cell(ground, fault, where, seed)
            cells[where] = injected, caught
            wrong += (
                found if found or injected == caught else [f"{kind.name}, {fault}, {where}: {injected} <> {caught}"]
            )
        yield fault, cells, wrong


def _row(kind: str, fault: str, cells: dict[str, tuple[int, int]]) -> str:
    told = [f"{cells[where][0]:,} = {cells[where][1]:,}" if where in cells else "-" for where in PLACES]
    return f"| {kind} | {fault} | {' | '.join(told)} |"


def suite(count: int, seed: int, only: tuple[str, ...] = ()) -> int:
    """Print the tables; `only` are beginnings of names of kinds. Returns the number of broken promises."""
    broken: list[str] = []
    chosen = [kind for kind in kinds() if not only or kind.name.startswith(only)]
    with tempfile.TemporaryDirectory(prefix="sidr-inputs-") as folder:
        os.environ["SIDR_HOME"] = str(Path(folder) / "home")
        for number in range(count):
            print(f"\n| file of {RECORDS:,} records | fault | {' | '.join(PLACES)} |")
            print(f"| --- | --- |{' ---: |' * len(PLACES)}", flush=True)
            for kind in chosen:
                home = Path(folder) / f"{number}-{kind.name}"
                for fault, cells, wrong in matrix(kind, home, RECORDS, seed + number):
                    print(_row(kind.name, fault, cells), flush=True)
                    broken += wrong
        broken += input_files.suite(chosen, Path(folder), RECORDS // 10, seed)
    for text in broken[:30]:
        print(f"- {text}")
    return len(broken)
