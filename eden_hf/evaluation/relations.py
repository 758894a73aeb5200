"""How embeddings follow the relations of anatomy: parts taken away, places between and beyond, sides and scales.

Five properties that the paper (arXiv 2309.15358) shows as pictures, here as numbers. Each compares a prediction made
by plain arithmetic on embeddings with the embedding it should hit (`own`), and with the same embedding of another
patient or another structure (`others`). The `margin`, own - others, is near 0 for a collapsed encoder, and
the `auroc` of telling own from others is then 0.5.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from eden_hf.data.landmarks import LandmarkedImage, mirror_of, patients_of
from eden_hf.encoders import Encoder, embed
from eden_hf.evaluation.compositionality import random_window
from eden_hf.evaluation.locality import landmark_embeddings
from eden_hf.evaluation.results import Evaluation
from eden_hf.evaluation.statistics import TIED, Measured, by_patient, estimates, own_against_other
from eden_hf.plots import plot_densities

#: How much larger the second window of a landmark is, for consistency over scales.
ZOOM = 1.5


def relations(
    encoder: Encoder,
    images: Sequence[LandmarkedImage],
    *,
    window: float = 0.25,
    wholes: int = 16,
    seed: int = 0,
    batch_size: int = 64,
) -> Evaluation:
    """Decomposability, interpolation, extrapolation, symmetry and scale consistency of an encoder.

    With E a unit embedding and cosines throughout:

    - *decomposability*: 2 E(whole) - E(one half) against E(other half).
    - *interpolation*: E(left) + E(right) of two neighbouring windows against E(the window half way between).
    - *extrapolation*: 2 E(middle) - E(left) against E(right), three windows half a window apart.
    - *symmetry*: E(mirrored patch of a left landmark) against E(patch of its right mirror landmark); others are the
      patches of the same patient's other right landmarks.
    - *scale*: E(patch of a landmark) against E(patch 1.5 times as large, of the same landmark in another patient);
      others are that patient's other landmarks.

    The first three are compared with the same windows' targets of all other patients at other places; scale with all
    other patients. Each gives `own` (under its plain name), `margin` and `auroc`; good are a high `own` and a high
    `margin` together. Those of different architectures are not to be set beside each other (see `compositionality`).

    - `gain` of the first three: own - the target's cosine with what is known as it stands (whole; left and right, the
      mean of both cosines; middle). Overlapping windows are alike without any arithmetic: above 0 it has helped.
    - `retrieval` of the last two: share of patches that are nearer to their own target than to any of the others.
      Near 1 is good; chance is 1 / number of landmarks (of pairs, for symmetry).

    Args:
        encoder: As in `embed`.
        images: Of at least two patients, with left and right landmarks for symmetry (left out where there are none).
        window: Side of the patches, as a share of the image's smaller side.
        wholes: Random places of each image.
        seed: Of the places and of the bootstrap.
        batch_size: Patches in one forward pass.
    """
    rng, patients = np.random.default_rng(seed), patients_of(images)
    found, gains = _of_neighbouring_windows(encoder, images, window, wholes, rng, batch_size)
    apart = np.asarray(patients)[:, None] != np.asarray(patients)
    measured: dict[str, Measured] = {}
    shown: dict[str, np.ndarray] = {}
    for name, (own, others) in found.items():
        rows = [_compared(a[None], b) for a, b in zip(own, others, strict=True)]
        measured[name] = by_patient(own, patients)
        measured |= {f"{name} {of}": by_patient(np.stack([r[of] for r in rows]), patients, patients) for of in rows[0]}
        measured[f"{name} gain"] = by_patient(gains[name], patients)
        shown |= {f"{name}, own": own.ravel(), f"{name}, others": rng.choice(others[apart].ravel(), own.size)}
    patches, names = landmark_embeddings(encoder, images, window=window, batch_size=batch_size)
    sides = [(name, mirror) for name in names if (mirror := mirror_of(name)) in names and name < mirror]
    if len(sides) > 1:
        flipped = [_mirrored(item) for item in images]
        left, right = ([names.index(pair[side]) for pair in sides] for side in (0, 1))
        mirrored_patches, _ = landmark_embeddings(encoder, flipped, window=window, batch_size=batch_size)
        own, others = _matched(mirrored_patches[:, left], patches[:, right])
        scores = {"": own.mean(axis=1)} | _compared(own, others) | {"retrieval": _retrieved(own, others)}
        measured |= {f"symmetry {of}".strip(): by_patient(values, patients) for of, values in scores.items()}
        shown |= {"symmetry, own": own.ravel(), "symmetry, others": others.ravel()}
    larger, _ = landmark_embeddings(encoder, images, window=ZOOM * window, batch_size=batch_size)
    rows = []
    for one in patches:
        own, others = _matched(one.expand_as(larger), larger)
        rows.append({"": own.mean(axis=1)} | _compared(own, others) | {"retrieval": _retrieved(own, others)})
    measured |= {
        f"scale {of}".strip(): by_patient(np.stack([row[of] for row in rows]), patients, patients) for of in rows[0]
    }
    shown |= {"scale, own": own.ravel(), "scale, others": others.ravel()}  # of the last image with all
    figure = plot_densities(shown, "cosine of prediction and embedding")
    settings = {"window": window, "wholes": wholes, "zoom": ZOOM, "landmarks": names}
    return Evaluation("relations", estimates(measured, seed), settings, figure, measured)


def _compared(own: np.ndarray, others: np.ndarray) -> dict[str, np.ndarray]:
    """Margin and AUROC `[n]` of own cosines `[n, a]` (or `[1, a]`) over others' `[n, b]`."""
    return {"margin": own.mean(axis=1) - others.mean(axis=1), "auroc": own_against_other(own, others)}


