"""Named anatomical landmarks of chest radiographs: SCR's, taken from its outlines, and the phantoms' own.

Left and right are the patient's: `left_*` lies on the right-hand side of the picture.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from torch import Tensor

from eden_hf.data.patients import patient_names, tell_of_no_patients
from eden_hf.data.phantoms import SIDES
from eden_hf.data.sources import load_source, read_cell

logger = logging.getLogger(__name__)

Outline = np.ndarray  # [n, 2] float: x, y in [0, 1], in order round the structure
BEYOND = 0.1  # of the side, off the picture: so far a point is taken for one that was cut off, further for a mistake
TOUCH = 0.01  # outlines nearer than this share of the side run along one another


class LandmarkedImage(NamedTuple):
    """A radiograph, mode L, and its `landmarks` by name: `(x, y)` in [0, 1] of width and height, none off the picture.

    The pixel index in an image of side S is `x * S - 0.5`. `patient` and `origin` say whose it is and where it comes
    from (hospital, device, data set), where that is known.
    """

    image: Image.Image
    source_id: str
    landmarks: dict[str, tuple[float, float]]
    patient: str | None = None
    origin: str | None = None

    @property
    def whose(self) -> str:
        """The patient, or one of the image's own where that is not known."""
        return self.source_id if self.patient is None else self.patient


def _furthest(outline: Outline, x: float, y: float) -> Outline:
    """The point of an outline that lies furthest in the direction (x, y)."""
    return outline[np.argmax(outline @ (x, y))]


def _dome_top(lung: Outline, sign: int, heart: Outline) -> Outline:
    """The top of the diaphragm: highest point of the lung's base, a quarter of its width away from both corners.

    The left dome goes on behind the heart: this is the top of what shows beside it.
    """
    outer, inner = int(np.argmax(lung @ (sign * 0.5, 1))), _lowest_touching(lung, heart)
    base = _shorter_way(lung, outer, inner)
    low, high = sorted((lung[outer, 0], lung[inner, 0]))
    x = np.linspace(low + (high - low) / 4, high - (high - low) / 4, 9)
    order = np.argsort(base[:, 0])
    y = np.interp(x, base[order, 0], base[order, 1])
    return np.array([x[y.argmin()], y.min()])


def _lowest_touching(lung: Outline, heart: Outline) -> int:
    """The index of the lung's lowest point along the heart's border: the inner corner of its base."""
    share = np.linspace(0, 1, 20, endpoint=False)[:, None, None]
    border = ((1 - share) * heart + share * np.roll(heart, -1, axis=0)).reshape(-1, 2)
    distance = np.linalg.norm(lung[:, None] - border, axis=2).min(axis=1)
    return int(np.argmax(np.where(distance <= distance.min() + TOUCH, lung[:, 1], -np.inf)))


def _shorter_way(outline: Outline, start: int, stop: int) -> Outline:
    """The points from one index to another, whichever way round has fewer."""
    forth = np.take(outline, range(start, start + (stop - start) % len(outline) + 1), axis=0, mode="wrap")
    back = np.take(outline, range(stop, stop + (start - stop) % len(outline) + 1), axis=0, mode="wrap")
    return min(forth, back, key=len)


def _hilum(lung: Outline, sign: int, heart: Outline) -> Outline:
    """The lung's inner border at the height of its root, two fifths of the way from apex to base."""
    top, bottom = lung[:, 1].min(), lung[:, 1].max()
    closed = np.concatenate([lung, lung[:1]])
    height = top + 0.4 * (bottom - top)
    before, after = closed[:-1], closed[1:]
    crosses = (before[:, 1] - height) * (after[:, 1] - height) <= 0
    before, after = before[crosses], after[crosses]
    step = np.where(after[:, 1] == before[:, 1], 1, after[:, 1] - before[:, 1])
    x = before[:, 0] + (height - before[:, 1]) / step * (after[:, 0] - before[:, 0])
    return np.array([x[np.argmin(sign * x)], height])


