"""Pictures of masks: predicted structures over true ones."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from PIL import Image

from eden_hf.plots.drawing import Figure, colour, panels, show

#: The true outlines: white with black edges, seen on bright and dark and no structure's colour.
TRUE: dict[str, Any] = {
    "color": "white",
    "linewidth": 1.4,
    "path_effects": [withStroke(linewidth=3, foreground="black")],
}


def plot_masks(
    images: Sequence[Image.Image],
    predicted: Sequence[np.ndarray],
    true: Sequence[np.ndarray],
    labels: Sequence[str],
    titles: Sequence[str],
) -> Figure:
    """Images with the outlines of true structures (white) and over them of predicted ones, a colour a label.

    Args:
        images: N images.
        predicted: For each bool `[labels, H, W]`, of its size.
        true: The same.
        labels: Names of the structures.
        titles: What to write above each image.
    """
    columns = min(3, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(4 * columns, 4.3 * rows + 0.4), layout="constrained")
    grid = panels(figure, len(images), columns)
    for axes, image, found, wanted, title in zip(grid, images, predicted, true, titles, strict=True):
        show(axes, image).set_title(title, fontsize=10)
        for mask in wanted:
            _contour(axes, mask, **TRUE)
        for index, mask in enumerate(found):
            _contour(axes, mask, color=colour(index), linewidth=1.6)
    lines = [Line2D([], [], color=colour(index), label=f"{label}, predicted") for index, label in enumerate(labels)]
    figure.legend(handles=[*lines, Line2D([], [], label="true", **TRUE)], loc="outside lower center", ncols=4)
    return figure


def _contour(axes: Axes, mask: np.ndarray, color: str, linewidth: float, **style: Any) -> None:
    """The outline of a mask `[H, W]`; nothing where it is empty or full."""
    if mask.any() and not mask.all():
        axes.contour(mask, [0.5], colors=color, linewidths=linewidth).set(**style)
