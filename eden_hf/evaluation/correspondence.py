"""Landmarks found in other patients from a few annotated references, beside what needs no learning.

Points are `(x, y)` pixel indices, float: (0, 0) is the centre of the top left pixel. From SCR's landmarks in [0, 1]
they are `x * width - 0.5`.
"""

import logging
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm.auto import tqdm

from eden_hf.data.landmarks import LandmarkedImage, landmark_pixels, patients_of, shared_landmarks
from eden_hf.data.references import Reference
from eden_hf.encoders import Encoder
from eden_hf.evaluation.pixels import pixel_encoder
from eden_hf.evaluation.registration import Registered, register
from eden_hf.evaluation.results import Evaluation
from eden_hf.evaluation.statistics import Measured, by_patient, estimates
from eden_hf.matching import AnatomyMatcher, MatcherArguments, embed_image
from eden_hf.plots import plot_correspondence

logger = logging.getLogger(__name__)

#: Millimetres along a side of an SCR image: 2048 pixels of 0.175 mm.
SCR_SIDE_MM = 358.4
#: Distances in mm within which a found landmark counts.
WITHIN_MM = (5, 10, 20)
#: Numbers of annotated references.
SHOTS = (1, 5, 20)

Control = Literal["pixels", "registration"]
#: Points found from each set of references in each image, `[sets, images, landmarks, 2]`; NaN where none were sought.
Found = Tensor


def correspondence(
    encoder: Encoder,
    images: Sequence[LandmarkedImage],
    *,
    shots: Sequence[int] = SHOTS,
    side_mm: float = SCR_SIDE_MM,
    controls: dict[str, dict[int, Found]] | None = None,
    seed: int = 0,
) -> Evaluation:
    """Landmarks found in all other patients from k annotated references, by `AnatomyMatcher`.

    Each patient is in one set of k references, drawn at random (the few that are left over are in none), and the
    points of a set are looked for in all images of other patients: for k = 1 these are all pairs.

    - `mean_radial_error_mm` (lower is better), and of each landmark;
    - `within_5_mm`, `within_10_mm`, `within_20_mm`: shares of landmarks (higher is better);
    - `same_place_mm`: the error of copying the references' mean coordinates. Radiographs are aligned when they are
      taken, so a search that does not beat this knows less than the collimator;
    - `pixels_mm`: of the same search on locally normalised patches of pixels instead of embeddings;
    - `registration_mm`: of classical registration (median over the references), in pairs of a set and a target in
      which no patient comes twice;
    - `gain_over_...`: how much smaller the error is than the control's, in the same pairs.

    Those of five references are named `5_references_...`, and so on. Patients are resampled on both sides of a pair.

    Args:
        encoder: As for `AnatomyMatcher`.
        images: Of at least two patients.
        shots: Numbers of references; those of which there are no two sets are left out with a warning.
        side_mm: Millimetres along an image's width.
        controls: Of `find_controls`, of the same images, shots and seed.
        seed: Of the sets of references and of the bootstrap.

    Raises:
        ValueError: there are too few images or landmarks.
    """
    names, patients = shared_landmarks(images), patients_of(images)
    shots = possible_shots(len(set(patients)), shots)
    found = find_landmarks(encoder, images, shots, seed)
    measured: dict[str, Measured] = {}
    for k in shots:
        compared = {name: points[k] for name, points in (controls or {}).items()}
        values = _values(images, k, found[k], compared, side_mm, seed)
        if k == shots[0]:
            errors = errors_mm(images, found[k], side_mm)
            values |= {f"{name}_mm": errors[..., i] for i, name in enumerate(names)}
        sets = patients if k == 1 else [f"references {index}" for index in range(len(found[k]))]
        measured |= {_of(k) + name: by_patient(of.T, patients, sets) for name, of in values.items()}
    few = shots[0]
    settings = {"shots": shots, "side_mm": side_mm, "landmarks": names, "pairs": _pairs(found)}
    settings["control_pairs"] = {name: _pairs(points) for name, points in (controls or {}).items()}
    figure = _figure(images, names, found[few])
    return Evaluation("correspondence", estimates(measured, seed), settings, figure, measured)


def _of(k: int) -> str:
    """What begins the names of values of k references."""
    return "" if k == 1 else f"{k}_references_"


