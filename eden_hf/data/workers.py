"""Processes that read ahead for a DataLoader, and the signals that reach them."""

import os
import signal
import threading
from functools import partial
from multiprocessing import parent_process
from typing import Any

_ENDS = {signal.SIGTERM, signal.SIGINT}


def obey_parent(worker: int = 0) -> None:
    """`worker_init_fn` of a DataLoader: SIGTERM and SIGINT end the worker only where its parent sends them.

    Ctrl-C, `timeout` and schedulers send them to every process of a run, whose main process then still needs its
    workers, for the last checkpoint, and ends them itself. No-op where the system does not say who sent a signal.
    """
    if hasattr(signal, "sigwaitinfo"):  # macOS has none
        signal.pthread_sigmask(signal.SIG_BLOCK, _ENDS)
        threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = parent_process()
    while signal.sigwaitinfo(_ENDS).si_pid != getattr(parent, "pid", None):
        pass
    os._exit(0)


def with_obeying_workers(loader: Any) -> Any:
    """A loader that Trainer made, its workers `obey_parent` besides what else they begin with."""
    inner = getattr(loader, "base_dataloader", loader)  # that of accelerate wraps another
    inner.worker_init_fn = partial(_begin, inner.worker_init_fn)
    return loader


def _begin(own: Any, worker: int) -> None:
    obey_parent()
    if own is not None:
        own(worker)
