"""ChestX-Det (Lian et al., arXiv 2104.10326): 13 diseases outlined on images of ChestX-ray14."""

from pathlib import Path
from typing import Any

from eden_hf.data.readers.files import Published, read_json, refuse_repeats
from eden_hf.data.readers.masks import Row, drawn, outlines_of
from eden_hf.data.readers.task import Task, TaskError, features_of

LAYOUT = """\
ChestX_Det_train.json     [{"file_name", "syms": [disease ...], "boxes": [...], "polygons": [[[x, y] ...] ...]} ...]
ChestX_Det_test.json
train/36204.png ...       or train_data/...
test/36199.png ...        or test_data/..."""
LABELS = (
    *("Atelectasis", "Calcification", "Cardiomegaly", "Consolidation", "Diffuse Nodule", "Effusion", "Emphysema"),
    *("Fibrosis", "Fracture", "Mass", "Nodule", "Pleural Thickening", "Pneumothorax"),
)
KEYS = ("file_name", "syms", "polygons")


def read(folder: Path, max_skipped_share: float = 0.0) -> Task:
    """Task `chestx_det`, Dice of 13 diseases.

    Splits are the official ones, without validation. The findings of one disease are one mask, the union of their
    polygons; diseases overlap. Images without finding stay, with empty masks.

    Raises:
        TaskError: files are missing or not as published.
    """
    published = Published(folder, LAYOUT, max_skipped_share)
    lists = {split: published.one(f"ChestX_Det_{split}.json") for split in ("train", "test")}
    entries = {split: _entries(path) for split, path in lists.items()}
    images = {split: published.images_of(split, "/*", "_data/*") for split in lists}
    rows = {}
    for split, other in (("train", "test"), ("test", "train")):
        files = images[split].listed(entries[split], lists[split].name, images[other])
        images[split].report_unlisted(entries[split], lists[split].name)
        rows[split] = [Row(name, str(path.absolute()), entries[split][name]) for name, path in files.items()]
    splits = drawn(features_of("segmentation", LABELS), rows, outlines_of(LABELS))
    return Task("chestx_det", "segmentation", LABELS, "dice", splits)


def _entries(path: Path) -> dict[str, dict[str, list[Any]]]:
    """For each image the polygons of each disease that it has."""
    entries = read_json(path, list)
    for entry in entries:
        if not isinstance(entry, dict) or (absent := [key for key in KEYS if key not in entry]):
            found = f"lacks {', '.join(absent)}" if isinstance(entry, dict) else "is no object"
            raise TaskError(f"{path}: an entry {found}; it is {str(entry)[:100]}")
        if len(entry["syms"]) != len(entry["polygons"]):
            raise TaskError(
                f"{path}: image {entry['file_name']} has {len(entry['syms'])} syms and {len(entry['polygons'])} "
                "polygons, which are to go in pairs"
            )
        if unknown := set(entry["syms"]).difference(LABELS):
            raise TaskError(
                f"{path}: image {entry['file_name']} has the unknown syms {', '.join(sorted(unknown))}; known are "
                f"{', '.join(LABELS)}"
            )
    refuse_repeats([entry["file_name"] for entry in entries], str(path))
    return {
        entry["file_name"]: {
            label: [polygon for own, polygon in zip(entry["syms"], entry["polygons"], strict=True) if own == label]
            for label in sorted(set(entry["syms"]))
        }
        for entry in entries
    }
