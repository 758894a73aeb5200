"""CVAT for images, XML 1.1: points and elements of skeletons by their labels; polygons, boxes and masks as regions.

CVAT's coordinates count from the outer corner of the first pixel; its masks lie in boxes of whole pixels.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from eden_hf.data.annotations.marks import Draw, Mark, boxed, from_corner, outlined, run_lengths
from eden_hf.data.errors import SourceError
from eden_hf.data.text_files import read_text

logger = logging.getLogger(__name__)

_OF_WHOLE_IMAGE = "tag"


def read_cvat(path: Path) -> Iterator[Mark]:
    """The points (of skeletons those not marked as outside) and regions; other shapes are counted in a warning.

    Raises:
        SourceError: it is damaged or of another kind, or points of one shape have one label.
    """
    others: Counter[str] = Counter()
    for image in _images(path):
        size = (int(image.attrib["width"]), int(image.attrib["height"])) if "width" in image.attrib else None
        for shape in image:
            name, label = image.attrib["name"], shape.attrib["label"]
            where = f"{path}, {shape.tag} {label!r} of image {name!r}"
            if shape.tag in ("points", "skeleton"):
                for point in shape.iter("points"):
                    if point.get("outside", "0") != "1":
                        yield Mark(name, point.attrib["label"], where, point=_place(point, where), size=size)
            elif (draw := _region(shape)) is not None:
                yield Mark(name, label, where, draw=draw, size=size)
            elif shape.tag != _OF_WHOLE_IMAGE:
                others[shape.tag] += 1
    if others:
        kinds = ", ".join(f"{count} {kind}" for kind, count in others.items())
        logger.warning("%s: shapes left out: %s; points, skeletons, polygons, boxes, masks are read", path, kinds)


def is_cvat(path: Path) -> bool:
    """Whether an XML file is of CVAT, of images or of a video."""
    return "<annotations" in read_text(path)[:1000]


def _images(path: Path) -> list[Element]:
    text = read_text(path)
    if "<!DOCTYPE" in text:
        raise SourceError(f"{path} declares a document type, which no export of CVAT does; export it again")
    try:
        root = ElementTree.fromstring(text.strip())
    except ElementTree.ParseError as error:
        raise SourceError(f"{path} is no XML ({error}); export it again") from error
    if root.tag != "annotations" or root.find("track") is not None:
        raise SourceError(f"{path} is not of the format 'CVAT for images 1.1'; export it as that")
    return root.findall("image")


def _places(shape: Element) -> list[tuple[float, float]]:
    pairs = (pair.split(",") for pair in shape.attrib["points"].split(";"))
    return [(float(x), float(y)) for x, y in pairs]


def _place(point: Element, where: str) -> tuple[float, float]:
    places = _places(point)
    if len(places) != 1:
        raise SourceError(
            f"{where}: {len(places)} points have one label; a landmark is one point: give each a label of its own, "
            "or use a skeleton"
        )
    return from_corner(*places[0])


def _region(shape: Element) -> Draw | None:
    get = shape.attrib
    if shape.tag == "polygon":
        return outlined(_places(shape))
    if shape.tag == "box" and not float(get.get("rotation", 0)):
        return boxed(*(float(get[side]) for side in ("xtl", "ytl", "xbr", "ybr")))
    if shape.tag == "mask":
        counts = [int(count) for count in get["rle"].split(",")]
        patch = (int(get["width"]), int(get["height"]))
        return run_lengths(counts, patch, "C", int(get["left"]), int(get["top"]))
    return None
