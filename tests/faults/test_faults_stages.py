"""Short cut of the suite `stages`: three quick stages, each killed a few times."""

import stages


def test_a_killed_stage_leaves_the_old_output_or_the_new_one(capfd):
    only = ("raw_items", "interactions", "baseline_item_item")
    assert stages.suite(4, 0, only) == 0
    rows = [line for line in capfd.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0].strip("| ") for row in rows[2:]] == list(only)
    assert all(row.split(" | ")[2] == "4" for row in rows[2:])
