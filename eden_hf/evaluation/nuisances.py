"""What moves the embedding besides anatomy: borders, markers, exposure, and where a picture comes from.

Whole images are embedded. Whatever decides who is nearest to whom, if it is none of the patient's, is a shortcut that
a probe or a search may take: read the numbers beside those of pixels and of the untrained trunk.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from eden_hf.data.landmarks import LandmarkedImage, patients_of
from eden_hf.encoders import Encoder, embed
from eden_hf.evaluation.disturbances import DISTURBANCES
from eden_hf.evaluation.embeddings import part_embeddings
from eden_hf.evaluation.locality import NEIGHBOURS, chance_of, neighbour_weights
from eden_hf.evaluation.results import Evaluation
from eden_hf.evaluation.statistics import by_patient, estimates
from eden_hf.plots import plot_groups

#: What half of the images get, by what it is among the disturbances.
MARKS = {"border": "black_frame", "marker": "white_box", "exposure": "gamma"}
DRAWS = 16  # of the half
LEVEL = 4  # 4 x 4 parts


def nuisances(
    encoder: Encoder, images: Sequence[LandmarkedImage], *, seed: int = 0, batch_size: int = 64
) -> Evaluation:
    """How far borders, markers, exposure and source decide which image of another patient is the nearest.

    Half of the images, drawn 16 times, get a black border of 28 of 256 pixels, a white box in the corner, gamma 2.5:

    - `border`, `marker`, `exposure`: share of images whose nearest one, of another patient, has it as they have it;
      `mark_chance`: how many of all others do. Best is no more than that.

    Where the source of at least two images each is known (`origin_column`):

    - `source_neighbours`: share of the 5 nearest images of other patients that come from the same source;
      `source_chance`: how many of all others do. Best is no more than that.
    - `parts_across_sources`: share of 4 x 4 parts whose nearest part in another source is the same part (higher is
      better; chance 1 / 16).

    Args:
        encoder: As in `embed`.
        images: Of at least two patients; landmarks are not used.
        seed: Of the halves and of the bootstrap.
        batch_size: Images in one forward pass.
    """
    patients, rng = patients_of(images), np.random.default_rng(seed)
    apart = torch.from_numpy(np.asarray(patients)[:, None] != np.asarray(patients))
    plain = embed(encoder, (_disturbed(item, "undisturbed", rng) for item in images), batch_size)
    halves = [torch.from_numpy(rng.permutation(len(images)) < len(images) // 2) for _ in range(DRAWS)]
    found: dict[str, np.ndarray] = {}
    for name, disturbance in MARKS.items():
        marked = embed(encoder, (_disturbed(item, disturbance, rng) for item in images), batch_size)
        same = [_nearest_is_alike(torch.where(half[:, None], marked, plain), half, apart) for half in halves]
        found[name] = np.stack(same, axis=1)
    alike = torch.stack([(half[:, None] == half) & apart for half in halves]).sum(dim=2) / apart.sum(dim=1)
    found["mark_chance"] = alike.mean(dim=0).numpy()
    origins = [item.origin for item in images]
    if None not in origins and len(set(origins)) > 1:
        found |= _of_sources(encoder, images, plain, np.asarray(origins), apart, batch_size)
    measured = {name: by_patient(values, patients) for name, values in found.items()}
    values = estimates(measured, seed)
    figure = plot_groups({"share alike": {name: [value.value] for name, value in values.items()}})
    return Evaluation(
        "nuisances", values, {"draws": DRAWS, "neighbours": NEIGHBOURS, "level": LEVEL}, figure, measured
    )


def _disturbed(item: LandmarkedImage, name: str, rng: np.random.Generator) -> Image.Image:
    """The picture in grey, in its own mode, with one of the disturbances."""
    return DISTURBANCES[name](item.image.convert("L"), rng)[0].convert(item.image.mode)


def _nearest_is_alike(vectors: Tensor, half: Tensor, apart: Tensor) -> np.ndarray:
    """Whether each image's nearest one, of another patient, is of the same half `[N]`; ties count in part."""
    similarity = (vectors @ vectors.T).masked_fill(~apart, -torch.inf)
    return chance_of(similarity, half[:, None] == half).numpy()


def _of_sources(
    encoder: Encoder,
    images: Sequence[LandmarkedImage],
    plain: Tensor,
    origins: np.ndarray,
    apart: Tensor,
    batch_size: int,
) -> dict[str, np.ndarray]:
    """Values `[N]` of images whose sources are known."""
    same = torch.from_numpy(origins[:, None] == origins)
    weights = neighbour_weights((plain @ plain.T).masked_fill(~apart, -torch.inf))
    parts = part_embeddings(encoder, (item.image for item in images), LEVEL, batch_size)
    kind = torch.arange(parts.shape[1])
    again = []
    for own, elsewhere in zip(parts, apart & ~same, strict=True):
        there = parts[elsewhere]
        wanted = kind[:, None] == kind.repeat(len(there))
        again.append(float(chance_of(own @ there.flatten(0, 1).T, wanted).mean()) if len(there) else np.nan)
    return {
        "source_neighbours": ((weights * same).sum(dim=1) / weights.sum(dim=1)).numpy(),
        "source_chance": ((same & apart).sum(dim=1) / apart.sum(dim=1)).numpy(),
        "parts_across_sources": np.array(again),
    }
