"""Masks: drawn from run lengths and outlines or read from files, once, and cached as PNG of one bit a pixel."""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import PIL.Image
from datasets import Dataset, DatasetDict, Features, NamedSplit
from datasets.exceptions import DatasetGenerationError
from PIL import ImageDraw

from eden_hf.data.dicom import DecodeError
from eden_hf.data.readers.task import TaskError
from eden_hf.data.reading import ImageReadError, raw_side, read_image

Size: TypeAlias = tuple[int, int]  # width, height
Cell: TypeAlias = dict[str, Any]  # {bytes, path}

_BEYOND_EDGE = 0.05  # of the image's side, by which a hand-drawn outline may leave the image


class Row(NamedTuple):
    """An image to be drawn on.

    Attributes:
        source_id: Its name.
        image: Path of its file.
        annotation: What masks are drawn from.
        files: Further files that are read for it.
    """

    source_id: str
    image: str
    annotation: Any
    files: tuple[str, ...] = ()


#: From an annotation and the image's size to the row's cells: `masks`, and whatever other columns there are.
Draw: TypeAlias = Callable[[Any, Size], Mapping[str, Any]]


def drawn(features: Features, rows: Mapping[str, Sequence[Row]], draw: Draw) -> DatasetDict:
    """The splits of a segmentation task, drawn row by row into the cache of `datasets`, where they are found again.

    Args:
        features: Columns `image`, `source_id`, `masks`, and others that `draw` makes.
        rows: For each split its images; splits without images are left out.
        draw: How their cells are made: a function of a module, for the cache knows it by name.

    Raises:
        TaskError: an image or mask cannot be read, or is of the wrong size; the message names it.
    """
    return DatasetDict({split: _generated(split, features, tuple(own), draw) for split, own in rows.items() if own})


def _generated(split: str, features: Features, rows: tuple[Row, ...], draw: Draw) -> Dataset:
    stamps = tuple(_stamp(file) for row in rows for file in (row.image, *row.files))
    try:
        return Dataset.from_generator(
            _cells,
            features=features,
            gen_kwargs={"rows": rows, "draw": draw, "stamps": stamps},
            split=NamedSplit(split),
        )
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, TaskError):
            raise error.__cause__ from error.__cause__.__cause__
        raise


def _stamp(file: str) -> tuple[int, int]:
    """Size and time of change: the cache is drawn anew when a file changes."""
    status = Path(file).stat()
    return status.st_size, status.st_mtime_ns


def _cells(rows: Sequence[Row], draw: Draw, stamps: Sequence[Any]) -> Iterator[dict[str, Any]]:
    for row in rows:
        try:
            cells = draw(row.annotation, image_size(row.image))
        except (TaskError, ImageReadError) as error:
            raise TaskError(f"image {row.source_id}: {error}") from error
        yield {"image": {"bytes": None, "path": row.image}, "source_id": row.source_id, **cells}


def image_size(path: str) -> Size:
    """Width and height of an image file, from its header.

    Raises:
        ImageReadError: it cannot be read.
    """
    suffix = Path(path).suffix.lower()
    try:
        if suffix == ".img":
            return (raw_side(Path(path).stat().st_size),) * 2
        if suffix in (".dcm", ".dicom"):
            return _dicom_size(path)
        with PIL.Image.open(path) as image:
            return image.size
    except (OSError, ValueError, AttributeError) as error:  # DecodeError and pydicom's are ValueErrors
        raise ImageReadError(f"{path}: damaged or not supported ({error}); restore it from its source") from error


def _dicom_size(path: str) -> Size:
    try:
        import pydicom
    except ImportError as error:
        raise DecodeError("DICOM needs pydicom: pip install eden_hf[dicom]") from error
    header = pydicom.dcmread(path, force=True, specific_tags=["Rows", "Columns"])
    return int(header.Columns), int(header.Rows)


