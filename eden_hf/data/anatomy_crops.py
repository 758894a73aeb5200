"""AnatomyCrops: the parts of every image of a source as a data set, level by level (see `eden_hf.anatomy`)."""

import json
import logging
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetInfo, Features, List, SplitGenerator, Value
from datasets.exceptions import DatasetGenerationError
from datasets.fingerprint import Hasher
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCard, DatasetCardData

from eden_hf import __version__
from eden_hf.anatomy import child_indices, finest_level, grid_shape, parent_index, part_boxes, part_position
from eden_hf.data.columns import Data
from eden_hf.data.decoders import decoder_versions
from eden_hf.data.errors import SourceError
from eden_hf.data.scratch import scratch_folder
from eden_hf.data.skips import SKIPPED_FILE, SkipLog, left_out, skipped_entries
from eden_hf.data.sources import find_source, read_cell, refuse_output_inside
from eden_hf.data.workers import check_workers

logger = logging.getLogger(__name__)

CROP_FEATURES = Features(
    {
        "image": datasets.Image(),
        "source_id": Value("string"),
        "level": Value("int32"),
        "index": Value("int64"),
        "row": Value("int32"),
        "column": Value("int32"),
        "box": List(Value("int32"), length=4),
        "parent": Value("int64"),
        "children": List(Value("int64")),
    }
)
MAX_SHARDS = 128  # pieces that a split can be shared out in, among processes or data loader workers


@dataclass
class AnatomyCropsConfig(datasets.BuilderConfig):
    """Options of `AnatomyCrops`.

    Attributes:
        name: `level-0`, `level-1`, ... (any level that the images' pixels allow), or `hierarchy`: all levels from 0
            to `max_level`.
        source: what `eden_hf.data.sources.load_source` opens: a folder, Parquet, a Hub id, an object in memory ...
        split: the one split of the source to take; all of them by default.
        image_column, id_column, list_file: as for `load_source`.
        max_level: finest level of `hierarchy`.
        max_skipped_share: share of the images, in [0, 1], that may be unreadable, or smaller than the level needs.
    """

    name: str = "hierarchy"
    version: datasets.Version | str | None = "1.0.0"  # of the rows made here; raise it when they change
    source: Any = None
    split: str | None = None
    image_column: str = "image"
    id_column: str | None = None
    list_file: str | Path | None = None
    max_level: int = 4
    max_skipped_share: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.source is None or self.data_dir or self.data_files:
            raise SourceError("AnatomyCrops takes its images from source=...: a folder, Parquet, a Hub id, a Dataset")
        self.levels = _levels(self.name, self.max_level)
        self.found = find_source(self.source, list_file=self.list_file)
        if self.split is not None:
            self.split = self.found.usual_name(self.split)

    def create_config_id(self, config_kwargs: dict, custom_features: Features | None = None) -> str:
        """Name of the cache folder: another source content, level, option or decoder gives another one."""
        options = [self.found.fingerprint, self.split, self.image_column, self.id_column, self.max_skipped_share]
        return f"{self.name}-{Hasher.hash([*options, self.levels, decoder_versions()])}"


