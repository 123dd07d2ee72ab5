"""Writes docs/tables.md, docs/settings.md and profiles/schema.json; a test fails where one of them is out of date.

.venv/bin/python scripts/reference_docs.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sidr_core.pipeline.graph import OPTIONAL, STAGES
from sidr_core.render.grid import markdown_table
from sidr_core.settings import DatasetConfig, StoreSection
from sidr_core.tables.docs import Table, tables

ROOT = Path(__file__).resolve().parent.parent
ALL_STAGES = (*STAGES, *OPTIONAL)

TABLES_HEAD = """# Tables

Made by `scripts/reference_docs.py` from `sidr_core/tables/contracts.py`; do not edit. Every table is a Parquet file of
an asset, and a view of `catalog.duckdb` in the schema of its dataset (`sidr sql "select … from games.evaluation"`).
The blocking check `schema` holds each published file against its contract. No column is null unless `nullable`.
"""

SETTINGS_HEAD = """# Settings

Made by `scripts/reference_docs.py` from `sidr_core/settings/`; do not edit. Every field of a dataset in a profile: its
path, type, default, what it may be, and what it does. Lengths are in tokens, batch sizes in examples, times in seconds,
unless a line says otherwise. A field without a default has to be given; an unknown one is an error that names the
nearest known. Changing a field rebuilds the stages that read its section, and what lies below them.

