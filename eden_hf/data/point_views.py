"""Two deformed views of one whole image, and where each point of them lies in it: what the dense stage learns from.

Each view is the image under a random affine map and a smooth elastic field, with its grey values changed as scanners,
exposures, collimators, markers and wrong photometric interpretations change them, then standardised by itself. What is
drawn for an image depends on (seed, epoch, index of the image) only, as in `eden_hf.data.views`.
"""

import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from eden_hf.data.view_arguments import STRIDE, PointArguments
from eden_hf.data.views import standardise, uniforms
from eden_hf.modeling_eden_dense import PointTargets

_GAIN_NODES = 4
_RECTANGLES = 3  # one large, two small
_COUNTS = {"affine": 6, "intensity": 12, "rectangles": 5 * _RECTANGLES, "border": 10, "gain": _GAIN_NODES**2}


def make_point_views(
    images: Tensor, indices: Tensor, arguments: PointArguments, *, seed: int, epoch: int
) -> tuple[Tensor, Tensor, PointTargets]:
    """Draw and make two views of each image.

    Args:
        images: `[B, C, H, W]` uint8, C = 1 or 3, on any device.
        indices: `[B]` int64 on the CPU, the images' numbers in their data set.
        arguments: The recipe.
        seed: Seed of the run.
        epoch: Epoch of the run.

    Returns:
        Query and key views `[B, 3, size, size]`, float32, each standardised by itself, on the images' device, and
        their points.
    """
    intensities = images.float() / 255
    if images.shape[-1] > 1.3 * arguments.size:
        intensities = _resized(intensities, arguments.size)
    made = [_make_view(intensities, _Draws(indices, arguments, seed, epoch, view), arguments) for view in range(2)]
    (query, key), *targets = zip(*made, strict=True)
    return query, key, PointTargets(*(tensor for pair in targets for tensor in pair))


def plain_views(images: Tensor, size: int) -> Tensor:
    """Images `[B, C, H, W]` uint8 as they are, at `size`, standardised: `[B, 3, size, size]` float32."""
    return standardise(_resized(images.float() / 255, size)).expand(-1, 3, -1, -1)


def _resized(images: Tensor, size: int) -> Tensor:
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)


def make_annotated_copies(
    image: Tensor, masks: Tensor, count: int, arguments: PointArguments, *, seed: int
) -> tuple[Tensor, Tensor]:
    """Deformed copies of an image, changed in intensity, with its masks: many examples of one.

    Args:
        image: `[C, H, W]` uint8, C = 1 or 3.
        masks: `[L, H, W]` float, 1 inside and 0 outside.
        count: How many.
        arguments: The recipe; `size` is the side of the copies, whatever the image's aspect.
        seed: Of the draws; copy i depends on the seed and i only.

    Returns:
        Copies `[count, C, size, size]` uint8 and masks `[count, L, size, size]` float; beyond the image's edges the
        edges' pixels go on.
    """
    draws = _Draws(torch.arange(count), arguments, seed, epoch=0, view=0)
    size = arguments.size
    grid = _deformation(draws, arguments).to(image.device).permute(0, 2, 3, 1)
    small = _resized(image[None].float() / 255, size)
    layers = torch.cat([small[0], F.interpolate(masks[None], size=(size, size), mode="area")[0]])
    warped = F.grid_sample(layers.expand(count, -1, -1, -1), grid, padding_mode="border", align_corners=False)
    copies, warped_masks = warped.split([len(image), len(masks)], dim=1)
    copies = _change_intensities(copies, draws, arguments)
    copies = copies / copies.amax(dim=(1, 2, 3), keepdim=True).clamp(min=1)
    return (255 * copies.clamp(0, 1)).round().byte(), warped_masks


