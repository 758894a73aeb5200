"""Predictions of fine-tuned models, and the metrics of downstream tasks.

| kind | metrics | predictions and truths of N images that they are computed from |
| --- | --- | --- |
| `single_label` | `accuracy`; `auc`, each class against the rest, mean | probabilities `[N, labels]`, indices `[N]` |
| `multi_label` | `auc`, mean over labels | probabilities `[N, labels]`, 0, 1 or NaN `[N, labels]` |
| `regression` | `mae`, `r2`, mean over values | values `[N, labels]` twice |
| `segmentation` | `dice`, `iou`, mean over labels | pixels `[N, labels, 2]` (hit, predicted), true `[N, labels]` |

With several labels each also has its own `METRIC_LABEL`. An AUC exists only where both classes occur; means are over
the labels that have one, and `labels_without_auc` names the others. Two empty masks agree: Dice and IoU 1.
"""

from collections.abc import Sequence

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel

from eden_hf.data.tasks import Kind
from eden_hf.image_processing_eden import EdenImageProcessor
from eden_hf.training.downstream_data import row_image, row_masks

try:
    from sklearn.metrics import r2_score, roc_auc_score
except ImportError as error:
    raise ImportError("fine-tuning needs scikit-learn: pip install 'eden_hf[evaluation]'") from error

#: The metrics of each kind, the usual one first.
METRICS: dict[Kind, tuple[str, ...]] = {
    "single_label": ("accuracy", "auc"),
    "multi_label": ("auc",),
    "regression": ("mae", "r2"),
    "segmentation": ("dice", "iou"),
}
LOWER_IS_BETTER = ("mae",)


def measure(kind: Kind, labels: Sequence[str], predictions: np.ndarray, truths: np.ndarray) -> dict[str, float]:
    """Every metric of a kind of task; NaN where one is not defined.

    Args:
        kind: The task's.
        labels: Names of its labels.
        predictions: As in the module's table.
        truths: As in the module's table.
    """
    if kind == "single_label":
        found = {"auc": _aucs(predictions, np.eye(len(labels))[truths])}
    elif kind == "multi_label":
        found = {"auc": _aucs(predictions, truths)}
    elif kind == "regression":
        r2 = (
            r2_score(truths, predictions, multioutput="raw_values")
            if len(truths) > 1
            else np.full(len(labels), np.nan)
        )
        found = {"mae": np.abs(predictions - truths).mean(axis=0), "r2": r2}
    else:
        dices, ious = overlaps(predictions, truths)
        found = {"dice": dices.mean(axis=0), "iou": ious.mean(axis=0)}
    metrics = {"accuracy": float((predictions.argmax(axis=1) == truths).mean())} if kind == "single_label" else {}
    for name, values in found.items():
        metrics[name] = float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")
        if len(labels) > 1:
            metrics |= {f"{name}_{label}": float(value) for label, value in zip(labels, values, strict=True)}
    return metrics


def overlaps(pixels: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Dice `2 |A and B| / (|A| + |B|)` and IoU `|A and B| / |A or B|`, `[N, labels]` each; 1 where both are empty.

    Args:
        pixels: `[N, labels, 2]`, numbers of pixels that are predicted and true, and that are predicted.
        true: `[N, labels]`, numbers of pixels that are true.
    """
    hit, total = pixels[..., 0], pixels[..., 1] + true
    empty = total == 0
    return np.where(empty, 1.0, 2 * hit / np.maximum(total, 1)), np.where(empty, 1.0, hit / np.maximum(total - hit, 1))


def dice(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Dice `[...]` of bool masks `[..., H, W]`; 1 where both are empty."""
    pixels, inside = mask_pixels(torch.from_numpy(predicted), torch.from_numpy(true))
    return overlaps(pixels.numpy(), inside.numpy())[0]


def _aucs(scores: np.ndarray, truths: np.ndarray) -> np.ndarray:
    """For each label the area under the ROC curve over the images where it is known; NaN without both classes."""
    aucs = []
    for score, truth in zip(scores.T, truths.T, strict=True):
        known = ~np.isnan(truth)
        both = len(np.unique(truth[known])) == 2
        aucs.append(roc_auc_score(truth[known], score[known]) if both else np.nan)
    return np.array(aucs)


def labels_without_auc(metrics: dict[str, float], labels: Sequence[str]) -> list[str]:
    """Labels that `measure` found no AUC for: the images do not have both classes of them."""
    return [label for label in labels if np.isnan(metrics.get(f"auc_{label}", 0.0))]


def probabilities(kind: Kind, logits: Tensor) -> Tensor:
    """What a classification model's logits `[B, labels]` say, as in the module's table."""
    if kind == "single_label":
        return logits.float().softmax(dim=1)
    return logits.float().sigmoid() if kind == "multi_label" else logits.float()


def mask_pixels(predicted: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers of pixels `[..., labels, 2]` and `[..., labels]`, see the table, of bool `[..., labels, H, W]`."""
    hit, all_predicted, all_true = (mask.sum(dim=(-2, -1)) for mask in (predicted & true, predicted, true))
    return torch.stack([hit, all_predicted], dim=-1), all_true


@torch.inference_mode()
def predict(
    model: PreTrainedModel, processor: EdenImageProcessor, rows: Dataset, kind: Kind, batch_size: int = 16
) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and truths of the rows of a task, as in the module's table; masks at the images' own size.

    Args:
        model: A fine-tuned model; set to evaluation mode.
        processor: Its image processor, whose post-processing makes the masks, as in `pipeline("image-segmentation")`.
        rows: A split of a `Task`.
        kind: The task's.
        batch_size: Images in one forward pass.
    """
    model.eval()
    predictions, truths = [], []
    for start in range(0, len(rows), batch_size):
        batch = rows.select(range(start, min(start + batch_size, len(rows))))
        images = [row_image(row) for row in batch]
        pixel_values = processor(images, return_tensors="pt")["pixel_values"].to(model.device)
        outputs = model(pixel_values)
        if kind != "segmentation":
            predictions.append(probabilities(kind, outputs.logits).cpu())
            truths.append(torch.tensor(batch["label"][:]))
            continue
        sizes = [(image.height, image.width) for image in images]
        found = processor.post_process_instance_segmentation(outputs, target_sizes=sizes)
        for row, result in zip(batch, found, strict=True):
            pixels, true = mask_pixels(result["segmentation"].masks.cpu(), torch.from_numpy(row_masks(row)))
            predictions.append(pixels[None])
            truths.append(true[None])
    return torch.cat(predictions).numpy(), torch.cat(truths).numpy()
