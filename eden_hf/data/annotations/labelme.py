"""LabelMe JSON, one file an image: points by their labels; polygons, rectangles and masks as regions.

LabelMe's coordinates count from the outer corner of the first pixel of the upright image. Its masks lie in boxes of
whole pixels.
"""

import base64
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from eden_hf.data.annotations.marks import Draw, Mark, boxed, from_corner, outlined, pasted
from eden_hf.data.errors import SourceError

logger = logging.getLogger(__name__)


def is_labelme(content: Any) -> bool:
    """Whether the content of a JSON file is of this kind."""
    return isinstance(content, dict) and isinstance(content.get("shapes"), list) and "imagePath" in content


def read_labelme(path: Path, content: Mapping[str, Any]) -> Iterator[Mark]:
    """The points and regions; shapes of other kinds are counted in a warning.

    Raises:
        SourceError: a point has not just one place.
    """
    width, height = content.get("imageWidth"), content.get("imageHeight")
    size = (width, height) if width and height else None
    others: Counter[str] = Counter()
    for number, shape in enumerate(content["shapes"], start=1):
        kind, label, points = shape.get("shape_type") or "polygon", shape["label"], shape["points"]
        where = f"{path}, shape {number} ({label!r})"
        if kind == "point":
            if len(points) != 1:
                raise SourceError(f"{where}: a point has one place, got {len(points)}; draw it again")
            yield Mark(content["imagePath"], label, where, point=from_corner(*points[0]), size=size)
        elif (draw := _region(kind, shape)) is not None:
            yield Mark(content["imagePath"], label, where, draw=draw, size=size)
        else:
            others[kind] += 1
    if others:
        kinds = ", ".join(f"{count} of kind {kind}" for kind, count in others.items())
        logger.warning("%s: shapes left out: %s; points, polygons, rectangles and masks are read", path, kinds)


def _region(kind: str, shape: Mapping[str, Any]) -> Draw | None:
    points = shape["points"]
    if kind == "polygon":
        return outlined(points)
    if kind == "rectangle":
        return boxed(*points[0], *points[1])
    if kind == "mask":
        left, top = (round(value) for value in points[0])
        return pasted(base64.b64decode(shape["mask"]), left, top, "its mask")
    return None
