"""Images read from Parquet when they are asked for: nothing is prepared before a run, and nothing copied.

Parquet is read by row groups, so images are asked for in an order that stays within few of them at a time
(`eden_hf.training.curriculum.epoch_order`), and those are kept until others are needed. An image is known by its place
in the source, whatever was read before it: there is no state to save, and what is read depends on no process.
"""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import PurePosixPath
from typing import Any, Literal, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import torch
from datasets import Features
from fsspec.core import url_to_fs
from pyarrow.parquet import ParquetFile
from torch import Tensor

from eden_hf.data.columns import as_ids, check_columns, refuse_files_outside, refuse_repeats
from eden_hf.data.errors import SourceError
from eden_hf.data.parquet import damage_told
from eden_hf.data.prepared import Decoder, Images, RowGroups, check_shape
from eden_hf.data.reading import ImageReadError
from eden_hf.data.skips import SkipLog, TooManyUnreadable
from eden_hf.data.sources import Source, find_source

_AT_ONCE = 16  # files whose ends or columns are read together: it is the network that takes the time
_ROWS = 64  # of a table that are in memory at once


class _Group(NamedTuple):
    """Some rows of a Parquet file, which are read together."""

    file: str
    number: int
    rows: int
    bytes: int

    @property
    def name(self) -> str:
        """What messages call it, counted from 1."""
        return f"{self.file}, row group {self.number + 1}"


