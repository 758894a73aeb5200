import errno
import os
import subprocess
import sys

import pytest

from eden_hf.data.scratch import scratch_folder

from ..launching import ENVIRONMENT

HOLD = """
import sys, time
from pathlib import Path
from eden_hf.data.scratch import scratch_folder
with scratch_folder(Path(sys.argv[1])) as scratch:
    (scratch / "part").touch()
    print(scratch, flush=True)
    time.sleep(120)
"""


def test_what_killed_processes_left_goes_and_what_living_ones_make_stays(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path / "other")]
    mine = tmp_path / ".of-the-user"
    mine.mkdir()
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as other:
        theirs = other.stdout.readline().strip()
        with scratch_folder(tmp_path / "folder") as scratch:
            assert scratch.parent == tmp_path
            assert {str(path) for path in tmp_path.iterdir() if path.is_dir()} == {theirs, str(scratch), str(mine)}
        other.kill()
    assert (tmp_path / theirs / "part").exists()
    with scratch_folder(tmp_path / "folder") as scratch:
        assert {path for path in tmp_path.iterdir() if path.is_dir()} == {scratch, mine}
    assert list(tmp_path.iterdir()) == [mine]


def test_nothing_is_left_of_what_failed(tmp_path):
    with pytest.raises(ValueError, match="wrong"), scratch_folder(tmp_path / "folder"):
        raise ValueError("wrong")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EFBIG, errno.EDQUOT])
def test_a_disk_that_is_full_is_named_with_the_mend(number, tmp_path):
    message = rf"{tmp_path} could not be written to \(.*{os.strerror(number)}.*MB are free.*make room"
    with pytest.raises(OSError, match=message), scratch_folder(tmp_path / "folder"):
        raise OSError(number, os.strerror(number))
    assert list(tmp_path.iterdir()) == []


def test_other_errors_are_not_of_the_disk(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^gone$"), scratch_folder(tmp_path / "folder"):
        raise FileNotFoundError("gone")
