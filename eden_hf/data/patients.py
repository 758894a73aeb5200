"""Patients of a source: who is of a subgroup, and whose each image is."""

import logging
import re
from collections.abc import Mapping
from typing import Any, Literal

from datasets import Dataset

from eden_hf.data.errors import SourceError, first
from eden_hf.data.splits import in_order

logger = logging.getLogger(__name__)

#: Missing values, as programs write them.
_MISSING = frozenset(("", "nan", "none", "null", "<na>", "n/a"))


def patient_names(rows: Dataset, column: str) -> list[str]:
    """Whose each image is, by a column; one that it does not tell of is a patient of its own, counted in a warning.

    Args:
        rows: As of `load_source`.
        column: Of names or numbers (12 and 12.0 are one).

    Raises:
        SourceError: there is no such column.
    """
    told = zip(told_patients(rows, column), rows["source_id"], strict=True)
    return [f"image {source_id}" if name is None else name for name, source_id in told]


def patients_or_images(rows: Dataset, column: str | None, setting: str) -> list[str]:
    """Whose each image is, by a column, or each image a patient of its own where none is named, which is logged.

    Args:
        rows: As of `load_source`.
        column: As for `patient_names`.
        setting: What names the column, for the log.

    Raises:
        SourceError: there is no such column.
    """
    if column:
        return patient_names(rows, column)
    tell_of_no_patients(len(rows), setting)
    return list(rows["source_id"])


def tell_of_no_patients(images: int, setting: str) -> None:
    """Log that images are taken for patients, as no column tells these apart."""
    logger.info("each of %d images counts as a patient: give %s if some are of the same patient", images, setting)


def patients_apart(
    splits: Mapping[str, Dataset], column: str, shared: Literal["refuse", "drop"] = "refuse"
) -> dict[str, Dataset]:
    """Splits that share no patient.

    Args:
        splits: Given splits, by their usual names.
        column: As for `patient_names`.
        shared: `refuse` splits that share patients, or `drop` the images of these from the split that learns: from
            `train` those of `validation` and `test`, from `validation` those of `test`.

    Raises:
        SourceError: there is no such column, splits share patients, or nothing is left of one.
    """
    kept: dict[str, Dataset] = {}
    taken: set[str] = set()
    found = []
    for split in reversed(in_order(splits)):
        names = told_patients(splits[split], column)
        if common := taken.intersection(names):
            found.append(f"{len(common)} of {split} ({first(sorted(common))})")
        kept[split] = splits[split].select([index for index, name in enumerate(names) if name not in common])
        taken.update(name for name in names if name is not None)
    if found and shared == "refuse":
        raise SourceError(
            f"splits share patients by {column}: in another split are {', '.join(found)} as well; part the splits by "
            "patient, or set `task.shared_patients` to drop, which leaves these patients' images out of training"
        )
    for split, rows in kept.items():
        if dropped := len(splits[split]) - len(rows):
            logger.warning("%d images of %s left out: their patients are in another split", dropped, split)
        if not len(rows):
            raise SourceError(f"all patients of {split} are in another split by {column}: nothing is left of it")
    return {split: kept[split] for split in splits}


def told_patients(rows: Dataset, column: str) -> list[str | None]:
    """Whose each image is, `None` where the column does not tell; arguments and errors as for `patient_names`."""
    if column not in rows.column_names:
        raise SourceError(
            f"`patient_column` must name a column of the images, got {column!r}; they have "
            f"{', '.join(rows.column_names)}"
        )
    names = [_patient(value) for value in rows[column]]
    if unknown := names.count(None):
        logger.warning("%d of %d images have no %s: each counts as a patient of its own", unknown, len(names), column)
    return names


def _patient(value: Any) -> str | None:
    name = str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()
    return None if name.casefold() in _MISSING else name


def of_subgroup(data: Dataset, subgroup: Mapping[str, str]) -> Dataset:
    """The rows of a subgroup of patients; rows without a value, which no subgroup has, are counted in a warning.

    Args:
        data: Rows, as of `load_source`.
        subgroup: For each column its value (`{"sex": "F"}`), or a range of numbers with both ends (`{"age": "0-59"}`).

    Raises:
        SourceError: there is no such column, or nobody is in the subgroup.
    """
    for column, wanted in subgroup.items():
        if column not in data.column_names:
            raise SourceError(
                f"there is no column {column!r} to tell patients by, only {', '.join(data.column_names)}"
            )
        values = data[column]
        if unknown := sum(value is None for value in values):
            logger.warning("%d of %d rows have no %s and are in no subgroup", unknown, len(values), column)
        kept = [index for index, value in enumerate(values) if value is not None and _is_of(value, str(wanted))]
        if not kept:
            known = ", ".join(sorted({str(value) for value in values if value is not None})[:10])
            raise SourceError(f"nobody has {column} {wanted!r}; there are {known}")
        data = data.select(kept)
    return data


def _is_of(value: Any, wanted: str) -> bool:
    """Whether a value is the wanted one, or a number in the wanted range."""
    ends = re.fullmatch(r"(\d+)-(\d+)", wanted)
    if ends and isinstance(value, int | float):
        return int(ends[1]) <= value <= int(ends[2])
    return str(value) == wanted
