"""Annotations and their images brought together as references."""

import difflib
import logging
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import datasets
import numpy as np
import PIL.Image

from eden_hf.data.annotations.coco import is_coco, read_coco
from eden_hf.data.annotations.cvat import is_cvat, read_cvat
from eden_hf.data.annotations.labelme import is_labelme, read_labelme
from eden_hf.data.annotations.marks import Draw, Mark
from eden_hf.data.annotations.tables import read_table
from eden_hf.data.errors import SourceError, first
from eden_hf.data.folders import list_files
from eden_hf.data.landmarks import LandmarkedImage, load_landmarked
from eden_hf.data.pixel_size import picture_point
from eden_hf.data.readers.masks import Size, fitted_mask, read_mask, warn_if_inverted
from eden_hf.data.reading import ImageReadError, read_image
from eden_hf.data.references import Reference
from eden_hf.data.skips import SkipLog, left_out
from eden_hf.data.sources import find_source, read_cell
from eden_hf.data.text_files import parse_json, read_text

logger = logging.getLogger(__name__)

TABLE, MASKS = "landmarks.csv", "masks"
KNOWN = (
    f"{TABLE} (image,name,x,y), COCO or LabelMe JSON, 'CVAT for images 1.1' XML, {MASKS}/NAME/IMAGE.png, or a data "
    "set with a column 'landmarks'"
)
#: What reading a file of unexpected shape raises.
_MISSHAPEN = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, OSError)


def load_references(
    source: Any, *, split: str | None = None, id_column: str | None = None, mask_columns: Sequence[str] = ()
) -> list[Reference]:
    """Annotated images.

    | source | points | masks |
    | --- | --- | --- |
    | `landmarks.csv` | lines `image,name,x,y`, pixel indices | |
    | COCO JSON | keypoints with visibility above 0 | segmentations, by category |
    | LabelMe JSON, one an image | points | polygons, rectangles, masks |
    | CVAT for images 1.1, XML | points, elements of skeletons | polygons, boxes, masks |
    | `masks/NAME/IMAGE.png` | | white inside; `IMAGE` is the image's path, with or without suffix |
    | data set (see `load_source`) | column `landmarks`, or the outlines of SCR | `mask_columns` |

    A folder holds images and any of the first five together. Files name images by paths relative to themselves or to
    the folder, or by the end of a path that only one image has. All coordinates are in pixels of the upright image as
    it is stored, and become pixel indices of the picture that `read_image` gives, whose pixels are square. Each
    program's convention is in the module that reads it.

    Args:
        source: Folder, annotation file beside its images, or data set.
        split: Split of a data set: by default its only one, or `train`.
        id_column: Column of a data set whose values name the images.
        mask_columns: Columns of a data set that hold masks.

    Returns:
        References by name: paths relative to the folder, or ids. Images that cannot be read are named and counted in
        warnings.

    Raises:
        SourceError: nothing is annotated, or an annotation is wrong: the message names file, line, value and mend.
        TooManyUnreadable: no annotated image can be read.
    """
    references = _references(source, split, id_column, mask_columns)
    warn_if_inverted((reference.masks for reference in references), str(source)[:200])
    return references


def _references(source: Any, split: str | None, id_column: str | None, mask_columns: Sequence[str]) -> list[Reference]:
    path = Path(source).expanduser() if isinstance(source, str | Path) else None
    if path is not None and path.is_file() and path.suffix.lower() in (".csv", ".json", ".xml"):
        if (marks := _read(path)) is None:
            raise SourceError(f"{path} is of no kind that is read: {KNOWN}")
        return _of_files(path.parent, [(path.name, marks)])
    if path is not None and path.is_dir() and (annotations := _annotations(path)):
        return _of_files(path, annotations)
    try:
        found = find_source(source)
    except SourceError as error:
        raise SourceError(f"{source} holds no annotated images, which are {KNOWN} ({error})") from error
    chosen = split or (found.splits[0] if len(found.splits) == 1 else "train")
    return _of_source(source, found.load(chosen, id_column=id_column), chosen, id_column, mask_columns)


# files


def _annotations(root: Path) -> list[tuple[str, Iterator[Mark]]]:
    """What the files below a folder say, by their paths relative to it."""
    files = list_files(root)[0]
    named = [file for file in files if PurePosixPath(file).name.lower() == TABLE]
    named += [file for file in files if PurePosixPath(file).suffix.lower() in (".json", ".xml")]
    read = {file: _read(root / file) for file in named}
    found = [(file, marks) for file, marks in read.items() if marks is not None]
    if found and (others := [file for file, marks in read.items() if marks is None]):
        logger.warning("%s: %d files hold no annotations that are known: %s", root, len(others), first(others))
    if masks := [file for file in files if _is_mask(file)]:
        images = [file for file in files if not _is_mask(file)]
        found.append(("", _mask_marks(root, masks, images)))
    return found


