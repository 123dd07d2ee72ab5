"""Two small stages and their profile: the adapter is tested without any model."""

import base64
from pathlib import Path
from typing import Any

import polars as pl

from sidr_core.errors import InputError
from sidr_core.pipeline.profile import Profile, parse_profile
from sidr_core.pipeline.report import Check, Report
from sidr_core.pipeline.stage import CheckSpec, Inputs, Progress, Stage
from sidr_core.settings import DatasetConfig

ONE_PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)

NUMBERS = Stage(
    name="numbers",
    run="fake_stages:numbers",
    inputs={},
    sections=("quantizer",),
    code_version="1",
    description="The numbers below quantizer.size.",
    kinds=("parquet",),
    checks=(
        CheckSpec("enough", "There are at least three.", fix="raise the size"),
        CheckSpec("many", "Over a hundred.", blocking=False),
    ),
)
TOTAL = Stage(
    name="total",
    run="fake_stages:total",
    inputs={"numbers": ("numbers.parquet",)},
    sections=("evaluation",),
    code_version="1",
    description="Their sum.",
    warm=True,
)
STAGES = (NUMBERS, TOTAL)


def numbers(inputs: Inputs, config: DatasetConfig, out_dir: Path, progress: Progress) -> Report:
    size = config.quantizer.size
    if size == 13:
        raise InputError("thirteen numbers", expected="another size", found="13", fix="choose another")
    progress.say(f"writing {size} numbers")
    pl.DataFrame({"number": range(size), "text": ["x" * 500] * size}).write_parquet(out_dir / "numbers.parquet")
    (out_dir / "curve.png").write_bytes(ONE_PIXEL)
    return Report(
        metrics={"largest": size - 1, "kind": "range", "seconds": -1},
        checks=(Check("enough", size >= 3, f"{size} numbers"), Check("many", size > 100)),
        markdown={"card": "# Numbers"},
    )


def total(inputs: Inputs, config: DatasetConfig, out_dir: Path, progress: Progress) -> Report:
    frame = pl.read_parquet(inputs["numbers"].path("numbers.parquet"))
    previous = int((inputs.previous.path("total.txt")).read_text()) if inputs.previous else 0
    (out_dir / "total.txt").write_text(str(frame["number"].sum() + previous + 0 * config.evaluation.seed))
    return Report()


def fake_profile(**sections: Any) -> Profile:
    """One dataset `toys` of three monthly snapshots; `sections` are laid over it."""
    fields: dict[str, Any] = {
        "source": {"kind": "sample", "category": "games"},
        "snapshots": {"cadence": "monthly", "start": "2018-10", "end": "2018-12"},
        "quantizer": {"size": 4},
    }
    return parse_profile("fake", {"datasets": {"toys": fields | sections}})
