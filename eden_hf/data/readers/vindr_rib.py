"""VinDr-RibCXR (Nguyen et al., MIDL 2021): twenty ribs, each outlined."""

from pathlib import Path, PureWindowsPath
from typing import Any

from eden_hf.data.readers.files import Published, plain, read_json
from eden_hf.data.readers.masks import Row, drawn, outlines_of
from eden_hf.data.readers.task import Task, TaskError, features_of

LAYOUT = """\
Data/train/Vindr_RibCXR_train_mask.json     {"img": {"0": "data/train/img/VinDr_RibCXR_train_000.png" ...},
Data/train/img/VinDr_RibCXR_train_000.png ...    "R1": {"0": [{"x": 1027.8, "y": 470.7} ...] ...}, ... "L10": {...}}
Data/val/Vindr_RibCXR_val_mask.json
Data/val/img/VinDr_RibCXR_val_196.png ..."""
LABELS = tuple(f"{side}{number}" for side in "RL" for number in range(1, 11))
SPLITS = {"train": "train", "test": "val"}


def read(folder: Path, max_skipped_share: float = 0.0) -> Task:
    """Task `vindr_rib`, Dice of twenty ribs: `R1` to `R10` and `L1` to `L10`, right and left the patient's.

    Train are the 196 published training images; test the 49 that the files call `val` and the paper its independent
    test set. Ribs overlap. A rib that was not outlined (`"None"` or null in the file) has an empty mask.

    Raises:
        TaskError: files are missing or not as published.
    """
    published = Published(folder, LAYOUT, max_skipped_share)
    images = published.images("*.png", "*.jpg", "*.jpeg")
    rows = {}
    for split, word in SPLITS.items():
        path = published.one(f"*RibCXR_{word}_mask.json", f"*{word}*.json")
        outlines = _outlines(path)
        files = images.listed(outlines, path.name)
        rows[split] = [
            Row(name, str(file.absolute()), outlines[name], listing=path.name) for name, file in files.items()
        ]
    images.report_unlisted([row.source_id for own in rows.values() for row in own], "either list")
    splits = drawn(features_of("segmentation", LABELS), rows, outlines_of(LABELS))
    return Task("vindr_rib", "segmentation", LABELS, "dice", splits)


def _outlines(path: Path) -> dict[str, dict[str, list[Any]]]:
    """For each image, by its file's name, the outline of each rib that has one."""
    known: dict[str, str] = {plain(key): key for key in ("img", *LABELS)}
    content = {known.get(plain(str(key)), str(key)): value for key, value in read_json(path, dict).items()}
    if absent := [key for key in ("img", *LABELS) if not isinstance(content.get(key), dict)]:
        raise TaskError(f"{path} has no {', '.join(absent)} by image; it has {', '.join(content)}")
    outlines = {}
    for index, file in content["img"].items():
        if not isinstance(file, str):
            raise TaskError(f"{path}: img of image {index} is no file name: {str(file)[:60]}")
        ribs = {label: _points(content[label], index, f"{path}: {label} of image {index}") for label in LABELS}
        outlines[PureWindowsPath(file).name] = {label: [points] for label, points in ribs.items() if points}
    if len(outlines) < len(content["img"]):
        raise TaskError(f"{path} names {len(content['img'])} images by {len(outlines)} file names only")
    return outlines


def _points(ribs: dict[str, Any], index: str, where: str) -> list[list[float]]:
    if index not in ribs:
        raise TaskError(f'{where} is missing; a rib that is not seen is to be "None"')
    if ribs[index] in (None, "None"):
        return []
    try:
        return [[float(point["x"]), float(point["y"])] for point in ribs[index]]
    except (KeyError, TypeError, ValueError) as error:
        raise TaskError(f"{where} is no list of points {{x, y}}: {str(ribs[index])[:60]}") from error
