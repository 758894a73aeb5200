"""The matcher on an encoder that knows places, where every answer is known."""

import gc

import numpy as np
import pytest
import torch
from PIL import Image

from eden_hf import EdenImageProcessor, EdenModel
from eden_hf.data.phantoms import draw_phantom
from eden_hf.encoders import Encoder
from eden_hf.matching import AnatomyMatcher, MatcherArguments, Reference, embed_image
from tests.tiny import tiny_config


@pytest.fixture(scope="module")
def dense_encoder():
    """A tiny random model: of one and the same image it finds every point."""
    torch.manual_seed(0)
    model = EdenModel(tiny_config(dense_dim=16)).eval()
    return Encoder(model, EdenImageProcessor(size={"height": 64, "width": 64}, intensity="per_image"))


@pytest.fixture(scope="module")
def phantom():
    return Image.fromarray(draw_phantom(3, 128).image)


POINTS = {"a": (40.0, 30.0), "b": (90.5, 60.25), "c": (64.0, 100.0)}


def test_points_are_found_in_the_same_image(dense_encoder, phantom):
    found = AnatomyMatcher(dense_encoder, [Reference(phantom, points=POINTS)]).find(phantom)
    assert list(found) == list(POINTS)
    for name, point in found.items():
        assert np.hypot(point.x - POINTS[name][0], point.y - POINTS[name][1]) < 4
        assert point.found
        assert 0 <= point.confidence <= 1


def test_coordinates_are_the_targets_own(dense_encoder, phantom):
    wide = phantom.resize((256, 128))
    found = AnatomyMatcher(dense_encoder, [Reference(phantom, points=POINTS)]).find(wide)
    for name, (x, y) in POINTS.items():
        assert found[name].x == pytest.approx(2 * x + 0.5, abs=8)
        assert found[name].y == pytest.approx(y, abs=4)


def test_references_may_have_different_points(dense_encoder, phantom):
    first, second = Reference(phantom, points={"a": POINTS["a"]}), Reference(phantom, points={"b": POINTS["b"]})
    assert list(AnatomyMatcher(dense_encoder, [first, second]).find(phantom)) == ["a", "b"]


def test_images_embedded_once_give_the_same(dense_encoder, phantom):
    """Both as a reference and as a target; and no image is held that the caller has let go."""
    reference, other = Reference(phantom, points=POINTS), Image.fromarray(draw_phantom(4, 128).image)
    embedded, target = (embed_image(dense_encoder, image) for image in (phantom, other))
    matcher = AnatomyMatcher(dense_encoder, [reference], embedded=[embedded])
    found = matcher.find(target)
    assert found == matcher.find(target) == AnatomyMatcher(dense_encoder, [reference]).find(other)
    matcher._smooth_map(target, embedded)
    assert len(embedded.smooth_maps) == 1
    del target
    gc.collect()
    assert len(embedded.smooth_maps) == 0


def test_masks_are_carried_over(dense_encoder, phantom):
    mask = np.zeros((128, 128), bool)
    mask[30:90, 20:60] = True
    carried = AnatomyMatcher(dense_encoder, [Reference(phantom, masks={"lung": mask})]).carry_masks(phantom)["lung"]
    assert carried.shape == (128, 128)
    assert (carried & mask).sum() / (carried | mask).sum() > 0.85


def test_the_window_method_works_with_any_encoder(encoder, phantom):
    nodes = {"a": (41.5, 29.5), "b": (89.5, 61.5)}  # of the grid of windows, 4 pixels apart
    matcher = AnatomyMatcher(encoder, [Reference(phantom, points=nodes)], MatcherArguments(method="window"))
    for name, point in matcher.find(phantom).items():
        assert point[:2] == pytest.approx(nodes[name])


def test_what_is_not_annotated_is_refused(dense_encoder, phantom):
    with pytest.raises(ValueError, match="no references"):
        AnatomyMatcher(dense_encoder, [])
    with pytest.raises(ValueError, match=r"'x': point 'a' at \(128, 3\) lies off"):
        Reference(phantom, "x", points={"a": (128.0, 3.0)})
    with pytest.raises(ValueError, match=r"mask 'm' has shape \(3, 4\)"):
        Reference(phantom, "x", masks={"m": np.zeros((3, 4), bool)})
    with pytest.raises(ValueError, match="neither points nor masks"):
        Reference(phantom, "x")


def test_similarities_cover_the_picture_without_what_it_was_padded_with(phantom):
    torch.manual_seed(0)
    model = EdenModel(tiny_config(dense_dim=16)).eval()
    processor = EdenImageProcessor(size={"height": 64, "width": 64}, intensity="per_image", aspect_ratio="pad")
    wide = phantom.crop((0, 32, 128, 96))
    matcher = AnatomyMatcher(Encoder(model, processor), [Reference(wide, points={"a": (90.0, 20.0)})])
    similarity = matcher.similarity(wide)["a"]
    height, width = similarity.shape
    assert abs(width - 2 * height) <= 2  # whole nodes
    row, column = np.unravel_index(similarity.argmax(), similarity.shape)
    assert ((column + 0.5) / width, (row + 0.5) / height) == pytest.approx((90.5 / 128, 20.5 / 64), abs=0.06)
