"""What is small as a file and large when it is read costs bounded memory: measured in a process of its own.

A file of 1 MB that unpacks to a gigabyte may cost what a block of lines costs, not what it unpacks to.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CHILD = Path(__file__).with_name("bomb_child.py")
#: Case -> what comes of it, and the most MB that it may cost beyond the interpreter with its libraries.
BOMBS = {
    "one_line": ("read, 1 quarantined", 200),
    "one_line_of_items": ("read, 2 quarantined", 200),
    "first_line": (r"refused .*", 200),
    "blank_lines": (r"refused .*", 200),
    "short_lines": ("read, 200000 quarantined", 500),
    "whole_file": ("read, 3 quarantined", 700),
    "csv_quote": (r"read, \d+ quarantined", 900),
    "json_values": ("read, 10 quarantined; items: read, 9 quarantined", 500),
    "parquet_text": (r"refused \(.* GB .*\)", 200),
    "parquet_list": (r"refused \(.* GB .*\)", 500),
    "parquet_rows": (r"read, \d+ quarantined", 700),
    "parquet_depth": (r"refused \(.*\)", 200),
    "yaml_aliases": ("refused 7 of 7", 200),
}


def measured(name: str, folder: Path) -> dict:
    env = os.environ | {"POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "1", "ARROW_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, CHILD, name, folder], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", BOMBS)
def test_bomb(name, tmp_path):
    expected, most = BOMBS[name]
    found = measured(name, tmp_path)
    assert re.fullmatch(expected, found["said"]), found
    assert found["mb"] <= most, found
