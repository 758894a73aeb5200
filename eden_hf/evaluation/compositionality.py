"""Compositionality (arXiv 2309.15358, sections 2 and 4): the embedding of a whole is the aggregate of its parts'.

Random wholes are cut into 2 parts side by side, 3 stacked or 4 quadrants, and E(whole) is compared with the mean of
E(parts). An encoder to which all images are alike would look perfect, so the same wholes are compared with the parts
of all other patients' wholes as well: what counts is the margin between the two.

Cosines of one architecture spread wider than those of another with random weights already, so margins and AUROCs of
different architectures are not to be set beside each other: compare an encoder with its own untrained trunk.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from eden_hf.anatomy import Box
from eden_hf.data.landmarks import LandmarkedImage, patients_of
from eden_hf.encoders import Encoder, embed
from eden_hf.evaluation.results import Evaluation
from eden_hf.evaluation.statistics import Estimate, Measured, by_patient, estimates, own_against_other
from eden_hf.plots import plot_densities

#: Columns and rows that a whole is cut into.
CUTS = {"2 side by side": (2, 1), "3 stacked": (1, 3), "4 quadrants": (2, 2)}


def compositionality(
    encoder: Encoder,
    images: Sequence[LandmarkedImage],
    *,
    wholes: int = 16,
    scale: tuple[float, float] = (0.3, 0.7),
    seed: int = 0,
    batch_size: int = 64,
) -> Evaluation:
    """How near the embedding of a whole is to the mean of its parts' embeddings.

    With c(w, p) = cos(E(w), mean of E(p_i)) over all random wholes w and cuts p:

    - `own`: mean of c for a whole and its own parts; `own_std`: its standard deviation.
    - `others`, `others_std`: the same against the parts of other patients' wholes, in all pairs of patients.
    - `margin`: own - others. Near 0 for a collapsed encoder, however high `own` is.
    - `auroc`: probability that own parts fit better than another patient's. Chance 0.5.
    - `own` and `margin` for each of the three cuts.

    Good is a high `own` with a high `margin`.

    Args:
        encoder: As in `embed`.
        images: Of at least two patients; landmarks are not used.
        wholes: Random wholes of each image.
        scale: Smallest and largest side of a whole, as a share of the image's smaller side.
        seed: Of the wholes and of the bootstrap.
        batch_size: Windows in one forward pass.

    Raises:
        ValueError: there are fewer than two patients.
    """
    patients = patients_of(images)
    rng = np.random.default_rng(seed)
    pictures = [item.image for item in images]
    boxes = [[random_window(picture.size, scale, rng) for _ in range(wholes)] for picture in pictures]
    windows = (picture.crop(box) for picture, own in zip(pictures, boxes, strict=True) for box in own)
    whole = embed(encoder, windows, batch_size).unflatten(0, (-1, wholes))  # [N, wholes, C]
    means = [_mean_of_parts(encoder, pictures, boxes, *cut, batch_size) for cut in CUTS.values()]
    parts = torch.stack(means, dim=1)  # [N, cuts, wholes, C]
    own = composition_cosines(whole[:, None], parts).numpy()  # [N, cuts, wholes]
    others = np.stack([composition_cosines(one[None, None], parts).numpy() for one in whole])  # [N, N, cuts, wholes]
    measured = _measured(own, others, patients)
    values = estimates(measured, seed)
    for name, scores, who in (("own", own, None), ("others", others, patients)):
        squares = by_patient((scores - values[name].value) ** 2, patients, who)
        values[f"{name}_std"] = _root(squares.estimate(seed))
    apart = np.asarray(patients)[:, None] != np.asarray(patients)
    drawn = rng.choice(others[apart].ravel(), own[:, 0].size)
    figure = plot_densities(
        {f"own parts, {name}": own[:, index].ravel() for index, name in enumerate(CUTS)}
        | {"another patient's parts": drawn},
        "cosine of E(whole) and the mean of E(parts)",
    )
    return Evaluation("compositionality", values, {"wholes": wholes, "scale": list(scale)}, figure, measured)


def _measured(own: np.ndarray, others: np.ndarray, patients: Sequence[str]) -> dict[str, Measured]:
    """Measures from the cosines with own parts `[N, cuts, wholes]` and with all others' `[N, N, cuts, wholes]`."""
    flat, margins = own.reshape(len(own), -1), own[:, None] - others
    auroc = np.stack([own_against_other(a[None], b.reshape(len(b), -1)) for a, b in zip(flat, others, strict=True)])
    measured = {
        "own": by_patient(own, patients),
        "others": by_patient(others, patients, patients),
        "margin": by_patient(margins, patients, patients),
        "auroc": by_patient(auroc, patients, patients),
    }
    for index, name in enumerate(CUTS):
        measured[f"own, {name}"] = by_patient(own[:, index], patients)
        measured[f"margin, {name}"] = by_patient(margins[:, :, index], patients, patients)
    return measured


def _root(squares: Estimate) -> Estimate:
    """The standard deviation of which this is the square."""
    value, low, high = np.sqrt(np.maximum(squares[:3], 0)).tolist()  # of few patients the interval may begin below
    return Estimate(value, low, high, squares.n)


def composition_cosines(whole: Tensor, mean_of_parts: Tensor) -> Tensor:
    """Cosine `[...]` of embeddings of wholes and the means of their parts' unit embeddings, both `[..., C]`."""
    return F.cosine_similarity(whole, mean_of_parts, dim=-1)


def random_window(size: tuple[int, int], scale: tuple[float, float], rng: np.random.Generator) -> Box:
    """A square window of an image of `size` (width, height), its side a share of the smaller one's, at any place."""
    side = max(2, round(rng.uniform(*scale) * min(size)))
    x, y = (int(rng.integers(length - side + 1)) for length in size)
    return Box(x, y, x + side, y + side)


def _mean_of_parts(
    encoder: Encoder,
    pictures: Sequence[Image.Image],
    boxes: Sequence[Sequence[Box]],
    columns: int,
    rows: int,
    batch_size: int,
) -> Tensor:
    """Means `[N, wholes, C]` of the unit embeddings of the parts that each whole is cut into."""

    def parts() -> Iterator[Image.Image]:
        for picture, own in zip(pictures, boxes, strict=True):
            for box in own:
                yield from (picture.crop(part) for part in _cut(box, columns, rows))

    vectors = embed(encoder, parts(), batch_size).unflatten(0, (len(pictures), -1, columns * rows))
    return vectors.mean(dim=2)


def _cut(box: Box, columns: int, rows: int) -> list[tuple[int, int, int, int]]:
    """The parts of a window, row by row, in whole pixels."""
    xs = [box.x0 + box.width * i // columns for i in range(columns + 1)]
    ys = [box.y0 + box.height * i // rows for i in range(rows + 1)]
    return [(xs[i], ys[j], xs[i + 1], ys[j + 1]) for j in range(rows) for i in range(columns)]
