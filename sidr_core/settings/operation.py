"""What runs by itself, and what goes live. No stage reads `operation`, so it is part of no fingerprint."""

from __future__ import annotations

import re

from pydantic import Field, field_validator

from sidr_core.settings.base import Section

#: Least and greatest number of each field of a cron line.
_FIELDS = {"minute": (0, 59), "hour": (0, 23), "day": (1, 31), "month": (1, 12), "weekday": (0, 7)}


class Operation(Section):
    """What the daemon of `dagster dev` does without being asked. What is off here can be switched on in the UI."""

    reevaluate: str | None = None
    """Cron line (five fields of numbers, UTC) of the schedule that evaluates the newest earlier checkpoints on newer
    rows; null leaves it off.
    """
    automation: bool = False
    """Whether what lies below changed data, or whose code changed, is materialized again."""
    fresh_days: float | None = Field(default=None, gt=0)
    """Days after which the scheduled assets count as out of date in the UI; null shows none."""

    @field_validator("reevaluate")
    @classmethod
    def _cron(cls, value: str | None) -> str | None:
        fields = value.split() if value is not None else None
        if fields is not None and (len(fields) != len(_FIELDS) or not all(map(_sound, fields, _FIELDS.values()))):
            raise ValueError(
                f"expected a cron line of five fields ({', '.join(_FIELDS)}) such as '0 6 * * 1', found {value!r}"
            )
        return value


class Promotion(Section):
    """The gate before what is live (docs/operations.md). A section without fields (`promotion: {}`) opens it."""

    model: str = "grpo/thinking"
    """The list that goes live, as `<model>/<mode>`, one of `decoding.models`."""
    margin: float = Field(default=0.01, gt=0, lt=1)
    """HR and NDCG may be lower by less than this, surely: the low end of the paired interval lies above -margin."""
    coverage_margin: float = Field(default=0.05, ge=0, lt=1)
    """Share of the catalogue by which fewer items may be recommended at all."""
    cold_margin: float = Field(default=0.02, ge=0, lt=1)
    """HR may be lower by no more than this on rows whose target has no train row."""
    slower: float = Field(default=0.5, ge=0)
    """Share by which a list may take longer: 0.5 allows 1.5 times the seconds of what is live."""


def _sound(field: str, bounds: tuple[int, int]) -> bool:
    """Whether a field is a list of `*`, `n` or `n-m`, each with an optional `/step`, and its numbers lie in bounds."""
    for part in field.split(","):
        match = re.fullmatch(r"(?:\*|(\d+)(?:-(\d+))?)(?:/([1-9]\d*))?", part)
        if match is None or any(not bounds[0] <= int(n) <= bounds[1] for n in match.group(1, 2) if n):
            return False
    return True
