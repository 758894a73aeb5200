"""Sources: whatever holds images, opened as one `datasets` object of one shape.

| source | example |
| --- | --- |
| folder of images (PNG, JPEG, TIFF, BMP, GIF, WebP, DICOM), searched to any depth | `data/chestxray14` |
| Parquet: a file, a quoted glob, a folder of `{split}-*.parquet` | `data/cxr`, `"data/cxr/train-*.parquet"` |
| one config of a folder of Parquet | `crops:level-2` |
| folder written by `Dataset.save_to_disk` or `DatasetDict.save_to_disk` | `data/saved` |
| data set on the Hub, with a config where it has several | `user/name`, `user/name:config` |
| at a revision; `hf://datasets/` may stand before any of them | `user/name@v1.0`, `hf://datasets/user/name` |
| generated chest phantoms | `phantoms`, `phantoms:64` |
| object in memory | `Dataset`, `IterableDataset`, `DatasetDict` |

A folder of images has the split `train`, unless it has folders named as splits: then each of these is one, and so is
every other folder beside them (`eden_hf.data.splits` says which names count). A folder that holds any Parquet is one
of Parquet, whose splits are read from the names of the files. Splits go by their usual names: `val` and `Validation`
are `validation`. Nothing is decoded here: images stay `{bytes, path}` structs, and a folder's files are not even read.
"""

import dataclasses
import glob
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import fsspec
import PIL.Image
from datasets.fingerprint import Hasher
from datasets.packaged_modules.parquet.parquet import Parquet
from huggingface_hub.constants import HF_HUB_CACHE

from eden_hf.data.caches import datasets_cache
from eden_hf.data.columns import Data, shaped
from eden_hf.data.errors import SourceError, first
from eden_hf.data.folders import image_rows, images_by_split, images_fingerprint, list_files
from eden_hf.data.parquet import damage_told
from eden_hf.data.phantoms import phantom_dataset
from eden_hf.data.reading import ImageReadError, Sizes, decode_image, image_sizes, read_image
from eden_hf.data.splits import by_common_names, in_order, split_in, split_of

__all__ = ["Data", "Source", "SourceError", "find_source", "load_source", "read_cell"]

MANIFEST, PLAN = "prepared.json", "plan.json"  # of a folder that `eden prepare` writes, and of one it has begun
_HUB_ID = r"(?:hf://datasets/)?(?P<name>[\w-][\w.-]*/[\w.-]+)(?:@(?P<revision>[\w./-]+))?(?::(?P<config>[\w.-]+))?"
PHANTOM_COUNT = 256  # images of the plain word `phantoms`


@dataclass(frozen=True)
class Source:
    """A source that was found and looked over, its images not yet read (see `find_source`).

    Attributes:
        name: what messages call it.
        splits: names of its splits, the usual ones where there are such (`validation` for `val`).
        fingerprint: changes with the content: file names, sizes and times, a commit, or the data in memory.
        open_split: gives the split of a name as it is; `load` gives it in shape.
        folders: where the files must lie that its cells may name, `None` where its maker is trusted with that.
        parquet: files or URLs of each split, where they are Parquet.
    """

    name: str
    splits: tuple[str, ...]
    fingerprint: str
    open_split: Callable[[str, bool], Data]
    folders: tuple[str, ...] | None = None
    parquet: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def load(
        self, split: str, *, image_column: str = "image", id_column: str | None = None, streaming: bool = False
    ) -> Data:
        """One split in the shape that `load_source` describes.

        Args:
            split: one of `splits`, or another word for it.
            image_column, id_column: as for `load_source`.
            streaming: copy and fetch nothing ahead. What is at hand as a `Dataset` comes as one all the same.

        Raises:
            SourceError: there is no such split or column, no row, an id comes twice, or a cell names a file outside.
        """
        data = self.open_split(self.usual_name(split), streaming)
        where = f"split {split!r} of {self.name}"
        if isinstance(data, datasets.Dataset) and len(data) == 0:
            raise SourceError(f"{where} has no rows")
        return shaped(data, image_column, id_column, where, self.folders)

    def usual_name(self, split: str) -> str:
        """The one of `splits` that a word stands for.

        Raises:
            SourceError: there is none.
        """
        name = split if split in self.splits else split_of(split)
        if name not in self.splits:
            raise SourceError(f"{self.name} has no split {split!r}; it has {', '.join(self.splits)}")
        return name


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
    return data.to_iterable_dataset() if streaming and isinstance(data, datasets.Dataset) else data


