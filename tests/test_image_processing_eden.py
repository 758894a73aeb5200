"""The processor: every container of the same picture gives the same tensor, and nothing is silently wrong."""

import ast
import json
import math
import sys
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from hypothesis import given
from hypothesis import strategies as st
from transformers import pipeline
from transformers.models.auto import image_processing_auto
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # 5.17 hides it without torchvision

import eden_hf.image_processing_eden
from eden_hf import EdenForSemanticSegmentation, EdenImageProcessor, EdenModel

from .tiny import tiny_config

RNG = np.random.default_rng(0)
GREY = np.linspace(20, 230, 40 * 56).reshape(40, 56).round().astype(np.uint8)
GREY[5:20, 10:30] = RNG.integers(0, 256, (15, 20))
GREY[0, 0], GREY[0, 1] = 0, 255  # so that the image's own range is that of its type
COLOUR = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], axis=-1)
SIZE = {"height": 24, "width": 32}


def tensor(array, dtype=None):
    return torch.from_numpy(np.ascontiguousarray(array)).to(dtype)


GREY_CONTAINERS = {
    "PIL L": PIL.Image.fromarray(GREY),
    "PIL RGB": PIL.Image.fromarray(GREY).convert("RGB"),
    "PIL RGBA": PIL.Image.fromarray(GREY).convert("RGBA"),
    "PIL LA": PIL.Image.fromarray(GREY).convert("LA"),
    "PIL P": PIL.Image.fromarray(GREY).convert("P"),
    "PIL I;16": PIL.Image.fromarray(GREY.astype(np.uint16) * 257),
    "PIL I;16B": PIL.Image.fromarray(GREY.astype(np.uint16) * 257).convert("I").convert("I;16B"),
    "PIL I": PIL.Image.fromarray(GREY.astype(np.int32) * 1000 - 70000),
    "PIL F": PIL.Image.fromarray(GREY.astype(np.float32) / 255),
    "uint8 HW": GREY,
    "uint8 HW1": GREY[..., None],
    "uint8 HW3": np.stack([GREY] * 3, -1),
    "uint8 1HW": GREY[None],
    "uint8 3HW": np.stack([GREY] * 3),
    "uint8 4HW": np.stack([GREY, GREY, GREY, np.full_like(GREY, 255)]),
    "uint8 Fortran order": np.asfortranarray(GREY),
    "uint16": GREY.astype(np.uint16) * 16,
    "big-endian uint16": GREY.astype(">u2"),
    "int16": GREY.astype(np.int16) * 100 - 12000,
    "int32 RGB": np.stack([GREY] * 3, -1).astype(np.int32) - 5,
    "uint32": GREY.astype(np.uint32) * 2**24,
    "int64": GREY.astype(np.int64),
    "float32": GREY.astype(np.float32) / 255,
    "float64 HW1": GREY[..., None] / 255,
    "tensor uint8": tensor(GREY),
    "tensor uint8 CHW": tensor(GREY[None]),
    "tensor uint8 HWC": tensor(np.stack([GREY] * 3, -1)),
    "tensor int16": tensor(GREY, torch.int16),
    "tensor uint16": tensor(GREY.astype(np.uint16)),
    "tensor float64": tensor(GREY / 255),
    "tensor that requires grad": tensor(GREY / 255).requires_grad_(),
    "tensor, not contiguous": tensor(GREY.T.copy()).T,
}
COLOUR_CONTAINERS = {
    "PIL RGB": PIL.Image.fromarray(COLOUR),
    "PIL RGBA": PIL.Image.fromarray(COLOUR).convert("RGBA"),
    "uint8 HWC": COLOUR,
    "uint8 CHW": np.moveaxis(COLOUR, -1, 0),
    "uint8 HW4": np.concatenate([COLOUR, np.full_like(COLOUR[..., :1], 255)], -1),
    "uint16": COLOUR.astype(np.uint16) * 257,
    "float HWC": COLOUR / 255,
    "tensor CHW": tensor(np.moveaxis(COLOUR, -1, 0)),
    "tensor float HWC": tensor(COLOUR / 255),
}


def processor(**settings) -> EdenImageProcessor:
    return EdenImageProcessor(**{"size": SIZE, **settings})


def process(images, **settings) -> np.ndarray:
    """`pixel_values` [B, 3, H, W]."""
    return processor()(images, return_tensors="np", **settings)["pixel_values"]


def intensities(images, **settings) -> np.ndarray:
    """`pixel_values` before normalisation."""
    return process(images, do_normalize=False, **settings)


def plain(image) -> np.ndarray:
    """One image [H, W] or [H, W, C] of intensities, neither resized nor normalised, as [3, H, W]."""
    return intensities(image, do_resize=False)[0]


