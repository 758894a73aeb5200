"""Embeddings of the point under every pixel (travels to the Hub as remote code: imports torch only).

After the finest parts come the points. `EdenDenseDecoder` makes a map of unit vectors at a quarter of the image's
side from the maps of a trunk and the pixels themselves; `point_contrast` trains it to find a point of one view in the
other.
`match_smoothly` tells where the points of one image lie in another, by a smooth map through their mutual matches.

Places are shares (x, y) of an image's sides, (0, 0) its upper left and (1, 1) its lower right corner.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def convolution(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """3 x 3 convolution, BatchNorm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU()
    )


class EdenDenseDecoder(nn.Module):
    """Feature pyramid (Lin et al., CVPR 2017) over a trunk's maps, joined by a shallow branch over the pixels.

    The branch keeps the fine detail that a trunk's stem throws away. Output is at stride 4.

    Args:
        stage_channels: Channels of the trunk's maps, fine to coarse.
        hidden_size: Channels of the pyramid.
        dense_dim: Dimension of the embeddings.
        num_channels: Channels of the image.
    """

    def __init__(self, stage_channels: list[int], hidden_size: int, dense_dim: int, num_channels: int = 3) -> None:
        super().__init__()
        half = max(1, hidden_size // 2)
        self.detail = nn.Sequential(
            convolution(num_channels, half, stride=2),
            convolution(half, half),
            convolution(half, hidden_size, stride=2),
        )
        self.lateral = nn.ModuleList(nn.Conv2d(channels, hidden_size, 1) for channels in stage_channels)
        self.smooth = nn.ModuleList(convolution(hidden_size, hidden_size) for _ in stage_channels)
        self.embedding = nn.Sequential(
            convolution(hidden_size, 2 * hidden_size), nn.Conv2d(2 * hidden_size, dense_dim, 1)
        )

    def forward(self, pixel_values: Tensor, feature_maps: tuple[Tensor, ...]) -> Tensor:
        """Unit vectors `[B, dense_dim, ceil(H / 4), ceil(W / 4)]`, float32, of images `[B, C, H, W]` and maps."""
        detail = self.detail(pixel_values)
        features: Tensor | None = None
        for level in reversed(range(len(feature_maps))):
            joined = self.lateral[level](feature_maps[level])
            if features is not None:
                joined = joined + F.interpolate(features, size=joined.shape[-2:], mode="bilinear")
            if level == 0:
                joined = F.interpolate(joined, size=detail.shape[-2:], mode="bilinear") + detail
            features = self.smooth[level](joined)
        return F.normalize(self.embedding(features).float(), dim=1)


class PointTargets(NamedTuple):
    """Points of two views of each of B images, and where they lie in it: what the dense stage learns from.

    Points are x and y from -1 to 1, the outer edges of a view. Of a view with nodes h x w:
    `*_points` `[B, P, 2]` in the view, `*_places` `[B, P, 2]` in the image (NaN for one beyond its edges), and
    `*_nodes` `[B, h * w, 2]`, where in the image the nodes of the view's dense map lie.
    """

    query_points: Tensor
    key_points: Tensor
    query_places: Tensor
    key_places: Tensor
    query_nodes: Tensor
    key_nodes: Tensor


def sample_embeddings(dense_embeddings: Tensor, points: Tensor) -> Tensor:
    """Embeddings between the nodes of a map, by bilinear interpolation.

    Args:
        dense_embeddings: `[B, D, h, w]`.
        points: `[B, P, 2]`, x and y from -1 to 1, the outer edges of the image; points beyond take the edge's.

    Returns:
        Unit rows `[B, P, D]`, float32.
    """
    sampled = F.grid_sample(dense_embeddings, points[:, :, None], padding_mode="border", align_corners=False)
    return F.normalize(sampled[..., 0].mT.float(), dim=2)


def point_contrast(
    embeddings: Tensor,
    places: Tensor,
    candidates: Tensor,
    candidate_places: Tensor,
    temperature: float,
    tolerance: float,
) -> tuple[Tensor, Tensor]:
    """Find points among the nodes of a map: cross-entropy against a Gaussian round the true place.

    Args:
        embeddings: Unit rows `[B, P, D]` of the points looked for.
        places: `[B, P, 2]`, where in the source image they lie, as shares of its sides. NaN marks a point that has no
            counterpart; one that lies beyond all nodes (cut off in the other view) does not count either.
        candidates: Unit vectors `[B, D, h, w]` of the view that is searched.
        candidate_places: `[B, h * w, 2]`, where its nodes lie in the source image.
        temperature: T of the softmax over the nodes.
        tolerance: Standard deviation of the Gaussian, as a share of the side.

    Returns:
        The loss, mean over the points that count (0 where none does), and the mean distance between the most alike
        node and the true place, as a share of the side (no gradient).
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        counted = places.isfinite().all(dim=2)
        places = places.nan_to_num(-1)
        squared = torch.cdist(places, candidate_places).square()  # [B, P, h * w]
        counted &= squared.amin(dim=2) < tolerance**2
        logits = embeddings.float() @ candidates.float().flatten(2) / temperature
        target = torch.softmax(squared / (-2 * tolerance**2), dim=2)
        loss = logits.logsumexp(dim=2) - (target * logits).sum(dim=2)  # cross-entropy, its target of sum 1
        distance = squared.detach().gather(2, logits.detach().argmax(dim=2, keepdim=True))[..., 0].sqrt()
        number = counted.sum().clamp(min=1)
        return torch.where(counted, loss, 0).sum() / number, torch.where(counted, distance, 0).sum() / number


def node_places(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Where the nodes of a map lie in its image, row by row: `[height * width, 2]`."""
    y, x = ((torch.arange(side, device=device) + 0.5) / side for side in (height, width))
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1)


