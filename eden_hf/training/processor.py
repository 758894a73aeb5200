"""How a training process uses memory and threads of a CPU."""

import ctypes
import os
import sys

_MMAP_MAX, _TRIM_THRESHOLD = -4, -1  # of mallopt(3)


def keep_freed_memory() -> None:
    """Have the C library keep what tensors free for the next ones, where it is glibc.

    It would give large pieces back to the kernel and be given empty pages anew at each step: a tenth of a training
    step on a CPU, a third of making views. A process then holds the most that it ever needed.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(_MMAP_MAX, 0)
        library.mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def spin_briefly() -> None:
    """Have OpenMP's threads wait asleep after some microseconds, unless told otherwise. Before torch is imported.

    Threads that spin where others are late take the processors that the others wait for, when anything else runs;
    threads that sleep at once take their time to wake when nothing does.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
