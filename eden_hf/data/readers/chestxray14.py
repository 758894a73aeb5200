"""ChestX-ray14 (Wang et al., CVPR 2017): 14 findings, several at a time, on the official lists of patients."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eden_hf.data.errors import first
from eden_hf.data.readers.files import Published, key_of, labelled, plain, read_names, read_table, refuse_repeats
from eden_hf.data.readers.task import Task, TaskError, features_of, with_patients

LAYOUT = """\
Data_Entry_2017.csv             or Data_Entry_2017_v2020.csv
train_val_list.txt
test_list.txt
images/00000001_000.png         or images_001/images/00000001_000.png ... images_012/images/..."""
LABELS = (
    *("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia"),
    *("Pneumothorax", "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia"),
)
NORMAL = "No Finding"
VALIDATION_SHARE = 0.1  # of the patients of the official train_val list


def read(folder: Path, max_skipped_share: float = 0.0) -> Task:
    """Task `chestxray14`, multi-label, mean AUC of 14 findings.

    Test is the official test list. A tenth of the patients of `train_val_list.txt`, drawn with a fixed seed, are the
    validation split; the publishers leave that choice open. A patient is the first part of an image's name.

    Raises:
        TaskError: files are missing or not as published, or a patient is in both lists.
    """
    published = Published(folder, LAYOUT, max_skipped_share)
    table = published.one("Data_Entry_2017*.csv")
    labels = _labels(table)
    train_list, test_list = (published.one(f"{name}_list.txt", f"{name}_list*.txt") for name in ("train_val", "test"))
    lists = {path: read_names(path) for path in (train_list, test_list)}
    for path, listed in lists.items():
        if unknown := [name for name in listed if key_of(name) not in labels]:
            raise TaskError(f"{len(unknown)} images of {path} are not in {table}: {first(unknown)}")
    train, test = lists[train_list], lists[test_list]
    if shared := sorted({_patient(name) for name in train} & {_patient(name) for name in test}):
        raise TaskError(
            f"{len(shared)} patients are in both {train_list} and {test_list}, which are to be apart: {first(shared)}"
        )
    held_out = _validation_patients(train)
    names = {
        "train": [name for name in train if _patient(name) not in held_out],
        "validation": [name for name in train if _patient(name) in held_out],
        "test": test,
    }
    images = published.images("*.png", "*.jpg", "*.jpeg")
    files = images.listed([*train, *test], f"{train_list.name} and {test_list.name}")
    images.report_unlisted(files, "either list")
    rows = {split: {name: files[name] for name in own if name in files} for split, own in names.items()}
    own_labels = {name: labels[key_of(name)] for name in files}
    splits = with_patients(labelled(features_of("multi_label", LABELS), rows, own_labels), _patient)
    return Task("chestxray14", "multi_label", LABELS, "auc", splits)


def _labels(table: Path) -> dict[str, list[float]]:
    """For each image, by its key, a 1 or 0 for each of `LABELS`."""
    rows = read_table(table, ["Image Index", "Finding Labels"])
    refuse_repeats([key_of(row["Image Index"]) for _, row in rows], str(table))
    known = {plain(label): label for label in (NORMAL, *LABELS)}
    labels = {}
    for where, row in rows:
        findings = {known.get(plain(word)) for word in row["Finding Labels"].split("|")}
        if None in findings or (NORMAL in findings and len(findings) > 1):
            raise TaskError(
                f"{where}: image {row['Image Index']} has the findings {row['Finding Labels']!r}; known are "
                f"{', '.join(LABELS)}, joined by '|', or {NORMAL} alone"
            )
        labels[key_of(row["Image Index"])] = [float(label in findings) for label in LABELS]
    return labels


def _patient(name: str) -> str:
    return key_of(name).split("_")[0]


def _validation_patients(names: Sequence[str]) -> set[str]:
    patients = sorted({_patient(name) for name in names})
    count = max(1, round(VALIDATION_SHARE * len(patients))) if len(patients) > 1 else 0
    return {patients[index] for index in np.random.default_rng(0).permutation(len(patients))[:count]}
