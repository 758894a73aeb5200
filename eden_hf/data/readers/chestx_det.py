"""ChestX-Det (Lian et al., arXiv 2104.10326): 13 diseases outlined on images of ChestX-ray14."""

from pathlib import Path
from typing import Any

from eden_hf.data.readers.files import Published, plain, read_json, refuse_repeats
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
KEYS = {"file_name": str, "syms": list, "polygons": list}
_LABELS = {plain(label): label for label in LABELS}


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
        rows[split] = [
            Row(name, str(path.absolute()), entries[split][name], listing=lists[split].name)
            for name, path in files.items()
        ]
    splits = drawn(features_of("segmentation", LABELS), rows, outlines_of(LABELS))
    return Task("chestx_det", "segmentation", LABELS, "dice", splits)


def _entries(path: Path) -> dict[str, dict[str, list[Any]]]:
    """For each image the polygons of each disease that it has."""
    entries = read_json(path, list)
    polygons = [_polygons(entry, f"{path}, entry {number}") for number, entry in enumerate(entries, 1)]
    names = [entry["file_name"] for entry in entries]
    refuse_repeats(names, str(path))
    return dict(zip(names, polygons, strict=True))


def _polygons(entry: Any, where: str) -> dict[str, list[Any]]:
    if not isinstance(entry, dict) or (absent := [key for key in KEYS if key not in entry]):
        found = f"lacks {', '.join(absent)}" if isinstance(entry, dict) else "is no object"
        raise TaskError(f"{where}: an entry {found}; it is {str(entry)[:100]}")
    for key, kind in KEYS.items():
        if not isinstance(entry[key], kind):
            raise TaskError(f"{where}: {key} is to be a {kind.__name__}, got {str(entry[key])[:100]}")
    image, found, polygons = f"image {entry['file_name'][:100]}", entry["syms"], entry["polygons"]
    if len(found) != len(polygons):
        raise TaskError(
            f"{where}: {image} has {len(found)} syms and {len(polygons)} polygons, which are to go in pairs"
        )
    labels = [_LABELS.get(plain(str(label))) for label in found]
    if unknown := {str(own)[:100] for own, label in zip(found, labels, strict=True) if label is None}:
        raise TaskError(
            f"{where}: {image} has the unknown syms {', '.join(sorted(unknown))}; known are {', '.join(LABELS)}"
        )
    by_label: dict[str, list[Any]] = {}
    for label, polygon in zip(labels, polygons, strict=True):
        by_label.setdefault(str(label), []).append(polygon)
    return by_label
