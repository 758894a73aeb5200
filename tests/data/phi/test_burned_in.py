"""Text in pixels is found where it lies; what says how an image was taken is not a patient's."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from eden_hf.data.phantoms import draw_phantom
from eden_hf.data.phi import burned_in
from eden_hf.data.phi.burned_in import find_text, is_marker


def phantom(side: int, *texts: tuple[str, int, int]) -> Image.Image:
    """A chest phantom with texts at (x, y), in letters of 14 pixels."""
    image = Image.fromarray(np.asarray(draw_phantom(1, 256).image)).convert("L").resize((side, side))
    for text, x, y in texts:
        ImageDraw.Draw(image).text((x, y), text, fill=255, font=ImageFont.load_default(14))
    return image


def test_text_is_found_with_its_place_and_markers_are_not():
    (found,) = find_text(phantom(256, ("DOE^JANE 1956", 4, 4), ("R", 10, 120), ("PORTABLE AP", 140, 238)))
    assert "DOE" in found.text
    assert "1956" in found.text
    left, top, right, bottom = found.box
    assert left < 12
    assert top < 12
    assert 90 < right < 140
    assert 16 < bottom < 32
    assert find_text(phantom(256, ("L", 230, 8))) == []


def test_small_text_at_the_edge_of_a_large_image_is_found_in_place(monkeypatch):
    monkeypatch.setattr(burned_in, "WHOLE", 200)  # as if 720 were 3,700 and more, and 14 pixels 70
    assert find_text(phantom(720, ("MRN 4471203", 300, 300))) == []  # in the middle: too small for the whole image
    (found,) = find_text(phantom(720, ("MRN 4471203", 610, 698)))
    assert "4471203" in found.text
    assert found.box[0] == pytest.approx(610, abs=8)
    assert found.box[1] == pytest.approx(700, abs=8)


def test_colours_and_images_too_small_for_letters():
    assert find_text(Image.new("RGB", (23, 400), "white")) == []
    assert [text.text for text in find_text(phantom(200, ("Anna Nowak", 4, 4)).convert("RGB"))] == ["Anna Nowak"]


@pytest.mark.parametrize(
    "text", ["", "L", "R1", "(R)", "PORTABLE", "PORTABLEAP", "ap supine", "PA - ERECT", "L 2", "DCHA."]
)
def test_markers(text):
    assert is_marker(text)


@pytest.mark.parametrize("text", ["DOE", "12.05.48", "L DOE", "R 123", "AP 05/07/21", "ÄÖÜ", "北京医院"])
def test_what_is_no_marker(text):
    assert not is_marker(text)
