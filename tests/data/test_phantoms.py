import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eden_hf.data.phantoms import LANDMARKS, STRUCTURES, draw_phantom, phantom_dataset, phantom_sheet

SEEDS = st.integers(0, 2**32)
few = settings(max_examples=12, deadline=None)

# least and most of the picture that a structure may fill
AREAS = {
    "heart": (0.04, 0.14),
    "left_lung": (0.07, 0.20),
    "right_lung": (0.09, 0.22),
    "left_clavicle": (0.004, 0.015),
    "right_clavicle": (0.004, 0.015),
}
# landmark -> the structure whose outline or inside it lies on
HOME = {
    **{f"{side}_lung_apex": f"{side}_lung" for side in ("left", "right")},
    **{f"{side}_costophrenic_angle": f"{side}_lung" for side in ("left", "right")},
    **{f"{side}_hilum": f"{side}_lung" for side in ("left", "right")},
    **{
        f"{side}_clavicle_{part}": f"{side}_clavicle"
        for side in ("left", "right")
        for part in ("medial_end", "middle", "lateral_end")
    },
    "right_dome_top": "right_lung",  # the left one may lie behind the heart
    "heart_apex": "heart",
    "aortic_knob": "left_lung",
}


def centre(mask):
    return np.argwhere(mask).mean(axis=0)[::-1]


def distance(point, mask):
    """From a landmark to the nearest pixel of a mask, in pixels."""
    ys, xs = np.nonzero(mask)
    x, y = np.array(point) * mask.shape - 0.5
    return np.hypot(xs - x, ys - y).min()


def test_same_seed_same_phantom_and_other_seeds_others():
    first, again, other = draw_phantom((3, 1), 64), draw_phantom((3, 1), 64), draw_phantom((3, 2), 64)
    assert np.array_equal(first.image, again.image)
    assert all(np.array_equal(first.masks[name], again.masks[name]) for name in STRUCTURES)
    assert first.landmarks == again.landmarks
    assert first.landmarks["carina"] != other.landmarks["carina"]
    assert not np.array_equal(first.masks["heart"], other.masks["heart"])


@few
@given(seed=SEEDS, size=st.integers(32, 160))
def test_structures_have_plausible_areas_and_sides_at_any_size(seed, size):
    phantom = draw_phantom(seed, size)
    assert tuple(phantom.masks) == STRUCTURES
    for name, mask in phantom.masks.items():
        assert mask.shape == (size, size)
        assert mask.dtype == bool
        assert AREAS[name][0] < mask.mean() < AREAS[name][1], name
    for organ in ("lung", "clavicle"):  # the patient's left is the picture's right
        left, right = phantom.masks[f"left_{organ}"], phantom.masks[f"right_{organ}"]
        assert centre(left)[0] > centre(right)[0]
        assert not (left & right).any()
    carina = phantom.landmarks["carina"][0] * size - 0.5
    assert centre(phantom.masks["heart"])[0] > carina - size / 100  # more of the heart lies on the left
    lungs = phantom.masks["left_lung"] | phantom.masks["right_lung"]
    assert (phantom.masks["heart"] & lungs).mean() < 0.01  # pixels that an outline halves belong to both


@few
@given(seed=SEEDS)
def test_landmarks_lie_on_their_structures(seed):
    size = 128
    phantom = draw_phantom(seed, size)
    assert tuple(phantom.landmarks) == LANDMARKS
    assert all(0 < value < 1 for point in phantom.landmarks.values() for value in point)
    for name, structure in HOME.items():
        assert distance(phantom.landmarks[name], phantom.masks[structure]) < 0.025 * size, (
            name
        )  # the costophrenic angle is a thin tip
    for name in LANDMARKS:
        if name.startswith("left_"):
            assert phantom.landmarks[name][0] > phantom.landmarks[name.replace("left_", "right_")][0]


@few
@given(seed=SEEDS)
def test_a_picture_is_exposed_as_a_radiograph(seed):
    phantom = draw_phantom(seed, 96)
    image = phantom.image
    assert image.dtype == np.uint8
    assert image.std() > 20  # neither blank
    assert np.mean(image == 255) < 0.02  # nor burnt out
    lungs = image[phantom.masks["left_lung"] | phantom.masks["right_lung"]]
    assert lungs.mean() + 10 < image[phantom.masks["heart"]].mean()


def test_anatomy_pose_and_exposure_do_not_depend_on_the_size():
    for seed in range(6):
        small, large = draw_phantom(seed, 64), draw_phantom(seed, 256)
        assert small.landmarks == large.landmarks
        for name in STRUCTURES:
            assert abs(small.masks[name].mean() - large.masks[name].mean()) < 0.003
        shrunk = large.image.reshape(64, 4, 64, 4).mean(axis=(1, 3))
        assert abs(shrunk - small.image).mean() < 6  # grey values: noise and edges


def test_a_row_depends_on_seed_and_index_only():
    few_rows, more_rows = phantom_dataset(2, seed=5, size=64), phantom_dataset(4, seed=5, size=64)
    assert few_rows[1] == more_rows[1]
    assert phantom_dataset(2, seed=6, size=64)[1]["landmarks"] != few_rows[1]["landmarks"]
    alone = draw_phantom((5, 1), 64)
    assert np.array_equal(np.asarray(more_rows[1]["image"]), alone.image)
    assert all(np.array_equal(np.asarray(more_rows[1][name]), alone.masks[name]) for name in STRUCTURES)
    assert more_rows[1]["landmarks"]["carina"] == pytest.approx(alone.landmarks["carina"])


def test_columns_are_those_of_scr():
    rows = phantom_dataset(3, size=64)
    assert rows.column_names == ["image", *STRUCTURES, "image_id", "landmarks"]
    assert rows["image_id"][:] == ["phantom-0-000000", "phantom-0-000001", "phantom-0-000002"]
    assert (rows[0]["image"].mode, rows[0]["heart"].mode) == ("L", "1")
    assert set(rows[0]["landmarks"]) == set(LANDMARKS)


def test_sheet_shows_every_phantom():
    sheet = np.asarray(phantom_sheet(seed=2, rows=1, columns=2, size=48))
    assert sheet.shape == (48, 96)
    assert np.array_equal(sheet[:, 48:], draw_phantom((2, 1), 48).image)


@pytest.mark.parametrize(
    ("call", "named"), [(lambda: draw_phantom(0, 16), "size=16"), (lambda: phantom_dataset(0), "n=0")]
)
def test_refusals_name_the_value(call, named):
    with pytest.raises(ValueError, match=named):
        call()