def mask_cell(inside: np.ndarray) -> Cell:
    """A mask bool `[H, W]` as an image cell `{bytes, path}`: a PNG of one bit a pixel."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(inside).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def read_mask(path: str, size: Size) -> np.ndarray:
    """A mask bool `[H, W]` from a file of the image's size, or coarser by a whole number; above 0 is inside.

    Raises:
        TaskError: its size does not fit.
        ImageReadError: it cannot be read.
    """
    pixels = np.asarray(read_image(path))
    inside = pixels.any(axis=-1) if pixels.ndim == 3 else pixels > 0
    (height, width), (columns, rows) = inside.shape, size
    factor = columns // width
    if (width * factor, height * factor) != (columns, rows) or factor == 0:
        raise TaskError(
            f"mask {path} has {width} x {height} pixels, its image {columns} x {rows}: the image's side must be the "
            "mask's or a whole multiple of it"
        )
    return inside.repeat(factor, axis=0).repeat(factor, axis=1)


def read_masks(structures: Sequence[Sequence[str]], size: Size) -> dict[str, list[Cell]]:
    """The cell `masks` of structures, each the union of the masks in its files. A `Draw`."""
    return {"masks": [mask_cell(np.any([read_mask(path, size) for path in files], axis=0)) for files in structures]}


def decode_runs(text: str, size: Size) -> np.ndarray:
    """A mask bool `[H, W]` from relative run lengths, as in SIIM-ACR.

    Pairs of numbers: pixels passed over since the end of the last run (the first from pixel 0), then pixels in the
    run. Pixels are counted down the columns, column after column.

    Raises:
        TaskError: the numbers are not pairs of whole ones above 0 (a gap may be 0), or leave the image.
    """
    width, height = size
    try:
        numbers = np.array(text.split(), dtype=np.int64)
    except ValueError as error:
        raise TaskError(f"run lengths must be whole numbers, got {text[:40]!r}") from error
    gaps, runs = numbers[0::2], numbers[1::2]
    if len(numbers) == 0 or len(gaps) != len(runs) or (gaps < 0).any() or (runs < 1).any():
        raise TaskError(f"run lengths must be pairs of a gap, 0 or more, and a run above 0, got {text[:40]!r}")
    ends = np.cumsum(gaps + runs)
    if ends[-1] > width * height:
        raise TaskError(
            f"run lengths reach pixel {ends[-1]} of an image of {width} x {height} = {width * height} pixels: they "
            "are of an image of another size, or count from the image's start"
        )
    turns = np.zeros(width * height + 1, np.int8)  # where a run begins and where it has ended; touching runs cancel
    np.add.at(turns, ends - runs, 1)
    np.add.at(turns, ends, -1)
    return turns[:-1].cumsum(dtype=np.int8).astype(bool).reshape(width, height).T


def fill_outlines(outlines: Sequence[Sequence[Sequence[float]]], size: Size) -> np.ndarray:
    """A mask bool `[H, W]`, the union of outlines `(x, y), (x, y) ...` in pixels, edges inside.

    A coordinate belongs to the pixel it lies in. Outlines of one and two points are a pixel and a line.

    Raises:
        TaskError: an outline has no point, or leaves the image by more than a little.
    """
    picture = PIL.Image.new("1", size)
    pen = ImageDraw.Draw(picture)
    for outline in outlines:
        points = np.asarray(outline, dtype=float)
        if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
            raise TaskError(f"an outline must be a list of points [x, y], got {str(outline)[:60]}")
        slack = np.multiply(size, _BEYOND_EDGE)
        if (points < -slack).any() or (points > size + slack).any():
            raise TaskError(
                f"an outline reaches from {points.min(axis=0).tolist()} to {points.max(axis=0).tolist()}, beyond the "
                f"image of {size[0]} x {size[1]} pixels: was the image resized?"
            )
        corners = [(int(x), int(y)) for x, y in np.floor(points)]
        if len(corners) < 3:
            pen.line(corners if len(corners) == 2 else corners * 2, fill=1)
        else:
            pen.polygon(corners, fill=1, outline=1)
    return np.asarray(picture)


def draw_outlines(outlines: Mapping[str, Sequence], size: Size, labels: Sequence[str]) -> dict[str, list[Cell]]:
    """The cell `masks` of outlines by label; a label without outline has an empty mask."""
    return {"masks": [mask_cell(fill_outlines(outlines.get(label, ()), size)) for label in labels]}


def outlines_of(labels: Sequence[str]) -> Draw:
    """`draw_outlines` for these labels."""
    return partial(draw_outlines, labels=tuple(labels))
