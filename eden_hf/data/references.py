"""References: images whose points or masks somebody annotated, from which others are found."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Reference:
    """An annotated image.

    Attributes:
        image: Mode L or RGB.
        name: What errors and results call it.
        points: Pixel indices (x, y) by name, float; (0, 0) is the centre of the top left pixel.
        masks: Boolean arrays `[H, W]` of the image's size by name.

    Raises:
        ValueError: there is nothing annotated, a point lies off the image, or a mask has another size.
    """

    image: Image.Image
    name: str = ""
    points: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    masks: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        width, height = self.image.size
        if not self.points and not self.masks:
            raise ValueError(f"reference {self.name!r} has neither points nor masks")
        for name, (x, y) in self.points.items():
            if not (-0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5):  # NaN too
                raise ValueError(
                    f"reference {self.name!r}: point {name!r} at ({x:g}, {y:g}) lies off the image of {width} x "
                    f"{height} pixels; leave out points that cannot be seen"
                )
        for name, mask in self.masks.items():
            if np.shape(mask) != (height, width):
                raise ValueError(
                    f"reference {self.name!r}: mask {name!r} has shape {np.shape(mask)}, the image {(height, width)}"
                )


def point_names(references: Sequence[Reference]) -> list[str]:
    """Names of all points of `references`, in the order of their first appearance."""
    return list(dict.fromkeys(name for reference in references for name in reference.points))


def mask_names(references: Sequence[Reference]) -> list[str]:
    """Names of all masks of `references`, in the order of their first appearance."""
    return list(dict.fromkeys(name for reference in references for name in reference.masks))