def _read(path: Path) -> Iterator[Mark] | None:
    """The marks of a file, `None` if it is of no kind that is known."""
    if path.suffix.lower() == ".csv":
        return read_table(path)
    try:
        if path.suffix.lower() == ".xml":
            return _shaped(path, read_cvat(path)) if is_cvat(path) else None
        content = parse_json(read_text(path))
    except ValueError as error:
        kind = path.suffix[1:].upper()
        raise SourceError(f"{path} is no {kind} ({error}); export it again, or remove it") from error
    if is_labelme(content):
        return _shaped(path, read_labelme(path, content))
    return _shaped(path, read_coco(path, content)) if is_coco(content) else None


def _shaped(path: Path, marks: Iterator[Mark]) -> Iterator[Mark]:
    """The marks of an export; a file of another shape than its program's is refused."""
    try:
        for mark in marks:
            if not (isinstance(mark.image, str) and isinstance(mark.name, str)):
                raise SourceError(f"{mark.where}: names are texts, got {mark.image!r:.60} and {mark.name!r:.60}")
            yield mark
    except SourceError:
        raise
    except _MISSHAPEN as error:
        cause = f"{type(error).__name__}: {error}"
        raise SourceError(f"{path} is not of the shape that its program writes ({cause}); export it again") from error


def _is_mask(file: str) -> bool:
    parts = PurePosixPath(file).parts
    return parts[0].lower() == MASKS and len(parts) > 2 and file.lower().endswith(".png")


def _mask_marks(root: Path, masks: Sequence[str], images: Sequence[str]) -> Iterator[Mark]:
    """Masks in files of their own."""
    by_stem: dict[str, list[str]] = {}
    for image in images:
        for stem in {image, str(PurePosixPath(image).with_suffix(""))}:
            by_stem.setdefault(stem, []).append(image)
    for file in masks:
        _, name, *rest = PurePosixPath(file).parts
        stem = str(PurePosixPath(*rest).with_suffix(""))
        fitting = [image for image in by_stem.get(stem, []) if PurePosixPath(image).suffix.lower() not in _NO_IMAGES]
        if len(fitting) != 1:
            which = f"several images: {first(fitting)}" if fitting else f"no image: there is no {stem}.* in {root}"
            raise SourceError(f"{root / file} is the mask of {which}; call it {MASKS}/NAME/IMAGE.png by its image")
        yield Mark(fitting[0], name, str(root / file), draw=partial(read_mask, str(root / file)))


_NO_IMAGES = (".csv", ".json", ".xml", ".txt")


def _of_files(root: Path, annotations: Sequence[tuple[str, Iterator[Mark]]]) -> list[Reference]:
    files = dict.fromkeys(file for file in list_files(root)[0] if not _is_mask(file))
    named: dict[tuple[str, str], str] = {}  # images as the annotations name them
    by_image: dict[str, list[Mark]] = {}
    for annotation, marks in annotations:
        beside = posixpath.dirname(annotation)
        for mark in marks:
            key = (beside, mark.image)
            named[key] = named.get(key) or _image_path(mark, beside, files)
            by_image.setdefault(named[key], []).append(mark)
    if not by_image:
        raise SourceError(f"the annotations in {root} name no point and no mask: {first(a for a, _ in annotations)}")
    skips, references = SkipLog(None, max_share=1), []
    for image in sorted(by_image):
        try:
            picture = read_image(root / image)
        except ImageReadError as error:
            skips.add(image, error)
            continue
        references.append(_reference(image, picture, by_image[image]))
    skips.check(len(by_image))
    if skips.entries:
        logger.warning("%s: %s, of %d annotated ones", root, left_out(skips.entries), len(by_image))
    return references


