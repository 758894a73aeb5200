"""Pictures of parts: the decomposer's levels, nearest neighbours, hits of a search."""

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from eden_hf.anatomy import Box, grid_shape, part_boxes
from eden_hf.plots.drawing import COLOURS, OUTLINE, Figure, panels, show


class Part(NamedTuple):
    """A part of an image, with the image and where it comes from."""

    image: Image.Image
    box: Box
    source_id: str


def plot_levels(image: Image.Image, levels: Sequence[int]) -> Figure:
    """The parts of one image at each of `levels`, outlined and numbered, side by side.

    Raises:
        ValueError: no level is given, or one is finer than the image's pixels.
    """
    if not levels:
        raise ValueError("plot_levels needs at least one level, got none")
    figure = Figure(figsize=(3.2 * len(levels), 3.6), layout="constrained")
    for axes, level in zip(panels(figure, len(levels), len(levels)), levels, strict=True):
        show(axes, image)
        rows, columns = grid_shape(level)
        parts = "part" if level == 0 else "parts"
        axes.set_title(f"level {level}: {2**level} {parts} ({rows} x {columns})", fontsize=11)
        for index, box in enumerate(part_boxes(*image.size, level)):
            outline(axes, box, COLOURS[1])
            if level <= 6:  # beyond 64 parts the numbers would hide the image
                axes.text(
                    (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2, str(index),
                    color=COLOURS[0], path_effects=OUTLINE, ha="center", va="center", fontsize=14 - level,
                )  # fmt: skip
    return figure


def plot_neighbours(queries: Sequence[Part], neighbours: Sequence[Sequence[Part]], similarities: Tensor) -> Figure:
    """Query parts (left) and their nearest neighbours, each above the image that it was cut from.

    Args:
        queries: Q parts.
        neighbours: For each query its k neighbours, nearest first.
        similarities: `[Q, k]` cosine similarities, as from `nearest_neighbours`.

    Raises:
        ValueError: the three do not fit one another.
    """
    lengths = [len(row) for row in neighbours]
    if lengths != [similarities.shape[1]] * len(queries) or len(similarities) != len(queries):
        raise ValueError(
            f"{len(queries)} queries with {lengths} neighbours need similarities of as many rows and columns, "
            f"got {list(similarities.shape)}"
        )
    columns = 1 + similarities.shape[1]
    figure = Figure(figsize=(1.9 * columns, 3.6 * len(queries)), layout="constrained")
    grid = figure.subplots(2 * len(queries), columns, squeeze=False, height_ratios=[3, 2] * len(queries))
    for row, query in enumerate(queries):
        cosines = [f"cosine {value:.3f}" for value in similarities[row].tolist()]
        for column, part in enumerate([query, *neighbours[row]]):
            colour = COLOURS[5] if column == 0 else COLOURS[0]
            crop, whole = grid[2 * row][column], grid[2 * row + 1][column]
            show(crop, part.image.crop(part.box))
            crop.set_title(["query", *cosines][column], color=colour, fontsize=10)
            show(whole, part.image)
            outline(whole, part.box, colour)
            whole.set_xlabel(_short(part.source_id), fontsize=8)
            for axes in (crop, whole):
                axes.spines[:].set_color(colour)
    return figure


def plot_hits(parts: Sequence[Part], similarities: Sequence[float]) -> Figure:
    """A query (first) and what was found for it, most alike first; the part that was compared is outlined.

    Args:
        parts: 1 + N, each in its image; a part that is the whole image has no outline.
        similarities: N cosines.
    """
    columns = min(6, len(parts))
    rows = -(-len(parts) // columns)
    figure = Figure(figsize=(2.4 * columns, 2.9 * rows), layout="constrained")
    titles = ["query", *(f"{rank}. {value:.3f}" for rank, value in enumerate(similarities, start=1))]
    for axes, part, title in zip(panels(figure, len(parts), columns), parts, titles, strict=True):
        colour = COLOURS[5] if title == "query" else COLOURS[0]
        show(axes, part.image).set_title(title, color=colour, fontsize=10)
        if (part.box.width, part.box.height) != part.image.size:
            outline(axes, part.box, colour)
        axes.set_xlabel(_short(part.source_id), fontsize=8)
        axes.spines[:].set_color(colour)
    return figure


def _short(name: str) -> str:
    """The end of a name that is too long to stand under a picture."""
    return name if len(name) <= 22 else "…" + name[-21:]


def outline(axes: Axes, box: Box, colour: str) -> None:
    """The frame of a part: along the outer edges of its pixels."""
    corner = (box.x0 - 0.5, box.y0 - 0.5)
    axes.add_patch(Rectangle(corner, box.width, box.height, fill=False, edgecolor=colour, linewidth=2, clip_on=False))