def _pairs(found: dict[int, Found]) -> list[int]:
    """How many pairs of a set and an image were tried, for each number of references."""
    return [int(points.isfinite().all(dim=-1).all(dim=-1).sum()) for points in found.values()]


def _figure(images: Sequence[LandmarkedImage], names: Sequence[str], found: Found) -> Figure:
    """What the first set's points were found as in the first image outside it, beside the first of the set."""
    target = int(found[0].isfinite().flatten(1).all(dim=1).nonzero()[0])
    source = int(found[0].isnan().flatten(1).any(dim=1).nonzero()[0])
    return plot_correspondence(
        images[source].image, images[target].image,
        landmark_pixels(images[source], names), found[0, target], landmark_pixels(images[target], names),
    )  # fmt: skip


def _values(
    images: Sequence[LandmarkedImage], k: int, found: Found, controls: dict[str, Found], side_mm: float, seed: int
) -> dict[str, np.ndarray]:
    """Errors, shares, controls and gains over them `[sets, images]` of one number of references."""
    own = errors_mm(images, found, side_mm)
    values = {name: scores.mean(axis=-1) for name, scores in landmark_scores(own).items()}
    copied = copied_landmarks(images, reference_sets(patients_of(images), k, seed))
    for name, points in {"same_place": copied, **controls}.items():
        theirs = errors_mm(images, points, side_mm).mean(axis=-1)
        values |= {f"{name}_mm": theirs, f"gain_over_{name}_mm": theirs - own.mean(axis=-1)}
    return values


