"""Processes that work for another, and the signals that reach them."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import parent_process
from typing import Any

_ENDS = {signal.SIGTERM, signal.SIGINT}


def obey_parent(worker: int = 0) -> None:
    """`worker_init_fn` of a DataLoader: `obey` the process that started it."""
    obey(getattr(parent_process(), "pid", None))


def obey(parent: int | None, patience: float = 3600) -> None:
    """SIGTERM and SIGINT end this process only where `parent`, a process id, sends them.

    Ctrl-C, `timeout` and schedulers send them to every process of a run, whose main process then still needs its
    workers, for the last checkpoint or to let go of a lock, and ends them itself. No-op where the system does not say
    who sent a signal.

    Args:
        parent: The process that is obeyed.
        patience: Seconds after another's signal in which the parent's must come. The system forgets it where the
            other one has not been taken yet, and a parent that joins its workers would wait for ever.
    """
    if hasattr(signal, "sigtimedwait"):  # macOS has none
        signal.pthread_sigmask(signal.SIG_BLOCK, _ENDS)
        threading.Thread(target=_wait_for, args=(parent, patience), daemon=True).start()


def _wait_for(parent: int | None, patience: float) -> None:
    heard: signal.struct_siginfo | None = signal.sigwaitinfo(_ENDS)
    while heard is not None and heard.si_pid != parent:
        heard = signal.sigtimedwait(_ENDS, patience)
    os._exit(0)


def check_workers(count: int | None, setting: str) -> None:
    """Raise ValueError if there cannot be so many; `None` stands for as many as there are processors."""
    if count is not None and count < 0:
        raise ValueError(f"{setting} must be at least 0, which is this process alone, got {count}")


@contextmanager
def workers_live() -> Iterator[None]:
    """Say it plainly where a process that reads images does not: torch looks after them, and does so at any moment.

    Raises:
        ChildProcessError: one ended.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise ChildProcessError(
            f"a process that reads images ended ({error}): the system ends them where memory is short, so try fewer "
            "(run.num_workers), and a run goes on with --resume"
        ) from error


def with_obeying_workers(loader: Any) -> Any:
    """A loader that Trainer made, its workers `obey_parent` besides what else they begin with."""
    inner = getattr(loader, "base_dataloader", loader)  # that of accelerate wraps another
    inner.worker_init_fn = partial(_begin, inner.worker_init_fn)
    return loader


def _begin(own: Any, worker: int) -> None:
    obey_parent()
    if own is not None:
        own(worker)
