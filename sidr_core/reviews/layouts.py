"""Names the layout of a file from its beginning, so that a wrong file is refused by name.

A JSON layout is recognized by the keys of its records. The 2014 and 2018 releases share the keys that SIDR
reads, so files that keep only those are good for both; any key of one release alone names it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import filterfalse
from pathlib import Path

from sidr_core.errors import InputError
from sidr_core.reviews import text
from sidr_core.reviews.csv_rows import CsvForm, cells_of
from sidr_core.reviews.formats import named_format
from sidr_core.reviews.lines import DamagedFile, blocks, pieces

# How many non-blank lines are looked at (CSV columns need more than JSON keys), read in pieces of so many bytes.
_RECORDS, _LINES, _HEAD_BYTES = 20, 80, 256 << 10

REVIEWS_2014 = "Amazon 2014 reviews"
REVIEWS_2018 = "Amazon 2018 reviews"
REVIEWS_2014_2018 = "Amazon 2014/2018 reviews"
REVIEWS_2023 = "Amazon 2023 reviews"
ITEMS_2014 = "Amazon 2014 metadata (Python-dict lines, not JSON)"
ITEMS_2014_JSON = "Amazon 2014 metadata (as JSON)"
ITEMS_2018 = "Amazon 2018 metadata"
ITEMS_2014_2018 = "Amazon 2014/2018 metadata"
ITEMS_2023 = "Amazon 2023 metadata"
RATINGS_USER_ITEM = "a ratings-only CSV: user, item, rating, time"
RATINGS_ITEM_USER = "a ratings-only CSV: item, user, rating, time"
RATINGS = "a ratings-only CSV whose first two columns cannot be told apart"
BENCHMARK_HISTORY = "an Amazon 2023 benchmark CSV with histories (last_out_w_his)"
MINIONEREC = "MiniOneRec's published CSV split"
MINIONEREC_INFO = "MiniOneRec's info file"
MINIONEREC_ITEMS = "MiniOneRec's item or index JSON"
SEQUENCES = "sequences without times (user_id, item_ids)"
ITEMS_PLAIN = "item records as JSON lines (item_id, title)"
PARQUET = "a Parquet file"
TABLE_CSV = "a CSV table with a header"
EMPTY = "an empty file"
RATINGS_LAYOUTS = (RATINGS_USER_ITEM, RATINGS_ITEM_USER, RATINGS)

#: Columns of a table of sequences; others may stand beside them.
SEQUENCE_COLUMNS = ("user_id", "item_ids")

#: What the profile must say for a file of each layout.
BELONGS = {
    REVIEWS_2014: "`kind: amazon_2014`, under `reviews`",
    REVIEWS_2018: "`kind: amazon_2018`, under `reviews`",
    REVIEWS_2014_2018: "`kind: amazon_2018` or `amazon_2014`, under `reviews`",
    REVIEWS_2023: "`kind: amazon_2023`, under `reviews`",
    ITEMS_2014: "`kind: amazon_2014`, under `items`",
    ITEMS_2014_JSON: "`kind: amazon_2014`, under `items`",
    ITEMS_2018: "`kind: amazon_2018`, under `items`",
    ITEMS_2014_2018: "`kind: amazon_2018` or `amazon_2014`, under `items`",
    ITEMS_2023: "`kind: amazon_2023`, under `items`",
    RATINGS_USER_ITEM: "`kind: ratings_csv`, under `ratings`",
    RATINGS_ITEM_USER: "`kind: ratings_csv`, under `ratings`",
    RATINGS: "`kind: ratings_csv` with `order: user_item` or `item_user`, under `ratings`",
    BENCHMARK_HISTORY: "no kind: take the `rating_only` file of the same benchmark, with `kind: ratings_csv`",
    MINIONEREC: "`kind: minionerec`, under `train`, `valid` or `test`",
    MINIONEREC_INFO: "`kind: minionerec`, under `info`",
    MINIONEREC_ITEMS: "`kind: minionerec`, under `items` (the item.json; the index.json is not needed)",
    SEQUENCES: "`kind: sequences`, under `sequences`",
    ITEMS_PLAIN: "`kind: sequences`, under `items`",
    PARQUET: "`kind: tables`, with a map of its columns",
    TABLE_CSV: "`kind: tables`, with a map of its columns",
}

#: What may stand between the cells of a CSV.
_SEPARATORS = (",", "\t", "::", "|", ";")

# Layout, keys that a record has, and keys of which the file must show one (none: no such need). The
# first that fits wins, so the more telling ones come first.
_JSON: tuple[tuple[str, frozenset[str], frozenset[str]], ...] = (
    (ITEMS_PLAIN, frozenset({"item_id", "title"}), frozenset()),
    (REVIEWS_2014, frozenset({"reviewerID", "asin"}), frozenset({"helpful"})),
    (REVIEWS_2018, frozenset({"reviewerID", "asin"}), frozenset({"verified", "vote", "style", "image"})),
    (REVIEWS_2014_2018, frozenset({"reviewerID", "asin"}), frozenset()),
    (REVIEWS_2023, frozenset({"user_id", "parent_asin"}), frozenset()),
    (REVIEWS_2023, frozenset({"user_id", "asin", "rating"}), frozenset()),
    (ITEMS_2023, frozenset({"parent_asin", "title"}), frozenset()),
    (ITEMS_2014_JSON, frozenset({"asin"}), frozenset({"imUrl", "salesRank", "related"})),
    (
        ITEMS_2018,
        frozenset({"asin"}),
        frozenset({"also_buy", "also_view", "tech1", "main_cat", "imageURL", "feature", "rank", "similar_item"}),
    ),
    (ITEMS_2014_2018, frozenset({"asin", "title"}), frozenset()),
    (ITEMS_2014_2018, frozenset({"asin", "description"}), frozenset()),
)
_USER_NAMES = frozenset({"user", "userid", "uid", "reviewer", "reviewerid", "customer", "customerid"})
_ITEM_NAMES = frozenset({"item", "itemid", "iid", "asin", "parentasin", "product", "productid"})
_RATING_NAMES = frozenset({"rating", "overall", "score", "stars"})
_TIME_NAMES = frozenset({"timestamp", "time", "unixreviewtime", "unixtime"})
_ASIN = re.compile(r"B[0-9A-Z]{9}|[0-9]{9}[0-9X]")
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?|[+-]?\.[0-9]+")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}([ T].*)?")
_DAMAGED = re.compile("[\0\ufffd\ufeff]")  # what no id holds: such lines tell nothing about the others
_SID_LINE = re.compile(r"(<[a-z]_\d+>)+\t")
_ITEM_JSON = re.compile(r'\{\s*"[^"]*"\s*:\s*[\[{]')


@dataclass(frozen=True)
class Detected:
    """What a file looks like: the name of a layout, or in words what it holds.

    Args:
        columns: of a table with a header, else empty; a column without a name is "".
        form: of a CSV.
        advice: what to do about a file that is not read as it is.
    """

    name: str
    columns: tuple[str, ...] = ()
    form: CsvForm | None = None
    advice: str = ""

    def __str__(self) -> str:
        if not self.columns:
            return self.name
        names = [name[:40] if name.isprintable() else repr(name[:40]) for name in self.columns[:20]]
        more = f" and {len(self.columns) - 20} more" if len(self.columns) > 20 else ""
        return f"{self.name} with the columns {', '.join(name or '(no name)' for name in names)}{more}"


def head(path: Path) -> list[str]:
    """The first lines of a text file that are not blank, unpacked, as far as damage lets them be read."""
    lines: list[str] = []
    try:
        for block in blocks(path, chunk=_HEAD_BYTES):
            if not block.data.isspace():
                lines += [line for line in block.data.decode(errors="replace").split("\n") if line.strip()]
            if len(lines) >= _LINES:
                break
    except DamagedFile:
        pass
    return lines


def detect(path: Path) -> Detected:
    """What the file at `path` is, by its beginning."""
    try:
        beginning = next(pieces(path, 512), b"")
    except DamagedFile:
        beginning = b""
    if beginning.startswith(b"PAR1"):
        import pyarrow.parquet as pq

        try:
            return Detected(PARQUET, tuple(pq.read_schema(path).names))
        except (OSError, ValueError):
            packed = path.open("rb").read(2) == b"\x1f\x8b"
            return Detected(
                "Parquet within gzip" if packed else "a damaged Parquet file",
                advice=f"unpack it: `gunzip {path.name}`" if packed else "write or fetch the file again",
            )
    if other := named_format(path, beginning):
        return Detected(other[0], advice=other[1])
    return identify(head(path))


def identify(lines: Iterable[str]) -> Detected:
    """What a file that begins with these lines is."""
    some = [line.rstrip("\r") for line in lines if line.strip()][:_LINES]
    if not some:
        return Detected(EMPTY)
    records = [keys for line in some[:_RECORDS] if (keys := _keys(line)) is not None]
    python = 2 * sum(is_python for _, is_python in records) > len(records)
    sets = [keys for keys, is_python in records if is_python == python]
    every = frozenset().union(*sets)
    known = (
        name for name, needed, telling in _JSON if any(map(needed.issubset, sets)) and (not telling or telling & every)
    )
    layout = next(known, None)
    if layout and not python:
        return Detected(layout)
    if layout in (ITEMS_2014_JSON, ITEMS_2018, ITEMS_2014_2018):
        return Detected(ITEMS_2014)
    if any(map(_SID_LINE.match, some[:_RECORDS])):
        return Detected(MINIONEREC_INFO)
    # One JSON object of items, over one line or many, and no record per line; item ids are row numbers.
    if all(key.isdecimal() for key in sets[0] or "-") if records else _ITEM_JSON.match("\n".join(some)):
        return Detected(MINIONEREC_ITEMS)
    if records:
        syntax = "Python-dict lines" if python else "JSON objects"
        return Detected(f"{syntax} with the keys {', '.join(sorted(sets[0])[:8]) or '(none)'}")
    if table := _csv_layout(some):
        return table
    if almost := _almost_a_table(some):
        return almost
    first = some[0].strip()[:60]
    is_text = first.isprintable() and 10 * first.count("\ufffd") < len(first)
    return Detected(f"a first line that begins with {first!r}" if is_text else "bytes that are no text")


def _keys(line: str) -> tuple[frozenset[str], bool] | None:
    """Keys of the record on a line and whether it is in Python's syntax; None if it is no record."""
    if not line.lstrip().startswith("{"):
        return None
    try:
        value, python = json.loads(line), False
    except (ValueError, RecursionError):
        try:
            value, python = text.literal(line), True
        except ValueError:
            return None
    return (frozenset(map(str, value)), python) if isinstance(value, dict) else None


