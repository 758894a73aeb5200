"""How views are made, as settings: of parts, and of whole images for the dense stage. Imports nothing heavy."""

import math
from dataclasses import dataclass, fields
from typing import Literal

STRIDE = 4  # pixels of a dense stage's view between the nodes of its map


@dataclass
class ViewArguments:
    """How views are made; the defaults are the paper's.

    Args:
        size: Pixels a side of a view.
        crop_scale: Share of the part's area that a crop covers, from and to.
        crop_ratio: Width over height of a crop, from and to.
        rotation_degrees: Views are turned by up to this angle either way; what it uncovers is black.
        brightness: Factors are drawn from 1 - brightness to 1 + brightness.
        contrast: The same for the distance from the mean grey.
        saturation: The same for the distance from grey (colour images only).
        hue: Shifts are drawn from -hue to hue of the colour circle (colour images only).
        jitter_probability: Share of views whose colours are jittered.
        blur_sigma: Standard deviation of the Gaussian blur in pixels of the view, from and to.
        blur_probability: Share of views that are blurred.
        image_mean: Mean of each channel that `fixed` intensities are normalised by (ImageNet's).
        image_std: Standard deviation of the same.
        resize_filter: How crops are resized, anti-aliased: `bilinear` (published) or `bicubic` (Adam-v2).
        rotation_filter: How views are turned: `bilinear` (published) or `nearest` (Adam-v2).
        blur_last: Blur after turning (Adam-v2), not before it (published).
        intensity: `fixed` normalises by `image_mean` and `image_std` (published); `per_image` standardises each view
            by its own mean and standard deviation, as the image processor then does with each image.
    """

    size: int = 224
    crop_scale: tuple[float, float] = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    rotation_degrees: float = 30.0
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    jitter_probability: float = 0.8
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_probability: float = 0.5
    image_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    image_std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    resize_filter: Literal["bilinear", "bicubic"] = "bilinear"
    rotation_filter: Literal["bilinear", "nearest"] = "bilinear"
    blur_last: bool = False
    intensity: Literal["fixed", "per_image"] = "fixed"

    def __post_init__(self) -> None:
        for name in ("crop_scale", "crop_ratio", "blur_sigma"):
            limits = getattr(self, name)
            if len(limits) != 2 or not 0 < limits[0] <= limits[1]:
                raise ValueError(f"`views.{name}` must be a range from above 0 upwards, got {list(limits)}")
        bounds = {
            "size": (1, math.inf), "rotation_degrees": (0, 180), "hue": (0, 0.5), "brightness": (0, math.inf),
            "contrast": (0, math.inf), "saturation": (0, math.inf), "jitter_probability": (0, 1),
            "blur_probability": (0, 1),
        }  # fmt: skip
        for name, (low, high) in bounds.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"`views.{name}` must lie in [{low}, {high}], got {getattr(self, name)}")
        if self.crop_scale[1] > 1:
            raise ValueError(f"`views.crop_scale` is a share of the part, at most 1, got {self.crop_scale[1]}")
        if len(self.image_mean) != 3:
            raise ValueError(f"`views.image_mean` must be three values, got {list(self.image_mean)}")
        if len(self.image_std) != 3 or min(self.image_std) <= 0:
            raise ValueError(f"`views.image_std` must be three values above 0, got {list(self.image_std)}")
        if self.intensity not in ("fixed", "per_image"):
            raise ValueError(f"`views.intensity` must be 'fixed' or 'per_image', got {self.intensity!r}")


