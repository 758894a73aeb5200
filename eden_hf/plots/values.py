"""Pictures of many values: embeddings as a map, densities, groups side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from eden_hf.plots.drawing import COLOURS, MARKERS, OUTLINE, Figure, colour, panels, plain


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
        body.set(facecolor=colour(index), alpha=0.65)
    means = [float(np.mean(values)) for values in samples.values()]
    axes.plot(means, places, "|", color="black", markersize=16)
    for mean, place in zip(means, places, strict=True):
        axes.annotate(f"{mean:.2f}", (mean, place), xytext=(4, 8), textcoords="offset points", fontsize=8)
    axes.set_yticks(places, list(samples))
    axes.set_xlabel(xlabel)
    plain(axes, grid="x")
    return figure


def plot_groups(values: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """A small panel a measure, with every group's single values as points and their mean as a line.

    Args:
        values: For each measure the values of each group that has some.
    """
    columns = 4
    rows = -(-len(values) // columns)
    groups = list(dict.fromkeys(group for of_groups in values.values() for group in of_groups))
    figure = Figure(figsize=(3.4 * columns, 0.5 + (0.7 + 0.22 * len(groups)) * rows), layout="constrained")
    grid = panels(figure, len(values), columns, sharey=True)
    for axes, (measure, of_groups) in zip(grid, values.items(), strict=True):
        for place, group in enumerate(reversed(groups)):
            if group not in of_groups:
                continue
            colour = COLOURS[groups.index(group) % len(COLOURS)]
            axes.plot(of_groups[group], [place] * len(of_groups[group]), "o", color=colour, alpha=0.8)
            axes.plot(np.mean(of_groups[group]), place, "|", color="black", markersize=14)
        axes.set_title(measure, fontsize=9)
        axes.locator_params(axis="x", nbins=5)
        plain(axes, grid="x")
    grid[0].set_yticks(range(len(groups)), [group.replace("_", " ") for group in reversed(groups)])
    return figure


def plot_ratios(ratios: Mapping[str, tuple[float, float]]) -> Figure:
    """A bar for each row's ratio, with a mark at its goal.

    Args:
        ratios: Ratio and goal by name.
    """
    figure = Figure(figsize=(8, 1 + 0.4 * len(ratios)), layout="constrained")
    axes = figure.subplots()
    names: Sequence[str] = list(ratios)[::-1]
    values, goals = zip(*(ratios[name] for name in names), strict=True)
    axes.barh(names, values, color=["#2a7f62" if v >= g else "#c8553d" for v, g in zip(values, goals, strict=True)])
    axes.plot(goals, names, "|", color="black", markersize=16, label="goal")
    for name, value in zip(names, values, strict=True):
        axes.annotate(f" {value:.2f}", (value, name), va="center")
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.set(xscale="log", xlabel="times as fast as the reference")
    axes.legend(loc="lower right")
    return figure


def plot_costs(curves: Mapping[tuple[str, str], Mapping[int, float]]) -> Figure:
    """A panel a curve, both axes logarithmic, but for quantities that begin at 0.

    Args:
        curves: For each pair of labels, of the quantity and of the cost, the cost by quantity.
    """
    figure = Figure(figsize=(4 * len(curves), 3.2), layout="constrained")
    for axes, ((quantity, cost), found) in zip(panels(figure, len(curves), len(curves)), curves.items(), strict=True):
        axes.plot(list(found), list(found.values()), "o-", color=COLOURS[0])
        axes.set(xlabel=quantity, ylabel=cost, yscale="log", xscale="log" if min(found) > 0 else "linear")
        plain(axes)
    return figure
