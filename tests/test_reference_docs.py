"""The generated pages and the schema for editors are up to date, whole, and true of the profiles."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
import yaml
from pydantic import BaseModel

from sidr_core import settings

ROOT = Path(__file__).resolve().parents[1]
_SPEC = importlib.util.spec_from_file_location("reference_docs", ROOT / "scripts" / "reference_docs.py")
assert _SPEC is not None and _SPEC.loader is not None
reference = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(reference)
PROFILES = [*sorted((ROOT / "profiles").glob("*.yaml")), ROOT / "tests" / "profiles" / "tiny.yaml"]


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = yaml.safe_load(reference.profile_schema())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("path", reference.FILES, ids=lambda path: path.name)
def test_the_file_is_up_to_date(path: Path) -> None:
    """If not: `.venv/bin/python scripts/reference_docs.py`."""
    assert path.read_text() == reference.FILES[path]()


@pytest.mark.parametrize("section", [cls for cls in vars(settings).values() if isinstance(cls, type)])
def test_every_field_of_a_section_is_described(section: type[BaseModel]) -> None:
    assert [name for name, field in section.model_fields.items() if not (field.description or "").endswith(".")] == []


def paths(given: object, prefix: str) -> Iterator[str]:
    """Paths of the fields that a profile sets, without the names that are the user's own."""
    if isinstance(given, dict):
        for name, value in given.items():
            own = prefix in (
                "sft.tasks",
                "activation.tasks",
                "source.sources",
                "source.review_columns",
                "source.item_columns",
                "launch.resources",
            )
            if not own and name != "kind":
                yield f"{prefix}.{name}" if prefix else name
            yield from paths(value, prefix if own else f"{prefix}.{name}".lstrip("."))
    elif isinstance(given, list):
        for value in given:
            yield from paths(value, f"{prefix}[]")


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_what_a_profile_sets_is_on_the_page_and_in_the_schema(path: Path, validator) -> None:
    profile, page = yaml.safe_load(path.read_text()), reference.settings_page()
    assert [error.message for error in validator.iter_errors(profile)] == []
    fields = {name for fields in profile["datasets"].values() for name in paths(fields, "")} - {"extends"}
    assert {name for name in fields if f"| `{name.removeprefix('source.sources.')}` |" not in page and "." in name} <= {
        name for name in fields if name.startswith("source.sources.")
    }


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"encoder": {"batchsize": 3}}, "'batchsize' was unexpected"),
        ({"decoding": {"beam_width": 0}}, "0 is less than the minimum of 1"),
        ({"quantizer": {"kind": "kmeans"}}, "'kmeans' is not one of"),
        ({"sft": {"packing": "sometimes"}}, "'sometimes' is not of type 'boolean'"),
        ({"extends": 3}, "3 is not of type 'string'"),
    ],
)
def test_the_schema_refuses_what_the_profile_would(fields: dict, message: str, validator) -> None:
    (error,) = validator.iter_errors({"datasets": {"toys": fields}})
    assert message in error.message


def test_bounds_choices_and_defaults_stand_on_the_page() -> None:
    rows = [line for line in reference.settings_page().splitlines() if line.startswith("| `")]
    cells = {line.split("`")[1]: [cell.strip() for cell in line.strip("|").split(" | ")][1:4] for line in rows}
    assert cells["decoding.beam_width"] == ["whole number", "`20`", "≥ 1"]
    assert cells["teacher.budget.usd"] == ["number or null", "`null`", "≥ 0"]
    assert cells["quantizer.collisions"] == ["choice", '`"reassign"`', "`reassign`, `suffix`, `share`"]
    assert cells["gru4rec.trials[].learning_rate"] == ["number", "`0.001`", "> 0"]
    assert cells["split.ratios"] == ["list of number", "`[0.8, 0.1, 0.1]`", ""]
    assert cells["filters.keep_repeats"] == ["`true` or `false`", "`true`", ""]
    assert cells["snapshots.start"] == ["text", "", ""]
