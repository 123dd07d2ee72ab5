"""Short cut of the suite `disk`, and what counts as a full disk."""

import errno

import disk as suite_of_disk
import pytest

from sidr_core.errors import InputError, StoreError
from sidr_core.pipeline import disk


def test_a_full_disk_is_told_and_damages_nothing(capfd):
    assert suite_of_disk.suite(1, 0, ("interactions", "catalog", "ledger")) == 0, capfd.readouterr()
    assert capfd.readouterr().out.count("clear error") >= 4 * 3


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError(errno.EFBIG, "File too large"),
        OSError("99 requested and 46 written"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("database or disk is full"),
    ],
)
def test_what_libraries_say_of_a_full_disk(tmp_path, error):
    with pytest.raises(StoreError, match="no room to write") as told, disk.explained(tmp_path / "not" / "yet"):
        raise error
    assert "bytes are free" in told.value.found
    assert "sidr gc" in told.value.fix


def test_a_full_disk_below_another_error_is_found(tmp_path):
    with pytest.raises(StoreError, match="no room to write"), disk.explained(tmp_path):
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise InputError("the table", expected="a table", found="none", fix="mend it") from None


def test_other_errors_are_left_alone(tmp_path):
    for error in (OSError(errno.EACCES, "Permission denied"), RuntimeError("shapes differ"), KeyError("x")):
        with pytest.raises(type(error)), disk.explained(tmp_path):
            raise error
