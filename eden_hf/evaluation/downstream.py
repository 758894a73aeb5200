"""What a fine-tuned model scores on its task's test split."""

import logging
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForImageClassification, AutoModelForSemanticSegmentation

from eden_hf.data.tasks import Task
from eden_hf.evaluation.results import RESAMPLES, Estimate, Results, data_hash
from eden_hf.image_processing_eden import EdenImageProcessor
from eden_hf.model_names import weights_revision
from eden_hf.training.arguments import read_settings
from eden_hf.training.downstream_data import row_image
from eden_hf.training.downstream_metrics import labels_without_auc, measure, predict
from eden_hf.training.finetune_arguments import FinetuneArguments
from eden_hf.training.finetuning import load_task_and_metric

logger = logging.getLogger(__name__)


def evaluate_finetuned(folder: str | Path) -> Results:
    """Score the best model of a fine-tuning run on the test split, masks at the images' own size.

    The model is loaded from its folder, as a user would, and images are decoded one batch after the other.

    Args:
        folder: Of `eden_hf.training.finetuning.finetune`.

    Returns:
        Every metric of the task's kind (see `eden_hf.training.downstream_metrics`) with its bootstrap 95 % interval.
        `settings` names the primary `metric` and the labels for which the test images allow no AUC.

    Raises:
        FileNotFoundError: the run has no `config.yaml`.
        OSError: it has no `best` model yet.
    """
    arguments = read_settings(FinetuneArguments, Path(folder) / "config.yaml")
    task, metric = load_task_and_metric(arguments)
    best = str(Path(folder) / "best")
    auto = AutoModelForSemanticSegmentation if task.kind == "segmentation" else AutoModelForImageClassification
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    model = auto.from_pretrained(best).to(device or "cpu")
    processor = EdenImageProcessor.from_pretrained(best)
    rows, seed = task.splits["test"], arguments.training.seed
    predictions, truths = predict(model, processor, rows, task.kind, arguments.training.batch_size)
    column = arguments.task.patient_column
    values = intervals(task, predictions, truths, np.array(rows[column]) if column else None, seed)
    if absent := labels_without_auc({name: value.value for name, value in values.items()}, task.labels):
        logger.warning("no AUC for %s: the test images do not have both classes", ", ".join(absent))
    return Results(
        evaluation=f"finetuned {task.name}",
        encoder=arguments.model.name,
        revision=weights_revision(best, model),
        source=task.name,
        data_hash=data_hash(rows["source_id"], (row_image(row) for row in rows)),
        seed=seed,
        values={name: value for name, value in values.items() if not np.isnan(value.value)},
        settings={"metric": metric, "images": len(rows), "labels_without_auc": absent},
    )


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
    _, patient = np.unique(np.arange(len(truths)) if patients is None else patients, return_inverse=True)
    images = np.split(np.argsort(patient, kind="stable"), np.cumsum(np.bincount(patient))[:-1])  # of each patient
    drawn = np.random.default_rng(seed).integers(len(images), size=(RESAMPLES, len(images)))
    resampled = []
    for draw in drawn:
        chosen = np.concatenate([images[index] for index in draw])
        resampled.append(measure(task.kind, task.labels, predictions[chosen], truths[chosen]))
    estimates = {}
    for name, value in measure(task.kind, task.labels, predictions, truths).items():
        draws = np.array([metrics[name] for metrics in resampled])
        # A draw without both classes of a label has no AUC for it.
        low, high = (np.nan, np.nan) if np.isnan(draws).all() else np.nanpercentile(draws, [2.5, 97.5])
        estimates[name] = Estimate(value, float(low), float(high), len(images))
    return estimates