def _csv_layout(lines: Sequence[str]) -> Detected | None:
    header = cells_of(lines[0], ",")
    if header[:2] == ["user_id", "history_item_title"]:
        return Detected(MINIONEREC, tuple(header), CsvForm(",", len(header), header=True))
    if header == ["user_id", "parent_asin", "rating", "timestamp", "history"]:
        return Detected(BENCHMARK_HISTORY)
    ratings = (_ratings(lines, separator) for separator in _SEPARATORS)
    return next(filter(None, ratings), None) or _table(lines)


def _ratings(lines: Sequence[str], separator: str) -> Detected | None:
    """Four columns of which the last is a time, with or without a header."""
    header = cells_of(lines[0], separator)
    undamaged = (cells_of(line, separator) for line in filterfalse(_DAMAGED.search, lines))
    rows = [cells for cells in undamaged if len(cells) == 4 and (_is_number(cells[3]) or _DATE.fullmatch(cells[3]))]
    if not rows:
        return None
    without_header = CsvForm(separator, 4, header=False)
    if len(header) != 4:  # damaged: what follows tells
        enough = 4 * sum(_is_number(cells[2]) for cells in rows) > len(lines)
        return Detected(_order(None, rows), (), without_header) if enough else None
    if _is_number(header[2]) or _is_number(header[3]) or _DATE.fullmatch(header[3]):
        return Detected(_order(None, rows), (), without_header)
    named = [re.sub(r"[\W_]", "", name.casefold().partition(":")[0]) for name in header]
    if separator == ";" or named[2] not in _RATING_NAMES or named[3] not in _TIME_NAMES:
        return None
    return Detected(_order(named, rows), tuple(header), CsvForm(separator, 4, header=True))


