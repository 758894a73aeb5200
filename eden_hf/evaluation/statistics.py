"""Means over patients and over pairs of patients, with bootstrap 95 % intervals, and differences in the same patients.

Patients are drawn, never images, points or pairs: what is measured in one patient depends on one another.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from scipy.stats import norm
from scipy.stats import t as student

from eden_hf.data.parquet import damage_told

RESAMPLES = 1000
#: Of fewer patients, intervals cover less than they say where some patients differ much more than others.
FEW = 15
#: Cosines nearer than this are the same but for rounding, as all of a collapsed encoder are.
TIED = 1e-6


class Estimate(NamedTuple):
    """A mean over patients: `value`, its bootstrap 95 % interval from `low` to `high`, and `n` patients.

    One patient has no interval, nor have pairs of two: NaN.
    """

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        """Such as `0.812 (0.790, 0.833)`."""
        digits = 3 if abs(self.value) < 10 else 1
        if np.isnan(self.low):
            return f"{self.value:.{digits}f} ({'one patient' if self.n == 1 else 'no interval'})"
        return f"{self.value:.{digits}f} ({self.low:.{digits}f}, {self.high:.{digits}f})"


@dataclass(frozen=True, eq=False)
class Measured:
    """What was measured in each patient, or of each patient with each partner.

    The difference of two is that of the patients (and partners) whom both have, one by one.

    Attributes:
        values: `[P]`, or `[P, Q]` with partners; NaN where there is none.
        patients: Names of the P patients.
        partners: Names of the Q whom each was compared with: other patients, who are then drawn together with
            themselves, or what else there are several of, such as sets of references.
    """

    values: np.ndarray
    patients: Sequence[str]
    partners: Sequence[str] | None = None

    def estimate(self, seed: int = 0) -> Estimate:
        """The mean with its interval.

        Raises:
            ValueError: nobody has a value, or pairs are of one patient or partner alone.
        """
        if self.partners is None:
            return estimate(self.values, seed)
        return estimate_pairs(self.values, self.patients, self.partners, seed)

    def of(self, patients: Collection[str]) -> "Measured":
        """The same of some patients alone, compared with all partners."""
        kept = [index for index, name in enumerate(self.patients) if name in patients]
        return Measured(self.values[kept], [self.patients[index] for index in kept], self.partners)

    def __sub__(self, other: "Measured") -> "Measured":
        if (self.partners is None) != (other.partners is None):
            raise ValueError("a value of each patient cannot be taken from values of pairs, nor the other way round")
        ours, theirs, patients = _common(self.patients, other.patients)
        if self.partners is None or other.partners is None:
            return Measured(self.values[ours] - other.values[theirs], patients)
        with_whom, their_whom, partners = _common(self.partners, other.partners)
        values = self.values[np.ix_(ours, with_whom)] - other.values[np.ix_(theirs, their_whom)]
        return Measured(values, patients, partners)


def _common(ours: Sequence[str], theirs: Sequence[str]) -> tuple[list[int], list[int], list[str]]:
    """The names that both have: where they stand in each, and themselves."""
    place = {name: index for index, name in enumerate(theirs)}
    names = [name for name in ours if name in place]
    return [index for index, name in enumerate(ours) if name in place], [place[name] for name in names], names


def by_patient(values: np.ndarray, patients: Sequence[str], partners: Sequence[str] | None = None) -> Measured:
    """Values of images as those of the patients whose they are: of several images the mean.

    Args:
        values: `[N, ...]` of images, or `[N, M, ...]` of pairs with partners; the mean over further axes is taken, and
            a NaN is no value.
        patients: Whose each of the N images is.
        partners: Whose each of the M is. Pairs within one patient do not count.
    """
    values = np.asarray(values, dtype=float)
    kept_axes = 1 if partners is None else 2
    values = values.reshape(*values.shape[:kept_axes], -1).mean(axis=-1)
    names, rows = _members(patients)
    if partners is None:
        return Measured(_means(rows, values[:, None])[:, 0], names)
    values = np.where(np.asarray(patients)[:, None] == np.asarray(partners), np.nan, values)
    others, columns = _members(partners)
    return Measured(_means(rows, values, columns.T), names, others)


def _members(patients: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """The patients in order, and whose each image is, `[P, N]` of 0 and 1."""
    names = list(dict.fromkeys(patients))
    return names, (np.asarray(names)[:, None] == np.asarray(patients)).astype(float)


def _means(rows: np.ndarray, values: np.ndarray, columns: np.ndarray | None = None) -> np.ndarray:
    """Means of the values that are there over groups of rows and columns; NaN where there are none."""
    kept = ~np.isnan(values)
    total, count = (rows @ matrix for matrix in (np.where(kept, values, 0), kept.astype(float)))
    if columns is not None:
        total, count = total @ columns, count @ columns
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def averaged(measured: Sequence[Measured]) -> Measured:
    """The mean of several measurements of the same patients and partners, such as with several seeds."""
    first = measured[0]
    return Measured(np.mean([one.values for one in measured], axis=0), first.patients, first.partners)


def estimates(measured: Mapping[str, Measured], seed: int = 0) -> dict[str, Estimate]:
    """The mean of each measure with its interval."""
    return {name: values.estimate(seed) for name, values in measured.items()}


def estimate(values: Sequence[float] | np.ndarray, seed: int = 0, over: np.ndarray | None = None) -> Estimate:
    """The mean of values of each patient, with its bootstrap 95 % interval (`_interval`).

    Args:
        values: `[N]`, or `[N, m]` for m values a patient; a patient with a NaN has no value and does not count.
        seed: Of the bootstrap.
        over: Of the same shape: the mean is divided by the mean of these, in the same patients.

    Raises:
        ValueError: no patient has a value.
    """
    upper = np.asarray(values, dtype=float)
    under = np.ones_like(upper) if over is None else np.asarray(over, dtype=float)
    upper, under = (of.reshape(len(of), -1).mean(axis=1) for of in (upper, under))
    kept = ~np.isnan(upper) & ~np.isnan(under)
    upper, under = upper[kept], under[kept]
    if not len(upper):
        raise ValueError("no patient has a value to average")
    drawn = _times_drawn(len(upper), np.random.default_rng(seed))
    value = float(upper.mean() / under.mean())
    draws = (drawn @ upper) / (drawn @ under)
    return Estimate(value, *_interval(value, draws, len(upper), len(upper) - 1), len(upper))


def estimate_pairs(values: np.ndarray, patients: Sequence[str], partners: Sequence[str], seed: int = 0) -> Estimate:
    """The mean over pairs of patients (rows) and partners (columns), with a two-way bootstrap 95 % interval.

    Patients and partners are drawn, not pairs: all pairs of a patient depend on one another, on both sides. One who
    is both is drawn once for both. Pairs of which no two share anyone are independent, and are drawn themselves.

    Args:
        values: `[P, Q]`, NaN where there is no such pair.
        patients: Names of the P, each once.
        partners: Names of the Q, each once.
        seed: Of the bootstrap.

    Raises:
        ValueError: no pair has a value, or there is one row or column alone.
    """
    kept = ~np.isnan(values)
    if not kept.any() or min(values.shape) < 2:
        raise ValueError(f"pairs of at least 2 patients and 2 partners are needed, got {values.shape}")
    if max(kept.sum(axis=0).max(), kept.sum(axis=1).max()) == 1 and not _both(values, patients, partners):
        return estimate(values[kept], seed)
    rng = np.random.default_rng(seed)
    rows = _times_drawn(len(patients), rng)
    place = {name: index for index, name in enumerate(patients)}
    both = np.array([name in place for name in partners])
    columns = np.empty((RESAMPLES, len(partners)))
    columns[:, both] = rows[:, [place[name] for name in partners if name in place]]
    columns[:, ~both] = _times_drawn(int((~both).sum()), rng)
    total, count = (((rows @ matrix) * columns).sum(axis=1) for matrix in (np.where(kept, values, 0), kept))
    freedom, shrunk = _freedom(values), 1.0
    if both.any():
        # One who is drawn twice makes no pair with himself, so that draws differ less than samples do.
        others = int(kept.any(axis=0).sum()) - 1
        freedom, shrunk = float(len(patients) - 1), (others - 1) / max(others, 1)
    value, draws, number = float(values[kept].mean()), total[count > 0] / count[count > 0], int(kept.any(axis=1).sum())
    return Estimate(value, *_interval(value, draws, number, freedom, shrunk), number)


def _both(values: np.ndarray, patients: Sequence[str], partners: Sequence[str]) -> bool:
    """Whether one with a value as a patient has one as a partner too."""
    kept = ~np.isnan(values)
    with_values = {name for name, any_ in zip(patients, kept.any(axis=1), strict=True) if any_}
    return any(any_ and name in with_values for name, any_ in zip(partners, kept.any(axis=0), strict=True))


def _freedom(values: np.ndarray) -> float:
    """Degrees of freedom of a mean over two sides that are drawn apart, by Welch and Satterthwaite."""
    kept = ~np.isnan(values)
    there = values[np.ix_(kept.any(axis=1), kept.any(axis=0))]
    sides = [np.nanmean(there, axis=axis) for axis in (0, 1)]
    parts = [float(np.var(side, ddof=1) / len(side)) if len(side) > 1 else 0.0 for side in sides]
    weights = sum(part**2 / (len(side) - 1) for part, side in zip(parts, sides, strict=True) if len(side) > 1)
    return sum(parts) ** 2 / weights if weights else float(values.shape[0] - 1)


def few_patients(values: Iterable[Estimate]) -> str:
    """A sentence for tables of which a value is of few patients; nothing where none is."""
    if not any(value.n < FEW for value in values):
        return ""
    return (
        f"Of fewer than {FEW} patients, intervals hold only where no patient is far from the others: where a few are, "
        "they cover 88 to 93 % instead of 95 %."
    )


class Resampled(NamedTuple):
    """A statistic that is no mean of patients' values (AUC): its `value`, and those of `draws` of n patients.

    Draws of one seed are of the same patients, so differences of two are paired.
    """

    value: float
    draws: np.ndarray
    n: int

    def estimate(self) -> Estimate:
        """The value with its interval; draws in which it is not defined do not count."""
        defined = self.draws[~np.isnan(self.draws)]
        return Estimate(self.value, *_interval(self.value, defined, self.n, self.n - 1), self.n)

    def minus(self, other: "Resampled") -> "Resampled":
        """How much more this is, in the same draws."""
        return Resampled(self.value - other.value, self.draws - other.draws, self.n)


def resampled(
    measure: Callable[[np.ndarray], Mapping[str, float]], patients: Sequence[str], seed: int = 0
) -> dict[str, Resampled]:
    """Statistics of images over draws of the patients whose they are.

    Args:
        measure: Gives the statistics of chosen images, from their places.
        patients: Whose each image is.
        seed: Of the bootstrap.
    """
    _, number = np.unique(patients, return_inverse=True)
    images = np.split(np.argsort(number, kind="stable"), np.cumsum(np.bincount(number))[:-1])  # of each patient
    drawn = np.random.default_rng(seed).integers(len(images), size=(RESAMPLES, len(images)))
    draws = [measure(np.concatenate([images[index] for index in draw])) for draw in drawn]
    values = measure(np.arange(len(number)))
    return {name: Resampled(v, np.array([draw[name] for draw in draws]), len(images)) for name, v in values.items()}


def averaged_draws(found: Sequence[Resampled]) -> Resampled:
    """The mean of one statistic of several encoders, in the same draws."""
    return Resampled(
        float(np.mean([one.value for one in found])), np.mean([one.draws for one in found], axis=0), found[0].n
    )


def _times_drawn(patients: int, rng: np.random.Generator) -> np.ndarray:
    """How often each patient is in each resample, `[RESAMPLES, patients]`."""
    if not patients:
        return np.empty((RESAMPLES, 0))
    return rng.multinomial(patients, np.full(patients, 1 / patients), size=RESAMPLES).astype(float)


def _interval(
    value: float, draws: np.ndarray, patients: int, freedom: float, shrunk: float = 1.0
) -> tuple[float, float]:
    """The 95 % interval of an estimate, from its bootstrap draws.

    Percentiles lie as much further out as those of Student's t (Hesterberg, The American Statistician 69, 2015):
    without that, intervals of few patients are too narrow. Of fewer than `FEW` draws do not reach so far: there the
    interval is as many of their standard deviations to both sides.

    Args:
        value: The estimate.
        draws: Of the bootstrap.
        patients: How many have a value.
        freedom: Degrees of freedom.
        shrunk: By what draws of few differ less than samples would.

    Returns:
        NaN for both of one patient or pair, or without draws.
    """
    if freedom < 1 or shrunk <= 0 or not len(draws):
        return np.nan, np.nan
    low, high = _percentiles(freedom)
    if patients >= FEW:
        return tuple(np.percentile(draws, (low, high)).tolist())
    half = float(-norm.ppf(low / 100) * draws.std() / shrunk)
    return value - half, value + half


def _percentiles(freedom: float) -> tuple[float, float]:
    """Those of bootstrap means between which 95 % lie, for estimates of so many degrees of freedom."""
    low = 100 * norm.cdf(-np.sqrt((freedom + 1) / freedom) * student.ppf(0.975, freedom))
    return low, 100 - low


def own_against_other(own: np.ndarray, others: np.ndarray) -> np.ndarray:
    """AUROC `[...]` of scores for telling own `[..., a]` from others' `[..., b]`; ties count half: chance is 0.5."""
    more = own[..., :, None] - others[..., None, :]
    return ((more > TIED) + 0.5 * (np.abs(more) <= TIED)).mean(axis=(-2, -1))


