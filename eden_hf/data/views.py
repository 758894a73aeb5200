"""Two augmented views of one anatomical part of each image, made in batches on the images' device.

The recipe is the paper's: random resized crop, colour jitter, Gaussian blur, rotation, normalisation. What is drawn
for an image depends on (seed, epoch, index of the image) only: not on batches, workers or processes.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from eden_hf.anatomy import part_boxes
from eden_hf.data.view_arguments import ViewArguments

CROP_TRIES = 10
NUMBERS_PER_VIEW = 66  # the crop takes the first 22, the rest the last 16; those between are spare
_CACHED_PIXELS = 2**19  # view pixels that a CPU works on at a time, so that they stay in its cache
_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601, as PIL


class ViewDraws(NamedTuple):
    """What was drawn for one view of each of B images; tensors on the CPU."""

    boxes: Tensor  # [B, 4] float32, x0, y0, x1, y1 of the crop in pixels of the source
    angle: Tensor  # [B] float32, radians, counter-clockwise
    jittered: Tensor  # [B] bool
    order: Tensor  # [B, 4] int64, which of brightness, contrast, saturation, hue comes first, second ...
    factors: Tensor  # [B, 4] float32, brightness, contrast, saturation factors and hue shift
    blurred: Tensor  # [B] bool
    sigma: Tensor  # [B] float32, pixels of the view


class TwoViews:
    """Draws and makes query and key views of batches of images."""

    def __init__(self, arguments: ViewArguments) -> None:
        self.arguments = arguments

    def __call__(
        self,
        images: Tensor,
        indices: Tensor,
        *,
        level: int,
        seed: int,
        epoch: int,
        keys: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Query and key views of one part of each image.

        Args:
            images: `[B, C, H, W]` uint8, C = 1 (grey) or 3 (RGB), on any device.
            indices: `[B]` int64 on the CPU, the images' numbers in their data set.
            level: Granularity; each image gives one of its 2^level parts.
            seed: Seed of the run.
            epoch: Epoch of the run.
            keys: Other images and their indices, whose keys are wanted instead: with several processes each encodes
                the keys of some other's images. They are those that the other would have made.

        Returns:
            Two tensors `[B, 3, size, size]`, float32, normalised, on the images' device.

        Raises:
            ValueError: `level` is finer than the images' pixels, or they are no such images.
        """
        height, width = images.shape[-2:]

        def draws(indices: Tensor) -> tuple[ViewDraws, ViewDraws]:
            return draw_views(indices, self.arguments, level=level, seed=seed, epoch=epoch, height=height, width=width)

        if keys is None:
            query, key = make_views(images, draws(indices), self.arguments)
        else:
            (query,) = make_views(images, draws(indices)[:1], self.arguments)
            (key,) = make_views(keys[0], draws(keys[1])[1:], self.arguments)
        return query, key


def draw_views(
    indices: Tensor, arguments: ViewArguments, *, level: int, seed: int, epoch: int, height: int, width: int
) -> tuple[ViewDraws, ViewDraws]:
    """Draw one part for each image, and a query and a key view of it.

    Args:
        indices: `[B]` int64, the images' numbers.
        arguments: The recipe.
        level: Granularity of the parts.
        seed: Seed of the run.
        epoch: Epoch of the run.
        height: Pixels of the images.
        width: Pixels of the images.
    """
    parts = np.array(part_boxes(width, height, level))
    uniform = uniforms(indices.numpy(), seed, epoch, 1 + 2 * NUMBERS_PER_VIEW)
    part = parts[(uniform[:, 0] * len(parts)).astype(int)]
    query, key = (
        draw_view(crop_boxes(part, numbers, arguments.crop_scale, arguments.crop_ratio), numbers, arguments)
        for numbers in np.split(uniform[:, 1:], 2, axis=1)
    )
    return query, key


