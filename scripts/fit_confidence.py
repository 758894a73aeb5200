"""Fit the confidence of `AnatomyMatcher`: a logistic regression on what speaks against a found point.

python scripts/fit_confidence.py --model model_cards/eden-resnet18-half-cxr \
    --sources '[phantoms:60,scr]' --images 50

Points of each image are looked for in the next, once as it is and once with patches drawn over a fifth of them: of one
random grey or of noise, so that the fit has not seen the discs by which `eden evaluate --evaluations confidence`
judges it. A point counts as right when it is not covered and found within 5 % of the side. Prints the constants of
eden_hf/matching/matcher.py, the error of the least confident tenth over the rest, and the share of covered points
below the threshold that 5 % of the rightly found ones fall below.
"""

import numpy as np
import torch
from jsonargparse import auto_cli
from PIL import Image
from sklearn.linear_model import LogisticRegression
from tqdm import tqdm

from eden_hf.data.landmarks import LandmarkedImage, landmark_pixels, load_landmarked
from eden_hf.encoders import load_encoder
from eden_hf.matching import AnatomyMatcher, Reference
from eden_hf.matching.matcher import embed_image
from eden_hf.training.settings import ConfigParser

#: Side of the patch that covers a point, as a share of the image's.
PATCH = 0.2
#: Distance within which a point is found, as a share of the side.
NEAR = 0.05


def fit_confidence(
    model: str,
    sources: list[str],
    split: str = "train",
    images: int | None = None,
    id_column: str | None = None,
    seed: int = 0,
):
    """Fit and print.

    Args:
        model: Folder of a dense model.
        sources: With landmarks, as for `eden evaluate`.
        split: Split of the sources.
        images: How many of each.
        id_column: Column whose values name the images, of sources that have it.
        seed: Of the patches.
    """
    encoder, rng = load_encoder(model), np.random.default_rng(seed)
    doubts, errors, covered = [], [], []
    for source in sources:
        items = load_landmarked(source, split, images=images, id_column=id_column)
        for reference, target in zip(tqdm(items, desc=source), items[1:], strict=False):
            for cover in (False, True):
                row = _look(encoder, reference, target, cover, rng)
                for total, part in zip((doubts, errors, covered), row, strict=True):
                    total.append(part)
    x, error, hidden = (np.concatenate(part) for part in (doubts, errors, covered))
    right = (error < NEAR) & ~hidden
    fitted = LogisticRegression(C=100).fit(x, right)
    print("CONFIDENCE =", tuple(round(float(value), 2) for value in (*-fitted.coef_[0], fitted.intercept_[0])))
    sure = fitted.predict_proba(x)[:, 1]
    threshold = float(np.quantile(sure[right], 0.05))
    shown = np.argsort(sure[~hidden])
    tenth, sorted_error = len(shown) // 10, error[~hidden][shown]
    missed = (sure[hidden] < threshold).mean()
    print(f"least_confidence = {threshold:.2f}: {missed:.1%} of {hidden.sum()} covered points are not found")
    ratio = sorted_error[:tenth].mean() / sorted_error[tenth:].mean()
    print(f"error of the least confident tenth over the rest: {ratio:.2f}")


def _look(encoder, reference: LandmarkedImage, target: LandmarkedImage, cover: bool, rng: np.random.Generator):
    """Doubts `[P, 2]`, errors `[P]` as shares of the side, and which points are covered `[P]`."""
    names = [name for name in reference.landmarks if name in target.landmarks and _inside(reference, name)]
    names = [name for name in names if _inside(target, name)]
    image, hidden = target.image, np.zeros(len(names), bool)
    if cover:
        hidden = rng.random(len(names)) < 0.2
        pixels = np.array(image)
        for name in np.array(names)[hidden]:
            _cover(pixels, target.landmarks[name], rng)
        image = Image.fromarray(pixels)
    points = {name: tuple(xy) for name, xy in zip(names, landmark_pixels(reference, names).tolist(), strict=True)}
    matcher = AnatomyMatcher(encoder, [Reference(reference.image, points=points)])
    embedded = embed_image(encoder, image)
    similarity = matcher._similarities(embedded).mean(dim=0).flatten(1)
    places, _ = matcher._find(embedded)
    doubts = matcher._doubts(similarity, places)
    true = torch.tensor([target.landmarks[name] for name in names])
    return doubts.numpy(), (places - true).norm(dim=1).numpy(), hidden


def _inside(item: LandmarkedImage, name: str) -> bool:
    return all(0.02 < value < 0.98 for value in item.landmarks[name])


def _cover(pixels: np.ndarray, place: tuple[float, float], rng: np.random.Generator) -> None:
    """Draw a patch of one grey, or of noise, over a place."""
    height, width = pixels.shape
    x, y, half = round(place[0] * width), round(place[1] * height), round(PATCH * width / 2)
    area = pixels[max(0, y - half) : y + half, max(0, x - half) : x + half]
    area[:] = rng.integers(0, 256, area.shape if rng.random() < 0.3 else 1)


if __name__ == "__main__":
    auto_cli(fit_confidence, as_positional=False, parser_class=ConfigParser)
