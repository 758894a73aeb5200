"""SIIM-ACR Pneumothorax Segmentation (Kaggle 2019): the pneumothorax as run lengths."""

from pathlib import Path

import numpy as np

from eden_hf.data.readers.files import Published, read_table, seeded_split
from eden_hf.data.readers.masks import Cell, Row, Size, decode_runs, drawn, mask_cell
from eden_hf.data.readers.task import Task, TaskError, features_of

LAYOUT = """\
train-rle.csv                   ImageId, EncodedPixels; or stage_2_train.csv, the same of the second stage
dicom-images-train/1.2.276.0.../1.2.276.0.../1.2.276.0....dcm ..."""
LABELS = ("pneumothorax",)
NO_MASK = "-1"
_SPELLINGS = {"Image Id": "ImageId", "Encoded Pixels": "EncodedPixels"}


def read(folder: Path, max_skipped_share: float = 0.0) -> Task:
    """Task `siim_acr`, Dice of the pneumothorax.

    The labels of the challenge's test images are not public: the training images are split 70 % train, 10 %
    validation, 20 % test, with and without pneumothorax alike, by a fixed seed, each as a patient of its own (the
    DICOM identifiers link no two of them, as far as is known). Several rows of an image are several masks, of which
    the union counts; images without pneumothorax stay, with an empty mask. Where both tables lie in the folder,
    `train-rle.csv` is read.

    Raises:
        TaskError: files are missing or not as published.
    """
    published = Published(folder, LAYOUT, max_skipped_share)
    table = published.one("train-rle.csv", "stage_2_train.csv")
    runs = _runs(table)
    images = published.images("*.dcm", "*.dicom")
    if not images.paths:
        images = published.images("*.png")
    files = images.listed(runs, table.name)
    images.report_unlisted(runs, table.name)
    splits = seeded_split({name: bool(runs[name]) for name in files})
    rows = {
        split: [Row(name, str(files[name].absolute()), runs[name], listing=table.name) for name in names]
        for split, names in splits.items()
    }
    return Task("siim_acr", "segmentation", LABELS, "dice", drawn(features_of("segmentation", LABELS), rows, _draw))


def _runs(table: Path) -> dict[str, tuple[str, ...]]:
    """For each image the run lengths of its masks."""
    found: dict[str, list[str]] = {}
    for _, row in read_table(table, ["ImageId", "EncodedPixels"], _SPELLINGS):
        found.setdefault(row["ImageId"], []).append(row["EncodedPixels"])
    for name, own in found.items():
        if NO_MASK in own and len(own) > 1:
            raise TaskError(f"{table}: image {name} has a mask and is said to have none ({NO_MASK})")
    return {name: () if own == [NO_MASK] else tuple(own) for name, own in found.items()}


def _draw(runs: tuple[str, ...], size: Size) -> dict[str, list[Cell]]:
    inside = np.zeros(size[::-1], bool)
    for text in runs:
        inside |= decode_runs(text, size)
    return {"masks": [mask_cell(inside)]}