class SmoothMap(NamedTuple):
    """Smooth maps from B images to B others: an affine map and a field of Gaussian bumps on a square grid.

    Attributes: `coefficients` `[B, 3 + grid^2, 2]` of the displacement, `grid` bumps a side.
    """

    coefficients: Tensor
    grid: int

    def __call__(self, places: Tensor) -> Tensor:
        """Where `places` `[B, N, 2]` of the one image lie in the other, `[B, N, 2]`."""
        return places + _smooth_basis(places, self.grid) @ self.coefficients


def _smooth_basis(places: Tensor, grid: int) -> Tensor:
    """`[B, N, 3 + grid^2]`: one, x, y, and the bumps."""
    centres = 0.5 + (node_places(grid, grid, places.device) - 0.5) * 0.85
    squared = torch.cdist(places, centres.expand(len(places), -1, -1)).square()
    bumps = torch.exp(-0.5 * squared * (grid / 0.85) ** 2)
    return torch.cat([torch.ones_like(places[..., :1]), 2 * places - 1, bumps], dim=2)


def fit_smooth_map(
    places: Tensor, targets: Tensor, weights: Tensor, *, grid: int = 5, stiffness: float = 3.0, outlier: float = 0.033
) -> tuple[SmoothMap, Tensor]:
    """The smooth map through uncertain matches, those that disagree with it discounted (Geman-McClure, reweighted).

    Args:
        places: `[B, N, 2]`.
        targets: `[B, N, 2]`, where each seems to lie in the other image.
        weights: `[B, N]`, how far each is believed.
        grid: Bumps a side.
        stiffness: Weight of the ridge penalty on the bumps.
        outlier: Distance from the map, as a share of the side, beyond which a match hardly counts.

    Returns:
        The map, and the weights `[B, N]` with disagreement taken into account.
    """
    basis, displacement = _smooth_basis(places, grid), targets - places
    ridge = torch.full([basis.shape[2]], stiffness, device=places.device)
    ridge[:3] = stiffness * torch.tensor([1e-4, 1e-2, 1e-2])
    trusted = weights
    for _ in range(4):
        weighted = basis.mT * trusted[:, None]
        coefficients = torch.linalg.solve(weighted @ basis + ridge.diag(), weighted @ displacement)
        residual = (basis @ coefficients - displacement).norm(dim=2)
        trusted = weights / (1 + (residual / outlier).square()).square()
    return SmoothMap(coefficients, grid), trusted