#: Landmarks of SCR: the outline each is taken from (on both sides, or in the middle), and how.
_OF_A_SIDE: dict[str, tuple[str, Callable[[Outline, int, Outline], Outline]]] = {
    "lung_apex": ("lung", lambda lung, sign, heart: _furthest(lung, 0, -1)),
    "costophrenic_angle": ("lung", lambda lung, sign, heart: _furthest(lung, sign * 0.5, 1)),
    "dome_top": ("lung", _dome_top),
    "hilum": ("lung", _hilum),
    "clavicle_medial_end": ("clavicle", lambda clavicle, sign, heart: _furthest(clavicle, -sign, 0)),
    "clavicle_middle": ("clavicle", lambda clavicle, sign, heart: clavicle.mean(axis=0)),
    "clavicle_lateral_end": ("clavicle", lambda clavicle, sign, heart: _furthest(clavicle, sign, 0)),
}
_OF_THE_HEART: dict[str, Callable[[Outline], Outline]] = {
    "heart_apex": lambda heart: _furthest(heart, 1, 0.7),
    "heart_base": lambda heart: _furthest(heart, 0, -1),
    "heart_right_border": lambda heart: _furthest(heart, -1, 0),
}
SCR_LANDMARKS = (*(f"{side}_{name}" for side in SIDES for name in _OF_A_SIDE), *_OF_THE_HEART)


def mirror_of(name: str) -> str | None:
    """The landmark on the patient's other side, or `None` for one in the middle."""
    for side, other in (("left_", "right_"), ("right_", "left_")):
        if name.startswith(side):
            return other + name.removeprefix(side)
    return None


