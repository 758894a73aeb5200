"""Locality (arXiv 2309.15358, sections 2 and 4): each anatomical structure has its own embedding, in every patient.

Patches round named landmarks are embedded. If the embedding knows anatomy, the patches of one landmark lie together
over all patients and apart from other landmarks', left from right included.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score, silhouette_samples
from torch import Tensor

from eden_hf.data.landmarks import LandmarkedImage, landmark_pixels, mirror_of, shared_landmarks
from eden_hf.encoders import Encoder
from eden_hf.evaluation.embeddings import tsne
from eden_hf.evaluation.results import Evaluation, estimate
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
        images: At least two patients; landmarks that not all of them have are left out.
        window: Side of the patches, as a share of the image's smaller side.
        seed: Of the bootstrap and of t-SNE.
        batch_size: Patches in one forward pass.
    """
    vectors, names = landmark_embeddings(encoder, images, window=window, batch_size=batch_size)
    values = {name: estimate(scores, seed) for name, scores in locality_scores(vectors, names).items()}
    labels = np.tile(np.arange(len(names)), len(vectors))
    figure = plot_tsne(tsne(vectors.flatten(0, 1), seed=seed), labels, [name.replace("_", " ") for name in names])
    settings = {"window": window, "landmarks": names, "chance": 1 / len(names), "neighbours": NEIGHBOURS}
    return Evaluation("locality", values, settings, figure)


def landmark_embeddings(
    encoder: Encoder, images: Sequence[LandmarkedImage], *, window: float, batch_size: int = 64
) -> tuple[Tensor, list[str]]:
    """Unit vectors `[N, L, C]` of the patches round the landmarks that all N images have, and the landmarks' names.

    Raises:
        ValueError: there are fewer than two images, or two landmarks in common.
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


def locality_scores(vectors: Tensor, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Scores of landmark embeddings: is a patch like those of the same landmark in *other* patients?

    With v_pl the vector of landmark l in patient p, and s the cosine:

    - `retrieval_at_1`: share of patches whose nearest patch is of the same landmark. Chance 1 / L.
    - `knn_accuracy`: the landmark by vote of the 5 nearest patches, weighted by similarity. Chance 1 / L.
    - `prototype_accuracy`: the nearest of the landmarks' means over the other patients. Chance 1 / L.
    - `side_accuracy`: of the two prototypes of a landmark and of its mirror (left and right), its own is nearer.
      Chance 0.5; the hard part, since both look alike.
    - `mirror_confusion`: share of the patches with a mirror whose nearest prototype of all is that mirror's. Here low
      is good; chance 1 / L. Beside 1 - `prototype_accuracy` it says how many errors are left taken for right.
    - `auroc`: probability that a patch of the same landmark is more alike than one of another. Chance 0.5.
    - `silhouette`: (b - a) / max(a, b) with a the mean cosine distance to the own landmark and b to the nearest
      other one; from -1 to 1, above 0 where landmarks form clusters of their own. By scikit-learn's definition, so b
      takes in the patient's own patches too, one of N.

    Near 1 is good in all others. A random trunk on well-aligned images already reaches 0.9 in some: compare with it.

    Args:
        vectors: `[N, L, C]`, unit rows, N >= 2 patients.
        names: Of the L landmarks.

    Returns:
        For each score `[N]`, the mean over each patient's patches; `side_accuracy` and `mirror_confusion` only where
        there are mirrored landmarks.
    """
    patients, landmarks = vectors.shape[:2]
    rows = F.normalize(vectors, dim=2).flatten(0, 1)
    label = torch.arange(landmarks).repeat(patients)
    patient = torch.arange(patients).repeat_interleave(landmarks)
    similarity = (rows @ rows.T).masked_fill(patient[:, None] == patient, -torch.inf)
    nearest = similarity.topk(min(NEIGHBOURS, (patients - 1) * landmarks))
    votes = torch.zeros(len(rows), landmarks).scatter_add(1, label[nearest.indices], nearest.values + 1)
    prototypes = F.normalize(vectors.sum(dim=0) - vectors, dim=2)  # [N, L, C]: of all patients but this one
    to_prototypes = torch.einsum("nlc,nkc->nlk", vectors, prototypes)
    own = torch.arange(landmarks)
    scores = {
        "retrieval_at_1": label[nearest.indices[:, 0]] == label,
        "knn_accuracy": votes.argmax(dim=1) == label,
        "prototype_accuracy": to_prototypes.argmax(dim=2) == own,
    }
    pairs = [(names.index(name), names.index(mirror)) for name in names if (mirror := mirror_of(name)) in names]
    if pairs:
        here, there = torch.tensor(pairs).T
        scores["side_accuracy"] = to_prototypes[:, here, here] > to_prototypes[:, here, there]
        scores["mirror_confusion"] = to_prototypes.argmax(dim=2)[:, here] == there
    found = {name: hits.double().view(patients, -1).mean(dim=1).numpy() for name, hits in scores.items()}
    found["auroc"] = _auroc(similarity, label, patient)
    silhouettes = silhouette_samples(
        (1 - rows @ rows.T).clamp(min=0).fill_diagonal_(0).numpy(), label, metric="precomputed"
    )
    return found | {"silhouette": silhouettes.reshape(patients, -1).mean(axis=1)}


def _auroc(similarity: Tensor, label: Tensor, patient: Tensor) -> np.ndarray:
    """For each patient, the AUROC of its patches' similarities to others' for telling the same landmark."""
    same = label[:, None] == label
    values = []
    for number in range(int(patient.max()) + 1):
        own, others = patient == number, patient != number
        values.append(roc_auc_score(same[own][:, others].flatten(), similarity[own][:, others].flatten()))
    return np.array(values)
