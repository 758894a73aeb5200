"""The Anatomy Decomposer: levels of detail as boxes (arXiv 2309.15358). Pure geometry, nothing else.

Level `n` cuts an image into `2**n` parts by halving every part of level `n - 1`, along x first: level 0 is the
whole image, level 1 its left and right halves, level 2 is 2 x 2, level 3 is 2 rows x 4 columns, level 4 is 4 x 4.
Parts are numbered row by row from the top left. A box is `(x0, y0, x1, y1)` in pixels, half open.

The parts of a level tile the image exactly: edges stand at `floor(i * width / columns)`, so every edge of level `n`
is an edge of level `n + 1`, whatever the size, and parts of one level differ by at most one pixel a side.
"""

from numbers import Integral
from typing import NamedTuple


class Box(NamedTuple):
    """A rectangle in pixels, half open: `x0 <= x < x1`, `y0 <= y < y1`."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def width(self) -> int:
        """Extent along x in pixels."""
        return self.x1 - self.x0

    @property
    def height(self) -> int:
        """Extent along y in pixels."""
        return self.y1 - self.y0

    @property
    def area(self) -> int:
        """Number of pixels inside."""
        return self.width * self.height


def _integer(value: object, name: str, least: int) -> int:
    """`value` as a plain `int`, since narrow numpy integers overflow in powers."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")
    return int(value)


def grid_shape(level: int) -> tuple[int, int]:
    """Rows and columns of `level`: `rows * columns == 2**level`.

    Raises:
        ValueError: `level` is negative or no integer.
    """
    level = _integer(level, "level", least=0)
    return 2 ** (level // 2), 2 ** ((level + 1) // 2)


def finest_level(width: int, height: int) -> int:
    """The finest level at which every part of a `width` x `height` image still has a pixel.

    Raises:
        ValueError: `width` or `height` is below 1 or no integer.
    """
    width, height = _integer(width, "width", least=1), _integer(height, "height", least=1)
    halvings_x, halvings_y = width.bit_length() - 1, height.bit_length() - 1
    # x is halved at levels 1, 3, 5 ..., y at 2, 4, 6 ...: the first axis to run out ends the series.
    return min(2 * halvings_x, 2 * halvings_y + 1)


def part_boxes(width: int, height: int, level: int) -> list[Box]:
    """Boxes of the `2**level` parts of a `width` x `height` image, row by row.

    Raises:
        ValueError: an argument is too small or no integer, or `level` is finer than the image's pixels allow.
    """
    level, finest = _integer(level, "level", least=0), finest_level(width, height)
    if level > finest:
        raise ValueError(
            f"level {level} has parts finer than the {width} x {height} pixels of the image; "
            f"the finest possible level is {finest}"
        )
    rows, columns = grid_shape(level)
    width, height = int(width), int(height)
    xs = [column * width // columns for column in range(columns + 1)]
    ys = [row * height // rows for row in range(rows + 1)]
    return [Box(xs[c], ys[r], xs[c + 1], ys[r + 1]) for r in range(rows) for c in range(columns)]


def part_position(level: int, index: int) -> tuple[int, int]:
    """Row and column of part `index` of `level`.

    Raises:
        ValueError: the level has no such part.
    """
    rows, columns = grid_shape(level)
    index = _integer(index, "index", least=0)
    if index >= rows * columns:
        raise ValueError(f"level {level} has parts 0 to {rows * columns - 1}, got index {index}")
    return divmod(index, columns)


def parent_index(level: int, index: int) -> int | None:
    """Index at `level - 1` of the part that holds part `index` of `level`; `None` for the whole image."""
    row, column = part_position(level, index)
    if level == 0:
        return None
    parent_columns = grid_shape(level - 1)[1]
    return row * parent_columns + column // 2 if level % 2 else row // 2 * parent_columns + column


def child_indices(level: int, index: int) -> tuple[int, int]:
    """Indices at `level + 1` of the two halves of part `index` of `level`, in reading order."""
    row, column = part_position(level, index)
    child_columns = grid_shape(level + 1)[1]
    if level % 2:
        return 2 * row * child_columns + column, (2 * row + 1) * child_columns + column
    return row * child_columns + 2 * column, row * child_columns + 2 * column + 1


def overlap(first: Box, second: Box) -> int:
    """Number of pixels that two boxes share."""
    width = min(first.x1, second.x1) - max(first.x0, second.x0)
    height = min(first.y1, second.y1) - max(first.y0, second.y0)
    return max(width, 0) * max(height, 0)
