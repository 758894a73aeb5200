import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from eden_hf.evaluation.results import Estimate, Results, data_hash, estimate, estimate_pairs, table


def results(encoder="a", **values):
    return Results("locality", encoder, "sha256 0", "phantoms:8", "abc", 0, values, {"window": 32})


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


@pytest.mark.parametrize(("references", "targets", "same"), [(30, 30, True), (12, 60, False)])
def test_intervals_over_pairs_cover_the_truth(references, targets, same, monkeypatch):
    monkeypatch.setattr("eden_hf.evaluation.results.RESAMPLES", 400)
    rng, covered = np.random.default_rng(1), 0
    for number in range(500):
        found = estimate_pairs(drawn_pairs(rng, references, targets, same), number, same_patients=same)
        covered += found.low <= 10 <= found.high
    assert 0.93 <= covered / 500 <= 0.97


def test_intervals_of_few_patients_cover_the_truth(monkeypatch):
    monkeypatch.setattr("eden_hf.evaluation.results.RESAMPLES", 400)
    rng, covered = np.random.default_rng(5), 0
    for number in range(500):
        found = estimate(rng.normal(0, 1, 12), seed=number)
        covered += found.low <= 0 <= found.high
    assert 0.93 <= covered / 500 <= 0.97


def test_patients_of_pairs_are_drawn_and_not_pairs():
    """Two groups of patients that differ as targets: an interval over pairs alone would be six times as narrow."""
    values = np.repeat([[0.0] * 20 + [1.0] * 20], 40, axis=0)
    found = estimate_pairs(values, same_patients=False)
    assert found.n == 40
    assert found.high - found.low == pytest.approx(2 * 2 * 0.5 / 40**0.5, rel=0.15)


def test_pairs_need_both_sides():
    with pytest.raises(ValueError, match="at least 2 references"):
        estimate_pairs(np.ones((1, 5)), same_patients=False)
    with pytest.raises(ValueError, match="at least 2 references"):
        estimate_pairs(np.full((3, 3), np.nan), same_patients=True)


def test_results_come_back_from_their_file(tmp_path):
    saved = results(retrieval=Estimate(0.5, 0.4, 0.6, 12))
    assert Results.load(saved.save(tmp_path / "new")) == saved
    assert "0.500 (0.400, 0.600)" in (tmp_path / "new" / "results.md").read_text()


def test_a_table_sets_encoders_side_by_side():
    one, two = results("a", knn=Estimate(0.5, 0.4, 0.6, 12)), results("b", margin=Estimate(12.25, 11, 13, 12))
    lines = table([one, two]).splitlines()
    assert lines[0] == "|  |  | a | b |"
    assert lines[2] == "| locality | knn | 0.500 (0.400, 0.600) | - |"
    assert lines[3] == "| locality | margin | - | 12.2 (11.0, 13.0) |"


def test_the_hash_tells_ids_pixels_and_order():
    images = [Image.new("L", (2, 2), value) for value in (0, 1)]
    hashes = {
        data_hash(ids, pixels)
        for ids, pixels in [(["a", "b"], images), (["a", "c"], images), (["a", "b"], images[::-1])]
    }
    assert len(hashes) == 3
