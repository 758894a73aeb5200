"""COCO JSON: keypoints by the names of their category, and segmentations as regions named after it.

COCO's keypoints are indices of pixels, so they are ours as they are; its outlines count from the outer corner of the
first pixel. Programs that keep their own coordinates, counted from that corner, when they export to COCO (CVAT does)
are half a pixel off: their own format has them exactly.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from eden_hf.data.annotations.marks import Draw, Mark, outlined, run_lengths
from eden_hf.data.errors import SourceError


def is_coco(content: Any) -> bool:
    """Whether the content of a JSON file is of this kind."""
    return isinstance(content, dict) and all(isinstance(content.get(key), list) for key in ("images", "annotations"))


def read_coco(path: Path, content: Mapping[str, Any]) -> Iterator[Mark]:
    """The keypoints that are labelled (visibility above 0), and the regions.

    Raises:
        SourceError: an annotation is of an unknown image or category, or its keypoints do not fit the category's.
    """
    images = {image["id"]: image for image in content["images"]}
    categories = {category["id"]: category for category in content.get("categories", [])}
    for number, annotation in enumerate(content["annotations"]):
        where = f"{path}, annotation {annotation.get('id', number)}"
        image, category = images.get(annotation["image_id"]), categories.get(annotation.get("category_id"))
        if image is None or category is None:
            absent = (
                f"image {annotation['image_id']}" if image is None else f"category {annotation.get('category_id')}"
            )
            raise SourceError(f"{where} is of {absent}, which the file does not list; export it again")
        size = (image["width"], image["height"]) if image.get("width") and image.get("height") else None
        for name, point in _keypoints(annotation, category, where):
            yield Mark(image["file_name"], name, where, point=point, size=size)
        for draw in _regions(annotation.get("segmentation"), where):
            yield Mark(image["file_name"], category["name"], where, draw=draw, size=size)


def _keypoints(
    annotation: Mapping[str, Any], category: Mapping[str, Any], where: str
) -> Iterator[tuple[str, tuple[float, float]]]:
    values, names = annotation.get("keypoints") or [], category.get("keypoints") or []
    if values and len(values) != 3 * len(names):
        raise SourceError(
            f"{where}: {len(values)} numbers of keypoints do not fit the {len(names)} names (x, y and visibility of "
            f"each) of category {category['name']!r}; export it again"
        )
    for index, name in enumerate(names if values else []):
        x, y, visibility = values[3 * index : 3 * index + 3]
        if visibility > 0:
            yield name, (float(x), float(y))


def _regions(segmentation: Any, where: str) -> Iterator[Draw]:
    if isinstance(segmentation, dict):
        if not isinstance(segmentation["counts"], list):
            raise SourceError(f"{where}: compressed run lengths are not read; export polygons, or masks as PNG")
        height, width = map(int, segmentation["size"])
        yield run_lengths(list(map(int, segmentation["counts"])), (width, height), "F")
        return
    for outline in segmentation or []:
        yield outlined(list(zip(outline[0::2], outline[1::2], strict=True)))
