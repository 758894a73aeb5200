"""Fit the scores of `EdenForKeypointMatching`: a logistic regression on what speaks against a match.

python scripts/fit_keypoint_scores.py --model model_cards/eden-resnet18-half-cxr --source scr --id_column image_id

Each image is matched with the next. Of the matches those next to a landmark are looked at: one is right when it lies
within 5 % of the side of where the landmark lies in the other image, moved by as much as it lies beside the landmark
in the first. Fitted on the first half of the pairs. Prints the constants of eden_hf/modeling_eden_matching.py, and for
the second half the scores given beside the shares of matches that are right.
"""

import numpy as np
import torch
from jsonargparse import auto_cli
from sklearn.linear_model import LogisticRegression
from tqdm import tqdm

from eden_hf.data.landmarks import load_landmarked
from eden_hf.encoders import load_encoder
from eden_hf.matching.dense_maps import dense_maps
from eden_hf.modeling_eden_matching import _ASTRAY, find_points
from eden_hf.training.settings import ConfigParser

#: Distance within which a match is right, and from a landmark within which it is looked at, as shares of the side.
RIGHT, BESIDE = 0.05, 0.02


def fit_keypoint_scores(
    model: str, source: str, split: str = "train", images: int | None = None, id_column: str | None = None
) -> None:
    """Fit on one half of the pairs, and print constants and how true they are of the other half.

    Args:
        model: Folder of a dense model.
        source: With landmarks, as for `eden evaluate`.
        split: Split of the source.
        images: How many.
        id_column: Column whose values name the images.
    """
    encoder = load_encoder(model)
    items = load_landmarked(source, split, images=images, id_column=id_column)
    maps = [dense_maps(encoder, [item.image], 1.0)[0].vectors[None] for item in tqdm(items, desc=source)]
    pairs = []
    for (item, dense), (next_item, other) in zip(
        zip(items, maps, strict=True), zip(items[1:], maps[1:], strict=True), strict=False
    ):
        (places, found), astray, doubts = (part[0] for part in find_points(dense, other))
        names = sorted(item.landmarks.keys() & next_item.landmarks.keys())
        here, there = (torch.tensor([one.landmarks[name] for name in names]) for one in (item, next_item))
        nearest = torch.cdist(here, places).argmin(dim=1)
        beside = places[nearest] - here
        keep = (beside.norm(dim=1) < BESIDE) & (astray[nearest] <= _ASTRAY)
        error = (found[nearest] - there - beside).norm(dim=1)
        pairs.append((doubts[nearest][keep].numpy(), (error < RIGHT)[keep].numpy()))
    half = len(pairs) // 2
    (x, right), (x_other, right_other) = (
        [np.concatenate(part) for part in zip(*some, strict=True)] for some in (pairs[:half], pairs[half:])
    )
    fitted = LogisticRegression(C=100).fit(x, right)
    off, unlike = -fitted.coef_[0]
    print(f"_DOUBTS, _TRUST = ({off:.1f}, {unlike:.1f}), {fitted.intercept_[0]:.1f}")
    scores = fitted.predict_proba(x_other)[:, 1]
    print(
        f"{len(right)} matches to fit, {len(right_other)} to check: {right.mean():.2f}, {right_other.mean():.2f} right"
    )
    for some in np.array_split(np.argsort(scores), 5):
        print(f"scores {scores[some].mean():.2f}: {right_other[some].mean():.2f} are right")


if __name__ == "__main__":
    auto_cli(fit_keypoint_scores, as_positional=False, parser_class=ConfigParser)
