"""Rehearses the default dataset of every profile, one after the other, and prints a table: `make rehearse`.

`--profile NAME` rehearses one, `--all` every dataset instead of the default ones. The exit code is 1 if any stops.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

from sidr_core.pipeline.profile import PROFILES, load_profile
from sidr_core.render.grid import markdown_table


def main() -> int:
    """Run the rehearsals as processes of their own: what one leaves in memory does not weigh on the next."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", choices=sorted(path.stem for path in PROFILES.glob("*.yaml")))
    parser.add_argument("--all", action="store_true")
    chosen = parser.parse_args()
    rows, failed = [], False
    for name in [chosen.profile] if chosen.profile else sorted(path.stem for path in PROFILES.glob("*.yaml")):
        profile = load_profile(name)
        for dataset in profile if chosen.all else [profile.default_dataset]:
            started = time.monotonic()
            command = [sys.executable, "-W", "ignore", "-c", "from sidr_core.cli.main import main; main()"]
            done = subprocess.run(
                [*command, "rehearse", "--profile", name, "--dataset", dataset],
                capture_output=True,
                text=True,
                check=False,
                env={**os.environ, "PYTHONWARNINGS": "ignore"},
            )
            failed |= done.returncode != 0
            end = "played" if done.returncode == 0 else done.stderr.strip().splitlines()[-1][:120]
            rows.append((name, dataset, f"{time.monotonic() - started:,.0f}", end))
            print(f"{name}/{dataset}: {rows[-1][2]} s, {end}", flush=True)
    print(markdown_table(("profile", "dataset", "seconds", "end"), rows, "llrl"))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
