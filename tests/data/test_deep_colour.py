"""Colour and alpha of 16 bits a channel are stretched like grey, or refused."""

import struct
import zlib
from io import BytesIO

import numpy as np
import PIL.Image
import pytest

from eden_hf.data.reading import ImageReadError, decode_image, image_sizes

RNG = np.random.default_rng(0)
TWELVE_BITS = RNG.integers(0, 4096, (9, 14, 4)).astype(np.uint16)


def png(pixels, interlaced=False) -> bytes:
    """A PNG of 16 bits a channel, which PIL does not write."""
    height, width, channels = pixels.shape
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    parts = [pixels[y::down, x::across] for y, x, down, across in passes] if interlaced else [pixels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for part in parts if part.shape[1] for row in part)
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, interlaced)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in chunks)


def chunk(kind, data) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def expected(pixels) -> np.ndarray:
    """Stretched from the lowest to the highest colour, alpha over black."""
    channels = pixels.shape[-1]
    colour = pixels[..., : channels - 1 + channels % 2].astype(float)
    shown = (colour - colour.min()) / (colour.max() - colour.min()) * 255
    if channels in (2, 4):
        shown *= pixels[..., -1:] / 65535
    return shown[..., 0] if channels == 2 else shown


def check(data, pixels) -> None:
    image = decode_image(data, "name")
    assert image.mode == ("L" if pixels.shape[-1] == 2 else "RGB")
    np.testing.assert_allclose(np.asarray(image), expected(pixels), atol=0.51)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("channels", [2, 3, 4])
def test_png(channels, interlaced):
    pixels = TWELVE_BITS[..., :channels].copy()
    if channels != 3:
        pixels[..., -1] *= 16
    check(png(pixels, interlaced), pixels)


def tiff(pixels, **options) -> bytes:
    tifffile, buffer = pytest.importorskip("tifffile"), BytesIO()
    extra = ["unassalpha"] if 4 in (pixels.shape[0], pixels.shape[-1]) else None
    tifffile.imwrite(buffer, pixels, photometric="rgb", extrasamples=extra, rowsperstrip=4, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("channels", [3, 4])
def test_tiff(channels, compression, byte_order):
    pixels = TWELVE_BITS[..., :channels].copy()
    if channels == 4:
        pixels[..., 3] *= 16
    options = {"byteorder": byte_order, "compression": compression}
    check(tiff(pixels, planarconfig="contig", **options), pixels)
    with pytest.raises(ImageReadError, match=r"TIFF with more than 8 bits a channel .*; convert it to PNG"):
        decode_image(tiff(np.moveaxis(pixels, -1, 0), planarconfig="separate", **options), "name")


def test_the_orientation_is_applied():
    data = png(TWELVE_BITS[..., :3])
    exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    files = [data[:33] + chunk(b"eXIf", exif) + data[33:]]
    for compression in (None, "zlib"):
        files.append(tiff(TWELVE_BITS[..., :3], compression=compression, extratags=[(274, "H", 1, 6)]))
    for data in files:
        shown = np.asarray(decode_image(data, "name"))
        np.testing.assert_allclose(shown, np.rot90(expected(TWELVE_BITS[..., :3]), -1), atol=0.51)
        assert image_sizes(data, "name") == ((9, 14), (9, 14))


def portable_pixmap(white) -> bytes:
    return b"P6 14 9 %d\n" % white + TWELVE_BITS[..., :3].astype(">u2").tobytes()


def silicon_graphics(channels) -> bytes:
    header = struct.pack(">HBBHHHH", 474, 0, 2, 3 if channels > 1 else 2, 14, 9, channels)
    return header.ljust(512, b"\0") + np.moveaxis(TWELVE_BITS[..., :channels], -1, 0).astype(">u2").tobytes()


@pytest.mark.parametrize("data", [
    portable_pixmap(65535), portable_pixmap(4095), b"P3 1 1 4095 5 6 7", silicon_graphics(3), silicon_graphics(1),
], ids=["PPM", "PPM of 12 bits", "PPM in letters", "SGI", "grey SGI"])  # fmt: skip
def test_what_would_be_cut_to_8_bits_is_refused(data):
    with pytest.raises(ImageReadError, match=r"name: \w+ with more than 8 bits a channel .*; convert it to PNG"):
        decode_image(data, "name")


def test_jpeg_2000_of_16_bits_in_colour_is_refused():
    openjpeg = pytest.importorskip("openjpeg.utils")
    data = openjpeg.encode_array(
        np.tile(TWELVE_BITS[..., :3], (8, 8, 1)), bits_stored=16, photometric_interpretation=1
    )
    with pytest.raises(ImageReadError, match=r"JPEG2000 with more than 8 bits a channel \(RGB\)"):
        decode_image(bytes(data), "name")
    buffer = BytesIO()
    PIL.Image.fromarray((TWELVE_BITS[..., :3] >> 4).astype(np.uint8)).save(buffer, "JPEG2000")
    assert decode_image(buffer.getvalue(), "name").mode == "RGB"