def draw_view(boxes: np.ndarray, uniform: np.ndarray, arguments: ViewArguments) -> ViewDraws:
    """One view's draws, of the crops `boxes` [B, 4], from uniform numbers [B, NUMBERS_PER_VIEW]."""
    rest = uniform[:, -16:]
    spread = np.array([arguments.brightness, arguments.contrast, arguments.saturation])
    low = np.maximum(0, 1 - spread)
    factors = low + rest[:, :3] * (1 + spread - low)
    shift = (2 * rest[:, 3:4] - 1) * arguments.hue
    sigma_low, sigma_high = arguments.blur_sigma
    return ViewDraws(
        boxes=_float(boxes),
        angle=_float(np.radians(arguments.rotation_degrees) * (2 * rest[:, 4] - 1)),
        jittered=torch.from_numpy(rest[:, 5] < arguments.jitter_probability),
        order=torch.from_numpy(rest[:, 6:10].argsort(axis=1)),
        factors=_float(np.concatenate([factors, shift], axis=1)),
        blurred=torch.from_numpy(rest[:, 10] < arguments.blur_probability),
        sigma=_float(sigma_low + rest[:, 11] * (sigma_high - sigma_low)),
    )


def _float(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


def crop_boxes(
    part: np.ndarray,
    uniform: np.ndarray,
    scale: tuple[float, float],
    aspect: tuple[float, float],
    centred: bool = False,
) -> np.ndarray:
    """Random resized crops [B, 4] of parts [B, 4]: the first try of ten that fits, else the largest in the middle.

    Args:
        part: Boxes.
        uniform: Uniform numbers [B, NUMBERS_PER_VIEW], of which the first 22 are used.
        scale: Share of the part's area, from and to.
        aspect: Width over height, from and to.
        centred: Put every crop in the middle.
    """
    width, height = (part[:, 2:] - part[:, :2]).T[:, :, None]
    scale_low, scale_high = scale
    ratio_low, ratio_high = np.log(aspect)
    area = width * height * (scale_low + uniform[:, :CROP_TRIES] * (scale_high - scale_low))
    ratio = np.exp(ratio_low + uniform[:, CROP_TRIES : 2 * CROP_TRIES] * (ratio_high - ratio_low))
    tried = np.stack([np.sqrt(area * ratio), np.sqrt(area / ratio)], axis=-1).round().clip(1)
    fits = (tried[..., 0] <= width) & (tried[..., 1] <= height)
    first = fits.argmax(axis=1)
    size = tried[np.arange(len(tried)), first]
    whole = np.concatenate([width, height], axis=1).astype(float)
    widest, highest = whole[:, 1] * aspect[1], whole[:, 0] / aspect[0]
    largest = np.stack([np.minimum(whole[:, 0], widest), np.minimum(whole[:, 1], highest)], axis=1).round().clip(1)
    found = fits.any(axis=1)[:, None]
    size = np.where(found, size, largest)
    place = uniform[:, 2 * CROP_TRIES : 2 * CROP_TRIES + 2]
    offset = np.floor(np.where(found & (not centred), place * (whole - size + 1), (whole - size) / 2))
    corner = part[:, :2] + offset
    return np.concatenate([corner, corner + size], axis=1)


def uniforms(indices: np.ndarray, seed: int, epoch: int, count: int) -> np.ndarray:
    """Uniform numbers [B, count] in [0, 1), each row a function of (seed, epoch, index): SplitMix64 by counter."""
    state = np.zeros(len(indices), np.uint64)
    for word in (np.uint64(seed % 2**64), np.uint64(epoch % 2**64), indices.astype(np.uint64)):
        state = _mix(state ^ word)
    counter = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return (_mix(state[:, None] + counter) >> np.uint64(11)) * 2.0**-53


def _mix(x: np.ndarray) -> np.ndarray:
    """Finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) on uint64, one step ahead so that 0 moves too."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def make_views(images: Tensor, draws: Sequence[ViewDraws], arguments: ViewArguments) -> list[Tensor]:
    """Make drawn views of images. On an accelerator nothing here waits for it: what decides shapes is on the CPU.

    Args:
        images: `[B, C, H, W]` uint8, C = 1 or 3, on any device.
        draws: One for each view wanted, from `draw_views` for these images.
        arguments: The recipe.

    Returns:
        For each of `draws` a tensor `[B, 3, size, size]` float32, normalised; grey is repeated.

    Raises:
        ValueError: the images are not as described.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images must be uint8 [B, 1 or 3, H, W], got {images.dtype} {list(images.shape)}")
    shape = (len(images), 3, arguments.size, arguments.size)
    views = [torch.empty(shape, device=images.device) for _ in draws]
    chunk = len(images) if images.device.type != "cpu" else max(1, _CACHED_PIXELS // arguments.size**2)
    for start in range(0, len(images), chunk):
        rows = slice(start, start + chunk)
        intensities = images[rows].float().div_(255)
        for view, drawn in zip(views, draws, strict=True):
            _make_view(intensities, ViewDraws(*(draw[rows] for draw in drawn)), arguments, out=view[rows])
    return views


def _make_view(images: Tensor, draws: ViewDraws, arguments: ViewArguments, out: Tensor) -> None:
    """Write one view each of intensities [B, C, H, W] in [0, 1] to `out` [B, 3, S, S]."""
    views = _jitter(_crop_and_resize(images, draws.boxes, arguments), draws)
    for change in (_turned, _blurred) if arguments.blur_last else (_blurred, _turned):
        views = change(views, draws, arguments)
    _normalise(views, arguments, out)


def _blurred(views: Tensor, draws: ViewDraws, arguments: ViewArguments) -> Tensor:
    rows = draws.blurred.nonzero()[:, 0]
    if len(rows):
        there = rows.to(views.device, non_blocking=True)
        views[there] = _blur(views[there], draws.sigma[rows], arguments.blur_sigma[1])
    return views


def _turned(views: Tensor, draws: ViewDraws, arguments: ViewArguments) -> Tensor:
    return _rotate(views, draws.angle, arguments.rotation_filter) if arguments.rotation_degrees else views


def _crop_and_resize(images: Tensor, boxes: Tensor, arguments: ViewArguments) -> Tensor:
    """Crops [B, 4] of images [B, C, H, W] at `size` x `size`, by the anti-aliased filters that PIL uses."""
    kernel = _KERNELS[arguments.resize_filter]
    rows = _taps(boxes[:, 1], boxes[:, 3], arguments.size, images.device, *kernel)
    columns = _taps(boxes[:, 0], boxes[:, 2], arguments.size, images.device, *kernel)
    views = _filter_rows(_filter_rows(images, *rows).mT, *columns).mT
    return views.clamp_(0, 1) if arguments.resize_filter == "bicubic" else views  # which overshoots at edges


def _triangle(distance: Tensor) -> Tensor:
    return (1 - distance).clamp(min=0)


def _cubic(distance: Tensor) -> Tensor:
    """Keys' kernel with a = -1/2, as PIL."""
    near = (1.5 * distance - 2.5) * distance.square() + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0))


