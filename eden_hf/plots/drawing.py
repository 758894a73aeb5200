"""What the pictures share: colours, and how an image, a row of panels and their scales are drawn.

Colours are those of Okabe and Ito, told apart by the colour-blind.
"""

import io
from typing import Literal

import matplotlib.figure
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.patheffects import withStroke
from PIL import Image

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*")
OUTLINE = [withStroke(linewidth=2.5, foreground="white")]


class Figure(matplotlib.figure.Figure):
    """One that notebooks show: matplotlib teaches them to only once pyplot is imported."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png")
        return file.getvalue()


def colour(number: int) -> str:
    """Of the points and structures of a picture; black would not show on a radiograph."""
    return COLOURS[number % 7]


def marker(number: int) -> str:
    """Changes with every round through the colours."""
    return MARKERS[number // 7 % len(MARKERS)]


def show(axes: Axes, image: Image.Image) -> Axes:
    """An image in a frame without ticks; data coordinates are pixel indices."""
    axes.imshow(np.asarray(image), cmap="gray", vmin=0, vmax=255)
    axes.set(xticks=[], yticks=[])
    return axes


def panels(figure: Figure | SubFigure, count: int, columns: int, sharey: bool = False) -> list[Axes]:
    """`count` axes in rows of `columns`; what is left of the last row stays empty."""
    grid = figure.subplots(-(-count // columns), columns, squeeze=False, sharey=sharey).ravel()
    for axes in grid[count:]:
        axes.set_axis_off()
    return list(grid[:count])


def plain(axes: Axes, grid: Literal["both", "x"] = "both") -> None:
    """A faint grid, and no frame at the top and on the right."""
    axes.grid(axis=grid, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
