"""Hidden folders in which something is made, so that never a part of it stands under its name."""

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from eden_hf.data.stopping import undone_on_sigterm

_LOCK = ".eden-lock"


@contextmanager
def scratch_folder(name: Path) -> Iterator[Path]:
    """A hidden folder beside `name`, for what will be called so; removed at the end, also at SIGTERM.

    What killed processes left there goes first: the system takes their locks from them.

    Raises:
        OSError: nothing can be written there.
    """
    for lock_file in name.parent.glob(f".*{_LOCK}"):
        _sweep(lock_file)
    scratch = name.with_name(f".{name.name}-{uuid.uuid4().hex}")  # process ids repeat between machines
    lock = FileLock(f"{scratch}{_LOCK}")
    with undone_on_sigterm(), lock:
        try:
            scratch.mkdir()
            yield scratch
        finally:
            _remove(scratch)


def _sweep(lock_file: Path) -> None:
    """Remove what belongs to a lock, unless a living process has it."""
    try:
        with FileLock(lock_file, timeout=0):
            _remove(lock_file.with_name(lock_file.name.removesuffix(_LOCK)))
    except (Timeout, PermissionError):  # of a process that lives, or another user
        return


def _remove(scratch: Path) -> None:
    """Remove a folder and, while it is held, its lock."""
    shutil.rmtree(scratch, ignore_errors=True)
    Path(f"{scratch}{_LOCK}").unlink(missing_ok=True)
