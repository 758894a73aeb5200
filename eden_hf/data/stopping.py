"""Being stopped from outside while something is being made."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def undone_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block as an exception, so that what it has begun is taken back and its processes end.

    Python would otherwise die on the spot: temporary folders and worker processes would stay.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone may handle signals
        yield
        return

    owner, asked = os.getpid(), False

    def leave(*_: object) -> None:
        nonlocal asked
        if os.getpid() != owner:  # a forked helper, which has nothing to take back
            os._exit(128 + signal.SIGTERM)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # while it is taken back
        asked = True
        sys.exit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    except Exception:
        if asked:  # and another exception came on the way out
            sys.exit(128 + signal.SIGTERM)
        raise
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
