import numpy as np
import pytest
import torch
from PIL import Image

from eden_hf import EdenImageProcessor, EdenModel
from eden_hf.data.landmarks import LandmarkedImage, load_landmarked
from eden_hf.encoders import Encoder
from eden_hf.evaluation.confidence import blank_out, confidence
from eden_hf.evaluation.disturbances import DISTURBANCES, _errors, _through, disturb, disturbances
from tests.tiny import tiny_config


@pytest.fixture(scope="module")
def dense_encoder():
    torch.manual_seed(0)
    model = EdenModel(tiny_config(dense_dim=16)).eval()
    return Encoder(model, EdenImageProcessor(size={"height": 32, "width": 32}, intensity="per_image"))


def blob(size=(128, 96), at=(40.0, 55.0)):
    """A bright blob on grey, and its place as the one landmark."""
    y, x = np.mgrid[: size[1], : size[0]]
    pixels = 60 + 180 * np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / 18)
    places = {"a": ((at[0] + 0.5) / size[0], (at[1] + 0.5) / size[1])}
    return LandmarkedImage(Image.fromarray(pixels.astype(np.uint8)), "blob", places)


@pytest.mark.parametrize("name", DISTURBANCES)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_landmark_goes_where_the_picture_goes(name, seed):
    item = blob()
    image, affine, visible = disturb(item, ["a"], name, seed)
    assert image.size == item.image.size
    assert visible.all()
    true = _through(affine, np.array([[40.0, 55.0]]))[0]
    pixels = np.asarray(image, float)
    pixels = 255 - pixels if name == "inverted" else pixels
    around = np.hypot(*(np.indices(pixels.shape)[::-1] - true[:, None, None])) < 9
    weights = np.where(around, pixels, 0).clip(np.median(pixels[around])) - np.median(pixels[around])
    centre = [(weights * grid).sum() / weights.sum() for grid in np.indices(pixels.shape)[::-1]]
    assert centre == pytest.approx(true, abs=1.5 if name == "noise" else 0.5)
    assert _errors(torch.tensor(true[None]), affine, item, ["a"], 358.4)[0] == pytest.approx(0, abs=1e-4)


def test_draws_depend_on_seed_and_image_alone():
    item = blob()
    first, again, other = (disturb(item, ["a"], "scale", seed)[1] for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_errors_are_those_of_the_undisturbed_picture():
    """Half a picture's error in a picture shrunk to half is a whole one."""
    item = blob()
    affine = np.array([[0.5, 0, 10], [0, 0.5, 10]])
    found = torch.tensor([[0.5 * 40 + 10 + 2, 0.5 * 55 + 10.0]])
    assert _errors(found, affine, item, ["a"], side_mm=128)[0] == pytest.approx(4)


def test_overwritten_points_do_not_count():
    names = ["a"]
    assert disturb(blob(at=(10, 50)), names, "black_frame")[2].tolist() == [False]
    assert disturb(blob(at=(10, 50)), names, "black_border")[2].tolist() == [True]
    assert disturb(blob(at=(10, 5)), names, "white_box")[2].tolist() == [False]
    assert np.asarray(disturb(blob(), names, "white_frame")[0])[:10].min() == 255


def test_a_table_of_ratios(dense_encoder):
    result = disturbances(dense_encoder, load_landmarked("phantoms:4"), references=2)
    values = result.values
    assert set(values) == {f"{name}_mm" for name in DISTURBANCES} | {
        f"{name}_ratio" for name in DISTURBANCES if name != "undisturbed"
    }
    assert values["inverted_ratio"].value == pytest.approx(
        values["inverted_mm"].value / values["undisturbed_mm"].value, rel=1e-5
    )
    assert values["gamma_mm"].n == 2
    with pytest.raises(ValueError, match="4 references leave no targets of 4"):
        disturbances(dense_encoder, load_landmarked("phantoms:4"))


def test_confidence_is_set_against_errors_and_blanked_points(dense_encoder):
    result = confidence(dense_encoder, load_landmarked("phantoms:4"), references=2)
    values = result.values
    assert values["least_confident_ratio"].value == pytest.approx(
        values["least_confident_mm"].value / values["others_mm"].value, rel=0.01
    )
    for name in ("blanked_not_found", "not_found", "false_alarms"):
        assert 0 <= values[name].value <= 1


def test_what_is_blanked_out_is_gone():
    blanked = np.asarray(blank_out(blob(), ["a"], [0]))
    assert blanked.max() < 80
