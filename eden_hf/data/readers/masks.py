"""Masks: drawn from run lengths and outlines or read from files, once, and cached as PNG of one bit a pixel."""

import io
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import PIL.Image
from datasets import Dataset, DatasetDict, Features, NamedSplit
from datasets.exceptions import DatasetGenerationError
from PIL import ImageDraw

from eden_hf.data.caches import datasets_cache
from eden_hf.data.decoders import decoder_versions
from eden_hf.data.readers.task import TaskError
from eden_hf.data.reading import ImageReadError, Sizes, image_sizes, read_image

logger = logging.getLogger(__name__)

Size: TypeAlias = tuple[int, int]  # width, height
Cell: TypeAlias = dict[str, Any]  # {bytes, path}

_BEYOND_EDGE = 0.05  # of the image's side, by which a hand-drawn outline may leave the image
_SAME_SHADE = 1 / 8  # of the brightest value of a mask, by which the ringing of JPEG changes what is even
_AREA = 1e-3  # of the inside: the least that is an area of another colour
_STRUCTURES = 32  # at most, on one map; more shades are those of soft edges


class Row(NamedTuple):
    """An image to be drawn on.

    Attributes:
        source_id: Its name.
        image: Path of its file.
        annotation: What masks are drawn from.
        files: Further files that are read for it.
        listing: The file that the annotation is from, for errors, where it is not in `files`.
    """

    source_id: str
    image: str
    annotation: Any
    files: tuple[str, ...] = ()
    listing: str = ""


#: From an annotation and the image's size to the row's cells: `masks`, and whatever other columns there are.
Draw: TypeAlias = Callable[[Any, Size], Mapping[str, Any]]


def drawn(features: Features, rows: Mapping[str, Sequence[Row]], draw: Draw) -> DatasetDict:
    """The splits of a segmentation task, drawn row by row into the cache of `datasets`, where they are found again.

    Args:
        features: Columns `image`, `source_id`, `masks`, and others that `draw` makes.
        rows: For each split its images; splits without images are left out.
        draw: How their cells are made: a function of a module, for the cache knows it by name.

    A row whose image or mask cannot be read stays: see `unread`.

    Raises:
        TaskError: a mask is of the wrong size or not as published; the message names its image.
    """
    return DatasetDict({split: _generated(split, features, tuple(own), draw) for split, own in rows.items() if own})


def _generated(split: str, features: Features, rows: tuple[Row, ...], draw: Draw) -> Dataset:
    datasets_cache()
    stamps = tuple(file_stamp(file) for row in rows for file in (row.image, *row.files))
    try:
        return Dataset.from_generator(
            _cells,
            features=features,
            gen_kwargs={"rows": rows, "draw": draw, "made_by": (stamps, features, decoder_versions())},
            split=NamedSplit(split),
        )
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, TaskError):
            raise error.__cause__ from error.__cause__.__cause__
        raise


def file_stamp(file: str) -> tuple[int, int]:
    """Size and time of change: the cache is drawn anew when a file changes."""
    try:
        status = Path(file).stat()
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _cells(rows: Sequence[Row], draw: Draw, made_by: tuple) -> Iterator[dict[str, Any]]:
    _, features, _ = made_by
    for row in rows:
        try:
            sizes = image_sizes(row.image, row.image)
            cells = of_picture(draw(row.annotation, sizes.stored), sizes)
        except TaskError as error:
            listed = f" of {row.listing}" if row.listing else ""
            raise TaskError(f"image {row.source_id}{listed}: {error}") from error
        except ImageReadError:
            cells = unread(features, _torn(row))
        yield {**dict.fromkeys(features), "image": _at(row.image), "source_id": row.source_id, **cells}


def unread(features: Features, torn: Cell) -> dict[str, Any]:
    """Masks of a row of which a file cannot be read: that file, for whoever reads them to say why."""
    return {"masks": [torn] * features["masks"].length}


def _torn(row: Row) -> Cell:
    """The first file of a row that cannot be read."""
    for file in row.files:
        try:
            read_image(file)
        except ImageReadError:
            return _at(file)
    return _at(row.image)


def _at(file: str) -> Cell:
    return {"bytes": None, "path": file}


def of_picture(cells: Mapping[str, Any], sizes: Sizes) -> dict[str, Any]:
    """Cells whose `masks` were drawn on the stored pixels, which the picture has made square."""
    if sizes.stored == sizes.picture:
        return dict(cells)
    masks = [PIL.Image.open(io.BytesIO(cell["bytes"])) for cell in cells["masks"]]
    resized = [mask.resize(sizes.picture, PIL.Image.Resampling.NEAREST) for mask in masks]
    return {**cells, "masks": [mask_cell(np.asarray(mask)) for mask in resized]}