A profile itself has `datasets` (name -> fields below), `default_dataset` (a name; the first one without it),
`description` and [`store`](#store). In a path, `${NAME:-default}` is taken from the environment. A dataset may say
`extends: <dataset>`: it then has all fields of that one but those that it gives itself, section by section and field by
field. A list is replaced whole. A section with another `kind` (`source`, `quantizer`, `teacher`, `base_model`) is
replaced whole too, so that no file of another layout is inherited. Chains are allowed, circles are an error.

Defaults are the paper's, or modest. Where `base_model` is `tiny` or left out, what a profile leaves out of `sft`,
`activation`, `grpo` and `decoding` follows what suits a small model without a past (`OF_A_TINY_MODEL` in
`sidr_core/settings/training.py`). Editors that know JSON schemas complete and check a profile that begins with
`# yaml-language-server: $schema=schema.json` (`profiles/schema.json`).
"""

_COLUMNS = ("field", "type", "default", "allowed", "meaning")
_BOUNDS = (("ge", "≥ {}"), ("gt", "> {}"), ("le", "≤ {}"), ("lt", "< {}"), ("min_length", "at least {}"))
_TYPES = {str: "text", int: "whole number", float: "number", bool: "`true` or `false`"}


def tables_page() -> str:
    """docs/tables.md."""
    contracts = tables()
    views = [
        (
            f"`{stage.name if file == stage.name else f'{stage.name}_{file}'}`",
            f"`{stage.name}` / `{file}.parquet`",
            f"[{contract}](#{contract.lower()})",
        )
        for stage in ALL_STAGES
        for file, contract in stage.tables.items()
    ]
    published = dict.fromkeys(name for stage in ALL_STAGES for name in stage.tables.values())
    parts = [TABLES_HEAD, markdown_table(("view", "file of the asset", "a row is"), views, "l")]
    return "\n".join(parts + [_table_section(contracts[name]) for name in published]) + "\n"


def _table_section(table: Table) -> str:
    rows = [(f"`{c.name}`", f"`{c.type}`", ", ".join(c.rules), c.meaning) for c in table.columns]
    listing = markdown_table(("column", "type", "rules", "meaning"), rows, "l")
    return f"\n## {table.name}\n\n{table.about}\n\n{listing}"


def settings_page() -> str:
    """docs/settings.md."""
    parts = [SETTINGS_HEAD, f"## store\n\n{_about(StoreSection)} Read by no stage.\n"]
    parts.append(markdown_table(_COLUMNS, _rows("store", StoreSection), "l") + "\n")
    for name, field in DatasetConfig.model_fields.items():
        sections = _sections(field.annotation)
        if not sections:
            parts.append(f"## {name}\n\n{_plain(field)}\n")
            continue
        read_as = {name, "snapshot"} if name == "snapshots" else {name}
        readers = [
            f"`{stage.name}`" for stage in ALL_STAGES if read_as & {part.split(".")[0] for part in stage.sections}
        ]
        about = field.description if len(sections) > 1 else _about(sections[0])
        parts.append(f"## {name}\n\n{about} Read by {', '.join(readers) or 'no stage'}.\n")
        for model in sections:
            if len(sections) > 1:
                (kind,) = get_args(model.model_fields["kind"].annotation)
                parts.append(f"### {name}: `kind: {kind}`\n\n{_about(model)}\n")
            rows = _rows(name, model, named=len(sections) > 1)
            parts.append(markdown_table(_COLUMNS, rows, "l") + "\n")
    return "\n".join(parts)


def _plain(field: FieldInfo) -> str:
    """A field of the dataset itself, in a line."""
    kind, allowed = _described(field)
    return f"{' '.join((field.description or '').split())} A {kind}, {allowed}; default `{_default(field)}`."


def _rows(path: str, model: type[BaseModel], named: bool = False) -> Iterator[tuple[str, ...]]:
    """The fields of a section, each followed by those of the section it holds; without `kind` where it is `named`."""
    for name, field in model.model_fields.items():
        if named and name == "kind":
            continue
        kind, allowed = _described(field)
        meaning = " ".join((field.description or "").split())
        default = "" if field.is_required() else f"`{_default(field)}`"
        yield f"`{path}.{name}`", kind, default, allowed, meaning.replace("|", "\\|")
        inner = _sections(field.annotation)
        if len(inner) == 1:  # a mix's sources are those above
            yield from _rows(f"{path}.{name}{'[]' if get_origin(field.annotation) is tuple else ''}", inner[0])


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a type names, inside of unions, lists and mappings."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _sections(part)]


def _about(model: type[BaseModel]) -> str:
    return " ".join((model.__doc__ or "").split())


def _described(field: FieldInfo) -> tuple[str, str]:
    """Type and allowed values of a field, in words."""
    kind, choices = _type(field.annotation)
    bounds = [
        form.format(f"{bound:g}" if isinstance(bound, float) else bound)
        for part in field.metadata
        for name, form in _BOUNDS
        if (bound := getattr(part, name, None)) is not None
    ]
    return kind, ", ".join([*choices, *bounds])


def _type(annotation: Any) -> tuple[str, list[str]]:
    """A type in words, and the values of a choice."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return "choice", [f"`{value}`" for value in parts]
    if origin is Annotated:
        return _type(parts[0])
    if origin in (Union, UnionType):
        some = [part for part in parts if part is not NoneType]
        kind, choices = _type(some[0])
        return (f"{kind} or null" if len(some) < len(parts) else kind), choices
    if origin is tuple:
        kind, choices = _type(parts[0])
        return f"list of {kind}", choices
    if origin is dict:
        return f"mapping to {_type(parts[1])[0]}", _type(parts[0])[1]
    return _TYPES.get(annotation, "section"), []


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "its defaults"
    if isinstance(value, tuple):
        value = [part.model_dump() if isinstance(part, BaseModel) else part for part in value]
    return json.dumps(value, ensure_ascii=False)


def profile_schema() -> str:
    """profiles/schema.json: what an editor can know of a profile. Rules between fields are checked when it is read.

    A dataset that extends another gives some fields only, so none is required and a section may match several kinds.
    """
    dataset = _loosened(DatasetConfig.model_json_schema())
    definitions = dataset.pop("$defs")
    dataset["properties"]["extends"] = {"type": "string", "description": "The dataset whose fields these override."}
    profile = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A profile of SIDR",
        "type": "object",
        "additionalProperties": False,
        "required": ["datasets"],
        "properties": {
            "description": {"type": "string"},
            "default_dataset": {"type": "string"},
            "store": _loosened(StoreSection.model_json_schema()),
            "datasets": {
                "type": "object",
                "minProperties": 1,
                "additionalProperties": {"$ref": "#/$defs/DatasetConfig"},
            },
        },
        "$defs": {"DatasetConfig": dataset, **definitions},
    }
    return json.dumps(profile, indent=1, ensure_ascii=False) + "\n"


def _loosened(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_loosened(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    loose = {}
    for key, value in schema.items():
        if key == "properties":  # names of fields, which may be words of the schema too
            loose[key] = {name: _loosened(field) for name, field in value.items()}
        elif key == "oneOf":
            loose["anyOf"] = _loosened(value)
        elif key not in ("discriminator", "title", "required") and not (key == "default" and isinstance(value, dict)):
            loose[key] = _loosened(value)
    return loose


FILES = {
    ROOT / "docs" / "tables.md": tables_page,
    ROOT / "docs" / "settings.md": settings_page,
    ROOT / "profiles" / "schema.json": profile_schema,
}

if __name__ == "__main__":
    for path, text in FILES.items():
        path.write_text(text())
        print(f"{path.relative_to(ROOT)} written")
