"""Adam-v2's views of one anchor of each image: global and local crops, and the anchor with its four parts.

An anchor of granularity g has a 2^g-th of the image's side. In stages of objective `localize` crops lie anywhere in a
square anchor; in those of `part_whole` they grow about its centre, and the anchor and its quarters are views too. What
is drawn for an image depends on (seed, epoch, index) only, as in `eden_hf.data.views`, which makes the pixels.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from eden_hf.data.view_arguments import AnchorArguments, ViewArguments
from eden_hf.data.views import NUMBERS_PER_VIEW, ViewDraws, crop_boxes, draw_view, make_views, uniforms

#: Width over height of the growing crops, in turn.
_GROWING_RATIOS = ((2 / 3, 1.0), (1.0, 3 / 2))


def square_anchors(uniform: np.ndarray, *, granularity: int, height: int, width: int) -> np.ndarray:
    """Squares `[B, 4]` of the shorter side's 2^g-th, anywhere, by uniform numbers `[B, 2]` (row first)."""
    side = min(height, width) // 2**granularity
    room = np.array([height, width]) - side
    return _boxes(np.floor(uniform * (room + 1)), side, side)


def framed_anchors(
    uniform: np.ndarray, *, granularity: int, height: int, width: int, margins: tuple[int, int]
) -> np.ndarray:
    """Boxes `[B, 4]` of the image's shape and its 2^g-th side, away from the edges where there is room for it.

    Args:
        uniform: Uniform numbers `[B, 2]`, row first.
        granularity: g; 0 is the whole image.
        height: Pixels of the image.
        width: Pixels of the image.
        margins: Pixels kept above and below, and at the sides.
    """
    box_height, box_width = height // 2**granularity, width // 2**granularity
    offsets = np.zeros_like(uniform)
    if granularity:
        for axis, (room, margin) in enumerate(zip((height - box_height, width - box_width), margins, strict=True)):
            low, high = (margin, room - margin) if room > 2 * margin else (0, max(room - 1, 1))
            offsets[:, axis] = low + np.floor(uniform[:, axis] * (high - low))
    return _boxes(offsets, box_height, box_width)


def _boxes(corner: np.ndarray, height: int, width: int) -> np.ndarray:
    """Boxes `[B, 4]`, x0, y0, x1, y1, of upper left corners `[B, 2]`, row first."""
    y, x = corner.T
    return np.stack([x, y, x + width, y + height], axis=1)


def quarters(anchors: np.ndarray) -> list[np.ndarray]:
    """The four parts of anchors `[B, 4]`, row by row, each `[B, 4]`; a trailing odd pixel is left out."""
    sides = (anchors[:, 2:] - anchors[:, :2]) // 2
    corners = [anchors[:, :2] + sides * (column, row) for row in range(2) for column in range(2)]
    return [np.concatenate([corner, corner + sides], axis=1) for corner in corners]


def growing_crops(count: int) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """Shares of area, and widths over heights, of the centred local crops."""
    return [((k / 10 or 0.05, (k + 1) / 10), _GROWING_RATIOS[k % 2]) for k in range(count)]