def _table(lines: Sequence[str]) -> Detected | None:
    """A header over rows of as many cells; whatever the columns are called."""
    tables = []
    for separator in _SEPARATORS:
        header, *rows = (cells_of(line, separator) for line in lines)
        matching = sum(len(row) == len(header) for row in rows)
        if len(header) > 1 and (not rows or matching or '"' in "".join(lines[1:])):
            tables.append((matching, len(header), separator, header))
    if not tables or _DAMAGED.search(lines[0]):
        return None
    _, width, separator, header = max(tables, key=lambda table: table[:2])
    if all(not name or _is_number(name) for name in header):
        advice = (
            "write a first line with the names of the columns, or map them by their numbers "
            "(`review_columns: {user_id: '1', item_id: '2', timestamp: '4'}`)"
        )
        return Detected("a CSV without a header", tuple(header), CsvForm(separator, width, header=False), advice)
    name = SEQUENCES if set(SEQUENCE_COLUMNS) <= set(header) else TABLE_CSV
    return Detected(name, tuple(header), CsvForm(separator, width, header=True))


def _almost_a_table(lines: Sequence[str]) -> Detected | None:
    """What would be a table but for its first lines: another number of cells, or text above the header."""
    for separator in _SEPARATORS:
        widths = [len(cells_of(line, separator)) for line in lines]
        usual, count = Counter(widths[1:] or widths).most_common(1)[0]
        if usual < 2 or 2 * count <= len(widths):
            continue
        if 2 * widths[0] > usual:
            return Detected(
                f"a first line of {widths[0]} cells above lines of {usual}",
                advice="give each cell a name in the first line; lines that end in a separator have one cell more",
            )
        above = widths.index(usual)
        return Detected(
            f"text above the header, from {lines[0].strip()[:60]!r} on",
            advice=f"delete them: the first line has to be {lines[above].strip()[:60]!r}",
        )
    return None


