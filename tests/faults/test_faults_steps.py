"""The suite `steps`, whole: it is quick."""

import pytest
import steps
import syscalls


@pytest.mark.parametrize("act", [act.name for act in steps.ACTS])
def test_a_kill_between_two_calls_leaves_the_old_state_or_the_new_one(act, capfd):
    if why := syscalls.available():
        pytest.skip(why)
    assert steps.suite(1, 0, (act,)) == 0, capfd.readouterr().out


def test_the_tracer_sees_every_kind_of_call(tmp_path):
    if why := syscalls.available():
        pytest.skip(why)

    def work():
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "b").write_text("x")
        (tmp_path / "a" / "b").rename(tmp_path / "a" / "c")
        (tmp_path / "a" / "c").unlink()
        (tmp_path / "a").rmdir()

    calls = [call.split()[0] for call in syscalls.run_until(work, None, tmp_path)]
    assert [call.removesuffix("at").replace("unlink", "remove") for call in calls] == [
        *("mkdir", "open", "write", "rename", "remove"),
        "rmdir" if calls[-1] == "rmdir" else "remove",
    ]
    assert len(syscalls.run_until(work, 3, tmp_path)) == 3
    assert (tmp_path / "a" / "b").read_text() == ""
