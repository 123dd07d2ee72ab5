"""What each table holds, in words: for the UI, and for docs/tables.md (`scripts/tables_doc.py`).

Types and rules are read from the text of `contracts.py`, not by importing it: pandera and polars would
double the time that a Dagster code location takes to load. A test compares both.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

#: Meaning of a column, wherever it stands; `<contract>.<column>` where it has one of its own.
MEANINGS: Mapping[str, str] = {
    "beam_width": "width of the beam that made the lists",
    "brand": "plain text, may be empty",
    "category": "path of the category, joined by ' > ', may be empty",
    "checkpoint": "content digest of the checkpoint, or of the table behind a baseline",
    "ci_high": "upper end of the 95 % interval, users resampled",
    "ci_low": "lower end of the 95 % interval, users resampled",
    "close_rate": "share of thoughts that the model ended itself; null in direct mode",
    "closed": "whether the model ended the thought itself",
    "codes": "the 0-based code of each level",
    "completion": "what the model is trained to write, or the whole text of a `text` example",
    "dataset": "name in the profile",
    "description": "plain text, may be empty",
    "difference": "value of a less that of b",
    "evaluated_at": "UTC time at which the number was made",
    "example_id": "names the example",
    "file": "name of the source file",
    "harmed": "rows where a is worse than b",
    "helped": "rows where a is better than b",
    "history_item_ids": "items before the target, oldest first",
    "item_id": "the source's id of the item",
    "k": "length of the list that counts",
    "kind": "`chat`: prompt, thought, completion; `text`: plain text in `completion`",
    "last_snapshot": "the newest snapshot in which the item had this SID",
    "level": "`item`: the target itself is hit; `sid`: its SID is",
    "line": "line in the source file, from 1",
    "mean_thought_tokens": "null in direct mode",
    "metric": "`hr` or `ndcg`",
    "mode": "`direct`, or `thinking` before answering",
    "mode_a": "mode of a",
    "mode_b": "mode of b",
    "model": "stage or baseline that made the list",
    "model_a": "model a",
    "model_b": "model b",
    "n_rows": "test rows behind the number",
    "n_tokens": "length of the thought",
    "n_users": "users behind the number",
    "neighbour_id": "item that follows",
    "position": "place of the item in its user's history, from 0",
    "prompt": "the user's turn",
    "published_sid": "SID that came with the source, if any",
    "rank": "place in the list, from 1",
    "rating": "stars; null where the source has none",
    "reason": "why it was refused",
    "reasoning": "the thought before the answer; null in direct mode",
    "row_id": "names the sample",
    "same": "rows where both are equal",
    "score": "what the list is sorted by; comparable within a list only",
    "seed": "of the resampling, or of the decoding",
    "seen_until": "date of the newest train target, or `unknown`",
    "sid": "Semantic ID, `<a_3><b_17><c_200>`",
    "snapshot": "window up to which data were known, `YYYY-MM`",
    "split": "`train`, `valid` or `test`",
    "synthetic": "whether the row comes from generated sample data",
    "target_item_id": "the item to be predicted",
    "target_timestamp": "when the target was reviewed, unix seconds",
    "task": "alignment task or `reasoning`",
    "text": "the raw record, cut at 500 characters",
    "text_digest": "sha256 of the encoded text and of the encoder's settings",
    "thought": "the thought before the answer; null where there is none",
    "timestamp": "when the review was written, unix seconds; null where the source has none",
    "title": "plain text",
    "user_id": "the source's id of the user",
    "value": "the metric, between 0 and 1",
    "vector": "text vector, of one length for all items",
    "verdict": "what the interval of the difference allows to say",
    "Corpus.item_id": "item the example is about; null where it is about a user",
    "Corpus.position": "position of the target; null where there is none",
    "Corpus.user_id": "user the example is about; null where it is about an item",
    "EvaluationTable.seed": "of the resampling",
    "ItemItem.item_id": "item that was reviewed",
    "ItemItem.score": "decayed co-occurrence in train",
    "Paired.seed": "of the resampling",
    "Popularity.score": "number of train rows that have it as target",
    "RawReviews.history_item_ids": "history of a published split's row, oldest first; null otherwise",
    "RawReviews.split": "split of a published row; null otherwise",
    "RecommendedModels.seed": "of the decoding",
    "Samples.position": "place of the target in its user's history, from 1",
    "TeacherQuarantine.item_id": "item that was asked about; null where it was a user",
    "TeacherQuarantine.key": "key of the request in the ledger",
    "TeacherQuarantine.kind": "kind of the request, or `general`",
    "TeacherQuarantine.reason": "why it was refused; its first word is counted by",
    "TeacherQuarantine.text": "the reply, neutralised and cut at 500 characters",
    "TeacherQuarantine.user_id": "user that was asked about; null where it was an item",
}
_TYPES = {"str": "string", "float": "float64", "bool": "bool", "int": "int64"}
_RULES = {"ge": "≥ {}", "gt": "> {}", "le": "≤ {}", "lt": "< {}", "isin": "one of {}", "str_length": "length {}"}


@dataclass(frozen=True)
class Column:
    """A column of a contract; `rules` are short phrases, `nullable` and `unique` among them."""

    name: str
    type: str
    rules: tuple[str, ...]
    meaning: str


@dataclass(frozen=True)
class Table:
    """A contract: what a row is, and its columns in order."""

    name: str
    about: str
    columns: tuple[Column, ...]


@cache
def tables() -> dict[str, Table]:
    """All contracts by the name of their class, in the order of the file."""
    tree = ast.parse(Path(__file__).with_name("contracts.py").read_text())
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    found = {node.name: _table(node) for node in classes}
    return {name: table for name, table in found.items() if table.columns}


def _table(node: ast.ClassDef) -> Table:
    fields = [field for field in node.body if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)]
    about = " ".join((ast.get_docstring(node) or "").split())
    return Table(node.name, about, tuple(_column(node.name, field) for field in fields))


def _column(table: str, field: ast.AnnAssign) -> Column:
    assert isinstance(field.target, ast.Name)
    name = field.target.id
    keywords = field.value.keywords if isinstance(field.value, ast.Call) else []
    rules = tuple(_rule(str(word.arg), ast.literal_eval(word.value)) for word in keywords)
    meaning = MEANINGS.get(f"{table}.{name}") or MEANINGS.get(name, "")
    return Column(name, _type(field.annotation), rules, meaning)


def _rule(name: str, value: object) -> str:
    if value is True:
        return name
    if isinstance(value, dict):
        value = ", ".join(f"{key.removesuffix('_value')} {number}" for key, number in value.items())
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    return _RULES.get(name, f"{name} {{}}").format(value)


def _type(node: ast.expr) -> str:
    """`pl.List(pl.Int32)` -> `list<int32>`, as Arrow writes it."""
    if isinstance(node, ast.Call):
        return f"list<{_type(node.args[0])}>"
    text = ast.unparse(node).removeprefix("pl.")
    return _TYPES.get(text, text.lower())
