"""One clear message instead of a traceback when the user names something that does not exist.

Dagster's command line prints its own errors about a wrong `--partition` or `--select`, and ours about a
wrong profile, as tracebacks. All other errors keep their traceback.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import dagster as dg
from dagster._core.definitions.asset_selection import DagsterInvalidAssetSelectionError

from sidr_core.errors import ProfileError, SidrError
from sidr_core.pipeline.profile import Profile

_COMMANDS = ("dagster", "dg")
#: How Dagster begins to say that it takes no `--partition-range` here.
_OF_RANGES = ("Partition ranges with the CLI", "Invalid partition range", "--partition-range option")
Hook = Callable[[type[BaseException], BaseException, TracebackType | None], None]


def shorten_user_errors(profile: Profile | None = None) -> None:
    """Install :func:`hook` in this process, if it is one of Dagster's commands.

    Args:
        profile: the message lists its datasets and snapshots; None before one is loaded.
    """
    if Path(sys.argv[0]).name in _COMMANDS:
        sys.excepthook = hook(profile)


def hook(profile: Profile | None) -> Hook:
    """An `excepthook` that prints :func:`message` if there is one, else the traceback."""

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        text = message(error, profile)
        if text is None:
            sys.__excepthook__(kind, error, trace)
        else:
            print(f"error: {text}", file=sys.stderr)

    return show


def message(error: BaseException, profile: Profile | None) -> str | None:
    """The message for a mistake of the user; None for any other error."""
    if isinstance(error, SidrError):
        return str(error)
    selection_errors = (dg.DagsterInvalidSubsetError, DagsterInvalidAssetSelectionError)
    if profile is None:
        return None
    if any(words in str(error) for words in _OF_RANGES):
        return str(
            ProfileError(
                "a range of snapshots cannot be materialized by one command",
                expected="one snapshot: `--partition` alone, since the next may start from it",
                found=str(error).splitlines()[0].removeprefix("Failure condition: ").partition(".")[0],
                fix="one command for each, in their order; or, in the UI (`make ui`), *Materialize all* with a range",
            )
        )
    if not (isinstance(error, selection_errors) or "'--partition' option" in str(error)):
        return None
    found = str(error).splitlines()[0].removeprefix("Failure condition: ")
    if "none of the assets are partitioned" in found:  # all of ours are
        found = "a selection that holds no asset"
    snapshots = [(name, config.snapshots) for name, config in profile.datasets.items()]
    mistake = ProfileError(
        f"this selection or snapshot is not in profile {profile.name!r}",
        expected="; ".join(f"{name} {s.start} … {s.end} ({s.cadence})" for name, s in snapshots),
        found=found,
        fix=f"use one of these, as in --select '{profile.default_dataset}/*' --partition {profile.newest()}",
    )
    return str(mistake)
