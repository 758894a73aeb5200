"""Pixels as an encoder: what the same search finds without anything learned."""

from types import SimpleNamespace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eden_hf.encoders import Encoder
from eden_hf.image_processing_eden import EdenImageProcessor

PATCH = 8  # pixels of half the side: a tenth of a picture of 160
_GAIN = 0.03  # of the intensities' range, so that noise in empty places stays small


class PixelPatches(nn.Module):
    """Unit patches of a locally normalised picture on a grid of stride 4, shaped as a model's dense embeddings.

    The product of two is the normalised correlation of 8 x 8 pixels of the picture at half its side.
    """

    device, dtype = torch.device("cpu"), torch.float32
    config = SimpleNamespace(dense_dim=PATCH**2)

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        """`dense_embeddings` `[B, 64, H / 4, W / 4]` of images `[B, C, H, W]`, sides multiples of 4."""
        height, width = pixel_values.shape[-2:]
        half = F.avg_pool2d(_locally_normalised(pixel_values.mean(dim=1, keepdim=True)), 2)
        around = PATCH // 2 - 1
        patches = F.unfold(F.pad(half, [around] * 4, mode="replicate"), PATCH, stride=2)
        patches = F.normalize(patches - patches.mean(dim=1, keepdim=True), dim=1)
        return SimpleNamespace(dense_embeddings=patches.view(len(patches), -1, height // 4, width // 4))


def pixel_encoder(size: int = 160) -> Encoder:
    """Locally normalised pixels in the shape of a dense encoder, for images brought to `size`."""
    processor = EdenImageProcessor(size={"height": size, "width": size}, intensity="per_image")
    return Encoder(cast(Any, PixelPatches()), processor, "pixels", f"{PATCH} x {PATCH}")


def _locally_normalised(pixels: Tensor) -> Tensor:
    """`[B, 1, H, W]` with the mean and deviation of the surroundings (a sixth of the side) taken out."""
    radius = round(min(pixels.shape[-2:]) / 12)
    kernel = torch.exp(-0.5 * (torch.arange(-2 * radius, 2 * radius + 1) / radius).square())
    kernel = (kernel / kernel.sum()).to(pixels)

    def smooth(values: Tensor) -> Tensor:
        values = F.pad(values, [2 * radius] * 4, mode="replicate")
        return F.conv2d(F.conv2d(values, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))

    mean = smooth(pixels)
    variance = (smooth(pixels.square()) - mean.square()).clamp(min=0)
    return (pixels - mean) / (variance.sqrt() + _GAIN)
