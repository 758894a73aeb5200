import numpy as np
import pytest
import torch

from eden_hf import EdenImageProcessor, EdenModel
from eden_hf.data.landmarks import load_landmarked, patients_of
from eden_hf.encoders import Encoder
from eden_hf.evaluation.correspondence import (
    as_reference,
    copied_landmarks,
    correspondence,
    errors_mm,
    find_controls,
    find_landmarks,
    landmark_scores,
    possible_shots,
    reference_sets,
)
from eden_hf.matching import AnatomyMatcher
from tests.tiny import tiny_config


@pytest.fixture(scope="module")
def dense_encoder():
    torch.manual_seed(0)
    model = EdenModel(tiny_config(dense_dim=16)).eval()
    return Encoder(model, EdenImageProcessor(size={"height": 64, "width": 64}, intensity="per_image"))


@pytest.fixture(scope="module")
def phantoms():
    return load_landmarked("phantoms:6")


def test_pairs_controls_and_gains(dense_encoder, phantoms):
    controls = find_controls(phantoms, (1, 2), ["pixels", "registration"])
    result = correspondence(dense_encoder, phantoms, shots=(1, 2, 20), controls=controls)
    assert result.settings["shots"] == [1, 2]
    assert result.settings["pairs"] == [30, 12]  # all; three sets of two in the four others
    assert result.settings["control_pairs"] == {"pixels": [30, 12], "registration": [3, 2]}
    values = result.values
    for of in ("", "2_references_"):
        gain = values[f"{of}same_place_mm"].value - values[f"{of}mean_radial_error_mm"].value
        assert values[f"{of}gain_over_same_place_mm"].value == pytest.approx(gain, abs=1e-4)
    assert values["registration_mm"].n == 3
    assert values["mean_radial_error_mm"].n == 6
    per_landmark = [values[f"{name}_mm"].value for name in result.settings["landmarks"]]
    assert np.mean(per_landmark) == pytest.approx(values["mean_radial_error_mm"].value, rel=1e-5)
    assert len(result.figure.axes) == 2


def test_what_a_set_finds_is_what_a_matcher_finds_anew(dense_encoder, phantoms):
    """The images embedded once, rows and columns in their places."""
    names = list(phantoms[0].landmarks)
    found = find_landmarks(dense_encoder, phantoms, (1, 2))
    sets = reference_sets(list("abcdef"), 2)
    assert not set(sets[1]) & set(sets[0])
    target = next(i for i in range(6) if i not in sets[1])
    fresh = AnatomyMatcher(dense_encoder, [as_reference(phantoms[i], names) for i in sets[1]])
    expected = torch.tensor([point[:2] for point in fresh.find(phantoms[target].image).values()])
    assert torch.allclose(found[2][1, target], expected, atol=1e-3)
    single = AnatomyMatcher(dense_encoder, [as_reference(phantoms[4], names)]).find(phantoms[1].image)
    assert torch.allclose(found[1][4, 1], torch.tensor([point[:2] for point in single.values()]), atol=1e-3)
    assert found[1][4, 4].isnan().all()
    assert found[2][1, sets[1]].isnan().all()


def test_registration_uses_no_patient_twice(phantoms):
    for k, found in find_controls(phantoms, (1, 2), ["registration"], seed=3)["registration"].items():
        tried = found.isfinite().all(dim=-1).all(dim=-1)
        sets = reference_sets(patients_of(phantoms), k, seed=3)
        patients = [patient for row, target in tried.nonzero().tolist() for patient in (*sets[row], target)]
        assert len(patients) == len(set(patients)) == 6


def test_errors_are_in_millimetres_of_the_target(phantoms):
    sets = reference_sets(list("abcdef"), 1)
    small = errors_mm(phantoms, copied_landmarks(phantoms, sets), side_mm=100)
    larger = [item._replace(image=item.image.resize((128, 128))) if n % 2 else item for n, item in enumerate(phantoms)]
    assert np.allclose(small, errors_mm(larger, copied_landmarks(larger, sets), 100), atol=1e-3, equal_nan=True)
    doubled = errors_mm(phantoms, copied_landmarks(phantoms, sets), side_mm=200)
    assert np.allclose(doubled, 2 * small, equal_nan=True)
    a, b = (np.array(phantoms[i].landmarks["carina"]) for i in (2, 5))
    index = list(phantoms[0].landmarks).index("carina")
    assert small[2, 5, index] == pytest.approx(100 * np.linalg.norm(a - b), rel=1e-4)


def test_millimetres_are_of_the_targets_width(phantoms):
    """Oblong images: an upright query, and a target of 200 x 100 pixels and 100 mm, a millimetre to two pixels."""
    names = list(phantoms[0].landmarks)
    query = phantoms[0]._replace(image=phantoms[0].image.resize((50, 150)))
    target = phantoms[1]._replace(image=phantoms[1].image.resize((200, 100)))
    sets = reference_sets(["a", "b"], 1)
    errors = errors_mm([query, target], copied_landmarks([query, target], sets), side_mm=100)
    shares = np.array([query.landmarks[name] for name in names]) - [target.landmarks[name] for name in names]
    assert errors[0, 1] == pytest.approx(np.linalg.norm(shares * [100, 50], axis=1), rel=1e-3)


def test_the_same_place_is_that_of_each_sets_references(dense_encoder, phantoms):
    """Over all pairs of two patients, by a plain loop."""
    found = correspondence(dense_encoder, phantoms, shots=(1,), side_mm=100).values["same_place_mm"]
    places = np.array([list(item.landmarks.values()) for item in phantoms])
    errors = [
        np.linalg.norm(100 * (places[i] - places[j]), axis=1).mean() for i in range(6) for j in range(6) if i != j
    ]
    assert found.value == pytest.approx(np.mean(errors), rel=1e-4)


def test_the_mean_of_references_is_copied(phantoms):
    copied = copied_landmarks(phantoms, [[0, 1, 2]])
    mean = np.mean([list(phantoms[i].landmarks.values()) for i in range(3)], axis=0)
    assert copied[0, 4].numpy() == pytest.approx(mean * 256 - 0.5, abs=1e-3)


def test_too_few_images_for_two_sets(caplog):
    assert possible_shots(12, (1, 5, 20)) == [1, 5]
    assert "k = 20" in caplog.text
    with pytest.raises(ValueError, match="no two sets of 5, 20"):
        possible_shots(8, (5, 20))
    with pytest.raises(ValueError, match=r"unknown controls \['copy'\]"):
        find_controls([], (1,), ["copy"])


def test_scores_of_errors():
    scores = landmark_scores(np.array([0.0, 5.0, 5.1, 19.0, 21.0]))
    assert scores["within_5_mm"].tolist() == [1, 1, 0, 0, 0]
    assert scores["within_20_mm"].tolist() == [1, 1, 1, 1, 0]
    assert scores["mean_radial_error_mm"].tolist() == [0.0, 5.0, 5.1, 19.0, 21.0]
