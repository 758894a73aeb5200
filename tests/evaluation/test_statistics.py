"""Intervals cover what they should, patients are who is drawn, and differences are of the same patients."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_ind

from eden_hf.evaluation.statistics import (
    Estimate,
    Measured,
    Resampled,
    _freedom,
    _percentiles,
    averaged,
    averaged_draws,
    by_patient,
    estimate,
    estimate_pairs,
    few_patients,
    load_values,
    own_against_other,
    resampled,
    save_values,
)


@pytest.fixture
def few_resamples(monkeypatch):
    monkeypatch.setattr("eden_hf.evaluation.statistics.RESAMPLES", 400)


def test_the_interval_is_the_bootstraps():
    values = np.random.default_rng(0).normal(5, 2, 400)
    found = estimate(values)
    assert found.value == pytest.approx(values.mean())
    assert found.n == 400
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    assert found == estimate(values)


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=20), st.integers(0, 3))
def test_patients_without_a_value_do_not_count(values, missing):
    assert estimate([*values, *[float("nan")] * missing]) == estimate(values)


def test_no_patient_with_a_value_is_an_error():
    with pytest.raises(ValueError, match="no patient"):
        estimate([float("nan")])


def drawn_pairs(rng, references, targets, same):
    """Errors of true mean 10 that depend on the reference, the target (the same patients if so) and the pair."""
    target = rng.gamma(2, 1, targets) - 2
    reference = 0.5 * target + rng.normal(0, 1, targets) if same else rng.normal(0, 0.6, references)
    values = 10 + reference[:, None] + target + rng.normal(0, 2, (references, targets))
    if same:
        np.fill_diagonal(values, np.nan)
    return values


def named(targets, references, same):
    """Names of targets and references, who are the same patients or not."""
    return [f"patient {i}" for i in range(targets)], [f"{'patient' if same else 'set'} {i}" for i in range(references)]


@pytest.mark.parametrize(("references", "targets", "same"), [(30, 30, True), (12, 60, False)])
def test_intervals_over_pairs_cover_the_truth(references, targets, same, few_resamples):
    rng, covered = np.random.default_rng(1), 0
    for number in range(500):
        values = drawn_pairs(rng, references, targets, same).T
        found = estimate_pairs(values, *named(targets, references, same), number)
        covered += found.low <= 10 <= found.high
    assert 0.93 <= covered / 500 <= 0.97


@pytest.mark.parametrize("patients", [2, 3, 6, 12])
def test_intervals_of_few_patients_cover_the_truth(patients, few_resamples):
    """Percentiles of two patients would cover half of the time, and of three three quarters."""
    rng, covered = np.random.default_rng(7), 0
    for number in range(500):
        found = estimate(rng.normal(0, 1, patients), seed=number)
        covered += found.low <= 0 <= found.high
    assert 0.93 <= covered / 500 <= 0.97


@pytest.mark.parametrize(("patients", "members"), [(4, 4), (6, 6), (14, 14), (12, 6)])
def test_intervals_of_pairs_of_few_patients_cover_the_truth(patients, members, few_resamples):
    """Of values that depend on who is in the pair and hardly on anything else, which is the hardest."""
    rng, covered = np.random.default_rng(5), 0
    names, _ = named(patients, patients, True)
    for number in range(500):
        effect = rng.normal(0, 1, patients)
        values = effect[:, None] + effect + rng.normal(0, 0.3, (patients, patients))
        np.fill_diagonal(values, np.nan)
        found = Measured(values, names, names).of(set(names[:members])).estimate(number)
        covered += found.low <= 0 <= found.high
    assert 0.93 <= covered / 500 <= 0.99


def test_tables_say_what_intervals_of_few_patients_are_worth():
    """Of patients of whom a few are far from the others they cover less, and the table below them says how much."""
    assert few_patients([Estimate(0.5, 0.4, 0.6, 15)]) == ""
    said = few_patients([Estimate(0.5, 0.4, 0.6, 90), Estimate(0.5, 0.4, 0.6, 14)])
    assert said.startswith("Of fewer than 15 patients")
    assert "they cover 88 to 93 % instead of 95 %" in said


def test_patients_of_pairs_are_drawn_and_not_pairs():
    """Two groups of patients that differ as targets: an interval over pairs alone would be six times as narrow."""
    values = np.repeat([[0.0] * 20 + [1.0] * 20], 40, axis=0).T
    found = estimate_pairs(values, *named(40, 40, False))
    assert found.n == 40
    assert found.high - found.low == pytest.approx(2 * 2 * 0.5 / 40**0.5, rel=0.15)


def test_pairs_need_both_sides():
    with pytest.raises(ValueError, match="at least 2 patients"):
        estimate_pairs(np.ones((5, 1)), *named(5, 1, False))
    with pytest.raises(ValueError, match="at least 2 patients"):
        estimate_pairs(np.full((3, 3), np.nan), *named(3, 3, True))


def test_several_images_of_a_patient_are_one_value():
    """Four copies of each patient: the same numbers as of one each, and no more patients."""
    rng = np.random.default_rng(0)
    alone, pairs = rng.normal(size=12), rng.normal(size=(12, 12))
    patients = [f"p{i}" for i in range(12)]
    four = np.repeat(np.arange(12), 4)
    copies = [patients[i] for i in four]
    assert by_patient(alone[four], copies).estimate() == by_patient(alone, patients).estimate()
    once = by_patient(pairs, patients, patients)
    again = by_patient(pairs[np.ix_(four, four)], copies, copies)
    assert np.isnan(np.diag(once.values)).all()  # nobody is compared with himself
    assert np.allclose(once.values, again.values, equal_nan=True)
    assert again.estimate() == pytest.approx(once.estimate())
    assert again.estimate().n == 12


@pytest.mark.parametrize("members", [15, 20])
def test_slices_of_pairs_cover_the_truth(few_resamples, members):
    rng, covered = np.random.default_rng(3), 0
    for number in range(300):
        values = drawn_pairs(rng, 30, 30, True).T
        names, _ = named(30, 30, True)
        part = Measured(values, names, names).of(set(names[:members]))
        found = part.estimate(number)
        covered += found.low <= 10 <= found.high
        assert found.n == members
    assert 0.93 <= covered / 300 <= 0.97


def test_differences_of_encoders_cover_the_truth(few_resamples):
    """Pairs of patients measured by two encoders of which one is better by 0.5: paired, and none the wider for it."""
    rng, covered, widths = np.random.default_rng(4), 0, []
    names, _ = named(20, 20, True)
    for number in range(300):
        shared = drawn_pairs(rng, 20, 20, True)
        better, worse = (Measured(shared + by + rng.normal(0, 0.5, shared.shape), names, names) for by in (0.5, 0))
        found = (better - worse).estimate(number)
        covered += found.low <= 0.5 <= found.high
        widths.append((found.high - found.low) / (better.estimate(number).high - better.estimate(number).low))
    assert covered / 300 >= 0.93  # nothing but noise of single pairs is left, which two-way intervals overstate
    assert np.mean(widths) < 0.3


def test_pairs_that_share_nobody_are_independent():
    values, alone = np.full((12, 24), np.nan), np.arange(12.0) ** 2
    values[range(12), range(12, 24)] = alone
    names = [f"p{i}" for i in range(24)]
    assert estimate_pairs(values, names[:12], names) == estimate(alone)


def test_a_partner_of_many_is_drawn_with_all_his_pairs():
    """Each patient has one pair, and half of them with the same partner."""
    values = np.full((40, 21), np.nan)
    values[np.arange(40), np.r_[np.zeros(20, int), np.arange(1, 21)]] = np.r_[np.ones(20), np.zeros(20)]
    patients, partners = [f"p{i}" for i in range(40)], [f"q{i}" for i in range(21)]
    shared = estimate_pairs(values, patients, partners)
    alone = estimate(np.r_[np.ones(20), np.zeros(20)])
    assert shared.high - shared.low > 1.5 * (alone.high - alone.low)


def test_draws_without_any_pair_do_not_count():
    values = np.full((3, 3), np.nan)
    values[[0, 1, 2], [1, 2, 0]] = 1, 2, 6
    found = estimate_pairs(values, list("abc"), list("abc"))
    assert (found.value, found.n) == (3, 3)
    assert found.high - 3 == pytest.approx(3 - found.low)
    assert 10 < found.high < 40


def test_pairs_of_two_patients_have_no_interval():
    """All draws that have a pair have the same two."""
    found = estimate_pairs(np.array([[np.nan, 1.0], [2.0, np.nan]]), list("ab"), list("ab"))
    assert (found.value, found.n) == (1.5, 2)
    assert np.isnan([found.low, found.high]).all()
    assert str(found) == "1.500 (no interval)"


def test_values_of_patients_are_not_taken_from_values_of_pairs():
    alone, pairs = Measured(np.ones(2), list("ab")), Measured(np.ones((2, 2)), list("ab"), list("ab"))
    for one, other in ((alone, pairs), (pairs, alone)):
        with pytest.raises(ValueError, match="a value of each patient cannot be taken from values of pairs"):
            one - other


def test_pairs_of_patients_who_are_partners_too_are_not_independent():
    """Each is compared once and is a partner once: who is drawn, is drawn on both sides."""
    names, alone = list("abcdefghijkl"), np.arange(12.0) ** 2
    values = np.full((12, 12), np.nan)
    values[np.arange(12), np.arange(12) - 1] = alone
    found, independent = estimate_pairs(values, names, names), estimate(alone)
    assert (found.value, found.n) == (independent.value, 12)
    assert found.high - found.low != pytest.approx(independent.high - independent.low, rel=0.02)


def test_freedom_of_two_sides_is_welchs():
    """Of the means of rows and of columns; missing pairs do not count, nor does a side of one."""
    values = np.random.default_rng(0).normal(size=(5, 9)) * np.arange(1, 10)
    values[1, 3] = np.nan
    sides = np.nanmean(values, axis=1), np.nanmean(values, axis=0)
    assert _freedom(values) == pytest.approx(ttest_ind(*sides, equal_var=False).df)
    assert _freedom(values[:2]) == pytest.approx(
        ttest_ind(np.nanmean(values[:2], axis=1), np.nanmean(values[:2], axis=0), equal_var=False).df
    )
    assert _freedom(values[:, 4:5]) == pytest.approx(4)
    assert _freedom(np.ones((5, 3))) == 4


def test_what_is_missing_in_one_image_is_no_value_of_its_patient():
    assert by_patient(np.array([1, np.nan, 3, np.nan]), list("aabc")).values == pytest.approx(
        [1, 3, np.nan], nan_ok=True
    )
    pairs = np.array([[5, 1, np.nan], [7, np.nan, np.nan], [2, 9, 9]])
    found = by_patient(pairs, list("aab"), list("bca"))
    assert found.values == pytest.approx(np.array([[6, 1, np.nan], [np.nan, 9, 9]]), nan_ok=True)
    assert (found.patients, found.partners) == (list("ab"), list("bca"))


def test_further_axes_are_averaged():
    values = np.arange(24.0).reshape(2, 3, 4)
    assert by_patient(values, list("ab")).values.tolist() == [5.5, 17.5]
    assert by_patient(values, list("ab"), list("cde")).values.tolist() == [[1.5, 5.5, 9.5], [13.5, 17.5, 21.5]]


def test_percentiles_lie_further_out_by_students_t():
    """Of twelve patients, as by hand: sqrt(12 / 11) * 2.20099 standard errors, beyond which 1.0757 % lie."""
    assert _percentiles(11) == pytest.approx((1.0757, 98.9243), abs=1e-3)


def test_the_seed_is_the_bootstraps():
    values = np.arange(9.0)
    assert by_patient(values, list("abcdefghi")).estimate(1) == estimate(values, 1) != estimate(values, 0)


def test_digits_of_an_estimate():
    assert str(Estimate(-9.9996, -11, 0.25, 3)) == "-10.000 (-11.000, 0.250)"
    assert str(Estimate(10, 8.96, 11.04, 3)) == "10.0 (9.0, 11.0)"


def test_statistics_that_are_no_means_are_drawn_by_patient():
    """Six patients of four images each; of equally many images the mean is that of the patients' means."""
    values = np.random.default_rng(0).normal(size=24) + np.repeat(np.arange(6.0), 4)
    whose = list("abcdef" * 4)
    values = values.reshape(6, 4).T.ravel()

    def measure(chosen):
        return {"mean": values[chosen].mean(), "twice": 2 * values[chosen].mean(), "undefined": np.nan}

    found = resampled(measure, whose, 3)
    assert found["mean"].draws.shape == (1000,)
    plain = by_patient(values, whose).estimate()
    mean = found["mean"].estimate()
    assert (mean.value, mean.n) == (pytest.approx(plain.value), 6)
    assert mean.high - mean.low == pytest.approx(plain.high - plain.low, rel=0.1)
    less = found["twice"].minus(found["mean"])
    assert less.value == pytest.approx(mean.value)
    assert less.draws == pytest.approx(found["mean"].draws)
    both = averaged_draws([found["mean"], found["twice"]])
    assert both.value == pytest.approx(1.5 * mean.value)
    assert both.draws == pytest.approx(1.5 * found["mean"].draws)
    assert both.n == 6
    assert np.isnan(found["undefined"].estimate()[:3]).all()
    partly = Resampled(1.0, np.array([np.nan, 1, 2, 3]), 50).estimate()
    assert 1 <= partly.low < 1.1 < 2.9 < partly.high <= 3
    drawn = np.random.default_rng(0).normal(size=1000)  # of twelve: eleven degrees of freedom
    few = Resampled(0.0, drawn, 12).estimate()
    assert (few.high - few.low) / 2 / drawn.std() == pytest.approx(2.201 * (12 / 11) ** 0.5, rel=0.02)