@pytest.mark.parametrize("intensity", ["fixed", "per_image"])
@pytest.mark.parametrize("aspect_ratio", ["resize", "pad"])
@pytest.mark.parametrize("containers", [GREY_CONTAINERS, COLOUR_CONTAINERS], ids=["grey", "colour"])
def test_equal_content_gives_equal_output_in_any_container(containers, aspect_ratio, intensity):
    settings = {"aspect_ratio": aspect_ratio, "intensity": intensity}
    expected = process(next(iter(containers.values())), **settings)
    assert expected.shape == (1, 3, 24, 32)
    for name, image in containers.items():
        np.testing.assert_allclose(process(image, **settings), expected, atol=4e-6, err_msg=name)
    batch = process(list(containers.values()), **settings)
    np.testing.assert_allclose(batch, np.repeat(expected, len(containers), 0), atol=4e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_floats(dtype):
    rounded = tensor(GREY / 255, dtype)
    np.testing.assert_array_equal(process(rounded), process(rounded.float()))
    np.testing.assert_allclose(intensities(rounded), intensities(GREY), atol=4e-3)


@pytest.mark.parametrize("image", [GREY, COLOUR], ids=["grey", "colour"])
def test_equals_torch_antialiased_interpolation_and_imagenet_normalisation(image):
    planes = torch.from_numpy(np.moveaxis(np.atleast_3d(image), -1, 0) / 255)[None]
    resized = torch.nn.functional.interpolate(planes, (24, 32), mode="bilinear", antialias=True)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (resized - mean[:, None, None]) / std[:, None, None]
    np.testing.assert_allclose(process(image), expected, atol=1e-5)


def test_batches_and_nesting():
    batch = np.stack([COLOUR, COLOUR[::-1], 255 - COLOUR])
    expected = np.concatenate([process(image) for image in batch])
    channels_first = np.ascontiguousarray(np.moveaxis(batch, -1, 1))
    for images in (
        batch, channels_first, torch.from_numpy(batch), torch.from_numpy(channels_first), list(batch), tuple(batch),
        [[batch[0], batch[1]], [batch[2]]], [batch[:2], batch[2]], (image for image in batch),
        [PIL.Image.fromarray(batch[0]), batch[1], torch.from_numpy(channels_first)[2]],
    ):  # fmt: skip
        np.testing.assert_array_equal(process(images), expected)
    np.testing.assert_array_equal(process(GREY[None, None])[0], process(GREY)[0])


def test_a_column_of_a_data_set():
    pictures = [PIL.Image.fromarray(COLOUR), PIL.Image.fromarray(GREY)]
    features = datasets.Features({"image": datasets.Image()})
    data = datasets.Dataset.from_dict({"image": pictures}, features=features)
    for images in (data["image"], data[:]["image"]):
        np.testing.assert_array_equal(process(images), process(pictures))


def test_return_types():
    as_torch = processor()([GREY, COLOUR], return_tensors="pt").pixel_values
    assert as_torch.shape == (2, 3, 24, 32)
    assert as_torch.dtype == torch.float32
    assert as_torch.is_contiguous()
    as_list = processor()([GREY, COLOUR]).pixel_values
    assert [values.dtype for values in as_list] == [np.float32] * 2
    np.testing.assert_array_equal(np.stack(as_list), as_torch)
    np.testing.assert_array_equal(process([GREY, COLOUR]), as_torch)
    assert processor().preprocess(GREY, return_tensors="pt").pixel_values.shape == (1, 3, 24, 32)
    assert EdenImageProcessor()(GREY, return_tensors="pt").pixel_values.shape == (1, 3, 224, 224)


# Depth


@pytest.mark.parametrize("image", [
    np.arange(4096, dtype=np.uint16).reshape(64, 64),
    PIL.Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64) * 16),
    PIL.Image.fromarray(np.arange(4096, dtype=np.int32).reshape(64, 64) - 1024),
    torch.arange(4096).reshape(64, 64),
])  # fmt: skip
def test_wide_integers_keep_their_depth(image):
    expected = np.arange(4096).reshape(64, 64) / 4095
    np.testing.assert_allclose(plain(image)[0], expected, atol=1e-6)
    resized = intensities(image, size={"height": 48, "width": 48})[0, 0]
    assert len(np.unique(resized)) > 2000
    planes = torch.from_numpy(expected)[None, None]
    reference = torch.nn.functional.interpolate(planes, (48, 48), mode="bilinear", antialias=True)[0, 0]
    np.testing.assert_allclose(resized, reference, atol=1e-5)


@given(
    st.sampled_from([np.int8, np.uint16, np.int16, np.uint32, np.int32, np.int64, np.uint64]),
    st.lists(st.integers(-(2**63), 2**64 - 1), min_size=4, max_size=4),
)
def test_any_wide_integer_spans_the_full_range(dtype, values):
    limits = np.iinfo(dtype)
    pixels = np.array([min(max(value, limits.min), limits.max) for value in values], dtype).reshape(2, 2)
    shown = plain(pixels)
    low, high = int(pixels.min()), int(pixels.max())
    expected = [[(int(value) - low) / max(high - low, 1) for value in row] for row in pixels]
    np.testing.assert_allclose(shown[0], expected, atol=1e-6)