def first_pictures(
    source: Any, count: int, *, split: str = "train", id_column: str | None = None
) -> tuple[datasets.Dataset, list[PIL.Image.Image]]:
    """The first `count` rows of a source, as of `load_source`, and their pictures, which are compared.

    Raises:
        SourceError: as `load_source`, or `count` is below 2 or more than there are.
    """
    rows = load_source(source, split=split, id_column=id_column)
    if not 2 <= count <= len(rows):
        raise SourceError(f"{source} has {len(rows)} images and at least 2 are compared, got images={count}")
    rows = rows.select(range(count))
    return rows, [read_cell(row["image"], row["source_id"]) for row in rows]


def find_source(source: Any, *, list_file: str | Path | None = None) -> Source:
    """Look a source over without reading its images: its splits and its fingerprint. Arguments as `load_source`.

    Raises:
        SourceError: nothing is there, it is empty, or `list_file` does not fit it.
    """
    if isinstance(source, str) and (phantoms := re.fullmatch(r"phantoms(?::([1-9]\d*))?", source)):
        return _phantoms(source, int(phantoms[1] or PHANTOM_COUNT))
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


def refuse_output_inside(found: Source, source: str | Path, output: Path) -> None:
    """Refuse to write Parquet into its own source, which would be another then: any Parquet makes a folder one of it.

    Args:
        found: What was found at `source`.
        source: Its name.
        output: File or folder that will be written.

    Raises:
        SourceError: `output` lies in the folder of the source, or is one of its files.
    """
    place, folder = Path(os.path.realpath(output)), _path_and_config(str(source))[0]
    files = {os.path.realpath(file) for own in found.parquet.values() for file in own}
    inside = folder is not None and folder.is_dir() and place.is_relative_to(os.path.realpath(folder))
    if inside or str(place) in files:
        raise SourceError(f"{output} lies in {source}, which would be another source then: choose another --output")


def read_cell(cell: Mapping[str, Any] | None, name: str) -> PIL.Image.Image:
    """Decode one `image` cell of `load_source`: mode `L` or `RGB`, 8 bits a channel.

    Args:
        cell: `{bytes, path}`; a path may be a URL that fsspec opens (streamed Hub data sets have such).
        name: what an error calls the image where the cell has no path.

    Raises:
        ImageReadError: the cell is empty, or the image cannot be read.
    """
    file, name = _file(cell, name)
    return decode_image(file, name) if isinstance(file, bytes) else read_image(file)


def cell_sizes(cell: Mapping[str, Any] | None, name: str) -> Sizes:
    """The sizes of an `image` cell, from the image's header alone; arguments and errors as for `read_cell`."""
    return image_sizes(*_file(cell, name))


def _file(cell: Mapping[str, Any] | None, name: str) -> tuple[bytes | str, str]:
    """The whole file of an `image` cell, or its path where it lies on a disk, and its name."""
    path = (cell or {}).get("path")
    if cell is not None and cell.get("bytes") is not None:
        return cell["bytes"], path or name
    if path is None:
        raise ImageReadError(f"{name}: the row holds no image")
    if "://" not in path:
        return path, path
    try:
        with fsspec.open(path, "rb") as file:
            return file.read(), path
    except (OSError, ValueError) as error:  # out of reach, or no such protocol
        raise ImageReadError(f"{path}: {error}") from error


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
    if hub := re.fullmatch(_HUB_ID, source):
        return _hosted(source, hub["name"], hub["config"], revision=hub["revision"])
    raise SourceError(
        f"nothing at {source}: no such file or folder, and no Hub id of the form user/name, user/name@revision or "
        "hf://datasets/user/name"
    )


def is_image_folder(path: Path) -> bool:
    """Whether a path is a folder whose images are files: neither saved by `datasets` nor of Parquet."""
    return path.is_dir() and not is_saved(path) and not _holds_parquet(path)


def is_saved(root: Path) -> bool:
    """Whether a folder was written by `datasets`."""
    return (root / "dataset_dict.json").exists() or (root / "state.json").exists()


def _holds_parquet(root: Path) -> bool:
    return any(file.endswith(".parquet") for file in list_files(root)[0])


def is_prepared(path: Path) -> bool:
    """Whether a path is a folder of `eden prepare`, finished or not."""
    return (path / MANIFEST).exists() or (path / PLAN).exists()


