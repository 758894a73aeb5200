"""Square pixels keep the edges where they are, and millimetres right."""

import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eden_hf.data.pixel_size import PixelSize, pixel_size, square_size, with_square_pixels

SIDES = st.integers(1, 60)
MILLIMETRES = st.floats(0.05, 1.0)


@given(SIDES, SIDES, MILLIMETRES, MILLIMETRES)
def test_the_picture_covers_what_the_image_covered(width, height, x, y):
    picture = with_square_pixels(PIL.Image.new("L", (width, height)), PixelSize(x, y, "PixelSpacing"))
    spacing = picture.info["pixel_spacing_mm"]
    assert picture.width * spacing[0] == pytest.approx(width * x)
    assert picture.height * spacing[1] == pytest.approx(height * y)
    assert picture.width >= width
    assert picture.height >= height
    assert (picture.width, picture.height) == square_size((width, height), PixelSize(x, y))
    assert picture.info["stored_size"] == (width, height)


@given(SIDES, SIDES, MILLIMETRES, MILLIMETRES)
def test_pixels_become_square_to_within_rounding(width, height, x, y):
    picture = with_square_pixels(PIL.Image.new("L", (width, height)), PixelSize(x, y, "PixelSpacing"))
    across, down = picture.info["pixel_spacing_mm"]
    assert across / down == pytest.approx(1, abs=0.0101 + 0.51 / min(picture.size))


@given(SIDES, SIDES, MILLIMETRES, MILLIMETRES)
def test_turning_comes_before_or_after(width, height, x, y):
    pixel = PixelSize(x, y)
    assert square_size((width, height), pixel) == square_size((height, width), pixel.turned())[::-1]


@pytest.mark.parametrize("sides", [(), (1,), (0, 1), (-1, 1), (float("nan"), 1), (float("inf"), 1), (1, 21), ("a", 1)])
def test_what_no_pixel_is_like(sides, caplog):
    assert pixel_size(sides, "PixelSpacing", described="a.dcm: its PixelSpacing") is None
    assert "a.dcm: its PixelSpacing is passed over" in caplog.text
    assert pixel_size((1, 20), None, described="") == PixelSize(1, 20)
