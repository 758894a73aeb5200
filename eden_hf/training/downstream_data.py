"""Rows of a downstream task as tensors, their paired augmentation, and images held out by patient."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset, DatasetDict
from PIL import Image
from torch import Tensor

from eden_hf.data.prepared import split_holdout
from eden_hf.data.sources import read_cell
from eden_hf.data.tasks import Kind, Task, TaskError
from eden_hf.image_processing_eden import EdenImageProcessor
from eden_hf.training.finetune_arguments import AugmentationArguments, TaskArguments

logger = logging.getLogger(__name__)


def row_image(row: Mapping[str, Any]) -> Image.Image:
    """The image of a task's row, decoded."""
    return read_cell(row["image"], row["source_id"])


def row_masks(row: Mapping[str, Any]) -> np.ndarray:
    """The masks of a segmentation task's row, bool `[labels, H, W]`.

    Raises:
        TaskError: they are of several sizes.
    """
    masks = [np.asarray(read_cell(cell, row["source_id"])) > 0 for cell in row["masks"]]
    if len({mask.shape for mask in masks}) > 1:
        raise TaskError(f"image {row['source_id']} has masks of the shapes {sorted({mask.shape for mask in masks})}")
    return np.stack(masks)


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

    What comes in from beyond the edge repeats the edge in images and is empty in masks.

    Args:
        pixel_values: `[B, 3, H, W]`.
        masks: `[B, labels, H, W]`, or none.
        arguments: How much of what.
        seed: Integers, such as a run's seed and its step.

    Returns:
        New tensors of the same shapes.
    """
    drawn = np.random.default_rng(list(seed)).uniform(-1, 1, (len(pixel_values), 6)).astype(np.float32)
    turn, size, x, y, contrast, brightness = torch.from_numpy(drawn).to(pixel_values).T
    angle = turn * np.deg2rad(arguments.rotation_degrees)
    zoom = (1 + arguments.scale) ** size
    height, width = pixel_values.shape[-2:]
    cos, sin = angle.cos() / zoom, angle.sin() / zoom
    rows = [cos, -sin * height / width, 2 * arguments.shift * x, sin * width / height, cos, 2 * arguments.shift * y]
    grid = F.affine_grid(torch.stack(rows, dim=1).view(-1, 2, 3), list(pixel_values.shape), align_corners=False)
    images = F.grid_sample(pixel_values, grid, padding_mode="border", align_corners=False)
    mean, std = (statistic(images, dim=(1, 2, 3), keepdim=True) for statistic in (torch.mean, torch.std))
    gain, offset = ((1 + arguments.contrast) ** contrast, arguments.brightness * brightness)
    images = (images - mean) * gain.view(-1, 1, 1, 1) + mean + std * offset.view(-1, 1, 1, 1)
    if masks is not None:
        masks = F.grid_sample(masks, grid.to(masks.dtype), mode="nearest", align_corners=False)
    return images, masks


def with_holdouts(task: Task, arguments: TaskArguments, seed: int) -> DatasetDict:
    """The task's `train`, `validation` and `test`; those that it lacks are held out of `train` by `seed`.

    Raises:
        TaskError: the task has no `train`, or no column `task.patient_column`.
        ValueError: there are too few images to hold out any.
    """
    splits = dict(task.splits)
    if "train" not in splits:
        raise TaskError(f"{task.name} has no split 'train' to learn from; it has {', '.join(splits)}")
    for name, share in (("test", arguments.test_share), ("validation", arguments.validation_share)):
        if name not in splits:
            splits["train"], splits[name] = _held_out(splits["train"], share, arguments.patient_column, seed)
            logger.info("%s has no split %s: held %d images out of train", task.name, name, len(splits[name]))
    return DatasetDict({name: splits[name] for name in ("train", "validation", "test")})


def _held_out(rows: Dataset, share: float, patient_column: str | None, seed: int) -> tuple[Dataset, Dataset]:
    """Rows to keep and rows of the patients held out."""
    column = patient_column or "source_id"
    if column not in rows.column_names:
        raise TaskError(
            f"`task.patient_column` must name a column of the training images, got {column!r}; they have "
            f"{', '.join(rows.column_names)}"
        )
    patients = list(rows[column])
    unique = sorted(set(patients))
    _, held = split_holdout([str(patient) for patient in unique], share, seed)
    chosen = {unique[index] for index in held.tolist()}
    places = np.array([patient in chosen for patient in patients])
    return rows.select(np.flatnonzero(~places)), rows.select(np.flatnonzero(places))
