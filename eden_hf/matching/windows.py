"""Embeddings of windows as embeddings of points, and the paper's correspondence (arXiv 2309.15358).

The embedding of a pixel is that of the window around it. Structures that look alike in anatomy should lie close in
embedding, so the same structure in another image is where the nearest embedding is. Any encoder can do it; one with a
dense decoder has embeddings of points (`eden_hf.matching.dense_maps`), which are finer and cheaper.

Points are `(x, y)` pixel indices, float: (0, 0) is the centre of the top left pixel. From SCR's landmarks in [0, 1]
they are `x * width - 0.5`.
"""

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel

from eden_hf.encoders import Encoder, embed, nearest_neighbours, pooled


class DenseEmbeddings(NamedTuple):
    """Embeddings on a grid over an image: `vectors` `[h, w, C]`, unit, and the grid's `points` `[h, w, 2]`."""

    vectors: Tensor
    points: Tensor

    def find(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """The grid points most alike to `embeddings` `[P, C]`: points `[P, 2]` and their cosine similarity `[P]`."""
        similarities, indices = nearest_neighbours(embeddings, self.vectors.flatten(0, 1), k=1)
        return self.points.flatten(0, 1)[indices[:, 0]], similarities[:, 0]

    def at(self, points: Tensor) -> Tensor:
        """Embeddings `[P, C]` of the grid points nearest to `points` `[P, 2]`."""
        return self.vectors.flatten(0, 1)[torch.cdist(points, self.points.flatten(0, 1)).argmin(dim=1)]


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


def dilated_embeddings(
    encoder: Encoder, images: Iterable[Image.Image], *, window: int, stride: int
) -> Iterator[DenseEmbeddings]:
    """The fast form of `dense_embeddings` for convolutional trunks: one pass over each image instead of many windows.

    The trunk's last strides become dilations, so that its map has a column every `stride` pixels, and the columns that
    a window would have had are averaged. Convolution for convolution that is what the windows give, but for two
    things: a window has zeros beyond its edges where here the image goes on, and where intensities are standardised
    per image, that is done once for the image and not for each window. With small windows, which are all edge, that
    is another embedding: compare dilated embeddings with one another, not with those of windows.

    Args:
        encoder: As in `embed`; a convolutional trunk whose embedding is the mean of its last map.
        images: Images, one after the other; mode L or RGB.
        window: Side of the windows in pixels, brought to the size S of the processor.
        stride: Steps in pixels: `window / S` times 1, 2, 4 ... up to the trunk's whole stride.

    Yields:
        For each image what `dense_embeddings` would give: the same grid.

    Raises:
        ValueError: the trunk is none of this kind, or `stride` is no such step.
    """
    size = encoder.pixel_values([Image.new("L", (window, window))]).shape[-1]
    step, rest = divmod(stride * size, window)
    with torch.inference_mode():
        model, taps = _dilated(encoder, size, step if not rest else 0)
        for image in images:
            xs, ys = (_centres(side, stride) for side in image.size)
            corner = [int(torch.floor(centres[0] + 1 - window / 2)) for centres in (xs, ys)]
            extent = [(len(centres) - 1) * stride + window for centres in (xs, ys)]
            scaled = [side * size // window for side in extent]
            covered = _cut_out(image, corner, extent).resize(scaled, Image.Resampling.BILINEAR)
            last_map = model(pixel_values=_unsized_pixel_values(encoder, covered)).last_hidden_state
            average = last_map.unfold(2, taps.span, 1).unfold(3, taps.span, 1)[..., :: taps.step, :: taps.step]
            vectors = F.normalize(average.float().mean(dim=(4, 5))[0], dim=0).cpu()[:, : len(ys), : len(xs)]
            points = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), dim=-1)
            yield DenseEmbeddings(vectors.permute(1, 2, 0).clone(), points)


class _Taps(NamedTuple):
    """Columns of a dense map that one window averages: every `step`-th of `span`."""

    step: int
    span: int


def _dilated(encoder: Encoder, size: int, step: int) -> tuple[PreTrainedModel, _Taps]:
    """A copy of the trunk with a column of its map every `step` pixels, and what a window of `size` takes of it."""
    model = copy.deepcopy(encoder.model)
    probe = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(model.device, model.dtype)
    outputs = model(pixel_values=probe)
    kind = getattr(model.config, "backbone_config", model.config).model_type
    strided = outputs.last_hidden_state
    attends = any("Attention" in type(module).__name__ for module in model.modules())
    if (
        attends
        or strided.ndim != 4
        or not torch.allclose(pooled(outputs, probe, model.config), strided.mean(dim=(2, 3)), atol=1e-4)
    ):
        raise ValueError(f"dilation needs a convolutional trunk whose embedding is the mean of its map, not {kind!r}")
    stride, dilation = 1, 1
    layers: list[Any] = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.MaxPool2d)]
    for layer in layers:
        kernel, own = (_one(value) for value in (layer.kernel_size, layer.stride))
        layer.dilation, layer.padding = dilation, dilation * _one(layer.padding)
        if own > 1 and stride >= step:
            layer.stride = 1
            dilation *= own if kernel > 1 else 1  # a shortcut's 1 x 1 goes beside the convolution that strides
        elif kernel > 1:
            stride *= own
    taps = _Taps(dilation, (strided.shape[-1] - 1) * dilation + 1)
    dense = model(pixel_values=probe).last_hidden_state
    same = dense[..., ::dilation, ::dilation]
    if stride != step:
        steps = [2**power for power in range(int(math.log2(stride * dilation)) + 1)]
        raise ValueError(f"stride must be window / {size} times one of {steps} for this {kind} and windows of {size}")
    if same.shape != strided.shape or not torch.allclose(same, strided, atol=1e-3):
        raise ValueError(f"the strides of {kind!r} cannot be turned into dilations; use dense_embeddings")
    return model, taps


def _cut_out(image: Image.Image, corner: Sequence[int], extent: Sequence[int]) -> Image.Image:
    """`extent` (width, height) of an image from `corner` (x, y) on; beyond the edge, the edge's pixels go on."""
    pixels = np.asarray(image)
    for axis, (start, length) in enumerate(zip(corner[::-1], extent[::-1], strict=True)):
        pixels = np.take(pixels, np.arange(start, start + length).clip(0, pixels.shape[axis] - 1), axis=axis)
    return Image.fromarray(pixels)


def _unsized_pixel_values(encoder: Encoder, image: Image.Image) -> Tensor:
    """`[1, 3, H, W]` of an image at its own size."""
    arguments = {"do_resize": False, "do_center_crop": False, "return_tensors": "pt"}
    pixel_values = encoder.processor(images=[image.convert("RGB")], **arguments)["pixel_values"]
    return pixel_values.to(encoder.model.device, encoder.model.dtype)


def _one(value: int | tuple[int, ...]) -> int:
    """The same number for both axes."""
    return value if isinstance(value, int) else value[0]


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
