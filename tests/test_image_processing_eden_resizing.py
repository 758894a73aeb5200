import tracemalloc

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eden_hf import EdenImageProcessor
from eden_hf.image_processing_eden_resizing import resized

SIDES = st.integers(1, 90)
DTYPES = st.sampled_from([np.uint8, np.float32])


@given(SIDES, SIDES, SIDES, SIDES, st.sampled_from(list(PIL.Image.Resampling)), DTYPES, st.integers(0, 2**32 - 1))
def test_every_filter_and_size_is_pils_on_floats(height, width, to_height, to_width, resample, dtype, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width)).astype(dtype)
    made = resized(pixels[None], {"height": to_height, "width": to_width}, resample)[0]
    expected = PIL.Image.fromarray(pixels.astype(np.float32)).resize((to_width, to_height), resample)
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, np.asarray(expected), atol=255 * 1e-6)


@pytest.mark.parametrize("shape", [(700, 500), (500, 700, 3)])
@pytest.mark.parametrize("settings", [{}, {"intensity": "per_image", "aspect_ratio": "pad"}, {"rescale_factor": 0.01}])
def test_8_bits_equal_the_floats_they_stand_for(shape, settings):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    processor = EdenImageProcessor(size={"height": 64, "width": 48}, **settings)
    as_8_bits, as_floats = (processor(image)["pixel_values"][0] for image in (pixels, pixels / 255))
    np.testing.assert_allclose(as_8_bits, as_floats, atol=1e-5)


def test_a_large_8_bit_image_is_never_held_in_floats():
    image = PIL.Image.fromarray(np.zeros((2000, 1500), np.uint8))
    processor = EdenImageProcessor()
    processor(image)  # the filter is made once
    tracemalloc.start()
    processor(image)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2000 * 1500 * 4
