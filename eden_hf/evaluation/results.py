"""What every evaluation writes: values with intervals as JSON, and the same as a Markdown table."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import norm
from scipy.stats import t as student
from sklearn.metrics import roc_auc_score

RESAMPLES = 1000


class Estimate(NamedTuple):
    """A mean over patients: `value`, its bootstrap 95 % interval from `low` to `high`, and `n` patients."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        """Such as `0.812 (0.790, 0.833)`."""
        digits = 3 if abs(self.value) < 10 else 1
        return f"{self.value:.{digits}f} ({self.low:.{digits}f}, {self.high:.{digits}f})"


def estimate(
    per_patient: Sequence[float] | np.ndarray, seed: int = 0, statistic: Callable[..., Any] = np.mean
) -> Estimate:
    """The mean, or another statistic, of values of each patient, with its percentile bootstrap 95 % interval.

    Patients are drawn, not points or pairs: those of one patient depend on one another. The percentiles lie as much
    further out as those of Student's t (Hesterberg, The American Statistician 69, 2015): without that, intervals of
    few patients are too narrow.

    Args:
        per_patient: `[N]`, or `[N, m]` for m values a patient; a patient with a NaN has no value and does not count.
        seed: Of the bootstrap.
        statistic: Of numpy's kind, such as `np.mean` or `np.std`.

    Raises:
        ValueError: no patient has a value.
    """
    values = np.asarray(per_patient, dtype=float)
    values = values.reshape(len(values), -1)
    values = values[~np.isnan(values).any(axis=1)]
    if not len(values):
        raise ValueError("no patient has a value to average")
    draws = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile([statistic(values[draw]) for draw in draws], _percentiles(len(values) - 1))
    return Estimate(float(statistic(values)), float(low), float(high), len(values))


def estimate_pairs(values: np.ndarray, seed: int = 0, *, same_patients: bool) -> Estimate:
    """The mean over pairs of references (rows) and targets (columns), with a two-way bootstrap 95 % interval.

    References and targets are drawn, not pairs: all pairs of a patient depend on one another, on both sides.

    Args:
        values: `[R, T]`, NaN where there is no such pair.
        seed: Of the bootstrap.
        same_patients: Row i and column i are of one patient, who is then drawn on both sides together.

    Raises:
        ValueError: no pair has a value, or there is one row or column alone.
    """
    values = np.asarray(values, dtype=float)
    kept = ~np.isnan(values)
    if not kept.any() or min(values.shape) < 2:
        raise ValueError(f"pairs of at least 2 references and 2 targets are needed, got {values.shape}")
    filled, mean, rng = np.where(kept, values, 0), np.nanmean(values), np.random.default_rng(seed)
    targets = _times_drawn(values.shape[1], rng)
    references = targets if same_patients else _times_drawn(values.shape[0], rng)
    total, count = (((references @ matrix) * targets).sum(axis=1) for matrix in (filled, kept))
    freedom = float(values.shape[1] - 1)
    if not same_patients:  # Welch and Satterthwaite
        parts = [np.nanvar(np.nanmean(values, axis=axis), ddof=1) / values.shape[1 - axis] for axis in (0, 1)]
        weights = sum(part**2 / (values.shape[1 - axis] - 1) for axis, part in enumerate(parts))
        freedom = sum(parts) ** 2 / weights if weights else freedom
    low, high = np.percentile(total[count > 0] / count[count > 0], _percentiles(freedom))
    return Estimate(float(mean), float(low), float(high), values.shape[1])


def _times_drawn(patients: int, rng: np.random.Generator) -> np.ndarray:
    """How often each patient is in each resample, `[RESAMPLES, patients]`."""
    return rng.multinomial(patients, np.full(patients, 1 / patients), size=RESAMPLES).astype(float)


def _percentiles(freedom: float) -> tuple[float, float]:
    """Those of bootstrap means between which 95 % lie, for estimates of so many degrees of freedom."""
    freedom = max(1.0, freedom)
    low = 100 * norm.cdf(-np.sqrt((freedom + 1) / freedom) * student.ppf(0.975, freedom))
    return low, 100 - low


def other_patients(count: int, rng: np.random.Generator) -> np.ndarray:
    """For each of `count` patients another one: a random cycle through all."""
    order = rng.permutation(count)
    other = np.empty(count, int)
    other[order] = np.roll(order, 1)
    return other


def own_against_other(own: np.ndarray, other: np.ndarray) -> float:
    """AUROC of scores for telling a patient's own from another's; 0.5 where both are the same."""
    truth = np.r_[np.ones(own.size), np.zeros(other.size)]
    return float(roc_auc_score(truth, np.r_[own.ravel(), other.ravel()]))


@dataclass
class Evaluation:
    """What an evaluation of one encoder found: estimates by name, what they depend on, and a figure."""

    name: str
    values: dict[str, Estimate]
    settings: dict[str, Any]
    figure: Figure


@dataclass
class Results:
    """The numbers of one evaluation of one encoder.

    Attributes:
        evaluation: Such as `locality`.
        encoder: The encoder's name.
        revision: The encoder's revision (see `Encoder`).
        source: What the images were read from.
        data_hash: Of the ids and pixels of the images used (see `data_hash`).
        seed: Of all that was drawn.
        values: The estimates by name.
        settings: What else the numbers depend on (window, stride ...).
    """

    evaluation: str
    encoder: str
    revision: str | None
    source: str
    data_hash: str
    seed: int
    values: dict[str, Estimate]
    settings: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: str | Path) -> Path:
        """Write `results.json` and `results.md` to `folder`, made if needed; returns the JSON's path."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        plain = dataclasses.asdict(self) | {"values": {name: e._asdict() for name, e in self.values.items()}}
        file = folder / "results.json"
        file.write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")
        (folder / "results.md").write_text(table([self]), encoding="utf-8")
        return file

    @classmethod
    def load(cls, file: str | Path) -> "Results":
        """Read a `results.json`."""
        plain = json.loads(Path(file).read_text(encoding="utf-8"))
        return cls(**plain | {"values": {name: Estimate(**e) for name, e in plain["values"].items()}})


def table(results: Sequence[Results]) -> str:
    """Markdown: a row for each evaluation's value, a column for each encoder; a dash where there is no value."""
    encoders = list(dict.fromkeys(result.encoder for result in results))
    cells = {(r.evaluation, name, r.encoder): str(value) for r in results for name, value in r.values.items()}
    rows = dict.fromkeys((evaluation, name) for evaluation, name, _ in cells)
    lines = [["", "", *encoders], ["---"] * (2 + len(encoders))]
    for evaluation, name in rows:
        values = [cells.get((evaluation, name, encoder), "-") for encoder in encoders]
        lines.append([evaluation, name.replace("_", " "), *values])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def data_hash(ids: Iterable[str], images: Iterable[Any]) -> str:
    """The first 12 digits of the sha256 over ids and pixels, in order: what tells one set of images from another."""
    digest = hashlib.sha256()
    for name, image in zip(ids, images, strict=True):
        pixels = np.asarray(image)
        digest.update(f"{name} {pixels.shape} {pixels.dtype}\n".encode())
        digest.update(pixels.tobytes())
    return digest.hexdigest()[:12]


def ratio_of_means(pairs: np.ndarray) -> float:
    """Mean of the first column of `[N, 2]` over that of the second: a statistic for `estimate`."""
    return float(pairs[:, 0].mean() / pairs[:, 1].mean())
