"""Dense embeddings ("Eve") and the anatomical correspondence of two images (arXiv 2309.15358).

The embedding of a pixel is that of the window around it. Structures that look alike in anatomy should lie close in
embedding, so the same structure in another image is where the nearest embedding is.

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

from eden_hf.data.landmarks import LandmarkedImage, landmark_pixels, shared_landmarks
from eden_hf.evaluation.embeddings import embed, nearest_neighbours, pooled
from eden_hf.evaluation.encoders import Encoder
from eden_hf.evaluation.plots import plot_correspondence
from eden_hf.evaluation.results import Evaluation, estimate, other_patients


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
    if attends or strided.ndim != 4 or not torch.allclose(pooled(outputs), strided.mean(dim=(2, 3)), atol=1e-4):
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


#: Millimetres along a side of an SCR image: 2048 pixels of 0.175 mm.
SCR_SIDE_MM = 358.4
#: Distances in mm within which a found landmark counts.
WITHIN_MM = (5, 10, 20)


def correspondence(
    encoder: Encoder,
    images: Sequence[LandmarkedImage],
    *,
    window: float = 0.25,
    steps: int = 32,
    side_mm: float = SCR_SIDE_MM,
    dilated: bool = False,
    seed: int = 0,
    batch_size: int = 64,
) -> Evaluation:
    """Landmarks of one patient found in the next by the nearest dense embedding.

    For landmark l of patient p with its patch's embedding e, the found point is that of the window in patient q whose
    embedding has the highest cosine with e; the error is its distance from q's own landmark l. Every patient is
    searched once, for the landmarks of another.

    - `mean_radial_error_mm` (lower is better), and of each landmark;
    - `within_5_mm`, `within_10_mm`, `within_20_mm`: shares of landmarks (higher is better);
    - `same_place_mm`: the error of taking p's coordinates over to q as they are. Radiographs are aligned when they
      are taken, so this is hard to beat: an embedding that does not, knows less than the collimator.

    No match is exact beyond half of a step (5.6 mm at 32 steps a side).

    Args:
        encoder: As in `embed`.
        images: At least two patients.
        window: Side of the windows, as a share of the image's smaller side.
        steps: Windows along the image's smaller side.
        side_mm: Millimetres along an image's width.
        dilated: Use `dilated_embeddings` throughout; only for convolutional trunks.
        seed: Of who is searched for whose landmarks, and of the bootstrap.
        batch_size: Windows in one forward pass.
    """
    names = shared_landmarks(images)
    other = other_patients(len(images), np.random.default_rng(seed))
    queries, dense = _query_and_dense(encoder, images, names, window, steps, dilated, batch_size)
    found = [grid.find(queries[index])[0] for grid, index in zip(dense, other, strict=True)]
    errors, baseline = [], []
    for target, query, points in zip(images, (images[index] for index in other), found, strict=True):
        mm = side_mm / target.image.width
        true = landmark_pixels(target, names)
        errors.append((points - true).norm(dim=1) * mm)
        scale = torch.tensor(target.image.size) / torch.tensor(query.image.size)
        baseline.append(((landmark_pixels(query, names) + 0.5) * scale - 0.5 - true).norm(dim=1) * mm)
    per_patient = torch.stack(errors).numpy()
    values = {name: estimate(scores, seed) for name, scores in landmark_scores(per_patient).items()}
    values["same_place_mm"] = estimate(torch.stack(baseline).numpy(), seed)
    values |= {f"{name}_mm": estimate(per_patient[:, index], seed) for index, name in enumerate(names)}
    first = images[other[0]]
    figure = plot_correspondence(
        first.image, images[0].image, landmark_pixels(first, names), found[0], landmark_pixels(images[0], names)
    )
    settings = {"window": window, "steps": steps, "side_mm": side_mm, "dilated": dilated, "landmarks": names}
    return Evaluation("correspondence", values, settings, figure)


def landmark_scores(errors_mm: np.ndarray) -> dict[str, np.ndarray]:
    """Radial errors `[...]` in mm as `mean_radial_error_mm` (themselves) and 0 or 1 for being within each distance."""
    within = {f"within_{limit}_mm": (errors_mm <= limit).astype(float) for limit in WITHIN_MM}
    return {"mean_radial_error_mm": errors_mm, **within}


def _query_and_dense(
    encoder: Encoder,
    images: Sequence[LandmarkedImage],
    names: Sequence[str],
    window: float,
    steps: int,
    dilated: bool,
    batch_size: int,
) -> tuple[list[Tensor], list[DenseEmbeddings]]:
    """For each image the embeddings `[L, C]` of its landmarks, and its dense embeddings."""
    queries, dense = [], []
    for item in images:
        smaller = min(item.image.size)
        side, stride = round(window * smaller), max(1, smaller // steps)
        points = landmark_pixels(item, names)
        if dilated:
            dense.append(next(dilated_embeddings(encoder, [item.image], window=side, stride=stride)))
            queries.append(dense[-1].at(points))
        else:
            dense.append(dense_embeddings(encoder, item.image, window=side, stride=stride, batch_size=batch_size))
            queries.append(point_embeddings(encoder, item.image, points, window=side, batch_size=batch_size))
    return queries, dense
