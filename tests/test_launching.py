"""Programs of tests end, whatever they do."""

import psutil
import pytest

from .launching import python

#: Has a worker in a session of its own, as torchrun has, tells its number, and waits for it.
LAUNCHER = """
import subprocess
worker = subprocess.Popen(["sleep", "60"], start_new_session=True)
print(worker.pid, flush=True)
worker.wait()
"""


def test_a_program_that_does_not_end_leaves_no_worker_and_shows_what_it_said_and_where_it_was():
    with pytest.raises(AssertionError, match="did not end within 1 s") as caught:
        python("-c", LAUNCHER, timeout=1)
    told = str(caught.value)
    assert "in wait" in told
    worker = int(told.partition("within 1 s\n")[2].split()[0])
    assert not psutil.pid_exists(worker) or psutil.Process(worker).status() == psutil.STATUS_ZOMBIE
