"""What an annotation file says of an image: its points and regions, one at a time."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeAlias

import numpy as np

from eden_hf.data.readers.masks import Size, fill_outlines

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


def pasted(patch: np.ndarray, left: int, top: int) -> Draw:
    """A region given as a small mask bool `[h, w]` whose first pixel is the image's (left, top)."""
    return partial(_paste, patch, left, top)


def _paste(patch: np.ndarray, left: int, top: int, size: Size) -> np.ndarray:
    width, height = size
    bottom, right = top + patch.shape[0], left + patch.shape[1]
    if not (0 <= left <= right <= width and 0 <= top <= bottom <= height):
        raise ValueError(
            f"a mask reaches from ({left}, {top}) to ({right}, {bottom}), beyond the image of {width} x {height} "
            "pixels: was the image resized?"
        )
    mask = np.zeros((height, width), bool)
    mask[top:bottom, left:right] = patch
    return mask


def runs(counts: list[int], size: Size, order: str) -> np.ndarray:
    """A mask bool `[H, W]` from run lengths that alternate between outside (first) and inside.

    Args:
        counts: Pixels of each run.
        size: Width and height of the mask.
        order: `C` for row after row, `F` for column after column.

    Raises:
        ValueError: they do not fill the mask.
    """
    width, height = size
    if min(counts, default=0) < 0 or sum(counts) != width * height:
        raise ValueError(f"run lengths of {sum(counts)} pixels do not fill a mask of {width} x {height}; export again")
    inside = np.arange(len(counts)) % 2 == 1
    return np.repeat(inside, counts).reshape(height, width, order=order)  # type: ignore[call-overload]
