"""Each module imports only rooms above its own, in type checking too, and no modules import each other in a circle."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOMS = [
    "errors", "render", "tables", "metrics", "settings", "pipeline", "remote", "sids", "reviews", "corpus", "models",
    "items", "decoding", "baselines", "recommending", "training", "evaluation", "rehearsal", "serving", "cli",
]  # fmt: skip
ROOT = Path(__file__).parents[1]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "sidr_core").rglob("*.py"))
}


def imported_modules(path: Path) -> set[str]:
    """The modules of the core that a file's import statements name, wherever they stand in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name if name in MODULES else name.rpartition(".")[0] for name in names} & set(MODULES) - {"sidr_core"}


IMPORTS = {name: imported_modules(path) for name, path in MODULES.items() if name != "sidr_core"}


def room(module: str) -> int:
    return ROOMS.index(module.split(".")[1])


def test_each_room_imports_only_rooms_above_it() -> None:
    assert [(name, other) for name in IMPORTS for other in IMPORTS[name] if room(other) > room(name)] == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    try:
        TopologicalSorter(IMPORTS).prepare()
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None


def test_every_module_lies_in_a_room() -> None:
    loose = {path.name for path in (ROOT / "sidr_core").glob("*.py")}
    assert loose == {"__init__.py", "errors.py"} and {name.split(".")[1] for name in IMPORTS} == set(ROOMS)
