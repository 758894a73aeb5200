"""Matches between the points of two images (travels to the Hub as remote code, and imports what may travel only).

`match_points` is what `EdenForKeypointMatching` does with the dense embeddings of two images. It keeps the points of
the first image that lead to the second and back to where they came from, near where a smooth map of the whole picture
puts them.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput, can_return_tuple

from .configuration_eden import EdenConfig
from .modeling_eden_base import HEAD_KEYS, PRETRAINING_KEYS, EdenModel, EdenPreTrainedModel
from .modeling_eden_dense import expected_places, match_smoothly, node_places, sample_embeddings
from .modeling_eden_trunk import with_decoder_stages

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
        hidden_states, attentions (`tuple(torch.FloatTensor)`, *optional*): Of the trunk for all images, if asked for.
    """

    loss: Tensor | None = None
    matches: Tensor | None = None
    matching_scores: Tensor | None = None
    keypoints: Tensor | None = None
    original_sizes: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


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


class EdenForKeypointMatching(EdenPreTrainedModel):
    """Points of one image found in another, by the embeddings of points; for `pipeline("keypoint-matching")`.

    It has no weights beyond `EdenModel`'s: any saved folder with a dense decoder loads.

    Raises:
        ValueError: the model has no dense decoder.
    """

    _keys_to_ignore_on_load_unexpected = PRETRAINING_KEYS + HEAD_KEYS

    def __init__(self, config: EdenConfig) -> None:
        if config.dense_dim is None:
            raise ValueError(
                "matching needs embeddings of points, and this configuration has no `dense_dim`: load a model whose "
                "training had a dense stage"
            )
        config = with_decoder_stages(config, "matching")
        super().__init__(config)
        self.eden = EdenModel(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor, original_sizes: Tensor | None = None, **kwargs: Any
    ) -> EdenKeypointMatchingOutput:
        r"""Matches of pairs of images; `EdenImageProcessor.post_process_keypoint_matching` gives them in pixels.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 2, num_channels, height, width)`):
                Pairs of images from `EdenImageProcessor`; or `(2 * batch_size, num_channels, height, width)`, each
                pair one after the other, as it gives them.
            original_sizes (`torch.LongTensor` of shape `(2 * batch_size, 2)`, *optional*):
                Height and width of the images before the processor, which hands them on to post-processing.
            output_hidden_states, output_attentions (`bool`, *optional*): Return those of the trunk as well.
            return_dict (`bool`, *optional*): `False` gives a plain tuple.

        Returns:
            `matches`, `matching_scores`, `keypoints`, `original_sizes` where given, and `hidden_states`, `attentions`
            if asked for.

        Raises:
            ValueError: `pixel_values` are no pairs of images.
        """
        if pixel_values.ndim == 5 and pixel_values.shape[1] == 2:
            pixel_values = pixel_values.flatten(0, 1)
        if pixel_values.ndim != 4 or len(pixel_values) % 2:
            raise ValueError(
                "`pixel_values` must be pairs of images, (batch_size, 2, num_channels, height, width) or "
                f"(2 * batch_size, num_channels, height, width), got {tuple(pixel_values.shape)}"
            )
        outputs = self.eden(pixel_values, return_dict=True, **self.asked_of_trunk(kwargs))
        dense = outputs.dense_embeddings
        with torch.autocast(dense.device.type, enabled=False):
            keypoints, scores = match_points(dense[::2], dense[1::2])
        matches = torch.where(scores > 0, torch.arange(scores.shape[1], device=scores.device), -1)
        return EdenKeypointMatchingOutput(
            matches=torch.stack([matches, matches], dim=1),
            matching_scores=torch.stack([scores, scores], dim=1),
            keypoints=keypoints,
            original_sizes=None if original_sizes is None else original_sizes.view(-1, 2, 2),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


__all__ = ["EdenForKeypointMatching", "EdenKeypointMatchingOutput", "find_points", "match_points"]
