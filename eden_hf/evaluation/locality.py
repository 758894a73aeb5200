"""Locality (arXiv 2309.15358, sections 2 and 4): each anatomical structure has its own embedding, in every patient.

Patches round named landmarks are embedded. If the embedding knows anatomy, the patches of one landmark lie together
over all patients and apart from other landmarks', left from right included.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor

from eden_hf.data.landmarks import LandmarkedImage, landmark_pixels, mirror_of, patients_of, shared_landmarks
from eden_hf.encoders import Encoder
from eden_hf.evaluation.embeddings import tsne
from eden_hf.evaluation.results import Evaluation
from eden_hf.evaluation.statistics import TIED, by_patient, estimates
from eden_hf.matching.windows import point_embeddings
from eden_hf.plots import plot_tsne

NEIGHBOURS = 5


def locality(
    encoder: Encoder, images: Sequence[LandmarkedImage], *, window: float = 0.25, seed: int = 0, batch_size: int = 64
) -> Evaluation:
    """How well embeddings of patches tell landmarks apart across patients.

    The numbers are those of `locality_scores`; the figure is the paper's t-SNE of the patches.

    Args:
        encoder: As in `embed`.
        images: Of at least two patients; landmarks that not all of them have are left out.
        window: Side of the patches, as a share of the image's smaller side.
        seed: Of the bootstrap and of t-SNE.
        batch_size: Patches in one forward pass.
    """
    patients = patients_of(images)
    vectors, names = landmark_embeddings(encoder, images, window=window, batch_size=batch_size)
    scores = locality_scores(vectors, names, patients)
    measured = {name: by_patient(values, patients) for name, values in scores.items()}
    labels = np.tile(np.arange(len(names)), len(vectors))
    figure = plot_tsne(tsne(vectors.flatten(0, 1), seed=seed), labels, [name.replace("_", " ") for name in names])
    settings = {"window": window, "landmarks": names, "chance": 1 / len(names), "neighbours": NEIGHBOURS}
    return Evaluation("locality", estimates(measured, seed), settings, figure, measured)


def landmark_embeddings(
    encoder: Encoder, images: Sequence[LandmarkedImage], *, window: float, batch_size: int = 64
) -> tuple[Tensor, list[str]]:
    """Unit vectors `[N, L, C]` of the patches round the landmarks that all N images have, and the landmarks' names.

    Raises:
        ValueError: there are no images, or fewer than two landmarks in common.
    """
    names = shared_landmarks(images)
    vectors = [
        point_embeddings(
            encoder,
            item.image,
            landmark_pixels(item, names),
            window=max(1, round(window * min(item.image.size))),
            batch_size=batch_size,
        )
        for item in images
    ]
    return torch.stack(vectors), names


def locality_scores(
    vectors: Tensor, names: Sequence[str], patients: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """Scores of landmark embeddings: is a patch like those of the same landmark in *other* patients?

    Patches of one patient's images are never compared. Where several are equally near, each is as likely to be taken
    as the nearest, so a collapsed encoder scores at chance.

    - `retrieval_at_1`: share of patches whose nearest patch is of the same landmark. Chance 1 / L.
    - `knn_accuracy`: the landmark by vote of the 5 nearest patches, weighted by similarity. Chance 1 / L.
    - `prototype_accuracy`: the nearest of the landmarks' means over the other patients. Chance 1 / L.
    - `side_accuracy`: of the two prototypes of a landmark and of its mirror (left and right), its own is nearer.
      Chance 0.5; the hard part, since both look alike.
    - `mirror_confusion`: share of the patches with a mirror whose nearest prototype of all is that mirror's. Here low
      is good; chance 1 / L. Beside 1 - `prototype_accuracy` it says how many errors are left taken for right.
    - `auroc`: probability that a patch of the same landmark is more alike than one of another. Chance 0.5.
    - `silhouette`: (b - a) / max(a, b) with a the mean cosine distance to the own landmark and b to the nearest
      other one; from -1 to 1, above 0 where landmarks form clusters of their own.

    Near 1 is good in all others. A random trunk on well-aligned images already reaches 0.9 in some: compare with it.

    Args:
        vectors: `[N, L, C]`, unit rows, of N images.
        names: Of the L landmarks.
        patients: Whose each image is; each is of a patient of its own by default.

    Returns:
        For each score `[N]`, the mean over each image's patches; `side_accuracy` and `mirror_confusion` only where
        there are mirrored landmarks.
    """
    images, landmarks = vectors.shape[:2]
    _, number = np.unique(np.arange(images) if patients is None else patients, return_inverse=True)
    apart = torch.from_numpy(number[:, None] != number)  # [N, N]
    rows = F.normalize(vectors, dim=2).flatten(0, 1)
    label = torch.arange(landmarks).repeat(images)
    others = apart.repeat_interleave(landmarks, dim=0).repeat_interleave(landmarks, dim=1)
    similarity = (rows @ rows.T).masked_fill(~others, -torch.inf)
    prototypes = F.normalize(torch.einsum("nm,mlc->nlc", apart.to(vectors), vectors), dim=2)
    to_prototypes = torch.einsum("nlc,nkc->nlk", vectors, prototypes)
    own = torch.arange(landmarks)
    scores = {
        "retrieval_at_1": chance_of(similarity, label[:, None] == label),
        "knn_accuracy": chance_of(_votes(similarity, label), label[:, None] == own),
        "prototype_accuracy": chance_of(to_prototypes, (own[:, None] == own).expand_as(to_prototypes)),
    }
    pairs = [(names.index(name), names.index(mirror)) for name in names if (mirror := mirror_of(name)) in names]
    if pairs:
        here, there = torch.tensor(pairs).T
        both = torch.stack([to_prototypes[:, here, here], to_prototypes[:, here, there]], dim=2)
        scores["side_accuracy"] = chance_of(both, torch.tensor([True, False]).expand_as(both))
        among_all = to_prototypes[:, here]
        scores["mirror_confusion"] = chance_of(among_all, (there[:, None] == own).expand_as(among_all))
    found = {name: hits.double().view(images, -1).mean(dim=1).numpy() for name, hits in scores.items()}
    found["auroc"] = _auroc(similarity, label, others)
    found["silhouette"] = _silhouettes(rows, label, others).view(images, -1).mean(dim=1).numpy()
    return found


def chance_of(scores: Tensor, wanted: Tensor) -> Tensor:
    """How likely the best of `scores` `[..., n]` is a wanted one, drawn among those that are equally good."""
    best = scores >= scores.max(dim=-1, keepdim=True).values - TIED
    return (best & wanted).sum(dim=-1).double() / best.sum(dim=-1)


def _votes(similarity: Tensor, label: Tensor) -> Tensor:
    """Votes `[n, L]` of each patch's nearest ones, weighted by similarity."""
    weights = neighbour_weights(similarity) * (similarity.clamp(min=-1).double() + 1)
    return weights @ F.one_hot(label).double()


