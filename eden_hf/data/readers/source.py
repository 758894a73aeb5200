"""A task from any source with label or mask columns: folder, Parquet, Hub id or an object of `datasets`."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from datasets.fingerprint import Hasher

from eden_hf.data.caches import datasets_cache
from eden_hf.data.columns import holds_images, named_files, refuse_files_outside
from eden_hf.data.decoders import decoder_versions
from eden_hf.data.errors import first
from eden_hf.data.readers.masks import file_stamp, fitted_mask, mask_cell, of_picture, unread
from eden_hf.data.readers.metadata import with_metadata
from eden_hf.data.readers.task import KINDS, USUAL_METRIC, Kind, Task, TaskError, features_of
from eden_hf.data.reading import ImageReadError
from eden_hf.data.sources import cell_sizes, find_source, read_cell
from eden_hf.data.splits import class_folder


def load_source_task(
    source: Any,
    kind: Kind,
    *,
    label_column: str | None = None,
    label_columns: Sequence[str] = (),
    mask_columns: Mapping[str, Sequence[str]] | Sequence[str] = (),
    image_column: str = "image",
    id_column: str | None = None,
    patient_column: str | None = None,
    metric: str | None = None,
) -> Task:
    """A task from any source that `load_source` takes, with all the splits that it has.

    A folder of images has labels too: the name of an image's folder is its class (`train/normal/a.png`), and a
    `metadata.csv` or `metadata.jsonl` holds columns by `file_name`; columns `NAME_file_name` are masks `NAME` (see
    `eden_hf.data.readers.metadata`).

    Args:
        source: Folder, Parquet, Hub id or object of `datasets` (no stream).
        kind: What is learned.
        label_column: Column with the class of each image, a name or number (`single_label`); `label` where the source
            has a column of that name, and else the images' folders by default.
        label_columns: Columns with a number each (`multi_label`: 0, 1 or missing; `regression`).
        mask_columns: Columns with a mask each (`segmentation`), or for each structure the columns whose masks make
            it up: `{"clavicles": ["left_clavicle", "right_clavicle"]}`.
        image_column: Column with the images.
        id_column: Column whose values name the images.
        patient_column: Column that tells patients apart, which the splits keep.
        metric: The primary metric, the kind's usual one by default.

    Raises:
        TaskError: columns are not given for this kind, the source does not have them, or they do not hold what the
            kind needs.
        SourceError: there is no such source, or it cannot be opened.
    """
    if kind not in KINDS:
        raise TaskError(f"a task is of one of the kinds {', '.join(KINDS)}, got {kind!r}")
    structures = dict(mask_columns) if isinstance(mask_columns, Mapping) else {name: [name] for name in mask_columns}
    columns_needed = bool(label_column or label_columns or structures or patient_column or id_column)
    found = find_source(_with_tables(source, columns_needed))
    name = str(source) if isinstance(source, str | Path) else found.name
    loaded = {split: found.load(split, image_column=image_column, id_column=id_column) for split in found.splits}
    needed = {
        "single_label": [label_column] if label_column else [],
        "multi_label": list(label_columns),
        "regression": list(label_columns),
        "segmentation": [column for columns in structures.values() for column in columns],
    }[kind]
    splits = _checked(name, kind, needed, loaded)
    if kind == "segmentation" and found.folders is not None:
        for data in splits.values():
            refuse_files_outside(data.data, needed, found.folders, name)
    patients = _checked(name, kind, [patient_column], loaded) if patient_column else {}
    if kind == "single_label":
        labels, splits = _with_classes(name, splits, label_column or _usual_column(splits))
    elif kind == "segmentation":
        labels = tuple(structures)
        splits = {split: _with_masks(f"split {split!r} of {name}", data, structures) for split, data in splits.items()}
    else:
        labels = tuple(label_columns)
        splits = {
            split: _with_numbers(f"split {split!r} of {name}", data, kind, labels) for split, data in splits.items()
        }
    for split, data in patients.items():
        splits[split] = splits[split].add_column(patient_column, list(data[patient_column]))
    return Task(name, kind, labels, metric or USUAL_METRIC[kind], DatasetDict(splits))


def _with_tables(source: Any, needed: bool) -> Any:
    """A folder of images with the columns of its tables, if it has any; any other source as it is."""
    if isinstance(source, str | Path) and (folder := Path(source).expanduser()).is_dir():
        return with_metadata(folder, needed) or source
    return source


def _checked(name: str, kind: Kind, needed: Sequence[str], loaded: Mapping[str, Any]) -> dict[str, Dataset]:
    """The splits, if they have the columns needed."""
    if not needed and kind != "single_label":
        argument = "mask_columns" if kind == "segmentation" else "label_columns"
        raise TaskError(f"a {kind} task needs `{argument}`, the columns of {name} to learn")
    for split, data in loaded.items():
        if not isinstance(data, Dataset):
            raise TaskError(f"{name} is a stream, which a task cannot be: load it as a Dataset first")
        if absent := sorted(set(needed).difference(data.column_names)):
            raise TaskError(
                f"split {split!r} of {name} has no column {', '.join(absent)}; it has {', '.join(data.column_names)}"
            )
    return dict(loaded)


def _usual_column(splits: Mapping[str, Dataset]) -> str | None:
    return "label" if all("label" in data.column_names for data in splits.values()) else None


def _with_classes(
    name: str, loaded: Mapping[str, Dataset], column: str | None
) -> tuple[tuple[str, ...], dict[str, Dataset]]:
    """Class names and splits of a single-label task; without a column, folders name the classes."""
    values = {
        split: list(data[column]) if column else [class_folder(image) for image in data["source_id"]]
        for split, data in loaded.items()
    }
    for split, own in values.items():
        if empty := [
            source_id for source_id, value in zip(loaded[split]["source_id"], own, strict=True) if value is None
        ]:
            raise TaskError(f"{len(empty)} images of split {split!r} of {name} have no {column}: {first(empty)}")
        if several := [value for value in own if not isinstance(value, Hashable)]:
            raise TaskError(
                f"{column} of split {split!r} of {name} holds {str(several[0])[:60]}, which is no one class"
            )
    declared = {split: data.features.get(column) for split, data in loaded.items()}
    names = tuple(next((feature.names for feature in declared.values() if isinstance(feature, ClassLabel)), ()))
    if names:
        differing = [split for split, feature in declared.items() if getattr(feature, "names", None) != list(names)]
        if differing:
            raise TaskError(f"the splits {', '.join(differing)} of {name} name other classes in {column} than {names}")
        number: dict[Any, int] = {index: index for index in range(len(names))}
    else:
        classes = sorted(
            {value for own in values.values() for value in own}, key=lambda value: (str(type(value)), value)
        )
        names, number = tuple(map(str, classes)), {value: index for index, value in enumerate(classes)}
    if len(names) < 2:
        raise TaskError(
            f"{name} has one class only, {names[0]!r}: name a `label_column`, or sort the images into a folder a class"
        )
    features = features_of("single_label", names)
    splits = {}
    for split, data in loaded.items():
        if unknown := {value for value in values[split] if value not in number}:
            raise TaskError(f"split {split!r} of {name} has the labels {first(map(str, unknown))}, not of {names}")
        splits[split] = _plain(data).add_column("label", [number[value] for value in values[split]]).cast(features)
    return names, splits


def _with_numbers(where: str, data: Dataset, kind: Kind, columns: Sequence[str]) -> Dataset:
    labels = []
    for source_id, *row in zip(data["source_id"], *(data[column] for column in columns), strict=True):
        try:
            label = [float("nan") if value is None else float(value) for value in row]
        except (TypeError, ValueError) as error:
            raise TaskError(f"{where}: image {source_id} has the labels {row}, which are no numbers") from error
        if kind == "multi_label" and not {value for value in label if value == value} <= {0.0, 1.0}:
            raise TaskError(f"{where}: image {source_id} has the labels {row}; multi_label takes 0, 1 and missing")
        labels.append(label)
    return _plain(data).add_column("label", labels).cast(features_of(kind, columns))


def _with_masks(where: str, data: Dataset, structures: Mapping[str, Sequence[str]]) -> Dataset:
    """For each structure the union of the masks in its columns, drawn once and cached."""
    columns = list(dict.fromkeys(column for own in structures.values() for column in own))
    for column in columns:
        if not holds_images(data.features[column]):
            raise TaskError(f"column {column!r} of {where} holds no masks but {data.features[column]}")
        data = data.cast_column(column, Image(decode=False))
    features = features_of("segmentation", tuple(structures))
    stamps = [file_stamp(file) for file in _files(data, ["image", *columns])]
    key = Hasher.hash([data._fingerprint, structures, stamps, decoder_versions()])
    cache = datasets_cache() / "eden_hf"
    cache.mkdir(exist_ok=True)
    return data.map(
        partial(_drawn, structures=structures, features=features),
        remove_columns=[column for column in data.column_names if column not in features],
        features=features,
        cache_file_name=str(cache / f"masks-{key}.arrow"),
        desc="drawing masks",
    )


def _files(data: Dataset, columns: Iterable[str]) -> list[str]:
    """The files that cells of images only name."""
    files: list[str] = []
    for name in columns:
        files += named_files(data.data.column(name))  # as Arrow, so that the bytes of the others are not read
    return files


def _drawn(row: dict[str, Any], structures: Mapping[str, Sequence[str]], features: Features) -> dict[str, Any]:
    """The cell `masks` of a row."""
    name = row["source_id"]
    try:
        sizes = cell_sizes(row["image"], name)
    except ImageReadError:
        return unread(features, row["image"])
    masks = []
    for columns in structures.values():
        inside = np.zeros(sizes.stored[::-1], bool)
        for cell in (row[column] for column in columns):
            if cell is None:
                raise TaskError(
                    f"image {name} has no mask in one of the columns; leave the image out, or give an empty mask"
                )
            try:
                inside |= fitted_mask(read_cell(cell, name), sizes.stored, f"of image {name}")
            except ImageReadError:
                return unread(features, cell)
        masks.append(mask_cell(inside))
    return of_picture({"masks": masks}, sizes)


def _plain(data: Dataset) -> Dataset:
    return data.select_columns(["image", "source_id"])
