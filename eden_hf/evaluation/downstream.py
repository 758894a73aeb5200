"""What a fine-tuned model scores on its task's test split."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForImageClassification, AutoModelForSemanticSegmentation, PreTrainedModel

from eden_hf.data.patients import patient_names
from eden_hf.data.tasks import Task
from eden_hf.evaluation.results import Results, data_hash
from eden_hf.evaluation.statistics import Estimate, resampled
from eden_hf.image_processing_eden import EdenImageProcessor
from eden_hf.model_names import load_pretrained, weights_revision
from eden_hf.plots import plot_masks
from eden_hf.training.downstream_data import row_image, row_masks
from eden_hf.training.downstream_metrics import dice, mask_pixels, measure, predict, unmeasured_labels
from eden_hf.training.finetune_arguments import FinetuneArguments
from eden_hf.training.finetuning import load_run


def evaluate_finetuned(folder: str | Path, model: str | Path | None = None) -> Results:
    """Score the best model of a fine-tuning run on the test split, masks at the images' own size.

    The model is loaded from its folder, as a user would, and images are decoded one batch after the other.

    Args:
        folder: Of `eden_hf.training.finetuning.finetune`.
        model: Folder of the model to score in place of the run's best: the same in half precision, say, as published.

    Returns:
        Every metric of the task's kind (see `eden_hf.training.downstream_metrics`) with its bootstrap 95 % interval.
        `settings` names the primary `metric` and the labels that the test images do not allow to measure;
        for segmentation also how many `images_with` each structure there are, which Dice and IoU are means over.

    Raises:
        FileNotFoundError: the run has no `config.yaml`.
        OSError: it has no `best` model yet.
        ValueError: its source has other images now.
    """
    arguments, task, metric = load_run(folder)
    weights = Path(model or Path(folder) / "best")
    loaded, processor = _load(weights, task)
    rows = task.splits["test"]
    predictions, truths = predict(loaded, processor, rows, task.kind, arguments.training.batch_size)
    revision = weights_revision(str(weights), loaded)
    return _results(arguments, task, metric, (predictions, truths), arguments.model.name, revision)


def evaluate_mean_mask(folder: str | Path) -> Results:
    """Score what looks at no test image: each structure where at least half of the training images have it.

    Args:
        folder: Of `eden_hf.training.finetuning.finetune`, for segmentation.

    Returns:
        As of `evaluate_finetuned`.

    Raises:
        FileNotFoundError: the run has no `config.yaml`.
        ValueError: its task is no segmentation, or its source has other images now.
    """
    arguments, task, metric = load_run(folder)
    if task.kind != "segmentation":
        raise ValueError(f"a mean mask needs a segmentation task, {task.name} is {task.kind}")
    side = arguments.model.size or 256
    shares = torch.stack([_at_size(row_masks(row), (side, side)) for row in task.splits["train"]]).mean(dim=0)
    counted = []
    for row in task.splits["test"]:
        true = row_masks(row)
        predicted = _at_size(shares.numpy(), true.shape[1:]) >= 0.5
        counted.append(mask_pixels(predicted, torch.from_numpy(true)))
    predictions, truths = (torch.stack(found).numpy() for found in zip(*counted, strict=True))
    return _results(arguments, task, metric, (predictions, truths), "mean mask of training images", None)


def _at_size(masks: np.ndarray, size: tuple[int, ...]) -> Tensor:
    """Masks `[labels, H, W]` at another size, as shares of pixels."""
    planes = torch.from_numpy(masks.astype(np.float32))[None]
    return F.interpolate(planes, size=size, mode="bilinear", antialias=True)[0]


def _results(
    arguments: FinetuneArguments,
    task: Task,
    metric: str,
    found: tuple[np.ndarray, np.ndarray],
    encoder: str,
    revision: str | None,
) -> Results:
    """Metrics, with their intervals, of predictions and truths of the test split."""
    rows, seed, column = task.splits["test"], arguments.training.seed, arguments.task.patient_column
    values = intervals(task, *found, np.array(patient_names(rows, column)) if column else None, seed)
    unmeasured = unmeasured_labels({name: value.value for name, value in values.items()}, task.labels, "test")
    counts = (found[1] > 0).sum(axis=0).tolist() if task.kind == "segmentation" else []
    shown = {"images_with": dict(zip(task.labels, counts, strict=True))} if counts else {}
    return Results(
        evaluation=f"finetuned {task.name}",
        encoder=encoder,
        revision=revision,
        source=task.name,
        data_hash=data_hash(rows["source_id"], (row_image(row) for row in rows)),
        seed=seed,
        values={name: value for name, value in values.items() if not np.isnan(value.value)},
        settings={"metric": metric, "images": len(rows), "unmeasured_labels": unmeasured} | shown,
    )


def draw_masks(folder: str | Path, images: int = 6) -> Path:
    """Draw what the best model of a segmentation run outlines on test images, beside the true outlines.

    Args:
        folder: Of `eden_hf.training.finetuning.finetune`.
        images: How many of the first test images.

    Returns:
        The picture, `masks.png` in the folder.
    """
    _, task, _ = load_run(folder)
    model, processor = _load(Path(folder) / "best", task)
    rows = task.splits["test"].select(range(min(images, len(task.splits["test"]))))
    pictures, true, predicted = [row_image(row) for row in rows], [row_masks(row) for row in rows], []
    for picture in pictures:
        with torch.inference_mode():
            outputs = model(processor(picture, return_tensors="pt")["pixel_values"].to(model.device))
        found = processor.post_process_instance_segmentation(outputs, target_sizes=[(picture.height, picture.width)])
        predicted.append(found[0]["segmentation"].masks.cpu().numpy())
    titles = []
    for row, ours, theirs in zip(rows, predicted, true, strict=True):
        shown = ("-" if np.isnan(value) else f"{value:.2f}" for value in dice(ours, theirs))
        titles.append(f"{row['source_id']}: Dice " + ", ".join(shown))
    figure = plot_masks(pictures, predicted, true, task.labels, titles)
    file = Path(folder) / "masks.png"
    figure.savefig(file, dpi=100)
    return file


def _load(folder: Path, task: Task) -> tuple[PreTrainedModel, EdenImageProcessor]:
    """The model of a folder, on its device, and its image processor."""
    auto = AutoModelForSemanticSegmentation if task.kind == "segmentation" else AutoModelForImageClassification
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return load_pretrained(auto, folder).to(device or "cpu").eval(), EdenImageProcessor.from_pretrained(folder)


def intervals(
    task: Task, predictions: np.ndarray, truths: np.ndarray, patients: np.ndarray | None = None, seed: int = 0
) -> dict[str, Estimate]:
    """Every metric of a task with its percentile bootstrap 95 % interval over patients.

    Args:
        task: Its kind and labels.
        predictions: Of N images, as `measure` takes them.
        truths: Of the same images.
        patients: Whose each image is, `[N]`; images are taken for patients by default.
        seed: Of the bootstrap.
    """

    def measured(chosen: np.ndarray) -> dict[str, float]:
        return measure(task.kind, task.labels, predictions[chosen], truths[chosen])

    whose = [str(index) for index in range(len(truths))] if patients is None else list(patients)
    return {name: found.estimate() for name, found in resampled(measured, whose, seed).items()}
