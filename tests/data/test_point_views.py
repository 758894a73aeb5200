import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from eden_hf.data.phantoms import draw_phantom
from eden_hf.data.point_views import _smooth_field, make_annotated_copies, make_point_views, plain_views
from eden_hf.data.view_arguments import PointArguments

CLEAN = {
    "gamma": 0.0, "gain": 0.0, "noise": 0.0, "blur_probability": 0.0, "inversion_probability": 0.0,
    "hole_probability": 0.0, "marker_probability": 0.0, "border_probability": 0.0,
}  # fmt: skip


def gradient_images(count=3, side=64):
    """Images whose red and green channels are x and y: what a view shows at a point tells where it lies."""
    axis = torch.arange(side) * 255 / (side - 1)
    image = torch.stack([axis.expand(side, side), axis[:, None].expand(side, side), torch.zeros(side, side)])
    return image.round().to(torch.uint8).expand(count, -1, -1, -1)


def phantoms(count=4, side=64):
    return torch.stack([torch.from_numpy(draw_phantom(seed, side).image)[None] for seed in range(count)])


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**40), epoch=st.integers(0, 10**6))
def test_draws_depend_on_seed_epoch_and_index_alone(seed, epoch):
    images, recipe = phantoms(3), PointArguments(size=32, count=5)
    together = make_point_views(images, torch.tensor([4, 9, 2]), recipe, seed=seed, epoch=epoch)
    alone = make_point_views(images[1:2], torch.tensor([9]), recipe, seed=seed, epoch=epoch)
    for one, many in zip((*alone[:2], *alone[2]), (*together[:2], *together[2]), strict=True):
        assert torch.allclose(one[0], many[1], atol=1e-5, equal_nan=True)


@pytest.mark.parametrize(("nodes", "size"), [(5, 160), (4, 33), (7, 7)])
def test_a_smooth_field_is_bicubic_interpolation(nodes, size):
    values = torch.randn(3, 2, nodes, nodes)
    expected = F.interpolate(values, size=(size, size), mode="bicubic", align_corners=True)
    assert_close(_smooth_field(values, size), expected, rtol=0, atol=1e-5)


def test_places_are_where_the_pixels_come_from():
    recipe = PointArguments(size=64, count=40, **CLEAN)
    images = gradient_images()
    query, _, points = make_point_views(images, torch.arange(3), recipe, seed=3, epoch=1)
    shown = F.grid_sample(query, points.query_points[:, :, None], align_corners=False)[..., 0].mT  # [B, P, 3]
    for image in range(3):
        inside = ((points.query_places[image] - 0.5).abs() < 0.42).all(dim=1)  # beyond the image a view is black
        colour, place = shown[image, inside], points.query_places[image, inside]
        for axis in range(2):  # views are standardised: the relation stays linear
            assert torch.corrcoef(torch.stack([colour[:, axis], place[:, axis]]))[0, 1] > 0.99


def test_nodes_are_the_means_of_their_pixels_and_points_agree_with_them():
    recipe = PointArguments(size=32, count=3)
    _, _, points = make_point_views(phantoms(), torch.arange(4), recipe, seed=0, epoch=0)
    assert points.query_nodes.shape == (4, 64, 2)
    nodes = points.query_nodes.mT.reshape(4, 2, 8, 8)
    between = F.grid_sample(nodes, points.query_points[:, :, None], padding_mode="border", align_corners=False)[
        ..., 0
    ].mT
    known = points.query_places.isfinite().all(dim=2)
    inner = known & (points.query_points.abs() < 0.8).all(dim=2)
    assert (between - points.query_places)[inner].norm(dim=1).max() < 0.02


def test_views_are_standardised_and_of_three_channels():
    query, key, _ = make_point_views(phantoms(), torch.arange(4), PointArguments(size=32), seed=0, epoch=0)
    for view in (query, key, plain_views(phantoms(), 32)):
        assert view.shape == (4, 3, 32, 32)
        assert torch.allclose(view.mean(dim=(1, 2, 3)), torch.zeros(4), atol=1e-4)
        assert torch.allclose(view.std(dim=(1, 2, 3), correction=0), torch.ones(4), atol=1e-3)


def test_inversion_exchanges_black_and_white():
    shown = {}
    for probability in (0.0, 1.0):
        recipe = PointArguments(size=32, **{**CLEAN, "inversion_probability": probability})
        shown[probability] = make_point_views(phantoms(), torch.arange(4), recipe, seed=0, epoch=0)[0]
    assert torch.allclose(shown[0.0], -shown[1.0], atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"size": 30}, "`points.size` must be a multiple of 4, got 30"),
        ({"count": 0}, "`points.count` must be at least 1"),
        ({"scale": (0.0, 1.0)}, "`points.scale`"),
        ({"noise": -0.1}, r"`points.noise` must lie in \[0, inf\], got -0.1"),
        ({"border_probability": 1.5}, r"`points.border_probability` must lie in \[0, 1\]"),
    ],
)
def test_settings_out_of_range_are_refused(settings, named):
    with pytest.raises(ValueError, match=named):
        PointArguments(**settings)


def test_masks_of_copies_follow_their_images():
    inside = torch.zeros(1, 64, 64)
    inside[:, 20:44, 16:40] = 1
    image = (200 * inside + 20).to(torch.uint8)
    copies, masks = make_annotated_copies(image, inside, 5, PointArguments(size=64, **CLEAN), seed=0)
    assert copies.shape == masks.shape == (5, 1, 64, 64)
    assert copies.dtype == torch.uint8
    for copy, mask in zip(copies, masks, strict=True):
        torch.testing.assert_close(copy.float(), (200 * mask + 20), atol=1.5, rtol=0)
        assert ((mask > 0.5) != (inside > 0.5)).float().mean() > 0.02  # it is moved


def test_copies_depend_on_seed_and_number_alone_and_keep_what_is_unknown():
    image = phantoms(1, side=48)[0]
    masks = torch.stack([(image[0] > 100).float(), torch.full((48, 48), torch.nan)])
    copies, warped = make_annotated_copies(image, masks, 3, PointArguments(size=32), seed=4)
    first, _ = make_annotated_copies(image, masks, 1, PointArguments(size=32), seed=4)
    assert torch.allclose(copies[:1].float(), first.float(), atol=1)
    assert warped[:, 1].isnan().all()
    assert warped[:, 0].isfinite().all()
