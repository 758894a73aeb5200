"""Vessels of the retina: DRIVE (Staal et al., IEEE TMI 2004) and CHASE_DB1 (Fraz et al., IEEE TBME 2012)."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Image

from eden_hf.data.readers.files import Images, Published
from eden_hf.data.readers.masks import Row, Size, drawn, mask_cell, read_mask
from eden_hf.data.readers.task import Task, features_of, with_patients

DRIVE_LAYOUT = """\
training/images/21_training.tif ...
training/1st_manual/21_manual1.gif ...
training/mask/21_training_mask.gif ...     the field of view
test/images/01_test.tif ...
test/1st_manual/01_manual1.gif ...
test/mask/01_test_mask.gif ..."""
CHASE_LAYOUT = """\
Image_01L.jpg ... Image_14R.jpg
Image_01L_1stHO.png ...     vessels by the first observer
Image_01L_2ndHO.png ...     by the second"""
LABELS = ("vessels",)
_CHASE_NAME = r"Image_(0[1-9]|1[0-4])[LR]"
CHASE_TRAIN_SUBJECTS = 10  # of 14: the usual first 20 and last 8 images


def read_drive(folder: Path, max_skipped_share: float = 0.0) -> Task:
    """Task `drive`, Dice of the vessels by the first observer, on the official splits, without validation.

    The column `field_of_view` is the published mask of the round picture, null where the folder `mask` is not there.

    Raises:
        TaskError: files are missing or not as published. The present download leaves out the test images'
            `1st_manual`; they are in the older one.
    """
    published = Published(folder, DRIVE_LAYOUT, max_skipped_share)
    rows = {split: _drive_rows(published, split, word) for split, word in (("train", "training"), ("test", "test"))}
    return _vessels("drive", rows, "field_of_view")


def _drive_rows(published: Published, split: str, word: str) -> list[Row]:
    images, manual, view = (
        _keyed(published.images_of(split, f"/{folder}/*", called=word), _before_first)
        for folder in ("images", "1st_manual", "mask")
    )
    if not images.paths:
        raise published.error(f"there are no images in {word}/images")
    names = [path.name for paths in images.paths.values() for path in paths]
    strange = sorted(name for name in names if f"_{word}." not in name.lower())
    if strange:
        raise published.error(f"{word}/images holds {strange[0]}: are the training and test folders swapped?")
    if not manual.paths:
        raise published.error(
            f"there are no vessels in {word}/1st_manual"
            + (" (the present download leaves them out; the older one has them)" if word == "test" else "")
        )
    files = images.listed(sorted(images.paths), f"{word}/images")
    return _rows(files, manual, view, f"{word}/images")


def read_chase(folder: Path, max_skipped_share: float = 0.0) -> Task:
    """Task `chase`, Dice of the vessels by the first observer; subjects 1 to 10 train, 11 to 14 test.

    The split is the usual one, not an official one: 20 and 8 images, both eyes of a child together. The column
    `second_observer` is the other observer's mask, null where it is not there; `patient` tells whose eye it is.

    Raises:
        TaskError: files are missing or not as published.
    """
    published = Published(folder, CHASE_LAYOUT, max_skipped_share)
    images = published.images("Image_*[LR].*")
    if not images.paths:
        raise published.error("there are no images Image_01L.jpg ... Image_14R.jpg")
    if strange := sorted(name for name in images.paths if not re.fullmatch(_CHASE_NAME, name, re.IGNORECASE)):
        raise published.error(f"{strange[0]} is none of the images Image_01L to Image_14R")
    first = _keyed(published.images("Image_[01][0-9][LR]_1stHO.*"), _before_last)
    second = _keyed(published.images("Image_[01][0-9][LR]_2ndHO.*"), _before_last)
    names = sorted(images.paths)
    rows: dict[str, list[Row]] = {"train": [], "test": []}
    for row in _rows(images.listed(names, "the folder"), first, second, "the folder"):
        subject = int(row.source_id[len("Image_") : -1])
        rows["train" if subject <= CHASE_TRAIN_SUBJECTS else "test"].append(row)
    task = _vessels("chase", rows, "second_observer")
    return replace(task, splits=with_patients(task.splits, lambda name: name[:-1].lower()))


def _before_first(name: str) -> str:
    return name.split("_")[0]


def _before_last(name: str) -> str:
    return name.rpartition("_")[0]


def _keyed(images: Images, key: Callable[[str], str]) -> Images:
    """Image files by a part of their names."""
    paths: dict[str, list[Path]] = {}
    for name, own in images.paths.items():
        paths.setdefault(key(name), []).extend(own)
    return Images(images.published, images.where, paths)


def _rows(files: Mapping[str, Path], vessels: Images, other: Images, listing: str) -> list[Row]:
    """Images with their vessels and, where there are any, their other masks."""
    masks = vessels.listed(files, listing)
    others = other.listed(files, listing) if other.paths else {}
    vessels.report_unlisted(files, listing)
    rows = []
    for name in files:
        if name in masks:
            pair = tuple(str(path.absolute()) if path else None for path in (masks[name], others.get(name)))
            rows.append(Row(name, str(files[name].absolute()), pair, tuple(path for path in pair if path)))
    return rows


def _draw(masks: tuple[str, str | None], size: Size, column: str) -> dict[str, Any]:
    vessels, other = (mask_cell(read_mask(path, size)) if path else None for path in masks)
    return {"masks": [vessels], column: other}


def _vessels(name: str, rows: Mapping[str, Sequence[Row]], column: str) -> Task:
    """A task whose masks come with another one, in a column of its own."""
    features = features_of("segmentation", LABELS)
    features[column] = Image(decode=False)
    return Task(name, "segmentation", LABELS, "dice", drawn(features, rows, partial(_draw, column=column)))