@dataclass
class AnchorArguments:
    """What Adam-v2's views of an anchor have beside `views`, which makes its global crops; the defaults are published.

    Args:
        local_size: Pixels a side of a local crop.
        local_count: Local crops of an anchor, at most 10.
        local_scale: Share of the anchor's area that a local crop covers, from and to, in stages of objective
            `localize`. In those of `part_whole` crop k covers (k - 1) / 10 to k / 10 (the first 0.05 to 0.1), centred.
        global_blur: Share of the first and of the second global crop that is blurred.
        local_blur: Share of the local crops that is blurred.
        whole_blur: Share of wholes and of parts that is blurred.
        rotation_degrees: In stages of objective `part_whole`, in place of `views.rotation_degrees`.
        margin: Anchors of granularity 1 and finer keep this share of the image's side from its edges, where the range
            of their places is more than twice that (50 pixels of 1,024).
    """

    local_size: int = 96
    local_count: int = 8
    local_scale: tuple[float, float] = (0.05, 0.4)
    global_blur: tuple[float, float] = (1.0, 0.1)
    local_blur: float = 0.5
    whole_blur: float = 0.1
    rotation_degrees: float = 10.0
    margin: float = 50 / 1024

    def __post_init__(self) -> None:
        for name, (low, high) in {"local_size": (1, math.inf), "local_count": (1, 10)}.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"`anchors.{name}` must lie in [{low}, {high}], got {getattr(self, name)}")
        if not 0 < self.local_scale[0] <= self.local_scale[1] <= 1:
            raise ValueError(f"`anchors.local_scale` must be a range of shares, got {list(self.local_scale)}")
        for name in ("global_blur", "local_blur", "whole_blur"):
            share = getattr(self, name)
            if not all(0 <= value <= 1 for value in (share if isinstance(share, (list, tuple)) else [share])):
                raise ValueError(f"`anchors.{name}` must lie in [0, 1], got {share}")
        if not 0 <= self.rotation_degrees <= 180:
            raise ValueError(f"`anchors.rotation_degrees` must lie in [0, 180], got {self.rotation_degrees}")
        if not 0 <= self.margin < 0.5:
            raise ValueError(f"`anchors.margin` must lie in [0, 0.5), got {self.margin}")


@dataclass
class PointArguments:
    """How the dense stage makes its views, and how many points it looks for.

    Shares are of the image's side; probabilities are those of a view.

    Args:
        size: Pixels a side of a view, a multiple of 4; the whole image is brought to about this size.
        count: Points looked for in each view.
        scale: What of the image a view shows, along a side, from and to.
        aspect: Width over height changes by up to this factor's logarithm either way.
        rotation_degrees: Views are turned by up to this angle either way.
        shift: Views are moved by up to this share of half the side either way.
        elastic: Largest standard deviation of the elastic field at its nodes, as a share of half the side.
        elastic_nodes: Nodes a side of the elastic field.
        gamma: Standard deviation of the logarithm of the exponent that intensities are raised to.
        gain: Largest standard deviation of the logarithm of a smooth field that intensities are multiplied by.
        noise: Largest standard deviation of the noise, of intensities in [0, 1]; a quarter of the views get three
            times as much.
        blur_probability: Share of views that lose resolution, by up to three times.
        inversion_probability: Share of views with black and white exchanged, as MONOCHROME1 shown wrongly.
        hole_probability: Share of views with a blank rectangle of up to two fifths of the side.
        marker_probability: Share of views with a small black or white rectangle, twice.
        border_probability: Share of views with a black or white border, as of a collimator.
    """

    size: int = 160
    count: int = 64
    scale: tuple[float, float] = (0.72, 1.42)
    aspect: float = 0.13
    rotation_degrees: float = 17.0
    shift: float = 0.22
    elastic: float = 0.05
    elastic_nodes: int = 6
    gamma: float = 0.4
    gain: float = 0.35
    noise: float = 0.06
    blur_probability: float = 0.3
    inversion_probability: float = 0.25
    hole_probability: float = 0.5
    marker_probability: float = 0.35
    border_probability: float = 0.35

    def __post_init__(self) -> None:
        if self.size < STRIDE or self.size % STRIDE:
            raise ValueError(f"`points.size` must be a multiple of {STRIDE}, got {self.size}")
        for name, least in (("count", 1), ("elastic_nodes", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"`points.{name}` must be at least {least}, got {getattr(self, name)}")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"`points.scale` must be a range from above 0 upwards, got {list(self.scale)}")
        for field in fields(self):
            value = getattr(self, field.name)
            highest = 1 if field.name.endswith("_probability") else math.inf
            if field.type is float and not 0 <= value <= highest:
                raise ValueError(f"`points.{field.name}` must lie in [0, {highest}], got {value}")
