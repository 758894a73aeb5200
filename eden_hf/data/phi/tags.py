"""What image files carry beside their pixels: EXIF, text of PNG, comments of JPEG and GIF, XMP, tags of TIFF."""

import re
from collections.abc import Iterator
from typing import Any

from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.TiffTags import TAGS_V2

from eden_hf.data.phi.findings import brief, told_apart
from eden_hf.data.phi.names import name_findings
from eden_hf.data.phi.segments import passed_over

_TECHNICAL_INFO_WORDS = """
    Software adobe aspect background chromaticity compression dpi duration exif extension gamma icc_profile
    interlace jfif jfif_density jfif_unit jfif_version loop mp mpoffset photoshop progression progressive resolution
    srgb timestamp transparency version
    """
#: Of `Image.info`: what says how pixels are meant, and what is looked at apart.
_TECHNICAL_INFO = frozenset(_TECHNICAL_INFO_WORDS.split())
_TECHNICAL_TAGS_WORDS = """
    CFAPattern ColorMap ColorSpace ComponentsConfiguration ExifInteroperabilityOffset ExifVersion FileSource
    FlashPixVersion ICCProfile InkNames InterColorProfile InteropIndex InteropVersion JPEGTables LensMake
    LensModel Make Model ReferenceBlackWhite SceneType Software StripByteCounts StripOffsets TileByteCounts
    TileOffsets TransferFunction Xp YCbCrCoefficients
    """
#: Tags of EXIF and TIFF whose values are text or bytes and tell of a device or of the pixels alone.
_TECHNICAL_TAGS = frozenset(_TECHNICAL_TAGS_WORDS.split())
#: What encoders write as a comment of their own.
_OF_ENCODERS = re.compile(
    r"created (?:by|with) (?:openjpeg|the gimp|gimp|kakadu)\b.*|creator: gd-jpeg .*|lavc[\d.]+|lead technologies inc.*"
    r"|intel\(r\) jpeg library.*|applemark|file (?:source|written by adobe photoshop).*",
    re.IGNORECASE,
)
#: Tags of TIFF that hold text, whatever type of numbers they say, or further pages.
_IN_NUMBERS = ("IptcNaaInfo", "PhotoshopInfo", "SubIFDs", "XMP")
_THUMBNAIL = "JpegIFOffset"


def tag_findings(image: Image.Image, data: bytes) -> Iterator[tuple[str, str]]:
    """Tags of an opened image, or of its current frame, as `(tag, value)`, each once; its pixels are decoded for them.

    Args:
        image: Opened by PIL.
        data: Its whole file, for what PIL passes over; nothing with its further frames.

    Raises:
        Exception: whatever PIL raises on damaged files.
    """
    image.load()  # PNG may have text after its pixels
    found = (pair for told in (_information(image), _tags(image)) for pair in told)
    others = ((name, text) for name, content in passed_over(data, str(image.format)) if (text := _of_people(content)))
    yield from dict.fromkeys([*found, *others])


def _information(image: Image.Image) -> Iterator[tuple[str, str]]:
    """What PIL tells of a file in words."""
    for key, value in image.info.items():
        values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
        told = [own for own in values if str(key) not in _TECHNICAL_INFO or _names_people(own)]
        yield from ((str(key), text) for text in map(_of_people, told) if text)
    if isinstance(image, PngImageFile):  # whose texts may be called as anything
        texts = ((key, brief(text)) for key, text in image.text.items() if key != "Software")
        yield from ((key, text) for key, text in texts if text)


def _tags(image: Image.Image) -> Iterator[tuple[str, str]]:
    """Tags of EXIF and TIFF."""
    exif = image.getexif()
    tags = dict(image.tag_v2) if isinstance(image, TiffImageFile) else dict(exif)
    yield from _told(tags, {**ExifTags.TAGS, **{tag: info.name for tag, info in TAGS_V2.items()}}, "")
    yield from _told(exif.get_ifd(ExifTags.IFD.Exif), ExifTags.TAGS, "EXIF ")
    if place := {tag: value for tag, value in exif.get_ifd(ExifTags.IFD.GPSInfo).items() if _given(value)}:
        yield "GPS", f"{len(place)} tags of the place: {told_apart(repr(place).encode())}"
    thumbnail = exif.get_ifd(ExifTags.IFD.IFD1)
    yield from _told(thumbnail, ExifTags.TAGS, "EXIF thumbnail ")
    if ExifTags.Base[_THUMBNAIL] in thumbnail:
        known = told_apart(image.info.get("exif", b""))
        yield "EXIF thumbnail", f"a small copy of an image, which may be another than the image: EXIF of {known}"


def _told(tags: dict[int, Any], names: dict[int, str], above: str) -> Iterator[tuple[str, str]]:
    for tag, value in tags.items():
        name = names.get(tag, str(tag))
        text = brief(repr(value)) if name in _IN_NUMBERS and isinstance(value, tuple | int) else _shown(value)
        if text and (name not in _TECHNICAL_TAGS or _names_people(value)):
            yield above + name, text


def _names_people(value: Any) -> bool:
    """Whether a text that is to be technical tells of a patient all the same."""
    return isinstance(value, str) and any(name_findings(value))


def _given(value: Any) -> bool:
    return bool(_shown(value)) if isinstance(value, str | bytes) else value is not None


def _of_people(value: Any) -> str:
    """A value that is text or bytes, but for what encoders write of themselves."""
    return "" if _OF_ENCODERS.fullmatch(text := _shown(value)) else text


def _shown(value: Any) -> str:
    """A value that is text or bytes; nothing of numbers."""
    return brief(value) if isinstance(value, str | bytes) else ""
