"""Downstream tasks: labelled images in one shape, from a raw published layout or from any source.

`load_task` knows the data sets of the paper (arXiv 2309.15358) by name, each read by its own module in
`eden_hf.data.readers`; `load_source_task` takes any folder, Parquet or Hub data set with label or mask columns.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import PIL.Image
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value

from eden_hf.data.sources import SPLIT_NAMES, find_source, read_cell

Kind: TypeAlias = Literal["single_label", "multi_label", "regression", "segmentation"]
#: The metric by which a kind of task is judged where its publishers name no other.
USUAL_METRIC = {"single_label": "accuracy", "multi_label": "auc", "regression": "mae", "segmentation": "dice"}


@dataclass(frozen=True)
class Task:
    """Labelled images to fine-tune on and to measure by.

    Attributes:
        name: Such as `scr_heart`.
        kind: `single_label`, `multi_label`, `regression` or `segmentation`.
        labels: Names of the classes, of the labels, of the values or of the structures.
        metric: Name of the primary metric: `accuracy`, `auc`, `mae` or `dice`.
        splits: `train`, `test` and, where one is official, `validation`. Columns: `image` (`{bytes, path}`, which
            `read_cell` opens), `source_id`, and what is to be learned: `label`, an index into `labels`
            (`single_label`) or a list of float32, one for each of `labels`, NaN where unknown (`multi_label`,
            `regression`); or `masks`, a list with an image of the image's size for each of `labels`, above 0 inside
            (`segmentation`: structures may overlap).
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    metric: str
    splits: DatasetDict


class TaskError(ValueError):
    """A task's files are missing, misplaced or not as published; the message says what was looked for and where."""


def features_of(kind: Kind, labels: Sequence[str]) -> Features:
    """The columns of a task's splits."""
    features = Features({"image": Image(decode=False), "source_id": Value("string")})
    if kind == "segmentation":
        features["masks"] = List(Image(decode=False), length=len(labels))
    elif kind == "single_label":
        features["label"] = ClassLabel(names=list(labels))
    else:
        features["label"] = List(Value("float32"), length=len(labels))
    return features


def load_source_task(
    source: Any,
    kind: Kind,
    *,
    label_column: str | None = None,
    label_columns: Sequence[str] = (),
    mask_columns: Mapping[str, Sequence[str]] | Sequence[str] = (),
    image_column: str = "image",
    id_column: str | None = None,
    metric: str | None = None,
) -> Task:
    """A task from any source that `load_source` takes, with all the splits that it has.

    Args:
        source: Folder, Parquet, Hub id or object of `datasets`. In a folder of images without columns, the label of
            a `single_label` task is the name of the image's folder.
        kind: What is learned.
        label_column: Column with the class of each image, a name or number (`single_label`).
        label_columns: Columns with a number each (`multi_label`: 0, 1 or missing; `regression`).
        mask_columns: Columns with a mask each (`segmentation`), or for each structure the columns whose masks make
            it up: `{"clavicles": ["left_clavicle", "right_clavicle"]}`.
        image_column: Column with the images.
        id_column: Column whose values name the images.
        metric: The primary metric, the kind's usual one by default.

    Raises:
        TaskError: columns are not given for this kind, or the source does not have them.
    """
    structures = dict(mask_columns) if isinstance(mask_columns, Mapping) else {name: [name] for name in mask_columns}
    found = find_source(source)
    loaded = {
        split: found.load(split, image_column=image_column, id_column=id_column)
        for split in sorted(found.splits, key=lambda name: (*SPLIT_NAMES, name).index(name))
    }
    needed = {
        "single_label": [label_column] if label_column else [],
        "multi_label": list(label_columns),
        "regression": list(label_columns),
        "segmentation": [column for columns in structures.values() for column in columns],
    }[kind]
    _check_columns(found.name, kind, needed, loaded)
    if kind == "single_label":
        labels, splits = _with_classes(loaded, label_column)
    elif kind == "segmentation":
        labels = tuple(structures)
        splits = {name: _with_masks(data, structures) for name, data in loaded.items()}
    else:
        labels = tuple(label_columns)
        splits = {name: _with_numbers(data, labels) for name, data in loaded.items()}
    return Task(found.name, kind, labels, metric or USUAL_METRIC[kind], DatasetDict(splits))


def _check_columns(name: str, kind: Kind, needed: Sequence[str], loaded: Mapping[str, Dataset]) -> None:
    if not needed and kind != "single_label":
        argument = "mask_columns" if kind == "segmentation" else "label_columns"
        raise TaskError(f"a {kind} task needs `{argument}`, the columns of {name} to learn")
    for split, data in loaded.items():
        if absent := sorted(set(needed).difference(data.column_names)):
            raise TaskError(
                f"split {split!r} of {name} has no column {', '.join(absent)}; it has {', '.join(data.column_names)}"
            )


def _with_classes(loaded: Mapping[str, Dataset], column: str | None) -> tuple[tuple[str, ...], dict[str, Dataset]]:
    """Class names and splits of a single-label task; without a column, folders name the classes."""
    values = {
        split: data[column] if column else [source_id.rpartition("/")[0] for source_id in data["source_id"]]
        for split, data in loaded.items()
    }
    feature = next(iter(loaded.values())).features.get(column)
    if isinstance(feature, ClassLabel):
        names = tuple(feature.names)
        number = {index: index for index in range(len(names))}
    else:
        classes = sorted({value for split in values.values() for value in split})
        names, number = tuple(map(str, classes)), {value: index for index, value in enumerate(classes)}
    if len(names) < 2:
        raise TaskError(f"one class only, {names}: name a `label_column`, or sort images into one folder a class")
    features = features_of("single_label", names)
    splits = {}
    for split, data in loaded.items():
        numbers = [number[value] for value in values[split]]
        splits[split] = _kept(data).add_column("label", numbers).cast(features)
    return names, splits


def _with_numbers(data: Dataset, columns: Sequence[str]) -> Dataset:
    rows = zip(*(data[column] for column in columns), strict=True)
    labels = [[float("nan") if value is None else float(value) for value in row] for row in rows]
    return _kept(data).add_column("label", labels).cast(features_of("multi_label", columns))


def _with_masks(data: Dataset, structures: Mapping[str, Sequence[str]]) -> Dataset:
    """Masks as they are where a column is a structure of its own, else their union, drawn once and cached."""

    def combine(row: dict[str, Any]) -> dict[str, Any]:
        return {"masks": [_union([row[column] for column in columns], row) for columns in structures.values()]}

    for column in {column for columns in structures.values() for column in columns}:
        data = data.cast_column(column, Image(decode=False))
    features = features_of("segmentation", tuple(structures))
    return data.map(combine, remove_columns=[c for c in data.column_names if c not in features], features=features)


def _union(cells: Sequence[Mapping[str, Any]], row: Mapping[str, Any]) -> Mapping[str, Any]:
    if len(cells) == 1:
        return cells[0]
    inside = np.any([np.asarray(read_cell(cell, row["source_id"])) > 0 for cell in cells], axis=0)
    return mask_cell(inside)


def mask_cell(inside: np.ndarray) -> dict[str, Any]:
    """A mask bool `[H, W]` as an image cell `{bytes, path}`: a PNG of one bit a pixel."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(inside).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def _kept(data: Dataset) -> Dataset:
    return data.select_columns(["image", "source_id"])