#: Weight by distance, and the distance from which on it is 0, in pixels of the coarser of source and view.
_KERNELS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {"bilinear": (_triangle, 1), "bicubic": (_cubic, 2)}


def _taps(
    start: Tensor, stop: Tensor, size: int, device: torch.device, kernel: Callable[[Tensor], Tensor], reach: int
) -> tuple[Tensor, Tensor]:
    """Source positions and weights [B, size, K] that resize [start, stop) to `size`; K is the widest filter's need."""
    taps = 2 * math.ceil(reach * max(1.0, float((stop - start).max()) / size)) + 1
    start, stop = (edge.to(device, non_blocking=True)[:, None, None] for edge in (start, stop))
    scale = (stop - start) / size
    coarser = scale.clamp(min=1)
    centre = start + (torch.arange(size, device=device)[:, None] + 0.5) * scale  # [B, size, 1]
    positions = (centre - reach * coarser).floor() + torch.arange(taps, device=device)
    weights = kernel((positions + 0.5 - centre).abs() / coarser)
    weights = weights * ((positions >= start) & (positions < stop))  # pixels beyond the crop do not shine in
    return positions.clamp(start, stop - 1), weights / weights.sum(dim=-1, keepdim=True)


def _filter_rows(images: Tensor, positions: Tensor, weights: Tensor) -> Tensor:
    """New rows [B, C, S, W] of images [B, C, H, W]: weighted sums of rows at `positions`, both [B, S, K].

    An embedding bag is just that, gathers whole rows at memory speed, and knows every device.
    """
    batch, channels, height, width = images.shape
    first_row = torch.arange(batch * channels, device=images.device).view(batch, channels, 1, 1) * height
    index = (positions.long()[:, None] + first_row).flatten(0, 2)
    weights = weights[:, None].expand(-1, channels, -1, -1).flatten(0, 2)
    bags = F.embedding_bag(index, images.reshape(-1, width), mode="sum", per_sample_weights=weights)
    return bags.view(batch, channels, -1, width)


