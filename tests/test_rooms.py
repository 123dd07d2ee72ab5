"""The order of the rooms: each imports only rooms above it, for type checking too; nothing else lies loose."""

import ast
from pathlib import Path

ROOMS = [
    "errors",
    "render",
    "tables",
    "metrics",
    "settings",
    "pipeline",
    "remote",
    "sids",
    "reviews",
    "corpus",
    "models",
    "items",
    "decoding",
    "baselines",
    "recommending",
    "training",
    "evaluation",
    "cli",
]
CORE = Path(__file__).parents[1] / "sidr_core"


def imported_rooms(source: str) -> set[str]:
    """The rooms that a module's import statements name, wherever they stand in it."""
    modules = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            modules += (
                [f"{node.module}.{name.name}" for name in node.names] if node.module == "sidr_core" else [node.module]
            )
        elif isinstance(node, ast.Import):
            modules += [name.name for name in node.names]
    return {
        parts[1]
        for parts in (str(module).split(".") for module in modules)
        if parts[0] == "sidr_core" and len(parts) > 1
    }


def test_each_room_imports_only_rooms_above_it() -> None:
    upward = [
        f"{path.relative_to(CORE)} imports {room}"
        for path in sorted(CORE.glob("*/**/*.py"))
        for room in sorted(imported_rooms(path.read_text()) - {"__version__"})
        if ROOMS.index(room) > ROOMS.index(path.relative_to(CORE).parts[0])
    ]
    assert not upward, "\n".join(upward)


def test_every_module_lies_in_a_room() -> None:
    assert {path.name for path in CORE.glob("*.py")} == {"__init__.py", "errors.py"}
    assert {path.parent.name for path in CORE.glob("*/__init__.py")} == set(ROOMS) - {"errors"}
