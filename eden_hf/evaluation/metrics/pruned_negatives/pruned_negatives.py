"""The pruner's precision and recall as a metric: `load_metric("pruned_negatives")`."""

from typing import ClassVar

import datasets
from sklearn.metrics import precision_score, recall_score

from eden_hf.evaluation import metrics


class PrunedNegatives(metrics.AnatomyMetric):
    """Of negatives whose cosine similarity to their anchor is at or above gamma: which share is the same anatomy
    (precision), and which share of the same anatomy is dropped (recall); near 1 is good (the Purposive Pruner,
    arXiv 2309.15358).

    Args:
        predictions: cosine similarities of negatives to their anchors.
        references: 1 where a negative is the same anatomy as its anchor, else 0.
        gamma: the threshold (0.8 in the paper).

    Returns:
        precision (0 where nothing is pruned), recall, pruned_share, base_rate.
    """

    inputs: ClassVar = {"predictions": datasets.Value("float32"), "references": datasets.Value("int8")}

    def _compute(self, predictions: list[float], references: list[int], gamma: float = 0.8) -> dict[str, float]:
        pruned = [similarity >= gamma for similarity in predictions]
        return {
            "precision": float(precision_score(references, pruned, zero_division=0)),
            "recall": float(recall_score(references, pruned, zero_division=0)),
            "pruned_share": sum(pruned) / len(pruned),
            "base_rate": sum(references) / len(references),
        }
