"""The paper's correspondence of two images: the nearest embedding of a window (arXiv 2309.15358).

The embedding of a pixel is that of the window around it. Structures that look alike in anatomy should lie close in
embedding, so the same structure in another image is where the nearest embedding is.

Points are `(x, y)` pixel indices, float: (0, 0) is the centre of the top left pixel. From SCR's landmarks in [0, 1]
they are `x * width - 0.5`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from eden_hf.data.landmarks import LandmarkedImage, landmark_pixels, patients_of, shared_landmarks
from eden_hf.encoders import Encoder
from eden_hf.evaluation.correspondence import SCR_SIDE_MM, copied_landmarks, errors_mm, landmark_scores
from eden_hf.evaluation.results import Evaluation
from eden_hf.evaluation.statistics import by_patient, estimates
from eden_hf.matching.windows import DenseEmbeddings, dense_embeddings, dilated_embeddings, point_embeddings
from eden_hf.plots import plot_correspondence


def correspondence_windows(
    encoder: Encoder,
    images: Sequence[LandmarkedImage],
    *,
    window: float = 0.25,
    steps: int = 32,
    side_mm: float = SCR_SIDE_MM,
    dilated: bool = False,
    seed: int = 0,
    batch_size: int = 64,
) -> Evaluation:
    """Landmarks of each patient found in all others by the nearest dense embedding.

    For landmark l of patient p with its patch's embedding e, the found point is that of the window in patient q whose
    embedding has the highest cosine with e; the error is its distance from q's own landmark l.

    - `mean_radial_error_mm` (lower is better), and of each landmark;
    - `within_5_mm`, `within_10_mm`, `within_20_mm`: shares of landmarks (higher is better);
    - `same_place_mm`: the error of taking p's coordinates over to q as they are. Radiographs are aligned when they
      are taken, so this is hard to beat: an embedding that does not, knows less than the collimator.

    No match is exact beyond half of a step (5.6 mm at 32 steps a side).

    Args:
        encoder: As in `embed`.
        images: Of at least two patients.
        window: Side of the windows, as a share of the image's smaller side.
        steps: Windows along the image's smaller side.
        side_mm: Millimetres along an image's width.
        dilated: Use `dilated_embeddings` throughout; only for convolutional trunks.
        seed: Of the bootstrap.
        batch_size: Windows in one forward pass.
    """
    names, patients = shared_landmarks(images), patients_of(images)
    queries, dense = _query_and_dense(encoder, images, names, window, steps, dilated, batch_size)
    asked = torch.cat(queries)
    found = torch.stack([grid.find(asked)[0].view(len(images), -1, 2) for grid in dense], dim=1)  # [from, in, L, 2]
    errors = errors_mm(images, found, side_mm)
    copied = errors_mm(images, copied_landmarks(images, [[index] for index in range(len(images))]), side_mm)
    values = landmark_scores(errors) | {"same_place_mm": copied}
    values |= {f"{name}_mm": errors[..., index] for index, name in enumerate(names)}
    measured = {name: by_patient(of.swapaxes(0, 1), patients, patients) for name, of in values.items()}
    source = next(index for index, name in enumerate(patients) if name != patients[0])
    figure = plot_correspondence(
        images[source].image, images[0].image,
        landmark_pixels(images[source], names), found[source, 0], landmark_pixels(images[0], names),
    )  # fmt: skip
    settings = {"window": window, "steps": steps, "side_mm": side_mm, "dilated": dilated, "landmarks": names}
    return Evaluation("correspondence_windows", estimates(measured, seed), settings, figure, measured)


def _query_and_dense(
    encoder: Encoder,
    images: Sequence[LandmarkedImage],
    names: Sequence[str],
    window: float,
    steps: int,
    dilated: bool,
    batch_size: int,
) -> tuple[list[Tensor], list[DenseEmbeddings]]:
    """For each image the embeddings `[L, C]` of its landmarks, and its dense embeddings."""
    queries, dense = [], []
    for item in images:
        smaller = min(item.image.size)
        side, stride = round(window * smaller), max(1, smaller // steps)
        points = landmark_pixels(item, names)
        if dilated:
            dense.append(next(dilated_embeddings(encoder, [item.image], window=side, stride=stride)))
            queries.append(dense[-1].at(points))
        else:
            dense.append(dense_embeddings(encoder, item.image, window=side, stride=stride, batch_size=batch_size))
            queries.append(point_embeddings(encoder, item.image, points, window=side, batch_size=batch_size))
    return queries, dense