class _Draws:
    """Random numbers of one view of each image, on the CPU: uniform ones by name, and noise of any shape."""

    def __init__(self, indices: Tensor, arguments: PointArguments, seed: int, epoch: int, view: int) -> None:
        counts = {**_COUNTS, "elastic": 2 * arguments.elastic_nodes**2, "points": 2 * arguments.count, "noise": 1}
        both = uniforms(indices.numpy(), seed, epoch, 2 * sum(counts.values()))
        mine = torch.from_numpy(np.split(both, 2, axis=1)[view].astype(np.float32))
        self._uniform = dict(zip(counts, mine.split(list(counts.values()), dim=1), strict=True))

    def __getitem__(self, name: str) -> Tensor:
        """Uniform numbers `[B, count]` in [0, 1)."""
        return self._uniform[name]

    def normal(self, name: str) -> Tensor:
        """The numbers of `name` as standard normal ones."""
        return torch.special.ndtri(self[name].double().clamp(1e-6, 1 - 1e-6)).float()

    def noise(self, size: int) -> Tensor:
        """Standard normal noise `[B, 1, size, size]`, each image's by a generator of its own."""
        seeds = (self["noise"][:, 0].double() * 2**53).long().tolist()
        fields = [torch.randn(1, size, size, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(fields)


def _make_view(images: Tensor, draws: _Draws, arguments: PointArguments) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One view of each image with intensities in [0, 1]: view, points, places of the points, places of the nodes."""
    planes = _deformation(draws, arguments).to(images.device)  # [B, 2, size, size], -1 to 1 of the image
    view = F.grid_sample(images, planes.permute(0, 2, 3, 1), align_corners=False)
    view = standardise(_change_intensities(view, draws, arguments)).expand(-1, 3, -1, -1)
    points = (2 * draws["points"].unflatten(1, (-1, 2)) - 1).to(images.device)
    places = (F.grid_sample(planes, points[:, :, None], align_corners=False)[..., 0].mT + 1) / 2
    places = torch.where(((places > 0) & (places < 1)).all(dim=2, keepdim=True), places, torch.nan)
    nodes = F.avg_pool2d(planes, STRIDE).flatten(2).mT
    return view, points, places, (nodes + 1) / 2


def _deformation(draws: _Draws, arguments: PointArguments) -> Tensor:
    """Where each pixel of a view lies in the image, x and y `[B, 2, size, size]` from -1 to 1: an affine map, bent."""
    size, nodes = arguments.size, arguments.elastic_nodes
    uniform = draws["affine"]
    spread = 2 * uniform - 1
    low, high = (math.log(limit) for limit in arguments.scale)
    scale, ratio = torch.exp(low + uniform[:, 0] * (high - low)), torch.exp(spread[:, 1] * arguments.aspect)
    angle = spread[:, 2] * math.radians(arguments.rotation_degrees)
    turn = torch.stack([torch.cos(angle), -torch.sin(angle), torch.sin(angle), torch.cos(angle)], dim=1).view(-1, 2, 2)
    stretch = torch.stack([scale * ratio, scale / ratio], dim=1)[:, :, None]
    along_x, along_y = (stretch * turn)[..., None, None].unbind(dim=2)
    axis = (torch.arange(size) * 2 + 1) / size - 1
    affine = along_x * axis + (along_y * axis[:, None] + spread[:, 3:5, None, None] * arguments.shift)
    amplitude = uniform[:, 5, None, None, None] * arguments.elastic
    field = _smooth_field(draws.normal("elastic").view(-1, 2, nodes, nodes) * amplitude, size)
    return affine + field


def _smooth_field(nodes: Tensor, size: int) -> Tensor:
    """Values `[B, C, n, n]` at nodes, smoothly between them: `[B, C, size, size]`, by bicubic interpolation.

    As products with a matrix, which are faster than `F.interpolate` on a CPU.
    """
    weights = _bicubic_weights(nodes.shape[-1], size, nodes.device)
    return weights @ nodes @ weights.mT


@lru_cache
def _bicubic_weights(nodes: int, size: int, device: torch.device) -> Tensor:
    """`[size, nodes]`: what each node counts at each place between the first and the last."""
    one_hot = torch.eye(nodes, device=device)[None, None]
    return F.interpolate(one_hot, size=(size, nodes), mode="bicubic", align_corners=True)[0, 0]


def _change_intensities(view: Tensor, draws: _Draws, arguments: PointArguments) -> Tensor:
    """Grey values as other scanners, exposures and mistakes would give them; `[B, C, S, S]` in and out."""
    size, device = view.shape[-1], view.device
    uniform = draws["intensity"].to(device)[:, :, None, None, None]  # [B, 12, 1, 1, 1]
    gain = draws.normal("gain").view(-1, 1, _GAIN_NODES, _GAIN_NODES).to(device) * uniform[:, 0] * arguments.gain
    exponent = torch.exp(torch.special.ndtri(uniform[:, 1].clamp(1e-6, 1 - 1e-6)) * arguments.gamma)
    view = view.clamp(1e-4, 1) ** exponent * torch.exp(_smooth_field(gain, size))
    inverted = uniform[:, 2] < arguments.inversion_probability
    view = torch.where(inverted, view.amax(dim=(1, 2, 3), keepdim=True) - view, view)
    view = _lose_resolution(view, draws["intensity"][:, 3:5], arguments.blur_probability)
    noisy = 1 + 2 * (uniform[:, 5] < 0.25)
    view = view + draws.noise(size).to(device) * uniform[:, 6] * noisy * arguments.noise
    view = _draw_rectangles(view, draws["rectangles"].to(device), arguments)
    return _draw_border(view, draws["border"].to(device), arguments.border_probability)


def _lose_resolution(view: Tensor, uniform: Tensor, probability: float) -> Tensor:
    """Some of the views `[B, C, S, S]` resized to a third and more of their size, and back."""
    size = view.shape[-1]
    for row in (uniform[:, 0] < probability).nonzero()[:, 0].tolist():
        smaller = max(1, round(size * (0.35 + 0.5 * uniform[row, 1].item())))
        lost = F.interpolate(view[row, None], size=(smaller, smaller), mode="bilinear", antialias=True)
        view[row] = F.interpolate(lost, size=(size, size), mode="bilinear")[0]
    return view


def _pixel_axes(view: Tensor) -> tuple[Tensor, Tensor]:
    """Pixel centres as shares of the side: columns `[1, 1, 1, S]` and rows `[1, 1, S, 1]`."""
    axis = (torch.arange(view.shape[-1], device=view.device) + 0.5) / view.shape[-1]
    return axis.view(1, 1, 1, -1), axis.view(1, 1, -1, 1)


def _draw_rectangles(view: Tensor, uniform: Tensor, arguments: PointArguments) -> Tensor:
    """One large hole of any grey and two small markers, black or white, each in some of the views."""
    columns, rows = _pixel_axes(view)
    brightest = view.amax(dim=(1, 2, 3), keepdim=True)
    for index, drawn in enumerate(uniform.view(-1, _RECTANGLES, 5, 1, 1, 1).unbind(dim=1)):
        low, high, probability = (
            (0.1, 0.4, arguments.hole_probability) if index == 0 else (0.02, 0.12, arguments.marker_probability)
        )
        x, y, width, height, chance = drawn.unbind(dim=1)
        across = ((columns - x).abs() < (low + width * (high - low)) / 2) & (chance < probability)
        inside = across & ((rows - y).abs() < (low + height * (high - low)) / 2)
        shade = (chance / max(probability, 1e-6)).clamp(max=1)  # given that it is drawn, uniform
        view = torch.where(inside, (shade if index == 0 else shade.round()) * brightest, view)
    return view


def _draw_border(view: Tensor, uniform: Tensor, probability: float) -> Tensor:
    """Up to a sixth of the side blackened or whitened along some edges, in some of the views."""
    columns, rows = _pixel_axes(view)
    chance, shade, *edges = uniform[:, :, None, None, None].unbind(dim=1)
    left, right, top, bottom = (
        width * 0.16 * (there < 0.6) for width, there in zip(edges[:4], edges[4:], strict=True)
    )
    drawn = chance < probability
    beside = ((columns < left) | (columns > 1 - right)) & drawn
    beyond = ((rows < top) | (rows > 1 - bottom)) & drawn
    grey = (shade > 0.7) * view.amax(dim=(1, 2, 3), keepdim=True)
    return torch.where(beside | beyond, grey, view)
