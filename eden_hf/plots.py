"""Pictures: decomposer levels, a run's history, t-SNE, correspondence, nearest neighbours.

Every function returns a matplotlib `Figure`; `figure.savefig(path)` writes it. Figures are made without pyplot, so no
display is needed and none is kept open. Colours are those of Okabe and Ito, told apart by the colour-blind.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from eden_hf.anatomy import Box, grid_shape, part_boxes

try:
    from matplotlib import colormaps
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import ConnectionPatch, Rectangle
    from matplotlib.patheffects import withStroke
    from matplotlib.ticker import PercentFormatter
except ImportError as error:
    raise ImportError("plots need matplotlib: pip install eden_hf[plots]") from error

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*")
MASK_LINES: dict[str, Any] = {"predicted": "solid", "true": "dotted"}
OUTLINE = [withStroke(linewidth=2.5, foreground="white")]


def plot_levels(image: Image.Image, levels: Sequence[int]) -> Figure:
    """The parts of one image at each of `levels`, outlined and numbered, side by side.

    Raises:
        ValueError: no level is given, or one is finer than the image's pixels.
    """
    if not levels:
        raise ValueError("plot_levels needs at least one level, got none")
    figure = Figure(figsize=(3.2 * len(levels), 3.6), layout="constrained")
    for axes, level in zip(figure.subplots(1, len(levels), squeeze=False)[0], levels, strict=True):
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


def plot_history(history: Sequence[dict[str, Any]]) -> Figure:
    """Loss over a run, stage by stage; below it the pruned share, or in the dense stage the error of found points.

    Args:
        history: The rows of `metrics.jsonl`: `step`, `stage`, `level`, and `loss`, `pruned_share`, `point_error`,
            `partner_error` or `validation_loss` where the row has them.

    Raises:
        ValueError: no row has a loss.
    """
    rows = sorted(history, key=lambda row: row["step"])
    if not any("loss" in row for row in rows):
        raise ValueError(f"the history has no training loss in any of its {len(rows)} rows; is it a metrics.jsonl?")
    panels = [panel for panel in _HISTORY if any(name in row for row in rows for name in panel.series)]
    figure = Figure(figsize=(8, 1 + 2 * len(panels)), layout="constrained")
    axes_of = dict(zip(panels, np.atleast_1d(figure.subplots(len(panels), 1, sharex=True)), strict=True))
    stages = sorted({row["stage"] for row in rows})
    ends = [max(row["step"] for row in rows if row["stage"] == stage) for stage in stages]
    for number, (stage, start, end) in enumerate(zip(stages, [0, *ends], ends, strict=False)):
        own = [row for row in rows if row["stage"] == stage]
        for panel, axes in axes_of.items():
            axes.axvspan(start, end, color="black", alpha=0.05 * (number % 2), linewidth=0)
            for name, style in panel.series.items():
                _draw_series(axes, own, name, **style)
        level = own[0]["level"]
        next(iter(axes_of.values())).annotate(
            f"stage {stage}: " + (level if isinstance(level, str) else f"level {level}"),
            ((start + end) / 2, 1), xycoords=("data", "axes fraction"),
            xytext=(0, 4), textcoords="offset points", ha="center", fontsize=10,
        )  # fmt: skip
    for panel, axes in axes_of.items():
        _finish_panel(panel, axes)
    axes.set(xlabel="optimiser step", xlim=(0, ends[-1]))
    return figure


class _Panel(NamedTuple):
    """A row of the history's figure: what it shows, its series and whether they are shares."""

    ylabel: str
    series: dict[str, dict[str, Any]]
    shares: bool = True

    def __hash__(self) -> int:
        return hash(self.ylabel)


_HISTORY = (
    _Panel(
        "loss",
        {
            "loss": {"color": COLOURS[0], "label": "training"},
            "validation_loss": {"color": COLOURS[5], "marker": "o", "markersize": 5, "label": "validation"},
        },
        shares=False,
    ),
    _Panel("pruned negatives", {"pruned_share": {"color": COLOURS[2]}}),
    _Panel(
        "error of points",
        {
            "point_error": {"color": COLOURS[0], "label": "same image"},
            "partner_error": {"color": COLOURS[1], "label": "another image"},
        },
    ),
)


def _finish_panel(panel: _Panel, axes: Axes) -> None:
    """Label, legend and scale of a panel whose series are drawn."""
    axes.set_ylabel(panel.ylabel)
    if panel.shares:
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    handles = {label: line for line in axes.lines if not (label := str(line.get_label())).startswith("_")}
    if handles:
        axes.legend(handles=list(handles.values()), frameon=False)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_series(axes: Axes, rows: Sequence[dict[str, Any]], key: str, **style: Any) -> None:
    """One line of `key` over steps, through the rows that have it."""
    points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    if points:
        axes.plot(*zip(*points, strict=True), **style)


