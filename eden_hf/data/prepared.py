"""Prepared images: a source decoded once to uint8 squares in one file, which training then reads by the batch."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import datasets
import numpy as np
import torch
from datasets.fingerprint import Hasher
from huggingface_hub.constants import HF_HOME
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from eden_hf.data.caches import writable
from eden_hf.data.decoders import decoder_versions
from eden_hf.data.reading import ImageReadError
from eden_hf.data.scratch import scratch_folder
from eden_hf.data.skips import SKIPPED_FILE, SkipLog, left_out, skipped_entries
from eden_hf.data.sources import MANIFEST, Data, SourceError, find_source, is_prepared, read_cell
from eden_hf.data.splits import split_of
from eden_hf.data.text_files import read_record
from eden_hf.data.workers import check_workers, obey_parent, workers_live

logger = logging.getLogger(__name__)

CACHE_DIR = Path(HF_HOME) / "eden_hf" / "prepared"
PIXELS, ABOUT = "pixels.bin", "images.json"
_JPEG_QUALITY = 95


class _EncodedImages:
    """PNG or JPEG files one after the other in one, decoded when they are asked for."""

    def __init__(self, file: Path, sizes: Sequence[int]) -> None:
        self.data, self.starts = np.memmap(file, np.uint8, "r"), np.cumsum([0, *sizes])

    def __getitem__(self, row: int) -> np.ndarray:
        """Pixels [C, side, side] uint8."""
        start, stop = self.starts[row : row + 2]
        return _channels_first(Image.open(BytesIO(self.data[start:stop].tobytes())))


def _channels_first(image: Image.Image) -> np.ndarray:
    return np.moveaxis(np.atleast_3d(np.asarray(image)), -1, 0)


class RowGroups(NamedTuple):
    """How images lie in what is read group by group: each group's first index, int64, rising from 0.

    And among how many of them an epoch is shuffled, so that few groups are read at a time.
    """

    starts: Tensor
    window: int


class Images(Dataset):
    """Images of one size by their indices, as training reads them.

    Attributes: `ids` (names, in order), `channels`, `side`, `list_hash` (SHA-256 of the names), `row_groups` (how they
    are to be read, `None` where any order costs the same), `skipped` (number of images that could not be read, as far
    as that is known; `skipped_file` lists them).
    """

    row_groups: RowGroups | None = None
    skipped = 0
    skipped_file: Path

    def __init__(self, ids: list[str], side: int, channels: int) -> None:
        self.ids, self.side, self.channels = ids, side, channels
        self.list_hash = list_hash(ids)

    @property
    def facts(self) -> dict[str, Any]:
        """What tells the images from others."""
        return {"images": len(self), "image_list_hash": self.list_hash}

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        """One image with its index: pixels [C, side, side] uint8."""
        return index, self.get([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """A batch as a loader fetches it: indices [B] int64 and pixels [B, C, side, side] uint8."""
        return torch.tensor(indices), self.get(indices)

    def get(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Pixels [B, C, side, side] uint8 of the images at `indices`."""
        raise NotImplementedError

    def get_lasting(self, indices: Sequence[int] | Tensor) -> Tensor:
        """As `get`, of images that are asked for again and again."""
        return self.get(indices)

    def told(self, column: str) -> datasets.Dataset:
        """The names of all images, `source_id`, and what a column says of them.

        Raises:
            SourceError: There is no such column.
        """
        raise NotImplementedError

    def workers(self, asked: int) -> int:
        """Processes that should read ahead, of those asked for."""
        return asked