def _blur(views: Tensor, sigma: Tensor, largest_sigma: float) -> Tensor:
    """Gaussian blur of views [B, C, S, S] by their own sigma [B], edges mirrored."""
    size, device = views.shape[-1], views.device
    radius = min(math.ceil(3 * largest_sigma), size - 1)
    offsets = torch.arange(-radius, radius + 1, device=device)
    weights = torch.exp(-0.5 * (offsets / sigma.to(device, non_blocking=True)[:, None]).square())
    weights = (weights / weights.sum(dim=1, keepdim=True))[:, None].expand(-1, size, -1)
    # Mirrored at the first row, and below at the last.
    positions = (torch.arange(size, device=device)[:, None] + offsets).abs()
    positions = torch.where(positions < size, positions, 2 * (size - 1) - positions).expand(len(views), -1, -1)
    return _filter_rows(_filter_rows(views, positions, weights).mT, positions, weights).mT


def _jitter(views: Tensor, draws: ViewDraws) -> Tensor:
    """Brightness, contrast, saturation and hue of views [B, C, S, S] in each view's own order; grey has the first two.

    On a CPU one view after the other, in place and in its caches; elsewhere together.
    """
    changes = (_brightness, _contrast) if views.shape[1] == 1 else (_brightness, _contrast, _saturation, _hue)
    order = draws.order[draws.order < len(changes)].view(-1, len(changes))
    jitter = _jitter_in_turn if views.device.type == "cpu" else _jitter_together
    jitter(views, draws, order, changes)
    return views


_Changes = Sequence[Callable[[Tensor, Tensor], Tensor]]


def _jitter_in_turn(views: Tensor, draws: ViewDraws, order: Tensor, changes: _Changes) -> None:
    """Each view by itself."""
    for row in draws.jittered.nonzero()[:, 0].tolist():
        for kind in order[row].tolist():
            changes[kind](views[row : row + 1], draws.factors[row, kind])


def _jitter_together(views: Tensor, draws: ViewDraws, order: Tensor, changes: _Changes) -> None:
    """One change after the other, each on the views whose turn it is: which they are is known on the CPU."""
    for turn in order.T:
        for kind, change in enumerate(changes):
            rows = (draws.jittered & (turn == kind)).nonzero()[:, 0]
            if len(rows):
                there = rows.to(views.device, non_blocking=True)
                by = draws.factors[rows, kind].to(views.device, non_blocking=True)[:, None, None, None]
                views[there] = change(views[there], by)


def _brightness(views: Tensor, factor: Tensor) -> Tensor:
    """Away from black, or towards it, in place."""
    return views.mul_(factor).clamp_(0, 1)


