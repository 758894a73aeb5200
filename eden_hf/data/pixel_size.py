"""The size of an image's pixels: pictures get square ones, and keep the millimetres where a file tells them.

A picture's coordinates count from the outer corner of its first pixel: pixel 0 reaches from 0 to 1, its centre lies at
0.5, the far edge at the width. Making pixels square keeps the edges where they are, so a point has the same shares
`(x / width, y / height)` before and after, and `x / stored width * width` is where a stored column went.
"""

import logging
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import PIL.Image

from eden_hf.data.limits import refuse_bomb

logger = logging.getLogger(__name__)

_ROUNDING = 1.01  # sides nearer than this are square: resampling would blur more than it mends
_FURTHEST = 20.0  # beyond this ratio of the sides a header is wrong; reformatted slices come to 10
_MM_PER_INCH = 25.4
_USUAL_STEPS = (
    10,
    12,
    25,
)  # what programs write unasked are multiples of these: 72, 96, 100, 150, 240, 300 dots an inch


class PixelSize(NamedTuple):
    """Width and height of a pixel: millimetres if `source` says where they come from, else only their ratio counts."""

    width: float = 1.0
    height: float = 1.0
    source: str | None = None

    def turned(self) -> "PixelSize":
        """Of the image turned by a quarter."""
        return PixelSize(self.height, self.width, self.source)


def pixel_size(sides: Sequence[Any], source: str | None, *, described: str) -> PixelSize | None:
    """The size that a header gives as (width, height), or `None`, with a warning, if no pixel has it.

    Args:
        sides: What the header holds, of any type.
        source: What it is called if it is in millimetres.
        described: File and element, for the warning.
    """
    try:
        width, height = (float(side) for side in sides)
        plausible = (
            0 < width < math.inf and 0 < height < math.inf and max(width, height) <= _FURTHEST * min(width, height)
        )
    except (TypeError, ValueError, ArithmeticError):
        plausible = False
    if plausible:
        return PixelSize(width, height, source)
    logger.warning("%s is passed over: pixels of the sides %s", described, sides)
    return None


def stated_pixel_size(image: PIL.Image.Image, name: str) -> PixelSize:
    """The size that the header of an image of PIL states, which is opened and not yet turned.

    Every format's resolution tells the ratio of the sides. Millimetres are taken from PNG's pHYs alone, and not from
    the resolutions that programs write unasked, for printing: those say nothing about the body.
    """
    info = image.info
    dots = info.get("dpi") or info.get("aspect")  # the latter is PNG's without unit
    if dots is None and info.get("jfif_unit") == 0:
        dots = info["jfif_density"]
    if dots is None or not all(dots):  # 0 stands for unknown
        return PixelSize()
    ratio = pixel_size(dots[::-1], None, described=f"{name}: its resolution")  # more dots across are narrower ones
    if ratio is not None and image.format == "PNG" and "dpi" in info and all(map(_is_measured, dots)):
        return PixelSize(_MM_PER_INCH / dots[0], _MM_PER_INCH / dots[1], "pHYs")
    return ratio or PixelSize()


def _is_measured(dots_per_inch: float) -> bool:
    """Whether a resolution of pHYs was made for this image; pHYs rounds to whole dots a metre."""
    rounding = 0.0254
    return all(abs(dots_per_inch - step * round(dots_per_inch / step)) > rounding for step in _USUAL_STEPS)


def with_square_pixels(image: PIL.Image.Image, pixel: PixelSize) -> PIL.Image.Image:
    """A picture of square pixels, the coarser side resampled to the finer, and in its `info` nothing but

    - `stored_size`: width and height before that;
    - `pixel_spacing_mm`: `(x, y)` millimetres from pixel to pixel, of the picture as it is returned, and
      `pixel_spacing_source`: where they come from; both only if they are known.

    Raises:
        DecodeError: the picture would be larger than PIL allows.
    """
    stored = image.size
    width, height = square_size(stored, pixel)
    if (width, height) != stored:
        refuse_bomb(width, height, "pixels, once they are square,")
        image = image.resize((width, height), PIL.Image.Resampling.BILINEAR)
    image.info = {"stored_size": stored}
    if pixel.source is not None:
        image.info["pixel_spacing_mm"] = (pixel.width * stored[0] / width, pixel.height * stored[1] / height)
        image.info["pixel_spacing_source"] = pixel.source
    return image


def square_size(size: tuple[int, int], pixel: PixelSize) -> tuple[int, int]:
    """Width and height of a stored `size` once its pixels are square."""
    (width, height), ratio = size, pixel.height / pixel.width
    if 1 / _ROUNDING < ratio < _ROUNDING:
        return width, height
    return (width, round(height * ratio)) if ratio > 1 else (round(width / ratio), height)


def picture_point(picture: PIL.Image.Image, x: float, y: float) -> tuple[float, float]:
    """Pixel indices in a picture of `read_image` of those in the upright image as stored."""
    width, height = picture.info["stored_size"]
    return (x + 0.5) / width * picture.width - 0.5, (y + 0.5) / height * picture.height - 0.5


def stored_point(picture: PIL.Image.Image, x: float, y: float) -> tuple[float, float]:
    """Pixel indices in the upright image as stored of those in a picture of `read_image`."""
    width, height = picture.info["stored_size"]
    return (x + 0.5) / picture.width * width - 0.5, (y + 0.5) / picture.height * height - 0.5
