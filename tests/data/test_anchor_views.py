import json
from pathlib import Path

import numpy as np
import pytest
import torch

from eden_hf.data.anchor_views import AnchorViews, framed_anchors, growing_crops, quarters, square_anchors
from eden_hf.data.view_arguments import AnchorArguments, ViewArguments
from eden_hf.data.views import CROP_TRIES, crop_boxes

from .test_views import PLAIN, noise

NUMBERS = json.loads((Path(__file__).parents[1] / "golden" / "golden_v2.json").read_text())
BOXES = NUMBERS["anchor_and_part_boxes"]
CROPS = {size: rows for size, rows in NUMBERS["centred_crop_boxes"].items() if not size.startswith("row")}


def size_of(name: str) -> tuple[int, int]:
    """Width and height."""
    width, height = name.split()[0].split("x")
    return int(width), int(height)


@pytest.mark.parametrize("name", [name for name in BOXES if isinstance(BOXES[name], dict) and "cases" in BOXES[name]])
def test_anchors_and_parts_are_the_published_ones(name):
    width, height = size_of(name)
    granularity = int(name.split("g=")[1])
    for case in BOXES[name]["cases"]:
        if isinstance(case["draws"], str):
            continue  # drawn by numpy's own generator
        (anchor,) = framed_anchors(
            np.array([case["draws"]]), granularity=granularity, height=height, width=width, margins=(50, 50)
        ).tolist()
        assert anchor == case["anchor"]
        assert [part[0].tolist() for part in quarters(np.array([anchor]))] == case["parts"]


@pytest.mark.parametrize("name", CROPS)
def test_centred_crops_are_the_published_ones(name):
    width, height = size_of(name)
    settings = [((0.8, 1.0), (3 / 4, 4 / 3)), *growing_crops(8)]
    seen = 0
    for crop, draws, box in CROPS[name]:
        if isinstance(draws, str):
            continue  # drawn by torch's own generator
        area, ratio = draws
        uniform = np.array([[area] * CROP_TRIES + [ratio] * CROP_TRIES + [0.0, 0.0]])
        made = crop_boxes(np.array([[0, 0, width, height]]), uniform, *settings[crop], centred=True)
        assert made[0].tolist() == box, (crop, draws)
        seen += 1
    assert seen >= 40


@pytest.mark.parametrize("name", list(NUMBERS["views_L"]["anchor_side"]))
def test_square_anchors_are_of_the_published_side_and_anywhere(name):
    width, height = size_of(name)
    uniform = np.random.default_rng(0).random((2000, 2))
    boxes = square_anchors(uniform, granularity=int(name.split("g=")[1]), height=height, width=width)
    side = NUMBERS["views_L"]["anchor_side"][name]
    assert np.unique(boxes[:, 2:] - boxes[:, :2]).tolist() == [side]
    assert boxes.min() == 0 or side < 200
    assert (boxes[:, :2].max(axis=0) <= [width - side, height - side]).all()
    assert boxes[:, 0].max() - boxes[:, 0].min() >= 0.98 * (width - side)


def make(stage, images, indices=None, granularity=0, anchors=None, epoch=0, **settings):
    views = AnchorViews(
        ViewArguments(**{"size": 32, "crop_scale": (0.8, 1.0), **settings}),
        AnchorArguments(**{"local_size": 16, "local_count": 3, **(anchors or {})}),
    )
    indices = torch.arange(len(images)) if indices is None else indices
    return getattr(views, stage)(images, indices, granularity=granularity, seed=1, epoch=epoch)


SHAPES = {
    "localizing": {"global_pixel_values": (2, 4, 3, 32, 32), "local_pixel_values": (3, 4, 3, 16, 16)},
    "part_whole": {
        "whole_pixel_values": (4, 3, 32, 32), "part_pixel_values": (4, 4, 3, 32, 32),
        "global_pixel_values": (1, 4, 3, 32, 32), "local_pixel_values": (3, 4, 3, 16, 16),
    },
}  # fmt: skip


@pytest.mark.parametrize("stage", SHAPES)
@pytest.mark.parametrize("granularity", [0, 2])
def test_views_are_a_function_of_seed_epoch_and_index(stage, granularity):
    images = noise()
    together = make(stage, images, granularity=granularity)
    assert {name: tuple(view.shape) for name, view in together.items()} == SHAPES[stage]
    apart = make(stage, images[2:3], torch.tensor([2]), granularity=granularity)
    other = make(stage, images, granularity=granularity, epoch=1)
    for name, view in together.items():
        rows = view[2:3] if name == "whole_pixel_values" else view[:, 2:3]
        torch.testing.assert_close(apart[name], rows)
        assert not torch.equal(other[name], view)
        assert view.std() > 0.1


def test_wholes_and_parts_are_those_of_the_image():
    """Without random changes a whole is the image, and its parts are its quarters."""
    images = noise(2)
    plain = {name: value for name, value in PLAIN.items() if not name.startswith(("crop", "blur"))}
    quiet = {"whole_blur": 0.0, "rotation_degrees": 0.0}
    views = make("part_whole", images, anchors=quiet, **{**plain, "size": 64})
    torch.testing.assert_close(views["whole_pixel_values"], images.expand(-1, 3, -1, -1) / 255)
    views = make("part_whole", images, anchors=quiet, **{**plain, "size": 32})
    rows = images[:, :, :32].expand(-1, 3, -1, -1) / 255, images[:, :, 32:].expand(-1, 3, -1, -1) / 255
    expected = [half for row in rows for half in row.chunk(2, dim=3)]
    torch.testing.assert_close(views["part_pixel_values"], torch.stack(expected))


def test_blur_and_rotation_are_those_of_each_kind(monkeypatch):
    """Shares of blurred views as published, in the order of the official views."""
    seen = []

    def record(images, draws, recipe):
        seen.extend((recipe.size, d.blurred.float().mean().item(), d.angle.abs().max().item()) for d in draws)
        return [images] * len(draws)

    monkeypatch.setattr("eden_hf.data.anchor_views.make_views", record)
    images, anchors = noise(8000, height=8, width=8), {"local_size": 96, "local_count": 8}
    make("localizing", images, size=224, anchors=anchors)
    published = NUMBERS["views_L"]["blur_in_order"]
    assert [(view["size"], view["blur_probability"]) for view in published] == [
        (size, pytest.approx(share, abs=0.02)) for size, share, _ in seen
    ]
    assert {round(np.degrees(angle)) for *_, angle in seen} == {30}
    seen.clear()
    make("part_whole", images, size=224, anchors=anchors)
    whole, crop, *locals_and_parts = [
        (v["size"], v["blur_probability"]) for v in NUMBERS["views_LCD"]["blur_in_order"]
    ]
    locals_, parts = locals_and_parts[:8], locals_and_parts[8:]
    assert [crop, whole, *parts, *locals_] == [(size, pytest.approx(share, abs=0.02)) for size, share, _ in seen]
    assert {round(np.degrees(angle)) for *_, angle in seen} == {10}


def test_anchors_that_fill_the_image_but_for_a_pixel_stay_inside():
    boxes = framed_anchors(np.array([[0.0, 0.99]]), granularity=1, height=2, width=3, margins=(0, 0))
    assert boxes.min() >= 0
    assert boxes[0, 2] <= 3


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("local_count", 11), ("local_size", 0), ("local_scale", (0.4, 0.05)), ("global_blur", (1.0, 2.0)),
        ("whole_blur", -0.1), ("rotation_degrees", 200), ("margin", 0.5),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_named(setting, value):
    with pytest.raises(ValueError, match=f"anchors.{setting}"):
        AnchorArguments(**{setting: value})