def _is_number(cell: str) -> bool:
    return _NUMBER.fullmatch(cell) is not None


def _order(header: Sequence[str] | None, rows: Sequence[Sequence[str]]) -> str:
    """Which of the first two columns is the user, by the header's words or by the shape of Amazon's ids."""
    if header and header[0] in _USER_NAMES and header[1] in _ITEM_NAMES:
        return RATINGS_USER_ITEM
    if header and header[0] in _ITEM_NAMES and header[1] in _USER_NAMES:
        return RATINGS_ITEM_USER
    shapes = Counter(place for row in rows for place in (0, 1) if _ASIN.fullmatch(row[place]))
    for place, name in ((1, RATINGS_USER_ITEM), (0, RATINGS_ITEM_USER)):
        if shapes[place] >= 0.9 * len(rows) and shapes[1 - place] <= 0.1 * len(rows):
            return name
    return RATINGS


def require(path: Path, detected: Detected, accepted: Collection[str], role: str) -> None:
    """Refuse a file that is none of the accepted layouts.

    Args:
        detected: what :func:`detect` says of it.
        accepted: names of layouts.
        role: the field of `source` that names the file.

    Raises:
        InputError: it is of another layout, which is named together with where such a file belongs.
    """
    if detected.name in accepted:
        return
    if detected.name == EMPTY:
        what, fix = f"{path} holds no records", "fetch the file again"
    else:
        what = f"{path} is of another layout than `{role}` of this source"
        fix = detected.advice or f"name the right file under `source.{role}`, or the right `source.kind`"
        fix += f"; this file belongs to {BELONGS[detected.name]}" if detected.name in BELONGS else ""
    raise InputError(what, expected=" or ".join(dict.fromkeys(accepted)), found=str(detected), fix=fix)
