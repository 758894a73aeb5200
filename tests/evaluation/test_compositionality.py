import numpy as np
import pytest
from PIL import Image

from eden_hf.anatomy import Box
from eden_hf.evaluation.compositionality import CUTS, _cut, compositionality, random_window


def test_an_encoder_that_averages_its_parts_composes(colours, charts):
    values = compositionality(colours, charts, wholes=6).values
    assert values["own"].value > 0.99
    assert values["margin"].value > 0.02
    assert values["auroc"].value > 0.8
    assert values["own"].n == len(charts)
    assert values["own"].value - values["others"].value == pytest.approx(values["margin"].value)
    assert {f"{value}, {name}" for name in CUTS for value in ("own", "margin")} < values.keys()


def test_others_are_other_patients(colours, charts):
    """Two red images of one patient and two green ones of another: own cosines are 1, others' 0."""
    images = [
        item._replace(image=Image.new("RGB", (96, 96), colour), patient=colour)
        for item, colour in zip(charts, ("red", "red", "lime", "lime"), strict=False)
    ]
    values = compositionality(colours, images, wholes=2).values
    assert values["others"].value == pytest.approx(0)
    assert values["margin"].value == pytest.approx(1)
    assert values["auroc"].value == 1
    assert values["others_std"].value == pytest.approx(0, abs=1e-6)
    assert values["own"].n == 2


def test_a_collapsed_encoder_has_no_margin(collapsed, charts):
    values = compositionality(collapsed, charts).values
    assert values["own"].value > 0.999
    assert abs(values["margin"].value) < 1e-6


def test_an_encoder_of_noise_does_not_compose(noise, charts):
    values = compositionality(noise, charts, wholes=8).values
    assert abs(values["margin"].value) < 0.05
    assert values["auroc"].value == pytest.approx(0.5, abs=0.08)
    assert values["own_std"].value == pytest.approx(values["others_std"].value, rel=0.3)


def test_the_same_seed_gives_the_same_numbers(places, charts):
    one, same, other = (compositionality(places, charts, seed=seed).values["own"] for seed in (0, 0, 1))
    assert one == same != other


def test_one_patient_is_refused(places, charts):
    with pytest.raises(ValueError, match="at least 2 are needed"):
        compositionality(places, charts[:1])


@pytest.mark.parametrize("cut", CUTS.values())
def test_cuts_tile_their_window(cut):
    covered = np.zeros((40, 40), int)
    for x0, y0, x1, y1 in _cut(Box(5, 7, 36, 38), *cut):
        covered[y0:y1, x0:x1] += 1
    assert (covered[7:38, 5:36] == 1).all()
    assert covered.sum() == 31 * 31
    assert len(_cut(Box(0, 0, 12, 12), *cut)) == cut[0] * cut[1]


def test_windows_lie_in_the_image_and_everywhere_in_it():
    rng = np.random.default_rng(0)
    boxes = np.array([random_window((60, 40), (0.3, 0.7), rng) for _ in range(500)])
    assert boxes[:, :2].min() == 0
    assert boxes[:, 2].max() == 60
    assert boxes[:, 3].max() == 40
    sides = boxes[:, 2] - boxes[:, 0]
    assert sides.min() == 12
    assert sides.max() == 28
