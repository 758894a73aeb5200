"""Rows of the benchmark, and how they are timed: in turn with their reference, in one process."""

import gc
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import transformers

from eden_hf import __version__
from eden_hf.data.prepared import processors

Clock = Literal["wall", "processor"]


@dataclass(frozen=True)
class Sides:
    """The two things that a row compares.

    Attributes:
        ours, reference: What is timed. One that returns a number has timed itself: those are its seconds.
        items, reference_items: How much each does in one call: pairs, images, steps.
    """

    ours: Callable[[], Any]
    reference: Callable[[], Any]
    items: float = 1
    reference_items: float | None = None


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: What it is asked for by.
        about: What runs, with sizes.
        reference: What it is compared with.
        unit: Of what both sides do.
        goal: The ratio that is aimed at.
        clock: `processor` counts seconds of all threads and finished child processes, `wall` those of the clock.
        threads: Torch's threads; all by default.
        slow: Left out of `--quick`.
        prepare: A context manager that gives the `Sides`.
    """

    name: str
    about: str
    reference: str
    unit: str
    goal: float
    clock: Clock
    threads: int | None
    slow: bool
    prepare: Callable[[], AbstractContextManager[Sides]]


@dataclass(frozen=True)
class Measurement:
    """Seconds an item, medians of the rounds, and their spread (half the range between quartiles over the median)."""

    seconds: float
    reference_seconds: float
    spread: float
    reference_spread: float
    rounds: int

    @property
    def ratio(self) -> float:
        """How many times as fast as the reference."""
        return self.reference_seconds / self.seconds


ROWS: dict[str, Row] = {}


def row(
    about: str, *, reference: str, unit: str, goal: float, clock: Clock = "wall", threads: int | None = None,
    slow: bool = False,
) -> Callable[[Callable[[], Iterator[Sides]]], Callable[[], Iterator[Sides]]]:  # fmt: skip
    """Make a generator of `Sides` the row of its name."""

    def register(function: Callable[[], Iterator[Sides]]) -> Callable[[], Iterator[Sides]]:
        name = function.__name__.replace("_", "-")
        ROWS[name] = Row(name, about, reference, unit, goal, clock, threads, slow, contextmanager(function))
        return function

    return register


def measure(row: Row, rounds: int) -> Measurement:
    """Time both sides of a row `rounds` times in turn, after one turn that does not count."""
    threads = torch.get_num_threads()
    torch.set_num_threads(row.threads or threads)
    try:
        with row.prepare() as sides:
            turns = [(seconds(sides.ours, row.clock), seconds(sides.reference, row.clock)) for _ in range(rounds + 1)]
    finally:
        torch.set_num_threads(threads)
    ours, reference = zip(*(turns[1:] or turns), strict=True)
    return Measurement(
        statistics.median(ours) / sides.items,
        statistics.median(reference) / (sides.items if sides.reference_items is None else sides.reference_items),
        _spread(ours),
        _spread(reference),
        len(ours),
    )


def machine() -> dict[str, Any]:
    """What the numbers are of: processors, threads, devices and versions."""
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return {
        "processor": platform.processor() or platform.machine(),
        "processors": processors(),
        "torch_threads": torch.get_num_threads(),
        "waiting": os.environ.get("OMP_WAIT_POLICY") or f"spins {os.environ.get('GOMP_SPINCOUNT', 'as usual')}",
        "bf16": sorted(name for name in ("avx512_bf16", "amx_bf16", "bf16") if capabilities.get(name)),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "versions": {
            "eden_hf": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    }


def seconds(call: Callable[[], Any], clock: Clock) -> float:
    """What one call takes."""
    gc.collect()
    now = processor_seconds if clock == "processor" else time.perf_counter
    start = now()
    told = call()
    return told if isinstance(told, float) else now() - start


def processor_seconds() -> float:
    """Of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _spread(values: tuple[float, ...]) -> float:
    if len(values) < 2:
        return float("nan")
    low, middle, high = statistics.quantiles(values, n=4)
    return (high - low) / 2 / middle
