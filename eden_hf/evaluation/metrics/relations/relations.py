"""Predicted embeddings against true ones as a metric: `load_metric("relations")`."""

from typing import ClassVar

import numpy as np

from eden_hf.evaluation import metrics
from eden_hf.evaluation.relations import cosines
from eden_hf.evaluation.statistics import own_against_other


class Relations(metrics.AnatomyMetric):
    """Cosine of a predicted embedding (of a missing part, a place between or beyond, the other side, another
    scale) and the true one, against the true one of the next row, which should be another patient's (arXiv
    2309.15358). Good is a high `own` with a high `margin`; a collapsed encoder has a margin of 0 and an AUROC of
    0.5.

    Args:
        predictions: predicted embeddings, a list of floats each.
        references: true embeddings, a list of floats each.

    Returns:
        own, others, margin, auroc.
    """

    inputs: ClassVar = {"predictions": metrics.VECTOR, "references": metrics.VECTOR}

    def _compute(self, predictions: list[list[float]], references: list[list[float]]) -> dict[str, float]:
        if len(references) < 2:
            raise ValueError(f"at least two rows are compared, got {len(references)}")
        predicted, true = (np.array(rows, np.float32) for rows in (predictions, references))
        own, others = cosines(predicted, true), cosines(predicted, np.roll(true, 1, axis=0))
        return {
            "own": float(own.mean()),
            "others": float(others.mean()),
            "margin": float((own - others).mean()),
            "auroc": float(own_against_other(own, others)),
        }
