import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from eden_hf.anatomy import (
    Box,
    child_indices,
    finest_level,
    grid_shape,
    overlap,
    parent_index,
    part_boxes,
    part_position,
)

GOLDEN = Path(__file__).parent / "golden"

levels = st.integers(0, 9)
sides = st.integers(1, 300)


@st.composite
def divisions(draw):
    """A size and a level that its pixels allow."""
    width, height = draw(sides), draw(sides)
    return width, height, draw(st.integers(0, min(9, finest_level(width, height))))


@st.composite
def parts(draw, highest=12):
    """A level and one of its parts."""
    level = draw(st.integers(0, highest))
    return level, draw(st.integers(0, 2**level - 1))


@given(divisions())
def test_boxes_cover_every_pixel_exactly_once(division):
    width, height, level = division
    hits = np.zeros((height, width), dtype=int)
    for x0, y0, x1, y1 in part_boxes(width, height, level):
        hits[y0:y1, x0:x1] += 1
    assert (hits == 1).all()


@given(divisions())
def test_boxes_are_many_whole_and_nearly_equal(division):
    boxes = part_boxes(*division)
    assert len(boxes) == 2 ** division[2]
    assert all(box.area == box.width * box.height > 0 for box in boxes)
    for side in ("width", "height"):
        extents = {getattr(box, side) for box in boxes}
        assert max(extents) - min(extents) <= 1


@given(divisions())
def test_boxes_of_a_level_are_disjoint_by_overlap(division):
    width, height, level = division
    boxes = part_boxes(width, height, min(level, 5))
    assert all(overlap(a, b) == (a.area if a is b else 0) for a in boxes for b in boxes)


@given(divisions())
def test_parts_are_nested_in_their_parents_which_they_fill(division):
    width, height, level = division
    assume(level > 0)
    parents = part_boxes(width, height, level - 1)
    filled = [0] * len(parents)
    for index, box in enumerate(part_boxes(width, height, level)):
        parent = parent_index(level, index)
        assert overlap(box, parents[parent]) == box.area
        filled[parent] += box.area
    assert filled == [parent.area for parent in parents]


@given(divisions())
def test_boxes_are_numbered_row_by_row(division):
    width, height, level = division
    rows, columns = grid_shape(level)
    boxes = part_boxes(width, height, level)
    assert boxes == sorted(boxes, key=lambda box: (box.y0, box.x0))
    assert [part_position(level, index) for index in range(len(boxes))] == [
        (row, column) for row in range(rows) for column in range(columns)
    ]


@given(parts())
def test_children_are_the_inverse_of_parent(part):
    level, index = part
    children = child_indices(level, index)
    assert children[0] < children[1]
    assert [parent_index(level + 1, child) for child in children] == [index, index]
    if level > 0:
        assert index in child_indices(level - 1, parent_index(level, index))


@given(levels)
def test_every_part_has_one_parent(level):
    children = [child for index in range(2**level) for child in child_indices(level, index)]
    assert sorted(children) == list(range(2 ** (level + 1)))


def test_the_whole_image_has_no_parent():
    assert parent_index(0, 0) is None


def test_levels_are_split_along_x_first():
    assert [grid_shape(level) for level in range(6)] == [(1, 1), (1, 2), (2, 2), (2, 4), (4, 4), (4, 8)]
    assert part_boxes(8, 4, 1) == [(0, 0, 4, 4), (4, 0, 8, 4)]
    assert part_boxes(8, 4, 3)[:4] == [(0, 0, 2, 2), (2, 0, 4, 2), (4, 0, 6, 2), (6, 0, 8, 2)]


@given(st.integers(1, 60), st.integers(1, 60))
def test_edges_stand_at_the_floor_of_their_share(width, height):
    level = finest_level(width, height)
    rows, columns = grid_shape(level)
    for index, box in enumerate(part_boxes(width, height, level)):
        row, column = part_position(level, index)
        assert box.x0 == int(Fraction(column * width, columns))
        assert box.y1 == int(Fraction((row + 1) * height, rows))


@pytest.mark.parametrize("file", ["boxes.json", "golden_boxes.json"])
def test_boxes_equal_the_published_ones_where_the_size_divides(file):
    """Where it does not, the published boxes leave a strip of the image out; ours tile it."""
    golden = json.loads((GOLDEN / file).read_text())
    compared = 0
    for name, boxes in golden.items():
        if name == "order":
            continue
        size, level = name.split(" n=")
        width, height = map(int, size.split("x"))
        rows, columns = grid_shape(int(level))
        if width % columns == 0 and height % rows == 0:
            assert [list(box) for box in part_boxes(width, height, int(level))] == boxes
            compared += 1
    assert compared >= 2


@given(st.integers(1, 2000), st.integers(1, 2000))
def test_finest_level_is_the_finest_that_works(width, height):
    finest = finest_level(width, height)
    rows, columns = grid_shape(finest)
    assert rows <= height
    assert columns <= width
    rows, columns = grid_shape(finest + 1)
    assert rows > height or columns > width


@given(sides, sides, st.integers(1, 10**9))
def test_too_fine_a_level_is_an_error_that_says_the_finest(width, height, beyond):
    finest = finest_level(width, height)
    with pytest.raises(ValueError, match=rf"{width} x {height} pixels .*the finest possible level is {finest}$"):
        part_boxes(width, height, finest + beyond)


def test_numpy_integers_are_integers():
    boxes = part_boxes(np.int64(64), np.int32(48), np.int64(3))
    assert boxes == part_boxes(64, 48, 3)
    assert grid_shape(np.uint8(5)) == (4, 8)
    assert parent_index(np.int64(3), np.int64(6)) == parent_index(3, 6)
    assert child_indices(np.uint8(4), np.uint8(15)) == child_indices(4, 15)
    assert grid_shape(np.uint8(40)) == (2**20, 2**20)
    assert all(type(number) is int for box in boxes for number in box)


@pytest.mark.parametrize("level", [True, False, 1.0, 2.5, -1, "2", None, np.float32(2), np.bool_(True)])
def test_what_is_no_level_is_refused(level):
    with pytest.raises(ValueError, match="level must be an integer >= 0"):
        part_boxes(64, 64, level)


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (-3, 5), (64.0, 64), (64, "64"), (True, 64)])
def test_what_is_no_size_is_refused(size):
    with pytest.raises(ValueError, match=r"(width|height) must be an integer >= 1"):
        part_boxes(*size, 0)


@pytest.mark.parametrize("index", [4, 100])
@pytest.mark.parametrize("function", [part_position, parent_index, child_indices])
def test_a_part_that_the_level_does_not_have_is_refused(function, index):
    with pytest.raises(ValueError, match="level 2 has parts 0 to 3"):
        function(2, index)


@pytest.mark.parametrize("index", [-1, True, 1.0, "1", None])
def test_an_index_that_is_no_integer_is_refused(index):
    with pytest.raises(ValueError, match="index must be an integer"):
        part_position(2, index)


def test_overlap_of_boxes():
    assert overlap(Box(0, 0, 4, 4), Box(2, 1, 6, 3)) == 4
    assert overlap(Box(0, 0, 4, 4), Box(4, 0, 8, 4)) == 0
    assert overlap(Box(0, 0, 4, 4), Box(6, 6, 8, 8)) == 0
