"""Where the file of general examples lies; apart from its reader, as every run asks for it and few read it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sidr_core.errors import InputError

if TYPE_CHECKING:
    from sidr_core.settings import General, Teacher


def files(teacher: Teacher) -> dict[str, Path]:
    """The external file of a teacher section, fingerprinted by content.

    Raises:
        InputError: it is not there.
    """
    return {"general": located(teacher.general)} if teacher.general else {}


def located(settings: General) -> Path:
    """Path of the file. Raises InputError if it is not there."""
    path = Path(settings.path).expanduser()
    if not path.is_file():
        raise InputError(
            "the file of general examples is missing",
            expected="teacher.general.path names a file of JSON lines",
            found=str(path),
            fix="correct the path, or remove `general` from the teacher section",
        )
    return path
