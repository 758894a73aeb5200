"""Images of any kind as arrays, and their stored values as intensities (remote code, beside `image_processing_eden`).

One rule turns stored values into intensities between black 0 and white 1 (`unit_intensity`), here and in
`eden_hf.data.reading`.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import PIL.ExifTags
import PIL.Image
import torch
from PIL import ImageOps

CHANNELS = (1, 3, 4)
ROUNDING = 1e-6  # by how much arithmetic in float32 may leave [0, 1]


def unit_intensity(pixels: np.ndarray) -> np.ndarray:
    """Stored values as intensities from black 0 to white 1, float32, same shape; see `EdenImageProcessor`.

    Raises:
        ValueError: floats outside [0, 1] or not finite; values that are no numbers.
    """
    if pixels.dtype == np.uint8:
        return pixels.astype(np.float32) / np.float32(255)
    if pixels.dtype.kind == "b":
        return pixels.astype(np.float32)
    if pixels.dtype.kind in "iu":
        return full_range(pixels)
    if pixels.dtype.kind != "f":
        raise ValueError(f"pixels must be integers, floats or booleans, got dtype {pixels.dtype}")
    low, high = pixels.min(), pixels.max()  # NaN if any pixel is
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):
        finite = pixels[np.isfinite(pixels)]
        found = f"{finite.min():.8g} to {finite.max():.8g}" if finite.size else "no number"
        raise ValueError(
            f"float pixels must lie in [0, 1], got {found} and {pixels.size - finite.size} not finite; scale them "
            "first, for instance by (x - x.min()) / (x.max() - x.min()), or give the integers they came from"
        )
    return pixels.astype(np.float32).clip(0, 1)


def full_range(pixels: np.ndarray) -> np.ndarray:
    """Stretch finite values from their minimum 0 to their maximum 1, float32; values all equal become 0."""
    low, high = float(pixels.min()), float(pixels.max())
    if low == high:
        return np.zeros(pixels.shape, np.float32)
    return ((pixels.astype(np.float64) - low) / (high - low)).astype(np.float32)


def upright(image: PIL.Image.Image) -> PIL.Image.Image:
    """`image` turned as its EXIF orientation asks; itself where there is nothing to turn."""
    turned = image.getexif().get(PIL.ExifTags.Base.Orientation, 1) != 1
    return ImageOps.exif_transpose(image) if turned else image


def pil_pixels(image: PIL.Image.Image) -> np.ndarray:
    """Stored values of a PIL image of any mode, upright as its EXIF orientation asks.

    Returns:
        Grey [H, W] in the image's own depth, else 8 bits: grey and alpha [H, W, 2], RGB [H, W, 3], RGBA [H, W, 4].
    """
    image = upright(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return np.asarray(image)
    transparent = image.has_transparency_data
    if image.mode == "L" and not transparent:
        return np.asarray(image)
    if image.mode in ("1", "L", "LA", "La"):
        return np.asarray(image.convert("LA" if transparent else "L"))
    pixels = np.asarray(image.convert("RGBA" if transparent else "RGB"))
    if image.mode in ("P", "PA") and (pixels[..., :3] == pixels[..., :1]).all():
        return pixels[..., [0, 3]] if transparent else pixels[..., 0]
    return pixels


def split_alpha(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray | np.float32]:
    """Colours ([H, W], [H, W, 1] or [H, W, 3]) and alpha in [0, 1] of grey, RGB or either with alpha, channels last.

    A picture that is black everywhere shows what it shows by its alpha, as masks of drawing programs do: it is given
    as white.

    Raises:
        ValueError: alpha is of a type that does not tell what is opaque.
    """
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    if channels in (1, 3):
        return pixels, np.float32(1)
    if pixels.dtype != np.uint8 and pixels.dtype.kind != "f":
        raise ValueError(
            f"alpha must be uint8, or float in [0, 1], got {channels} channels of {pixels.dtype}: drop it"
        )
    colour = pixels[..., 0] if channels == 2 else pixels[..., :3]
    alpha = unit_intensity(pixels[..., 1] if channels == 2 else pixels[..., 3:])
    if not colour.any() and alpha.min() < alpha.max():
        colour = np.full_like(colour, 255 if colour.dtype == np.uint8 else 1)
    return colour, alpha


def flat(images: Any) -> Iterator[Any]:
    """The single images of any nesting of lists and batches."""
    if isinstance(images, PIL.Image.Image):
        yield images
    elif isinstance(images, np.ndarray | torch.Tensor):
        yield from images if images.ndim == 4 else [images]
    elif isinstance(images, Iterable) and not isinstance(images, str | bytes | Mapping):
        for image in images:
            yield from flat(image)
    else:
        raise ValueError(
            f"images are PIL images, numpy arrays, torch tensors or lists of them, got {type(images).__name__} "
            f"{str(images)[:80]!r}; open files first, with PIL.Image.open or eden_hf.data.reading.read_image"
        )


def is_one_image(images: Any) -> bool:
    """Whether `images` is a single one, not a list or a batch."""
    return isinstance(images, PIL.Image.Image) or (isinstance(images, np.ndarray | torch.Tensor) and images.ndim < 4)


def as_numpy(image: np.ndarray | torch.Tensor) -> np.ndarray:
    """An image as an array, also of types (bfloat16) and places (a device, a graph) that numpy does not know."""
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        image = (image.float() if image.is_floating_point() else image).numpy()
    return image


def channels_last(pixels: np.ndarray, input_data_format: str | None) -> np.ndarray:
    """[H, W, C] of [H, W], [H, W, C] or [C, H, W]."""
    wanted = "[H, W], [H, W, C] or [C, H, W] with C = 1, 3 or 4"
    if pixels.ndim not in (2, 3) or 0 in pixels.shape:
        raise ValueError(f"an image has the shape {wanted}, got {list(pixels.shape)}")
    if pixels.ndim == 2:
        return pixels[..., None]
    first, last = pixels.shape[0] in CHANNELS, pixels.shape[-1] in CHANNELS
    if input_data_format is not None:
        first, last = first and input_data_format == "channels_first", last and input_data_format == "channels_last"
    if first and last:
        raise ValueError(
            f"channels may come first or last in the shape {list(pixels.shape)}: tell by `input_data_format` "
            "'channels_first' or 'channels_last'"
        )
    if not first and not last:
        told = f" and `input_data_format` {str(input_data_format)!r}" if input_data_format is not None else ""
        raise ValueError(
            f"an image has the shape {wanted}, got {list(pixels.shape)}{told}; a batch of grey images is [B, 1, H, W]"
        )
    return np.moveaxis(pixels, 0, -1) if first else pixels


def height_and_width(image: Any, input_data_format: str | None) -> tuple[int, int]:
    """Of an image of any kind, upright."""
    if isinstance(image, PIL.Image.Image):
        image = upright(image)
        return image.height, image.width
    height, width = channels_last(as_numpy(image), input_data_format).shape[:2]
    return height, width
