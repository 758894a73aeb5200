import numpy as np
import pytest
from PIL import Image, ImageChops

from eden_hf.encoders import Encoder
from eden_hf.evaluation.relations import _mirrored, _retrieved, relations

NAMES = ("decomposability", "interpolation", "extrapolation", "symmetry", "scale")


def test_an_encoder_that_knows_places_follows_the_relations(places, charts):
    values = relations(places, charts, window=0.2).values
    assert {name for name in values if " " not in name} == set(NAMES)
    assert values["scale auroc"].value > 0.95
    assert values["interpolation margin"].value > 0.1
    assert values["decomposability margin"].value > 0
    assert values["scale"].n == len(charts)
    assert values["scale retrieval"].value == 1
    assert values["interpolation gain"].value > 0.05


def test_an_encoder_of_mean_colours_takes_wholes_apart(colours, charts):
    """Its embeddings are affine in place: arithmetic on them gains."""
    values = relations(colours, charts, window=0.2).values
    for name in NAMES[:3]:
        assert values[f"{name} gain"].value > 0
        assert values[name].value > 0.99


def test_an_encoder_of_noise_scores_at_chance(noise, charts):
    values = relations(noise, charts, wholes=12).values
    assert values["scale retrieval"].value == pytest.approx(1 / 5, abs=0.2)
    for name in NAMES:
        assert abs(values[f"{name} margin"].value) < 0.06
    for name in NAMES[:3]:
        assert values[f"{name} auroc"].value == pytest.approx(0.5, abs=0.15)
        assert values[f"{name} gain"].value == pytest.approx(0, abs=0.06)


def test_mirrored_charts_are_not_symmetric_for_an_encoder_of_colours(places, charts):
    """A chart's colours move with a flip, so a mirrored left patch keeps its own colour and place: it is not right."""
    values = relations(places, charts, window=0.2).values
    assert values["symmetry"].value < 0.5


def test_a_collapsed_encoder_has_no_margins(collapsed, charts):
    values = relations(collapsed, charts).values
    for name in NAMES:
        assert values[name].value > 0.999
        assert abs(values[f"{name} margin"].value) < 1e-6
    for name in NAMES[:3]:
        assert abs(values[f"{name} gain"].value) < 1e-6


def test_a_collapsed_encoder_retrieves_at_chance(charts):
    alike = np.ones((3, 4), np.float32)
    assert _retrieved(alike, np.ones((3, 12), np.float32)) == pytest.approx(1 / 4)
    assert _retrieved(alike, np.zeros((3, 12), np.float32)) == pytest.approx(1)
    assert _retrieved(alike, 2 * np.ones((3, 12), np.float32)) == pytest.approx(0)


def test_symmetry_is_left_out_without_sides(places, charts):
    middle = [item._replace(landmarks={"a": (0.3, 0.5), "b": (0.6, 0.5)}) for item in charts]
    assert not any(name.startswith("symmetry") for name in relations(places, middle).values)


def test_scale_is_of_a_larger_window(places, charts):
    """Windows of 0.2 of a side of 96, and of one and a half times that."""
    seen, known = set(), places.processor

    def process(images, return_tensors):
        seen.update(image.size for image in images)
        return known(images, return_tensors)

    relations(Encoder(places.model, process, "places"), charts[:2], window=0.2, wholes=1)
    assert {(19, 19), (29, 29)} < seen


def test_others_are_other_patients(colours, charts):
    """Two red images of one patient and two green ones of another: own cosines are 1, others' 0."""
    images = [
        item._replace(image=Image.new("RGB", (96, 96), colour), patient=colour)
        for item, colour in zip(charts, ("red", "red", "lime", "lime"), strict=False)
    ]
    values = relations(colours, images, wholes=2).values
    for name in NAMES[:3]:
        assert values[name].value == values[f"{name} margin"].value == pytest.approx(1)
        assert values[f"{name} auroc"].value == 1
        assert values[name].n == 2
    assert values["scale"].value == pytest.approx(0)


def test_a_mirrored_image_takes_its_landmarks_with_it(charts):
    mirrored = _mirrored(charts[0])
    x, y = charts[0].landmarks["left_a"]
    assert mirrored.landmarks["left_a"] == pytest.approx((1 - x, y))
    again = _mirrored(mirrored)
    assert again.landmarks["left_a"] == pytest.approx((x, y))
    assert ImageChops.difference(again.image, charts[0].image).getbbox() is None