class StreamedImages(Images):
    """One split of Parquet files as images of one size, decoded when they are asked for.

    Of an image that cannot be read, the next of its row group that can is taken, and it is listed.

    Args:
        source, split, image_column, id_column: As for `eden_hf.data.sources.load_source`; a source of Parquet.
        side, channels, aspect_ratio: As for `eden_hf.data.prepared.prepare_images`.
        window: Images among which an epoch is shuffled: about as many, encoded, are kept by a process that reads.
        threads: That read and decode.
        skips: Lists what cannot be read, and ends the run by its share.

    Attributes:
        parquet_hash: SHA-256 of the names of the files and the sizes of their row groups.

    Raises:
        SourceError: The source is absent, no Parquet, damaged, or not of the shape asked for.
        ValueError: `side`, `channels` or `aspect_ratio` cannot be.
    """

    row_groups: RowGroups

    def __init__(
        self, source: Any, *, split: str = "train", image_column: str = "image", id_column: str | None = None,
        side: int = 256, channels: Literal[1, 3] = 1, aspect_ratio: Literal["resize", "pad"] = "resize",
        window: int = 4096, threads: int = 1, skips: SkipLog | None = None,
    ) -> None:  # fmt: skip
        check_shape(side, channels, aspect_ratio)
        found = find_source(source)
        self._where = f"split {split!r} of {found.name}"
        self._files, self._folders = _files(found, split), found.folders
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            ends = list(pool.map(_end, self._files))
        self._groups = list(chain.from_iterable(groups for _, groups in ends))
        self.features = _features(self._files, [schema for schema, _ in ends])
        self._image_column = image_column
        self._id_column = id_column or ("source_id" if "source_id" in self.features else None)
        check_columns(self.features, image_column, self._id_column, self._where)
        for file, (schema, groups) in zip(self._files, ends, strict=True):
            if groups:  # a file of no rows may not tell what its columns would hold
                check_columns(Features.from_arrow_schema(schema), image_column, self._id_column, file)
        starts = np.cumsum([0, *(group.rows for group in self._groups)])
        if not starts[-1]:
            raise SourceError(f"{self._where} has no rows")
        ids = as_ids(self._read(self._id_column) if self._id_column else range(starts[-1]))
        refuse_repeats(ids, self._where)
        super().__init__(ids, side, channels)
        self.row_groups = RowGroups(torch.from_numpy(starts[:-1]), window)
        self._decode = Decoder(side, channels, aspect_ratio)
        self._threads, self._skips = threads, skips or SkipLog(None)
        self._most = window + max(group.rows for group in self._groups)  # rows that are kept
        self._kept: dict[int, pa.ChunkedArray] = {}  # of row groups, the one used last at the end
        self._lasting: dict[int, Tensor] = {}
        sizes = [(PurePosixPath(group.file).name, *group[1:]) for group in self._groups]
        self.parquet_hash = hashlib.sha256(repr(sizes).encode()).hexdigest()

    @property
    def facts(self) -> dict[str, Any]:
        """What tells the images from others."""
        return {**super().facts, "parquet_hash": self.parquet_hash}

    def __getitems__(self, indices: Sequence[int]) -> Any:
        """A batch as a loader fetches it, or the error that is to be raised: a loader would say where it came from."""
        try:
            return super().__getitems__(indices)
        except (OSError, ValueError, TooManyUnreadable) as error:
            return error

    def workers(self, asked: int) -> int:
        """One process reads ahead, with threads: several would each read the same row groups."""
        return min(asked, 1)

    def told(self, column: str) -> datasets.Dataset:
        """The names of all images and what a column says of them."""
        if column not in self.features:
            raise SourceError(f"{self._where} has no column {column!r}; it has {', '.join(self.features)}")
        return datasets.Dataset(pa.table({"source_id": self.ids, column: self._read(column)}))

    def get(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Pixels [B, C, side, side] uint8 of the images at `indices`.

        Raises:
            SourceError: A file cannot be read; the message names it and the row group.
            TooManyUnreadable: More images cannot be read than may be.
        """
        places = torch.as_tensor(indices)
        groups = torch.searchsorted(self.row_groups.starts, places, right=True) - 1
        rows = (places - self.row_groups.starts[groups]).tolist()
        needed = groups.unique().tolist()
        with ThreadPoolExecutor(max(1, self._threads)) as pool:
            cells = dict(zip(needed, pool.map(self._cells, needed), strict=True))
            self._keep(cells)
            pixels = list(pool.map(lambda group, row: self._pixels(group, row, cells[group]), groups.tolist(), rows))
        return torch.from_numpy(np.stack(pixels))

    def get_lasting(self, indices: Sequence[int] | Tensor) -> Tensor:
        """As `get`, of images that are asked for again: they stay in memory, decoded."""
        wanted = [int(index) for index in indices]
        if missing := [index for index in wanted if index not in self._lasting]:
            self._lasting.update(zip(missing, self.get(missing), strict=True))
        return torch.stack([self._lasting[index] for index in wanted])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}, "_lasting": {}}  # each process reads its own

    def _cells(self, number: int) -> pa.ChunkedArray:
        """The images of a row group, encoded as they are."""
        if number in self._kept:
            return self._kept[number]
        group = self._groups[number]
        with _opened(group.file, group.name) as parquet:
            table = parquet.read_row_group(group.number, columns=[self._image_column], use_threads=False)
        if self._folders is not None:
            refuse_files_outside(table, [self._image_column], self._folders, group.name)
        cast = datasets.Image(decode=False).cast_storage
        return pa.chunked_array([cast(chunk) for chunk in table[self._image_column].chunks])

    def _keep(self, cells: dict[int, Any]) -> None:
        """Keep the row groups that were used last, as far as there is room."""
        for number in cells:
            self._kept.pop(number, None)
        self._kept.update(cells)
        rows = sum(self._groups[number].rows for number in self._kept)
        for number in list(self._kept):
            if rows <= self._most:
                break
            rows -= self._groups[number].rows
            del self._kept[number]

    def _pixels(self, group: int, row: int, cells: Any) -> np.ndarray:
        """An image of a row group, or the next that can be read."""
        first = int(self.row_groups.starts[group])
        for other in chain(range(row, len(cells)), range(row)):
            name = self.ids[first + other]
            ((_, pixels),) = self._decode([{"image": cells[other].as_py(), "source_id": name}])
            if not isinstance(pixels, ImageReadError):
                return pixels
            self._skips.add(name, pixels)
            self._skips.check(len(self))
        raise SourceError(f"{self._groups[group].name} has no readable image")

    def _read(self, column: str) -> pa.ChunkedArray:
        """A column of all files, which is no image, of the type that it has in the first."""
        field = self.features.arrow_schema.field(column)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            columns = pool.map(partial(_column, field=field), self._files)
            return pa.chunked_array(chain.from_iterable(column.chunks for column in columns), field.type)


def parquet_rows(source: Any, split: str) -> Iterator[pa.RecordBatch]:
    """All columns of a split of Parquet, some rows at a time; arguments and errors as for `StreamedImages`."""
    for file in _files(find_source(source), split):
        with _opened(file) as parquet:
            yield from parquet.iter_batches(_ROWS)


def _files(found: Source, split: str) -> Sequence[str]:
    """Files or URLs of a split."""
    if not found.parquet:
        raise SourceError(
            f"{found.name} is no Parquet, which data.streaming reads: leave it out, or convert the images"
        )
    return found.parquet[found.usual_name(split)]


@contextmanager
def _opened(file: str, part: str | None = None) -> Iterator[ParquetFile]:
    """A Parquet file on a disk or, by its URL, elsewhere; errors name the part that is read."""
    with damage_told(part or file):
        system, path = url_to_fs(file)
        with system.open(path, "rb") as opened, ParquetFile(opened, page_checksum_verification=True) as parquet:
            yield parquet


def _end(file: str) -> tuple[pa.Schema, list[_Group]]:
    """What the end of a file tells: its columns and row groups."""
    with _opened(file) as parquet:
        groups = [parquet.metadata.row_group(number) for number in range(parquet.num_row_groups)]
        told = [_Group(file, number, group.num_rows, group.total_byte_size) for number, group in enumerate(groups)]
        return parquet.schema_arrow, [group for group in told if group.rows]


def _column(file: str, field: pa.Field) -> pa.ChunkedArray:
    """A column of a file, as the type of `field`: writers give texts, and shards of no values, types of their own."""
    with _opened(file) as parquet:
        values = parquet.read(columns=[field.name], use_threads=False)[field.name]
    try:
        return values.cast(field.type)
    except pa.ArrowException as error:
        raise SourceError(
            f"column {field.name!r} of {file} holds {values.type}, and no {field.type} as the first file: "
            "write them alike"
        ) from error


def _features(files: Sequence[str], schemas: Sequence[pa.Schema]) -> Features:
    """The columns of files that have the same."""
    first = Features.from_arrow_schema(schemas[0])
    for file, schema in zip(files, schemas, strict=True):
        if (other := Features.from_arrow_schema(schema)).keys() != first.keys():
            raise SourceError(f"{file} has the columns {', '.join(other)}, not {', '.join(first)} as {files[0]} has")
    return first