@pytest.mark.parametrize("value", [0, 1, 40000, 65535])
@pytest.mark.parametrize("intensity", ["fixed", "per_image"])
def test_a_constant_wide_image_is_black(value, intensity):
    image = np.full((30, 20), value, np.uint16)
    assert (intensities(image) == 0).all()
    assert np.isfinite(process(image, intensity=intensity)).all()
    np.testing.assert_array_equal(process(image, intensity=intensity), process(image * 0, intensity=intensity))


def test_booleans_and_bilevel_images_are_black_and_white():
    mask = GREY > 100
    for image in (mask, PIL.Image.fromarray(mask), torch.from_numpy(mask)):
        np.testing.assert_array_equal(plain(image)[0], mask)


def test_8_bit_images_are_not_stretched():
    image = np.array([[10, 20], [30, 40]], np.uint8)
    np.testing.assert_allclose(plain(image)[0], image / 255, rtol=1e-6)


@pytest.mark.parametrize(("image", "found"), [
    (GREY.astype(np.float32), "0 to 255 and 0 not finite"),
    (GREY / 255 * 2 - 1, "-1 to 1 and 0"),
    (np.array([[0.2, np.nan]]), "0.2 to 0.2 and 1 not finite"),
    (np.array([[0.2, np.inf]]), "0.2 to 0.2 and 1 not finite"),
    (np.array([[-np.inf, np.nan]]), "no number and 2 not finite"),
    (np.array([[0.5, 1.001]]), "0.5 to 1.001"),
    (torch.tensor([[-0.25, 1.0]], dtype=torch.bfloat16), "-0.25 to 1 and"),
    (PIL.Image.fromarray(GREY.astype(np.float32)), "0 to 255"),
])  # fmt: skip
def test_floats_outside_0_to_1_are_refused_with_their_range_and_the_mend(image, found):
    for settings in ({}, {"do_rescale": False}, {"intensity": "per_image"}):
        with pytest.raises(ValueError, match="scale them first") as error:
            process(image, **settings)
        assert found in str(error.value)


def test_rounding_does_not_count_as_outside():
    image = np.array([[-1e-7, 0.5], [0.25, np.nextafter(np.float32(1), 2)]], np.float32)
    shown = plain(image)
    assert shown.min() == 0
    assert shown.max() == 1


# Alpha and palettes


def test_alpha_is_the_picture_where_all_is_black():
    alpha = np.linspace(0, 255, GREY.size).reshape(GREY.shape).astype(np.uint8)
    black = np.zeros_like(alpha)
    for picture in (
        PIL.Image.fromarray(np.dstack([black, black, black, alpha])),
        PIL.Image.merge("LA", [PIL.Image.fromarray(black), PIL.Image.fromarray(alpha)]),
    ):
        np.testing.assert_allclose(plain(picture)[1], alpha / 255, atol=1e-6)
    opaque = PIL.Image.fromarray(np.dstack([black, black, black, np.full_like(alpha, 255)]))
    assert not plain(opaque).any()


def test_alpha_is_blended_over_black():
    alpha = np.linspace(0, 255, GREY.size).reshape(GREY.shape).astype(np.uint8)
    rgba = np.dstack([COLOUR, alpha])
    expected = np.moveaxis(COLOUR / 255 * (alpha / 255)[..., None], -1, 0)
    for image in (rgba, PIL.Image.fromarray(rgba), torch.from_numpy(rgba), rgba / 255, np.moveaxis(rgba, -1, 0)):
        np.testing.assert_allclose(plain(image), expected, atol=1e-6)
    grey = PIL.Image.merge("LA", [PIL.Image.fromarray(GREY), PIL.Image.fromarray(alpha)])
    np.testing.assert_allclose(plain(grey)[1], GREY / 255 * (alpha / 255), atol=1e-6)
    with pytest.raises(ValueError, match="4 channels of uint16: drop it"):
        process(rgba.astype(np.uint16))


def test_palettes_and_transparent_colours_are_looked_up():
    palette = PIL.Image.fromarray(np.array([[0, 1], [2, 2]], np.uint8)).convert("P")
    palette.putpalette([255, 0, 0, 0, 255, 0, 10, 20, 30])
    expected = np.array([[[255, 0, 0], [0, 255, 0]], [[10, 20, 30], [10, 20, 30]]])
    np.testing.assert_allclose(plain(palette), np.moveaxis(expected / 255, -1, 0), atol=1e-6)
    palette.info["transparency"] = 1
    expected[0, 1] = 0
    np.testing.assert_allclose(plain(palette), np.moveaxis(expected / 255, -1, 0), atol=1e-6)
    keyed = PIL.Image.fromarray(np.array([[200, 100]], np.uint8))
    keyed.info["transparency"] = 200
    np.testing.assert_allclose(plain(keyed)[0], [[0, 100 / 255]], atol=1e-6)


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "LAB", "RGBX"])
def test_other_modes_go_through_rgb(mode):
    if mode == "LAB":
        image = PIL.Image.new("LAB", (4, 4), (128, 0, 0))
    else:
        image = PIL.Image.fromarray(COLOUR).convert(mode)
    np.testing.assert_array_equal(plain(image), plain(image.convert("RGB")))


