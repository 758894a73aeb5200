"""Folders that keep what was made once: there and writable, or an error that says how to choose others."""

import errno
import os
from pathlib import Path

import datasets

from eden_hf.data.errors import SourceError


def writable(folder: Path, chosen_by: str) -> Path:
    """`folder`, made if it is not there.

    Args:
        folder: A cache.
        chosen_by: What chooses another place.

    Raises:
        SourceError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise SourceError(
            f"nothing can be kept in {folder} ({error.strerror}): choose another by {chosen_by}"
        ) from error
    return folder


def datasets_cache() -> Path:
    """The cache of `datasets`, writable.

    Raises:
        SourceError: it is not.
    """
    return writable(Path(datasets.config.HF_DATASETS_CACHE), "the environment variable HF_DATASETS_CACHE or HF_HOME")
