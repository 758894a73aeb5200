import logging

import numpy as np
import pytest
import torch
from datasets import Dataset

from eden_hf.data.landmarks import (
    SCR_LANDMARKS,
    landmark_pixels,
    load_landmarked,
    mirror_of,
    scr_landmarks,
    shared_landmarks,
)
from eden_hf.data.phantoms import LANDMARKS, phantom_dataset


def outline(x0, y0, x1, y1):
    """A rectangle's border, ten points a side, clockwise from the top left."""
    x, y = np.linspace(x0, x1, 10), np.linspace(y0, y1, 10)
    top, right = np.stack([x, np.full(10, y0)], 1), np.stack([np.full(10, x1), y], 1)
    bottom, left = np.stack([x[::-1], np.full(10, y1)], 1), np.stack([np.full(10, x0), y[::-1]], 1)
    return np.concatenate([top, right, bottom, left]).tolist()


OUTLINES = {
    "landmarks_left_lung": outline(0.6, 0.1, 0.9, 0.8),
    "landmarks_right_lung": outline(0.1, 0.1, 0.4, 0.8),
    "landmarks_left_clavicle": outline(0.55, 0.12, 0.85, 0.16),
    "landmarks_right_clavicle": outline(0.15, 0.12, 0.45, 0.16),
    "landmarks_heart": outline(0.4, 0.4, 0.7, 0.75),
}


def test_landmarks_lie_where_the_outlines_say():
    points = scr_landmarks(OUTLINES)
    assert tuple(points) == SCR_LANDMARKS
    assert points["left_costophrenic_angle"] == pytest.approx((0.9, 0.8))
    assert points["right_costophrenic_angle"] == pytest.approx((0.1, 0.8))
    assert points["left_lung_apex"][1] == pytest.approx(0.1)
    assert points["left_hilum"] == pytest.approx((0.6, 0.1 + 0.4 * 0.7))
    assert points["right_hilum"] == pytest.approx((0.4, 0.1 + 0.4 * 0.7))
    assert points["left_dome_top"][1] == pytest.approx(0.8)
    assert 0.6 < points["left_dome_top"][0] < 0.9
    assert points["left_clavicle_medial_end"][0] == pytest.approx(0.55)
    assert points["right_clavicle_lateral_end"][0] == pytest.approx(0.15)
    assert points["right_clavicle_middle"] == pytest.approx((0.3, 0.14))
    assert points["heart_apex"] == pytest.approx((0.7, 0.75))
    assert points["heart_base"][1] == pytest.approx(0.4)
    assert points["heart_right_border"][0] == pytest.approx(0.4)


def test_the_dome_is_apart_from_the_angle_of_a_steep_base():
    """A lung that falls away steeply beside the heart, as in one SCR image in eight on the left."""
    heart = [[0.4, 0.45], [0.6, 0.45], [0.72, 0.6], [0.74, 0.78], [0.4, 0.78]]
    lung = [[0.65, 0.1], [0.85, 0.4], [0.85, 0.7], [0.83, 0.95], [0.81, 0.9], [0.78, 0.82], [0.745, 0.78]]
    lung += [[0.74, 0.7], [0.72, 0.6], [0.6, 0.45], [0.55, 0.3]]
    points = scr_landmarks(OUTLINES | {"landmarks_heart": heart, "landmarks_left_lung": lung})
    assert points["left_costophrenic_angle"] == pytest.approx((0.83, 0.95))
    x, y = points["left_dome_top"]
    assert x == pytest.approx(0.745 + (0.83 - 0.745) / 4)
    assert 0.78 < y < 0.82


def test_a_mirrored_radiograph_has_mirrored_landmarks():
    flipped = {
        name.replace("left", "x").replace("right", "left").replace("x", "right"): [[1 - x, y] for x, y in points]
        for name, points in OUTLINES.items()
    }
    points, mirrored = scr_landmarks(OUTLINES), scr_landmarks(flipped)
    for name, (x, y) in points.items():
        if partner := mirror_of(name):
            assert mirrored[partner][1] == pytest.approx(y), name
            if "apex" not in name and "dome" not in name:  # of a flat top, either end is highest
                assert mirrored[partner][0] == pytest.approx(1 - x), name


def test_at_least_ten_landmarks_with_both_sides():
    assert len(SCR_LANDMARKS) >= 10
    for names in (SCR_LANDMARKS, LANDMARKS):
        assert all(mirror_of(name) in names for name in names if mirror_of(name))
    assert len(set(SCR_LANDMARKS) & set(LANDMARKS)) >= 10
    assert mirror_of("heart_apex") is None
    assert mirror_of("left_hilum") == "right_hilum"


def test_phantoms_bring_their_own():
    loaded = load_landmarked("phantoms:3")
    assert [item.source_id for item in loaded] == ["0", "1", "2"]
    assert tuple(loaded[0].landmarks) == LANDMARKS
    expected = phantom_dataset(3)[1]["landmarks"]["carina"]
    assert loaded[1].landmarks["carina"] == pytest.approx(expected)
    assert loaded[0].image.mode == "L"