def test_ratios_are_of_means():
    found = estimate([2.0, 6, np.nan], over=np.array([1.0, 3, 5]))
    assert found == (2, 2, 2, 2)


def test_ties_count_half():
    own, others = np.array([[1.0, 0.5]]), np.array([[0.5, 0.5 + 1e-8, 0.0, 2.0]])
    assert own_against_other(own, others)[0] == pytest.approx((3 + 2) / 8)


def test_values_come_back_from_their_file(tmp_path):
    pairs = np.arange(6.0).reshape(3, 2)
    pairs[1, 0] = np.nan
    measured = {"a": Measured(np.array([1.0, 2, 3]), list("xyz")), "b": Measured(pairs, list("xyz"), ["s", "t"])}
    save_values(measured, "encoder", tmp_path / "values.parquet")
    found = load_values(tmp_path / "values.parquet")
    assert found.keys() == measured.keys()
    for name, one in measured.items():
        assert np.array_equal((found[name] - one).values, 0 * one.values, equal_nan=True)
    assert found["b"].partners == ["s", "t"]
    assert pq.read_table(tmp_path / "values.parquet")["encoder"].to_pylist() == ["encoder"] * 8


def test_seeds_are_averaged_patient_by_patient():
    mean = averaged([Measured(np.array([0.0, 1]), list("xy")), Measured(np.array([1.0, 1]), list("xy"))])
    assert mean.values.tolist() == [0.5, 1]
    pairs = Measured(np.eye(2), list("xy"), list("st"))
    assert (averaged([pairs, pairs]).patients, averaged([pairs, pairs]).partners) == (list("xy"), list("st"))


def test_one_patient_has_no_interval():
    alone = estimate([0.7])
    assert np.isnan([alone.low, alone.high]).all()
    assert str(alone) == "0.700 (one patient)"
