"""Parts of image files that PIL passes over: chunks, segments and blocks that may hold text, or another picture."""

import re
import struct
from collections.abc import Iterator

_PNG_WORDS = """
    IHDR PLTE IDAT IEND tRNS cHRM gAMA iCCP sBIT sRGB bKGD hIST pHYs cICP mDCV cLLI acTL fcTL fdAT
    tEXt zTXt iTXt eXIf
    """
#: What is of the pixels, and what PIL tells.
_PNG = frozenset(_PNG_WORDS.split())
_WEBP = frozenset((b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"ICCP", b"EXIF", b"XMP "))
_JPEG = (b"JFIF\0", b"Exif\0\0", b"ICC_PROFILE\0", b"MPF\0", b"Adobe", b"http://ns.adobe.com/xap/1.0/\0")
_GIF = (b"NETSCAPE2.0", b"ANIMEXTS1.0", b"ICCRGBG1012")
_BEHIND = "behind the end"
_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")
_START_OF_IMAGE, _END_OF_IMAGE, _COMMENT = 2, 0xD9, 0xFE


def passed_over(data: bytes, format_: str) -> Iterator[tuple[str, bytes]]:
    """What an image file holds beside pixels and what PIL tells, behind its end too, as `(name, content)`.

    Args:
        data: The whole file, or nothing of one that was looked at.
        format_: As PIL calls it. Of one that is not known here it is said that it is not looked at.
    """
    if not data or format_ in ("BMP", "DIB", "TIFF"):  # which have nothing but what PIL tells
        return
    of = {"PNG": _of_png, "JPEG": _of_jpeg, "MPO": _of_jpeg, "GIF": _of_gif, "WEBP": _of_webp}.get(format_)
    if of is None:
        yield format_, b"what it holds beside the pixels is not looked at: convert it to PNG"
        return
    for name, content in of(data):
        if content.strip(b"\0\xff\r\n ") and not (format_ == "MPO" and name == _BEHIND):  # where its others are
            yield name, content


def _of_png(data: bytes) -> Iterator[tuple[str, bytes]]:
    at = 8
    while at + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        if (name := kind.decode("latin-1")) not in _PNG:
            yield name, data[at + 8 : at + 8 + length]
        at += 12 + length
        if name == "IEND":
            yield _BEHIND, data[at:]
            return


def _of_webp(data: bytes) -> Iterator[tuple[str, bytes]]:
    at, end = 12, 8 + int.from_bytes(data[4:8], "little")
    while at + 8 <= min(end, len(data)):
        kind, length = struct.unpack("<4sI", data[at : at + 8])
        if kind not in _WEBP:
            yield kind.decode("latin-1"), data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2
    yield _BEHIND, data[end:]


def _of_jpeg(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Of all scans: further segments may stand between them."""
    at = _START_OF_IMAGE
    while found := _MARKER.search(data, at):
        marker = found[1][0]
        if marker == _END_OF_IMAGE:
            yield _BEHIND, data[found.end() :]
            return
        length = int.from_bytes(data[found.end() : found.end() + 2], "big")
        content, at = data[found.end() + 2 : found.end() + length], found.end() + length
        if at > len(data):
            return
        if marker == _COMMENT:
            yield "comment", content
        elif content.startswith(b"Photoshop 3.0\0"):
            yield "photoshop", content[14:]
        elif 0xE0 <= marker <= 0xEF and not content.startswith(_JPEG):
            yield f"APP{marker - 0xE0}", content


def _of_gif(data: bytes) -> Iterator[tuple[str, bytes]]:
    at = 13 + _colours(data, 10)
    while at + 2 < len(data) and data[at] in b"\x21\x2c":
        if data[at] == 0x2C:  # an image
            _, at = _sub_blocks(data, at + 11 + _colours(data, at + 9))
            continue
        label = data[at + 1]
        content, at = _sub_blocks(data, at + 2)
        if label == _COMMENT:
            yield "comment", content
        elif label == 0x01 or (label == 0xFF and not content.startswith(_GIF)):
            yield "text" if label == 0x01 else "application", content
    if data[at : at + 1] == b";":
        yield _BEHIND, data[at + 1 :]


def _colours(data: bytes, at: int) -> int:
    """Bytes of the table of colours that the flags at a place tell of."""
    flags = data[at] if at < len(data) else 0
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0


def _sub_blocks(data: bytes, at: int) -> tuple[bytes, int]:
    """The content of blocks that each tell their length, and the place after the last."""
    content = b""
    while at < len(data) and (length := data[at]):
        content += data[at + 1 : at + 1 + length]
        at += 1 + length
    return content, at + 1