def possible_shots(patients: int, shots: Sequence[int]) -> list[int]:
    """Those numbers of references of which so many patients make two sets.

    Raises:
        ValueError: there is none.
    """
    possible = [k for k in shots if 1 <= k <= patients // 2]
    if not possible:
        raise ValueError(f"{patients} patients make no two sets of {', '.join(map(str, shots))} references")
    if left_out := [k for k in shots if k not in possible]:
        too_many = ", ".join(map(str, left_out))
        logger.warning("%d patients make no two sets of references for k = %s", patients, too_many)
    return possible


def reference_sets(patients: Sequence[str], k: int, seed: int = 0) -> list[list[int]]:
    """Sets of k images by their places: each image for k = 1, else one image of each patient, dealt at random."""
    if k == 1:
        return [[index] for index in range(len(patients))]
    order = np.random.default_rng([seed, k]).permutation(first_images(patients))
    return order[: len(order) // k * k].reshape(-1, k).tolist()


def first_images(patients: Sequence[str]) -> list[int]:
    """The place of each patient's first image."""
    return sorted({name: index for index, name in reversed(list(enumerate(patients)))}.values())


def outside(patients: Sequence[str], members: Sequence[int]) -> np.ndarray:
    """Whether each image is of a patient who has none among `members`, `[N]` bool."""
    inside = {patients[index] for index in members}
    return np.array([name not in inside for name in patients])


def as_reference(item: LandmarkedImage, names: Sequence[str]) -> Reference:
    """A landmarked image as a reference for its landmarks `names`."""
    x_y = landmark_pixels(item, names).tolist()
    return Reference(
        item.image, item.source_id, points={name: (x, y) for name, (x, y) in zip(names, x_y, strict=True)}
    )


def single_references(
    encoder: Encoder,
    images: Sequence[LandmarkedImage],
    names: Sequence[str],
    count: int,
    rng: np.random.Generator,
) -> tuple[list[AnatomyMatcher], list[LandmarkedImage]]:
    """A matcher for each of `count` patients drawn at random, for the landmarks `names`; and the others, its targets.

    Raises:
        ValueError: no target is left.
    """
    patients = patients_of(images)
    drawn = rng.permutation(first_images(patients))[:count].tolist()
    targets = np.flatnonzero(outside(patients, drawn)).tolist()
    if not targets:
        raise ValueError(f"{count} references leave no targets of {len(set(patients))} patients")
    return [AnatomyMatcher(encoder, [as_reference(images[i], names)]) for i in drawn], [images[i] for i in targets]


def find_landmarks(
    encoder: Encoder,
    images: Sequence[LandmarkedImage],
    shots: Sequence[int],
    seed: int = 0,
    arguments: MatcherArguments | None = None,
) -> dict[int, Found]:
    """The shared landmarks found from each set of `reference_sets` in all other patients, for each k of `shots`.

    Every image is embedded once, and its smooth map from another is made once.
    """
    names, patients = shared_landmarks(images), patients_of(images)
    embedded = [embed_image(encoder, item.image, arguments) for item in images]
    references = [as_reference(item, names) for item in images]
    found = {}
    for k in shots:
        sets = reference_sets(patients, k, seed)
        found[k] = torch.full((len(sets), len(images), len(names), 2), torch.nan)
        for index, members in enumerate(tqdm(sets, desc=f"{encoder.name}, k = {k}", unit="set", leave=False)):
            at_hand = [embedded[i] for i in members]
            matcher = AnatomyMatcher(encoder, [references[i] for i in members], arguments, embedded=at_hand)
            for target in np.flatnonzero(outside(patients, members)).tolist():
                points = matcher.find(embedded[target])
                found[k][index, target] = torch.tensor([points[name][:2] for name in names])
    return found


def copied_landmarks(images: Sequence[LandmarkedImage], sets: Sequence[Sequence[int]]) -> Found:
    """The control that copies the mean coordinates of each set's landmarks, as shares of the sides."""
    names, patients = shared_landmarks(images), patients_of(images)
    sizes = torch.tensor([item.image.size for item in images]).float()
    shares = torch.stack([landmark_pixels(item, names) + 0.5 for item in images]) / sizes[:, None]
    means = torch.stack([shares[members].mean(dim=0) for members in map(list, sets)])
    copied = means[:, None] * sizes[:, None] - 0.5  # [sets, images, landmarks, 2]
    for index, members in enumerate(sets):
        copied[index, torch.from_numpy(~outside(patients, members))] = torch.nan
    return copied


def find_controls(
    images: Sequence[LandmarkedImage], shots: Sequence[int] = SHOTS, controls: Sequence[Control] = (), seed: int = 0
) -> dict[str, dict[int, Found]]:
    """What `controls` find: `pixels` (the same search) and `registration` (in pairs without a common patient).

    Raises:
        ValueError: there is no such control.
        ImportError: SimpleITK is missing.
    """
    if unknown := set(controls).difference(("pixels", "registration")):
        raise ValueError(f"unknown controls {sorted(unknown)}; there are pixels and registration")
    shots, found = possible_shots(len(set(patients_of(images))), shots), {}
    if "pixels" in controls:
        found["pixels"] = find_landmarks(pixel_encoder(), images, shots, seed)
    if "registration" in controls:
        found["registration"] = {k: _registered(images, k, seed) for k in shots}
    return found


def _registered(images: Sequence[LandmarkedImage], k: int, seed: int) -> Found:
    """Landmarks by registration: the first sets, each with one image of the others, so that no patient comes twice."""
    names, patients = shared_landmarks(images), patients_of(images)
    sets = reference_sets(patients, k, seed)
    rows = len(sets)
    if k == 1:
        sets = [sets[i] for i in np.random.default_rng([seed, k]).permutation(first_images(patients))]
    registered = [Registered(item.image) for item in images]
    number = len(sets) * k // (k + 1)
    targets = [member for members in sets[number:] for member in members][:number]
    found = torch.full((rows, len(images), len(names), 2), torch.nan)
    for index, target in enumerate(tqdm(targets, desc=f"registration, k = {k}", unit="target", leave=False)):
        points = [register(registered[i], registered[target], landmark_pixels(images[i], names)) for i in sets[index]]
        found[sets[index][0] if k == 1 else index, target] = torch.stack(points).quantile(0.5, dim=0)
    return found


def errors_mm(images: Sequence[LandmarkedImage], found: Found, side_mm: float) -> np.ndarray:
    """Radial errors `[sets, images, landmarks]` in mm; NaN where nothing was looked for."""
    names = shared_landmarks(images)
    true = torch.stack([landmark_pixels(item, names) for item in images])
    mm = torch.tensor([side_mm / item.image.width for item in images])
    return ((found - true).norm(dim=-1) * mm[:, None]).numpy()


def landmark_scores(errors: np.ndarray) -> dict[str, np.ndarray]:
    """Radial errors `[...]` in mm as `mean_radial_error_mm` (themselves) and 0 or 1 for being within each distance."""
    within = {f"within_{limit}_mm": np.where(np.isnan(errors), np.nan, errors <= limit) for limit in WITHIN_MM}
    return {"mean_radial_error_mm": errors, **within}
