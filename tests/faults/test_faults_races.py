"""Short cut of the races, in a process of its own: forks and the thread pools of other tests do not go together."""

import subprocess
import sys
from pathlib import Path

import pytest

SHORT = """
import sys, tempfile
from pathlib import Path
sys.path[:0] = sys.argv[1:]
import races
with tempfile.TemporaryDirectory() as name:
    course = races.Course(Path(name), races.CHAIN, 1)
    rows = [races.single_stages(course, races.CHAIN, 5), *races.chains(course, 1)]
print(races.HEADER)
for row in rows:
    row.show()
for row in rows:
    assert row.races and not row.broken(), row.broken()
assert rows[3].collected, "the collector beside deletes"
assert rows[0].reused == rows[1].reused == 5, "the second of each pair"
"""


@pytest.mark.slow
def test_two_processes_build_once():
    here = Path(__file__).resolve().parent
    command = [sys.executable, "-c", SHORT, str(here), str(here.parent)]
    done = subprocess.run(command, cwd=here.parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
