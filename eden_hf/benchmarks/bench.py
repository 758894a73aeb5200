"""`eden bench`: the table of what things cost, as text, JSON and a figure."""

import dataclasses
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from eden_hf import __version__
from eden_hf.benchmarks import rows as _rows  # noqa: F401 (registers them)
from eden_hf.benchmarks.measuring import ROWS, Measurement, Row, measure
from eden_hf.data.prepared import processors
from eden_hf.training.processor import keep_freed_memory

RESULTS, FIGURE = "benchmark.json", "benchmark.png"


def bench(rows: list[str] | None = None, rounds: int = 5, quick: bool = False, output: str = "outputs/bench") -> str:
    """Time what the package does beside plain ways of doing the same, in turn, in one process.

    Args:
        rows: Names of the rows to run; all by default.
        rounds: Turns that count, after one that does not.
        quick: Fewer turns of the short rows alone: about two minutes on two cores.
        output: Folder for `benchmark.json` and `benchmark.png`.

    Returns:
        The table, as Markdown.

    Raises:
        ValueError: there is no row of a name, or `rounds` is below 1.
    """
    if unknown := sorted(set(rows or ()) - ROWS.keys()):
        raise ValueError(f"there is no row {', '.join(unknown)}; there are {', '.join(ROWS)}")
    if rounds < 1:
        raise ValueError(f"`rounds` must be at least 1, got {rounds}")
    keep_freed_memory()  # as runs do
    chosen = [ROWS[name] for name in rows or ROWS if rows or not (quick and ROWS[name].slow)]
    measured = {}
    for row in (bar := tqdm(chosen, desc="benchmark")):
        bar.set_postfix_str(row.name)
        measured[row.name] = measure(row, min(rounds, 3) if quick else rounds)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    about = machine()
    entries = {name: _entry(ROWS[name], found) for name, found in measured.items()}
    (folder / RESULTS).write_text(json.dumps({"machine": about, "rows": entries}, indent=2))
    plot_ratios({name: (entry["ratio"], entry["goal"]) for name, entry in entries.items()}).savefig(
        folder / FIGURE, dpi=150
    )
    return f"{_told(about)}\n\n{markdown(measured)}\n{folder / RESULTS}, {folder / FIGURE}"


def machine() -> dict[str, Any]:
    """What the numbers are of: processors, threads, devices and versions."""
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return {
        "processor": platform.processor() or platform.machine(),
        "processors": processors(),
        "torch_threads": torch.get_num_threads(),
        "waiting": os.environ.get("OMP_WAIT_POLICY", "default"),
        "bf16": sorted(name for name in ("avx512_bf16", "amx_bf16", "bf16") if capabilities.get(name)),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "versions": {
            "eden_hf": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    }


def markdown(measured: Mapping[str, Measurement]) -> str:
    """A line a row: the ratio first, then both sides in items a second with their spread."""
    lines = [
        "| row | ratio | goal | ours | reference | what | against |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, found in measured.items():
        row = ROWS[name]
        ours = _rate(found.seconds, found.spread, row)
        reference = _rate(found.reference_seconds, found.reference_spread, row)
        cells = [name, f"**{found.ratio:.2f}**", f">= {row.goal:g}", ours, reference, row.about, row.reference]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


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


def _entry(row: Row, found: Measurement) -> dict[str, Any]:
    told = {name: getattr(row, name) for name in ("about", "reference", "unit", "goal", "clock", "threads")}
    return {"ratio": found.ratio, **told, **dataclasses.asdict(found)}


def _rate(seconds: float, spread: float, row: Row) -> str:
    kind = " of a core" if row.clock == "processor" else ""
    return f"{1 / seconds:.3g} {row.unit}/s{kind} ± {100 * spread:.0f} %"


def _told(about: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return (
        f"{about['processors']} processors ({about['processor']}; {', '.join(about['bf16']) or 'no bfloat16'}), "
        f"{about['torch_threads']} threads, waiting {about['waiting']}, device {about['device']}; {versions}"
    )
