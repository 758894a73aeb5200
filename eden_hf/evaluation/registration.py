"""Landmarks carried over by classical image registration: the control that needs no training.

An exhaustive search over scales and shifts, an affine map by mutual information (SimpleITK, the extra `registration`),
then a coupled convex search (Steinbruecker et al., ICCV 2009; Heinrich et al., MICCAI 2014) of the shift of every
node by the likeness of its 7 x 7 patch. Of the classical methods tried on SCR's training fold it served best: 12.3 mm
over 120 pairs, 13.5 mm with the affine map alone.

Everything happens on squares of `SIDE` pixels; the reference is the fixed image, so that a map carries its points to
the target without an inverse.
"""

from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage
from torch import Tensor, tensor

SIDE = 256
_NODE = 4  # pixels between the nodes of the convex search
_SCALES = (0.8, 0.9, 1.0, 1.1, 1.2)
_COARSE = 64  # pixels a side of the pictures that scales and shifts are searched on,
_MARGIN = 12  # and their margin, by which the reference may shift
_PATCH = 7
_REACH = 7  # nodes, either way
_COUPLINGS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


class Registered:
    """An image as registration sees it: intensities with local mean and deviation taken out.

    Args:
        image: Mode L or RGB, any size; it is brought to a square.
    """

    def __init__(self, image: Image.Image) -> None:
        self.size = image.size
        resample = Image.Resampling.BOX if min(image.size) > SIDE else Image.Resampling.BILINEAR
        square = image.convert("L").convert("F").resize((SIDE, SIDE), resample)
        self.pixels = _locally_normalised(np.asarray(square, np.float32) / 255)

    @cached_property
    def patches(self) -> np.ndarray:
        """Unit patches of the nodes, `[n, n, 49]`: products are normalised correlations."""
        half = self.pixels.reshape(SIDE // 2, 2, SIDE // 2, 2).mean(axis=(1, 3))
        margin = _PATCH // 2 + 1
        between = ndimage.uniform_filter(np.pad(half, margin, mode="edge"), 2)  # centres between four pixels
        windows = np.lib.stride_tricks.sliding_window_view(between[2:, 2:], (_PATCH, _PATCH))
        nodes = windows[: SIDE // 2 : 2, : SIDE // 2 : 2].reshape(SIDE // _NODE, SIDE // _NODE, -1)
        return _unit(nodes - nodes.mean(axis=-1, keepdims=True))

    @cached_property
    def coarse(self) -> np.ndarray:
        """`[64, 64]`, smoothed."""
        factor = SIDE // _COARSE
        smooth = ndimage.gaussian_filter(self.pixels, factor / 2)
        return smooth.reshape(_COARSE, factor, _COARSE, factor).mean(axis=(1, 3))


def register(reference: Registered, target: Registered, points: Tensor) -> Tensor:
    """Carry points of `reference` over to `target`.

    Args:
        reference: The image that the points are in.
        target: Any other.
        points: Pixel indices `[P, 2]` x, y in `reference`.

    Returns:
        Pixel indices `[P, 2]` in `target`.

    Raises:
        ImportError: SimpleITK is missing.
    """
    places = (points.numpy().astype(float) + 0.5) / reference.size * SIDE
    found = _convex(reference, target, _affine(reference, target), places)
    return tensor(found / SIDE * target.size - 0.5, dtype=points.dtype)


def _locally_normalised(pixels: np.ndarray) -> np.ndarray:
    """Intensities `[SIDE, SIDE]` by their surroundings' mean and deviation, then by the picture's."""
    sigma = SIDE / 12
    mean = ndimage.gaussian_filter(pixels, sigma)
    variance = ndimage.gaussian_filter(pixels**2, sigma) - mean**2
    local = (pixels - mean) / (np.sqrt(variance.clip(min=0)) + 0.03)
    return ((local - local.mean()) / (local.std() + 1e-6)).astype(np.float32)


def _affine(reference: Registered, target: Registered) -> Any:
    """SimpleITK's affine map of places by mutual information, from the searched scales and shift."""
    try:
        import SimpleITK as sitk  # noqa: N813
    except ImportError as error:
        raise ImportError("registration needs SimpleITK: pip install eden_hf[registration]") from error
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    start = sitk.AffineTransform(2)
    scale, shift = _search(reference, target)
    start.SetCenter((SIDE / 2, SIDE / 2))
    start.SetMatrix((scale[0], 0, 0, scale[1]))
    start.SetTranslation(shift)
    within = np.zeros((SIDE, SIDE), np.uint8)  # without borders and the letters on them
    edge = int(0.06 * SIDE)
    within[edge:-edge, edge:-edge] = 1
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(50)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.25, seed=1)
    method.SetMetricFixedMask(_as_sitk(sitk, within))
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(2 / 1.4, 1e-3 / 1.4, 200, 0.6, 1e-6)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([8, 4, 2, 1])
    method.SetSmoothingSigmasPerLevel([4, 2, 1, 0])
    method.SetInitialTransform(sitk.Transform(start), inPlace=False)
    return method.Execute(_as_sitk(sitk, reference.pixels), _as_sitk(sitk, target.pixels))


def _as_sitk(sitk: Any, pixels: np.ndarray) -> Any:
    """An image whose coordinates are places: the centre of the first pixel lies at 0.5."""
    image = sitk.GetImageFromArray(pixels)
    image.SetOrigin((0.5, 0.5))
    return image


def _carry(affine: Any, places: np.ndarray) -> np.ndarray:
    return np.array([affine.TransformPoint(place) for place in places.reshape(-1, 2).tolist()]).reshape(places.shape)


def _search(reference: Registered, target: Registered) -> tuple[np.ndarray, np.ndarray]:
    """Scales and shift (x, y in pixels) by which the reference's middle is most like a place of the target."""
    template = reference.coarse[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN]
    template = _unit((template - template.mean()).ravel())
    centred = np.mgrid[:_COARSE, :_COARSE] - (_COARSE - 1) / 2
    best = -np.inf, np.ones(2), np.zeros(2)
    for scale in ((x, y) for y in _SCALES for x in _SCALES if 0.8 < x / y < 1.25):
        where = [centred[0] * scale[1] + (_COARSE - 1) / 2, centred[1] * scale[0] + (_COARSE - 1) / 2]
        scaled = ndimage.map_coordinates(target.coarse, where, order=1, mode="nearest")
        inner = _COARSE - 2 * _MARGIN
        windows = np.lib.stride_tricks.sliding_window_view(scaled, (inner, inner)).reshape(
            2 * _MARGIN + 1, -1, inner**2
        )
        likeness = _unit(windows - windows.mean(axis=-1, keepdims=True)) @ template
        shifts = np.mgrid[-_MARGIN : _MARGIN + 1, -_MARGIN : _MARGIN + 1]
        likeness = likeness - 0.05 * (shifts**2).sum(axis=0) / _MARGIN**2
        y, x = np.unravel_index(likeness.argmax(), likeness.shape)
        if likeness[y, x] > best[0]:
            shift = (np.array([x, y]) - _MARGIN) * scale * (SIDE / _COARSE)
            best = likeness[y, x], np.array(scale), shift
    return best[1:]


def _convex(reference: Registered, target: Registered, affine: Any, places: np.ndarray) -> np.ndarray:
    """Places `[P, 2]` of the reference in the target: the affine map, and what a search of every node's shift adds."""
    nodes = SIDE // _NODE
    axis = (np.arange(-_REACH, nodes + _REACH) + 0.5) * _NODE
    grid = np.stack(np.meshgrid(axis, axis), axis=-1)
    moved = _unit(_between_nodes(target.patches, _carry(affine, grid)))
    steps = np.arange(-_REACH, _REACH + 1)
    shifts = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    likeness = [
        (reference.patches * moved[_REACH + y : _REACH + y + nodes, _REACH + x : _REACH + x + nodes]).sum(axis=-1)
        for x, y in shifts
    ]
    cost = ndimage.uniform_filter(1 - np.stack(likeness), (0, 3, 3), mode="nearest")
    field = np.zeros((nodes, nodes, 2))
    for coupling in _COUPLINGS:
        energy = cost + 3 * coupling * ((shifts[:, None, None] - field) ** 2).sum(axis=-1)
        weights = np.exp(-(energy - energy.min(axis=0)) / 0.02)
        field = np.tensordot(weights / weights.sum(axis=0), shifts, (0, 0))
        field = ndimage.gaussian_filter(field, (1.5, 1.5, 0), mode="nearest")
    return _carry(affine, places + _NODE * _between_nodes(field, places))


def _between_nodes(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Bilinear values `[..., C]` of nodes `[n, n, C]` at `places` `[..., 2]`."""
    at = (places / _NODE - 0.5).clip(0, len(values) - 1.001)
    x, y = np.moveaxis(at.astype(int), -1, 0)
    right, down = np.moveaxis(at % 1, -1, 0)[..., None]
    upper = values[y, x] * (1 - right) + values[y, x + 1] * right
    lower = values[y + 1, x] * (1 - right) + values[y + 1, x + 1] * right
    return upper * (1 - down) + lower * down


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / (np.linalg.norm(vectors, axis=-1, keepdims=True) + 1e-6)
