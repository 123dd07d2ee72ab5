"""The index of all SIDs: a trie in flat arrays, any number of levels.

Nodes of one level are numbered from 0 in the order of their code prefixes, so the children of a node
are consecutive nodes of the next level and one pair of offsets finds them (compressed sparse rows, as
STATIC keeps them). Deviation from the base code, which maps strings of token ids to lists and, where a
prefix is unknown, lets the model write freely: here an unknown prefix raises.

The arrays can be written to a file and mapped from it, so that a catalogue of a million items opens at once
and processes share it. Texts of SIDs and items are made only when they are asked for.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from sidr_core.errors import SidrError
from sidr_core.sids.tokens import sid_texts, sid_token
from sidr_core.tables.columns import CODES, ITEM_ID, SID

LEAF, ITEM_ROW = "leaf", "item_row"
#: File format of :meth:`SidIndex.save`; raise when the arrays mean something else.
_FORMAT = "1"


@dataclass(frozen=True, eq=False)
class SidIndex:
    """A trie over SIDs. L levels, N_l nodes at level l (1..L), N_0 = 1 (the root), N_L = S distinct SIDs, I items.

    Attributes:
        starts: L arrays; `starts[l]` (N_l + 1,): node i of level l has the children
            `starts[l][i] .. starts[l][i+1] - 1` of level l + 1.
        token_ids: L arrays; `token_ids[l]` (N_{l+1},): vocabulary id by which node i of level l + 1 is entered.
        codes: L arrays; `codes[l]` (N_{l+1},): its code.
        item_starts: (S + 1,): leaf i is carried by the items `item_starts[i] .. item_starts[i+1] - 1`.
        item_ends: (I + 1,): item i has the bytes `item_ends[i] .. item_ends[i+1] - 1` of `item_text`.
        item_text: UTF-8 of all item ids in the order of the leaves, ids of one leaf sorted.
    """

    starts: tuple[np.ndarray, ...]
    token_ids: tuple[np.ndarray, ...]
    codes: tuple[np.ndarray, ...]
    item_starts: np.ndarray
    item_ends: np.ndarray
    item_text: np.ndarray

    @classmethod
    def build(cls, codebook: pl.DataFrame, token_id: Callable[[str], int]) -> SidIndex:
        """Build from a codebook table (columns `item_id`, `codes`).

        Args:
            codebook: one row per item.
            token_id: vocabulary id of a SID token such as `<a_3>`.

        Raises:
            SidrError: no items, or SIDs of unequal length.
        """
        levels = {f"code_{level}": codes for level, codes in enumerate(levels_of(codebook[CODES]))}
        names = list(levels)
        rows = pl.DataFrame(levels).with_columns(codebook[ITEM_ID]).sort(*names, ITEM_ID)
        starts, ids, codes = [], [], []
        above, fresh = np.zeros(1, dtype=np.int64), np.zeros(len(rows), dtype=bool)
        fresh[0] = True
        for level, name in enumerate(names):
            column = rows[name].to_numpy()
            fresh[1:] |= column[1:] != column[:-1]
            first = np.flatnonzero(fresh)  # the row where each node begins
            starts.append(np.append(np.searchsorted(first, above), len(first)).astype(np.int32))
            used, slot = np.unique(column[first], return_inverse=True)
            known = [token_id(sid_token(level, code)) for code in used]
            ids.append(np.array(known, dtype=np.int32)[slot])
            codes.append(column[first].astype(np.int32))
            above = first
        text = rows[ITEM_ID].cast(pl.Binary)
        ends = np.append(0, text.bin.size().to_numpy().cumsum(dtype=np.int64))
        joined = np.frombuffer(b"".join(text.to_list()), dtype=np.uint8)
        return cls(tuple(starts), tuple(ids), tuple(codes), np.append(above, len(rows)).astype(np.int32), ends, joined)

    def save(self, path: Path, made_from: str) -> None:
        """Write the arrays as safetensors; equal indices give equal bytes. `made_from` is kept with them."""
        from safetensors.numpy import save_file

        arrays = {"item_starts": self.item_starts, "item_ends": self.item_ends, "item_text": self.item_text}
        for level in range(self.levels):
            arrays[f"starts_{level}"] = self.starts[level]
            arrays[f"token_ids_{level}"] = self.token_ids[level]
            arrays[f"codes_{level}"] = self.codes[level]
        # The order of the header's entries is not fixed by the library unless there is one only.
        about = json.dumps({"format": _FORMAT, "levels": self.levels, "made_from": made_from}, sort_keys=True)
        save_file(arrays, path, metadata={"sidr": about})

    @classmethod
    def load(cls, path: Path, made_from: str) -> SidIndex | None:
        """Map an index from the file of :meth:`save`; None if there is none, or it was made from something else."""
        try:
            arrays, about = _mapped(path)
            if about["format"] != _FORMAT or about["made_from"] != made_from:
                return None
            starts, token_ids, codes = (
                tuple(arrays[f"{name}_{level}"] for level in range(about["levels"]))
                for name in ("starts", "token_ids", "codes")
            )
            return cls(starts, token_ids, codes, *(arrays[f"item_{name}"] for name in ("starts", "ends", "text")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None

    @property
    def levels(self) -> int:
        """Tokens per SID, L."""
        return len(self.starts)

    def __len__(self) -> int:
        """Number of distinct SIDs, S."""
        return len(self.token_ids[-1])

    def tokens(self, level: int) -> np.ndarray:
        """Distinct vocabulary ids in use at `level` (0-based), ascending."""
        return np.unique(self.token_ids[level])

    def children(self, prefix: Sequence[int]) -> list[int]:
        """Vocabulary ids that may follow `prefix` (ids of a SID's first tokens; empty = the start).

        Raises:
            ValueError: no SID begins with `prefix`, or it is a whole SID already.
        """
        if len(prefix) >= self.levels:
            raise ValueError(f"a SID has {self.levels} tokens; nothing may follow {list(prefix)}")
        first, last = self._children_of(self._node(prefix), len(prefix))
        return self.token_ids[len(prefix)][first:last].tolist()

    def leaf(self, tokens: Sequence[int]) -> int:
        """Row number of the SID with these token ids.

        Raises:
            ValueError: it is no SID of the index.
        """
        if len(tokens) != self.levels:
            raise ValueError(f"a SID has {self.levels} tokens, not {len(tokens)}")
        return self._node(tokens)

    @cached_property
    def sids(self) -> tuple[str, ...]:
        """The SID of each leaf, in leaf order."""
        return tuple(self.sids_of(np.arange(len(self))).to_list())

    @cached_property
    def leaf_of(self) -> dict[str, int]:
        """SID text -> its row number."""
        return {sid: row for row, sid in enumerate(self.sids)}

    def sids_of(self, leaves: np.ndarray) -> pl.Series:
        """SIDs of the rows `leaves` (S',)."""
        return sid_texts([self.codes[level][nodes] for level, nodes in enumerate(self._nodes(leaves))])

    def items_of(self, leaf: int) -> list[str]:
        """Items that carry the SID of row `leaf`, sorted by id."""
        return self.items_at(np.array([leaf]))[ITEM_ID].to_list()

    @cached_property
    def item_ids(self) -> pl.Series:
        """The id of each item, (I,), in the order of the leaves; ids of one leaf are sorted."""
        ends, text = pa.py_buffer(self.item_ends), pa.py_buffer(self.item_text)
        return pl.Series(ITEM_ID, pa.LargeStringArray.from_buffers(len(self.item_ends) - 1, ends, text))

    def leaves_with(self, items: np.ndarray) -> np.ndarray:
        """(S,) bool, or (R, S): the leaves that carry an item of the mask (I,), or (R, I): a filter for the beam."""
        return np.logical_or.reduceat(items, self.item_starts[:-1], axis=-1)

    def items_at(self, leaves: np.ndarray) -> pl.DataFrame:
        """`leaf`, `sid`, `item_id`, `item_row`: one row per item that carries the SID of one of the distinct `leaves`.

        `item_row` is the position in :attr:`item_ids`.
        """
        first, last = self.item_starts[leaves].astype(np.int64), self.item_starts[leaves + 1].astype(np.int64)
        shared = last - first
        offset = np.arange(shared.sum()) - np.repeat(np.cumsum(shared) - shared, shared)
        rows = np.repeat(first, shared) + offset
        ends, text = self.item_ends, self.item_text
        items = [text[ends[row] : ends[row + 1]].tobytes().decode() for row in rows.tolist()]
        return pl.DataFrame(
            {
                LEAF: np.repeat(leaves, shared),
                SID: self.sids_of(np.repeat(leaves, shared)),
                ITEM_ID: items,
                ITEM_ROW: rows,
            },
            schema_overrides={ITEM_ID: pl.String},
        )

    def path(self, leaf: int) -> list[int]:
        """The L token ids of the SID of row `leaf`."""
        return [int(self.token_ids[level][node[0]]) for level, node in enumerate(self._nodes(np.array([leaf])))]

    def _nodes(self, leaves: np.ndarray) -> list[np.ndarray]:
        """The nodes (S',) of each level on the way to `leaves` (S',)."""
        nodes = [leaves]
        for level in range(self.levels - 1, 0, -1):
            nodes.append(np.searchsorted(self.starts[level], nodes[-1], side="right") - 1)
        return nodes[::-1]

    def _children_of(self, node: int, level: int) -> tuple[int, int]:
        return int(self.starts[level][node]), int(self.starts[level][node + 1])

    def _node(self, prefix: Sequence[int]) -> int:
        node = 0
        for level, token in enumerate(prefix):
            first, last = self._children_of(node, level)
            match = np.flatnonzero(self.token_ids[level][first:last] == token)
            if not len(match):
                raise ValueError(f"no SID begins with the tokens {list(prefix[: level + 1])}")
            node = first + int(match[0])
        return node


def levels_of(codes: pl.Series) -> list[np.ndarray]:
    """The codes (I,) of each of the L levels, from a column of lists.

    Raises:
        SidrError: no items, or SIDs of unequal length.
    """
    lengths = codes.list.len().unique().sort().to_list()
    if len(lengths) != 1 or 0 in lengths:
        raise SidrError(
            "the codebook cannot be indexed",
            expected="at least one item, and SIDs of one length",
            found=f"{len(codes)} items, SIDs of {' and '.join(map(str, lengths)) or 'no'} codes",
            fix="materialize sid_codebook again",
        )
    return [codes.list.get(level).to_numpy() for level in range(lengths[0])]


_TYPES = {"I32": np.dtype("<i4"), "I64": np.dtype("<i8"), "U8": np.dtype("u1")}


def _mapped(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    """The arrays of a safetensors file without reading them (the library's own loader copies), and what it tells."""
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    header_bytes = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + header_bytes])
    about = json.loads(header.pop("__metadata__")["sidr"])
    arrays = {}
    for name, field in header.items():
        (count,), (begin, _) = field["shape"], field["data_offsets"]
        arrays[name] = np.frombuffer(data, _TYPES[field["dtype"]], count, 8 + header_bytes + begin)
    return arrays, about
