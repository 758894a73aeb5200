"""Compositionality as a metric of `evaluate`: `load_metric("compositionality")`."""

from typing import ClassVar

import datasets
import torch

from eden_hf.evaluation import metrics
from eden_hf.evaluation.compositionality import composition_cosines


class Compositionality(metrics.AnatomyMetric):
    """Cosine of E(whole) to the mean of E(parts) (arXiv 2309.15358), against the parts of the next whole in the
    list, which should be another patient's. Good is a high `own` with a high `margin`; a collapsed encoder has a
    margin of 0.

    Args:
        predictions: the embeddings of each whole's parts: a list of lists of floats.
        references: the embedding of each whole: a list of floats.

    Returns:
        own, own_std, others, others_std, margin.
    """

    inputs: ClassVar = {"predictions": datasets.Sequence(metrics.VECTOR), "references": metrics.VECTOR}

    def _compute(self, predictions: list[list[list[float]]], references: list[list[float]]) -> dict[str, float]:
        if len(references) < 2:
            raise ValueError(f"at least two wholes are compared, got {len(references)}")
        whole = torch.tensor(references)
        parts = [torch.nn.functional.normalize(torch.tensor(rows), dim=1).mean(dim=0) for rows in predictions]
        own = composition_cosines(whole, torch.stack(parts))
        others = composition_cosines(whole, torch.stack(parts).roll(1, dims=0))
        return {
            "own": own.mean().item(),
            "own_std": own.std(correction=0).item(),
            "others": others.mean().item(),
            "others_std": others.std(correction=0).item(),
            "margin": (own - others).mean().item(),
        }