def mask_cell(inside: np.ndarray) -> Cell:
    """A mask bool `[H, W]` as an image cell `{bytes, path}`: a PNG of one bit a pixel."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(inside).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def read_mask(path: str, size: Size) -> np.ndarray:
    """A mask bool `[H, W]` from a file, as `fitted_mask`.

    Raises:
        TaskError: as `fitted_mask`.
        ImageReadError: it cannot be read.
    """
    return fitted_mask(read_image(path), size, path)


def fitted_mask(picture: PIL.Image.Image, size: Size, name: str) -> np.ndarray:
    """A mask bool `[H, W]` of an image's size from a picture of that size, or coarser by a whole number.

    Args:
        picture: Of mode L or RGB; `is_inside` says what of it is inside.
        size: Of the image.
        name: What errors call the mask.

    Raises:
        TaskError: its size does not fit, or it is a map of several structures.
    """
    inside = is_inside(picture)
    _refuse_maps(np.atleast_3d(np.asarray(picture, np.int16)), inside, name)
    (height, width), (columns, rows) = inside.shape, size
    factor = columns // width
    if (width * factor, height * factor) != (columns, rows) or factor == 0:
        raise TaskError(
            f"mask {name} has {width} x {height} pixels, its image {columns} x {rows}: the image's side must be the "
            "mask's or a whole multiple of it"
        )
    return inside.repeat(factor, axis=0).repeat(factor, axis=1)


def is_inside(picture: PIL.Image.Image) -> np.ndarray:
    """Where a mask is brighter than half of its brightest pixel, bool `[H, W]`; of colours the brightest channel.

    So masks of 0 and 1 and of 0 and 255 are alike, and soft edges and the ringing of JPEG fall on the side they belong
    to.
    """
    brightness = np.atleast_3d(np.asarray(picture)).max(axis=2)
    return brightness > brightness.max() / 2


def warn_if_inverted(masks: Iterable[Mapping[str, np.ndarray]], where: str) -> None:
    """Warn of structures whose masks fill most of the picture's edge in every image, as masks drawn inverted do.

    Args:
        masks: For each image masks bool `[H, W]` by name; empty ones say nothing.
        where: What the warning calls their source.
    """
    framed: dict[str, list[bool]] = {}
    for named in masks:
        for name, inside in named.items():
            if inside.any():
                edge = np.concatenate([inside[0], inside[-1], inside[:, 0], inside[:, -1]])
                framed.setdefault(name, []).append(edge.mean() > 0.5)
    if suspects := [name for name, own in framed.items() if all(own)]:
        logger.warning(
            "%s: the masks of %s are bright along the edge of every image looked at, and what is bright is inside; if "
            "they are drawn dark on bright, invert the files",
            where,
            ", ".join(suspects),
        )


def _refuse_maps(colours: np.ndarray, inside: np.ndarray, name: str) -> None:
    """Refuse areas of several colours: of a map of structures the darker ones would be lost, or all be one.

    Args:
        colours: `[H, W, channels]`, signed.
        inside: `[H, W]`.
        name: Of the mask.
    """
    centre = colours[1:-1, 1:-1]
    around = (colours[:-2, 1:-1], colours[2:, 1:-1], colours[1:-1, :-2], colours[1:-1, 2:])
    even = np.logical_and.reduce([(centre == other).all(axis=2) for other in around])  # not of a soft edge
    if not (even & inside[1:-1, 1:-1]).any():
        return
    usual = np.median(centre[even & inside[1:-1, 1:-1]], axis=0)
    tolerance = colours.max() * _SAME_SHADE
    other = even & (centre.max(axis=2) > tolerance) & (np.abs(centre - usual).max(axis=2) > tolerance)
    shades = np.unique(centre[other], axis=0)
    if other.sum() > _AREA * inside.sum() and len(shades) <= _STRUCTURES:
        raise TaskError(
            f"mask {name} holds areas of {shades[0].tolist()} beside {usual.astype(int).tolist()}: it is a map of "
            "several structures; give each a mask of its own"
        )


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
    except (ValueError, OverflowError) as error:
        raise TaskError(f"run lengths must be whole numbers, got {text[:40]!r}") from error
    gaps, runs = numbers[0::2], numbers[1::2]
    most = width * height
    if len(numbers) == 0 or len(gaps) != len(runs) or (gaps < 0).any() or (runs < 1).any():
        raise TaskError(f"run lengths must be pairs of a gap, 0 or more, and a run above 0, got {text[:40]!r}")
    ends = np.cumsum(np.minimum(gaps, most + 1) + np.minimum(runs, most + 1))  # whose sums do not overflow
    if ends[-1] > most:
        raise TaskError(
            f"run lengths reach pixel {ends[-1]} of an image of {width} x {height} = {most} pixels: they "
            "are of an image of another size, or count from the image's start"
        )
    turns = np.zeros(most + 1, np.int8)  # where a run begins and where it has ended; touching runs cancel
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
        try:
            points = np.asarray(outline, dtype=float)
        except (TypeError, ValueError, OverflowError):
            points = np.empty(0)
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
