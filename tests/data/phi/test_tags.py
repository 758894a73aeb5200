"""What lies beside the pixels is found, in every format; what says how they are meant is not."""

from io import BytesIO

import numpy as np
import pytest
from PIL import ExifTags, Image, TiffTags
from PIL.PngImagePlugin import PngInfo
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from eden_hf.data.phi.tags import tag_findings

IMAGE = Image.fromarray(np.arange(1024, dtype=np.uint8).reshape(32, 32))


def tags(format_: str, image: Image.Image = IMAGE, **options) -> dict[str, str]:
    buffer = BytesIO()
    image.save(buffer, format_, **options)
    with Image.open(buffer) as opened:
        return dict(tag_findings(opened))


def exif() -> Image.Exif:
    told = Image.Exif()
    told[ExifTags.Base.Artist] = "Jane Doe"
    told[ExifTags.Base.Make] = "A camera"
    told[ExifTags.Base.Orientation] = 1
    told.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "2019:01:01 10:00:00"
    told.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = b"ASCII\0\0\0room 4"
    told.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] = (1.0, 2.0, 3.0)
    return told


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "MPO"])
def test_exif_is_found_but_for_what_is_technical(format_):
    assert tags(format_, exif=exif()) == {
        "Artist": "Jane Doe",
        "EXIF DateTimeOriginal": "2019:01:01 10:00:00",
        "EXIF UserComment": "ASCII room 4",
        "GPS": "1 tags of the place",
    }


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000"])
def test_plain_images_have_none(format_):
    assert tags(format_) == {}
    assert tags(format_, IMAGE.convert("RGB")) == {}


def test_text_of_png():
    info = PngInfo()
    info.add_text("Software", "Matplotlib")
    info.add_text("Author", "Jane Doe")
    info.add_itxt("Comment", "Größe", zip=True)
    assert tags("PNG", pnginfo=info, dpi=(72, 72)) == {"Author": "Jane Doe", "Comment": "Größe"}
    late = PngInfo()
    late.add(b"tEXt", b"Author\0Jane Doe", after_idat=True)
    assert tags("PNG", pnginfo=late) == {"Author": "Jane Doe"}


def test_tags_of_tiff_known_and_private():
    info = ImageFileDirectory_v2()
    for tag, value in {270: "Doe, Jane", 305: "a program", 65000: "ours", 306: "2019:01:01"}.items():
        info[tag], info.tagtype[tag] = value, TiffTags.ASCII
    told = {"ImageDescription": "Doe, Jane", "65000": "ours", "DateTime": "2019:01:01"}
    assert tags("TIFF", tiffinfo=info) == told
    assert tags("TIFF", compression="jpeg") == tags("TIFF", compression="tiff_lzw") == {}


def test_comments_and_packets_of_jpeg_and_gif():
    assert tags("JPEG", comment=b"Jane Doe", xmp=b"<x:xmpmeta/>") == {"comment": "Jane Doe", "xmp": "<x:xmpmeta/>"}
    assert tags("GIF", comment=b"Jane Doe") == {"comment": "Jane Doe"}
    assert tags("JPEG", comment=b"CREATOR: gd-jpeg v1.0 (using IJG JPEG v62), quality = 90") == {}


def test_a_thumbnail_may_show_what_the_image_does_not():
    plain = BytesIO()
    IMAGE.save(plain, "JPEG")
    ifd0 = b"II*\0\x08\0\0\0" + b"\0\0" + (14).to_bytes(4, "little")  # no tag, then IFD1
    ifd1 = b"\x02\0" + b"\x01\x02\x04\0\x01\0\0\0\x30\0\0\0" + b"\x02\x02\x04\0\x01\0\0\0\x04\0\0\0" + b"\0\0\0\0"
    assert set(tags("JPEG", exif=b"Exif\0\0" + ifd0 + ifd1 + b"\0" * 20)) == {"EXIF thumbnail"}
