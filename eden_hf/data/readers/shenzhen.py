"""Shenzhen chest X-ray set (Jaeger et al., QIMS 2014): tuberculosis or not."""

from pathlib import Path

from eden_hf.data.errors import first
from eden_hf.data.readers.files import Published, labelled, seeded_split
from eden_hf.data.readers.task import Task, features_of

LAYOUT = """\
ChinaSet_AllFiles/CXR_png/CHNCXR_0001_0.png ...     the last digit is the label: 0 normal, 1 tuberculosis
ChinaSet_AllFiles/ClinicalReadings/CHNCXR_0001_0.txt ...     not read"""
LABELS = ("normal", "tuberculosis")


def read(folder: Path, max_skipped_share: float = 0.0) -> Task:
    """Task `shenzhen`, two classes, AUC.

    There is no official split: 70 % train, 10 % validation and 20 % test of each class, by a fixed seed. One image a
    patient, as far as is known.

    Args:
        folder: Where the files are.
        max_skipped_share: Of no effect: no list names the images.

    Raises:
        TaskError: there are no images, or an image is there twice.
    """
    published = Published(folder, LAYOUT, max_skipped_share)
    images = published.images("CHNCXR_*_[01].*")
    if not images.paths:
        raise published.error("there are no images CHNCXR_*_0.png and CHNCXR_*_1.png")
    if strange := [name for name in images.paths if name[-1] not in "01"]:
        raise published.error(f"what ends with no label, 0 or 1, before its suffix: {first(sorted(strange))}")
    labels = {name: int(name[-1]) for name in images.paths}
    if len(set(labels.values())) < 2:
        raise published.error(f"all {len(labels)} images are of one class, {LABELS[labels.popitem()[1]]}")
    files = images.listed(labels, "the folder")
    rows = {split: {name: files[name] for name in own} for split, own in seeded_split(labels).items()}
    return Task("shenzhen", "single_label", LABELS, "auc", labelled(features_of("single_label", LABELS), rows, labels))
