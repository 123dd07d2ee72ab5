"""The catalogue in the form of an engine: which sequences of SID tokens may be answered, and the items behind each.

`static` gets what STATIC builds its masks from: the sorted rows of token ids as `sids.npy` (S, L) and the items of each
row in `items.json`. The other engines get one `catalogue.json` with the same two lists.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from sidr_core.errors import SidrError
from sidr_core.serving.contiguous import Ranges
from sidr_core.sids.index import SidIndex
from sidr_core.tables.columns import CODES, ITEM_ID

Engine = Literal["vllm", "sglang", "static", "hf"]
SEQUENCES, ITEMS, CATALOGUE = "sids.npy", "items.json", "catalogue.json"


@dataclass(frozen=True, eq=False)
class Catalogue:
    """S sequences of L token ids, (S, L) in ascending order, and the items of each."""

    sequences: np.ndarray
    items: list[list[str]]

    @classmethod
    def of(cls, index: SidIndex) -> Catalogue:
        """The catalogue of an index whose token ids ascend with the codes."""
        leaves = range(len(index))
        paths = np.array([index.path(leaf) for leaf in leaves], dtype=np.int32)
        return cls(paths, [index.items_of(leaf) for leaf in leaves])

    def write(self, folder: Path, engine: Engine) -> None:
        """Write the files that `engine` reads."""
        if engine == "static":
            np.save(folder / SEQUENCES, self.sequences, allow_pickle=False)
            (folder / ITEMS).write_text(json.dumps(self.items))
        else:
            content = {"sequences": self.sequences.tolist(), "items": self.items}
            (folder / CATALOGUE).write_text(json.dumps(content))

    @classmethod
    def read(cls, folder: Path) -> Catalogue:
        """The catalogue that lies in a folder, in either form.

        Raises:
            SidrError: there is none, or its rows are not of one length.
        """
        try:
            if (folder / SEQUENCES).is_file():
                sequences = np.load(folder / SEQUENCES, allow_pickle=False)
                items = json.loads((folder / ITEMS).read_text())
            else:
                content = json.loads((folder / CATALOGUE).read_text())
                sequences, items = np.array(content["sequences"], dtype=np.int32), content["items"]
            if sequences.ndim != 2 or len(sequences) != len(items):
                raise ValueError(f"{sequences.shape} token ids, {len(items)} rows of items")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SidrError(
                f"{folder} holds no catalogue of an engine",
                expected=f"{SEQUENCES} with {ITEMS}, or {CATALOGUE}: one row of token ids per row of items",
                found=str(error)[:200],
                fix="export again: sidr export --to … FOLDER",
            ) from None
        return cls(sequences, items)

    def faults(self, right: Catalogue) -> list[str]:
        """What differs from the right catalogue, an item a line."""
        mine, theirs = self._by_item(), right._by_item()
        lines = [f"item {item} is missing" for item in sorted(theirs.keys() - mine.keys())]
        lines += [f"item {item} is not of this catalogue" for item in sorted(mine.keys() - theirs.keys())]
        for item in sorted(mine.keys() & theirs.keys()):
            if mine[item] != theirs[item]:
                lines.append(f"item {item} has the tokens {_shown(mine[item])}, its own are {_shown(theirs[item])}")
        return lines

    def _by_item(self) -> dict[str, tuple[int, ...]]:
        rows = zip(self.sequences.tolist(), self.items, strict=True)
        return {item: tuple(tokens) for tokens, items in rows for item in items}

    def index(self, ranges: Ranges) -> SidIndex:
        """The index to decode with; rows with a token outside its level cannot be answered and are left out."""
        rows = [
            (item, codes)
            for tokens, items in zip(self.sequences.tolist(), self.items, strict=True)
            if (codes := ranges.codes_of(tokens)) is not None
            for item in items
        ]
        table = pl.DataFrame({ITEM_ID: [item for item, _ in rows], CODES: [codes for _, codes in rows]})
        ids = {token: number for number, token in enumerate(ranges.tokens, start=ranges.first[0])}
        return SidIndex.build(table, ids.__getitem__)


def _shown(tokens: Sequence[int]) -> str:
    return " ".join(map(str, tokens))