def _image_path(mark: Mark, beside: str, files: Mapping[str, None]) -> str:
    """The image of a mark: its path in the folder, among `files`."""
    name = mark.image.strip().replace("\\", "/")
    candidates = [posixpath.normpath(posixpath.join(folder, name)) for folder in (beside, "")]
    absolute = name.startswith("/") or re.match(r"[A-Za-z]:", name)
    if absolute or all(path.startswith("../") for path in candidates):
        raise SourceError(
            f"{mark.where}: image {mark.image!r} lies outside the folder; put it in, and name it by its path there"
        )
    if inside := [path for path in candidates if path in files]:
        return inside[0]
    ending = [file for file in files if file.endswith(f"/{candidates[1]}")]
    if len(ending) > 1:
        raise SourceError(f"{mark.where}: image {mark.image!r} may be {first(ending)}; name one by its whole path")
    if not ending:
        near = difflib.get_close_matches(candidates[1], files, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "put it there, or remove its annotation"
        raise SourceError(f"{mark.where}: there is no image {mark.image!r} in the folder; {hint}")
    return ending[0]


def _reference(image: str, picture: PIL.Image.Image, marks: Iterable[Mark]) -> Reference:
    by_name: dict[str, Mark] = {}
    masks: dict[str, np.ndarray] = {}
    for mark in marks:
        _check_size(mark, image, picture)
        if mark.draw is not None:
            masks[mark.name] = _picture_mask(mark.draw, mark.where, picture) | masks.get(mark.name, False)
        elif mark.name in by_name:
            raise SourceError(
                f"{mark.where}: {image} has a point {mark.name!r} already, by {by_name[mark.name].where}; remove one"
            )
        else:
            by_name[mark.name] = mark
    return Reference(
        picture, image, {name: _picture_point(mark, image, picture) for name, mark in by_name.items()}, masks
    )


def _check_size(mark: Mark, image: str, picture: PIL.Image.Image) -> None:
    stored = picture.info["stored_size"]
    if mark.size is not None and tuple(mark.size) != stored:
        raise SourceError(
            f"{mark.where}: it was drawn on an image of {mark.size[0]} x {mark.size[1]} pixels, {image} has "
            f"{stored[0]} x {stored[1]}; give the image that was annotated"
        )


def _picture_point(mark: Mark, image: str, picture: PIL.Image.Image) -> tuple[float, float]:
    """A point's pixel indices in the picture of square pixels."""
    assert mark.point is not None
    (width, height), (x, y) = picture.info["stored_size"], mark.point
    if not (-0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5):  # NaN too
        raise SourceError(
            f"{mark.where}: {mark.name!r} at ({x:g}, {y:g}) lies off {image}, which has {width} x {height} pixels; "
            "coordinates are pixels, x from the left, y from the top; leave out points that cannot be seen"
        )
    return picture_point(picture, x, y)


def _picture_mask(draw: Draw, where: str, picture: PIL.Image.Image) -> np.ndarray:
    """A mask bool `[H, W]` of the picture of square pixels."""
    try:
        mask = draw(picture.info["stored_size"])
    except ValueError as error:  # TaskError of outlines, ImageReadError of files
        raise SourceError(f"{where}: {error}") from error
    if mask.shape[::-1] == picture.size:
        return mask
    return np.asarray(PIL.Image.fromarray(mask).resize(picture.size, PIL.Image.Resampling.NEAREST))


# data sets


def _of_source(
    source: Any, data: Any, split: str, id_column: str | None, mask_columns: Sequence[str]
) -> list[Reference]:
    if absent := [column for column in mask_columns if column not in data.column_names]:
        raise SourceError(f"{source} has no column {first(absent)}; it has {', '.join(data.column_names)}")
    landmarked: dict[str, LandmarkedImage] = {}
    if not mask_columns or {"landmarks", "landmarks_heart"} & set(data.column_names):
        landmarked = _landmarked(source, split, id_column)
    if not mask_columns:
        return [_reference(name, item.image, _point_marks(source, item)) for name, item in landmarked.items()]
    references = []
    for column in mask_columns:
        data = data.cast_column(column, datasets.Image(decode=False))
    for row in data:
        name = row["source_id"]
        item = landmarked.get(name, LandmarkedImage(read_cell(row["image"], name), name, {}))
        marks = [*_point_marks(source, item), *_column_marks(source, row, mask_columns)]
        references += [_reference(name, item.image, marks)] if marks else []
    return references


def _landmarked(source: Any, split: str, id_column: str | None) -> dict[str, LandmarkedImage]:
    try:
        return {item.source_id: item for item in load_landmarked(source, split, id_column=id_column)}
    except ImageReadError:
        raise
    except ValueError as error:
        raise SourceError(str(error)) from error


def _point_marks(source: Any, item: LandmarkedImage) -> Iterator[Mark]:
    width, height = item.image.info["stored_size"]
    for point, (x, y) in item.landmarks.items():
        yield Mark(item.source_id, point, f"{source}, {item.source_id}", point=(x * width - 0.5, y * height - 0.5))


def _column_marks(source: Any, row: Mapping[str, Any], columns: Sequence[str]) -> Iterator[Mark]:
    for column in columns:
        if row[column] is not None:
            where = f"{source}, {column} of {row['source_id']}"
            yield Mark(row["source_id"], column, where, draw=partial(_cell_mask, row[column], where))


def _cell_mask(cell: Any, name: str, size: Size) -> np.ndarray:
    return fitted_mask(read_cell(cell, name), size, name)
