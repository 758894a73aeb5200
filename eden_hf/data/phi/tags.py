"""What image files carry beside their pixels: EXIF, text of PNG, comments of JPEG and GIF, XMP, tags of TIFF."""

import re
from collections.abc import Iterator
from typing import Any

from PIL import ExifTags, Image
from PIL.TiffImagePlugin import TiffImageFile
from PIL.TiffTags import TAGS_V2

_TECHNICAL_INFO_WORDS = """
    Software adobe aspect background chromaticity compression dpi duration exif extension gamma icc_profile
    interlace jfif jfif_density jfif_unit jfif_version loop mp mpoffset progression progressive resolution srgb
    timestamp transparency version
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
_THUMBNAIL = "JpegIFOffset"


def tag_findings(image: Image.Image) -> Iterator[tuple[str, str]]:
    """Tags of an opened image, or of its current frame, as `(tag, value)`; its pixels are decoded for them.

    Raises:
        Exception: whatever PIL raises on damaged files.
    """
    image.load()  # PNG may have text after its pixels
    for key, value in image.info.items():
        values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
        if str(key) not in _TECHNICAL_INFO:
            shown = filter(None, map(_shown, values))
            yield from ((str(key), text) for text in shown if not _OF_ENCODERS.fullmatch(text))
    exif = image.getexif()
    tags = dict(image.tag_v2) if isinstance(image, TiffImageFile) else dict(exif)
    yield from _told(tags, {**ExifTags.TAGS, **{tag: info.name for tag, info in TAGS_V2.items()}}, "")
    yield from _told(exif.get_ifd(ExifTags.IFD.Exif), ExifTags.TAGS, "EXIF ")
    if place := {tag: value for tag, value in exif.get_ifd(ExifTags.IFD.GPSInfo).items() if _given(value)}:
        yield "GPS", f"{len(place)} tags of the place"
    if ExifTags.Base[_THUMBNAIL] in exif.get_ifd(ExifTags.IFD.IFD1):
        yield "EXIF thumbnail", "a small copy of an image, which may be another than the image"


def _told(tags: dict[int, Any], names: dict[int, str], above: str) -> Iterator[tuple[str, str]]:
    for tag, value in tags.items():
        name = names.get(tag, str(tag))
        if name not in _TECHNICAL_TAGS and (shown := _shown(value)):
            yield above + name, shown


def _given(value: Any) -> bool:
    return bool(_shown(value)) if isinstance(value, str | bytes) else value is not None


def _shown(value: Any) -> str:
    """A value that is text or bytes, at most 200 characters; nothing of numbers."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    return " ".join(value.strip("\0 ").replace("\0", " ").split())[:200] if isinstance(value, str) else ""