class PreparedImages(Images):
    """Images in a folder: `pixels.bin` (uint8, or encoded) and `images.json` (names and settings).

    Or in several such, of which a `prepared.json` tells the names (see `eden_hf.data.chunks`).

    Attributes: those of `Images`, and `columns` (what else is told of the images, by the columns that were kept).

    Raises:
        SourceError: A file is gone or was cut short.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        manifest = folder / MANIFEST
        names = [chunk["name"] for chunk in read_record(manifest)["chunks"]] if manifest.exists() else ["."]
        chunks = [_whole(folder / name) for name in names]
        first = chunks[0]
        super().__init__([name for about in chunks for name in about["ids"]], first["side"], first["channels"])
        self.columns: dict[str, list[Any]] = {
            column: [value for about in chunks for value in about["columns"][column]]
            for column in first.get("columns", ())
        }
        self.skipped: int = sum(about["skipped"] for about in chunks)
        self.skipped_file = folder / SKIPPED_FILE
        counts = [len(about["ids"]) for about in chunks]
        sizes = [about.get("sizes") for about in chunks]  # of what is encoded
        self._chunks = list(zip([folder / name / PIXELS for name in names], counts, sizes, strict=True))
        self._starts = np.cumsum([0, *counts])

    @cached_property
    def _pixels(self) -> list[Any]:
        """What gives the pixels [C, side, side] of a row, of each chunk."""
        return [self._mapped(*chunk) for chunk in self._chunks]

    def _mapped(self, file: Path, count: int, sizes: Sequence[int] | None) -> Any:
        if not count:  # of an empty file there is no map
            return ()
        shape = (count, self.channels, self.side, self.side)
        return _EncodedImages(file, sizes) if sizes else np.memmap(file, np.uint8, "r", shape=shape)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_pixels"}  # each process maps its own

    def told(self, column: str) -> datasets.Dataset:
        """The names of all images and what a column says of them, if `eden prepare` kept it."""
        if column not in self.columns:
            raise SourceError(
                f"{self.folder} keeps no column {column!r} but {', '.join(self.columns) or 'none'}: prepare it again "
                f"with `eden prepare --columns {column}`"
            )
        return datasets.Dataset.from_dict({"source_id": self.ids, column: self.columns[column]})

    def get(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Pixels [B, C, side, side] uint8 of the images at `indices`."""
        places = np.asarray(indices)
        chunks = np.searchsorted(self._starts, places, side="right") - 1
        rows = places - self._starts[chunks]
        return torch.from_numpy(np.stack([self._pixels[chunk][row] for chunk, row in zip(chunks, rows, strict=True)]))


def _whole(folder: Path) -> dict[str, Any]:
    """What is told of the images in a folder, if the bytes of all of them are there."""
    try:
        about, held = read_record(folder / ABOUT), (folder / PIXELS).stat().st_size
    except (OSError, ValueError) as error:
        raise SourceError(f"{folder} is torn ({error}): remove that folder, and prepare the images again") from error
    if held != (size := bytes_of(about)):
        raise SourceError(
            f"{folder / PIXELS} is torn: {held} bytes, not {size}; remove that folder, and prepare the images again"
        )
    return about


def bytes_of(about: Mapping[str, Any]) -> int:
    """How many bytes images have by what is told of them."""
    return sum(about["sizes"]) if "sizes" in about else len(about["ids"]) * about["channels"] * about["side"] ** 2


