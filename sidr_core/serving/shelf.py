"""The items and users of a release: names, histories, and which items a filter lets through."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import polars as pl

from sidr_core.corpus.catalogue import Catalogue, Item
from sidr_core.errors import SidrError
from sidr_core.serving.messages import Filters
from sidr_core.serving.published import unknown_name
from sidr_core.serving.release import Release
from sidr_core.sids.index import SidIndex
from sidr_core.sids.tokens import SID_PATTERN
from sidr_core.tables import files as tables
from sidr_core.tables.columns import CATEGORY, ITEM_ID, POSITION, TIMESTAMP, USER_ID

_PATH = " > "


class Shelf:
    """Items in the order of the SID index (I of them), users, and masks over the items.

    Args:
        release: gives interactions, items and codebook. index: of its checkpoint.
    """

    def __init__(self, release: Release, index: SidIndex) -> None:
        source = release.outputs["interactions"]
        self.where = f"{release.place.dataset}/{release.place.snapshot}"
        self.max_history: int = source.manifest["key"]["config"]["split"]["max_history"]
        items = tables.read(source.path("items.parquet"))
        self.codebook = tables.read(release.outputs["sid_codebook"].path("sid_codebook.parquet"))
        self.catalogue = Catalogue.read(items, self.codebook)
        self.item_ids = index.item_ids.to_list()
        self.row_of = {item: row for row, item in enumerate(self.item_ids)}
        log = tables.read(source.path("interactions.parquet"), [USER_ID, ITEM_ID, POSITION, TIMESTAMP])
        bought = log.sort(USER_ID, POSITION).group_by(USER_ID, maintain_order=True).agg(ITEM_ID)
        self._histories, self.users = bought[ITEM_ID], bought[USER_ID].to_list()
        self._place = {user: place for place, user in enumerate(self.users)}
        order = pl.DataFrame({ITEM_ID: self.item_ids})
        first = log.group_by(ITEM_ID).agg(pl.col(TIMESTAMP).min())
        self._first = (
            order.join(first, on=ITEM_ID, how="left", maintain_order="left")[TIMESTAMP].fill_null(-1).to_numpy()
        )
        joined = order.join(items.select(ITEM_ID, CATEGORY), on=ITEM_ID, how="left", maintain_order="left")
        self._paths = joined[CATEGORY].fill_null("")

    def __len__(self) -> int:
        return len(self.item_ids)

    @cached_property
    def categories(self) -> list[str]:
        """Every path of a category, and every beginning of one, sorted."""
        found = set()
        for path in self._paths.unique().to_list():
            parts = path.split(_PATH) if path else []
            found |= {_PATH.join(parts[:count]) for count in range(1, len(parts) + 1)}
        return sorted(found)

    @cached_property
    def titled(self) -> dict[str, str]:
        """Title in lower case, as it is and as it is shown -> item id, the first of equal titles."""
        names: dict[str, str] = {}
        for item_id, item in self.catalogue.items():
            for title in (item.title, item.full_title, item.short_title):
                names.setdefault(title.strip().casefold(), item_id)
        return names

    def bought(self, user: str) -> list[str]:
        """Everything that a user had, oldest first.

        Raises:
            SidrError: there is no such user.
        """
        if user not in self._place:
            raise unknown_name("user", user, self.users, f"the interactions of {self.where}")
        return self._histories[self._place[user]].to_list()

    def known(self, item_ids: Sequence[str]) -> list[str]:
        """The same ids. Raises SidrError where one is no item."""
        for item in item_ids:
            if item not in self.row_of:
                raise unknown_name("item", item, self.item_ids, f"the catalogue of {self.where}")
        return list(item_ids)

    def allowed(self, filters: Filters, seen: Sequence[str]) -> np.ndarray | None:
        """(I,) bool, the items that filters let through; None without a filter.

        Args:
            seen: what the user, or the history, had.

        Raises:
            SidrError: an unknown item or category.
        """
        if filters == Filters():
            return None
        mask = np.ones(len(self), dtype=bool)
        if filters.in_stock is not None:
            mask[:] = False
            mask[[self.row_of[item] for item in self.known(filters.in_stock)]] = True
        if filters.categories is not None:
            mask &= self._of_category(filters.categories)
        if filters.fresher_than is not None:
            since = datetime.datetime.combine(filters.fresher_than, datetime.time(), datetime.UTC)
            mask &= self._first >= since.timestamp()
        if filters.exclude_seen:
            mask[[self.row_of[item] for item in seen if item in self.row_of]] = False
        return mask

    def without(self, history: Sequence[str], allowed: np.ndarray | None) -> np.ndarray:
        """(I,) bool, the same items less all that carry a SID of the history."""
        mask = np.ones(len(self), dtype=bool) if allowed is None else allowed
        met = {item.item_id for own in history for item in self.catalogue.carrying(self.catalogue[own].sid)}
        mask[[self.row_of[item] for item in met if item in self.row_of]] = False
        return mask

    def _of_category(self, categories: Sequence[str]) -> np.ndarray:
        for category in categories:
            if category not in self.categories:
                raise unknown_name("category", category, self.categories, f"the catalogue of {self.where}")
        wanted = pl.any_horizontal(
            [pl.lit(False)]
            + [(pl.col(CATEGORY) == path) | pl.col(CATEGORY).str.starts_with(path + _PATH) for path in categories]
        )
        return self._paths.to_frame().select(wanted.alias("wanted"))["wanted"].to_numpy()

    def items_like(self, text: str, most: int) -> list[Item]:
        """Items whose id begins with a text, or whose title holds it, in catalogue order."""
        wanted, found = text.strip().casefold(), []
        for item_id, item in self.catalogue.items():
            if item_id.casefold().startswith(wanted) or wanted in item.title.casefold():
                found.append(item)
                if len(found) == most:
                    break
        return found

    def users_like(self, text: str, most: int) -> list[str]:
        """Users whose id holds a text."""
        wanted, found = text.strip().casefold(), []
        for user in self.users:
            if wanted in user.casefold():
                found.append(user)
                if len(found) == most:
                    break
        return found

    def named_in(self, text: str) -> tuple[str | None, list[str]]:
        """Whose history a text means: a user, or items by SID, or by id or title, one a line or between commas.

        Where a text holds SIDs they are the history, whatever stands around them: so a model's own prompt can be asked.

        Raises:
            SidrError: a name is neither.
        """
        whole = text.strip()
        user = whole.removeprefix("user").lstrip(": ").strip() if whole.casefold().startswith("user") else whole
        for name in (whole, user):
            if name in self._place:
                return name, []
        if sids := SID_PATTERN.findall(whole):
            return None, [self._of_sid(sid) for sid in sids]
        items: list[str] = []
        for line in whole.splitlines():
            line = line.strip().lstrip("-*• ").strip()
            if item := self._item(line):
                items.append(item)
            else:
                items += [self._item(name) or self._refuse(name) for name in _parts(line)]
        return None, items

    def _of_sid(self, sid: str) -> str:
        """The first item of a SID; all of them are the same to a model."""
        if not (items := self.catalogue.carrying(sid)):
            known = [item.sid for _, item in self.catalogue.items()]
            raise unknown_name("item with the SID", sid, known, f"the catalogue of {self.where}")
        return items[0].item_id

    def _item(self, name: str) -> str | None:
        return name if name in self.row_of else self.titled.get(name.casefold()) if name else None

    def _refuse(self, name: str) -> str:
        raise unknown_name("item or user", name[:200], [*self.item_ids, *self.titled], f"the catalogue of {self.where}")


def _parts(line: str) -> list[str]:
    return [part.strip() for part in line.replace(";", ",").split(",") if part.strip()]


def refuse_empty(history: Sequence[str]) -> None:
    """Raises SidrError where a history holds nothing."""
    if not history:
        raise SidrError(
            "the history is empty, so nothing can follow from it",
            expected="at least one item id in `history`, or a `user_id`",
            found="none",
            fix="give the items that were bought, oldest first",
        )
