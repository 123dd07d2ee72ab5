"""The index of all SIDs: a trie in flat arrays, any number of levels.

Nodes of one level are numbered from 0 in the order of their code prefixes, so the children of a node
are consecutive nodes of the next level and one pair of offsets finds them (compressed sparse rows, as
STATIC keeps them). Deviation from the base code, which maps strings of token ids to lists and, where a
prefix is unknown, lets the model write freely: here an unknown prefix raises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import numpy as np
import polars as pl

from sidr_core.columns import CODES, ITEM_ID
from sidr_core.errors import SidrError
from sidr_core.sids.tokens import format_sid, sid_tokens


@dataclass(frozen=True, eq=False)
class SidIndex:
    """A trie over SIDs. L levels, N_l nodes at level l (1..L), N_0 = 1 (the root), N_L = S distinct SIDs.

    Attributes:
        starts: L arrays; `starts[l]` (N_l + 1,): node i of level l has the children
            `starts[l][i] .. starts[l][i+1] - 1` of level l + 1.
        token_ids: L arrays; `token_ids[l]` (N_{l+1},): vocabulary id by which node i of level l + 1 is entered.
        sids: (S,) the SID of each leaf, in leaf order.
        item_ids: (S,) the items of each leaf, sorted; more than one where items share a SID.
    """

    starts: tuple[np.ndarray, ...]
    token_ids: tuple[np.ndarray, ...]
    sids: tuple[str, ...]
    item_ids: tuple[tuple[str, ...], ...]

    @classmethod
    def build(cls, codebook: pl.DataFrame, token_id: Callable[[str], int]) -> SidIndex:
        """Build from a codebook table (columns `item_id`, `codes`).

        Args:
            codebook: one row per item.
            token_id: vocabulary id of a SID token such as `<a_3>`.

        Raises:
            SidrError: no items, or SIDs of unequal length.
        """
        rows = sorted((tuple(codes), item) for item, codes in codebook.select(ITEM_ID, CODES).iter_rows())
        lengths = {len(codes) for codes, _ in rows}
        if len(lengths) != 1 or 0 in lengths:
            raise SidrError(
                "the codebook cannot be indexed",
                expected="at least one item, and SIDs of one length",
                found=f"{len(rows)} items, lengths {sorted(lengths)}",
                do="materialize sid_codebook again",
            )
        groups = {codes: tuple(item for _, item in group) for codes, group in groupby(rows, key=lambda row: row[0])}
        leaves = list(groups)
        starts, ids = [], []
        parents: list[tuple[int, ...]] = [()]
        for level in range(1, len(leaves[0]) + 1):
            nodes = sorted({codes[:level] for codes in leaves})
            of_parent = {parent: 0 for parent in parents}
            for node in nodes:
                of_parent[node[:-1]] += 1
            starts.append(np.cumsum([0, *of_parent.values()], dtype=np.int64))
            ids.append(np.array([token_id(sid_tokens(node)[-1]) for node in nodes], dtype=np.int64))
            parents = nodes
        return cls(tuple(starts), tuple(ids), tuple(format_sid(codes) for codes in leaves), tuple(groups.values()))

    @property
    def levels(self) -> int:
        """Tokens per SID, L."""
        return len(self.starts)

    def __len__(self) -> int:
        """Number of distinct SIDs, S."""
        return len(self.sids)

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
    def leaf_of(self) -> dict[str, int]:
        """SID text -> its row number."""
        return {sid: row for row, sid in enumerate(self.sids)}

    def items_of(self, leaf: int) -> list[str]:
        """Items that carry the SID of row `leaf`, sorted by id."""
        return list(self.item_ids[leaf])

    def path(self, leaf: int) -> list[int]:
        """The L token ids of the SID of row `leaf`."""
        ids, node = [], leaf
        for level in reversed(range(self.levels)):
            ids.append(int(self.token_ids[level][node]))
            node = int(np.searchsorted(self.starts[level], node, side="right")) - 1
        return ids[::-1]

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
