"""`eden bench`: the table of what things cost, as text, JSON and a figure."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tqdm.auto import tqdm

from eden_hf.benchmarks import rows as _rows  # noqa: F401 (registers them)
from eden_hf.benchmarks.curves import CURVES
from eden_hf.benchmarks.curves import markdown as curve_table
from eden_hf.benchmarks.measuring import ROWS, Measurement, Row, machine, measure
from eden_hf.plots import plot_costs, plot_ratios
from eden_hf.training.processor import keep_freed_memory

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Benchmark(NamedTuple):
    """What `bench` found.

    Attributes:
        table: As Markdown, with the machine before it and the files behind.
        results: As in the JSON file.
        files: JSON and figure.
    """

    table: str
    results: dict[str, Any]
    files: list[Path]


RESULTS, FIGURE = "benchmark.json", "benchmark.png"
CURVES_FILE, CURVES_FIGURE = "curves.json", "curves.png"


def bench(
    rows: list[str] | None = None,
    rounds: int = 5,
    quick: bool = False,
    curves: bool = False,
    output: str = "outputs/bench",
) -> Benchmark:
    """Time what the package does beside plain ways of doing the same, in turn, in one process.

    Args:
        rows: Names of the rows to run, or with `curves` of these; all by default.
        rounds: Turns that count, after one that does not.
        quick: Three turns at most, and of the short rows alone: about two minutes on two cores.
        curves: No rows, but what things cost as the bank, the level, the side and the number of images grow.
        output: Folder for `benchmark.json` and `benchmark.png`, or `curves.json` and `curves.png`.

    Raises:
        ValueError: there is no row or curve of a name, or `rounds` is below 1.
    """
    known, kind = (CURVES, "curve") if curves else (ROWS, "row")
    if unknown := [name for name in rows or () if name not in known]:
        raise ValueError(f"there is no {kind} {', '.join(unknown)}; there are {', '.join(known)}")
    if rounds < 1:
        raise ValueError(f"`rounds` must be at least 1, got {rounds}")
    rounds = min(rounds, 3) if quick else rounds
    keep_freed_memory()  # as runs do
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    if curves:
        return _cost_curves(rows or list(CURVES), folder, rounds)
    chosen = [ROWS[name] for name in rows or ROWS if rows or not (quick and ROWS[name].slow)]
    measured = {}
    for row in (bar := tqdm(chosen, desc="benchmark")):
        bar.set_postfix_str(row.name)
        measured[row.name] = measure(row, rounds)
    about = machine()
    entries = {name: _entry(ROWS[name], found) for name, found in measured.items()}
    figure = plot_ratios({name: (entry["ratio"], entry["goal"]) for name, entry in entries.items()})
    return _written({"machine": about, "rows": entries}, markdown(measured), figure, folder / RESULTS, folder / FIGURE)


def _cost_curves(names: Sequence[str], folder: Path, rounds: int) -> Benchmark:
    """The curves of some names as a table, written with a figure."""
    costs = {name: CURVES[name].costs(rounds) for name in tqdm(names, desc="curves")}
    labels = {name: (CURVES[name].quantity, f"seconds of a core per {CURVES[name].item}") for name in costs}
    figure = plot_costs({labels[name]: found for name, found in costs.items()})
    results = {"machine": machine(), "seconds": costs}
    return _written(results, curve_table(costs), figure, folder / CURVES_FILE, folder / CURVES_FIGURE)


def _written(results: dict[str, Any], table: str, figure: "Figure", *files: Path) -> Benchmark:
    """Write JSON and figure."""
    files[0].write_text(json.dumps(results, indent=2))
    figure.savefig(files[1], dpi=150)
    return Benchmark(f"{_told(results['machine'])}\n\n{table}\n{files[0]}, {files[1]}", results, list(files))


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


def _entry(row: Row, found: Measurement) -> dict[str, Any]:
    told = {name: getattr(row, name) for name in ("about", "reference", "unit", "goal", "clock", "threads")}
    entry = {"ratio": found.ratio, **told, **dataclasses.asdict(found)}
    return {name: None if value != value else value for name, value in entry.items()}  # one turn has no spread


def _rate(seconds: float, spread: float, row: Row) -> str:
    kind = " of a core" if row.clock == "processor" else ""
    return f"{1 / seconds:.3g} {row.unit}/s{kind} ± {100 * spread:.0f} %"


def _told(about: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return (
        f"{about['processors']} processors ({about['processor']}; {', '.join(about['bf16']) or 'no bfloat16'}), "
        f"{about['torch_threads']} threads, waiting {about['waiting']}, device {about['device']}; {versions}"
    )
