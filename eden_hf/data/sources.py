"""Sources: whatever holds images, opened as one `datasets` object of one shape.

| source | example |
| --- | --- |
| folder of images (PNG, JPEG, TIFF, BMP, GIF, WebP, DICOM), searched to any depth | `data/chestxray14` |
| Parquet: a file, a quoted glob, a folder of `{split}-*.parquet` | `data/cxr`, `"data/cxr/train-*.parquet"` |
| one config of a folder of Parquet | `crops:level-2` |
| folder written by `Dataset.save_to_disk` or `DatasetDict.save_to_disk` | `data/saved` |
| data set on the Hub, with a config where it has several | `user/name`, `user/name:config` |
| generated chest phantoms | `phantoms`, `phantoms:64` |
| object in memory | `Dataset`, `IterableDataset`, `DatasetDict` |

A folder of images has the split `train`, unless it has a sub-folder `train`, `validation` (`valid`, `val`, `dev`) or
`test`: then every sub-folder is a split. A folder that holds any Parquet is one of Parquet, whose splits are read from
the names of the files. Nothing is decoded here: images stay `{bytes, path}` structs, and a folder's files are not even
read.
"""

import glob
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import fsspec
import PIL.Image
import pyarrow as pa
from datasets import Dataset, DatasetInfo, Features, Image, IterableDataset, Value
from datasets.fingerprint import Hasher
from datasets.table import InMemoryTable

from eden_hf.data.phantoms import phantom_dataset
from eden_hf.data.reading import ImageReadError, decode_image, read_image

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".dcm", ".dicom"})
SPLIT_NAMES = ("train", "validation", "test")
SPLIT_OF_WORD = {name: name for name in SPLIT_NAMES} | {
    "training": "train",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "testing": "test",
}
PHANTOM_COUNT = 256  # images of the plain word `phantoms`

Data: TypeAlias = Dataset | IterableDataset


class SourceError(ValueError):
    """A source that is absent, empty, or not of the shape asked for; the message says how to mend it."""


class TooManyUnreadable(RuntimeError):  # noqa: N818 (names what happened)
    """More images than the configured share could not be used."""


class SkipLog:
    """The one policy for images that cannot be used: listed with a reason, and bearable up to a share.

    Each image is one JSON line `{"source_id": ..., "reason": ...}` in `path`. Opening a log starts a new list. A
    log that was pickled to another process goes on with the same file, and its `count` is that of all of them.

    Args:
        path: the file to write (`skipped.jsonl` by convention), or `None` to keep the list in memory only.
        max_share: share of all images, in [0, 1], up to which a run goes on.
    """

    def __init__(self, path: str | Path | None, max_share: float = 0.01) -> None:
        if not 0 <= max_share <= 1:
            raise ValueError(f"max_share is a share of the images in [0, 1], got {max_share}")
        self.path = None if path is None else Path(path)
        self.max_share = max_share
        self._in_memory: list[dict[str, Any]] = []
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.unlink(missing_ok=True)

    def add(self, source_id: str, reason: str, **details: Any) -> None:
        """List one image, with any further `details` (its split, say)."""
        logger.warning("skipped %s: %s", source_id, reason)
        entry = {"source_id": source_id, "reason": reason, **details}
        if self.path is None:
            self._in_memory.append(entry)
            return
        with self.path.open("ab", buffering=0) as file:  # one write a line: processes do not mix theirs
            file.write(json.dumps(entry).encode() + b"\n")

    @property
    def entries(self) -> list[dict[str, Any]]:
        """What was listed so far, by every process."""
        return list(self._in_memory) if self.path is None else skipped_entries(self.path)

    @property
    def count(self) -> int:
        """Number of images listed so far, by every process."""
        return len(self.entries)

    def check(self, total: int) -> None:
        """Stop the run if more than `max_share` of `total` images, or all of them, are listed.

        Raises:
            TooManyUnreadable: they are; the message gives the first reasons and the file that has them all.
        """
        entries = self.entries
        if not entries or (len(entries) <= self.max_share * total and len(entries) < total):
            return
        examples = "; ".join(f"{entry['source_id']}: {entry['reason']}" for entry in entries[:3])
        where = f" All are listed in {self.path}." if self.path is not None else ""
        raise TooManyUnreadable(
            f"{len(entries)} of {total} images could not be used, which the limit of {self.max_share:.2%} forbids "
            f"({examples}).{where} Mend or remove them, or raise the limit."
        )


