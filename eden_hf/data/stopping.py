"""Being stopped from outside while something is being made."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from eden_hf.data.workers import obey


@contextmanager
def undone_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block as an exception, so that what it has begun is taken back and its processes end.

    Python would otherwise die on the spot: temporary folders and worker processes would stay. Processes forked
    within obey this one (`eden_hf.data.workers`).
    """
    if threading.current_thread() is not threading.main_thread():  # which alone may handle signals
        yield
        return

    asked = False

    def leave(*_: object) -> None:
        nonlocal asked
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # while it is taken back
        asked = True
        sys.exit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, leave)
    _here.add(leave)
    try:
        yield
    except Exception:
        if asked:  # and another exception came on the way out
            sys.exit(128 + signal.SIGTERM)
        raise
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
        _here.discard(leave)


_PATIENCE = 5  # seconds that a process forked here waits for the end that this one is about to make
_here: set[Any] = set()  # handlers that take back what this process has begun


def _in_forked_process() -> None:
    """Have no handler in Python: a pool waited for ever for a worker that the signal met on its way into a lock."""
    if signal.getsignal(signal.SIGTERM) in _here:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        obey(os.getppid(), _PATIENCE)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_forked_process)