def scr_landmarks(outlines: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """The landmarks `SCR_LANDMARKS` of one radiograph.

    Args:
        outlines: `landmarks_heart`, `landmarks_left_lung`, ... as in the columns of SCR: `[n, 2]` in [0, 1].

    Returns:
        `(x, y)` in [0, 1] by name.
    """
    points, heart = {}, np.asarray(outlines["landmarks_heart"], float)
    for side, sign in SIDES.items():
        for name, (structure, find) in _OF_A_SIDE.items():
            points[f"{side}_{name}"] = find(np.asarray(outlines[f"landmarks_{side}_{structure}"], float), sign, heart)
    points |= {name: find(heart) for name, find in _OF_THE_HEART.items()}
    return {name: (float(x), float(y)) for name, (x, y) in points.items()}


def patients_of(images: Sequence[LandmarkedImage]) -> list[str]:
    """Whose each image is.

    Raises:
        ValueError: there are fewer than two patients.
    """
    patients = [item.whose for item in images]
    if len(set(patients)) < 2:
        raise ValueError(f"patients are compared: at least 2 are needed, got {len(images)} images of {set(patients)}")
    return patients


def shared_landmarks(images: Sequence[LandmarkedImage]) -> list[str]:
    """Names of the landmarks that all images have, in the order of the first.

    Raises:
        ValueError: there are fewer than two images, or two such landmarks.
    """
    if len(images) < 2:
        raise ValueError(f"patients are compared: at least 2 images are needed, got {len(images)}")
    names = [name for name in images[0].landmarks if all(name in item.landmarks for item in images)]
    if len(names) < 2:
        raise ValueError(f"at least 2 landmarks that all images have are needed, got {names}")
    return names


def landmark_pixels(item: LandmarkedImage, names: Sequence[str]) -> Tensor:
    """Pixel indices `[L, 2]` of an image's landmarks, float32."""
    shares = torch.tensor([item.landmarks[name] for name in names])
    return shares * torch.tensor(item.image.size) - 0.5


def load_landmarked(
    source: Any,
    split: str = "train",
    *,
    id_column: str | None = None,
    patient_column: str | None = None,
    origin_column: str | None = None,
    images: int | None = None,
) -> list[LandmarkedImage]:
    """Radiographs with their landmarks: SCR's Parquet, phantoms, or any source with a `landmarks` column.

    Args:
        source: As for `load_source`, with the columns `landmarks_heart`, `landmarks_left_lung`, ... of SCR, or one
            column `landmarks` with `(x, y)` in [0, 1], or null, for each name.
        split: Split of the source.
        id_column: Column whose values name the images.
        patient_column: Column that tells patients apart; images are taken for patients by default.
        origin_column: Column that tells where images come from: hospital, device, data set.
        images: How many of the first images with landmarks; all of them by default.

    Returns:
        Images of mode L with their landmarks. A landmark a little off the picture, as where a lung is cut off, counts
        as one that the image does not have. These, and rows without any, are counted in warnings that name them.

    Raises:
        ValueError: the source has no such columns, fewer images with landmarks, or landmarks well outside [0, 1].
    """
    if images is not None and images < 1:
        raise ValueError(f"at least one image is needed, got images={images}")
    data = load_source(source, split=split, id_column=id_column)
    columns = set(data.column_names)
    told: dict[str, list] = {}
    if patient_column:
        told["patient"] = patient_names(data, patient_column)
    else:
        tell_of_no_patients(len(data), "--patient-column")
    if origin_column:
        if origin_column not in columns:
            raise ValueError(f"there is no column {origin_column!r}; {source} has {', '.join(sorted(columns))}")
        told["origin"] = [None if value is None else str(value) for value in data[origin_column]]
    numbered = landmarked_rows(data, source, images)
    loaded = [item._replace(**{field: values[index] for field, values in told.items()}) for index, item in numbered]
    if not loaded or (images is not None and len(loaded) < images):
        asked = "none at all" if images is None else f"{images} were asked"
        raise ValueError(f"{source} has {len(loaded)} images with landmarks in split {split!r}, {asked}")
    return loaded


def landmarked_rows(data: Dataset, source: Any, images: int | None = None) -> list[tuple[int, LandmarkedImage]]:
    """Rows of `load_source` that have landmarks, with their numbers; warnings name those that are left out.

    Args:
        data: The rows.
        source: What messages call them.
        images: How many of the first with landmarks, at most; all of them by default.

    Raises:
        ValueError: there are no such columns, or landmarks that are not as they must be.
    """
    columns = set(data.column_names)
    needed = {"landmarks_heart", *(f"landmarks_{side}_{s}" for side in SIDES for s in ("lung", "clavicle"))}
    if "landmarks" not in columns and not needed <= columns:
        raise ValueError(
            f"{source} has no landmarks: a column 'landmarks' or the columns {', '.join(sorted(needed))} are needed, "
            f"it has {', '.join(sorted(columns))}"
        )
    missing: list[str] = []
    off: list[str] = []
    found = list(_landmarked(data, needed, images, missing, off))
    if off:
        logger.warning("%s: %d landmarks lie off the picture and are left out: %s", source, len(off), off[:5])
    if missing:
        logger.warning("%s: %d images have no landmarks and are left out: %s", source, len(missing), missing[:5])
    return found


def _given(row: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """The points of a row's column `landmarks`, but for those that are null."""
    given = row.get("landmarks")
    try:
        points = {name: point for name, point in (given or {}).items() if point is not None}
        return {name: (float(x), float(y)) for name, (x, y) in points.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{row['source_id']}: `landmarks` holds {str(given)[:60]!r}; it must hold names, each with its x and y as "
            "shares of the image's width and height in [0, 1], or null"
        ) from error


def _landmarked(
    data: Iterable[Mapping[str, Any]], needed: set[str], images: int | None, missing: list[str], off: list[str]
) -> Iterable[tuple[int, LandmarkedImage]]:
    """The first `images` rows that have landmarks, with their numbers; those passed over go to `missing` and `off`."""
    count = 0
    for index, row in enumerate(data):
        if count == images:
            return
        landmarks = _given(row)
        if not landmarks and all(row.get(column) for column in needed):
            landmarks = scr_landmarks(row)
        beyond = {name: max(abs(x - 0.5), abs(y - 0.5)) - 0.5 for name, (x, y) in landmarks.items()}
        if astray := [name for name, share in beyond.items() if not share <= BEYOND]:  # NaN is no place either
            raise ValueError(
                f"{row['source_id']}: {astray[0]} lies at {landmarks[astray[0]]}; landmarks are shares of the image's "
                "width and height in [0, 1]: divide pixels by them, and make points off the picture null"
            )
        off += [f"{row['source_id']}: {name}" for name, share in beyond.items() if share > 0]
        landmarks = {name: point for name, point in landmarks.items() if beyond[name] <= 0}
        if not landmarks:
            missing.append(row["source_id"])
            continue
        count += 1
        picture = read_cell(row["image"], row["source_id"]).convert("L")
        yield index, LandmarkedImage(picture, row["source_id"], landmarks)
