"""Text burned into pixels, found and read by RapidOCR (PP-OCR's models as ONNX, which lie in its wheel).

The whole image is looked at, at most `WHOLE` pixels a side, and of larger ones the bands along the edges, where text
usually is, once more at up to `EDGES` pixels a side. Words that say how an image was taken (L, R, PORTABLE) are none
of a patient's: `is_marker` tells which.
"""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

WHOLE, EDGES = 1024, 2048
#: Smaller images are enlarged, to at most this many pixels a side and at most twice.
ENLARGED = 512
#: Share of a side that a band along an edge takes.
BAND = 0.125
#: Images of fewer pixels a side have no room for three letters.
SMALLEST = 24
#: Characters, beside words of `MARKERS`, from which text counts.
LETTERS = 3
_MARKERS_WORDS = """
    L R LEFT RIGHT LT RT IZQ IZDA IZQUIERDA DER DCH DCHA DERECHA ESQ ESQUERDA DIR DIREITA DX SX LINKS RECHTS AP PA
    LAT LATERAL DECUB DECUBITUS ANT POST SUP INF ERECT UPRIGHT STANDING SITTING SUPINE PRONE SEMI SEDUTO DEITADO
    SENTADO ACOSTADO SUPINO LEITO PORTABLE PORT PORTATIL MOBILE BED ICU UTI UCI CHEST THORAX TORAX EXP INSP
    INSPIRATION EXPIRATION CM MM
    """
#: Words on radiographs that say which side is which and how it was taken, in languages of public data sets.
MARKERS = frozenset(_MARKERS_WORDS.split())
_JOINED = re.compile("(?:" + "|".join(sorted(word for word in MARKERS if len(word) > 1)) + ")+")


class Text(NamedTuple):
    """Text in an image: its box (x0, y0, x1, y1) in pixels, what it was read as, how sure that is, in [0, 1]."""

    box: tuple[int, int, int, int]
    text: str
    score: float


def find_text(picture: Image.Image) -> list[Text]:
    """All text of three letters and more in a picture of mode "L" or "RGB", from top to bottom, markers left out.

    Raises:
        ImportError: the extra `phi` is not installed.
    """
    if min(picture.size) < SMALLEST or len(picture.getcolors(2) or "many") == 1:  # empty masks, say
        return []
    found: list[Text] = []
    for region, scale in _regions(picture.size):
        for text in _read(picture.crop(region), scale, region[:2]):
            if not is_marker(text.text) and not any(overlap(text.box, other.box) for other in found):
                found.append(text)
    return sorted(found, key=lambda text: (text.box[1], text.box[0]))


def is_marker(text: str) -> bool:
    """Whether text is words of `MARKERS`, also without spaces between, and at most two characters beside them."""
    words = re.findall(r"[^\W_]+", text.upper())
    return sum(len(word) for word in words if word not in MARKERS and not _JOINED.fullmatch(word)) < LETTERS


def _regions(size: tuple[int, int]) -> Iterator[tuple[tuple[int, int, int, int], float]]:
    """Parts of an image to look at, each with the scale to do it at."""
    (width, height), longest = size, max(size)
    yield (0, 0, width, height), min(WHOLE / longest, max(1, min(2, ENLARGED / longest)))
    if longest > WHOLE:
        scale = min(1, EDGES / longest)
        across, down = round(width * BAND), round(height * BAND)
        for box in (0, 0, width, down), (0, height - down, width, height):
            yield box, scale
        for box in (0, 0, across, height), (width - across, 0, width, height):
            yield box, scale


def _read(part: Image.Image, scale: float, offset: tuple[int, ...]) -> Iterator[Text]:
    size = (max(1, round(part.width * scale)), max(1, round(part.height * scale)))
    pixels = np.asarray(part.resize(size, Image.Resampling.LANCZOS).convert("RGB"))
    read = _reader()(pixels, use_cls=False)
    if read.boxes is None:  # no text
        return
    for corners, text, score in zip(read.boxes, read.txts, read.scores, strict=True):
        low, high = corners.min(axis=0) / scale, corners.max(axis=0) / scale
        x0, y0, x1, y1 = (round(float(value)) for value in (*low, *high))
        yield Text((x0 + offset[0], y0 + offset[1], x1 + offset[0], y1 + offset[1]), text.strip(), float(score))


def overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    """Whether two boxes have a pixel in common."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


@cache
def _reader() -> Any:
    try:
        from rapidocr import RapidOCR
    except ImportError as error:
        raise ImportError("burned-in text needs rapidocr and onnxruntime: pip install eden_hf[phi]") from error
    return RapidOCR(
        params={
            "Global.log_level": "critical",
            "Global.max_side_len": 2 * EDGES,  # sizes are chosen here
            "Det.limit_type": "max",
            "Det.limit_side_len": 2 * EDGES,
        }
    )
