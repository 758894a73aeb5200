"""Parts of image files that PIL passes over are found: hidden words are told, what is of the pixels is not."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from eden_hf.data.phi.segments import passed_over

GREY = Image.fromarray(np.arange(1024, dtype=np.uint8).reshape(32, 32))
WORDS = b"Jane Doe"


def encoded(format_: str, **options) -> bytes:
    buffer = BytesIO()
    GREY.save(buffer, format_, **options)
    return buffer.getvalue()


def found(data: bytes, format_: str) -> list[tuple[str, bytes]]:
    Image.open(BytesIO(data)).load()  # PIL reads it all the same
    return list(passed_over(data, format_))


def before(mark: bytes, part: bytes, data: bytes, back: int = 0) -> bytes:
    at = data.index(mark) - back
    return data[:at] + part + data[at:]


def chunk(kind: bytes) -> bytes:
    return struct.pack(">I", len(WORDS)) + kind + WORDS + struct.pack(">I", zlib.crc32(kind + WORDS))


@pytest.mark.parametrize("mark", [b"IDAT", b"IEND"])
@pytest.mark.parametrize("kind", [b"prVt", b"tIME", b"caBX"])
def test_chunks_of_png(kind, mark):
    assert found(before(mark, chunk(kind), encoded("PNG"), 4), "PNG") == [(kind.decode(), WORDS)]


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def test_segments_of_jpeg_before_and_between_scans():
    app, comment = segment(0xE3, WORDS), segment(0xFE, WORDS)
    last_scan = encoded("JPEG", progressive=True)
    at = last_scan.rindex(b"\xff\xda")
    data = before(b"\xff\xdb", app + comment + comment, last_scan[:at] + segment(0xFE, b"late") + last_scan[at:])
    assert found(data, "JPEG") == [("APP3", WORDS), ("comment", WORDS), ("comment", WORDS), ("comment", b"late")]
    photoshop = before(b"\xff\xdb", segment(0xED, b"Photoshop 3.0\0" + WORDS), encoded("JPEG"))
    assert found(photoshop, "JPEG") == [("photoshop", WORDS)]


def test_blocks_of_gif():
    blocks = [(b"\xfe", "comment"), (b"\x01", "text"), (b"\xff", "application")]
    data = encoded("GIF")
    for label, _ in blocks:
        data = data[:-1] + b"\x21" + label + b"\x08" + WORDS + b"\0;"
    assert found(data, "GIF") == [(name, WORDS) for _, name in blocks]


def test_chunks_of_webp():
    data = encoded("WEBP") + b"JANE" + struct.pack("<I", len(WORDS)) + WORDS
    data = data[:4] + struct.pack("<I", len(data) - 8) + data[8:]
    assert found(data, "WEBP") == [("JANE", WORDS)]


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "GIF", "WEBP"])
def test_what_lies_behind_the_end(format_):
    data = encoded(format_)
    assert found(data + WORDS, format_) == [("behind the end", WORDS)]
    assert found(data + b"\0" * 9, format_) == []


def test_further_pictures_of_a_photograph_are_not_behind_its_end():
    buffer = BytesIO()
    GREY.save(buffer, "MPO", save_all=True, append_images=[GREY])
    assert found(buffer.getvalue(), "MPO") == []


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_plain_files_have_none_and_damaged_ones_end(format_):
    data = encoded(format_)
    for end in range(len(data) + 1):
        assert list(passed_over(data[:end], format_)) == []


def test_formats_that_are_not_known_here_are_said_to_be():
    assert [name for name, _ in passed_over(b"P5 4 4 255", "PPM")] == ["PPM"]