def _contrast(views: Tensor, factor: Tensor) -> Tensor:
    """Away from the mean grey, or towards it, in place."""
    centre = _luminance(views.mean(dim=(2, 3), keepdim=True))
    return views.mul_(factor).add_(centre * (1 - factor)).clamp_(0, 1)


def _saturation(views: Tensor, factor: Tensor) -> Tensor:
    """Away from each pixel's own grey, or towards it, in place."""
    centre = _luminance(views)
    return views.mul_(factor).add_(centre.mul_(1 - factor)).clamp_(0, 1)


def _hue(views: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of RGB by `shift` of the circle, value and saturation kept (HSV), in place.

    A channel is the value less the chroma times a trapezoid of the hue's distance from the channel's complement: the
    hue in sixths of the circle is found once, and never taken back to HSV's [0, 1).
    """
    red, green, blue = views.split(1, dim=1)
    value = torch.maximum(torch.maximum(red, green), blue)  # a reduction over three is slow on a CPU
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    is_red, is_green = value == red, value == green
    ahead = torch.where(is_red, green - blue, torch.where(is_green, blue - red, red - green))
    sixths = torch.where(is_red, 0.0, torch.where(is_green, 2.0, 4.0))
    sixths.addcdiv_(ahead, chroma.clamp(min=1e-8)).add_(6 * shift)
    for channel, place in zip((red, green, blue), (3, 1, -1), strict=True):  # the complement's, a half circle away
        away = sixths + place
        away.sub_((away / 6).round_(), alpha=6).abs_()  # 0 to 3 sixths
        torch.addcmul(value, chroma, away.neg_().add_(2).clamp_(0, 1), value=-1, out=channel)
    return views


def _luminance(views: Tensor) -> Tensor:
    """Grey [B, 1, S, S] of grey or RGB views."""
    if views.shape[1] == 1:
        return views
    red, green, blue = views.split(1, dim=1)
    return (red * _GREY[0]).add_(green, alpha=_GREY[1]).add_(blue, alpha=_GREY[2])


def _rotate(views: Tensor, angle: Tensor, mode: str) -> Tensor:
    """Views [B, C, S, S] turned about their middle; black comes in from outside, as published."""
    size = views.shape[-1]
    axis = (torch.arange(size, device=views.device) * 2 + 1) / size - 1  # pixel centres from -1 to 1
    turn = torch.polar(torch.ones_like(angle), angle).to(views.device, non_blocking=True)
    plane = torch.complex(axis.expand(size, size), axis[:, None].expand(size, size))
    grid = torch.view_as_real(plane * turn[:, None, None])  # x + iy, turned by multiplication
    return F.grid_sample(views, grid, mode=mode, padding_mode="zeros", align_corners=False)


def _normalise(views: Tensor, arguments: ViewArguments, out: Tensor) -> None:
    """Write intensities [B, C, S, S], normalised, to `out` [B, 3, S, S]."""
    if arguments.intensity == "per_image":
        out.copy_(standardise(views))
        return
    mean, std = torch.tensor([arguments.image_mean, arguments.image_std])
    views = views.expand(-1, 3, -1, -1)
    # By channel, as a broadcast scale would be read anew for each pixel: five times slower on a CPU.
    for channel, (scale, offset) in enumerate(zip((1 / std).tolist(), (-mean / std).tolist(), strict=True)):
        torch.add(views.new_full((), offset), views[:, channel], alpha=scale, out=out[:, channel])


def standardise(views: Tensor) -> Tensor:
    """Views `[B, C, S, S]`, each of mean 0 and standard deviation 1; one of a single value becomes 0."""
    centred = views - views.mean(dim=(1, 2, 3), keepdim=True)
    std = centred.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()  # `torch.std_mean` is slower on a CPU
    return centred.mul_(1 / torch.where(std > 1e-6, std, torch.inf))