def plot_tsne(points: np.ndarray, labels: Sequence[int] | np.ndarray | Tensor, names: Sequence[str]) -> Figure:
    """A map of embeddings, one colour and marker for each label.

    Args:
        points: `[N, 2]`, from `eden_hf.evaluation.embeddings.tsne`.
        labels: `[N]`, indices into `names`: the part, or the class, of each point.
        names: What the labels mean, written beside their points and in the legend.

    Raises:
        ValueError: points and labels differ in number, or a label has no name.
    """
    labels = np.asarray(labels)
    if len(labels) != len(points):
        raise ValueError(f"every point needs a label, got {len(points)} points and {len(labels)} labels")
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(names):
        raise ValueError(f"labels run from {labels.min()} to {labels.max()}, but there are {len(names)} names")
    figure = Figure(figsize=(7.5, 6), layout="constrained")
    axes = figure.subplots()
    for label in np.unique(labels):
        own = points[labels == label]
        # The marker changes with every round through the colours, so that 64 labels stay distinct.
        colour, marker = COLOURS[label % len(COLOURS)], MARKERS[label // len(COLOURS) % len(MARKERS)]
        axes.scatter(
            own[:, 0], own[:, 1], s=28, c=colour, marker=marker, linewidths=0.3, edgecolors="white", label=names[label]
        )
        axes.annotate(
            names[label], np.median(own, axis=0), path_effects=OUTLINE, ha="center", va="center", weight="bold",
            fontsize=10 if len(names) <= 16 and max(map(len, names)) <= 8 else 6.5,
        )  # fmt: skip
    axes.set(xlabel="t-SNE 1", ylabel="t-SNE 2", xticks=[], yticks=[])
    axes.set_aspect("equal", adjustable="datalim")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, ncols=1 + len(names) // 24)
    return figure


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
        colour = COLOURS[number % 7]  # black would not show on a radiograph
        line = ConnectionPatch(start, end, "data", "data", axesA=left, axesB=right, color=colour, alpha=0.55)
        figure.add_artist(line)
        for axes, point in ((left, start), (right, end)):
            axes.plot(*point, "o", color=colour, markeredgecolor="white", markersize=8)
            axes.annotate(
                str(number + 1), point, xytext=(5, 5), textcoords="offset points",
                color="black", path_effects=OUTLINE, fontsize=9, weight="bold",
            )  # fmt: skip
        if true_b is not None:
            x, y = true_b[number].tolist()
            right.plot([end[0], x], [end[1], y], ":", color=colour, linewidth=1.5)
            right.plot(x, y, "X", color=colour, markeredgecolor="white", markersize=8)
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
    grid = lower.subplots(rows, columns, squeeze=False).ravel()
    for number, (name, start) in enumerate(points.items()):
        point, colour = found[name], _colour(number)
        _spot(left, start, name, number, hollow=not point.found)
        if point.found:
            _spot(right, (point.x, point.y), name, number)
            ends = (start, (point.x, point.y))
            upper.add_artist(ConnectionPatch(*ends, "data", "data", axesA=left, axesB=right, color=colour, alpha=0.55))
        _show_similarity(grid[number], images[1], similarity[name])
        grid[number].set_title(f"{name}: {point.confidence:.2f}" if point.found else f"{name}: not found", fontsize=9)
        if point.found:
            grid[number].plot(point.x, point.y, "o", color=colour, markeredgecolor="white", markersize=6)
    for axes in grid[len(points) :]:
        axes.set_axis_off()
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
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, image, of_image, title in zip(grid, images, points, titles, strict=False):
        show(axes, image)
        missed = sum(not point.found for point in of_image.values())
        short = title if len(title) <= 34 else "…" + title[-33:]
        axes.set_title(short + (f"\n{missed} not found" if missed else ""), fontsize=8)
        for name, point in of_image.items():
            number = names.index(name)
            if point.found:
                _spot(axes, (point.x, point.y), str(number + 1), number, size=5 if columns > 1 else 8)
            else:
                axes.plot(point.x, point.y, "x", color=_colour(number), markersize=5)
    for axes in grid[len(images) :]:
        axes.set_axis_off()
    marks = [
        Line2D([], [], color=_colour(i), marker=_marker(i), linestyle="", label=f"{i + 1} {name}")
        for i, name in enumerate(names)
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def _colour(number: int) -> str:
    """Of the points of a picture; black would not show on a radiograph."""
    return COLOURS[number % 7]


def _marker(number: int) -> str:
    """Changes with every round through the colours."""
    return MARKERS[number // 7 % len(MARKERS)]


def _spot(
    axes: Axes, point: tuple[float, float], label: str, number: int, *, size: float = 8, hollow: bool = False
) -> None:
    """A numbered point."""
    colour = _colour(number)
    face, edge = ("none", colour) if hollow else (colour, "white")
    axes.plot(
        *point, _marker(number), markerfacecolor=face, markeredgecolor=edge, markersize=size, markeredgewidth=0.7
    )
    axes.annotate(
        label, point, xytext=(size / 2, size / 2), textcoords="offset points",
        color="black", path_effects=OUTLINE, fontsize=size + 1, weight="bold",
    )  # fmt: skip


class Part(NamedTuple):
    """A part of an image, with the image and where it comes from."""

    image: Image.Image
    box: Box
    source_id: str


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
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    titles = ["query", *(f"{rank}. {value:.3f}" for rank, value in enumerate(similarities, start=1))]
    for axes, part, title in zip(grid, parts, titles, strict=False):
        colour = COLOURS[5] if title == "query" else COLOURS[0]
        show(axes, part.image).set_title(title, color=colour, fontsize=10)
        if (part.box.width, part.box.height) != part.image.size:
            outline(axes, part.box, colour)
        axes.set_xlabel(_short(part.source_id), fontsize=8)
        axes.spines[:].set_color(colour)
    for axes in grid[len(parts) :]:
        axes.set_axis_off()
    return figure


def _short(name: str) -> str:
    """The end of a name that is too long to stand under a picture."""
    return name if len(name) <= 22 else "…" + name[-21:]


def show(axes: Axes, image: Image.Image) -> Axes:
    """An image in a frame without ticks; data coordinates are pixel indices."""
    axes.imshow(np.asarray(image), cmap="gray", vmin=0, vmax=255)
    axes.set(xticks=[], yticks=[])
    return axes


def outline(axes: Axes, box: Box, colour: str) -> None:
    """The frame of a part: along the outer edges of its pixels."""
    corner = (box.x0 - 0.5, box.y0 - 0.5)
    axes.add_patch(Rectangle(corner, box.width, box.height, fill=False, edgecolor=colour, linewidth=2, clip_on=False))


def plot_densities(samples: Mapping[str, np.ndarray], xlabel: str) -> Figure:
    """One violin a sample, with its mean: where its values lie.

    Args:
        samples: Values `[n]` by name, n >= 2.
        xlabel: What the values are.

    Raises:
        ValueError: a sample has fewer than two values.
    """
    if short := [name for name, values in samples.items() if len(values) < 2]:
        raise ValueError(f"a density needs at least two values; too few in {', '.join(short)}")
    figure = Figure(figsize=(7.5, 1 + 0.55 * len(samples)), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(samples), 0, -1)
    drawn: Any = axes.violinplot(
        list(samples.values()), places, orientation="horizontal", widths=0.8, showextrema=False
    )
    for index, body in enumerate(drawn["bodies"]):
        body.set(facecolor=COLOURS[index % 7], alpha=0.65)
    means = [float(np.mean(values)) for values in samples.values()]
    axes.plot(means, places, "|", color="black", markersize=16)
    for mean, place in zip(means, places, strict=True):
        axes.annotate(f"{mean:.2f}", (mean, place), xytext=(4, 8), textcoords="offset points", fontsize=8)
    axes.set_yticks(places, list(samples))
    axes.set_xlabel(xlabel)
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def plot_finetuning(history: Sequence[dict[str, Any]]) -> Figure:
    """Training and validation loss over a fine-tuning run.

    Args:
        history: The rows of its `metrics.jsonl`: `step`, and `loss` or `eval_loss` where the row has them.
    """
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    _draw_series(axes, history, "loss", color=COLOURS[0], marker=".", label="training")
    _draw_series(axes, history, "eval_loss", color=COLOURS[5], marker=".", label="validation")
    axes.set(xlabel="optimiser step", ylabel="loss")
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def plot_pruner_audit(
    scores: Mapping[str, Mapping[str, np.ndarray]], gammas: Sequence[float], base_rate: float
) -> Figure:
    """Precision and recall of pruned negatives against gamma, one line a training step.

    Args:
        scores: For each step what `eden_hf.evaluation.pruner_audit.pruner_scores` gives.
        gammas: The thresholds.
        base_rate: Precision of pruning at random.
    """
    figure, colours = Figure(figsize=(10.5, 4), layout="constrained"), colormaps["viridis_r"]
    for axes, name in zip(figure.subplots(1, 2, sharex=True), ("precision", "recall"), strict=True):
        for index, (step, of_step) in enumerate(scores.items()):
            seen = ~np.isnan(of_step[name]).all(axis=0)
            means = np.nanmean(of_step[name][:, seen], axis=0)
            axes.plot(np.array(gammas)[seen], means, "o-", color=colours(index / max(1, len(scores) - 1)), label=step)
        axes.set(xlabel="gamma", ylabel=f"{name} of pruned negatives", ylim=(0, 1.02))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].axhline(base_rate, color="black", linestyle=":", label="at random")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    return figure


def plot_few_shot(scores: Sequence[Mapping[str, Any]]) -> Figure:
    """Dice against the number of labelled images: mean and standard deviation over draws, one line an encoder.

    Args:
        scores: Dictionaries with `encoder`, `shots`, `draw` and `dice`, a number for each structure.
    """
    labels, encoders = list(scores[0]["dice"]), list(dict.fromkeys(score["encoder"] for score in scores))
    figure = Figure(figsize=(4.5 * len(labels) + 1, 4), layout="constrained")
    for axes, label in zip(figure.subplots(1, len(labels), squeeze=False)[0], labels, strict=True):
        for index, encoder in enumerate(encoders):
            own = [score for score in scores if score["encoder"] == encoder]
            shots = sorted({score["shots"] for score in own})
            draws = [[100 * s["dice"][label] for s in own if s["shots"] == k] for k in shots]
            means, spreads = [np.mean(values) for values in draws], [np.std(values) for values in draws]
            colour = COLOURS[index % len(COLOURS)]
            axes.errorbar(shots, means, spreads, fmt="o-", capsize=3, color=colour, label=encoder)
        axes.set_xscale("log", base=2)
        axes.set_xticks(shots, [str(k) for k in shots])
        axes.set(title=label, xlabel="labelled images", ylabel="Dice (%)")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False, fontsize=8)
    return figure


def plot_masks(
    images: Sequence[Image.Image],
    predicted: Sequence[np.ndarray],
    true: Sequence[np.ndarray],
    labels: Sequence[str],
    titles: Sequence[str],
) -> Figure:
    """Images with the outlines of predicted structures (drawn through) and true ones (dotted), a colour a label.

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
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, image, found, wanted, title in zip(grid, images, predicted, true, titles, strict=False):
        show(axes, image).set_title(title, fontsize=10)
        for masks, style in zip((found, wanted), MASK_LINES.values(), strict=True):
            for index, mask in enumerate(masks):
                if mask.any() and not mask.all():
                    axes.contour(mask, [0.5], colors=COLOURS[index % 7], linestyles=style, linewidths=1.6)
    for axes in grid[len(images) :]:
        axes.set_axis_off()
    lines = [Line2D([], [], color=COLOURS[index % 7], label=label) for index, label in enumerate(labels)]
    lines += [Line2D([], [], color="grey", linestyle=style, label=name) for name, style in MASK_LINES.items()]
    figure.legend(handles=lines, loc="outside lower center", ncols=len(lines), frameon=False)
    return figure


def plot_groups(values: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """A small panel a measure, with every group's single values as points and their mean as a line.

    Args:
        values: For each measure the values of each group.
    """
    columns = 4
    rows = -(-len(values) // columns)
    groups = list(next(iter(values.values())))
    figure = Figure(figsize=(3.4 * columns, 0.5 + (0.7 + 0.22 * len(groups)) * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axes, (measure, of_groups) in zip(grid, values.items(), strict=False):
        for place, group in enumerate(reversed(groups)):
            colour = COLOURS[groups.index(group) % len(COLOURS)]
            axes.plot(of_groups[group], [place] * len(of_groups[group]), "o", color=colour, alpha=0.8)
            axes.plot(np.mean(of_groups[group]), place, "|", color="black", markersize=14)
        axes.set_title(measure, fontsize=9)
        axes.locator_params(axis="x", nbins=5)
        axes.grid(axis="x", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[len(values) :]:
        axes.set_axis_off()
    grid[0].set_yticks(range(len(groups)), [group.replace("_", " ") for group in reversed(groups)])
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
    panels = figure.subplots(rows, 6, squeeze=False).flat
    for axes, image, title, points, places in zip(panels, images, titles, found, true, strict=False):
        show(axes, image).set_title(title.replace("_", " "))
        for number, (start, end) in enumerate(zip(points.tolist(), places.tolist(), strict=True)):
            colour = COLOURS[number % 7]
            axes.plot([start[0], end[0]], [start[1], end[1]], "-", color=colour, linewidth=1)
            axes.plot(*start, "o", color=colour, markeredgecolor="white", markersize=5)
            axes.plot(*end, "x", color=colour, markersize=5)
    for axes in list(figure.axes)[len(images) :]:
        axes.set_axis_off()
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
    for values, name, colour in ((confidence.ravel(), "there", COLOURS[0]), (absent, "blanked out", COLOURS[5])):
        right.hist(values, bins, weights=np.full(len(values), 1 / len(values)), alpha=0.6, color=colour, label=name)
    right.set(xlabel="confidence", ylabel="share of the points")
    right.legend(frameon=False)
    return figure
