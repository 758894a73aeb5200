"""The metrics load offline, from wherever the package lies, and give what the evaluations give."""

import numpy as np
import pytest
import torch

from eden_hf.evaluation.locality import landmark_embeddings, locality_scores
from eden_hf.evaluation.metrics import NAMES, load_metric


def test_locality(places, charts):
    vectors, names = landmark_embeddings(places, charts, window=0.2)
    metric = load_metric("locality")
    for patient in range(len(vectors)):
        metric.add_batch(
            predictions=vectors[patient].tolist(),
            references=[{"patient": str(patient), "landmark": name} for name in names],
        )
    expected = {name: scores.mean() for name, scores in locality_scores(vectors, names).items()}
    assert metric.compute() == pytest.approx(expected, abs=1e-5)


def test_locality_needs_every_landmark_of_every_patient():
    metric = load_metric("locality")
    references = [{"patient": p, "landmark": landmark} for p, landmark in [("a", "x"), ("a", "y"), ("b", "x")]]
    with pytest.raises(ValueError, match=r"1 are missing, such as \('b', 'y'\)"):
        metric.compute(predictions=np.eye(3).tolist(), references=references)


def test_locality_refuses_rows_that_come_twice():
    """Which were overwritten by the last of them."""
    references = [{"patient": p, "landmark": name} for p in "aba" for name in "xy"]
    with pytest.raises(ValueError, match=r"2 landmarks .* more than once, such as \('a', 'x'\)"):
        load_metric("locality").compute(predictions=np.eye(6).tolist(), references=references)


def test_compositionality():
    metric = load_metric("compositionality")
    parts = torch.tensor([[[1.0, 0, 0], [0, 1, 0]], [[0, 0, 2.0], [0, 0, 1]]])
    found = metric.compute(predictions=parts.tolist(), references=[[1.0, 1, 0], [0, 0, 5]])
    assert found == pytest.approx({"own": 1, "own_std": 0, "others": 0, "others_std": 0, "margin": 1}, abs=1e-6)


def test_landmark_error():
    metric = load_metric("landmark_error")
    found = metric.compute(predictions=[[3, 4], [0, 0], [30, 0]], references=[[0, 0], [0, 0], [0, 0]])
    assert found == pytest.approx(
        {"mean_radial_error_mm": 35 / 3, "within_5_mm": 2 / 3, "within_10_mm": 2 / 3, "within_20_mm": 2 / 3}
    )


def test_relations():
    metric = load_metric("relations")
    found = metric.compute(predictions=[[1, 0], [0, 2.0]], references=[[3, 0], [0, 1.0]])
    assert found == pytest.approx({"own": 1, "others": 0, "margin": 1, "auroc": 1})
    with pytest.raises(ValueError, match="at least two rows"):
        metric.compute(predictions=[[1, 0]], references=[[3, 0]])


def test_pruned_negatives():
    metric = load_metric("pruned_negatives")
    found = metric.compute(predictions=[0.9, 0.85, 0.8, 0.1], references=[1, 0, 1, 1], gamma=0.8)
    assert found == pytest.approx({"precision": 2 / 3, "recall": 2 / 3, "pruned_share": 0.75, "base_rate": 0.75})


@pytest.mark.parametrize("name", NAMES)
def test_each_says_what_it_measures(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where no clone is
    metric = load_metric(name)
    assert "2309.15358" in metric.description
    assert metric.inputs_description.startswith("Args:\n    predictions: ")
    assert "Returns:" in metric.inputs_description
    assert set(metric.features) == {"predictions", "references"}


def test_an_unknown_metric_says_which_there_are():
    with pytest.raises(ValueError, match="no metric 'dice'; there are locality"):
        load_metric("dice")
