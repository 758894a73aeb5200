"""What lies beside the pixels is found, in every format; what says how they are meant is not."""

import struct
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
    return told(buffer.getvalue())


def told(data: bytes) -> dict[str, str]:
    with Image.open(BytesIO(data)) as opened:
        return dict(tag_findings(opened, data))


def exif() -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = "Jane Doe"
    exif[ExifTags.Base.Make] = "A camera"
    exif[ExifTags.Base.Orientation] = 1
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "2019:01:01 10:00:00"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = b"ASCII\0\0\0room 4"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] = (1.0, 2.0, 3.0)
    return exif


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "MPO"])
def test_exif_is_found_but_for_what_is_technical(format_):
    found = tags(format_, exif=exif())
    assert found == {
        "Artist": "Jane Doe",
        "EXIF DateTimeOriginal": "2019:01:01 10:00:00",
        "EXIF UserComment": "ASCII room 4",
        "GPS": found["GPS"],
    }
    assert found["GPS"].startswith("1 tags of the place: ")


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "MPO"])
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
    assert tags("TIFF", tiffinfo=info) == {"ImageDescription": "Doe, Jane", "65000": "ours", "DateTime": "2019:01:01"}
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


def test_technical_texts_that_name_a_person_are_found():
    for name in ("Software", "dpi", "version"):
        info = PngInfo()
        info.add_text(name, "Anna Nowak, 1956-02-01")
        assert set(tags("PNG", pnginfo=info)) == {name}
    info = ImageFileDirectory_v2()
    for tag, value in {271: "A maker", 272: "of Anna Nowak"}.items():
        info[tag], info.tagtype[tag] = value, TiffTags.ASCII
    assert tags("TIFF", tiffinfo=info) == {"Model": "of Anna Nowak"}


def test_what_does_not_show_whole_is_told_apart():
    long = "An introduction, as many packets have it. " * 5
    first, second = (tags("JPEG", comment=f"{long}{name}".encode())["comment"] for name in ("Anna", "Jane"))
    assert first[:200] == second[:200]
    assert first != second
    places = [exif(), exif()]
    places[1].get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] = (1.0, 2.0, 4.0)
    assert len({tags("JPEG", exif=place)["GPS"] for place in places}) == 2


@pytest.mark.filterwarnings("ignore:Metadata Warning")
def test_iptc_that_says_to_be_numbers():
    info = ImageFileDirectory_v2()
    info[33723], info.tagtype[33723] = struct.unpack("<2I", b"Jane Doe"), TiffTags.LONG
    assert set(tags("TIFF", tiffinfo=info)) == {"IptcNaaInfo"}
