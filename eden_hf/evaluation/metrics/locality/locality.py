"""Locality as a metric of `evaluate`: `load_metric("locality")`."""

from collections import Counter
from typing import ClassVar

import datasets
import numpy as np
import torch

from eden_hf.evaluation import metrics
from eden_hf.evaluation.locality import locality_scores


class Locality(metrics.AnatomyMetric):
    """Whether embeddings of patches tell anatomical landmarks apart across patients (arXiv 2309.15358):
    retrieval@1, k-NN, prototype and left-right accuracy, same-versus-other AUROC, silhouette. Near 1 is good;
    formulas and chance levels are those of `eden_hf.evaluation.locality.locality_scores`, which computes them.

    Args:
        predictions: embeddings, one list of floats a patch (of any length; scaled to unit length here).
        references: dicts with the patch's `patient` (string) and `landmark` (string). Every patient needs
            every landmark, once.

    Returns:
        dict of means over patients.
    """

    inputs: ClassVar = {
        "predictions": metrics.VECTOR,
        "references": {"patient": datasets.Value("string"), "landmark": datasets.Value("string")},
    }

    def _compute(self, predictions: list[list[float]], references: list[dict[str, str]]) -> dict[str, float]:
        patients = list(dict.fromkeys(row["patient"] for row in references))
        landmarks = list(dict.fromkeys(row["landmark"] for row in references))
        given = [(row["patient"], row["landmark"]) for row in references]
        if repeated := [pair for pair, count in Counter(given).items() if count > 1]:
            raise ValueError(
                f"{len(repeated)} landmarks of a patient are given more than once, such as {repeated[0]}: keep one "
                "image of each patient, or call `locality_scores`, which takes several"
            )
        vectors = dict(zip(given, predictions, strict=True))
        wanted = [(patient, landmark) for patient in patients for landmark in landmarks]
        if missing := [pair for pair in wanted if pair not in vectors]:
            raise ValueError(f"every patient needs every landmark: {len(missing)} are missing, such as {missing[0]}")
        rows = torch.tensor(np.array([vectors[pair] for pair in wanted], np.float32)).unflatten(0, (len(patients), -1))
        rows = torch.nn.functional.normalize(rows, dim=2)
        return {name: float(np.mean(scores)) for name, scores in locality_scores(rows, landmarks).items()}
