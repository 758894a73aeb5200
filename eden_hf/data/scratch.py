"""Hidden folders in which something is made, so that never a part of it stands under its name."""

import errno
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from eden_hf.data.stopping import undone_on_sigterm

_LOCK = ".eden-lock"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
#: What torch and safetensors say where they cannot write, without an error of the system's.
_WRITERS = ("PytorchStreamWriter", "inline_container", "iostream", "while serializing")


@contextmanager
def scratch_folder(name: Path) -> Iterator[Path]:
    """A hidden folder beside `name`, for what will be called so; removed at the end, also at SIGTERM.

    What killed processes left there goes first: the system takes their locks from them.

    Raises:
        OSError: nothing can be written there; of a full disk, with the mend.
    """
    for lock_file in name.parent.glob(f".*{_LOCK}"):
        _sweep(lock_file)
    scratch = name.with_name(f".{name.name}-{uuid.uuid4().hex}")  # process ids repeat between machines
    lock = FileLock(f"{scratch}{_LOCK}")
    with undone_on_sigterm(), told_without_room(name.parent), lock:
        try:
            scratch.mkdir()
            yield scratch
        finally:
            _remove(scratch)


@contextmanager
def told_without_room(place: Path) -> Iterator[None]:
    """Say of a full disk, or one that may not be written to, where it is and what helps.

    Raises:
        OSError: it is full, may not be written to, or takes no file of this size.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if getattr(error, "errno", None) not in _NO_ROOM and not any(words in str(error) for words in _WRITERS):
            raise
        free = f"{shutil.disk_usage(place).free / 1e6:,.0f} MB are free; " if place.exists() else ""
        raise OSError(
            f"{place} could not be written to ({error}; {free}what was whole there still is): make room, or choose "
            "another place, and try again, a run with --resume"
        ) from error


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
