"""`eden match` and the grid of points it starts from."""

import numpy as np
import pytest
from PIL import Image

from eden_hf.cli import match
from eden_hf.data.errors import SourceError
from eden_hf.data.phantoms import draw_phantom
from eden_hf.matching.pairs import body_points, match_images


@pytest.fixture
def files(tmp_path):
    """A phantom, and itself twice as large."""
    image = Image.fromarray(draw_phantom(3, 128).image)
    image.save(tmp_path / "a.png")
    image.resize((256, 256)).save(tmp_path / "b.png")
    return str(tmp_path / "a.png"), str(tmp_path / "b.png")


def test_points_of_one_image_are_found_in_the_other(files, dense_folder, tmp_path):
    output = tmp_path / "new" / "match.png"
    found = match_images(dense_folder, files, ["40,30", "90.5,60.25"], str(output))
    for (x, y), point in zip([(40, 30), (90.5, 60.25)], found.values(), strict=True):
        assert (point.x, point.y) == (pytest.approx(2 * x + 0.5, abs=8), pytest.approx(2 * y + 0.5, abs=8))
        assert point.found
    with Image.open(output) as picture:
        assert min(picture.size) > 500


def test_the_command_prints_each_point(files, dense_folder, tmp_path, capsys):
    match([*files, "--model", dense_folder, "--points", "40,30", "--output", str(tmp_path / "m.png")])
    assert capsys.readouterr().out.startswith("1: ")


@pytest.mark.parametrize(
    ("point", "message"),
    [("40;30", "given as x,y"), ("40", "given as x,y"), ("128,3", "128,3 lies off .* 128 x 128"), ("nan,3", "off")],
)
def test_points_that_are_none_are_refused(files, dense_folder, tmp_path, point, message):
    with pytest.raises(SourceError, match=message):
        match_images(dense_folder, files, [point], str(tmp_path / "m.png"))


@pytest.mark.parametrize("around", [0, 255])
def test_the_grid_lies_in_the_body(around):
    body = np.full((200, 100), around, np.uint8)
    body[100:] = np.random.default_rng(0).integers(60, 200, (100, 100))
    points = body_points(Image.fromarray(body))
    assert len(points) == 6  # the lower two of four rows
    assert all(y >= 99 for _, y in points.values())
    assert len(body_points(Image.new("L", (50, 50)))) == 12
