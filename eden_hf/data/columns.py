"""Columns of a source in one shape: `image`, undecoded, `source_id`, then the others."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, Image, IterableDataset, Value

from eden_hf.data.errors import SourceError, first

Data: TypeAlias = Dataset | IterableDataset


def shaped(
    data: Data, image_column: str, id_column: str | None, where: str, folders: Sequence[str] | None = None
) -> Data:
    """Bring the columns into the shape of `load_source`: `image`, undecoded, and `source_id`, then the others.

    Where `folders` are given, cells of images that only name a file are refused unless it lies in one of them.
    """
    if data.features is None:
        raise SourceError(f"{where} does not tell its columns: give the IterableDataset its features")
    if id_column is None and "source_id" in data.features:
        id_column = "source_id"
    check_columns(data.features, image_column, id_column, where)
    others = {name: kind for name, kind in data.features.items() if name not in (image_column, "source_id")}
    features = Features({"image": Image(decode=False), "source_id": Value("string"), **others})
    if not isinstance(data, Dataset):
        arrange = partial(
            _arranged,
            image_column=image_column,
            id_column=id_column,
            columns=list(features),
            where=where,
            folders=folders,
        )
        # As Arrow tables, so that no image is decoded and encoded on the way.
        data = data.with_format("arrow").map(arrange, with_indices=True, batched=True)
        return data.with_format(None).cast(features)
    ids = as_ids(data.select_columns(id_column).with_format("arrow")[:][id_column] if id_column else range(len(data)))
    refuse_repeats(ids, where)
    data = data.remove_columns("source_id") if "source_id" in data.features else data
    data = data.rename_column(image_column, "image") if image_column != "image" else data
    if folders is not None:
        refuse_files_outside(data.data, ["image", *_images_in(others)], folders, where)
    return data.add_column("source_id", ids).select_columns(list(features)).cast_column("image", features["image"])


def _arranged(
    table: pa.Table,
    rows: list[int],
    image_column: str,
    id_column: str | None,
    columns: list[str],
    where: str,
    folders: Sequence[str] | None,
) -> pa.Table:
    """A piece of a stream with the columns of `load_source`, in Arrow."""
    if folders is not None:
        refuse_files_outside(table, [image_column], folders, where)
    ids = pa.array(as_ids(table[id_column] if id_column else rows), pa.string())
    ours = {"image": table[image_column], "source_id": ids}
    return pa.table({name: ours[name] if name in ours else table[name] for name in columns})


def check_columns(features: Features, image_column: str, id_column: str | None, where: str) -> None:
    """Refuse names of columns that are not there, or hold no images."""
    for role, column in (("image_column", image_column), ("id_column", id_column)):
        if column is not None and column not in features:
            raise SourceError(f"{where} has no column {column!r}; it has {', '.join(features)}: name one as {role}")
    if not holds_images(features[image_column]):
        raise SourceError(f"column {image_column!r} of {where} holds no images but {features[image_column]}")
    if image_column != "image" and "image" in features:
        raise SourceError(f"{where} has a column 'image' beside {image_column!r}: remove or rename it first")


def holds_images(feature: Any) -> bool:
    """Whether a column can be read as images: images, encoded bytes, paths, or structs of the two."""
    if isinstance(feature, Image):
        return True
    if isinstance(feature, Value):
        return feature.dtype in ("string", "large_string", "binary", "large_binary")
    return isinstance(feature, dict) and feature.keys() == {"bytes", "path"}


def _images_in(features: Mapping[str, Any]) -> list[str]:
    return [name for name, feature in features.items() if not isinstance(feature, Value) and holds_images(feature)]


def refuse_files_outside(table: Any, columns: Iterable[str], folders: Sequence[str], where: str) -> None:
    """Raise a `SourceError` if a cell of images has no bytes, but the path of a file in none of the folders.

    Args:
        table: Of Arrow.
        columns: Those of images, encoded or named.
        folders: Absolute, or the start of a URL.
        where: What the error calls the table.
    """
    for column in columns:
        for path in named_files(table.column(column)):
            inside = path.rsplit("::", 1)[-1] if "://" in path else os.path.realpath(path)
            if not any(inside == folder or inside.startswith(folder.rstrip("/") + "/") for folder in folders):
                here = "" if inside == path else f" ({inside[:200]!r} from here)"
                raise SourceError(
                    f"column {column!r} of {where} names the file {path[:200]!r}{here}, which lies outside; put the "
                    "images' bytes into the data set (`Dataset.to_parquet` does), or their files into its folder"
                )


def named_files(cells: pa.ChunkedArray) -> list[str]:
    """The files that cells of images only name, each once."""
    if pa.types.is_struct(cells.type):
        cells = pc.struct_field(cells, "path").filter(pc.is_null(pc.struct_field(cells, "bytes")))
    elif not (pa.types.is_string(cells.type) or pa.types.is_large_string(cells.type)):  # bytes
        return []
    return pc.unique(cells).drop_null().to_pylist()


def as_ids(values: Iterable[Any]) -> list[str]:
    """Values as names of images.

    Raises:
        SourceError: one is missing.
    """
    plain = values.to_pylist() if isinstance(values, pa.Array | pa.ChunkedArray) else list(values)
    if None in plain:
        raise SourceError(f"row {plain.index(None)} has no id: name another id_column")
    return [str(value) for value in plain]


def refuse_repeats(ids: Iterable[str], where: str) -> None:
    """Raise a `SourceError` if an id comes twice in `where`."""
    repeated = [name for name, count in Counter(ids).items() if count > 1]
    if repeated:
        raise SourceError(
            f"{len(repeated)} ids come more than once in {where}: {first(repeated)}; name a column of unique ids "
            "as id_column, or remove the repeats"
        )
