"""The text form of a SID: `<a_3><b_17><c_200>`.

One token per level, levels lettered a, b, c, …, codes 0-based as in the published indices (docs/method.md,
"Codebooks"). Only codes in use become vocabulary entries. Parsing is strict: a swapped or missing level, a blank or a
leading zero is an error, unlike the permissive patterns of the base code.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

import numpy as np
import polars as pl

from sidr_core.tables.columns import CODES, SID

_LETTERS = string.ascii_lowercase
_CODE = r"(?:0|[1-9]\d*)"

#: One SID token of any level.
SID_TOKEN = re.compile(rf"<[a-z]_{_CODE}>", re.ASCII)


def _nested(letters: str) -> str:
    """`<a_i>(?:<b_j>(?:<c_k>…)?)?`: levels in order from a, none skipped, as long as possible."""
    token = f"<{letters[0]}_{_CODE}>"
    return token if len(letters) == 1 else f"{token}(?:{_nested(letters[1:])})?"


#: One whole SID of any number of levels inside a text: levels in order, beginning with a.
SID_PATTERN = re.compile(_nested(_LETTERS), re.ASCII)


def sid_tokens(codes: Sequence[int]) -> list[str]:
    """The tokens of a SID, one per level: `[3, 17]` -> `["<a_3>", "<b_17>"]`.

    Raises:
        ValueError: no code, a negative one, or more levels than letters.
    """
    if not 0 < len(codes) <= len(_LETTERS) or min(codes) < 0:
        raise ValueError(f"a SID has 1 to {len(_LETTERS)} codes of at least 0, not {list(codes)}")
    return [sid_token(level, code) for level, code in enumerate(codes)]


def sid_token(level: int, code: int) -> str:
    """The token of a code at a level (0-based): `(1, 17)` -> `<b_17>`."""
    return f"<{_LETTERS[level]}_{int(code)}>"


def format_sid(codes: Sequence[int]) -> str:
    """The SID as one string, tokens without blanks between them."""
    return "".join(sid_tokens(codes))


def parse_sid(text: str) -> list[int]:
    """The codes of a SID; the inverse of :func:`format_sid`.

    Raises:
        ValueError: `text` is anything but one whole SID.
    """
    if not SID_PATTERN.fullmatch(text):
        raise ValueError(f"not a SID: {text[:80]!r}")
    return [int(token[3:-1]) for token in SID_TOKEN.findall(text)]


def parse_sids(items: pl.Series, sids: pl.Series) -> np.ndarray:
    """(N, L) codes of the SIDs of N items.

    Raises:
        ValueError: names the first item whose SID is none, or has other levels than those before.
    """
    codes: list[list[int]] = []
    for item, sid in zip(items, sids, strict=True):
        is_one_sid = SID_PATTERN.fullmatch(sid or "") is not None
        codes.append(parse_sid(sid) if is_one_sid else [])
        if not is_one_sid or len(codes[-1]) != len(codes[0]):
            raise ValueError(f"item {item!r} has {sid!r}"[:200])
    return np.array(codes)


def used_tokens(codebook: pl.DataFrame) -> list[str]:
    """The distinct tokens of a codebook table (column `codes`), by level, then by number."""
    pairs = {(level, code) for codes in codebook[CODES] for level, code in enumerate(codes)}
    return [sid_token(level, code) for level, code in sorted(pairs)]


def sid_texts(levels: Sequence[np.ndarray]) -> pl.Series:
    """The SIDs of a whole catalogue as text, by :func:`format_sid`, from L arrays of codes (S,)."""
    pattern = format_sid([0] * len(levels)).replace("0", "{}")
    frame = pl.DataFrame({f"code_{level}": codes for level, codes in enumerate(levels)})
    return frame.select(pl.format(pattern, *frame.columns).alias(SID))[SID]
