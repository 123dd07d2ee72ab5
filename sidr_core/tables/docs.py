"""What each table holds, in words: for the UI, and for docs/tables.md (`scripts/tables_doc.py`).

Types and rules are read from the text of `contracts.py`, not by importing it: pandera and polars would
double the time that a Dagster code location takes to load. A test compares both.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

#: Meaning of a column, wherever it stands; `<contract>.<column>` where it has one of its own.
MEANINGS: Mapping[str, str] = {
    "base_ci_high": "upper end of that interval",
    "base_ci_low": "lower end of that interval",
    "base_snapshot": "the earlier snapshot that the checkpoints are of",
    "base_value": "the same metric in the evaluation of `base_snapshot`; null where that has none of this beam width",
    "unreachable": "rows whose target had no SID at `base_snapshot`; they count as misses",
    "base": "checkpoint whose direct list the thinking one is compared with",
    "beam_width": "width of the beam that made the lists",
    "brand": "plain text, may be empty",
    "category": "path of the category, joined by ' > ', may be empty",
    "change": "what thinking did to the target's place: `helped`, `harmed` or `same`; null without a direct list",
    "checkpoint": "content digest of the checkpoint, or of the table behind a baseline",
    "chosen": "whether these weights, or this setting, were kept",
    "ci_high": "upper end of the 95 % interval, users resampled",
    "ci_low": "lower end of the 95 % interval, users resampled",
    "close_rate": "share of thoughts that the model ended itself; null in direct mode",
    "closed": "whether the model ended the thought itself",
    "codes": "the 0-based code of each level",
    "completion": "what the model is trained to write, or the whole text of a `text` example",
    "dataset": "name in the profile",
    "decay": "weight of an item of the history over that of the one after it",
    "description": "plain text, may be empty",
    "difference": "value of a less that of b",
    "direct_place": "place of the target in the direct list; null where it is not in it",
    "dropout": "share of units left out in training",
    "epoch": "passes over the training sequences",
    "evaluated_at": "UTC time at which the number was made",
    "example_id": "names the example",
    "file": "name of the source file",
    "gain": "places that the target moved up by thinking; where a list lacks it, one behind the end of the longer list",
    "harmed": "rows where a is worse than b",
    "helped": "rows where a is better than b",
    "hidden_size": "width of the model",
    "history_item_ids": "items before the target, oldest first",
    "hit": "whether the target is among the first 10",
    "hr_10": "HR@10 on valid rows, item level",
    "item_id": "the source's id of the item",
    "k": "length of the list that counts",
    "kind": "`chat`: prompt, thought, completion; `text`: plain text in `completion`",
    "last_snapshot": "the newest snapshot in which the item had this SID",
    "learning_rate": "of the optimizer, after its warm-up",
    "level": "`item`: the target itself is hit; `sid`: its SID is",
    "line": "line in the source file, from 1",
    "loss": "mean cross entropy of the epoch",
    "mean_thought_tokens": "null in direct mode",
    "metric": "`hr` or `ndcg`",
    "minus": "the list whose value is subtracted, `<model>/<mode>`; null where `value` is that of the list itself",
    "mode": "`direct`, or `thinking` before answering",
    "mode_a": "mode of a",
    "mode_b": "mode of b",
    "model": "stage or baseline that made the list",
    "model_a": "model a",
    "model_b": "model b",
    "n_rows": "test rows behind the number",
    "n_tokens": "length of the thought",
    "n_users": "users behind the number",
    "names_history": "how the thought names an item of the history: the strongest of `sid`, `title`, `aspect`, or `no`",
    "names_random": "how it names an item drawn from the catalogue: the control",
    "names_target": "how it names the target",
    "names_top": "how it names the first item of its list",
    "ndcg_10": "NDCG@10 on valid rows, item level",
    "neighbour_id": "item that follows",
    "origin": "`measured` by this pipeline, or `published` elsewhere",
    "p": "two-sided p-value of no difference, from the draws of users",
    "p_holm": "p corrected for all differences of the table (Holm)",
    "place": "rank by NDCG at the largest headline cut-off, among measured lists; null for published ones",
    "position": "place of the item in its user's history, from 0",
    "prompt": "the user's turn",
    "published_sid": "SID that came with the source, if any",
    "group": "which part of the slice the rows are in",
    "rank": "place in the list, from 1",
    "rating": "stars; null where the source has none",
    "reason": "why it was refused",
    "reasoning": "the thought before the answer; null in direct mode",
    "reference": "where a published figure stands; null for measured ones",
    "repeats": "whether items of the history may come back",
    "row_id": "names the sample",
    "same": "rows where both are equal",
    "score": "what the list is sorted by; comparable within a list only",
    "seed": "of the resampling, or of the decoding",
    "seen_until": "date of the newest train target, or `unknown`",
    "seen_until_a": "newest train target that a has seen",
    "seen_until_b": "newest train target that b has seen",
    "shown": "why the row stands in the report: `random`, `helped`, `harmed`; null for most",
    "sid": "Semantic ID, `<a_3><b_17><c_200>`",
    "slice": "by what the rows are parted",
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
    "top_item_id": "first item of the list",
    "trace": "number of the thought, from 0: the one that gives the list's first item the most probability",
    "trial": "number of the setting, from 1",
    "user_id": "the source's id of the user",
    "value": "the metric",
    "vector": "text vector, of one length for all items",
    "verdict": "what the corrected p allows to say: `higher`, `lower` or `not distinguishable`",
    "Cases.place": "place of the target in the list, the mean where a SID is shared; null where it is not in it",
    "Corpus.item_id": "item the example is about; null where it is about a user",
    "Corpus.position": "position of the target; null where there is none",
    "Corpus.user_id": "user the example is about; null where it is about an item",
    "EvaluationTable.k": "length of the list that counts; 0 where no list does",
    "EvaluationTable.metric": "what is measured, see docs/evaluation.md",
    "EvaluationTable.seed": "of the decoding, or of the training where there was one",
    "Leaderboard.model": "stage or baseline that made the list, or the name it was published under",
    "Leaderboard.mode": "`direct`, or `thinking` before answering; null for published figures",
    "Leaderboard.seed": "of the decoding, or of the training where there was one",
    "ItemItem.item_id": "item that was reviewed",
    "ItemItem.score": "decayed co-occurrence in train",
    "Paired.seed": "of the resampling",
    "Slices.seed": "of the resampling",
    "Slices.value": "the metric, or its difference where `minus` is set",
    "Slices.verdict": "what the corrected p allows to say; null where `minus` is, or where all rows are of one user",
    "Popularity.score": "number of train rows that have it as target",
    "RawReviews.history_item_ids": "history of a published split's row, oldest first; null otherwise",
    "RawReviews.split": "split of a published row; null otherwise",
    "Reevaluation.split": "`newer`: rows behind all that the checkpoints were trained or judged on",
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
    found: dict[str, Table] = {}
    for node in classes:
        found[node.name] = _table(node, found)
    return {name: table for name, table in found.items() if table.columns}


def _table(node: ast.ClassDef, known: Mapping[str, Table]) -> Table:
    """The contract of a class, after the columns of the one it builds on, if that is known."""
    bases = [ast.unparse(base) for base in node.bases]
    inherited = [
        replace(column, meaning=MEANINGS.get(f"{node.name}.{column.name}") or column.meaning)
        for base in bases
        if base in known
        for column in known[base].columns
    ]
    fields = [field for field in node.body if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)]
    about = " ".join((ast.get_docstring(node) or "").split())
    return Table(node.name, about, (*inherited, *(_column(node.name, field) for field in fields)))


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
