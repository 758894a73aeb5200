"""Images brought to a size, stretched or fitted in (remote code, beside `image_processing_eden`)."""

from functools import lru_cache

import numpy as np
import PIL.Image
import torch
from transformers.image_utils import SizeDict


def fitted_size(height: int, width: int, size: SizeDict) -> SizeDict:
    """The largest size of `height` x `width` within `size` in the same proportions, at least one pixel a side."""
    scale = min(size["height"] / height, size["width"] / width)
    return SizeDict(height=max(1, round(height * scale)), width=max(1, round(width * scale)))


def resized(image: np.ndarray, size: SizeDict, resample: int) -> np.ndarray:
    """`image` [C, H, W] of numbers at `size`, float32: anti-aliased, in floating point, as PIL resizes floats.

    Rows first, so that a large 8-bit image is never held in floats.
    """
    target = (size["width"], size["height"])
    if image.shape[1:] == target[::-1]:
        return image.astype(np.float32)
    return np.stack(
        [
            np.asarray(PIL.Image.fromarray(_fewer_rows(channel, size["height"], resample)).resize(target, resample))
            for channel in image
        ]
    )


def _fewer_rows(channel: np.ndarray, height: int, resample: int) -> np.ndarray:
    """`channel` [H, W] with its rows brought to `height`, float32: sums over strips of it, which stay in caches."""
    rows = torch.zeros(height, channel.shape[1])
    for top, reached, weights in _row_weights(len(channel), height, resample):
        strip = channel[top : top + _STRIP].astype(np.float32)
        rows[reached].addmm_(weights, torch.from_numpy(strip))
    return rows.numpy()


@lru_cache(maxsize=8)
def _row_weights(length: int, target: int, resample: int) -> list[tuple[int, slice, torch.Tensor]]:
    """Of each strip of `length` rows its top, which of `target` rows it reaches, and their weights [reached, strip].

    PIL's own filter, found by resizing ones.
    """
    ones = PIL.Image.fromarray(np.eye(length, dtype=np.float32))
    weights = np.array(ones.resize((length, target), PIL.Image.Resampling(resample)))
    strips = []
    for top in range(0, length, _STRIP):
        strip = weights[:, top : top + _STRIP]
        rows = np.flatnonzero(strip.any(axis=1))
        if len(rows):
            reached = slice(int(rows[0]), int(rows[-1]) + 1)
            strips.append((top, reached, torch.from_numpy(strip[reached].copy())))
    return strips


#: Source rows taken at a time.
_STRIP = 32


def corner(height: int, width: int, size: SizeDict) -> tuple[int, int]:
    """Top and left of what is centred in `size`."""
    return (size["height"] - height) // 2, (size["width"] - width) // 2


def centred(image: np.ndarray, size: SizeDict, beyond: float = 0) -> np.ndarray:
    """`image` [C, H, W] in the middle of `size`, with `beyond` around it."""
    top, left = corner(image.shape[1], image.shape[2], size)
    bottom, right = size["height"] - image.shape[1] - top, size["width"] - image.shape[2] - left
    return np.pad(image, ((0, 0), (top, bottom), (left, right)), constant_values=beyond)


def without_padding(scores: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The part of `scores` [C, h, w] that an image of `height` x `width` takes when it is fitted in and centred."""
    outer = SizeDict(height=scores.shape[1], width=scores.shape[2])
    inner = fitted_size(height, width, outer)
    top, left = corner(inner["height"], inner["width"], outer)
    return scores[:, top : top + inner["height"], left : left + inner["width"]]
