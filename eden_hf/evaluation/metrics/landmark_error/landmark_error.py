"""Landmark error as a metric of `evaluate`: `evaluate.load("eden_hf/evaluation/metrics/landmark_error")`."""

import datasets
import evaluate
import numpy as np

from eden_hf.evaluation.correspondence import landmark_scores

_DESCRIPTION = """
Distance of found points from true ones in millimetres: mean radial error (lower is better) and the shares within 5,
10 and 20 mm (higher is better), as for the correspondence of landmarks (arXiv 2309.15358).
"""
_INPUTS = """
Args:
    predictions: found points [x, y], in millimetres.
    references: true points [x, y], in millimetres.
Returns:
    mean_radial_error_mm, within_5_mm, within_10_mm, within_20_mm.
"""


class LandmarkError(evaluate.Metric):
    """See the module."""

    def _info(self) -> evaluate.MetricInfo:
        point = datasets.Sequence(datasets.Value("float32"), length=2)
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": point, "references": point}),
        )

    def _compute(self, predictions: list[list[float]], references: list[list[float]]) -> dict[str, float]:
        errors = np.linalg.norm(np.array(predictions) - np.array(references), axis=1)
        return {name: float(np.mean(values)) for name, values in landmark_scores(errors).items()}
