"""A probe: what the model knows so far of a small labelled source, measured while it is pretrained.

Nothing is learned from it, and nothing random is drawn: a run with a probe takes the very steps of one without.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from eden_hf.data.errors import SourceError
from eden_hf.data.landmarks import landmarked_rows, shared_landmarks
from eden_hf.data.sources import load_source, read_cell
from eden_hf.encoders import nearest_neighbours, processed, stage_maps
from eden_hf.image_processing_eden import EdenImageProcessor
from eden_hf.modeling_eden import EdenModel
from eden_hf.modeling_eden_dense import sample_embeddings
from eden_hf.training.arguments import RunArguments

#: Images in one forward pass.
_BATCH = 32
_NEIGHBOURS = 5


class Probe:
    """The images of `run.probe`, and what is measured on them.

    Args:
        run: With `probe`, `probe_split` and `probe_images`.
        processor: That of the run's models.

    Raises:
        SourceError: there is no such source or split, it has neither landmarks nor a column `label`, or what it has
            is not as it must be: fewer than two images have landmarks, or all have one label, say.
    """

    def __init__(self, run: RunArguments, processor: EdenImageProcessor) -> None:
        rows = load_source(run.probe, split=run.probe_split)
        columns, rows = set(rows.column_names), rows.select(range(min(run.probe_images, len(rows))))
        self.landmarks: Tensor | None = None
        self.labels: Tensor | None = None
        if columns & {"landmarks", "landmarks_heart"}:
            try:
                found = [item for _, item in landmarked_rows(rows, run.probe)]
                names = shared_landmarks(found)
            except ValueError as error:
                raise SourceError(f"`run.probe`: {run.probe}: {error}") from error
            images = [item.image for item in found]
            self.landmarks = torch.tensor([[item.landmarks[name] for name in names] for item in found])
            if processor.aspect_ratio == "pad":
                sizes = torch.tensor([image.size for image in images])[:, None]
                self.landmarks = 0.5 + (self.landmarks - 0.5) * sizes / sizes.amax(dim=2, keepdim=True)
        elif "label" in columns:
            labels = list(rows["label"])
            if others := [label for label in labels if not isinstance(label, str | int)]:
                mend = "text or a whole number, one in every row"
                raise SourceError(f"`run.probe`: a `label` of {run.probe} is {others[0]!r}: it must be {mend}")
            numbers = {label: number for number, label in enumerate(dict.fromkeys(labels))}
            if not 2 <= len(numbers) < len(labels):
                raise SourceError(
                    f"`run.probe`: the first {len(labels)} images of {run.probe} have {len(numbers)} different "
                    "labels, where neighbours tell nothing: raise run.probe_images, or mix the rows"
                )
            images = [read_cell(row["image"], row["source_id"]) for row in rows]
            self.labels = torch.tensor([numbers[label] for label in labels])
        else:
            raise SourceError(
                f"`run.probe`: {run.probe} has neither landmarks nor a column `label`, it has "
                f"{', '.join(sorted(columns))}: name a source with either"
            )
        self.pixel_values = processed(processor, images)

    @torch.no_grad()
    def measure(self, model: EdenModel, dense: bool = False) -> dict[str, float]:
        """Measure a model, which is left in evaluation mode.

        Args:
            model: On any device.
            dense: Look for landmarks by the dense embeddings, not by the maps of the trunk's stages.

        Returns:
            `probe_effective_rank`: of the images' embeddings (RankMe, arXiv 2210.02885), from 1, where all lie on a
            line, to the smaller of their number and dimension;
            `probe_landmark_error`: mean distance of landmarks from where those of every other image find them, as a
            share of the side of what the model sees; half the distance between nodes of the map is about its least;
            `probe_neighbour_accuracy`: share of images whose 5 nearest others vote for their own label.
        """
        model.eval()
        pooled, maps = [], []
        for pixel_values in self.pixel_values.split(_BATCH):
            pixel_values = pixel_values.to(model.device)
            outputs = model(pixel_values)
            pooled.append(outputs.pooler_output.float().cpu())
            if self.landmarks is not None:
                found = outputs.dense_embeddings if dense else joined_stages(stage_maps(model, pixel_values))
                maps.append(found.float().cpu())
        vectors = torch.cat(pooled)
        measured = {"probe_effective_rank": effective_rank(vectors)}
        if self.landmarks is not None:
            measured["probe_landmark_error"] = landmark_error(torch.cat(maps), self.landmarks)
        if self.labels is not None:
            measured["probe_neighbour_accuracy"] = neighbour_accuracy(vectors, self.labels)
        return measured


def effective_rank(vectors: Tensor) -> float:
    """RankMe of `[N, C]`: e to the entropy of its singular values, brought to a sum of 1; 0 of zeros alone."""
    values = torch.linalg.svdvals(vectors.double())
    shares = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
    return math.exp(torch.special.entr(shares).sum().item()) if values.sum() > 0 else 0.0


def joined_stages(maps: list[Tensor]) -> Tensor:
    """Unit vectors `[B, sum of C, h, w]` of the maps of all stages, which weigh alike, at the size of the finest."""
    size = maps[0].shape[-2:]
    finest = [F.interpolate(F.normalize(part.float(), dim=1), size=size, mode="bilinear") for part in maps]
    return F.normalize(torch.cat(finest, dim=1), dim=1)


def landmark_error(maps: Tensor, landmarks: Tensor) -> float:
    """Mean distance between landmarks and where those of each other image are found, by the most similar node.

    Args:
        maps: Unit vectors `[N, D, h, w]`.
        landmarks: `[N, L, 2]`, x and y as shares of the image's sides.
    """
    height, width = maps.shape[-2:]
    at_landmarks = sample_embeddings(maps, 2 * landmarks - 1)  # [N, L, D]
    errors = []
    for target, true in zip(maps, landmarks, strict=True):
        best = torch.einsum("nld,dp->nlp", at_landmarks, target.flatten(1)).argmax(dim=2)
        places = torch.stack([(best % width + 0.5) / width, (best // width + 0.5) / height], dim=2)
        errors.append((places - true).norm(dim=2).mean(dim=1))
    others = ~torch.eye(len(maps), dtype=torch.bool)
    return torch.stack(errors)[others].mean().item()


def neighbour_accuracy(vectors: Tensor, labels: Tensor) -> float:
    """Share of rows whose nearest others, by cosine, vote for their own label; a draw goes to the smaller number."""
    count = min(_NEIGHBOURS, len(vectors) - 1)
    _, rows = nearest_neighbours(vectors, vectors, count + 1)
    own = torch.arange(len(rows))[:, None]
    others = torch.stack([row[row != i][:count] for i, row in zip(own[:, 0], rows, strict=True)])
    return (labels[others].mode(dim=1).values == labels).float().mean().item()
