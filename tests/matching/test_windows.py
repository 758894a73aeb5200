from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from eden_hf import EdenConfig, EdenImageProcessor, EdenModel
from eden_hf.data.phantoms import draw_phantom
from eden_hf.encoders import Encoder, embed
from eden_hf.matching.windows import _dilated, correspond, dense_embeddings, dilated_embeddings, point_embeddings
from tests.tiny import BACKBONES


@pytest.fixture(scope="module")
def phantom():
    return Image.fromarray(draw_phantom(4, 128).image)


def test_a_shifted_copy_gives_shifted_points(encoder, phantom):
    here, shifted = phantom.crop((16, 16, 112, 96)), phantom.crop((24, 12, 120, 92))
    dense = dense_embeddings(encoder, here, window=24, stride=4)
    points = dense.points[4:-4, 5:-5:3].flatten(0, 1)  # their windows lie inside both pictures
    matches, similarities = correspond(encoder, here, points, shifted, window=24, stride=4)
    assert torch.equal(matches, points - torch.tensor([8.0, -4.0]))
    assert torch.allclose(similarities, torch.ones(len(points)), atol=1e-5)


def test_the_grid_stands_in_the_middle_of_the_image(encoder, phantom):
    dense = dense_embeddings(encoder, phantom.crop((0, 0, 39, 20)), window=16, stride=9)
    assert dense.vectors.shape == (2, 4, 20)
    assert torch.allclose(dense.vectors.norm(dim=2), torch.ones(2, 4))
    assert dense.points[0, :, 0].tolist() == [5.5, 14.5, 23.5, 32.5]  # the same from both ends of 0 .. 38
    assert dense.points[:, 0, 1].tolist() == [5, 14]


@pytest.mark.parametrize(("window", "box"), [(15, (33, 43, 48, 58)), (16, (32, 42, 48, 58))])
def test_a_window_is_centred_on_its_point(encoder, phantom, window, box):
    point = torch.tensor([[40.0, 50.0]]) if window % 2 else torch.tensor([[39.5, 49.5]])
    around = point_embeddings(encoder, phantom, point, window=window)
    assert torch.allclose(around, embed(encoder, [phantom.crop(box)]), atol=1e-6)


def test_windows_reach_over_the_edge_with_the_pixels_of_the_edge(encoder):
    pixels = np.zeros((20, 20), dtype=np.uint8)
    pixels[:, 0] = 200  # all that a window left of the image can see
    corner = point_embeddings(encoder, Image.fromarray(pixels), torch.tensor([[-0.5, 0.0]]), window=8)
    expected = np.zeros((8, 8), dtype=np.uint8)
    expected[:, :5] = 200
    assert torch.allclose(corner, embed(encoder, [Image.fromarray(expected)]), atol=1e-6)


def test_colour_images_and_windows_larger_than_the_image_work(encoder, phantom):
    colour = phantom.crop((0, 0, 30, 20)).convert("RGB")
    assert point_embeddings(encoder, colour, torch.tensor([[29.0, 19.0]]), window=50).shape == (1, 20)


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"window": 0, "stride": 4}, "window must be .* got 0"), ({"window": 8, "stride": 31}, "1 and 30, .* got 31")],
)
def test_impossible_windows_and_strides_are_refused(encoder, phantom, settings, named):
    with pytest.raises(ValueError, match=named):
        dense_embeddings(encoder, phantom.crop((0, 0, 30, 40)), **settings)


def test_points_outside_the_image_are_refused(encoder, phantom):
    points = torch.tensor([[5.0, 5.0], [128.0, 3.0]])
    with pytest.raises(ValueError, match=r"point \[128.0, 3.0\] lies outside the image of size \(128, 128\)"):
        point_embeddings(encoder, phantom, points, window=8)


# the dilated form


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_a_dilated_trunk_gives_what_its_own_strides_give(model, stride):
    encoder = Encoder(model, lambda images, return_tensors: {"pixel_values": torch.zeros(1, 3, 64, 64)})
    dilated, taps = _dilated(encoder, 64, stride)
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        dense, strided = (m(pixel_values=image).last_hidden_state for m in (dilated, model))
    assert dense.shape[-1] == 64 // stride
    assert torch.allclose(dense[..., :: taps.step, :: taps.step], strided, atol=1e-4)
    assert taps.step == 32 // stride


def test_dilated_embeddings_stand_on_the_grid_of_the_windows(model, phantom):
    encoder = Encoder(model, EdenImageProcessor(size={"height": 32, "width": 32}))
    for image in (phantom, phantom.crop((0, 0, 50, 40))):
        dense = dense_embeddings(encoder, image, window=16, stride=4)
        dilated = next(dilated_embeddings(encoder, [image], window=16, stride=4))
        assert torch.equal(dilated.points, dense.points)
        assert dilated.vectors.shape == dense.vectors.shape
        assert torch.allclose(dilated.vectors.norm(dim=-1), torch.ones(dense.vectors.shape[:2]), atol=1e-5)


def test_where_the_trunk_does_not_look_beyond_the_window_both_forms_are_equal(phantom):
    """One convolution that strides by its own size: no pixel outside a window reaches it."""

    class Patches(torch.nn.Module):
        device, dtype = torch.device("cpu"), torch.float32
        config = SimpleNamespace(model_type="patches")

        def __init__(self):
            super().__init__()
            self.first, self.second = torch.nn.Conv2d(3, 6, 4, stride=4), torch.nn.Conv2d(6, 12, 2, stride=2)

        def forward(self, pixel_values):
            features = self.second(self.first(pixel_values).relu())
            return SimpleNamespace(last_hidden_state=features, pooler_output=features.mean(dim=(2, 3)))

    torch.manual_seed(0)
    encoder = Encoder(Patches(), EdenImageProcessor(size={"height": 32, "width": 32}))
    dense = dense_embeddings(encoder, phantom, window=32, stride=4)
    dilated = next(dilated_embeddings(encoder, [phantom], window=32, stride=4))
    assert torch.allclose(dilated.vectors, dense.vectors, atol=1e-4)


def test_steps_that_no_dilation_gives_and_trunks_without_strides_are_refused(model, phantom):
    processor = EdenImageProcessor(size={"height": 32, "width": 32})
    with pytest.raises(ValueError, match=r"window / 32 times one of \[1, 2, 4, 8, 16, 32\]"):
        next(dilated_embeddings(Encoder(model, processor), [phantom], window=32, stride=3))
    vit = EdenModel(EdenConfig(backbone_config=BACKBONES["vit"]))
    with pytest.raises(ValueError, match="'vit'"):
        next(dilated_embeddings(Encoder(vit, processor), [phantom], window=32, stride=8))


def test_a_grid_gives_the_embedding_nearest_to_a_point(encoder, phantom):
    dense = dense_embeddings(encoder, phantom, window=16, stride=8)
    assert torch.equal(dense.at(dense.points[2, 3][None] + 3), dense.vectors[2, 3][None])
