"""What disturbs the search for landmarks: pose, exposure, borders, boxes, noise, inversion."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from eden_hf.data.landmarks import LandmarkedImage, landmark_pixels, shared_landmarks
from eden_hf.encoders import Encoder
from eden_hf.evaluation.correspondence import SCR_SIDE_MM, single_references
from eden_hf.evaluation.results import Evaluation
from eden_hf.evaluation.statistics import by_patient, estimate, estimates
from eden_hf.matching import embed_image
from eden_hf.plots import plot_found

BORDER = 28 / 256  # of the side
NOISE = 0.15  # standard deviation, of the range of intensities
#: From pixels of the undisturbed picture (x, y, 1) to those of the disturbed one, `[2, 3]`.
Affine = np.ndarray


def _moved(image: Image.Image, scale: float = 1, degrees: float = 0, shift: Sequence[float] = (0, 0)) -> Affine:
    """The affine map that scales and turns about the middle, then shifts by shares of the sides."""
    angle, size = np.radians(degrees), np.array(image.size)
    matrix = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    middle = (size - 1) / 2
    return np.column_stack([matrix, middle + np.array(shift) * size - matrix @ middle])


def _pose(image: Image.Image, affine: Affine) -> Image.Image:
    """The picture moved, black where it has left."""
    inverse = np.linalg.inv(affine[:, :2])
    offset = 0.5 - inverse @ (affine[:, 2] + 0.5)  # from corners to corners: PIL counts from the edge
    data = (*inverse[0], offset[0], *inverse[1], offset[1])
    return image.transform(image.size, Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)


def _overwritten(image: Image.Image, value: int) -> Image.Image:
    """A border of 28 of 256 pixels overwritten."""
    pixels = np.array(image)
    rows, columns = (max(1, round(BORDER * side)) for side in pixels.shape[:2])
    inside = pixels[rows:-rows, columns:-columns].copy()
    pixels[:] = value
    pixels[rows:-rows, columns:-columns] = inside
    return Image.fromarray(pixels)


def _boxed(image: Image.Image) -> Image.Image:
    """A white box in the upper left corner, a fifth of the width by an eighth of the height."""
    boxed = image.copy()
    boxed.paste(255, (0, 0, image.width // 5, image.height // 8))
    return boxed


def _noisy(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    pixels = np.asarray(image) + rng.normal(0, 255 * NOISE, (image.height, image.width))
    return Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8))


def _posed(image: Image.Image, **moves: float | Sequence[float]) -> tuple[Image.Image, Affine]:
    affine = _moved(image, **moves)  # type: ignore[arg-type]
    return _pose(image, affine), affine


def _in_place(image: Image.Image) -> tuple[Image.Image, Affine]:
    return image, np.eye(2, 3)


#: Each gives a disturbed picture (mode L) and where its points went, from a picture and a source of chance.
DISTURBANCES: Mapping[str, Callable[[Image.Image, np.random.Generator], tuple[Image.Image, Affine]]] = {
    "undisturbed": lambda image, rng: _in_place(image),
    "scale": lambda image, rng: _posed(image, scale=float(np.exp(rng.uniform(np.log(0.7), np.log(1.4))))),
    "rotation": lambda image, rng: _posed(image, degrees=rng.uniform(-15, 15)),
    "shift": lambda image, rng: _posed(image, shift=rng.uniform(-0.15, 0.15, 2).tolist()),
    "gamma": lambda image, rng: _in_place(image.point([round(255 * (v / 255) ** 2.5) for v in range(256)])),
    "white_box": lambda image, rng: _in_place(_boxed(image)),
    "black_border": lambda image, rng: _posed(image, scale=1 - 2 * BORDER),
    "white_frame": lambda image, rng: _in_place(_overwritten(image, 255)),
    "black_frame": lambda image, rng: _in_place(_overwritten(image, 0)),
    "noise": lambda image, rng: _in_place(_noisy(image, rng)),
    "inverted": lambda image, rng: _in_place(image.point([255 - v for v in range(256)])),
}


def disturbances(
    encoder: Encoder,
    images: Sequence[LandmarkedImage],
    *,
    references: int = 4,
    side_mm: float = SCR_SIDE_MM,
    seed: int = 0,
) -> Evaluation:
    """Landmarks found from single references in disturbed pictures of other patients.

    Each of the disturbances is drawn once for each target; the references, as they are, are the same for all.

    - `undisturbed_mm`, `scale_mm` ...: mean radial error in mm of the undisturbed picture (lower is better);
    - `scale_ratio` ...: that over the undisturbed error of the same points in the same patients (1 is best).

    `scale` is 0.7 to 1.4, `rotation` within 15 degrees, `shift` within 15 % of the sides, black where the picture has
    left; `gamma` 2.5; `white_box` in the upper left corner; `black_border` shrinks the picture into one of 28 of 256
    pixels; `white_frame` and `black_frame` overwrite so much; `noise` has a deviation of 0.15 of the range;
    `inverted` shows white for black. Points that leave the picture, or are overwritten, do not count.

    Args:
        encoder: As for `AnatomyMatcher`.
        images: More than `references` patients.
        references: How many, drawn at random; the others are the targets.
        side_mm: Millimetres along an image's width.
        seed: Of references, disturbances and the bootstrap.

    Raises:
        ValueError: there are no targets left.
    """
    names = shared_landmarks(images)
    matchers, targets = single_references(encoder, images, names, references, np.random.default_rng(seed))
    errors = {name: np.full((len(targets), references, len(names)), np.nan) for name in DISTURBANCES}
    shown = []
    for index, target in enumerate(tqdm(targets, desc=f"{encoder.name}, disturbed", unit="image", leave=False)):
        for name in DISTURBANCES:
            image, affine, visible = disturb(target, names, name, seed)
            embedded = embed_image(encoder, image)
            found = [matcher.find(embedded) for matcher in matchers]
            points = torch.tensor([[each[n][:2] for n in names] for each in found])
            errors[name][index][:, visible] = _errors(points, affine, target, names, side_mm)[:, visible]
            if index == 0:
                shown.append((name, image, points[0][visible], landmark_pixels(target, names)[visible], affine))
    whose = [target.whose for target in targets]
    measured = {f"{name}_mm": by_patient(np.nanmean(own, axis=(1, 2)), whose) for name, own in errors.items()}
    values = estimates(measured, seed)
    for name, own in errors.items():
        if name != "undisturbed":
            same = np.nanmean(np.where(np.isnan(own), np.nan, errors["undisturbed"]), axis=(1, 2))
            ratio = estimate(measured[f"{name}_mm"].values, seed, over=by_patient(same, whose).values)
            values[f"{name}_ratio"] = ratio
    figure = plot_found(
        [image for _, image, *_ in shown], [name for name, *_ in shown], [points for *_, points, _, _ in shown],
        [torch.from_numpy(_through(affine, true.numpy())) for *_, true, affine in shown],
    )  # fmt: skip
    settings = {"references": references, "targets": len(targets), "side_mm": side_mm, "landmarks": names}
    return Evaluation("disturbances", values, settings, figure, measured)


def disturb(
    item: LandmarkedImage, names: Sequence[str], name: str, seed: int = 0
) -> tuple[Image.Image, Affine, np.ndarray]:
    """The disturbed picture, where its points went, and which of `names` are still to be seen `[L]`.

    The draw is a function of `seed` and the image's id.
    """
    chance = np.random.default_rng([seed, *item.source_id.encode()])
    image, affine = DISTURBANCES[name](item.image.convert("L"), chance)
    shares = (_through(affine, landmark_pixels(item, names).numpy()) + 0.5) / image.size
    margin = BORDER if name.endswith("frame") else 0
    visible = np.asarray(((shares >= margin) & (shares <= 1 - margin)).all(axis=1))
    if name == "white_box":
        visible &= ~np.asarray((shares < (1 / 5, 1 / 8)).all(axis=1))
    return image, affine, visible


def _through(affine: Affine, points: np.ndarray) -> np.ndarray:
    return points @ affine[:, :2].T + affine[:, 2]


def _errors(
    points: torch.Tensor, affine: Affine, target: LandmarkedImage, names: Sequence[str], side_mm: float
) -> np.ndarray:
    """Errors `[..., L]` of points found in a disturbed picture, in mm of the undisturbed one."""
    back = (points.numpy() - affine[:, 2]) @ np.linalg.inv(affine[:, :2]).T
    true = landmark_pixels(target, names).numpy()
    return np.linalg.norm(back - true, axis=-1) * side_mm / target.image.width
