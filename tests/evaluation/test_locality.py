import numpy as np
import pytest
import torch
import torch.nn.functional as F

from eden_hf.evaluation.locality import landmark_embeddings, locality, locality_scores


def test_an_encoder_that_knows_places_is_perfect(places, charts):
    result = locality(places, charts, window=0.1)
    assert result.values["retrieval_at_1"].value == 1
    assert result.values["knn_accuracy"].value == 1
    assert result.values["prototype_accuracy"].value == 1
    assert result.values["side_accuracy"].value == 1
    assert result.values["auroc"].value == 1
    assert result.values["mirror_confusion"].value == 0
    assert result.values["silhouette"].value > 0.7
    assert result.values["retrieval_at_1"].n == 6
    assert result.settings["chance"] == 1 / 5
    assert result.figure.axes


def test_an_encoder_that_cannot_tell_left_from_right_shows_it(charts, places):
    """The same encoder on the distance from the midline."""
    vectors, names = landmark_embeddings(places, charts, window=0.1)
    index = {name: i for i, name in enumerate(names)}
    twins = vectors.clone()
    for name in ("a", "b"):
        twins[:, index[f"left_{name}"]] = vectors[:, index[f"right_{name}"]]
    twins = F.normalize(twins + 1e-3 * torch.randn(twins.shape), dim=2)
    scores = locality_scores(twins, names)
    assert scores["side_accuracy"].mean() < 0.9
    assert scores["retrieval_at_1"].mean() < 0.95
    errors = 1 - scores["prototype_accuracy"].mean()
    assert errors > 0.1
    assert scores["mirror_confusion"].mean() == pytest.approx(errors * 5 / 4)  # 4 of 5 landmarks have a mirror


def test_noise_scores_at_chance():
    rng = torch.Generator().manual_seed(0)
    vectors = F.normalize(torch.randn(60, 10, 32, generator=rng), dim=2)
    names = [f"{side}_{i}" for i in range(5) for side in ("left", "right")]
    scores = {name: values.mean() for name, values in locality_scores(vectors, names).items()}
    for name in ("retrieval_at_1", "knn_accuracy", "prototype_accuracy", "mirror_confusion"):
        assert scores[name] == pytest.approx(0.1, abs=0.05)
    assert scores["side_accuracy"] == pytest.approx(0.5, abs=0.08)
    assert scores["auroc"] == pytest.approx(0.5, abs=0.02)
    assert scores["silhouette"] < 0


def test_patches_of_the_same_patient_are_never_neighbours():
    """Each vector is mostly its patient's and a little its landmark's: a patient's own patches would be nearest."""
    patient = 3 * torch.eye(7)[:, None].expand(7, 4, 7)
    vectors = F.normalize(torch.cat([patient, torch.eye(4).expand(7, 4, 4)], dim=2), dim=2)
    scores = locality_scores(vectors, list("abcd"))
    assert "side_accuracy" not in scores
    for name in ("retrieval_at_1", "knn_accuracy", "prototype_accuracy", "auroc"):
        assert (scores[name] == 1).all(), name


@pytest.mark.parametrize("noise", [0, 1e-8])
def test_a_collapsed_encoder_scores_at_chance(noise):
    """Where all are equally near, none is nearer: 0 and 1 were what rounding and order gave."""
    torch.manual_seed(0)
    vectors = F.normalize(torch.ones(6, 4, 8) + noise * torch.randn(6, 4, 8), dim=2)
    scores = locality_scores(vectors, ["left_a", "right_a", "left_b", "right_b"])
    for name in ("retrieval_at_1", "knn_accuracy", "prototype_accuracy", "mirror_confusion"):
        assert scores[name] == pytest.approx(1 / 4), name
    assert scores["side_accuracy"] == pytest.approx(0.5)
    assert scores["auroc"] == pytest.approx(0.5)
    assert scores["silhouette"] == pytest.approx(0, abs=0.2)


def test_several_images_of_a_patient_are_never_compared():
    torch.manual_seed(2)
    vectors = F.normalize(torch.randn(5, 4, 8) + torch.randn(1, 4, 8), dim=2)
    names = ["left_a", "right_a", "left_b", "right_b"]
    once = locality_scores(vectors, names)
    again = locality_scores(vectors.repeat_interleave(3, dim=0), names, [p for p in "abcde" for _ in range(3)])
    for name, values in once.items():
        if name != "knn_accuracy":  # whose 5 neighbours are then of 2 patients
            assert again[name] == pytest.approx(values.repeat(3), abs=1e-6), name


def test_scores_are_those_of_a_plain_loop():
    torch.manual_seed(1)
    vectors = F.normalize(torch.randn(4, 3, 8) + 2 * torch.randn(1, 3, 8), dim=2)
    hits = np.zeros((4, 3))
    for p in range(4):
        for landmark in range(3):
            others = [(float(vectors[p, landmark] @ vectors[q, k]), k) for q in range(4) if q != p for k in range(3)]
            hits[p, landmark] = max(others)[1] == landmark
    assert np.allclose(locality_scores(vectors, list("abc"))["retrieval_at_1"], hits.mean(axis=1))