def prepare_images(
    source: Any,
    *,
    split: str = "train",
    image_column: str = "image",
    id_column: str | None = None,
    list_file: str | Path | None = None,
    side: int = 256,
    channels: Literal[1, 3] = 1,
    aspect_ratio: Literal["resize", "pad"] = "resize",
    max_skipped_share: float = 0.01,
    cache_dir: str | Path | None = None,
    num_proc: int | None = None,
) -> PreparedImages:
    """Decode every image of a source once; the next call with the same source and settings finds the result.

    Another version of this package or of a decoder decodes anew.

    Args:
        source: A folder that `eden prepare` has written, taken as it is; or with `split`, `image_column`, `id_column`,
            `list_file` as for `eden_hf.data.sources.load_source`.
        side: Pixels a side. Smaller and larger images are resized to it, anti-aliased.
        channels: 1 turns colour to grey, 3 repeats grey.
        aspect_ratio: `resize` stretches to the square; `pad` keeps the ratio, centred on black.
        max_skipped_share: Share of the images that may be unreadable; they are listed in `skipped.jsonl`, with files
            that hold no image, which do not count.
        cache_dir: Where prepared images are kept; `eden_hf/prepared` in the cache of Hugging Face by default.
        num_proc: Processes that decode; all processors by default, 0 for this process alone.

    Raises:
        ValueError: `side`, `channels` or `aspect_ratio` is none of the values above, or not that of the folder
            that was prepared before.
        SourceError: the source is absent, empty or not of the shape asked for, or nothing can be written to
            `cache_dir`.
        TooManyUnreadable: more images than `max_skipped_share` cannot be read; the list of all of them is kept.
    """
    check_shape(side, channels, aspect_ratio)
    check_workers(num_proc, "num_proc")
    settings: dict[str, Any] = {"side": side, "channels": channels, "aspect_ratio": aspect_ratio}
    if isinstance(source, str | Path) and is_prepared(folder := Path(source).expanduser()):
        return _prepared_before(folder, {**settings, "split": split}, list_file)
    where: dict[str, Any] = {"image_column": image_column, "id_column": id_column}
    found = find_source(source, list_file=list_file)
    split = found.splits[0] if isinstance(source, Data) else found.usual_name(split)
    key = Hasher.hash([found.fingerprint, split, where, settings, max_skipped_share, decoder_versions()])
    cache = Path(cache_dir or CACHE_DIR).expanduser()
    folder, kept_list = cache / key, cache / f"{key}-{SKIPPED_FILE}"
    if not folder.exists():
        data = found.load(split, **where).select_columns(["image", "source_id"])
        writable(cache, "data.cache_dir (cache_dir in Python), or by HF_HOME")
        with workers_live(), scratch_folder(folder) as scratch:
            skips = SkipLog(scratch / SKIPPED_FILE, max_skipped_share)
            written = write_images(decode_all(data, Decoder(**settings), num_proc), scratch, settings, skips)
            skips.check(written + len(skips.entries), keep_at=kept_list)
            if not written:
                raise SourceError("the source has no images")
            move_into_place(scratch, folder)
    kept_list.unlink(missing_ok=True)
    images = PreparedImages(folder)
    if entries := skipped_entries(images.skipped_file):
        logger.warning("%s, see %s", left_out(entries), images.skipped_file)
    return images


def check_shape(side: int, channels: int, aspect_ratio: str) -> None:
    """Raise ValueError if images cannot be prepared so."""
    if side < 1 or channels not in (1, 3) or aspect_ratio not in ("resize", "pad"):
        raise ValueError(
            "side must be at least 1, channels 1 or 3, aspect_ratio 'resize' or 'pad', "
            f"got side={side!r}, channels={channels!r}, aspect_ratio={aspect_ratio!r}"
        )


def _prepared_before(folder: Path, settings: dict[str, Any], list_file: str | Path | None) -> PreparedImages:
    """What `eden prepare` has written, if it is finished and what is asked for."""
    manifest = folder / MANIFEST
    if not manifest.exists():
        raise SourceError(f"{folder} is not finished: call `eden prepare` as before, without --shard")
    if list_file is not None:
        raise ValueError(f"{folder} is prepared: data.list_file would pick from a folder of images; leave it out")
    held = read_record(manifest)
    for told in (held, settings):
        told["split"] = split_of(told["split"]) or told["split"]
    if others := [f"{name} {held[name]!r}, not {value!r}" for name, value in settings.items() if held[name] != value]:
        raise ValueError(f"{folder} was prepared with {', '.join(others)}: set data to that, or prepare another")
    return PreparedImages(folder)


def move_into_place(scratch: Path, folder: Path) -> None:
    """Give what is complete its name, unless another process was faster."""
    try:
        scratch.rename(folder)
    except OSError:
        if not folder.exists():
            raise


Storage: TypeAlias = Literal["raw", "png", "jpeg"]
Decoded: TypeAlias = tuple[str, np.ndarray | ImageReadError]  # an image's name, and its bytes or why there are none


