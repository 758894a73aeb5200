"""Whether the matcher knows what it does not know: its confidence against its errors, and against the truth."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw
from tqdm.auto import tqdm

from eden_hf.data.landmarks import LandmarkedImage, landmark_pixels, shared_landmarks
from eden_hf.encoders import Encoder
from eden_hf.evaluation.correspondence import SCR_SIDE_MM, single_references
from eden_hf.evaluation.results import Evaluation
from eden_hf.evaluation.statistics import by_patient, estimate, estimates
from eden_hf.matching import FoundPoint, embed_image
from eden_hf.plots import plot_confidence

BLANKED = 3  # points of a target
RADIUS = 0.08  # of the side, of what is blanked out round a point
FALSE_ALARMS = 0.05  # share of points that are there and are called not found


def confidence(
    encoder: Encoder,
    images: Sequence[LandmarkedImage],
    *,
    references: int = 4,
    side_mm: float = SCR_SIDE_MM,
    seed: int = 0,
) -> Evaluation:
    """Confidences of landmarks found from single references in other patients, some of them blanked out.

    - `least_confident_mm` and `others_mm`: mean radial error of the least confident tenth of the points of each
      target, and of its other points; `least_confident_ratio`: the first over the second (higher is better);
    - `blanked_not_found`: share of points that were blanked out, by a grey disc of 8 % of the side, and have a
      confidence below that which only 5 % of the points that are there fall short of (higher is better);
    - `not_found` and `false_alarms`: shares of blanked points, and of points that are there, that the matcher by its
      own threshold calls not found.

    Args:
        encoder: As for `AnatomyMatcher`, which must have a method that gives confidences.
        images: More than `references` patients, with exact landmarks: phantoms.
        references: How many, drawn at random; the others are the targets.
        side_mm: Millimetres along an image's width.
        seed: Of references, blanked points and the bootstrap.

    Raises:
        ValueError: there are no targets left, or too few landmarks.
    """
    names, rng = shared_landmarks(images), np.random.default_rng(seed)
    if len(names) <= BLANKED:
        raise ValueError(f"more than {BLANKED} landmarks are needed, since so many are blanked out; got {len(names)}")
    matchers, targets = single_references(encoder, images, names, references, rng)
    shape = len(targets), references, len(names)
    sure, error, found, blanked = np.zeros(shape), np.zeros(shape), np.zeros(shape, bool), np.zeros(shape, bool)
    sure_without, found_without = np.zeros(shape), np.zeros(shape, bool)
    for index, target in enumerate(tqdm(targets, desc=f"{encoder.name}, confidence", unit="image", leave=False)):
        chosen = rng.choice(len(names), BLANKED, replace=False)
        blanked[index][:, chosen] = True
        whole, without = (embed_image(encoder, image) for image in (target.image, blank_out(target, names, chosen)))
        for row, matcher in enumerate(matchers):
            points, sure[index, row], found[index, row] = _as_arrays(matcher.find(whole), names)
            error[index, row] = np.linalg.norm(points - landmark_pixels(target, names).numpy(), axis=1)
            _, sure_without[index, row], found_without[index, row] = _as_arrays(matcher.find(without), names)
        error[index] *= side_mm / target.image.width
    threshold = np.quantile(sure, FALSE_ALARMS)
    least = sure <= np.quantile(sure, 0.1)
    per_target = {
        "least_confident_mm": _means(error, least),
        "others_mm": _means(error, ~least),
        "blanked_not_found": _means(sure_without < threshold, blanked),
        "not_found": _means(~found_without, blanked),
        "false_alarms": (~found).mean(axis=(1, 2)),
    }
    whose = [target.whose for target in targets]
    measured = {name: by_patient(values, whose) for name, values in per_target.items()}
    halves = (measured[name].values for name in ("least_confident_mm", "others_mm"))
    values = estimates(measured, seed) | {"least_confident_ratio": estimate(next(halves), seed, over=next(halves))}
    settings = {
        "references": references, "targets": len(targets), "side_mm": side_mm, "landmarks": names,
        "threshold": float(threshold),
    }  # fmt: skip
    return Evaluation("confidence", values, settings, plot_confidence(sure, error, sure_without[blanked]), measured)


def blank_out(item: LandmarkedImage, names: Sequence[str], chosen: Sequence[int] | np.ndarray) -> Image.Image:
    """The picture with discs of its mean grey over the chosen landmarks."""
    image = item.image.convert("L")
    pen, radius = ImageDraw.Draw(image), RADIUS * min(image.size)
    grey = round(float(np.asarray(image).mean()))
    for x, y in landmark_pixels(item, names)[list(chosen)].tolist():
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=grey)
    return image


def _as_arrays(found: dict[str, FoundPoint], names: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points `[L, 2]`, confidences `[L]`, and whether each was found `[L]`."""
    points = [found[name] for name in names]
    return (
        np.array([p[:2] for p in points]),
        np.array([p.confidence for p in points]),
        np.array([p.found for p in points]),
    )


def _means(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """For each target the mean of its chosen values `[T, R, L]`; NaN where it has none."""
    number = chosen.sum(axis=(1, 2))
    total = np.where(chosen, values, 0).sum(axis=(1, 2))
    return np.divide(total, number, out=np.full(len(values), np.nan), where=number > 0)
