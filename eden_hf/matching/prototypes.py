"""Prototypes: what several sightings of a point have in common, and a metric that discounts what differs in them."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from eden_hf.matching.dense_maps import DenseMap

#: Share of the mean variance that is added to each dimension's, since sightings are few.
SHRINKAGE = 0.1


class Prototypes(NamedTuple):
    """Mean embeddings of P points, compared after a linear map.

    Attributes: `embeddings` `[P, D]`, unit after the map; `metric` `[D, D]`, applied to rows from the right.
    """

    embeddings: Tensor
    metric: Tensor

    def similarities(self, dense: DenseMap, side: int) -> Tensor:
        """Cosine `[P, side, side]` with the nodes of a map, after the metric."""
        rows = dense.vectors.flatten(1).mT @ self.metric
        vectors = F.normalize(rows, dim=1).mT.view_as(dense.vectors)
        return DenseMap(vectors, dense.size).similarities(self.embeddings, side)


def make_prototypes(sightings: Tensor) -> Prototypes:
    """Prototypes of points that were seen in several images.

    The metric is the inverse root of the covariance of sightings of one point about their mean, over all points
    (Fisher's discriminant): directions in which patients differ count for less. With one sighting of each point
    nothing is known of that, and plain cosines remain.

    Args:
        sightings: Unit vectors `[S, P, D]`, NaN where an image does not show a point; every point is seen once.
    """
    seen = sightings.isfinite().all(dim=2)  # [S, P]
    means = F.normalize(sightings.nanmean(dim=0), dim=1)
    residuals = (sightings - means)[seen & (seen.sum(dim=0) > 1)]
    dim = sightings.shape[2]
    if not len(residuals):
        return Prototypes(means, torch.eye(dim))
    covariance = residuals.mT @ residuals / len(residuals)
    covariance += SHRINKAGE * covariance.diagonal().mean() * torch.eye(dim)
    metric = torch.linalg.cholesky(torch.linalg.inv(covariance))
    return Prototypes(F.normalize(means @ metric, dim=1), metric)