def test_images_without_landmarks_are_counted_and_named(caplog):
    rows = [{"image": row["image"], "image_id": f"p{i}", **OUTLINES} for i, row in enumerate(phantom_dataset(3))]
    rows[1] |= {"landmarks_heart": None}
    with caplog.at_level(logging.WARNING):
        loaded = load_landmarked(Dataset.from_list(rows), id_column="image_id")
    assert [item.source_id for item in loaded] == ["p0", "p2"]
    assert "1 images have no landmarks" in caplog.text
    assert "p1" in caplog.text
    with pytest.raises(ValueError, match=r"2 images with landmarks.*3 were asked"):
        load_landmarked(Dataset.from_list(rows), id_column="image_id", images=3)


def test_landmarks_may_be_null_but_not_pixels(caplog):
    rows = [{"image": row["image"], "landmarks": {"a": [0.5, 0.5], "b": None}} for row in phantom_dataset(3)]
    rows[1]["landmarks"] = {"a": None, "b": None}
    first, second = load_landmarked(Dataset.from_list(rows))
    assert first.landmarks == second.landmarks == {"a": (0.5, 0.5)}
    assert "1 images have no landmarks and are left out: ['1']" in caplog.text
    rows[2]["landmarks"]["b"] = [100, 20]
    with pytest.raises(ValueError, match=r"^2: b lies at \(100.0, 20.0\).*divide pixels"):
        load_landmarked(Dataset.from_list(rows))
    with pytest.raises(ValueError, match="images=0"):
        load_landmarked("phantoms:3", images=0)


@pytest.mark.parametrize("place", [(1.05, 0.5), (0.5, -0.02)])
def test_landmarks_a_little_off_the_picture_are_left_out(place, caplog):
    """One rule, here: what is loaded can be measured."""
    rows = [{"image": row["image"], "landmarks": {"a": [1.0, 0.0], "b": [0.5, 0.5]}} for row in phantom_dataset(3)]
    rows[1]["landmarks"]["a"] = list(place)
    loaded = load_landmarked(Dataset.from_list(rows))
    assert [list(item.landmarks) for item in loaded] == [["a", "b"], ["b"], ["a", "b"]]
    assert "1 landmarks lie off the picture and are left out: ['1: a']" in caplog.text
    for item in loaded:
        points = landmark_pixels(item, list(item.landmarks))
        assert (points >= -0.5).all()
        assert (points <= torch.tensor(item.image.size) - 0.5).all()
    rows[1]["landmarks"] = {"a": [1.2, 0.5], "b": None}
    with pytest.raises(ValueError, match=r"^1: a lies at \(1.2, 0.5\)"):
        load_landmarked(Dataset.from_list(rows))
    rows[1]["landmarks"] = {"a": [float("nan"), 0.5], "b": None}
    with pytest.raises(ValueError, match=r"^1: a lies at \(nan, 0.5\)"):
        load_landmarked(Dataset.from_list(rows))


def test_a_source_without_landmark_columns_is_refused():
    with pytest.raises(ValueError, match=r"no landmarks.*'landmarks'"):
        load_landmarked(phantom_dataset(2).remove_columns("landmarks"))


def test_pixels_are_indices_of_pixel_centres():
    item = load_landmarked("phantoms:1")[0]._replace(landmarks={"a": (0.0, 0.5)})
    assert landmark_pixels(item, ["a"]).tolist() == [[-0.5, 127.5]]


def test_only_landmarks_that_all_share_are_compared():
    one, two = load_landmarked("phantoms:2")
    fewer = two._replace(landmarks={name: two.landmarks[name] for name in ("carina", "heart_apex")})
    assert set(shared_landmarks([one, fewer])) == {"carina", "heart_apex"}
    with pytest.raises(ValueError, match="at least 2 images"):
        shared_landmarks([one])
    with pytest.raises(ValueError, match="at least 2 landmarks"):
        shared_landmarks([one, two._replace(landmarks={"carina": (0, 0)})])


@pytest.mark.real_data
def test_scr_landmarks_lie_in_or_near_their_structures(shared_data):
    from eden_hf.data.sources import load_source

    loaded = {item.source_id: item for item in load_landmarked(str(shared_data / "scr"), "test", id_column="image_id")}
    assert len(loaded) == 122  # one has no outlines
    for row in load_source(str(shared_data / "scr"), split="test", id_column="image_id").select(range(0, 123, 10)):
        if row["source_id"] not in loaded:
            continue
        points = loaded[row["source_id"]].landmarks
        assert points["left_hilum"][0] > points["right_hilum"][0]
        for side in ("left", "right"):
            dome, angle = points[f"{side}_dome_top"], points[f"{side}_costophrenic_angle"]
            assert np.hypot(*np.subtract(dome, angle)) * 512 > 12
        heart = np.asarray(row["heart"])
        rows, columns = np.nonzero(heart)
        assert abs(points["heart_base"][1] * 512 - rows.min()) < 6
        assert abs(points["heart_right_border"][0] * 512 - columns.min()) < 6


@pytest.mark.parametrize("held", ['{"a": [0.5, 0.5]}', [[0.5, 0.5]], {"a": [0.5]}, {"a": ["left", "top"]}])
def test_landmarks_of_another_form_are_refused_with_the_row_and_the_form(held):
    rows = [{"image": row["image"], "landmarks": held} for row in phantom_dataset(2)]
    with pytest.raises(ValueError, match=r"^0: `landmarks` holds .*must hold names"):
        load_landmarked(Dataset.from_list(rows))
