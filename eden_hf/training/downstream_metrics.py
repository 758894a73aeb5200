"""Predictions of fine-tuned models, and the metrics of downstream tasks.

| kind | metrics | predictions and truths of N images that they are computed from |
| --- | --- | --- |
| `single_label` | `accuracy`; `auc`, each class against the rest, mean | probabilities `[N, labels]`, indices `[N]` |
| `multi_label` | `auc`, mean over labels | probabilities `[N, labels]`, 0, 1 or NaN `[N, labels]` |
| `regression` | `mae`, `r2`, mean over values | values `[N, labels]` twice |
| `segmentation` | `dice`, `iou`, mean over labels | pixels `[N, labels, 2]` (hit, predicted), true `[N, labels]` |

With several labels each also has its own `METRIC_LABEL`. An AUC exists only where both classes occur, a Dice only
where an image has the structure; means are over the labels that have one, and `unmeasured_labels` names the others.

Dice and IoU are means over the images that have the structure. What is predicted in the others shows in
`all_images_dice`, the mean over all images where two empty masks agree (1); beside it stands `all_empty_dice`, what
predicting nothing anywhere scores by it, which is much for a rare finding.
"""

import logging
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

logger = logging.getLogger(__name__)


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
        found = {
            "dice": known_mean(dices),
            "iou": known_mean(ious),
            "all_images_dice": np.where(truths > 0, dices, predictions[..., 1] == 0).mean(axis=0),
            "all_empty_dice": (truths == 0).mean(axis=0),
        }
    metrics = {"accuracy": float((predictions.argmax(axis=1) == truths).mean())} if kind == "single_label" else {}
    for name, values in found.items():
        metrics[name] = float(known_mean(values))
        if len(labels) > 1:
            metrics |= {f"{name}_{label}": float(value) for label, value in zip(labels, values, strict=True)}
    return metrics


def known_mean(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis of what is no NaN; NaN where all is."""
    return np.ma.filled(np.ma.masked_invalid(values).mean(axis=0), np.nan)


def overlaps(pixels: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Dice `2 |A and B| / (|A| + |B|)` and IoU `|A and B| / |A or B|`, `[N, labels]`; NaN where nothing is true.

    Args:
        pixels: `[N, labels, 2]`, numbers of pixels that are predicted and true, and that are predicted.
        true: `[N, labels]`, numbers of pixels that are true.
    """
    hit, total = pixels[..., 0], np.where(true > 0, pixels[..., 1] + true, np.nan)
    return 2 * hit / total, hit / (total - hit)


def dice(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Dice `[...]` of bool masks `[..., H, W]`; NaN where nothing is true."""
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


def unmeasured_labels(metrics: dict[str, float], labels: Sequence[str], images: str) -> list[str]:
    """Labels that `measure` found no AUC or Dice for; a warning names them.

    Args:
        metrics: From `measure`.
        labels: As there.
        images: Which images they were, for the warning.
    """
    metric, reason = ("dice", "show none") if "dice" in metrics else ("auc", "do not have both classes")
    key = "{metric}_{label}" if len(labels) > 1 else "{metric}"
    found = [label for label in labels if np.isnan(metrics.get(key.format(metric=metric, label=label), 0.0))]
    if found:
        name = {"auc": "AUC", "dice": "Dice"}[metric]
        logger.warning("no %s for %s: the %s images %s", name, ", ".join(found), images, reason)
    return found


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
