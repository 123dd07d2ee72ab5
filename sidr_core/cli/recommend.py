"""`sidr recommend`: the best items after a history, now, from the newest checkpoint.

The catalogue is that of the newest codebook, which may be of a later snapshot than the checkpoint: then new items are
listed without a training, and those that left are not. Merged and mixed lists rest on weights that were chosen for
`recommendations`, so they are made as `sidr serve` makes them, from the newest of these.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Container

import polars as pl

from sidr_core.errors import SidrError
from sidr_core.evaluation import cases
from sidr_core.recommending.mixture import SHORTCUT
from sidr_core.serving.published import Published, unknown_name
from sidr_core.tables import files as tables
from sidr_core.tables.columns import ITEM_ID, MERGED, MIXED, POSITION, RANK, REASONING, SCORE, SID, USER_ID


def recommend(
    dataset: str | None, snapshot: str | None, user: str | None, history: str | None, mode: str, k: int | None
) -> None:
    """Print the `k` best items after a user's history, or after the given items."""
    if (user is None) == (history is None):
        raise SidrError(
            "it is unclear whose history to use",
            expected="either --user or --history",
            found="both" if user else "neither",
            fix="for example: sidr recommend --history ITEM,ITEM",
        )
    if mode in (MERGED, MIXED):
        _as_served(dataset, snapshot, user, history, mode, k)
        return
    published = Published.of(dataset, snapshot, "sid_codebook")
    trained = published.at_or_before("grpo_checkpoint")
    where = f"{published.dataset}/{published.snapshot}"
    sids = published.titles().sids
    if user is not None:
        log = pl.scan_parquet(published.file("interactions", "interactions.parquet"))
        items = log.filter(pl.col(USER_ID) == user).sort(POSITION).collect()[ITEM_ID].to_list()
        if not items:
            users = log.select(USER_ID).unique().collect()[USER_ID].to_list()
            raise unknown_name("user", user, users, f"the interactions of {where}")
    else:
        items = history_items(history or "", sids)
        for item in items or [""]:
            if item not in sids:
                raise unknown_name("item", item, list(sids), f"the catalogue of {where}")
    items = items[-published.config.split.max_history :]

    from sidr_core.models import checkpoint
    from sidr_core.recommending.fresh import with_catalogue
    from sidr_core.recommending.lists import checkpoint_lists

    loaded = checkpoint.load(trained.artifact("grpo_checkpoint").verified_folder())
    if trained.snapshot != published.snapshot:
        codebook = tables.read(published.file("sid_codebook", "sid_codebook.parquet"))
        fresh = with_catalogue(loaded, codebook)
        print(f"checkpoint of {trained.snapshot}, catalogue of {published.snapshot}: {fresh}", file=sys.stderr)
        loaded = fresh.loaded
    decoding = published.config.decoding
    history_sids = [sids[item] for item in items]
    repeats = _repeats(published)
    most = len(loaded.index) - (0 if repeats else len(set(history_sids) & set(loaded.index.leaf_of)))
    k = min(10, most) if k is None else k
    if k > most:
        left = "" if repeats else " that the history does not hold (decoding.seen)"
        raise SidrError(
            f"a list of {k} cannot be filled",
            expected=f"-k of 1 to {most}, the number of distinct SIDs{left}",
            found=f"-k {k}",
            fix="ask for fewer items",
        )
    decoding = decoding.model_copy(update={"beam_width": max(k, decoding.beam_width)})
    lists = checkpoint_lists(loaded, ["row"], [history_sids], mode, decoding, repeats=repeats)
    thought = lists.thoughts.row(0, named=True) if lists.thoughts is not None else None
    whose = f"user {user}" if user is not None else "the given history"
    case = cases.Case(
        published.heading("sid_codebook", f"grpo/{mode} for {whose}"),
        items,
        lists.rankings.head(k),
        thought=None if thought is None else thought[REASONING],
        unclosed=thought is not None and not thought["closed"],
    )
    cases.show(case, published.titles())


def _repeats(published: Published) -> bool:
    """Whether items of the history may be listed: as in `recommendations`, where valid rows may have chosen."""
    from sidr_core.recommending.rows import lists_repeat

    choosing = {}
    if published.config.decoding.seen == "choose":
        stage = f"baseline_{SHORTCUT}"
        choosing[stage] = published.at_or_before(stage).artifact(stage)
    return lists_repeat(choosing, published.config.decoding)


def _as_served(
    dataset: str | None, snapshot: str | None, user: str | None, history: str | None, mode: str, k: int | None
) -> None:
    """Print a list that `recommendations` made of others, as the server gives it."""
    from sidr_core.serving import release
    from sidr_core.serving.messages import Question
    from sidr_core.serving.served import Served

    published = Published.of(dataset, snapshot, release.LISTS)
    place = release.Place(published.dataset, published.snapshot, published.artifact(release.LISTS).fingerprint)
    served = Served.load(release.opened(published.store, place, "grpo"))
    items = None if history is None else history_items(history, served.shelf.row_of)
    ask = served.ask(Question.model_validate({"user_id": user, "history": items, "mode": mode, "k": k or 10}))
    (found,) = served.find([ask])
    places = pl.DataFrame(found.places, schema=[ITEM_ID, SID, SCORE], orient="row").with_row_index(RANK, offset=1)
    text, closed, _ = found.thought or (None, True, 0)
    whose = f"user {user}" if user is not None else "the given history"
    heading = published.heading(release.LISTS, f"{served.release.names[ask.mode]} for {whose}")
    cases.show(cases.Case(heading, list(ask.history), places, thought=text, unclosed=not closed), published.titles())


def history_items(history: str, known: Container[str]) -> list[str]:
    """The item ids of `--history`: separated by commas; one that holds a comma stands in double quotes, or alone.

    >>> history_items('A, "b,c"', {"A", "b,c"}), history_items("b,c", {"A", "b,c"})
    (['A', 'b,c'], ['b,c'])
    """
    if history in known:
        return [history]
    try:
        cells = next(csv.reader([history], skipinitialspace=True), [])
    except csv.Error:  # a line break: no quotes to be read
        cells = history.split(",")
    return [cell.strip() for cell in cells if cell.strip()]