# Shapes


@pytest.mark.parametrize("shape", [(8, 20, 20), (2, 9, 9), (9, 9, 2), (5,), (), (1, 1, 1, 4, 4), (0, 4), (3, 0, 4)])
def test_shapes_that_are_no_image_are_refused(shape):
    for image in (np.zeros(shape, np.uint8), torch.zeros(shape)):
        with pytest.raises(ValueError, match=r"\[H, W\], \[H, W, C\] or \[C, H, W\] with C = 1, 3 or 4, got"):
            process(image)


@pytest.mark.parametrize("shape", [(3, 20, 3), (1, 9, 3), (4, 4, 4), (1, 1, 1), (3, 1, 1)])
def test_ambiguous_shapes_need_input_data_format(shape):
    image = RNG.integers(0, 256, shape, dtype=np.uint8)
    with pytest.raises(ValueError, match="input_data_format"):
        process(image)
    if 4 not in shape:
        first = intensities(image, input_data_format="channels_first", do_resize=False)
        np.testing.assert_allclose(first[0], np.broadcast_to(image / 255, (3, *shape[1:])), rtol=1e-6)
        last = intensities(image, input_data_format="channels_last", do_resize=False)
        np.testing.assert_allclose(last[0, :, :, -1], np.broadcast_to(image[:, -1].T / 255, (3, shape[0])), rtol=1e-6)


def test_input_data_format_that_contradicts_the_shape_is_refused():
    with pytest.raises(ValueError, match=r"got \[40, 56, 3\] and `input_data_format` 'channels_first'"):
        process(COLOUR, input_data_format="channels_first")


@pytest.mark.parametrize(("images", "found"), [
    ("a.png", "str 'a.png'"), (None, "NoneType"), (3, "int"), ({"bytes": b"", "path": "x"}, "dict"), (b"raw", "bytes"),
    ([[1, 2], [3, 4]], "int '1'"),
])  # fmt: skip
def test_what_is_no_image_is_refused(images, found):
    with pytest.raises(ValueError, match="images are PIL images, numpy arrays, torch tensors") as error:
        process(images)
    assert found in str(error.value)


def test_errors_name_the_image_of_a_batch():
    with pytest.raises(ValueError, match="image 2: float pixels"):
        process([GREY, COLOUR, GREY * 1.0])
    with pytest.raises(ValueError, match="complex"):
        process(GREY.astype(complex))
    for nothing in ([], [[]], np.zeros((0, 3, 4, 4))):
        with pytest.raises(ValueError, match="no images"):
            process(nothing)


