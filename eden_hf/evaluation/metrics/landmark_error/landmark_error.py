"""Landmark error as a metric of `evaluate`: `load_metric("landmark_error")`."""

from typing import ClassVar

import datasets
import numpy as np

from eden_hf.evaluation import metrics
from eden_hf.evaluation.correspondence import landmark_scores


class LandmarkError(metrics.AnatomyMetric):
    """Distance of found points from true ones in millimetres: mean radial error (lower is better) and the shares
    within 5, 10 and 20 mm (higher is better), as for the correspondence of landmarks (arXiv 2309.15358).

    Args:
        predictions: found points [x, y], in millimetres.
        references: true points [x, y], in millimetres.

    Returns:
        mean_radial_error_mm, within_5_mm, within_10_mm, within_20_mm.
    """

    inputs: ClassVar = dict.fromkeys(
        ("predictions", "references"), datasets.Sequence(datasets.Value("float32"), length=2)
    )

    def _compute(self, predictions: list[list[float]], references: list[list[float]]) -> dict[str, float]:
        errors = np.linalg.norm(np.array(predictions) - np.array(references), axis=1)
        return {name: float(np.mean(values)) for name, values in landmark_scores(errors).items()}