class AnatomyCrops(datasets.GeneratorBasedBuilder):
    """The parts of every image of a source, one crop a row: a builder for `datasets`.

    `datasets` no longer runs loading scripts, so there is no `load_dataset("anatomy_crops")`; the builder is used as
    a class. It takes the options of `AnatomyCropsConfig`, and caches its result by the content of the source:

        builder = AnatomyCrops(source="images/", name="level-2")
        builder.download_and_prepare(num_proc=2)
        crops = builder.as_dataset("train")

    or without a copy on disk `AnatomyCrops(source="user/name", name="level-2").as_streaming_dataset("train")`.
    `build_anatomy_crops` writes Parquet that plain `load_dataset` reads.

    Rows come by image in the order of the source, then by level, then by index:

    | column | type | content |
    | --- | --- | --- |
    | `image` | Image | the crop: 8-bit grey or RGB, PNG (lossless) |
    | `source_id` | string | the image it was cut from |
    | `level`, `index` | int | the part; `(source_id, level, index)` is unique within a split |
    | `row`, `column` | int | its place in the grid of the level |
    | `box` | 4 int | `[x0, y0, x1, y1]` in pixels of the image, half open |
    | `parent` | int or null | `index` at `level - 1` of the part that holds it; null for the whole image |
    | `children` | list of int | `index` at `level + 1` of its two halves; empty where they would have no pixel |

    followed by the source's own columns as they are: a label goes with every crop, and so does a whole mask, which
    `box` crops. Images that cannot be read or are smaller than a level needs are listed in `skipped.jsonl` (its place
    is `skipped_path`); above `max_skipped_share` of them the run stops with `TooManyUnreadable`.
    """

    BUILDER_CONFIG_CLASS = AnatomyCropsConfig
    config: AnatomyCropsConfig

    @property
    def skipped_path(self) -> Path:
        """The list of the images left out, one JSON line each; absent where there were none."""
        return Path(self.cache_dir).parent / SKIPPED_FILE

    @property
    def skipped(self) -> list[dict[str, Any]]:
        """The images left out when the crops were made: `source_id`, `reason` and `split` of each (see `SkipLog`)."""
        return skipped_entries(self.skipped_path)

    def _info(self) -> DatasetInfo:
        return DatasetInfo(description="Anatomy Decomposer parts (arXiv 2309.15358) of every image.")

    def _split_generators(self, dl_manager: Any) -> list[SplitGenerator]:
        streaming = dl_manager.is_streaming
        names = (self.config.split,) if self.config.split else self.config.found.splits
        load = partial(
            self.config.found.load,
            image_column=self.config.image_column,
            id_column=self.config.id_column,
            streaming=streaming,
        )
        splits = {name: load(name) for name in names}
        self.info.features = _features(splits)
        self._skips = SkipLog(self.skipped_path, self.config.max_skipped_share)
        self._stops_at_once = streaming  # what is written is read to its end first, so that the list holds all
        sizes = [len(data) for data in splits.values() if isinstance(data, Dataset)]
        self._total = sum(sizes) if sizes else None  # nobody knows the length of a stream
        return [
            SplitGenerator(name=name, gen_kwargs={"split": name, "pieces": _pieces(data)})
            for name, data in splits.items()
        ]

    def _download_and_prepare(self, dl_manager: Any, verification_mode: Any, **kwargs: Any) -> None:
        try:
            super()._download_and_prepare(dl_manager, verification_mode, **kwargs)
        except DatasetGenerationError:
            if self._total is not None:
                self._skips.check(self._total)  # says more than the error, whose cause a worker process loses
            raise
        if self._total is not None:
            self._skips.check(self._total)
        if entries := self._skips.entries:
            logger.warning("%s, see %s", left_out(entries), self.skipped_path)

    def _generate_examples(self, split: str, pieces: Sequence[Data]) -> Iterator[tuple[str, dict[str, Any]]]:
        rows = 0
        for piece in pieces:
            for table in piece.iter(batch_size=16):
                for row in table.to_pylist():
                    rows += 1
                    yield from self._crops(split, row)
        if self._total is None:  # a stream is one piece, so these are all of its images
            self._total = rows
            self._skips.check(rows)

    def _crops(self, split: str, row: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        """The crops of one image with their keys, or an entry in the list of skipped images."""
        cell, source_id = row.pop("image"), row["source_id"]
        try:
            image = read_cell(cell, source_id)
            image.info = {}  # or every crop would carry the colour profile of the file
            boxes = {level: part_boxes(*image.size, level) for level in self.config.levels}
        except ValueError as error:  # an ImageReadError, or a level finer than the pixels
            self._skips.add(source_id, error, split=split)
            if self._stops_at_once and self._total is not None:
                self._skips.check(self._total)
            return
        for level, level_boxes in boxes.items():
            for index, box in enumerate(level_boxes):
                crop = {"image": image.crop(box), "box": box, **_place(level, index, finest_level(*image.size))}
                yield f"{source_id}/{level}/{index}", {**row, **crop}


def _place(level: int, index: int, finest: int) -> dict[str, Any]:
    """Where a part stands in the hierarchy of an image whose pixels allow levels up to `finest`."""
    row, column = part_position(level, index)
    return {
        "level": level,
        "index": index,
        "row": row,
        "column": column,
        "parent": parent_index(level, index),
        "children": child_indices(level, index) if level < finest else (),
    }


def _levels(name: str, max_level: int) -> range:
    """The levels of a config.

    Raises:
        ValueError: `name` is neither `hierarchy` nor `level-N`, or `max_level` is no level.
    """
    if name == "hierarchy":
        grid_shape(max_level)  # refuses what is no level
        return range(max_level + 1)
    level = re.fullmatch(r"level-(0|[1-9]\d*)", name)
    if level is None:
        raise ValueError(f"no config {name!r}: use 'hierarchy' or 'level-0', 'level-1', 'level-2' ...")
    return range(int(level[1]), int(level[1]) + 1)


def _pieces(data: Data) -> list[Data]:
    """A split as Arrow (nothing is decoded) in consecutive pieces; a stream is one piece."""
    data = data.with_format("arrow")
    if not isinstance(data, Dataset):
        return [data]
    count = min(MAX_SHARDS, len(data))
    return [data.shard(count, index, contiguous=True) for index in range(count)]


def _features(splits: Mapping[str, Data]) -> Features:
    """Columns of the crops: their own and the source's.

    Raises:
        SourceError: a source column has the name of one of ours, or the splits have different columns.
    """
    (first, data), *others = splits.items()
    for name, other in others:
        if other.features != data.features:
            raise SourceError(f"splits {first!r} and {name!r} have different columns: take one of them with split=...")
    own = {name: feature for name, feature in data.features.items() if name not in ("image", "source_id")}
    if taken := own.keys() & CROP_FEATURES.keys():
        raise SourceError(f"columns {sorted(taken)} of the source would be overwritten: rename or remove them first")
    return Features({**CROP_FEATURES, **own})


def build_anatomy_crops(
    source: str,
    output: Path,
    levels: tuple[int, ...] = (0, 2, 4),
    max_level: int | None = 4,
    split: str | None = None,
    image_column: str = "image",
    id_column: str | None = None,
    list_file: Path | None = None,
    licence: str = "unknown",
    max_skipped_share: float = 0.01,
    num_proc: int = 1,
    overwrite: bool = False,
) -> dict[str, dict[str, int]]:
    """Write AnatomyCrops as Parquet with a data set card: then `load_dataset(output, "level-2")` works anywhere.

    Args:
        source: folder of images, Parquet, Hub id, `phantoms:64` ... (see `eden_hf.data.sources`).
        output: folder to make; it appears when all is written.
        levels: levels to write, each as config `level-N`.
        max_level: finest level of the config `hierarchy`, which has all of them in one; null for no such config.
        split: the one split of the source to take; all of them by default.
        image_column: column of the source that holds the images.
        id_column: column of the source with unique ids; by default file paths or row numbers.
        list_file: text file with the images of a folder to take, one name a line.
        licence: licence of the source as a Hugging Face licence id, for the card.
        max_skipped_share: share of images in [0, 1] that may be unreadable or too small for the level.
        num_proc: number of processes; 0 and 1 for this process alone.
        overwrite: replace the crops and the card of an `output` that exists; its other files stay.

    Returns:
        Number of crops by config and split.

    Raises:
        FileExistsError: `output` holds something, and `overwrite` was not given.
        SourceError, TooManyUnreadable, ValueError: as `AnatomyCrops`.
    """
    output = output.expanduser()
    if output.exists() and any(output.iterdir()) and not overwrite:
        raise FileExistsError(f"{output} is not empty: give another output folder, or overwrite")
    check_workers(num_proc, "--num-proc")
    names = [f"level-{level}" for level in levels] + (["hierarchy"] if max_level is not None else [])
    if not names:
        raise ValueError("nothing to build: give levels, or max_level for the hierarchy")
    refuse_output_inside(find_source(source, list_file=list_file), source, output)
    output.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(output) as scratch:
        builders = []
        for name in names:
            builder = AnatomyCrops(
                source=source,
                name=name,
                max_level=max_level or 0,
                split=split,
                image_column=image_column,
                id_column=id_column,
                list_file=list_file,
                max_skipped_share=max_skipped_share,
            )
            _write_parquet(builder, Path(scratch, name), num_proc)
            builders.append(builder)
        _card(builders, source, licence).save(Path(scratch, "README.md"))
        _replace(output, [Path(scratch, name) for name in (*names, "README.md")])
    return {builder.config.name: _rows(builder) for builder in builders}


def _write_parquet(builder: AnatomyCrops, folder: Path, num_proc: int) -> None:
    """Prepare `builder` as `folder/{split}-{shard}-of-{shards}.parquet`, beside the list of skipped images if any."""
    builder.download_and_prepare(str(folder), file_format="parquet", num_proc=num_proc or None)
    for split in builder.info.splits:
        files = sorted(folder.glob(f"{builder.dataset_name}-{split}[.-]*"))
        for index, file in enumerate(files):
            file.rename(folder / f"{split}-{index:05d}-of-{len(files):05d}.parquet")
    (folder / "dataset_info.json").unlink()  # the card says the same
    if builder.skipped_path.exists():
        lines = [json.dumps(_without_path(entry)) + "\n" for entry in builder.skipped]
        (folder / builder.skipped_path.name).write_text("".join(lines), encoding="utf-8")


def _without_path(skipped: dict[str, Any]) -> dict[str, Any]:
    """An entry whose reason names the image by its id, not by where it lay: the list is published with the crops."""
    name, _, reason = skipped["reason"].partition(": ")
    return skipped | ({"reason": f"{skipped['source_id']}: {reason}"} if re.search(r"[/\\]", name) else {})


def _replace(output: Path, made: Sequence[Path]) -> None:
    """Move what was made into `output`, in place of the crops that are there."""
    output.mkdir(exist_ok=True)
    for old in output.iterdir():
        if old.is_dir() and (old.name == "hierarchy" or re.fullmatch(r"level-\d+", old.name)):
            shutil.rmtree(old)
    for new in made:
        new.replace(output / new.name)


def _rows(builder: AnatomyCrops) -> dict[str, int]:
    return {split: info.num_examples for split, info in builder.info.splits.items()}


CARD = """
# Anatomy crops of {source}

Parts of every image at several levels of detail, as the Anatomy Decomposer of Adam (arXiv 2309.15358)
cuts them: level `n` has `2**n` parts, made by halving each part of level `n - 1`, along x first.

```python
from datasets import load_dataset

crops = load_dataset("path/to/this/folder", "{example}")
```

| config | split | crops | images left out |
| --- | --- | --- | --- |
{rows}

## Columns

| column | content |
| --- | --- |
| `image` | the crop, 8-bit PNG (lossless) |
| `source_id` | the image it was cut from |
| `level`, `index` | the part, numbered row by row from the top left |
| `row`, `column` | its place in the grid of the level |
| `box` | `[x0, y0, x1, y1]` in pixels of the image, half open |
| `parent` | index at `level - 1` of the part that holds it; null for the whole image |
| `children` | indices at `level + 1` of its two halves; empty where they would have no pixel |
| {own} | the source's own, the same for all crops of an image (masks are of the whole image) |

## How it was made

From `{source}` by `eden_hf` {version} (`build_anatomy_crops`), with `datasets` {datasets_version}. Images were decoded
to 8 bits a channel and cut without resizing. Images left out are listed with reasons in `skipped.jsonl` of the config.

## Terms

The crops are copies of the source's images: **the terms of the source apply to them**, its licence, its citation
and its limits on redistribution and use. Licence as given by whoever built this: `{licence}`. Not for clinical use.
"""


def _card(builders: Sequence[AnatomyCrops], source: str, licence: str) -> DatasetCard:
    """The data set card: what `load_dataset` reads (YAML) and what people read."""
    data = DatasetCardData(
        license=licence,
        pretty_name="Anatomy crops",
        tags=["medical", "anatomy", "eden_hf"],
        configs=[
            {
                "config_name": builder.config.name,
                "data_files": [
                    {"split": split, "path": f"{builder.config.name}/{split}-*.parquet"} for split in _rows(builder)
                ],
            }
            for builder in builders
        ],
    )
    DatasetInfosDict({builder.config.name: builder.info for builder in builders}).to_dataset_card_data(data)
    rows = [
        f"| `{builder.config.name}` | {split} | {count} | {skipped[split]} |"
        for builder in builders
        for skipped in [Counter(entry["split"] for entry in builder.skipped if not entry.get("no_image"))]
        for split, count in _rows(builder).items()
    ]
    own = [f"`{name}`" for name in builders[0].info.features if name not in CROP_FEATURES]
    text = CARD.format(
        source=Path(source).name if Path(source).exists() else source,  # a card need not tell where folders lie
        example=builders[-1].config.name,
        rows="\n".join(rows),
        own=", ".join(own) or "(none)",
        version=__version__,
        datasets_version=datasets.__version__,
        licence=licence,
    )
    return DatasetCard(f"---\n{data.to_yaml()}\n---\n{text}")