@pytest.mark.parametrize("aspect_ratio", ["resize", "pad"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1), (2, 777), (24, 32), (100, 100)])
def test_any_size(shape, aspect_ratio):
    for dtype in (np.uint8, np.uint16):
        image = RNG.integers(0, 200, shape).astype(dtype)
        for intensity in ("fixed", "per_image"):
            values = process(image, aspect_ratio=aspect_ratio, intensity=intensity)
            assert values.shape == (1, 3, 24, 32)
            assert np.isfinite(values).all()


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 40), st.integers(1, 40))
def test_pad_keeps_proportions_and_centres_on_black(height, width, out_height, out_width):
    image = np.full((height, width), 255, np.uint8)
    size = {"height": out_height, "width": out_width}
    shown = intensities(image, aspect_ratio="pad", size=size)[0, 0]
    assert shown.shape == (out_height, out_width)
    rows, columns = np.flatnonzero(shown.any(1)), np.flatnonzero(shown.any(0))
    inside = shown[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    np.testing.assert_allclose(inside, 1, atol=1e-6)  # a full rectangle, the rest 0
    scale = min(out_height / height, out_width / width)
    assert abs(inside.shape[0] - max(1, height * scale)) <= 0.5
    assert abs(inside.shape[1] - max(1, width * scale)) <= 0.5
    assert out_height in inside.shape or out_width in inside.shape
    assert abs(rows[0] - (out_height - 1 - rows[-1])) <= 1
    assert abs(columns[0] - (out_width - 1 - columns[-1])) <= 1


# Intensity policies


@pytest.mark.parametrize("image", [GREY, COLOUR, GREY.astype(np.uint16) * 9], ids=["grey", "colour", "16 bits"])
def test_per_image_standardises_over_pixels_and_channels(image):
    values = process(image, intensity="per_image")
    assert abs(values.mean()) < 1e-5
    assert abs(values.std() - 1) < 1e-5


def test_per_image_leaves_padding_out_of_the_statistics():
    square = RNG.integers(50, 200, (30, 30), dtype=np.uint8)
    alone = process(square, intensity="per_image", size={"height": 20, "width": 20})
    padded = process(square, intensity="per_image", aspect_ratio="pad", size={"height": 20, "width": 60})
    np.testing.assert_allclose(padded[..., 20:40], alone, atol=1e-6)
    shown = intensities(square, size={"height": 20, "width": 20})
    np.testing.assert_allclose(
        padded[..., :20], -shown.mean() / shown.std(), rtol=1e-4
    )  # black, as the rest is scaled


def test_per_image_ignores_brightness_and_contrast_and_fixed_does_not():
    image = np.linspace(0, 1, 900).reshape(30, 30) ** 2
    changed = 0.3 + 0.5 * image
    per_image = {"intensity": "per_image"}
    np.testing.assert_allclose(process(changed, **per_image), process(image, **per_image), atol=1e-4)
    assert np.abs(process(changed) - process(image)).max() > 0.5


@pytest.mark.parametrize("image", [
    np.full((30, 50), 77, np.uint8), np.full((30, 50), 0.3, np.float32), np.zeros((30, 50), np.uint8),
    np.full((30, 50, 3), 0.1), np.ones((1, 1), bool), PIL.Image.new("RGB", (9, 5), (40, 40, 40)),
])  # fmt: skip
@pytest.mark.parametrize("aspect_ratio", ["resize", "pad"])
def test_per_image_makes_a_constant_image_zero(image, aspect_ratio):
    assert (process(image, intensity="per_image", aspect_ratio=aspect_ratio) == 0).all()


@given(st.floats(0, 1, width=32), st.integers(1, 40), st.integers(1, 40), st.booleans())
def test_per_image_makes_any_constant_zero(value, height, width, do_resize):
    image = np.full((height, width), value, np.float32)
    assert (process(image, intensity="per_image", do_resize=do_resize) == 0).all()


def test_per_image_does_not_blow_up_rounding():
    image = np.where(GREY > 100, np.float32(0.7), np.nextafter(np.float32(0.7), np.float32(1)))
    assert np.abs(process(image, intensity="per_image")).max() < 1e-6
    one_step = np.full((300, 300), 100, np.uint8)
    one_step[7, 9] = 101
    assert process(one_step, intensity="per_image", do_resize=False).max() > 100


# Settings for one call


def test_settings_of_one_call_leave_the_processor_as_it_is():
    eden = processor()
    before = eden.to_dict()
    assert eden(GREY, size=16, return_tensors="pt").pixel_values.shape == (1, 3, 16, 16)
    assert eden(GREY, size={"height": 8, "width": 9}, return_tensors="pt").pixel_values.shape == (1, 3, 8, 9)
    assert eden(GREY, do_resize=False, return_tensors="pt").pixel_values.shape == (1, 3, *GREY.shape)
    eden(GREY, aspect_ratio="pad", intensity="per_image", image_mean=0.1, resample=0)
    assert eden.to_dict() == before
    with pytest.raises(TypeError, match="unknown_setting"):
        eden(GREY, unknown_setting=1)


def test_normalisation_settings():
    shown = plain(GREY)
    half = process(GREY, do_resize=False, image_mean=0.5, image_std=0.25)[0]
    np.testing.assert_allclose(half, (shown - 0.5) / 0.25, atol=1e-6)
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    each = process(GREY, do_resize=False, image_mean=mean, image_std=std)[0]
    np.testing.assert_allclose(each, (shown - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1)), atol=1e-6)


def test_without_rescaling_integers_keep_their_values_and_floats_are_the_same():
    raw = {"do_rescale": False, "do_normalize": False, "do_resize": False}
    np.testing.assert_array_equal(process(GREY, **raw)[0, 0], GREY)
    wide = GREY.astype(np.uint16) * 200
    for image in (wide, PIL.Image.fromarray(wide)):
        np.testing.assert_array_equal(process(image, **raw)[0, 0], wide)
    np.testing.assert_array_equal(process(GREY / 255, do_rescale=False), process(GREY / 255))
    np.testing.assert_allclose(process(GREY, do_rescale=False, intensity="per_image"),
                               process(GREY, intensity="per_image"), atol=1e-5)  # fmt: skip
    on_255 = process(GREY, do_rescale=False, image_mean=[127.5] * 3, image_std=[51.0] * 3)
    np.testing.assert_allclose(on_255, process(GREY, image_mean=[0.5] * 3, image_std=[0.2] * 3), atol=1e-5)
    with pytest.raises(ValueError, match=r"leaves uint8 values as they are, but `image_mean` .* is for \[0, 1\]"):
        process(GREY, do_rescale=False)


def test_rescale_factor_is_one_8_bit_step_of_any_container():
    for image in (GREY, GREY.astype(np.uint16) * 257, GREY / 255):
        shown = intensities(image, rescale_factor=2 / 255, do_resize=False)[0, 0]
        np.testing.assert_allclose(shown, GREY / 255 * 2, atol=1e-6)


def test_images_of_different_sizes_stack_only_when_resized():
    pictures = [GREY, GREY[:20]]
    assert process(pictures).shape == (2, 3, 24, 32)
    with pytest.raises(ValueError, match=r"\(20, 56\), \(40, 56\).* keep `do_resize`"):
        process(pictures, do_resize=False)
    assert [values.shape for values in processor()(pictures, do_resize=False).pixel_values] == [
        (3, 40, 56),
        (3, 20, 56),
    ]