class Decoder:
    """Turns rows of a source into (name, pixels [C, side, side] uint8 or the reason why there are none).

    Or, of another `storage`, the bytes [N] of such a file.
    """

    def __init__(self, side: int, channels: int, aspect_ratio: str, storage: Storage = "raw") -> None:
        self.storage = storage
        self.size, self.mode = (side, side), "L" if channels == 1 else "RGB"
        self.fit = ImageOps.pad if aspect_ratio == "pad" else Image.Image.resize

    def __call__(self, rows: list[dict[str, Any]]) -> list[Decoded]:
        """Rows `image`, `source_id`, in their order."""
        return [(row["source_id"], self._pixels(row)) for row in rows]

    def _pixels(self, row: dict[str, Any]) -> np.ndarray | ImageReadError:
        try:
            image = read_cell(row["image"], row["source_id"])
        except ImageReadError as error:
            return error
        image = self.fit(image.convert(self.mode), self.size, Image.Resampling.BILINEAR)
        if self.storage == "raw":
            return _channels_first(image)
        image.save(encoded := BytesIO(), self.storage, quality=_JPEG_QUALITY)
        return np.frombuffer(encoded.getbuffer(), np.uint8)


def decode_all(data: Any, decoder: Decoder, num_proc: int | None) -> Iterator[Decoded]:
    """Every row decoded, in order."""
    total = _length(data)
    workers = processors() if num_proc is None else num_proc
    if total is None or total < 64:  # a stream is read in order; a few images are faster than starting processes
        workers = 0
    loader = DataLoader(data, batch_size=16, num_workers=workers, collate_fn=decoder, worker_init_fn=obey_parent)
    with tqdm(total=total, desc="preparing images", unit="image", dynamic_ncols=True) as bar:
        for batch in loader:
            bar.update(len(batch))
            yield from batch


def processors() -> int:
    """Processors that this process may use (fewer than the machine has, in a container or batch job)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _length(data: Any) -> int | None:
    return len(data) if isinstance(data, datasets.Dataset) else None  # nobody knows the length of a stream


def kept_rows(told: Mapping[str, list[Any]], kept: Callable[[str], bool]) -> tuple[list[str], dict[str, list[Any]]]:
    """The names of rows that are `kept`, and what their other columns hold."""
    places = [place for place, name in enumerate(told["source_id"]) if kept(name)]
    columns = {column: [values[place] for place in places] for column, values in told.items()}
    return columns.pop("source_id"), columns


def write_images(
    decoded: Iterable[Decoded],
    folder: Path,
    settings: dict[str, Any],
    skips: SkipLog,
    told: Mapping[str, list[Any]] | None = None,
) -> int:
    """Write `pixels.bin` and `images.json`, and how many there are; what could not be decoded goes to `skips`.

    What the rows are `told` to hold beside their images is kept with them: `source_id`, and any columns.
    """
    ids, sizes, digest = [], [], hashlib.sha256()
    with (folder / PIXELS).open("wb") as file:
        for name, pixels in decoded:
            if isinstance(pixels, ImageReadError):
                skips.add(name, pixels)
            else:
                ids.append(name)
                sizes.append(pixels.size)
                data = np.ascontiguousarray(pixels).data
                digest.update(data)
                file.write(data)
    about = {**settings, "skipped": skips.count, "sha256": digest.hexdigest(), "ids": ids}
    if told is not None and len(told) > 1:
        about["columns"] = kept_rows(told, set(ids).__contains__)[1]
    if settings.get("storage", "raw") != "raw":
        about["sizes"] = sizes
    (folder / ABOUT).write_text(json.dumps(about))
    return len(ids)


def list_hash(ids: Iterable[str]) -> str:
    """The sha256 of images' names, in order: what tells one list of training images from another."""
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()


def split_holdout(patients: Sequence[str], share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of images to train on and to hold out, both int64 and rising; those of a patient stay together.

    A patient's place depends on the name and the seed, so that it hardly changes when images are added.

    Args:
        patients: Whose each image is; names of the images where nothing tells that.
        share: Share of the patients to hold out, in [0, 1); at least one if above 0.
        seed: Another seed holds out others.

    Raises:
        ValueError: holding out would leave nothing to train on.
    """
    names = sorted(set(patients), key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    held = max(1, round(len(names) * share)) if share else 0
    if held >= len(names):
        raise ValueError(
            f"{len(names)} images or patients are too few to hold out a share of {share} and train on the rest"
        )
    chosen = set(names[:held])
    away = torch.tensor([name in chosen for name in patients])
    return torch.nonzero(~away).flatten(), torch.nonzero(away).flatten()
