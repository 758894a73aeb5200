"""Curves: a run's history, fine-tuning, few-shot Dice, the pruner's audit."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from eden_hf.plots.drawing import COLOURS, Figure, panels, plain


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
            f"stage {stage}: " + (level.removesuffix(" 0") if isinstance(level, str) else f"level {level}"),
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
    _Panel(
        "probe",
        {
            "probe_landmark_error": {"color": COLOURS[0], "marker": "o", "label": "landmark error"},
            "probe_neighbour_accuracy": {"color": COLOURS[1], "marker": "o", "label": "neighbours' accuracy"},
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
    plain(axes)


def _draw_series(axes: Axes, rows: Sequence[dict[str, Any]], key: str, **style: Any) -> None:
    """One line of `key` over steps, through the rows that have it."""
    points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    if points:
        axes.plot(*zip(*points, strict=True), **style)


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
    plain(axes)
    return figure


def plot_few_shot(cells: Sequence[Mapping[str, Any]]) -> Figure:
    """Dice against the number of labelled images: mean and standard deviation over draws, a line an encoder and seed.

    Args:
        cells: What the table shows: `eden_hf.evaluation.few_shot.Cell`s as dictionaries.
    """
    labels, encoders = (list(dict.fromkeys(cell[name] for cell in cells)) for name in ("label", "encoder"))
    lines = dict.fromkeys((cell["encoder"], cell["seed"]) for cell in cells)
    figure = Figure(figsize=(4.5 * len(labels) + 1, 4), layout="constrained")
    for axes, label in zip(panels(figure, len(labels), len(labels)), labels, strict=True):
        for encoder, seed in lines:
            own = [cell for cell in cells if (cell["label"], cell["encoder"], cell["seed"]) == (label, encoder, seed)]
            own.sort(key=lambda cell: cell["shots"])
            shots, means, deviations = ([cell[name] for cell in own] for name in ("shots", "mean", "deviation"))
            colour = COLOURS[encoders.index(encoder) % len(COLOURS)]
            drawn = axes.errorbar(shots, means, deviations, fmt="o-", capsize=3, color=colour)
            if seed == next(other for name, other in lines if name == encoder):
                drawn.set_label(encoder)
        shots = sorted({cell["shots"] for cell in cells})
        axes.set_xscale("log", base=2)
        axes.set_xticks(shots, [str(k) for k in shots])
        axes.set(title=label, xlabel="labelled images", ylabel="Dice (%)")
        plain(axes)
    figure.axes[0].legend(frameon=False, fontsize=8)
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
        plain(axes)
    figure.axes[0].axhline(base_rate, color="black", linestyle=":", label="at random")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    return figure