def _folder(root: Path, list_file: str | Path | None) -> Source:
    """A folder: saved by `datasets`, of Parquet, or of images."""
    if is_prepared(root):
        raise SourceError(f"{root} holds images prepared for pretraining: give the source they were prepared from")
    if is_saved(root):
        with damage_told(str(root)):
            saved = datasets.load_from_disk(str(root))
        splits = saved if isinstance(saved, Mapping) else {str(saved.split or "train"): saved}
        return dataclasses.replace(_in_memory(str(root), splits), folders=(os.path.realpath(root),))
    if _holds_parquet(root):
        return _hosted(str(root), str(root), None)
    splits = images_by_split(root, list_file)
    fingerprint = Hasher.hash([(split, images_fingerprint(root, splits[split])) for split in sorted(splits)])
    return Source(str(root), in_order(splits), fingerprint, lambda split, streaming: image_rows(root, splits[split]))


def _parquet_files(source: str, files: Sequence[str]) -> Source:
    """Parquet files by the split in their names, as in `test-00000-of-00001.parquet` or `cohort_val.parquet`."""
    strangers = [file for file in files if not file.endswith(".parquet")]
    if strangers:
        raise SourceError(f"{source} is no Parquet: {first(strangers)}; for images give their folder")
    splits: dict[str, list[str]] = {}
    for file in files:
        head = re.split(r"[^A-Za-z]", Path(file).name, maxsplit=1)[0]
        splits.setdefault(split_of(head) or split_in(Path(file).stem) or "train", []).append(file)
    return _hosted(source, "parquet", None, data_files=splits)


def _hosted(source: str, path: str, config: str | None, **options: Any) -> Source:
    """What `datasets` itself knows to load: a folder of Parquet or a Hub repository."""
    try:
        builder = datasets.load_dataset_builder(path, config, **options)
    except (OSError, ValueError) as error:  # absent, empty or out of reach; an unknown or missing config
        datasets_cache()  # if it is that
        raise SourceError(f"cannot open {source}: {error}") from error

    files = builder.config.data_files  # their hash holds times of change, or the commit on the Hub
    names = by_common_names(map(str, files))
    if hasattr(builder, "_generate_tables"):  # what is read later is told as well
        builder._generate_tables = partial(_tables, builder, source)

    def open_split(split: str, streaming: bool) -> Data:
        with damage_told(source):
            if streaming:
                return builder.as_streaming_dataset(names[split])
            datasets_cache()
            builder.download_and_prepare()
            return builder.as_dataset(names[split])

    fingerprint = Hasher.hash([path, builder.config_id, files])
    parquet = {name: files[own] for name, own in names.items()} if isinstance(builder, Parquet) else {}
    return Source(source, in_order(names), fingerprint, open_split, _folders_of(path, files), parquet)


def _tables(builder: Any, source: str, files: Iterable[str], **parts: Any) -> Iterator[Any]:
    """What a builder of `datasets` reads from files, a piece at a time."""
    files = list(files)
    with damage_told(source, map(str, files)):
        yield from type(builder)._generate_tables(builder, files=files, **parts)


def _folders_of(path: str, files: Mapping[str, Sequence[Any]]) -> tuple[str, ...]:
    """Where the files of a data set may lie: its folder, or those that the Hub's are fetched to."""
    if Path(path).is_dir():
        return (os.path.realpath(path),)
    local = {str(Path(file).parent) for own in files.values() for file in own if "://" not in str(file)}
    caches = {HF_HUB_CACHE, str(datasets.config.HF_DATASETS_CACHE), "hf:/"}
    return tuple(map(os.path.realpath, local)) if local else tuple(sorted(caches))


def _phantoms(source: str, count: int) -> Source:
    """Phantoms, which are drawn when they are read: what was prepared of them before is found without."""
    fingerprint = Hasher.hash([inspect.getsource(sys.modules[phantom_dataset.__module__]), count])
    return Source(source, ("train",), fingerprint, lambda split, streaming: phantom_dataset(count))


def _in_memory(name: str, splits: Mapping[str, Data]) -> Source:
    """Objects of `datasets`."""
    names = by_common_names(map(str, splits))
    plain = {usual: splits[own].with_format(None) for usual, own in names.items()}
    fingerprints = {
        split: data._fingerprint if isinstance(data, datasets.Dataset) else Hasher.hash(data)
        for split, data in plain.items()
    }
    fingerprint = Hasher.hash(sorted(fingerprints.items()))
    return Source(name, in_order(plain), fingerprint, lambda split, streaming: plain[split])
