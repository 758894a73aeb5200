"""Pictures of points: correspondences, matches, landmarks, and how far confidence can be trusted."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import ConnectionPatch
from PIL import Image
from torch import Tensor

from eden_hf.plots.drawing import COLOURS, OUTLINE, Figure, colour, marker, panels, show


def plot_correspondence(
    image_a: Image.Image, image_b: Image.Image, points_a: Tensor, points_b: Tensor, true_b: Tensor | None = None
) -> Figure:
    """Points of one image and the points found for them in another, numbered and joined by lines.

    Args:
        image_a: The image the points are from.
        image_b: The image they were looked for in.
        points_a: `[P, 2]` pixel indices x, y.
        points_b: `[P, 2]` pixel indices x, y, row by row the matches of `points_a`.
        true_b: `[P, 2]`, where the matches should be: drawn as crosses, with a thin line from what was found.

    Raises:
        ValueError: the numbers of points differ.
    """
    if len(points_a) != len(points_b):
        raise ValueError(f"every point needs its match, got {len(points_a)} points and {len(points_b)} matches")
    figure = Figure(figsize=(10, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    show(left, image_a).set_title("points")
    show(right, image_b).set_title("nearest dense embeddings" + ("" if true_b is None else " (x: where they belong)"))
    for number, (start, end) in enumerate(zip(points_a.tolist(), points_b.tolist(), strict=True)):
        shade = colour(number)
        line = ConnectionPatch(start, end, "data", "data", axesA=left, axesB=right, color=shade, alpha=0.55)
        figure.add_artist(line)
        for axes, point in ((left, start), (right, end)):
            axes.plot(*point, "o", color=shade, markeredgecolor="white", markersize=8)
            axes.annotate(
                str(number + 1), point, xytext=(5, 5), textcoords="offset points",
                color="black", path_effects=OUTLINE, fontsize=9, weight="bold",
            )  # fmt: skip
        if true_b is not None:
            x, y = true_b[number].tolist()
            right.plot([end[0], x], [end[1], y], ":", color=shade, linewidth=1.5)
            right.plot(x, y, "X", color=shade, markeredgecolor="white", markersize=8)
    return figure


def plot_matches(
    images: tuple[Image.Image, Image.Image],
    points: Mapping[str, tuple[float, float]],
    found: Mapping[str, Any],
    similarity: Mapping[str, np.ndarray],
    titles: tuple[str, str] = ("points", "found"),
) -> Figure:
    """Points of one image and where they were found in another, joined by lines; below, how alike each place is.

    Args:
        images: The image the points are from, and the one they were looked for in.
        points: Pixel indices (x, y) in the first by name.
        found: `FoundPoint`s in the second by name; those that are not found are hollow on the left and absent on the
            right.
        similarity: Cosines `[h, w]` over the whole of the second, by name.
        titles: Of the two.
    """
    columns = 6
    rows = -(-len(points) // columns)
    figure = Figure(figsize=(11, 5.6 + 2.1 * rows), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=[5.6, 2.1 * rows], squeeze=False).ravel()
    left, right = upper.subplots(1, 2)
    missed = [name for name, point in found.items() if not point.found]
    show(left, images[0]).set_title(titles[0])
    show(right, images[1]).set_title(titles[1] + (f" (not found: {', '.join(missed)})" if missed else ""))
    grid = panels(lower, len(points), columns)
    for number, (name, start) in enumerate(points.items()):
        point, shade = found[name], colour(number)
        _spot(left, start, name, number, hollow=not point.found)
        if point.found:
            _spot(right, (point.x, point.y), name, number)
            ends = (start, (point.x, point.y))
            upper.add_artist(ConnectionPatch(*ends, "data", "data", axesA=left, axesB=right, color=shade, alpha=0.55))
        _show_similarity(grid[number], images[1], similarity[name])
        grid[number].set_title(f"{name}: {point.confidence:.2f}" if point.found else f"{name}: not found", fontsize=9)
        if point.found:
            grid[number].plot(point.x, point.y, "o", color=shade, markeredgecolor="white", markersize=6)
    lower.supxlabel("how alike each place is to the point, from dark to bright; above, the confidence", fontsize=9)
    return figure


def _show_similarity(axes: Axes, image: Image.Image, similarity: np.ndarray) -> None:
    """A map over the image that it is of."""
    show(axes, image)
    extent = (-0.5, image.width - 0.5, image.height - 0.5, -0.5)
    axes.imshow(similarity, cmap="inferno", alpha=0.65, extent=extent, interpolation="bilinear")


def plot_landmarks(
    images: Sequence[Image.Image], points: Sequence[Mapping[str, Any]], titles: Sequence[str]
) -> Figure:
    """Images side by side with their named points, numbered as in the legend; crosses for those that are not found.

    Args:
        images: At least one.
        points: For each image `FoundPoint`s by name.
        titles: What to write above each image.
    """
    names = list(dict.fromkeys(name for of_image in points for name in of_image))
    columns = min(len(images), 5)
    rows, lines = -(-len(images) // columns), -(-len(names) // 4)
    width = 2.9 * columns if columns > 1 else 9
    figure = Figure(figsize=(max(8.0, width), rows * (3.1 if columns > 1 else 9) + 0.3 + 0.17 * lines))
    figure.set_layout_engine("constrained", h_pad=0.08)
    grid = panels(figure, len(images), columns)
    for axes, image, of_image, title in zip(grid, images, points, titles, strict=True):
        show(axes, image)
        missed = sum(not point.found for point in of_image.values())
        short = title if len(title) <= 34 else "…" + title[-33:]
        axes.set_title(short + (f"\n{missed} not found" if missed else ""), fontsize=8)
        for name, point in of_image.items():
            number = names.index(name)
            if point.found:
                _spot(axes, (point.x, point.y), str(number + 1), number, size=5 if columns > 1 else 8)
            else:
                axes.plot(point.x, point.y, "x", color=colour(number), markersize=5)
    marks = [
        Line2D([], [], color=colour(i), marker=marker(i), linestyle="", label=f"{i + 1} {name}")
        for i, name in enumerate(names)
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def plot_found(
    images: Sequence[Image.Image], titles: Sequence[str], found: Sequence[Tensor], true: Sequence[Tensor]
) -> Figure:
    """Points found in each of several images (dots), each with a line to where it should be (crosses).

    Args:
        images: Shown six in a row.
        titles: One an image.
        found: For each image `[P, 2]` pixel indices x, y.
        true: The same of where they should be.
    """
    rows = -(-len(images) // 6)
    figure = Figure(figsize=(15, 2.7 * rows), layout="constrained")
    grid = panels(figure, len(images), 6)
    for axes, image, title, points, places in zip(grid, images, titles, found, true, strict=True):
        show(axes, image).set_title(title.replace("_", " "))
        for number, (start, end) in enumerate(zip(points.tolist(), places.tolist(), strict=True)):
            shade = colour(number)
            axes.plot([start[0], end[0]], [start[1], end[1]], "-", color=shade, linewidth=1)
            axes.plot(*start, "o", color=shade, markeredgecolor="white", markersize=5)
            axes.plot(*end, "x", color=shade, markersize=5)
    return figure


def plot_confidence(confidence: np.ndarray, errors: np.ndarray, absent: np.ndarray) -> Figure:
    """Errors by confidence, and the confidences of points that are there and of points that are not.

    Args:
        confidence: Of points that are there, any shape.
        errors: Of the same points, in mm.
        absent: Confidences of points that are not there.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    order = np.argsort(confidence, axis=None)
    tenths = np.array_split(order, 10)
    left.plot(range(1, 11), [errors.flat[tenth].mean() for tenth in tenths], "o-", color=COLOURS[0])
    left.set(
        xlabel="tenth of the points, least confident first", ylabel="mean radial error in mm", xticks=range(1, 11)
    )
    left.set_ylim(bottom=0)
    bins = np.linspace(0, 1, 26)
    for values, name, shade in ((confidence.ravel(), "there", COLOURS[0]), (absent, "blanked out", COLOURS[5])):
        right.hist(values, bins, weights=np.full(len(values), 1 / len(values)), alpha=0.6, color=shade, label=name)
    right.set(xlabel="confidence", ylabel="share of the points")
    right.legend(frameon=False)
    return figure


def _spot(
    axes: Axes, point: tuple[float, float], label: str, number: int, *, size: float = 8, hollow: bool = False
) -> None:
    """A numbered point."""
    shade = colour(number)
    face, edge = ("none", shade) if hollow else (shade, "white")
    axes.plot(*point, marker(number), markerfacecolor=face, markeredgecolor=edge, markersize=size, markeredgewidth=0.7)
    axes.annotate(
        label, point, xytext=(size / 2, size / 2), textcoords="offset points",
        color="black", path_effects=OUTLINE, fontsize=size + 1, weight="bold",
    )  # fmt: skip
