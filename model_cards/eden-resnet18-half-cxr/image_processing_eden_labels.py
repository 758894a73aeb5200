"""Labels of pixels, brought to a size with their image (remote code, beside `image_processing_eden`)."""

from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from PIL import ImageOps
from transformers.image_utils import SizeDict

from .image_processing_eden_pixels import as_numpy
from .image_processing_eden_resizing import centred, fitted_size, resized


class LabelMasks:
    """Masks `[labels, H, W]` that may overlap, for transformers' segmentation pipeline: `masks == i` is the i-th.

    The pipeline expects a map of ids, in which a pixel can have one id only, and asks for nothing but that comparison.
    """

    def __init__(self, masks: torch.Tensor) -> None:
        self.masks = masks

    def __eq__(self, label_id: object) -> torch.Tensor:  # type: ignore[override]
        return self.masks[label_id]  # type: ignore[index]

    __hash__ = None  # type: ignore[assignment]


def label_maps(segmentation_maps: Any, alone: bool) -> list[np.ndarray]:
    """Each image's labels as an array; `alone` when there is one image, whose map need not be in a list."""
    if alone and isinstance(segmentation_maps, PIL.Image.Image | np.ndarray | torch.Tensor):
        segmentation_maps = [segmentation_maps]
    return [
        np.stack([_pixels(mask) for mask in m]) if isinstance(m, list | tuple) else _pixels(m)
        for m in segmentation_maps
    ]


def _pixels(image: PIL.Image.Image | np.ndarray | torch.Tensor) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(image)) if isinstance(image, PIL.Image.Image) else as_numpy(image)


def check_label_map(index: int, pixels: np.ndarray, size: tuple[int, int]) -> None:
    """Raise a `ValueError` unless labels are masks [labels, H, W] or classes [H, W] of an image of `size` (H, W)."""
    if pixels.ndim not in (2, 3) or pixels.shape[-2:] != size:
        raise ValueError(
            f"segmentation map {index} must be [labels, H, W] or [H, W] with the image's H, W = {size}, "
            f"got {list(pixels.shape)}"
        )
    if pixels.ndim == 3 and not (pixels.min() >= 0 and pixels.max() <= 1):  # False of NaN too
        raise ValueError(
            f"overlapping masks are 0 outside and 1 inside, got {pixels.min()} to {pixels.max()} in segmentation map "
            f"{index}: give `mask > 0`"
        )
    if pixels.ndim == 2 and pixels.dtype.kind not in "iub":
        raise ValueError(
            f"exclusive classes are integers, got {pixels.dtype} in segmentation map {index}: convert them, or give "
            "masks as [labels, H, W]"
        )


def resized_labels(pixels: np.ndarray, size: SizeDict, padded: bool, ignored: int) -> np.ndarray:
    """Masks [labels, H, W] as float32, shares of pixels that lie inside, or classes [H, W] as int64, at `size`.

    Classes are the nearest pixel's, which moves edges by up to half a pixel; for thin structures that is a lot.
    """
    inner = fitted_size(pixels.shape[-2], pixels.shape[-1], size) if padded else size
    if pixels.ndim == 3:
        return centred(resized(pixels.astype(np.float32), inner, PIL.Image.Resampling.BILINEAR), size)
    classes = torch.from_numpy(pixels[None, None].astype(np.float32))
    nearest = F.interpolate(classes, size=(inner["height"], inner["width"]), mode="nearest-exact")[0].numpy()
    return centred(nearest, size, beyond=ignored)[0].astype(np.int64)
