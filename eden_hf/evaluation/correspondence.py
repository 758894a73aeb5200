"""Dense embeddings ("Eve") and the anatomical correspondence of two images (arXiv 2309.15358).

The embedding of a pixel is that of the window around it. Structures that look alike in anatomy should lie close in
embedding, so the same structure in another image is where the nearest embedding is.

Points are `(x, y)` pixel indices, float: (0, 0) is the centre of the top left pixel. From SCR's landmarks in [0, 1]
they are `x * width - 0.5`.
"""

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from eden_hf.evaluation.embeddings import embed, nearest_neighbours
from eden_hf.evaluation.encoders import Encoder


class DenseEmbeddings(NamedTuple):
    """Embeddings on a grid over an image: `vectors` `[h, w, C]`, unit, and the grid's `points` `[h, w, 2]`."""

    vectors: Tensor
    points: Tensor

    def find(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """The grid points most alike to `embeddings` `[P, C]`: points `[P, 2]` and their cosine similarity `[P]`."""
        similarities, indices = nearest_neighbours(embeddings, self.vectors.flatten(0, 1), k=1)
        return self.points.flatten(0, 1)[indices[:, 0]], similarities[:, 0]


def point_embeddings(
    encoder: Encoder,
    image: Image.Image,
    points: Tensor,
    *,
    window: int,
    batch_size: int = 64,
) -> Tensor:
    """Unit vectors of the windows around points of an image.

    Args:
        encoder: As in `embed`.
        image: Mode L or RGB. Where a window reaches over the edge, the edge's pixels go on.
        points: `[P, 2]` pixel indices x, y; a window's place is rounded to whole pixels.
        window: Side of the windows in pixels of the image.
        batch_size: Windows in one forward pass.

    Returns:
        `[P, C]` float32 on the CPU.

    Raises:
        ValueError: `window` is below 1, or a point lies outside the image.
    """
    if window < 1:
        raise ValueError(f"window must be at least 1 pixel, got {window}")
    last_pixel = torch.tensor(image.size) - 0.5
    outside = ((points < -0.5) | (points > last_pixel)).any(dim=1)
    if outside.any():
        raise ValueError(f"point {points[outside][0].tolist()} lies outside the image of size {image.size}")
    pixels = np.asarray(image)
    margin = [(window, window)] * 2 + [(0, 0)] * (pixels.ndim - 2)
    padded = np.pad(pixels, margin, mode="edge")
    corners = torch.floor(points + 0.5 - window / 2 + 0.5).long() + window
    windows = (Image.fromarray(padded[y : y + window, x : x + window]) for x, y in corners.tolist())
    return embed(encoder, windows, batch_size)


def dense_embeddings(
    encoder: Encoder,
    image: Image.Image,
    *,
    window: int,
    stride: int,
    batch_size: int = 64,
) -> DenseEmbeddings:
    """Embeddings of overlapping windows all over an image, `stride` pixels apart.

    The grid has `height // stride` rows and `width // stride` columns and stands in the middle of the image. The
    other arguments are those of `point_embeddings`.

    Raises:
        ValueError: `stride` is below 1 or more than a side of the image, or `window` is below 1.
    """
    if not 1 <= stride <= min(image.size):
        raise ValueError(f"stride must be between 1 and {min(image.size)}, the image's smaller side, got {stride}")
    xs, ys = (_centres(side, stride) for side in image.size)
    points = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), dim=-1)  # [h, w, 2]
    vectors = point_embeddings(encoder, image, points.flatten(0, 1), window=window, batch_size=batch_size)
    return DenseEmbeddings(vectors.unflatten(0, points.shape[:2]), points)


def _centres(side: int, stride: int) -> Tensor:
    """Pixel indices `stride` apart along one side, the same margin left at both ends."""
    count = side // stride
    return torch.arange(count) * stride + (side - 1 - (count - 1) * stride) / 2


def correspond(
    encoder: Encoder,
    image: Image.Image,
    points: Tensor,
    target: Image.Image,
    *,
    window: int,
    stride: int,
    batch_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """Where the structures at `points` of `image` lie in `target`: the nearest dense embedding by cosine.

    To match one target with many images, keep its `dense_embeddings` and call `find` with their `point_embeddings`.

    Args:
        encoder: As in `embed`.
        image: The image that the points are in.
        points: `[P, 2]` pixel indices x, y in `image`.
        target: The image to search.
        window: Side of the windows in pixels, in both images.
        stride: Steps of the search in pixels of `target`: no match is exact beyond half of it.
        batch_size: Windows in one forward pass.

    Returns:
        Points `[P, 2]` in `target` and cosine similarities `[P]`.
    """
    queries = point_embeddings(encoder, image, points, window=window, batch_size=batch_size)
    dense = dense_embeddings(encoder, target, window=window, stride=stride, batch_size=batch_size)
    return dense.find(queries)