def neighbour_weights(similarity: Tensor) -> Tensor:
    """1 for the 5 nearest of each row of `[n, m]` and 0 for others; equally near ones share the last places."""
    k = min(NEIGHBOURS, int(similarity.isfinite().sum(dim=1).min()))
    last = similarity.topk(k).values[:, -1:]
    nearer, as_near = similarity > last + TIED, (similarity - last).abs() <= TIED
    share = (k - nearer.sum(dim=1, keepdim=True)) / as_near.sum(dim=1, keepdim=True)
    return nearer.double() + as_near * share.double()


def _auroc(similarity: Tensor, label: Tensor, others: Tensor) -> np.ndarray:
    """For each image, the AUROC of its patches' similarities to other patients' for telling the same landmark."""
    same, landmarks = label[:, None] == label, int(label.max()) + 1
    values = []
    for start in range(0, len(label), landmarks):
        own = slice(start, start + landmarks)
        scores = (similarity[own][others[own]] / TIED).round()  # those that differ by rounding alone are ties
        values.append(roc_auc_score(same[own][others[own]], scores))
    return np.array(values)


def _silhouettes(rows: Tensor, label: Tensor, others: Tensor) -> Tensor:
    """Silhouette of each patch by its mean cosine distances to other patients' patches of each landmark."""
    of_landmark = F.one_hot(label).to(rows)
    distance = ((1 - rows @ rows.T).clamp(min=0) * others) @ of_landmark / (others.to(rows) @ of_landmark)
    own = of_landmark.bool()
    a, b = distance[own], distance.masked_fill(own, torch.inf).min(dim=1).values
    return (b - a) / torch.maximum(a, b).clamp(min=TIED)