def test_filters():
    assert not np.array_equal(process(GREY, resample=0), process(GREY, resample=2))
    nearest = intensities(GREY, resample=PIL.Image.Resampling.NEAREST)
    assert np.isin((nearest * 255).round(), GREY).all()


# Settings that are saved


NONSENSE = [
    ({"aspect_ratio": "crop"}, "`aspect_ratio` must be one of 'resize', 'pad', got 'crop'"),
    ({"intensity": "auto"}, "`intensity` must be one of 'fixed', 'per_image', got 'auto'"),
    ({"size": {"shortest_edge": 8}}, "got {'shortest_edge': 8}"),
    ({"size": {"height": 0, "width": 3}}, "got {'height': 0, 'width': 3}"),
    ({"size": -4}, "got {'height': -4, 'width': -4}"),
    ({"size": {"height": 2.5, "width": 3}}, "2.5"),
    ({"resample": 99}, "99"),
    ({"image_mean": [0.5, 0.5]}, "(0.5, 0.5)"),
    ({"image_mean": math.nan}, "nan"),
    ({"image_std": 0.0}, "`image_std` must be a finite number above 0"),
    ({"image_std": [0.2, 0.2, -1.0]}, "-1.0"),
    ({"image_std": "a"}, "'a'"),
    ({"rescale_factor": 0.0}, "0.0"),
    ({"rescale_factor": [0.1, 0.1, 0.1]}, "[0.1, 0.1, 0.1]"),
    ({"do_resize": "yes"}, "'yes'"),
    ({"do_normalize": 1}, "1"),
    ({"do_center_crop": True, "crop_size": 4}, "`do_center_crop` is no step of EdenImageProcessor"),
    ({"do_pad": True, "pad_size": 4}, "`do_pad` is no step of EdenImageProcessor"),
    ({"data_format": "channels_last"}, "'channels_last'"),
    ({"do_convert_rgb": False}, "`do_convert_rgb` False"),
]


@pytest.mark.parametrize(("settings", "message"), NONSENSE, ids=lambda value: str(value)[:40])
def test_nonsense_settings_are_refused_at_construction_and_at_a_call(settings, message):
    with pytest.raises(ValueError, match=r"must|no step|always|be specified") as error:
        EdenImageProcessor(**settings)
    assert message in str(error.value)
    with pytest.raises((ValueError, StrictDataclassFieldValidationError)):  # transformers checks types itself
        processor()(GREY, **settings)


SETTINGS = {
    "size": {"height": 20, "width": 30}, "aspect_ratio": "pad", "intensity": "per_image", "resample": 3,
    "do_resize": False, "do_rescale": False, "rescale_factor": 0.5, "do_normalize": False,
    "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6],
}  # fmt: skip


@pytest.mark.parametrize("settings", [{}, *({name: value} for name, value in SETTINGS.items()), SETTINGS], ids=str)
def test_every_setting_survives_json(settings, tmp_path):
    saved = EdenImageProcessor(**settings)
    saved.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert SETTINGS.keys() <= written.keys()
    assert {name: written[name] for name in settings} == settings
    for loader in (EdenImageProcessor, AutoImageProcessor):
        loaded = loader.from_pretrained(tmp_path)
        assert type(loaded) is EdenImageProcessor
        assert json.loads(loaded.to_json_string()) == written
    assert EdenImageProcessor.from_dict(saved.to_dict()).to_json_string() == saved.to_json_string()


def test_settings_can_be_changed_while_loading(tmp_path):
    processor().save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path, size={"height": 5, "width": 6}, intensity="per_image")
    assert loaded(GREY, return_tensors="pt").pixel_values.shape == (1, 3, 5, 6)
    assert loaded.intensity == "per_image"
    with pytest.raises(ValueError, match="'crop'"):
        AutoImageProcessor.from_pretrained(tmp_path, aspect_ratio="crop")


def test_pipeline(tmp_path):
    torch.manual_seed(0)
    model = EdenModel(tiny_config()).eval()
    model.save_pretrained(tmp_path)
    processor(intensity="per_image").save_pretrained(tmp_path)
    extract = pipeline("image-feature-extraction", model=str(tmp_path), device="cpu")
    pictures = [PIL.Image.fromarray(GREY), PIL.Image.fromarray(COLOUR)]
    features = extract(pictures, pool=True, return_tensors=True)
    with torch.no_grad():
        expected = model(**processor(intensity="per_image")(pictures, return_tensors="pt")).pooler_output
    torch.testing.assert_close(torch.cat(features), expected)


