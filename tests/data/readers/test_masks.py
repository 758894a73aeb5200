import io

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from eden_hf.data.readers.masks import decode_runs, fill_outlines, mask_cell, read_mask, warn_if_inverted
from eden_hf.data.readers.task import TaskError

from .layouts import pixels, save, save_mask

MASKS = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=12))


def encode_runs(inside):
    """The challenge's form, one pixel after the other: the plain way, to check the fast one against."""
    numbers, gap, run = [], 0, 0
    for value in inside.T.ravel():
        if value:
            run += 1
            continue
        if run:
            numbers += [gap, run]
            gap, run = 0, 0
        gap += 1
    return " ".join(map(str, numbers + ([gap, run] if run else [])))


@given(MASKS)
def test_run_lengths_decode_to_what_was_encoded(inside):
    text = encode_runs(inside)
    if text:
        assert np.array_equal(decode_runs(text, inside.shape[::-1]), inside)
    else:
        assert not inside.any()


def test_run_lengths_go_down_the_columns_from_the_end_of_the_last_run():
    expected = np.zeros((3, 2), bool)
    expected[1, 0] = expected[2, 0] = expected[1, 1] = True
    assert np.array_equal(decode_runs("1 2 1 1", (2, 3)), expected)


def test_runs_without_a_gap_are_one():
    assert decode_runs("0 2 0 3 0 1", (2, 3)).all()


@pytest.mark.parametrize("text", ["", "1", "1 2 3", "1 0", "-1 2", "1 x", "1.5 2"])
def test_run_lengths_that_are_no_pairs_are_refused(text):
    with pytest.raises(TaskError, match="run lengths must be"):
        decode_runs(text, (4, 4))


def test_run_lengths_beyond_the_image_are_refused():
    assert decode_runs("15 1", (4, 4))[3, 3]
    with pytest.raises(TaskError, match="reach pixel 17 of an image of 4 x 4 = 16"):
        decode_runs("15 2", (4, 4))


SPANS = st.tuples(st.integers(0, 11), st.integers(0, 11)).map(sorted)


@given(st.lists(st.tuples(SPANS, SPANS), max_size=3))
def test_rectangles_are_filled_pixel_for_pixel_edges_inside(boxes):
    expected = np.zeros((14, 12), bool)
    for (x0, x1), (y0, y1) in boxes:
        expected[y0 : y1 + 1, x0 : x1 + 1] = True
    outlines = [[[x0, y0], [x1, y0], [x1, y1], [x0, y1]] for (x0, x1), (y0, y1) in boxes]
    assert np.array_equal(fill_outlines(outlines, (12, 14)), expected)


@settings(max_examples=50)
@given(st.floats(3, 8), st.floats(3, 8), st.floats(20, 30), st.floats(20, 30))
def test_a_round_outline_covers_what_it_goes_round(a, b, x, y):
    angle = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    inside = fill_outlines([np.stack([x + a * np.cos(angle), y + b * np.sin(angle)], axis=1)], (50, 50))
    rows, columns = np.mgrid[:50, :50] + 0.5  # centres of pixels
    distance = np.hypot((columns - x) / a, (rows - y) / b)
    margin = 1.5 / min(a, b)  # a pixel and a half: corners are moved to the pixels they lie in
    assert inside[distance < 1 - margin].all()
    assert not inside[distance > 1 + margin].any()


def test_coordinates_belong_to_the_pixel_they_lie_in():
    assert np.argwhere(fill_outlines([[[2.9, 1.1]]], (5, 4))).tolist() == [[1, 2]]
    assert np.argwhere(fill_outlines([[[1, 3.99], [3.2, 3]]], (5, 4))).tolist() == [[3, 1], [3, 2], [3, 3]]


def test_outlines_a_little_outside_are_cut_off_and_far_outside_refused():
    assert fill_outlines([[[-1, -1], [20, -1], [20, 20], [-1, 20]]], (20, 20)).all()
    with pytest.raises(TaskError, match=r"beyond the image of 20 x 20 pixels: was the image resized\?"):
        fill_outlines([[[1, 1], [30, 1], [30, 5]]], (20, 20))
    with pytest.raises(TaskError, match=r"reaches from \[1.0, -9.0\] to"):
        fill_outlines([[[1, 1], [5, -9], [5, 5]]], (20, 20))


@pytest.mark.parametrize("outline", [[], [1, 2], [[1, 2, 3]], [[float("nan"), 1], [2, 2]]])
def test_outlines_that_are_no_points_are_refused(outline):
    with pytest.raises(TaskError, match="list of points"):
        fill_outlines([outline], (5, 5))


@given(MASKS)
def test_a_mask_cell_holds_the_mask_in_one_bit_a_pixel(inside):
    image = PIL.Image.open(io.BytesIO(mask_cell(inside)["bytes"]))
    assert image.mode == "1"
    assert np.array_equal(np.asarray(image), inside)


@pytest.mark.parametrize("suffix", ["png", "gif", "tif"])
def test_masks_are_read_from_files_and_repeated_to_the_images_size(tmp_path, suffix):
    inside = pixels(0) > 128
    path = tmp_path / f"mask.{suffix}"
    save_mask(path, inside)
    assert np.array_equal(read_mask(str(path), (8, 6)), inside)
    doubled = read_mask(str(path), (16, 12))
    assert np.array_equal(doubled[::2, ::2], inside)
    assert doubled.sum() == 4 * inside.sum()


def test_a_mask_of_ones_or_in_colour_is_inside_above_0(tmp_path):
    inside = pixels(0) > 128
    save(tmp_path / "ones.png", inside.astype(np.uint8))
    save(tmp_path / "red.png", np.stack([inside * 255, inside * 0, inside * 0], axis=-1).astype(np.uint8))
    for name in ("ones", "red"):
        assert np.array_equal(read_mask(str(tmp_path / f"{name}.png"), (8, 6)), inside)


@pytest.mark.parametrize("size", [(6, 8), (4, 3), (12, 9), (16, 6)])
def test_masks_of_another_shape_are_refused(tmp_path, size):
    save_mask(tmp_path / "mask.png", pixels(0) > 128)
    with pytest.raises(TaskError, match=rf"mask .*mask.png has 8 x 6 pixels, its image {size[0]} x {size[1]}"):
        read_mask(str(tmp_path / "mask.png"), size)


def test_masks_that_fill_the_edge_of_every_image_are_warned_of(caplog):
    structure = np.zeros((8, 8), bool)
    structure[2:5, 3:6] = True
    wide = structure.copy()
    wide[:, :6] = True
    named = [{"heart": ~structure, "lung": structure, "bed": wide}, {"heart": ~structure, "bed": structure}]
    warn_if_inverted([*named, {"heart": np.zeros((8, 8), bool)}], "scans")
    assert "scans: the masks of heart are bright along the edge" in caplog.text
    caplog.clear()
    warn_if_inverted([{"lung": structure}], "scans")
    assert not caplog.text
