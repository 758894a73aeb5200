"""What the image processor does to pixels, as a part of an exported model."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from PIL.Image import Resampling
from torch import Tensor, nn

from eden_hf.image_processing_eden import EdenImageProcessor
from eden_hf.image_processing_eden_pixels import ROUNDING

#: How much of the image processor's work an exported model does by itself.
Preprocessing = Literal["none", "normalize", "resize"]


class PixelPreprocessing(nn.Module):
    """`EdenImageProcessor` as a graph, for images of 8 bits.

    Args:
        processor: Whose settings are taken.
        resize: Whether images are brought to its size, by its anti-aliased filter; else they keep theirs.

    Raises:
        ValueError: `resize`, and the processor pads, or resizes by another filter than the bilinear one.
    """

    def __init__(self, processor: EdenImageProcessor, resize: bool) -> None:
        super().__init__()
        resize = resize and processor.do_resize
        if resize and processor.aspect_ratio == "pad":
            raise ValueError("`aspect_ratio` 'pad' is not exported: export 'normalize', and resize images yourself")
        if resize and processor.resample != Resampling.BILINEAR:
            raise ValueError(f"resizing is exported by the bilinear filter alone, not by {processor.resample!r}")
        self.size = (processor.size["height"], processor.size["width"]) if resize else None
        self.factor = processor.rescale_factor if processor.do_rescale else 1.0
        self.normalize = processor.do_normalize
        self.per_image = processor.intensity == "per_image"
        self.mean, self.std = (
            nn.Buffer(torch.tensor(numbers).view(-1, 1, 1)) for numbers in (processor.image_mean, processor.image_std)
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """`pixel_values` [B, C, H, W] or of the processor's size, of `pixels` [B, C, H, W], 0 to 255, float32."""
        if self.size is not None:
            rows, columns = (_weights(pixels.shape[2 + axis], side) for axis, side in enumerate(self.size))
            pixels = rows @ pixels @ columns.mT
        intensity = pixels * self.factor
        if not self.normalize:
            return intensity
        return _standardized(intensity) if self.per_image else (intensity - self.mean) / self.std


def _weights(source: int, target: int) -> Tensor:
    """The anti-aliased bilinear filter of PIL from `source` pixels to `target`, [target, source].

    As a matrix, since not every runtime has an anti-aliased `Resize`: OpenVINO takes it for the other one.
    """
    places = torch.arange(source) + 0.5
    scale = (places[-1] + 0.5) / target
    centres = (torch.arange(target) + 0.5) * scale
    weights = (1 - (places - centres[:, None]).abs() / scale.clamp(min=1)).clamp(min=0)
    return weights / weights.sum(dim=1, keepdim=True)


def _standardized(intensity: Tensor) -> Tensor:
    """Each image with mean 0 and standard deviation 1; one of a single value becomes 0."""
    above = intensity - intensity.amin(dim=(1, 2, 3), keepdim=True)  # of an image of one value exactly 0
    mean = _mean(above)
    std = _mean((above - mean).square()).sqrt()
    largest = intensity.abs().amax(dim=(1, 2, 3), keepdim=True)
    flat = std <= ROUNDING * largest + torch.finfo(torch.float32).tiny
    return (above - mean) / std.masked_fill(flat, math.inf)


def _mean(values: Tensor) -> Tensor:
    """Of each image, [B, 1, 1, 1]; by rows, since one float32 sum of all pixels of a large image would be off."""
    return values.mean(dim=3, keepdim=True).mean(dim=(1, 2), keepdim=True)


def preprocessed(processor: EdenImageProcessor, resize: bool) -> Callable[[Tensor], Tensor]:
    """What the processor itself makes of `pixels` [B, C, H, W], whole numbers 0 to 255, for comparison."""
    resize = resize and processor.do_resize
    return lambda pixels: processor(pixels.byte(), do_resize=resize, return_tensors="pt").pixel_values
