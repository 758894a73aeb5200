"""Damaged Parquet, told by file and row group: Arrow's errors name neither, and come when the rows are read."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
from pyarrow.parquet import ParquetFile

from eden_hf.data.errors import SourceError

_ROWS = 64  # held at a time


@contextmanager
def damage_told(source: str, files: Iterable[str] = ()) -> Iterator[None]:
    """What damaged files make Arrow and `datasets` raise becomes an error that names them.

    Args:
        source: What the error calls all of them.
        files: Them, of which those of Parquet on this machine are looked through where reading failed.

    Raises:
        SourceError: reading failed.
        OSError: it was the disk or the network.
    """
    try:
        yield
    except SourceError:
        raise
    except Exception as error:
        cause = error.__cause__ or error
        if isinstance(cause, SourceError):
            raise cause from error
        if isinstance(cause, OSError) and cause.errno is not None:  # of the disk or the network; Arrow has none
            raise
        place = next(filter(None, map(_damaged_part, files)), None)
        told = f"{type(cause).__name__}: {str(cause).strip()}"
        raise SourceError(
            f"{source} cannot be read ({f'{place}: ' if place else ''}{told}); restore it from where it came from"
        ) from error


def _damaged_part(file: str) -> str | None:
    """The file and its first row group that cannot be read; `None` if all can, or it is not of this machine."""
    if not (file.endswith(".parquet") and Path(file).is_file()):
        return None
    group = None
    try:
        with ParquetFile(file) as parquet:
            for group in range(parquet.num_row_groups):
                for _ in parquet.iter_batches(_ROWS, row_groups=[group]):
                    pass
    except (OSError, pa.ArrowException):
        return file if group is None else f"{file}, row group {group + 1} of {parquet.num_row_groups}"
    return None
