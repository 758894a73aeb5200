"""Rows of a downstream task as tensors, their paired augmentation, images held out and images that cannot be read."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset, DatasetDict
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from eden_hf.data.patients import patient_names, patients_apart, tell_of_no_patients
from eden_hf.data.prepared import split_holdout
from eden_hf.data.progress import progress_bar
from eden_hf.data.readers.masks import is_inside, warn_if_inverted
from eden_hf.data.reading import ImageReadError
from eden_hf.data.skips import SkipLog
from eden_hf.data.sources import read_cell
from eden_hf.data.splits import SPLIT_NAMES
from eden_hf.data.tasks import Kind, Task, TaskError
from eden_hf.data.workers import obey_parent
from eden_hf.image_processing_eden import EdenImageProcessor
from eden_hf.training.finetune_arguments import AugmentationArguments, TaskArguments

logger = logging.getLogger(__name__)

_ELASTIC_NODES = 6  # a side


def row_image(row: Mapping[str, Any]) -> Image.Image:
    """The image of a task's row, decoded."""
    return read_cell(row["image"], row["source_id"])


def row_masks(row: Mapping[str, Any]) -> np.ndarray:
    """The masks of a segmentation task's row, bool `[labels, H, W]`.

    Raises:
        TaskError: they are of several sizes.
    """
    masks = [is_inside(read_cell(cell, row["source_id"])) for cell in row["masks"]]
    if len({mask.shape for mask in masks}) > 1:
        raise TaskError(f"image {row['source_id']} has masks of the shapes {sorted({mask.shape for mask in masks})}")
    return np.stack(masks)


def warn_of_inverted_masks(task: Task, look_at: int = 16) -> None:
    """`warn_if_inverted` of some training images of a segmentation task, spread over all."""
    rows = task.splits["train"]
    chosen = np.linspace(0, len(rows) - 1, min(look_at, len(rows))).astype(int).tolist()
    masks = (dict(zip(task.labels, row_masks(rows[index]), strict=True)) for index in chosen)
    warn_if_inverted(masks, task.name)


class TaskImages(torch.utils.data.Dataset):
    """Rows of a task as `pixel_values` `[3, H, W]` and `labels`, decoded when they are asked for.

    Labels are int64 (`single_label`), float32 `[labels]` (`multi_label`, NaN where unknown), the same standardised
    (`regression`), or float32 masks `[labels, H, W]` (`segmentation`).

    Args:
        rows: A split of a `Task`.
        kind: The task's.
        processor: The model's image processor.
        scale: Mean and standard deviation `[labels]` that regression labels are standardised by.
        cache: Keep what was decoded in memory.
    """

    def __init__(
        self,
        rows: Dataset,
        kind: Kind,
        processor: EdenImageProcessor,
        scale: tuple[Tensor, Tensor] | None = None,
        cache: bool = False,
    ) -> None:
        self.rows, self.kind, self.processor, self.scale = rows, kind, processor, scale
        self._cached: dict[int, dict[str, Tensor]] | None = {} if cache else None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if self._cached is None:
            return self._read(index)
        if index not in self._cached:
            self._cached[index] = self._read(index)
        return self._cached[index]

    def _read(self, index: int) -> dict[str, Tensor]:
        row = self.rows[index]
        if self.kind == "segmentation":
            try:
                read = self.processor.preprocess(row_image(row), [row_masks(row)], return_tensors="pt")
            except ValueError as error:
                raise TaskError(f"image {row['source_id']}: {error}") from error
            return {name: values[0] for name, values in read.items()}
        label = torch.tensor(row["label"])
        if self.scale is not None:
            label = (label - self.scale[0]) / self.scale[1]
        return {
            "pixel_values": self.processor(row_image(row), return_tensors="pt")["pixel_values"][0],
            "labels": label,
        }


