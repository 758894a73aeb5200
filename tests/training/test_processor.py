import os
import subprocess
import sys

import pytest

from eden_hf.training.processor import spin_briefly

FAULTS = """
import resource, torch
from eden_hf.training.processor import keep_freed_memory
if {keep}:
    keep_freed_memory()
before = None
for turn in range(20):
    torch.zeros(2**24).add_(1)  # 64 MB
    if turn == 3:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(keep):
    finished = subprocess.run(
        [sys.executable, "-c", FAULTS.format(keep=keep)], capture_output=True, text=True, check=True
    )
    return int(finished.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone is told")
def test_memory_that_tensors_free_is_kept_for_the_next():
    assert page_faults(keep=True) * 10 < page_faults(keep=False)


@pytest.mark.parametrize(
    ("set_before", "after"),
    [
        ({}, {"GOMP_SPINCOUNT": "10000"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
    ],
)
def test_threads_spin_briefly_unless_told_otherwise(monkeypatch, set_before, after):
    monkeypatch.setattr(os, "environ", set_before)
    spin_briefly()
    assert set_before == after
