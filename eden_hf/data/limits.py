"""How large an image may be: PIL's limit against decompression bombs, for what PIL does not decode as well."""

import PIL.Image

from eden_hf.data.errors import DecodeError

_BYTES_A_PIXEL = 8  # the widest that are stored: float64, RGBA of 16 bits


def refuse_bomb(width: int, height: int, what: str = "pixels") -> None:
    """Refuse an image, or `what` else has so many pixels, before anything of it is decoded.

    Raises:
        DecodeError: it has more than twice PIL.Image.MAX_IMAGE_PIXELS, where PIL refuses too.
    """
    limit = PIL.Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > 2 * limit:
        raise DecodeError(
            f"{width} x {height} {what} are more than {2 * limit}; raise PIL.Image.MAX_IMAGE_PIXELS if you trust the "
            "file"
        )


def most_bytes() -> int | None:
    """The bytes that the largest image allowed takes at most, `None` without limit."""
    return None if PIL.Image.MAX_IMAGE_PIXELS is None else 2 * PIL.Image.MAX_IMAGE_PIXELS * _BYTES_A_PIXEL
