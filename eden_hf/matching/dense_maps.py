"""Dense maps: embeddings of the points of an image on a grid, from whichever encoder there is.

A model with a dense decoder gives them in one pass; of any other encoder they are the embeddings of windows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from eden_hf.encoders import Encoder, gains_from_bfloat16
from eden_hf.image_processing_eden import EdenImageProcessor
from eden_hf.matching.windows import dense_embeddings
from eden_hf.modeling_eden_dense import sample_embeddings

#: The paper's windows: a quarter of the side, on a grid of 32 x 32.
WINDOW, STEPS = 0.25, 32
_WINDOW_STRIDE = 8  # pixels of the square that an image is brought to for them


@dataclass(frozen=True)
class DenseMap:
    """Embeddings of one image's points.

    Attributes:
        vectors: Unit vectors `[D, h, w]`, float32 on the CPU; node (row, column) stands for the point at
            ((column + 0.5) / w, (row + 0.5) / h) of the square that the model saw.
        size: Width and height of the image in pixels.
        covered: Share of the square's width and height that the image covers, centred (1 where it was stretched).
    """

    vectors: Tensor
    size: tuple[int, int]
    covered: tuple[float, float] = (1.0, 1.0)

    def places(self, points: Tensor) -> Tensor:
        """Pixel indices `[P, 2]` as shares of the square, `[P, 2]`."""
        shares = (points + 0.5) / torch.tensor(self.size)
        return 0.5 + (shares - 0.5) * torch.tensor(self.covered)

    def points(self, places: Tensor) -> Tensor:
        """Shares of the square `[P, 2]` as pixel indices, `[P, 2]`."""
        shares = 0.5 + (places - 0.5) / torch.tensor(self.covered)
        return shares * torch.tensor(self.size) - 0.5

    def at(self, places: Tensor) -> Tensor:
        """Unit vectors `[P, D]` at shares of the square `[P, 2]`, between the nodes."""
        return sample_embeddings(self.vectors[None], 2 * places[None] - 1)[0]

    def similarities(self, embeddings: Tensor, side: int | None = None) -> Tensor:
        """Cosine similarity `[P, h, w]` of nodes to unit vectors `[P, D]`, or `[P, side, side]` by interpolation."""
        maps = torch.einsum("pd,dhw->phw", embeddings, self.vectors)
        if side is None or maps.shape[-2:] == (side, side):
            return maps
        return F.interpolate(maps[None], size=(side, side), mode="bicubic", align_corners=False)[0]


def dense_maps(encoder: Encoder, images: Sequence[Image.Image], scale: float = 1.0) -> list[DenseMap]:
    """Dense maps of images, computed in bfloat16 where the device does that faster.

    Args:
        encoder: One with a dense decoder gives embeddings of points; of any other they are those of windows
            (`WINDOW`, `STEPS`).
        images: Of mode L or RGB, any sizes.
        scale: Of the size that the processor brings images to; no meaning for windows.

    Raises:
        ValueError: there are no images.
    """
    if not images:
        raise ValueError("there are no images to embed: the sequence given is empty")
    device = encoder.model.device
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=gains_from_bfloat16(device)):
        if not encoder.is_dense:
            return [_window_map(encoder, image) for image in images]
        side = 4 * max(1, round(scale * encoder.processor.size["height"] / 4))
        pixel_values = encoder.pixel_values(images, size=side).contiguous(memory_format=torch.channels_last)
        vectors = encoder.model(pixel_values=pixel_values).dense_embeddings
    maps = vectors.float().cpu().clone()
    return [
        DenseMap(part, image.size, covered_share(encoder.processor, image.size))
        for part, image in zip(maps, images, strict=True)
    ]


def covered_share(processor: Any, size: tuple[int, int]) -> tuple[float, float]:
    """What share of the square that the model sees an image of `size` (width, height) covers, along x and y."""
    if not isinstance(processor, EdenImageProcessor) or processor.aspect_ratio != "pad":
        return 1.0, 1.0
    return size[0] / max(size), size[1] / max(size)


def _window_map(encoder: Encoder, image: Image.Image) -> DenseMap:
    """The embeddings of windows on a grid over an image that is brought to a square."""
    side = STEPS * _WINDOW_STRIDE
    square = image.resize((side, side), Image.Resampling.BILINEAR, reducing_gap=3)
    grid = dense_embeddings(encoder, square, window=round(WINDOW * side), stride=_WINDOW_STRIDE)
    return DenseMap(grid.vectors.permute(2, 0, 1).contiguous(), image.size)
