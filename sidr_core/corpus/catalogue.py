"""The catalogue as the corpus sees it: one record per item, and the words of untrusted text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

import polars as pl

from sidr_core.corpus.prompts import HISTORY_TITLE_CHARS, TITLE_CHARS, UNTITLED, neutralise
from sidr_core.errors import InputError
from sidr_core.sids.tokens import SID_PATTERN
from sidr_core.tables.columns import CODES, ITEM_ID, SID

_ENTITY = re.compile(r"&#?\w+;")
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_PARTS = re.compile(r"['’-]")
_ENDINGS = (("ing", 4), ("er", 4), ("ed", 4), ("ly", 4))
_TEXT_CHARS = 2000
_LONGEST_WORD = 20
_LONGEST_WITH_DIGIT = 5

#: Words that say nothing about an item.
_STOPWORDS = """
a an and are as at be by can for from has have if in into is it its more no not of on or our per so than that the their
this to up use used uses using was we will with you your new set pack count piece pieces each
"""
STOPWORDS = frozenset(_STOPWORDS.split())


def all_words(text: str) -> list[str]:
    """Every word and number of `text`, lower case, in order; SIDs and HTML entities count as blanks.

    Only letters and digits, inner hyphens and apostrophes remain, so no word can forge a token.
    """
    return _WORD.findall(_ENTITY.sub(" ", SID_PATTERN.sub(" ", text)).lower())


def content_words(text: str) -> list[str]:
    """The distinct words of `text` that can describe an item, in order of first use.

    Stopwords, bare numbers, part numbers (digits in a long word) and overlong words are left out.
    """
    return [word for word in dict.fromkeys(all_words(text[:_TEXT_CHARS])) if _describes(word)]


@lru_cache(maxsize=100_000)
def _describes(word: str) -> bool:
    if not 2 <= len(word) <= _LONGEST_WORD or word in STOPWORDS or not any(c.isalpha() for c in word):
        return False
    return len(word) <= _LONGEST_WITH_DIGIT or not any(c.isdigit() for c in word)


def audit_words(text: str) -> frozenset[str]:
    """The stems of all words of `text` and of the parts of hyphenated ones; SIDs do not count."""
    words = all_words(unicodedata.normalize("NFKC", text))
    return frozenset(_stem(part) for word in words for part in (word, *_PARTS.split(word)) if part)


@lru_cache(maxsize=100_000)
def _stem(word: str) -> str:
    """Without a plural's or verb's ending: `printers`, `printing` and `print` are one."""
    if word.endswith("es") and word[:-2].endswith(("x", "z", "ch", "sh", "ss")):
        word = word[:-2]
    elif word.endswith("s") and len(word) > 3 and word[-2] not in "siu":
        word = word[:-1]
    for ending, least in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= least:
            return word[: -len(ending)]
    return word


@dataclass(frozen=True)
class Item:
    """One item; text fields are untrusted and as they came. `codes` are those of its SID."""

    item_id: str
    sid: str
    codes: tuple[int, ...]
    title: str
    brand: str = ""
    category: str = ""
    description: str = ""

    @cached_property
    def words(self) -> tuple[str, ...]:
        """Content words of title, brand and category: what a thought may say about the item."""
        return tuple(content_words(f"{self.title} {self.brand} {self.category}"))

    @cached_property
    def facts(self) -> frozenset[str]:
        """All words of title, brand and category, as :func:`audit_words`."""
        return audit_words(f"{self.title} {self.brand} {self.category}")

    @cached_property
    def full_title(self) -> str:
        """The neutralised title where it stands alone; empty if nothing of it can be shown."""
        return neutralise(self.title, TITLE_CHARS)

    @cached_property
    def short_title(self) -> str:
        """The neutralised title inside a history."""
        return neutralise(self.title, HISTORY_TITLE_CHARS) or UNTITLED


class Catalogue(Mapping[str, Item]):
    """item_id -> :class:`Item`, in the order of the items table."""

    def __init__(self, items: Mapping[str, Item]) -> None:
        self._items = dict(items)

    @classmethod
    def read(cls, items: pl.DataFrame, codebook: pl.DataFrame) -> Catalogue:
        """Join the items table with the codebook.

        Raises:
            InputError: an item has no SID.
        """
        table = items.join(codebook.select(ITEM_ID, SID, CODES), on=ITEM_ID, how="left", maintain_order="left")
        if (lacking := table.filter(pl.col(SID).is_null())).height:
            raise InputError(
                f"{lacking.height} of {table.height} items have no SID",
                expected="every item of items.parquet in sid_codebook.parquet",
                found=f"none for item {lacking[ITEM_ID][0]!r}",
                fix="materialize sid_codebook again for this snapshot",
            )
        names = ("title", "brand", "category", "description")
        return cls(
            {
                row[ITEM_ID]: Item(row[ITEM_ID], row[SID], tuple(row[CODES]), *(row[name] for name in names))
                for row in table.iter_rows(named=True)
            }
        )

    def __getitem__(self, item_id: str) -> Item:
        try:
            return self._items[item_id]
        except KeyError:
            raise InputError(
                "a train row names an item that is not in the catalogue",
                expected="only items of items.parquet",
                found=repr(item_id),
                fix="materialize interactions again for this snapshot",
            ) from None

    def carrying(self, sid: str) -> tuple[Item, ...]:
        """The items of a SID; none if it is of no item."""
        return self._by_sid.get(sid, ())

    @cached_property
    def _by_sid(self) -> dict[str, tuple[Item, ...]]:
        items: dict[str, tuple[Item, ...]] = {}
        for item in self._items.values():
            items[item.sid] = (*items.get(item.sid, ()), item)
        return items

    def __contains__(self, item_id: object) -> bool:
        return item_id in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)
