"""Teaches `--select games/*` to Dagster's selection parser.

Dagster reads `games/*` as "the asset called `games/` and all below it", which matches nothing. Here it
means the same as `key:"games/*"`. Every other string goes to Dagster unchanged.
"""

import re
from typing import Any

import dagster as dg

_FOLDER_WILDCARD = re.compile(r"[\w./-]+/\*")


def install() -> None:
    """Wrap `AssetSelection.from_string`, once per process. The command line imports the code location
    before it parses `--select`, so importing `sidr_assets` is early enough.
    """
    stock = dg.AssetSelection.from_string
    if getattr(stock, "knows_folder_wildcard", False):
        return

    def from_string(cls: type[dg.AssetSelection], string: str, *args: Any, **kwargs: Any) -> dg.AssetSelection:
        return stock(f'key:"{string}"' if _FOLDER_WILDCARD.fullmatch(string) else string, *args, **kwargs)

    from_string.knows_folder_wildcard = True  # type: ignore[attr-defined]
    dg.AssetSelection.from_string = classmethod(from_string)  # type: ignore[assignment]
