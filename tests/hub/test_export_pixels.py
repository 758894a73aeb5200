"""The image processor as a part of an exported model gives what the processor gives."""

import pytest
import torch
from torch.testing import assert_close

from eden_hf.hub.export_pixels import PixelPreprocessing, preprocessed
from eden_hf.image_processing_eden import EdenImageProcessor

SIZE = {"height": 48, "width": 64}
SETTINGS = {
    "fixed": {},
    "per_image": {"intensity": "per_image"},
    "other numbers": {"image_mean": 0.3, "image_std": 0.2, "rescale_factor": 1 / 100},
    "not normalised": {"do_normalize": False},
    "not rescaled": {"do_rescale": False, "intensity": "per_image"},
    "not resized": {"do_resize": False},
}


def noise(*shape):
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(0)).float()


@pytest.mark.parametrize("resize", [True, False])
@pytest.mark.parametrize("settings", SETTINGS)
def test_equals_the_processor(settings, resize):
    processor = EdenImageProcessor(size=SIZE, **SETTINGS[settings])
    for height, width in [(31, 200), (48, 64), (7, 5), (150, 90)]:
        pixels = noise(2, 3, height, width)
        found = PixelPreprocessing(processor, resize)(pixels)
        assert_close(found, preprocessed(processor, resize)(pixels), rtol=1e-5, atol=1e-5)
        resized = resize and settings != "not resized"
        assert found.shape[2:] == ((48, 64) if resized else (height, width))


@pytest.mark.parametrize("value", [0, 77, 255])
def test_an_image_of_one_value_becomes_0(value):
    processor = EdenImageProcessor(size=SIZE, intensity="per_image")
    found = PixelPreprocessing(processor, resize=True)(torch.full((1, 3, 200, 301), float(value)))
    assert_close(found, torch.zeros(1, 3, 48, 64))


def test_one_pixel_in_a_large_image_counts():
    processor = EdenImageProcessor(intensity="per_image")
    pixels = torch.full((1, 3, 500, 800), 77.0)
    pixels[0, :, 250, 400] = 78
    found = PixelPreprocessing(processor, resize=False)(pixels)
    assert_close(found, preprocessed(processor, resize=False)(pixels), rtol=1e-3, atol=1e-3)
    assert found.max() > 100


def test_what_is_not_exported():
    with pytest.raises(ValueError, match="'pad' is not exported: export 'normalize', and resize"):
        PixelPreprocessing(EdenImageProcessor(aspect_ratio="pad"), resize=True)
    with pytest.raises(ValueError, match="by the bilinear filter alone, not by 3"):
        PixelPreprocessing(EdenImageProcessor(resample=3), resize=True)
    PixelPreprocessing(EdenImageProcessor(aspect_ratio="pad", resample=3), resize=False)