def skipped_entries(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a `skipped.jsonl`, none where there is no such file."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


@dataclass(frozen=True)
class Source:
    """A source that was found and looked over, its images not yet read (see `find_source`).

    Attributes:
        name: what messages call it.
        splits: names of its splits.
        fingerprint: changes with the content: file names, sizes and times, a commit, or the data in memory.
        open_split: gives the split of a name as it is; `load` gives it in shape.
    """

    name: str
    splits: tuple[str, ...]
    fingerprint: str
    open_split: Callable[[str, bool], Data]

    def load(
        self, split: str, *, image_column: str = "image", id_column: str | None = None, streaming: bool = False
    ) -> Data:
        """One split in the shape that `load_source` describes.

        Args:
            split: one of `splits`.
            image_column, id_column: as for `load_source`.
            streaming: copy and fetch nothing ahead. What is at hand as a `Dataset` comes as one all the same.

        Raises:
            SourceError: there is no such split or column, no row, or an id comes twice.
        """
        if split not in self.splits:
            raise SourceError(f"{self.name} has no split {split!r}; it has {', '.join(self.splits)}")
        data = self.open_split(split, streaming)
        where = f"split {split!r} of {self.name}"
        if isinstance(data, Dataset) and len(data) == 0:
            raise SourceError(f"{where} has no rows")
        return _shaped(data, image_column, id_column, where)


def load_source(
    source: Any,
    *,
    split: str = "train",
    image_column: str = "image",
    id_column: str | None = None,
    list_file: str | Path | None = None,
    streaming: bool = False,
) -> Data:
    """Open one split of any source (the module's table lists them), nothing decoded.

    Args:
        source: path, glob, Hub id, `phantoms[:n]`, or an object of `datasets`. A single `Dataset` or
            `IterableDataset` is taken as it is, whatever `split` says.
        split: name of the split.
        image_column: the column with the images; it is called `image` in the result.
        id_column: the column whose values become `source_id`. Without it, ids are the paths relative to the folder;
            else the source's own `source_id`, where it has one; else row numbers, counted in reading order (so name
            a column when several readers share one stream).
        list_file: text file with one relative path or file name a line, the images of a folder to take (such as the
            official `train_val_list.txt` of ChestX-ray14).
        streaming: give an `IterableDataset` that reads as it goes. An `IterableDataset` stays one in any case.

    Returns:
        Columns `image` (`datasets.Image(decode=False)`: `{bytes, path}`; `read_cell` opens it), `source_id` (string,
        unique within the split, which is checked where nothing is streamed), and the source's own columns.

    Raises:
        SourceError: nothing is there, it is empty, the split or column does not exist, an id comes twice, or
            `list_file` names images that are not there.
    """
    found = find_source(source, list_file=list_file)
    if isinstance(source, Data):
        split = found.splits[0]
    data = found.load(split, image_column=image_column, id_column=id_column, streaming=streaming)
    return data.to_iterable_dataset() if streaming and isinstance(data, Dataset) else data


def find_source(source: Any, *, list_file: str | Path | None = None) -> Source:
    """Look a source over without reading its images: its splits and its fingerprint. Arguments as `load_source`.

    Raises:
        SourceError: nothing is there, it is empty, or `list_file` does not fit it.
    """
    if isinstance(source, str) and (phantoms := re.fullmatch(r"phantoms(?::([1-9]\d*))?", source)):
        return _in_memory(source, {"train": phantom_dataset(int(phantoms[1] or PHANTOM_COUNT))})
    if isinstance(source, str | Path):
        path, config = _path_and_config(str(source))
        if path is not None and path.is_dir() and config is None:
            return _folder(path, list_file)
        if list_file is not None:
            raise SourceError(f"list_file picks the files of a folder of images; {source} is none")
        return _named(str(source), path, config)
    if list_file is not None:
        raise SourceError("list_file picks the files of a folder of images; this source is in memory")
    if isinstance(source, Data):
        split = re.match(r"\w+", str(source.split or "train"))  # `train[:10%]` is of the split `train`
        return _in_memory("the data set in memory", {split.group() if split else "train": source})
    if isinstance(source, Mapping) and source and all(isinstance(data, Data) for data in source.values()):
        return _in_memory("the data set in memory", source)
    raise SourceError(
        f"a source is a path, a Hub id, 'phantoms', a Dataset, IterableDataset or DatasetDict, got {source!r}"
    )


def read_cell(cell: Mapping[str, Any] | None, name: str) -> PIL.Image.Image:
    """Decode one `image` cell of `load_source`: mode `L` or `RGB`, 8 bits a channel.

    Args:
        cell: `{bytes, path}`; a path may be a URL that fsspec opens (streamed Hub data sets have such).
        name: what an error calls the image where the cell has no path.

    Raises:
        ImageReadError: the cell is empty, or the image cannot be read.
    """
    path = (cell or {}).get("path")
    if cell is not None and cell.get("bytes") is not None:
        return decode_image(cell["bytes"], path or name)
    if path is None:
        raise ImageReadError(f"{name}: the row holds no image")
    if "://" not in path:
        return read_image(path)
    try:
        with fsspec.open(path, "rb") as file:
            data = file.read()
    except (OSError, ValueError) as error:  # out of reach, or no such protocol
        raise ImageReadError(f"{path}: {error}") from error
    return decode_image(data, path)


def _path_and_config(source: str) -> tuple[Path | None, str | None]:
    """The path that a source names, if it is there, and the config after a colon, if any."""
    head, _, config = source.rpartition(":")
    path = Path(source).expanduser()
    if path.exists():
        return path, None
    folder = Path(head).expanduser()
    return (folder, config) if head and folder.is_dir() else (None, None)


def _named(source: str, path: Path | None, config: str | None) -> Source:
    """A source given by its name that is no plain folder: Parquet files, one config, the Hub."""
    if path is not None and path.is_dir():
        return _hosted(source, str(path), config)
    pattern = str(Path(source).expanduser())
    files = [str(path)] if path is not None else sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 (absolute too)
    if files:
        return _parquet_files(source, files)
    if hub := re.fullmatch(r"([\w-][\w.-]*/[\w.-]+)(?::([\w.-]+))?", source):
        return _hosted(source, hub[1], hub[2])
    raise SourceError(f"nothing at {source}: no such file or folder, and no Hub id of the form user/name")


def _folder(root: Path, list_file: str | Path | None) -> Source:
    """A folder: saved by `datasets`, of Parquet, or of images."""
    if (root / "dataset_dict.json").exists() or (root / "state.json").exists():
        saved = datasets.load_from_disk(str(root))
        return _in_memory(str(root), saved if isinstance(saved, Mapping) else {str(saved.split or "train"): saved})
    files, hidden = list_files(root)
    if any(file.endswith(".parquet") for file in files):
        return _hosted(str(root), str(root), None)
    images = [file for file in files if _is_image(root / file)]
    if not images:
        raise SourceError(
            f"no images in {root} ({len(files)} other files); known: {', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    if hidden or len(images) < len(files):
        others = sorted(set(files).difference(images))
        what = f"{len(others)} files that are no images {others[:3]} and {hidden} hidden ones"
        logger.warning("%s: left out %s", root, what)
    if list_file is not None:
        return _image_files(root, {"train": _listed(images, Path(list_file), root)})
    return _image_files(root, _by_sub_folder(images, root))


def list_files(root: Path) -> tuple[list[str], int]:
    """Relative paths of the files below `root`, sorted, and the number of hidden files and folders left out."""
    files, hidden, seen = [], 0, set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link back up
            folders.clear()
            continue
        seen.add(real)
        hidden += sum(name.startswith(".") for name in folders + names)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        relative = Path(folder).relative_to(root)
        files += [(relative / name).as_posix() for name in names if not name.startswith(".")]
    return sorted(files), hidden


def _is_image(path: Path) -> bool:
    """By its suffix, or by the DICOM mark: names such as `IM0001` and `1.2.840.10008` are usual there."""
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _by_sub_folder(images: Sequence[str], root: Path) -> Mapping[str, Sequence[str]]:
    """Images of a folder by split."""
    splits: dict[str, list[str]] = {}
    for image in images:
        folder = image.split("/")[0] if "/" in image else ""
        splits.setdefault(SPLIT_OF_WORD.get(folder, folder), []).append(image)
    if not splits.keys() & set(SPLIT_NAMES):
        return {"train": images}
    if outside := splits.pop("", []):
        logger.warning("%s: left out %d images outside the split folders %s", root, len(outside), sorted(splits))
    return splits


def _listed(images: Sequence[str], list_file: Path, root: Path) -> list[str]:
    """Those of `images` that `list_file` names, by relative path or by file name."""
    if not list_file.is_file():
        raise SourceError(f"no list file at {list_file}")
    names = [line.strip() for line in list_file.read_text(encoding="utf-8").splitlines() if line.strip()]
    by_name: dict[str, set[str]] = {}
    for image in images:
        by_name.setdefault(image, set()).add(image)
        by_name.setdefault(Path(image).name, set()).add(image)
    absent = [name for name in names if name not in by_name]
    if absent:
        raise SourceError(
            f"{len(absent)} of the {len(names)} images in {list_file} are not in {root}: {_first(absent)}"
        )
    unclear = [name for name in names if len(by_name[name]) > 1]
    if unclear:
        raise SourceError(f"{list_file} names files that {root} has in several folders: {_first(unclear)}")
    _refuse_repeats((image for name in names for image in by_name[name]), str(list_file))
    if not names:
        raise SourceError(f"{list_file} names no image")
    return sorted(image for name in names for image in by_name[name])


def _image_files(root: Path, splits: Mapping[str, Sequence[str]]) -> Source:
    """A folder of images: names and file times now, nothing read."""
    fingerprints = {split: Hasher.hash([_stamp(root, image) for image in images]) for split, images in splits.items()}
    features = Features({"image": Image(decode=False), "source_id": Value("string")})

    def open_split(split: str, streaming: bool) -> Data:
        folder = str(root.absolute())
        columns = {
            "image": [{"bytes": None, "path": f"{folder}/{image}"} for image in splits[split]],
            "source_id": splits[split],
        }
        table = InMemoryTable.from_pydict(columns, schema=features.arrow_schema)
        fingerprint = Hasher.hash([folder, fingerprints[split]])
        return Dataset(table, info=DatasetInfo(features=features), fingerprint=fingerprint)

    return Source(str(root), _ordered(splits), Hasher.hash(sorted(fingerprints.items())), open_split)


def _stamp(root: Path, image: str) -> tuple[str, int, int]:
    """Name, size and time of change of a file; a broken link has neither and fails when it is read."""
    try:
        status = (root / image).stat()
    except OSError:
        return image, -1, -1
    return image, status.st_size, status.st_mtime_ns


def _parquet_files(source: str, files: Sequence[str]) -> Source:
    """Parquet files by the split at the head of their names, as in `test-00000-of-00001.parquet`."""
    strangers = [file for file in files if not file.endswith(".parquet")]
    if strangers:
        raise SourceError(f"{source} is no Parquet: {_first(strangers)}; for images give their folder")
    splits: dict[str, list[str]] = {}
    for file in files:
        word = re.split(r"[^a-z]", Path(file).name.lower(), maxsplit=1)[0]
        splits.setdefault(SPLIT_OF_WORD.get(word, "train"), []).append(file)
    return _hosted(source, "parquet", None, data_files=splits)


def _hosted(source: str, path: str, config: str | None, **options: Any) -> Source:
    """What `datasets` itself knows to load: a folder of Parquet or a Hub repository."""
    try:
        builder = datasets.load_dataset_builder(path, config, **options)
    except (OSError, ValueError) as error:  # absent, empty or out of reach; an unknown or missing config
        raise SourceError(f"cannot open {source}: {error}") from error

    def open_split(split: str, streaming: bool) -> Data:
        if streaming:
            return builder.as_streaming_dataset(split)
        builder.download_and_prepare()
        return builder.as_dataset(split)

    files = builder.config.data_files  # their hash holds times of change, or the commit on the Hub
    return Source(source, _ordered(map(str, files)), Hasher.hash([path, builder.config_id, files]), open_split)


def _in_memory(name: str, splits: Mapping[str, Data]) -> Source:
    """Objects of `datasets`."""
    by_name = {str(split): data.with_format(None) for split, data in splits.items()}
    fingerprints = {
        split: data._fingerprint if isinstance(data, Dataset) else Hasher.hash(data) for split, data in by_name.items()
    }

    def open_split(split: str, streaming: bool) -> Data:
        return by_name[split]

    return Source(name, _ordered(by_name), Hasher.hash(sorted(fingerprints.items())), open_split)


def _ordered(splits: Iterable[str]) -> tuple[str, ...]:
    """Splits in the usual order: train, validation, test, then others by name."""
    return tuple(sorted(splits, key=lambda split: (*SPLIT_NAMES, split).index(split)))


def _shaped(data: Data, image_column: str, id_column: str | None, where: str) -> Data:
    """Bring the columns into the shape of `load_source`: `image`, undecoded, and `source_id`, then the others."""
    if data.features is None:
        raise SourceError(f"{where} does not tell its columns: give the IterableDataset its features")
    if id_column is None and "source_id" in data.features:
        id_column = "source_id"
    _check_columns(data.features, image_column, id_column, where)
    others = {name: kind for name, kind in data.features.items() if name not in (image_column, "source_id")}
    features = Features({"image": Image(decode=False), "source_id": Value("string"), **others})
    if not isinstance(data, Dataset):
        arrange = partial(_arranged, image_column=image_column, id_column=id_column, columns=list(features))
        # As Arrow tables, so that no image is decoded and encoded on the way.
        data = data.with_format("arrow").map(arrange, with_indices=True, batched=True)
        return data.with_format(None).cast(features)
    ids = _ids(data.select_columns(id_column).with_format("arrow")[:][id_column] if id_column else range(len(data)))
    _refuse_repeats(ids, where)
    data = data.remove_columns("source_id") if "source_id" in data.features else data
    data = data.rename_column(image_column, "image") if image_column != "image" else data
    return data.add_column("source_id", ids).select_columns(list(features)).cast_column("image", features["image"])


def _arranged(
    table: pa.Table, rows: list[int], image_column: str, id_column: str | None, columns: list[str]
) -> pa.Table:
    """A piece of a stream with the columns of `load_source`, in Arrow."""
    ids = pa.array(_ids(table[id_column] if id_column else rows), pa.string())
    ours = {"image": table[image_column], "source_id": ids}
    return pa.table({name: ours[name] if name in ours else table[name] for name in columns})


def _check_columns(features: Features, image_column: str, id_column: str | None, where: str) -> None:
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


def _ids(values: Iterable[Any]) -> list[str]:
    plain = values.to_pylist() if isinstance(values, pa.Array | pa.ChunkedArray) else list(values)
    if None in plain:
        raise SourceError(f"row {plain.index(None)} has no id: name another id_column")
    return [str(value) for value in plain]


def _refuse_repeats(ids: Iterable[str], where: str) -> None:
    repeated = [name for name, count in Counter(ids).items() if count > 1]
    if repeated:
        raise SourceError(
            f"{len(repeated)} ids come more than once in {where}: {_first(repeated)}; name a column of unique ids "
            "as id_column, or remove the repeats"
        )


def _first(names: Sequence[str]) -> str:
    return ", ".join(islice(names, 3)) + (" ..." if len(names) > 3 else "")


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