def _retrieved(own: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Share `[n]` of `[n, a]` own cosines above all of their others, of `[n, a * b]`; equal ones share."""
    apart = own[..., None] - others.reshape(*own.shape, -1)
    tied = (np.abs(apart) <= TIED).sum(axis=2)
    return np.where((apart >= -TIED).all(axis=2), 1 / (1 + tied), 0).mean(axis=1)


def _of_neighbouring_windows(
    encoder: Encoder,
    images: Sequence[LandmarkedImage],
    window: float,
    wholes: int,
    rng: np.random.Generator,
    batch_size: int,
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], dict[str, np.ndarray]]:
    """Decomposability, interpolation and extrapolation: own cosines and gains `[N, wholes]`, others' `[N, N, wholes]`.

    A whole is two windows wide: its left half, its middle and its right half are windows half a window apart.
    """

    def windows() -> Iterator[Image.Image]:
        for item in images:
            for _ in range(wholes):
                x, y, x1, y1 = random_window(item.image.size, (2 * window, 2 * window), rng)
                quarter, bottom = (x1 - x) // 4, y + (y1 - y) // 2
                yield item.image.crop((x, y, x + 4 * quarter, bottom))
                for start in (x, x + quarter, x + 2 * quarter):
                    yield item.image.crop((start, y, start + 2 * quarter, bottom))

    vectors = embed(encoder, windows(), batch_size).unflatten(0, (len(images), wholes, 4))
    whole, left, middle, right = vectors.unbind(dim=2)  # [N, wholes, C] each
    predicted = {  # guess, target, and what is known as it stands
        "decomposability": (2 * whole - left, right, (whole,)),
        "interpolation": (left + right, middle, (left, right)),
        "extrapolation": (2 * middle - left, right, (middle,)),
    }
    found, gains = {}, {}
    for name, (guess, target, known) in predicted.items():
        own = cosines(guess.numpy(), target.numpy())
        found[name] = own, np.stack([cosines(one[None].numpy(), target.numpy()) for one in guess])
        gains[name] = own - np.mean([cosines(vector.numpy(), target.numpy()) for vector in known], axis=0)
    return found, gains


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine `[...]` of vectors `[..., C]`."""
    return F.cosine_similarity(torch.from_numpy(a), torch.from_numpy(b), dim=-1).numpy()


def _mirrored(item: LandmarkedImage) -> LandmarkedImage:
    """The image flipped; its landmarks keep their names and move with the picture."""
    landmarks = {name: (1 - x, y) for name, (x, y) in item.landmarks.items()}
    return item._replace(image=ImageOps.mirror(item.image), landmarks=landmarks)


def _matched(queries: Tensor, targets: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of `[N, L, C]` with their own landmark's target `[N, L]`, and with the others' `[N, L * (L - 1)]`."""
    similarity = torch.einsum("nlc,nkc->nlk", queries, targets)
    own = torch.eye(queries.shape[1], dtype=torch.bool).expand_as(similarity)
    return similarity[own].view(len(queries), -1).numpy(), similarity[~own].view(len(queries), -1).numpy()