def label_scale(rows: Dataset) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation `[labels]` of regression labels; 1 where all are the same.

    Raises:
        TaskError: a label is missing.
    """
    labels = torch.tensor(rows["label"][:])
    if unknown := [rows[index]["source_id"] for index in labels.isnan().any(dim=1).nonzero().flatten().tolist()]:
        raise TaskError(f"{len(unknown)} images have no number to learn: {', '.join(unknown[:3])}; leave them out")
    std = labels.std(dim=0, correction=0)
    return labels.mean(dim=0), torch.where(std > 0, std, 1.0)


def augment(
    pixel_values: Tensor, masks: Tensor | None, arguments: AugmentationArguments, seed: Sequence[int]
) -> tuple[Tensor, Tensor | None]:
    """Random affine maps and intensities of a batch, drawn from `seed` alone; masks take the images' maps.

    Masks become shares of pixels that lie inside. What comes in from beyond the edge repeats the edge in images and is
    empty in masks.

    Args:
        pixel_values: `[B, 3, H, W]`.
        masks: `[B, labels, H, W]`, or none.
        arguments: How much of what.
        seed: Integers, such as a run's seed and its step.

    Returns:
        New tensors of the same shapes.
    """
    generator = np.random.default_rng(list(seed))
    drawn = generator.uniform(-1, 1, (len(pixel_values), 6)).astype(np.float32)
    turn, size, x, y, contrast, brightness = torch.from_numpy(drawn).to(pixel_values).T
    angle = turn * np.deg2rad(arguments.rotation_degrees)
    zoom = (1 + arguments.scale) ** size
    height, width = pixel_values.shape[-2:]
    cos, sin = angle.cos() / zoom, angle.sin() / zoom
    rows = [cos, -sin * height / width, 2 * arguments.shift * x, sin * width / height, cos, 2 * arguments.shift * y]
    grid = F.affine_grid(torch.stack(rows, dim=1).view(-1, 2, 3), list(pixel_values.shape), align_corners=False)
    if arguments.elastic:
        nodes = generator.uniform(-1, 1, (len(pixel_values), 2, _ELASTIC_NODES, _ELASTIC_NODES)).astype(np.float32)
        field = F.interpolate(torch.from_numpy(nodes).to(grid), (height, width), mode="bicubic", align_corners=True)
        grid = grid + 2 * arguments.elastic * field.permute(0, 2, 3, 1)
    images = F.grid_sample(pixel_values, grid, padding_mode="border", align_corners=False)
    mean, std = (statistic(images, dim=(1, 2, 3), keepdim=True) for statistic in (torch.mean, torch.std))
    gain, offset = ((1 + arguments.contrast) ** contrast, arguments.brightness * brightness)
    images = (images - mean) * gain.view(-1, 1, 1, 1) + mean + std * offset.view(-1, 1, 1, 1)
    if masks is not None:
        masks = F.grid_sample(masks, grid.to(masks.dtype), align_corners=False)  # not the nearest: edges would jump
    return images, masks


def with_holdouts(task: Task, arguments: TaskArguments) -> DatasetDict:
    """The task's `train`, `validation` and `test`; those that it lacks are held out of `train` by `task.split_seed`.

    There is no `validation` where its share is 0.

    Raises:
        TaskError: the task has no `train`.
        SourceError: it has no column `task.patient_column`, or its splits share patients by it.
        ValueError: there are too few images to hold out any.
    """
    splits = {name: task.splits[name] for name in SPLIT_NAMES if name in task.splits}
    if "train" not in splits:
        raise TaskError(f"{task.name} has no split 'train' to learn from; it has {', '.join(task.splits)}")
    if arguments.patient_column is not None:
        splits = patients_apart(splits, arguments.patient_column, arguments.shared_patients)
    else:
        tell_of_no_patients(sum(map(len, splits.values())), "--task.patient_column")
    for name, share in (("test", arguments.test_share), ("validation", arguments.validation_share)):
        if name not in splits and share:
            column, seed = arguments.patient_column, arguments.split_seed
            splits["train"], splits[name] = _held_out(splits["train"], share, column, seed)
            logger.info("%s has no split %s: held %d images out of train", task.name, name, len(splits[name]))
    return DatasetDict({name: splits[name] for name in SPLIT_NAMES if name in splits})


def _held_out(rows: Dataset, share: float, patient_column: str | None, seed: int) -> tuple[Dataset, Dataset]:
    """Rows to keep and rows of the patients held out."""
    patients = patient_names(rows, patient_column) if patient_column else list(rows["source_id"])
    kept, held = split_holdout(patients, share, seed)
    return rows.select(kept.tolist()), rows.select(held.tolist())


def without_unreadable(
    splits: DatasetDict, kind: Kind, max_share: float, list_file: Path, workers: int = 0
) -> DatasetDict:
    """The splits without the images that cannot be read, or whose masks cannot: every one is tried.

    Under a launcher, every process calls this and tries its share.

    Args:
        splits: Of a task.
        kind: The task's.
        max_share: Share of all images, in [0, 1], that may be unreadable.
        list_file: Where the main process lists them, each with its split and the reason.
        workers: Processes that read.

    Raises:
        TooManyUnreadable: there are more; the message names the list of all of them.
    """
    state = PartialState()
    found = []
    for name, rows in splits.items():
        mine = rows.select(range(state.process_index, len(rows), state.num_processes))
        batches = DataLoader(
            _Reasons(mine, kind), batch_size=16, num_workers=workers, collate_fn=list, worker_init_fn=obey_parent
        )
        bar = progress_bar(batches, desc=f"reading {name}", unit="batch", shown=state.is_main_process)
        reasons = [reason for batch in bar for reason in batch]
        told = zip(mine["source_id"], reasons, strict=True)
        found += [(name, source_id, reason) for source_id, reason in told if reason is not None]
    skips = SkipLog(list_file if state.is_main_process else None, max_share)
    for name, source_id, reason in gather_object(found):
        skips.add(source_id, reason, split=name)
    skips.check(sum(len(rows) for rows in splits.values()))
    return without_skipped(splits, skips.entries)


def without_skipped(splits: DatasetDict, entries: Iterable[Mapping[str, Any]]) -> DatasetDict:
    """The splits without the images that a list of skipped ones names.

    Raises:
        TaskError: nothing is left of a split.
    """
    skipped = {(entry["split"], entry["source_id"]) for entry in entries}
    kept = {
        name: rows.select([index for index, own in enumerate(rows["source_id"]) if (name, own) not in skipped])
        for name, rows in splits.items()
    }
    if empty := [name for name, rows in kept.items() if len(splits[name]) and not len(rows)]:
        raise TaskError(f"no image of the split {empty[0]} can be read")
    return DatasetDict(kept)


class _Reasons(torch.utils.data.Dataset):
    """Why rows of a task cannot be read, `None` for those that can."""

    def __init__(self, rows: Dataset, kind: Kind) -> None:
        self.rows, self.kind = rows, kind

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> str | None:
        row = self.rows[index]
        try:
            row_image(row)
            if self.kind == "segmentation":
                row_masks(row)
        except (ImageReadError, TaskError) as error:
            return str(error)
        return None
