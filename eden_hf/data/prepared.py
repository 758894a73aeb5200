"""Prepared images: a source decoded once to uint8 squares in one file, which training then reads by the batch."""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

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
from eden_hf.data.sources import Data, SourceError, find_source, read_cell
from eden_hf.data.workers import obey_parent, workers_live

logger = logging.getLogger(__name__)

CACHE_DIR = Path(HF_HOME) / "eden_hf" / "prepared"


class PreparedImages(Dataset):
    """Images of one size in a folder: `pixels.bin` (uint8) and `images.json` (names and settings).

    Attributes: `ids` (names, in order), `channels`, `side`, `list_hash` (SHA-256 of the names), `skipped` (number of
    images that could not be read; `skipped_file` lists them).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        about = json.loads((folder / "images.json").read_text())
        self.ids: list[str] = about["ids"]
        self.channels: int = about["channels"]
        self.side: int = about["side"]
        self.skipped: int = about["skipped"]
        self.list_hash: str = about["list_hash"]

    @property
    def skipped_file(self) -> Path:
        """JSON lines with the name and the reason of each image left out; absent if there is none."""
        return self.folder / SKIPPED_FILE

    @cached_property
    def _pixels(self) -> np.ndarray:
        shape = (len(self.ids), self.channels, self.side, self.side)
        return np.memmap(self.folder / "pixels.bin", np.uint8, "r", shape=shape)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_pixels"}  # each process maps its own

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
        return torch.from_numpy(self._pixels[np.asarray(indices)])


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
        source: With `split`, `image_column`, `id_column`, `list_file` as for `eden_hf.data.sources.load_source`.
        side: Pixels a side. Smaller and larger images are resized to it, anti-aliased.
        channels: 1 turns colour to grey, 3 repeats grey.
        aspect_ratio: `resize` stretches to the square; `pad` keeps the ratio, centred on black.
        max_skipped_share: Share of the images that may be unreadable; they are listed in `skipped.jsonl`, with files
            that hold no image, which do not count.
        cache_dir: Where prepared images are kept; `eden_hf/prepared` in the cache of Hugging Face by default.
        num_proc: Processes that decode; all processors by default, 0 for this process alone.

    Raises:
        ValueError: `side`, `channels` or `aspect_ratio` is none of the values above.
        SourceError: the source is absent, empty or not of the shape asked for, or nothing can be written to
            `cache_dir`.
        TooManyUnreadable: more images than `max_skipped_share` cannot be read; the list of all of them is kept.
    """
    if side < 1 or channels not in (1, 3) or aspect_ratio not in ("resize", "pad"):
        raise ValueError(
            "side must be at least 1, channels 1 or 3, aspect_ratio 'resize' or 'pad', "
            f"got side={side!r}, channels={channels!r}, aspect_ratio={aspect_ratio!r}"
        )
    where: dict[str, Any] = {"image_column": image_column, "id_column": id_column}
    found = find_source(source, list_file=list_file)
    split = found.splits[0] if isinstance(source, Data) else split
    settings: dict[str, Any] = {"side": side, "channels": channels, "aspect_ratio": aspect_ratio}
    key = Hasher.hash([found.fingerprint, split, where, settings, max_skipped_share, decoder_versions()])
    cache = Path(cache_dir or CACHE_DIR).expanduser()
    folder, kept_list = cache / key, cache / f"{key}-{SKIPPED_FILE}"
    if not folder.exists():
        data = found.load(split, **where).select_columns(["image", "source_id"])
        writable(cache, "data.cache_dir (cache_dir in Python), or by HF_HOME")
        with workers_live(), scratch_folder(folder) as scratch:
            decoded = _decode_all(data, Decoder(**settings), num_proc)
            skips = SkipLog(scratch / SKIPPED_FILE, max_skipped_share)
            _write(decoded, scratch, settings, skips, kept_list)
            _move(scratch, folder)
    kept_list.unlink(missing_ok=True)
    images = PreparedImages(folder)
    if entries := skipped_entries(images.skipped_file):
        logger.warning("%s, see %s", left_out(entries), images.skipped_file)
    return images


def _move(scratch: Path, folder: Path) -> None:
    """Give what is complete its name, unless another process was faster."""
    try:
        scratch.rename(folder)
    except OSError:
        if not folder.exists():
            raise


Decoded: TypeAlias = tuple[str, np.ndarray | ImageReadError]  # an image's name, and its pixels or why there are none


class Decoder:
    """Turns rows of a source into (name, pixels [C, side, side] uint8 or the reason why there are none)."""

    def __init__(self, side: int, channels: int, aspect_ratio: str) -> None:
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
        return np.moveaxis(np.atleast_3d(np.asarray(image)), -1, 0)


def _decode_all(data: Any, decoder: Decoder, num_proc: int | None) -> Iterator[Decoded]:
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


def _write(
    decoded: Iterable[Decoded],
    folder: Path,
    settings: dict[str, Any],
    skips: SkipLog,
    kept_list: Path,
) -> None:
    """Write `pixels.bin`, `images.json` and, if anything was left out, `skipped.jsonl` (`kept_list` if too much)."""
    ids = []
    with (folder / "pixels.bin").open("wb") as file:
        for name, pixels in decoded:
            if isinstance(pixels, ImageReadError):
                skips.add(name, pixels)
            else:
                ids.append(name)
                file.write(np.ascontiguousarray(pixels).data)
    skips.check(len(ids) + len(skips.entries), keep_at=kept_list)
    if not ids:
        raise SourceError("the source has no images")
    about = {**settings, "skipped": skips.count, "list_hash": list_hash(ids), "ids": ids}
    (folder / "images.json").write_text(json.dumps(about))


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
