"""Colour and alpha of more than 8 bits a channel, of which PIL keeps the upper 8: a 12-bit photograph becomes black.

PNG and TIFF are decoded twice, once for the upper and once for the lower bytes; other formats, and TIFF with a plane a
channel, are refused.
"""

import re
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import ImageOps
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, PLANAR_CONFIGURATION, TiffImageFile

from eden_hf.data.errors import DecodeError
from eden_hf.image_processing_eden_pixels import full_range

_READABLE = re.compile(r"(RGB|RGBA|RGBX|LA);16[BLN]")  # of PIL's raw modes
_PLANES = 2  # of TIFF's planar configurations
_OTHER_BYTE = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}  # reads the byte that PIL drops
_SIZE_MARKER = b"\xff\x4f\xff\x51"  # of JPEG 2000, 42 bytes before the precision


def deep_intensity(reopen: Callable[[], ImageFile], data: bytes) -> np.ndarray | None:
    """Intensities from black 0 to white 1 of a file of several channels of 9 to 16 bits, upright; `None` of any other.

    The lowest value of all colours is black, the highest white, as of grey (`unit_intensity`); alpha is blended over
    black.

    Args:
        reopen: Opens the file anew, at the frame wanted, nothing decoded.
        data: The whole file.

    Returns:
        Grey [H, W] or RGB [H, W, 3], float32.

    Raises:
        DecodeError: a format that PIL cuts to 8 bits.
    """
    with reopen() as image:
        if image.mode[0] in "IF" or not _is_deep(image, data):
            return None
        modes = [arguments[0] for arguments in _arguments(image)]
        if not all(map(_READABLE.fullmatch, modes)) or _has_planes(image):
            raise DecodeError(
                f"{image.format} with more than 8 bits a channel ({image.mode}), stored so that PIL reads 8 of them; "
                "convert it to PNG, which keeps 16"
            )
    return _blended(_sixteen_bits(reopen, modes))


def _arguments(image: ImageFile) -> list[tuple[Any, ...]]:
    """What PIL's decoder is told of each part of an opened file, its raw mode first."""
    return [tile.args if isinstance(tile.args, tuple) else (tile.args,) for tile in image.tile]


def _is_deep(image: ImageFile, data: bytes) -> bool:
    """Whether the channels of an opened file have more than the 8 bits that its mode holds."""
    if image.format == "JPEG2000":
        return (data[data.index(_SIZE_MARKER) + 42] & 0x7F) + 1 > 8
    arguments = _arguments(image)
    if image.format == "SGI":
        return image.tile[0].codec_name == "SGI16" or arguments[0][-1] == 2  # bytes a channel
    if image.format == "PPM" and image.tile[0].codec_name.startswith("ppm"):
        return arguments[0][-1] > 255  # the value of white
    if isinstance(image, TiffImageFile):
        return max(image.tag_v2.get(BITSPERSAMPLE, (1,))) > 8
    return any(";16" in str(mode) for mode, *_ in arguments)


def _has_planes(image: ImageFile) -> bool:
    return isinstance(image, TiffImageFile) and image.tag_v2.get(PLANAR_CONFIGURATION) == _PLANES


def _sixteen_bits(reopen: Callable[[], ImageFile], modes: list[str]) -> np.ndarray:
    """Stored values uint16 [H, W, channels]."""
    if modes == ["LA;16B"]:  # four bytes a pixel, as RGBA has
        return np.ascontiguousarray(_decoded(reopen, lambda mode: "RGBA")).view(">u2")
    upper, lower = _decoded(reopen, str), _decoded(reopen, lambda mode: mode[:-1] + _OTHER_BYTE[mode[-1]])
    return upper.astype(np.uint16) << 8 | lower


def _decoded(reopen: Callable[[], ImageFile], mode_of: Callable[[str], str]) -> np.ndarray:
    """Bytes [H, W, channels], upright, each part decoded in the raw mode that `mode_of` makes of its own."""
    with reopen() as image:
        parts = zip(image.tile, _arguments(image), strict=True)
        image.tile = [tile._replace(args=(mode_of(mode), *others)) for tile, (mode, *others) in parts]
        return np.asarray(ImageOps.exif_transpose(image))


def _blended(pixels: np.ndarray) -> np.ndarray:
    """Colours with the alpha that follows them, if any, over black; of one colour throughout, its alpha."""
    colours = pixels.shape[-1] - 1 + pixels.shape[-1] % 2
    intensity = full_range(pixels[..., :colours])
    if colours < pixels.shape[-1]:
        if not intensity.any():
            intensity += 1
        intensity *= pixels[..., colours:] / np.float32(65535)
    return intensity[..., 0] if colours == 1 else intensity