def test_travels_alone():
    """What goes to the Hub imports nothing that may be missing there, and torchvision nowhere."""
    for file in Path(eden_hf.image_processing_eden.__file__).parent.glob("image_processing_eden*.py"):
        nodes = ast.walk(ast.parse(file.read_text()))
        imports = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
        assert all(node.col_offset == 0 for node in imports)
        names = [
            name.name if isinstance(node, ast.Import) else "." * node.level + node.module
            for node in imports
            for name in node.names
        ]
        packages = {name.partition(".")[0] for name in names if not name.startswith(".image_processing_eden_")}
        assert packages - sys.stdlib_module_names <= {"numpy", "PIL", "torch", "transformers"}, file.name


def test_auto_class_finds_it_where_torchvision_is_there(tmp_path, monkeypatch):
    processor().save_pretrained(tmp_path)
    monkeypatch.setattr(image_processing_auto, "is_torchvision_available", lambda: True)
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is EdenImageProcessor


@pytest.mark.real_data
def test_real_images(shared_data):
    cells = {}
    for name in ("scr/test-00000-of-00001", "cxr-pretrain/test-00000-of-00001", "chase/test-00000-of-00001"):
        data = datasets.Dataset.from_parquet(str(shared_data / f"{name}.parquet"), keep_in_memory=True)
        cells[name] = data.select(range(4))["image"]
    for images in cells.values():
        for settings in ({}, {"aspect_ratio": "pad", "intensity": "per_image"}):
            batch = process(images, **settings)
            assert batch.shape == (4, 3, 24, 32)
            assert all(values.std() > 0.3 for values in batch)
            one_by_one = np.concatenate([process(np.asarray(image), **settings) for image in images])
            np.testing.assert_allclose(batch, one_by_one, atol=1e-6)


# segmentation maps and post-processing


def segmented(logits):
    from transformers.modeling_outputs import SemanticSegmenterOutput

    return SemanticSegmenterOutput(logits=logits)


@pytest.mark.parametrize("aspect_ratio", ["resize", "pad"])
def test_segmentation_maps_follow_their_image(aspect_ratio):
    """A mask equal to the image's bright part stays so."""
    pixels = np.zeros((60, 100), np.uint8)
    pixels[10:40, 20:90] = 255
    masks = np.stack([pixels > 0, pixels == 0])
    processor = EdenImageProcessor(size={"height": 64, "width": 48}, aspect_ratio=aspect_ratio, do_normalize=False)
    encoded = processor(PIL.Image.fromarray(pixels), segmentation_maps=[masks], return_tensors="pt")
    assert encoded["labels"].shape == (1, 2, 64, 48)
    assert encoded["labels"].dtype == torch.float32
    agree = (encoded["pixel_values"][0, 0] > 0.5) == (encoded["labels"][0, 0] > 0.5)
    assert agree.float().mean() > 0.98
    total = encoded["labels"][0].sum(dim=0)  # each pixel of the image lies in one of the two, beyond it in neither
    inside = (total - 1).abs() < 1e-6
    assert inside.float().mean() == pytest.approx(1 if aspect_ratio == "resize" else 29 / 64, abs=0.01)


@given(side=st.integers(20, 60), start=st.integers(4, 20), thickness=st.integers(6, 12))
def test_masks_keep_their_place_and_their_area_at_any_size(side, start, thickness):
    """The nearest pixel's value moved them by up to half a pixel, on a thin structure much of its Dice."""
    mask = np.zeros((1, 40, 40), np.float32)
    mask[0, start : start + thickness] = 1
    processor = EdenImageProcessor(size={"height": side, "width": side})
    labels = processor(PIL.Image.new("L", (40, 40)), segmentation_maps=[mask])["labels"][0]
    before, after = (
        np.average((np.arange(m.shape[1]) + 0.5) / m.shape[1], weights=m.sum(axis=(0, 2))) for m in (mask, labels)
    )  # its middle, as a share of the side
    assert after == pytest.approx(before, abs=0.1 / side)
    assert labels.mean() == pytest.approx(mask.mean(), abs=0.2 / side)


def test_classes_beyond_the_image_are_ignored():
    processor = EdenImageProcessor(size={"height": 40, "width": 40}, aspect_ratio="pad")
    classes = np.ones((20, 40), np.int32)
    labels = processor(PIL.Image.new("L", (40, 20)), segmentation_maps=[classes], return_tensors="pt")["labels"]
    assert labels.dtype == torch.int64
    assert (labels[0, 10:30] == 1).all()
    assert (labels[0, :10] == 255).all()
    assert (labels[0, 30:] == 255).all()


def test_maps_of_another_size_or_number_are_refused():
    processor, image = EdenImageProcessor(), PIL.Image.new("L", (40, 20))
    with pytest.raises(ValueError, match=r"segmentation map 0 .*\(20, 40\).*\[40, 20\]"):
        processor(image, segmentation_maps=[np.zeros((40, 20))])
    with pytest.raises(ValueError, match="1 images and 2 maps"):
        processor(image, segmentation_maps=[np.zeros((20, 40))] * 2)


