"""What an annotation file says of an image: its points and regions, one at a time."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeAlias

import numpy as np

from eden_hf.data.readers.masks import Size, fill_outlines
from eden_hf.data.reading import decode_image

#: A mask bool `[H, W]` of an image's stored width and height.
Draw: TypeAlias = Callable[[Size], np.ndarray]


class Mark(NamedTuple):
    """A point or a region.

    Attributes:
        image: The image as the file names it.
        name: Of the point or of the structure.
        where: File and line, or element, for errors.
        point: x, y of a point: pixel indices in the upright image as stored.
        draw: Draws a region.
        size: Width and height that the file says the image has.
    """

    image: str
    name: str
    where: str
    point: tuple[float, float] | None = None
    draw: Draw | None = None
    size: Size | None = None


def from_corner(x: float, y: float) -> tuple[float, float]:
    """Pixel indices of coordinates that count from the outer corner of the first pixel."""
    return x - 0.5, y - 0.5


def outlined(outline: list[tuple[float, float]]) -> Draw:
    """A region within an outline, whose coordinates count from the outer corner of the first pixel."""
    return partial(fill_outlines, [outline])


def boxed(x0: float, y0: float, x1: float, y1: float) -> Draw:
    """A region of a box given by two corners."""
    return outlined([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


def pasted(patch: bytes, left: int, top: int, where: str) -> Draw:
    """A region given as a small picture, bright inside, whose first pixel is the image's (left, top)."""
    return partial(_paste, patch, left, top, where)


def _paste(patch: bytes, left: int, top: int, where: str, size: Size) -> np.ndarray:
    inside = np.asarray(decode_image(patch, where).convert("L")) > 0
    return _placed(inside, left, top, size)


def run_lengths(counts: Sequence[int], patch: Size, order: str, left: int = 0, top: int = 0) -> Draw:
    """A region of run lengths that alternate between outside (first) and inside.

    Args:
        counts: Pixels of each run.
        patch: Width and height of the box that they fill.
        order: `C` for row after row, `F` for column after column.
        left, top: The image's pixel that is the first of the box.

    Raises:
        ValueError: they do not fill the box.
    """
    width, height = patch
    if min(width, height, *counts) < 0 or sum(counts) != width * height:
        raise ValueError(f"run lengths of {sum(counts)} pixels do not fill a mask of {width} x {height}; export again")
    return partial(_run, tuple(counts), patch, order, left, top)


def _run(counts: Sequence[int], patch: Size, order: str, left: int, top: int, size: Size) -> np.ndarray:
    width, height = patch
    _check_inside(width, height, left, top, size)  # before anything is as large as the file says
    inside = np.arange(len(counts)) % 2 == 1
    drawn = np.repeat(inside, counts).reshape(height, width, order=order)  # type: ignore[call-overload]
    return _placed(drawn, left, top, size)


def _placed(patch: np.ndarray, left: int, top: int, size: Size) -> np.ndarray:
    height, width = patch.shape
    _check_inside(width, height, left, top, size)
    mask = np.zeros(size[::-1], bool)
    mask[top : top + height, left : left + width] = patch
    return mask


def _check_inside(patch_width: int, patch_height: int, left: int, top: int, size: Size) -> None:
    width, height = size
    bottom, right = top + patch_height, left + patch_width
    if not (0 <= left <= right <= width and 0 <= top <= bottom <= height):
        raise ValueError(
            f"a mask reaches from ({left}, {top}) to ({right}, {bottom}), beyond the image of {width} x {height} "
            "pixels: was the image resized?"
        )
