"""Matches between the points of two images (travels to the Hub as remote code, and imports what may travel only).

`match_points` is what `EdenForKeypointMatching` does with the dense embeddings of two images. It keeps the points of
the first image that lead to the second and back to where they came from, near where a smooth map of the whole picture
puts them.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from .modeling_eden_dense import expected_places, match_smoothly, node_places, sample_embeddings

#: Points of the first image that are matched at most: larger maps are matched at every second node, or third ...
_MOST_POINTS = 2500
#: Of similarities, and by how much the smooth map may be off, as a share of the side (30 mm of a chest).
_TEMPERATURE, _SPREAD = 0.03, 0.08
#: Mutual nearest neighbours lead back to within this share of the side (11 mm of a chest).
_ASTRAY = 0.03
#: Logistic regression of "within 5 % of the side" on how far the smooth map lies off, as a share of the side, and how
#: far from 1 the cosine is; and its constant. scripts/fit_keypoint_scores.py prints them.
_DOUBTS, _TRUST = (9.1, 11.6), 2.5


@dataclass
class EdenKeypointMatchingOutput(ModelOutput):
    """Output of `EdenForKeypointMatching`, of the shape that all matchers of transformers have.

    The same index stands for the same structure in both images, so `matches` is either that index or -1.

    Args:
        loss (`torch.FloatTensor`, *optional*): Always `None`: matching is not trained, `EdenForPreTraining` is.
        matches (`torch.LongTensor` of shape `(batch_size, 2, num_keypoints)`): For each keypoint the index of its
            match in the other image, -1 where it has none.
        matching_scores (`torch.FloatTensor` of shape `(batch_size, 2, num_keypoints)`): Between 0 and 1; 0 without
            a match.
        keypoints (`torch.FloatTensor` of shape `(batch_size, 2, num_keypoints, 2)`): x and y as shares of the sides of
            `pixel_values`, (0, 0) the upper left corner: nodes of the first image's map, and where they were found in
            the second, between its nodes.
        original_sizes (`torch.LongTensor` of shape `(batch_size, 2, 2)`, *optional*): Height and width of the images
            as the processor got them, where it told.
    """

    loss: Tensor | None = None
    matches: Tensor | None = None
    matching_scores: Tensor | None = None
    keypoints: Tensor | None = None
    original_sizes: Tensor | None = None


@torch.no_grad()
def match_points(dense: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Where the points of images lie in others.

    Args:
        dense: Unit vectors `[B, D, h, w]` of the images.
        other: The same of the others.

    Returns:
        Places `[B, 2, K, 2]` of K points in both, and scores `[B, K]` between 0 and 1, 0 of points without a match.
    """
    places, astray, doubts = find_points(dense, other)
    scores = torch.sigmoid(_TRUST - doubts @ torch.tensor(_DOUBTS, device=doubts.device))
    return places, torch.where(astray <= _ASTRAY, scores, 0)


@torch.no_grad()
def find_points(dense: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `match_points`, with what speaks against each match in place of its score.

    Returns:
        Places `[B, 2, K, 2]`; how far the way back misses `[B, K]`; and `[B, K, 2]`: how far the smooth map lies off,
        and 1 less the cosine. Distances are shares of the side.
    """
    height, width = dense.shape[-2:]
    step = math.ceil(math.sqrt(height * width / _MOST_POINTS))
    nodes = node_places(height, width, dense.device)
    places = nodes.view(height, width, 2)[::step, ::step].flatten(0, 1).expand(len(dense), -1, -1)
    embeddings = dense.float()[..., ::step, ::step].flatten(2).mT
    guesses = match_smoothly(dense, other, step=step)[0](places)
    found = expected_places(embeddings, other, guesses, temperature=_TEMPERATURE, spread=_SPREAD)
    there = sample_embeddings(other.float(), 2 * found - 1)
    back = nodes[(there @ dense.float().flatten(2)).argmax(dim=2)]
    astray, off = (back - places).norm(dim=2), (found - guesses).norm(dim=2)
    doubts = torch.stack([off, 1 - (embeddings * there).sum(dim=2)], dim=2)
    return torch.stack([places, found], dim=1), astray, doubts


__all__ = ["EdenKeypointMatchingOutput", "find_points", "match_points"]