@torch.no_grad()
def match_smoothly(dense: Tensor, other: Tensor, *, grid: int = 5, step: int = 1) -> tuple[SmoothMap, Tensor]:
    """The smooth map from each image to another, by the matches of their nodes that lead back to where they came from.

    Args:
        dense: Unit vectors `[B, D, h, w]`.
        other: The same of the other images.
        grid: Bumps a side of the map.
        step: Every how manieth node, along both sides, is matched.

    Returns:
        The map, and how far each matched node is trusted, `[B, N]`, row by row, 0 to about 1 (see `smooth_support`).
    """
    nodes = _every_node(dense, step)
    other_nodes = node_places(other.shape[-2], other.shape[-1], dense.device)
    similarity = dense.float()[..., ::step, ::step].flatten(2).mT @ other.float().flatten(2)
    best, forth = similarity.max(dim=2)  # [B, N]
    back = similarity.argmax(dim=1).gather(1, forth)
    astray = (nodes[back] - nodes).norm(dim=2)
    weights = torch.exp(-(astray / 0.05).square()) * best.clamp(min=0).square()
    places = nodes.expand(len(dense), -1, -1)
    return fit_smooth_map(places, other_nodes[forth], weights, grid=grid, stiffness=3 / step**2)


def smooth_support(dense: Tensor, trusted: Tensor, *, step: int = 1) -> Tensor:
    """How well its surroundings support a smooth map at each node, `[B, 1, h, w]`, 0 to about 1.

    Args:
        dense: Unit vectors `[B, D, h, w]` that were matched.
        trusted: `[B, N]`, how far each matched node is trusted, of `match_smoothly`.
        step: Every how manieth node was matched.
    """
    height, width = dense.shape[-2:]
    every = node_places(height, width, dense.device)
    kernel = torch.exp(-0.5 * (torch.cdist(every, _every_node(dense, step)) / 0.056).square())
    support = trusted @ (kernel / kernel.sum(dim=1, keepdim=True)).mT
    return support.view(-1, 1, height, width)


def _every_node(dense: Tensor, step: int) -> Tensor:
    """Places `[N, 2]` of every `step`-th node, along both sides, of a map `[B, D, h, w]`."""
    height, width = dense.shape[-2:]
    nodes = node_places(height, width, dense.device).view(height, width, 2)
    return nodes[::step, ::step].flatten(0, 1)


def expected_places(
    embeddings: Tensor, dense: Tensor, guesses: Tensor, *, temperature: float, spread: float
) -> Tensor:
    """Where points lie in an image: the mean over its nodes, weighted by similarity and nearness to a guess.

    Args:
        embeddings: Unit rows `[B, P, D]` of the points.
        dense: Unit vectors `[B, D, h, w]` of the images that are searched.
        guesses: Places `[B, P, 2]`.
        temperature: Of the similarities.
        spread: Standard deviation of the guesses' errors, as a share of the side.

    Returns:
        Places `[B, P, 2]`.
    """
    nodes = node_places(dense.shape[-2], dense.shape[-1], dense.device)
    squared = torch.cdist(guesses, nodes.expand(len(guesses), -1, -1)).square()
    similarity = embeddings.float() @ dense.float().flatten(2)
    return torch.softmax(similarity / temperature - squared / (2 * spread**2), dim=2) @ nodes


__all__ = [
    "EdenDenseDecoder",
    "PointTargets",
    "SmoothMap",
    "convolution",
    "expected_places",
    "fit_smooth_map",
    "match_smoothly",
    "node_places",
    "point_contrast",
    "sample_embeddings",
    "smooth_support",
]
