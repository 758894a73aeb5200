"""Tables in a folder of images, `metadata.csv` and `metadata.jsonl`, in the form that `imagefolder` of `datasets` has.

`file_name` names the image of a row, relative to the table's folder, and a column `NAME_file_name` its mask `NAME`.
"""

import logging
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
from datasets import Dataset, DatasetDict, Image, concatenate_datasets
from pyarrow import csv

from eden_hf.data.errors import first
from eden_hf.data.folders import IMAGE_SUFFIXES, image_rows, list_files
from eden_hf.data.readers.task import TaskError
from eden_hf.data.splits import split_folders
from eden_hf.data.text_files import parse_lines, read_text

logger = logging.getLogger(__name__)

NAMES = ("metadata.csv", "metadata.jsonl")
FILE = "file_name"
_OF_MASK = f"_{FILE}"


def with_metadata(folder: Path, needed: bool) -> DatasetDict | None:
    """The images that a folder's tables name, with the tables' columns, by split.

    Args:
        folder: Of images, at any depth.
        needed: Whether columns of the tables are asked for. If not, tables of another kind are passed over.

    Returns:
        Splits as those of `load_source`, with masks as `Image(decode=False)`; `None` where no table names images.

    Raises:
        TaskError: a table cannot be read, or (where it is needed) does not name images.
    """
    files = list_files(folder)[0]
    tables = {file: _read(folder / file) for file in files if PurePosixPath(file).name.lower() in NAMES}
    strangers = [file for file, rows in tables.items() if not any(FILE in row for row in rows)]
    if strangers:
        if needed:
            _refuse_lists(folder / strangers[0], tables[strangers[0]])
        has = ", ".join({column: None for row in tables[strangers[0]] for column in row})
        message = f"{folder / strangers[0]} has no column {FILE}, which says what image a row is of; it has {has}"
        if needed:
            raise TaskError(f"{message}: rename the column that names the images to {FILE}, relative to the table")
        logger.warning("%s: it is not read, folders name the classes", message)
        return None
    rows = [row for file, own in tables.items() for row in _resolved(folder, file, own)]
    return _by_split(folder, rows, files) if rows else None


def _read(path: Path) -> list[dict[str, Any]]:
    """The rows of a table; values that are missing are `None`."""
    try:
        text = read_text(path)
        return parse_lines(text.split("\n")) if path.suffix.lower() == ".jsonl" else _csv_rows(text)
    except (ValueError, pa.ArrowInvalid) as error:
        raise TaskError(f"{path} cannot be read: {error}") from error


def _csv_rows(text: str) -> list[dict[str, Any]]:
    """Rows of values separated by comma, semicolon or tab, whichever the header has most of; blanks are missing."""
    header = text.split("\n", 1)[0]
    table = csv.read_csv(
        BytesIO(text.encode()),
        read_options=csv.ReadOptions(use_threads=False),  # so that errors tell the row
        parse_options=csv.ParseOptions(delimiter=max(",;\t", key=header.count)),
        convert_options=csv.ConvertOptions(null_values=[""], strings_can_be_null=True),
    )
    names = [name.strip() for name in table.column_names]
    if twice := [name for name, count in Counter(filter(None, names)).items() if count > 1]:
        raise ValueError(f"there are two columns {twice[0]}; remove one")
    rows = table.rename_columns(names).to_pylist()
    return [{name: _stripped(value) for name, value in row.items()} for row in rows]


def _stripped(value: Any) -> Any:
    return value.strip() or None if isinstance(value, str) else value


def _resolved(folder: Path, table: str, rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows with file names relative to `folder`."""
    here = posixpath.dirname(table)
    _refuse_lists(folder / table, rows)
    for number, row in enumerate(rows, 1):
        if row.get(FILE) is None:
            raise TaskError(f"{folder / table}: row {number} has no {FILE}")
        names = {column for column in row if column == FILE or column.endswith(_OF_MASK)}
        paths = {name: _inside(here, row[name]) for name in names if row[name] is not None}
        if outside := [row[name] for name, path in paths.items() if path is None]:
            raise TaskError(
                f"{folder / table}: row {number} names {str(outside[0])[:200]!r}, which lies outside {folder}; put "
                "the file in, and name it by its path from the table"
            )
        yield {**row, **paths}


def _inside(here: str, name: Any) -> str | None:
    """The path of a file in the folder, as a table in `here` names it; `None` of one outside."""
    path = posixpath.normpath(posixpath.join(here, str(name).replace("\\", "/")))
    return None if path.startswith(("/", "../")) or re.match(r"[A-Za-z]:|\w+://", str(name)) else path


def _refuse_lists(table: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Refuse several files in one cell, which `imagefolder` calls `file_names`."""
    for number, row in enumerate(rows, 1):
        for column, value in row.items():
            if column.endswith(f"{FILE}s") or (column.endswith(FILE) and isinstance(value, list)):
                raise TaskError(
                    f"{table}: row {number} names several files in {column}; give each image a row with its {FILE}, "
                    f"and each mask a column NAME{_OF_MASK}: `mask_columns` unites those of one structure "
                    "({heart: [heart_1, heart_2]})"
                )


def _by_split(folder: Path, rows: Sequence[Mapping[str, Any]], files: Sequence[str]) -> DatasetDict:
    """The rows as data sets, with undecoded images and masks."""
    images: list[str] = [row[FILE] for row in rows]
    if repeated := [image for image, count in Counter(images).items() if count > 1]:
        raise TaskError(f"the tables in {folder} name images more than once: {first(repeated)}; leave one row of each")
    columns = {name: [row.get(name) for row in rows] for row in rows for name in row if name != FILE}
    masks = {name.removesuffix(_OF_MASK): columns.pop(name) for name in list(columns) if name.endswith(_OF_MASK)}
    if taken := {"image", "source_id", *masks} & columns.keys():
        raise TaskError(f"rename the columns {first(sorted(taken))} of the tables in {folder}: the names are taken")
    _report_unlisted(folder, files, {*images, *(mask for own in masks.values() for mask in own if mask)})
    data = image_rows(folder, images)
    if columns or masks:
        columns |= {name: [_cell(folder, mask) for mask in own] for name, own in masks.items()}
        data = concatenate_datasets([data, _as_data(folder, columns, masks)], axis=1)
    index = {image: number for number, image in enumerate(images)}
    splits = split_folders(images, folder)
    return DatasetDict({split: data.select([index[image] for image in own]) for split, own in splits.items()})


def _as_data(folder: Path, columns: Mapping[str, list[Any]], masks: Iterable[str]) -> Dataset:
    try:
        data = Dataset.from_dict(columns)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeEncodeError) as error:
        raise TaskError(f"a column of the tables in {folder} holds values of unlike kinds: {error}") from error
    for name in masks:
        data = data.cast_column(name, Image(decode=False))
    return data


def _cell(folder: Path, file: str | None) -> dict[str, Any] | None:
    return None if file is None else {"bytes": None, "path": str(folder.absolute() / file)}


def _report_unlisted(folder: Path, files: Sequence[str], listed: set[str]) -> None:
    images = [file for file in files if PurePosixPath(file).suffix.lower() in IMAGE_SUFFIXES]
    if others := [file for file in images if file not in listed]:
        logger.warning("%s: no table names %d images: %s", folder, len(others), first(others))
