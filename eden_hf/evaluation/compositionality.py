"""Compositionality (arXiv 2309.15358, sections 2 and 4): the embedding of a whole is the aggregate of its parts'.

Random wholes are cut into 2 parts side by side, 3 stacked or 4 quadrants, and E(whole) is compared with the mean of
E(parts). An encoder to which all images are alike would look perfect, so the same wholes are compared with the parts
of other patients' wholes as well: what counts is the margin between the two.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from eden_hf.anatomy import Box
from eden_hf.data.landmarks import LandmarkedImage
from eden_hf.encoders import Encoder, embed
from eden_hf.evaluation.results import Evaluation, estimate, other_patients, own_against_other
from eden_hf.plots import plot_densities

#: Columns and rows that a whole is cut into.
CUTS = {"2 side by side": (2, 1), "3 stacked": (1, 3), "4 quadrants": (2, 2)}


def compositionality(
    encoder: Encoder,
    images: Sequence[LandmarkedImage],
    *,
    wholes: int = 4,
    scale: tuple[float, float] = (0.3, 0.7),
    seed: int = 0,
    batch_size: int = 64,
) -> Evaluation:
    """How near the embedding of a whole is to the mean of its parts' embeddings.

    With c(w, p) = cos(E(w), mean of E(p_i)) over all random wholes w and cuts p:

    - `own`: mean of c for a whole and its own parts; `own_std`: its standard deviation.
    - `others`, `others_std`: the same against the parts of another patient's whole.
    - `margin`: own - others. Near 0 for a collapsed encoder, however high `own` is.
    - `auroc`: probability that own parts fit better than another patient's. Chance 0.5.
    - `own` and `margin` for each of the three cuts.

    Good is a high `own` with a high `margin`.

    Args:
        encoder: As in `embed`.
        images: At least two patients; landmarks are not used.
        wholes: Random wholes of each image.
        scale: Smallest and largest side of a whole, as a share of the image's smaller side.
        seed: Of the wholes, of which patients are compared, and of the bootstrap.
        batch_size: Windows in one forward pass.

    Raises:
        ValueError: there are fewer than two images.
    """
    if len(images) < 2:
        raise ValueError(f"patients are compared: at least 2 images are needed, got {len(images)}")
    rng = np.random.default_rng(seed)
    pictures = [item.image for item in images]
    boxes = [[random_window(picture.size, scale, rng) for _ in range(wholes)] for picture in pictures]
    windows = (picture.crop(box) for picture, own in zip(pictures, boxes, strict=True) for box in own)
    whole = embed(encoder, windows, batch_size).unflatten(0, (-1, wholes))  # [N, wholes, C]
    other = other_patients(len(images), rng)
    own_scores, other_scores = [], []
    for columns, rows in CUTS.values():
        mean = _mean_of_parts(encoder, pictures, boxes, columns, rows, batch_size)
        own_scores.append(composition_cosines(whole, mean))
        other_scores.append(composition_cosines(whole, mean[other]))
    own, others = torch.stack(own_scores, dim=1).numpy(), torch.stack(other_scores, dim=1).numpy()  # [N, cuts, wholes]
    values = {
        "own": estimate(own, seed),
        "own_std": estimate(own, seed, np.std),
        "others": estimate(others, seed),
        "others_std": estimate(others, seed, np.std),
        "margin": estimate(own - others, seed),
        "auroc": estimate([own_against_other(a, b) for a, b in zip(own, others, strict=True)], seed),
    }
    for index, name in enumerate(CUTS):
        values[f"own, {name}"] = estimate(own[:, index], seed)
        values[f"margin, {name}"] = estimate((own - others)[:, index], seed)
    figure = plot_densities(
        {f"own parts, {name}": own[:, index].ravel() for index, name in enumerate(CUTS)}
        | {"another patient's parts": others.ravel()},
        "cosine of E(whole) and the mean of E(parts)",
    )
    return Evaluation("compositionality", values, {"wholes": wholes, "scale": list(scale)}, figure)


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
