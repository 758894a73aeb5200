"""Patients of a source: who is of a subgroup, and whose each image is."""

import logging
import re
from collections.abc import Mapping
from typing import Any

from datasets import Dataset

from eden_hf.data.errors import SourceError

logger = logging.getLogger(__name__)


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