class AnchorViews:
    """Draws and makes the views of batches of images, as `EdenV2ForPreTraining` takes them.

    Args:
        views: Of the global crops, and what else is not in `anchors`.
        anchors: What is.
    """

    def __init__(self, views: ViewArguments, anchors: AnchorArguments) -> None:
        self.views, self.anchors = views, anchors

    def localizing(
        self, images: Tensor, indices: Tensor, *, granularity: int, seed: int, epoch: int
    ) -> dict[str, Tensor]:
        """Crops anywhere in a square anchor of each image.

        Args:
            images: `[B, C, H, W]` uint8, C = 1 (grey) or 3 (RGB), on any device.
            indices: `[B]` int64 on the CPU, the images' numbers in their data set.
            granularity: Anchors have a 2^g-th of the image's side.
            seed: Seed of the run.
            epoch: Epoch of the run.

        Returns:
            `global_pixel_values` `[2, B, 3, size, size]` and `local_pixel_values`
            `[local_count, B, 3, local_size, local_size]`, float32, normalised, on the images' device.
        """
        place, numbers = self._numbers(indices, seed, epoch, 2 + self.anchors.local_count)
        height, width = images.shape[-2:]
        part = square_anchors(place, granularity=granularity, height=height, width=width)
        globals_, locals_ = numbers[:2], numbers[2:]
        ratio = self.views.crop_ratio
        large = [
            self._draw(crop_boxes(part, u, self.views.crop_scale, ratio), u, self.views, blur)
            for u, blur in zip(globals_, self.anchors.global_blur, strict=True)
        ]
        small = [
            self._draw(crop_boxes(part, u, self.anchors.local_scale, ratio), u, self.views, self.anchors.local_blur)
            for u in locals_
        ]
        return {
            "global_pixel_values": torch.stack(make_views(images, large, self.views)),
            "local_pixel_values": torch.stack(make_views(images, small, self._local(self.views))),
        }

    def part_whole(
        self, images: Tensor, indices: Tensor, *, granularity: int, seed: int, epoch: int
    ) -> dict[str, Tensor]:
        """An anchor of each image, its parts, and crops about its centre; arguments as of `localizing`.

        Returns:
            `whole_pixel_values` `[B, 3, size, size]`, `part_pixel_values` `[4, B, 3, size, size]`,
            `global_pixel_values` `[1, B, 3, size, size]` and `local_pixel_values` as of `localizing`.
        """
        recipe = replace(self.views, rotation_degrees=self.anchors.rotation_degrees)
        growing = growing_crops(self.anchors.local_count)
        place, numbers = self._numbers(indices, seed, epoch, 6 + len(growing))
        height, width = images.shape[-2:]
        margins = round(self.anchors.margin * height), round(self.anchors.margin * width)
        whole = framed_anchors(place, granularity=granularity, height=height, width=width, margins=margins)
        crop, *locals_ = (
            crop_boxes(whole, u, scale, ratio, centred=True)
            for u, (scale, ratio) in zip(numbers, [(recipe.crop_scale, recipe.crop_ratio), *growing], strict=False)
        )
        large = [self._draw(crop, numbers[0], recipe, self.anchors.global_blur[0])]
        small = [
            self._draw(box, u, recipe, self.anchors.local_blur) for box, u in zip(locals_, numbers[1:], strict=False)
        ]
        large += [
            self._draw(box, u, recipe, self.anchors.whole_blur)
            for box, u in zip([whole, *quarters(whole)], numbers[1 + len(growing) :], strict=True)
        ]
        first, anchors, *parts = make_views(images, large, recipe)
        return {
            "whole_pixel_values": anchors,
            "part_pixel_values": torch.stack(parts),
            "global_pixel_values": first[None],
            "local_pixel_values": torch.stack(make_views(images, small, self._local(recipe))),
        }

    def _numbers(self, indices: Tensor, seed: int, epoch: int, views: int) -> tuple[np.ndarray, Sequence[np.ndarray]]:
        """Uniform numbers `[B, 2]` of the anchor's place, and `[B, NUMBERS_PER_VIEW]` of each view."""
        numbers = uniforms(indices.numpy(), seed, epoch, 2 + views * NUMBERS_PER_VIEW)
        return numbers[:, :2], np.split(numbers[:, 2:], views, axis=1)

    def _draw(self, boxes: np.ndarray, uniform: np.ndarray, recipe: ViewArguments, blur: float) -> ViewDraws:
        return draw_view(boxes, uniform, replace(recipe, blur_probability=blur))

    def _local(self, recipe: ViewArguments) -> ViewArguments:
        return replace(recipe, size=self.anchors.local_size)
