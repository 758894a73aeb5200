"""How alike two images look, whatever their size: a perceptual comparison that bears cutting and mirroring.

As perceptual hashes do, by the cosines of a small grey picture (pHash; C. Zauner, Implementation and benchmarking of
perceptual image hash functions, 2010), but kept as numbers and not as bits, since radiographs are so much alike, and
of windows of the picture as well, since a picture that was cut is a window of the whole one. What coarse cosines
propose, fine ones confirm, the window fitted to them.
"""

from collections.abc import Iterator
from functools import cache
from itertools import product

import numpy as np
import PIL.Image

SIDE = 64  # of a small picture
_PROPOSED = 0.8  # cosine of the coarse descriptors
_MOST = 8  # images that are proposed for one
_COARSE, _FINE = 10, 32  # cosines a side
_LOWEST_FINE = 4  # frequency; all radiographs share what is below
_CUTS = ((0.0, 1.0), (0.0, 0.94), (0.03, 0.97), (0.06, 1.0), (0.06, 0.94))  # windows of a side, as shares of it
_WINDOWS = tuple((*across, *down) for across, down in product(_CUTS, _CUTS))
_MOST_CUT = 0.12  # of an end of a side
_STEPS = (0.02, 0.01, 0.005)  # by which the ends of a window are fitted
_PIECE = 1024  # images compared at once

Window = tuple[float, float, float, float]  # left, right, top, bottom, as shares of the picture
_WHOLE: Window = _WINDOWS[0]


def small_picture(image: PIL.Image.Image) -> np.ndarray:
    """The grey picture of `SIDE` pixels a side, float32, that is compared; its aspect ratio is not kept."""
    return np.asarray(image.convert("L").resize((SIDE, SIDE), PIL.Image.Resampling.BOX), np.float32)


def alike(first: np.ndarray, second: np.ndarray) -> Iterator[tuple[tuple[int, int], float]]:
    """For each picture of `second` the few of `first` that look most like it, with their similarity.

    Args:
        first, second: `[N, SIDE, SIDE]`, as of `small_picture`.

    Yields:
        Places in `first` and `second`, and the cosine of their fine descriptors under the best window of one of them,
        one of them mirrored if that fits better. Pictures of one value are like nothing.
    """
    scores, places, ways = _proposals(first, second)
    for other, place in zip(*np.nonzero(scores >= _PROPOSED), strict=True):
        whole, (mirrored, cut_first) = first[places[other, place]], divmod(ways[other, place], 2)
        turned = second[other, :, ::-1] if mirrored else second[other]
        pair = (whole, turned) if cut_first else (turned, whole)
        yield (int(places[other, place]), int(other)), _fitted(*pair)


def _proposals(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of `second` its likest in `first`: cosines, places, and ways (2 mirrored + 1 if `first` is cut)."""
    mirror_images = (second, second[..., ::-1])
    wholes = [_coarse(pictures, _WHOLE) for pictures in mirror_images]
    windows = [[_coarse(pictures, window) for window in _WINDOWS] for pictures in mirror_images]
    best: np.ndarray = np.empty((len(second), 0), np.float32)
    places: np.ndarray = np.empty((len(second), 0), np.int64)
    ways: np.ndarray = np.empty((len(second), 0), np.int64)
    for start in range(0, len(first), _PIECE):
        piece = first[start : start + _PIECE]
        whole, cut = _coarse(piece, _WHOLE), [_coarse(piece, window) for window in _WINDOWS]
        cosines = []
        for own, own_cut in zip(wholes, windows, strict=True):
            cosines += [_highest((part, whole) for part in own_cut), _highest((own, part) for part in cut)]
        own_places = np.broadcast_to(np.arange(start, start + len(piece)), (len(second), len(piece)))
        new = (np.max(cosines, axis=0), own_places, np.argmax(cosines, axis=0))
        tables = [np.hstack(pair) for pair in zip((best, places, ways), new, strict=True)]
        order = np.argsort(-tables[0], axis=1)[:, :_MOST]
        best, places, ways = (np.take_along_axis(table, order, axis=1) for table in tables)
    return best, places, ways


def _highest(pairs: Iterator[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The highest of several tables of cosines."""
    highest: np.ndarray | None = None
    for left, right in pairs:
        cosines = left @ right.T
        highest = cosines if highest is None else np.maximum(highest, cosines, out=highest)
    assert highest is not None
    return highest


def _fitted(whole: np.ndarray, part: np.ndarray) -> float:
    """The highest cosine of `part` with a window of `whole`."""
    wanted = _fine(part, _WHOLE)
    best, window = max((float(_fine(whole, window) @ wanted), window) for window in _WINDOWS)
    for step in _STEPS:
        moved = True
        while moved:
            moved = False
            for candidate in _moved(window, step):
                if (cosine := float(_fine(whole, candidate) @ wanted)) > best + 1e-6:
                    best, window, moved = cosine, candidate, True
    return best


def _moved(window: Window, step: float) -> Iterator[Window]:
    """Windows with one end moved by a step, within the picture and no smaller than may be."""
    for end, change in product(range(4), (-step, step)):
        ends = list(window)
        ends[end] = round(ends[end] + change, 4)
        if 0 <= (1 - ends[end] if end % 2 else ends[end]) <= _MOST_CUT:
            yield ends[0], ends[1], ends[2], ends[3]


def _coarse(pictures: np.ndarray, window: Window) -> np.ndarray:
    return _cosines(pictures, window, _COARSE, lowest=1)


def _fine(pictures: np.ndarray, window: Window) -> np.ndarray:
    return _cosines(pictures, window, _FINE, lowest=_LOWEST_FINE)


def _cosines(pictures: np.ndarray, window: Window, count: int, lowest: int) -> np.ndarray:
    """Cosine transforms of a window of pictures `[..., SIDE, SIDE]`, as unit vectors `[..., count ** 2]`.

    Each is weighted by its frequency, as of pictures the lowest are the strongest; those below `lowest` are zero.
    """
    left, right, top, bottom = window
    found = _waves(top, bottom, count) @ pictures @ _waves(left, right, count).T
    frequency = np.hypot(*np.mgrid[:count, :count]).astype(np.float32)
    vectors = (found * np.where(frequency >= lowest, frequency, 0)).reshape(*pictures.shape[:-2], -1)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-3)


@cache
def _waves(start: float, end: float, count: int) -> np.ndarray:
    """The first cosines of the window from `start` to `end` of a side, over its pixels `[count, SIDE]`."""
    edges = np.clip(np.arange(SIDE + 1) / SIDE, start, end)
    place = ((edges[1:] + edges[:-1]) / 2 - start) / (end - start)
    return (np.cos(np.pi * np.arange(count)[:, None] * place) * np.diff(edges) / (end - start)).astype(np.float32)