def test_one_image_may_come_with_its_map_alone():
    processor, image = EdenImageProcessor(size={"height": 8, "width": 8}), PIL.Image.new("L", (40, 20))
    mask = np.zeros((20, 40), bool)
    mask[:10] = True
    picture = PIL.Image.fromarray(mask)
    for maps in (mask, picture, torch.from_numpy(mask), [mask], [picture]):
        (labels,) = processor(image, segmentation_maps=maps)["labels"]
        assert (labels[:4] > 0.5).all()
        assert (labels[4:] < 0.5).all()
    for maps in (np.stack([mask, ~mask]), [[picture, PIL.Image.fromarray(~mask)]]):
        (labels,) = processor(image, segmentation_maps=maps)["labels"]
        assert labels.shape == (2, 8, 8)
        np.testing.assert_allclose(labels[0], 1 - labels[1], atol=1e-6)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.full((2, 20, 40), 255, np.uint8), r"0 outside and 1 inside, got 255 to 255 .*mask > 0"),
        (np.full((1, 20, 40), np.nan), "0 outside and 1 inside"),
        (np.full((20, 40), 0.5), "integers, got float64 in segmentation map 0"),
    ],
)
def test_maps_of_other_values_are_refused(pixels, message):
    with pytest.raises(ValueError, match=message):
        EdenImageProcessor()(PIL.Image.new("L", (40, 20)), segmentation_maps=[pixels])


@pytest.mark.parametrize("aspect_ratio", ["resize", "pad"])
def test_post_processing_undoes_resizing_and_padding(aspect_ratio):
    processor = EdenImageProcessor(size={"height": 64, "width": 64}, aspect_ratio=aspect_ratio)
    masks = np.zeros((2, 50, 100), bool)
    masks[0, 10:40, 20:80], masks[1, 25:, :50] = True, True
    labels = processor(PIL.Image.new("L", (100, 50)), segmentation_maps=[masks], return_tensors="pt")["labels"]
    result = processor.post_process_instance_segmentation(segmented(20 * labels - 10), target_sizes=[(50, 100)])[0]
    found = result["segmentation"].masks.numpy()
    assert found.shape == masks.shape
    assert (found == masks).mean() > 0.97
    assert (found[0] & found[1]).any()  # they overlap, and both are whole
    assert [info["label_id"] for info in result["segments_info"]] == [0, 1]
    assert all(info["score"] > 0.9 for info in result["segments_info"])


def test_exclusive_classes_come_as_one_map_or_as_masks_that_share_no_pixel():
    processor = EdenImageProcessor(segmentation_type="exclusive")
    logits = torch.randn(1, 3, 8, 8)
    classes = processor.post_process_semantic_segmentation(segmented(logits), target_sizes=[(16, 16)])[0]
    result = processor.post_process_instance_segmentation(segmented(logits), target_sizes=[(16, 16)])[0]
    assert classes.shape == (16, 16)
    assert torch.equal(torch.stack([classes == i for i in range(3)]), result["segmentation"].masks)
    assert torch.equal(processor.post_process_semantic_segmentation(segmented(logits))[0], logits[0].argmax(dim=0))


def test_each_image_needs_its_target_size():
    with pytest.raises(ValueError, match="2 images"):
        EdenImageProcessor().post_process_semantic_segmentation(segmented(torch.zeros(2, 1, 4, 4)), [(4, 4)])


def test_pixels_outside_every_overlapping_structure_are_background():
    logits = torch.full((1, 2, 4, 4), -9.0)
    logits[0, 0, 0], logits[0, 1, 0, :2], logits[0, 1, 1] = 2.0, 3.0, 0.5
    processor = EdenImageProcessor()
    found = processor.post_process_semantic_segmentation(segmented(logits))[0]
    assert found.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [-1] * 4, [-1] * 4]
    strict = processor.post_process_semantic_segmentation(segmented(logits), threshold=0.8, background=255)[0]
    assert strict.tolist() == [[1, 1, 0, 0], *[[255] * 4] * 3]
    exclusive = EdenImageProcessor(segmentation_type="exclusive").post_process_semantic_segmentation(segmented(logits))
    assert exclusive[0].min() == 0


@pytest.mark.parametrize("ignored", [255, -100])
def test_padding_has_the_label_that_the_model_ignores(ignored):
    image, classes = PIL.Image.new("L", (40, 20)), np.ones((20, 40), np.uint8)
    size = {"height": 32, "width": 32}
    processor = EdenImageProcessor(size=size, aspect_ratio="pad", semantic_loss_ignore_index=ignored)
    encoded = processor(image, segmentation_maps=[classes], return_tensors="pt")
    assert encoded["labels"].unique().tolist() == sorted([1, ignored])
    config = tiny_config(
        segmentation_type="exclusive", semantic_loss_ignore_index=ignored, num_labels=2, decoder_hidden_size=4
    )
    model = EdenForSemanticSegmentation(config).eval()
    assert model(encoded["pixel_values"], labels=encoded["labels"]).loss.isfinite()
    told = EdenImageProcessor(size=size, aspect_ratio="pad")(
        image, segmentation_maps=[classes], semantic_loss_ignore_index=7, return_tensors="pt"
    )
    assert told["labels"].unique().tolist() == [1, 7]
