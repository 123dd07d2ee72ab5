"""What each table holds, in words: for the UI, and for docs/tables.md (`scripts/reference_docs.py`).

Types, rules and meanings are read from the text of `contracts.py`, not by importing it: pandera and polars would
double the time that a Dagster code location takes to load. A test compares both.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

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
    contracts: dict[str, Table] = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            bases = [contracts[name] for base in node.bases if (name := ast.unparse(base)) in contracts]
            inherited = [column for base in bases for column in base.columns]
            written = [_column(field) for field in node.body if isinstance(field, ast.AnnAssign)]
            about = " ".join((ast.get_docstring(node) or "").split())
            contracts[node.name] = Table(
                node.name, about, tuple({column.name: column for column in (*inherited, *written)}.values())
            )
    return {name: table for name, table in contracts.items() if table.columns}


def _column(field: ast.AnnAssign) -> Column:
    assert isinstance(field.target, ast.Name)
    arguments = field.value.keywords if isinstance(field.value, ast.Call) else []
    values = {str(argument.arg): ast.literal_eval(argument.value) for argument in arguments}
    meaning = values.pop("description", "")
    return Column(
        field.target.id, _type(field.annotation), tuple(_rule(name, value) for name, value in values.items()), meaning
    )


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
