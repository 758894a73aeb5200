"""Images brought to a size, stretched or fitted in (remote code, beside `image_processing_eden`)."""

import numpy as np
import PIL.Image
import torch
from transformers.image_utils import SizeDict


def fitted_size(height: int, width: int, size: SizeDict) -> SizeDict:
    """The largest size of `height` x `width` within `size` in the same proportions, at least one pixel a side."""
    scale = min(size["height"] / height, size["width"] / width)
    return SizeDict(height=max(1, round(height * scale)), width=max(1, round(width * scale)))


def resized(image: np.ndarray, size: SizeDict, resample: int) -> np.ndarray:
    """`image` [C, H, W], float32, at `size`: anti-aliased, in floating point (the base class rounds to 8 bits)."""
    channels = (PIL.Image.fromarray(np.ascontiguousarray(channel)) for channel in image)
    return np.stack(
        [
            np.asarray(channel.resize((size["width"], size["height"]), PIL.Image.Resampling(resample)))
            for channel in channels
        ]
    )


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