def save_values(measured: Mapping[str, Measured], encoder: str, file: str | Path) -> None:
    """Write every value to Parquet in long form: `encoder`, `measure`, `patient`, `partner` (or null), `value`."""
    tables = []
    for name, one in measured.items():
        there = np.nonzero(~np.isnan(one.values))
        count = len(there[0])
        partner = None if one.partners is None else np.asarray(one.partners, dtype=object)[there[1]]
        columns = {
            "encoder": pa.array([encoder] * count, pa.string()),
            "measure": pa.array([name] * count, pa.string()),
            "patient": pa.array(np.asarray(one.patients, dtype=object)[there[0]], pa.string()),
            "partner": pa.nulls(count, pa.string()) if partner is None else pa.array(partner, pa.string()),
            "value": pa.array(one.values[there], pa.float64()),
        }
        tables.append(pa.table(columns))
    pq.write_table(pa.concat_tables(tables), file, compression="zstd")


def load_values(file: str | Path) -> dict[str, Measured]:
    """Read what `save_values` wrote.

    Raises:
        SourceError: it is damaged.
    """
    with damage_told(str(file), [str(file)]):
        table, measured = pq.read_table(file), {}
    for name in pc.unique(table["measure"]).to_pylist():
        rows = table.filter(pc.equal(table["measure"], name))
        sides = [rows[side].combine_chunks().dictionary_encode() for side in ("patient", "partner")]
        names = [side.dictionary.to_pylist() for side in sides]
        if not names[1]:
            measured[name] = Measured(rows["value"].to_numpy(), names[0])
            continue
        values = np.full([len(side) for side in names], np.nan)
        values[tuple(side.indices.to_numpy() for side in sides)] = rows["value"].to_numpy()
        measured[name] = Measured(values, *names)
    return measured
