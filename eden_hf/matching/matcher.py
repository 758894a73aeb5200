"""`AnatomyMatcher`: points and masks of annotated references found in new images, by their embeddings.

A point is where the embeddings of all references that have it agree best, near where a smooth map through the mutual
matches of the whole image puts it, exact beyond the grid by the mean over its neighbourhood. How alike it is, and how
far away the picture is alike as well, tells how much to trust it.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from eden_hf.data.references import Reference, mask_names, point_names
from eden_hf.encoders import Encoder
from eden_hf.matching.dense_maps import DenseMap, dense_maps
from eden_hf.matching.prototypes import Prototypes, make_prototypes
from eden_hf.modeling_eden_dense import SmoothMap, match_smoothly, node_places


class FoundPoint(NamedTuple):
    """A point in a target.

    Attributes:
        x, y: Pixel indices in the target; (0, 0) is the centre of its top left pixel.
        confidence: Between 0 and 1; about the share of such points that lie within 5 % of the side of the truth.
        found: Whether it has a counterpart at all: `confidence` is at or above the matcher's threshold.
    """

    x: float
    y: float
    confidence: float
    found: bool


@dataclass(frozen=True)
class MatcherArguments:
    """How points are looked for.

    Args:
        method: `points` as described in this module; `window` is the paper's: the nearest cosine alone.
        scales: Sizes at which an image is embedded, as multiples of the processor's; their similarities are averaged.
        temperature: Of similarities.
        reach: Radius of the neighbourhood over which a place is averaged, as a share of the side.
        map_grid: Bumps a side of the smooth map.
        map_spread: How far a point may lie from where the smooth map puts it, as a share of the side.
        least_confidence: Below it a point counts as not found.
    """

    method: Literal["points", "window"] = "points"
    scales: tuple[float, ...] = (1.0, 1.2, 1.4, 1.6)
    temperature: float = 0.03
    reach: float = 0.056
    map_grid: int = 6
    map_spread: float = 0.08
    least_confidence: float = 0.55


@dataclass(frozen=True, eq=False)
class EmbeddedImage:
    """An image as a matcher sees it, to be embedded once and matched often: `embed_image`.

    Attributes:
        maps: Its dense map at each scale.
        smooth_maps: To this image from each that it was matched with, for as long as that one is held.
    """

    maps: list[DenseMap]
    smooth_maps: WeakKeyDictionary["EmbeddedImage", SmoothMap] = field(default_factory=WeakKeyDictionary, repr=False)

    @property
    def side(self) -> int:
        """Of the grid that similarities are brought to."""
        return max(part.vectors.shape[-1] for part in self.maps)


def embed_image(encoder: Encoder, image: Image.Image, arguments: MatcherArguments | None = None) -> EmbeddedImage:
    """Embed an image (mode L or RGB, any size) for matchers with the same encoder and arguments."""
    arguments = arguments or MatcherArguments()
    scales = arguments.scales if encoder.is_dense and arguments.method == "points" else (1.0,)
    return EmbeddedImage([dense_maps(encoder, [image], scale)[0] for scale in scales])


class AnatomyMatcher:
    """Finds the points and masks of references in other images.

    Args:
        encoder: With a dense decoder, or any other (by windows, which are coarser and slower).
        references: At least one.
        arguments: How.
        unlabelled: Images without annotation, of the same kind: points found in them, and found back from them, join
            the references' embeddings.
        embedded: The references' images by `embed_image`, where they are at hand already.

    Raises:
        ValueError: there are no references.

    Example:

        >>> matcher = AnatomyMatcher(load_encoder("model"), [Reference(image, points={"apex": (120.0, 40.5)})])
        >>> matcher.find(another)["apex"]
        FoundPoint(x=..., y=..., confidence=..., found=True)
    """

    def __init__(
        self,
        encoder: Encoder,
        references: Sequence[Reference],
        arguments: MatcherArguments | None = None,
        unlabelled: Iterable[Image.Image] = (),
        embedded: Sequence[EmbeddedImage] | None = None,
    ) -> None:
        if not references:
            raise ValueError("there are no references: at least one annotated image is needed")
        self.encoder, self.references, self.arguments = encoder, list(references), arguments or MatcherArguments()
        self.point_names, self.mask_names = point_names(references), mask_names(references)
        self._embedded = list(embedded or (self._embed(reference.image) for reference in references))
        self._prototypes: list[Prototypes] = []  # one a scale
        if self.point_names:
            sightings = [self._sighting(*pair) for pair in zip(references, self._embedded, strict=True)]
            self._prototypes = _prototypes(sightings)
            if found := [self._sure_sighting(image) for image in unlabelled]:
                self._prototypes = _prototypes(sightings + found)

    def find(self, image: Image.Image | EmbeddedImage) -> dict[str, FoundPoint]:
        """Each point of the references in `image` (mode L or RGB, any size; or embedded already)."""
        if not self.point_names:
            return {}
        target = self._embed(image)
        places, confidence = self._find(target)
        points = target.maps[0].points(places)
        return {
            name: FoundPoint(x, y, sure, sure >= self.arguments.least_confidence)
            for name, (x, y), sure in zip(self.point_names, points.tolist(), confidence.tolist(), strict=True)
        }

    def find_all(self, images: Iterable[Image.Image]) -> Iterator[dict[str, FoundPoint]]:
        """`find` of each image, one after the other."""
        return (self.find(image) for image in images)

    def similarity(self, image: Image.Image) -> dict[str, np.ndarray]:
        """How alike the places of `image` are to each point: cosines `[h, w]` over the whole picture, no padding."""
        target = self._embed(image)
        cosines = self._similarities(target).mean(dim=0)
        margins = [round(target.side * (1 - share) / 2) for share in target.maps[0].covered]
        columns, rows = (slice(margin, target.side - margin) for margin in margins)
        return dict(zip(self.point_names, cosines[:, rows, columns].numpy(), strict=True))

    def carry_masks(self, image: Image.Image) -> dict[str, np.ndarray]:
        """Masks of the references brought over to `image` by smooth maps; several references vote.

        Returns:
            Boolean arrays `[H, W]` of the image's size by name.
        """
        target = self._embed(image)
        width, height = image.size
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        pixels = torch.stack([columns, rows], dim=-1).flatten(0, 1).float()
        votes = {name: torch.zeros(height, width) for name in self.mask_names}
        voters = dict.fromkeys(self.mask_names, 0)
        for reference, embedded in zip(self.references, self._embedded, strict=True):
            if not reference.masks:
                continue
            back = self._smooth_map(target, embedded)
            there = embedded.maps[0].points(back(target.maps[0].places(pixels)[None])[0])
            shares = (there + 0.5) / torch.tensor(reference.image.size)
            for name, mask in reference.masks.items():
                inside = torch.from_numpy(np.asarray(mask, np.float32))[None, None]
                carried = F.grid_sample(inside, 2 * shares[None, None] - 1, align_corners=False)
                votes[name] += carried.view(height, width)
                voters[name] += 1
        return {name: (total / max(1, voters[name]) > 0.5).numpy() for name, total in votes.items()}

    def _embed(self, image: Image.Image | EmbeddedImage) -> EmbeddedImage:
        return image if isinstance(image, EmbeddedImage) else embed_image(self.encoder, image, self.arguments)

    def _smooth_map(self, source: EmbeddedImage, target: EmbeddedImage) -> SmoothMap:
        if source not in target.smooth_maps:
            dense, other = (part.maps[0].vectors[None] for part in (source, target))
            target.smooth_maps[source] = match_smoothly(dense, other, grid=self.arguments.map_grid)[0]
        return target.smooth_maps[source]

    def _similarities(self, target: EmbeddedImage) -> Tensor:
        """Cosine `[S, P, side, side]` with the prototypes at each scale."""
        scales = zip(target.maps, self._prototypes, strict=True)
        return torch.stack([prototypes.similarities(part, target.side) for part, prototypes in scales])

    def _find(self, target: EmbeddedImage) -> tuple[Tensor, Tensor]:
        """Places `[P, 2]` and confidences `[P]`."""
        similarities = self._similarities(target).flatten(2)
        if self.arguments.method == "window":
            best, index = similarities[0].max(dim=1)
            return node_places(target.side, target.side)[index], best.clamp(0, 1)
        guesses = self._guesses(target)
        places = self._settle(similarities.mean(dim=0), guesses)
        return places, self._confidence(similarities.mean(dim=0), places)

    def _settle(self, similarity: Tensor, guesses: Tensor) -> Tensor:
        """Places `[P, 2]` where similarity `[P, side^2]` and guesses `[P, 2]` agree best."""
        side = math.isqrt(similarity.shape[1])
        nodes, spread = node_places(side, side), self.arguments.map_spread
        logits = similarity / self.arguments.temperature - torch.cdist(guesses, nodes).square() / (2 * spread**2)
        best = nodes[logits.argmax(dim=1)]
        near = torch.cdist(best, nodes) < self.arguments.reach
        return torch.softmax(logits.masked_fill(~near, -torch.inf), dim=1) @ nodes

    def _guesses(self, target: EmbeddedImage) -> Tensor:
        """Where smooth maps put the points `[P, 2]`: the median over the references that have them."""
        guessed = torch.full((len(self.references), len(self.point_names), 2), torch.nan)
        for index, (reference, embedded) in enumerate(zip(self.references, self._embedded, strict=True)):
            if reference.points:
                rows = [self.point_names.index(name) for name in reference.points]
                guessed[index, rows] = self._smooth_map(embedded, target)(_places(reference, embedded)[None])[0]
        return guessed.nanmedian(dim=0).values

    def _confidence(self, similarity: Tensor, places: Tensor) -> Tensor:
        """How much to trust each place `[P]`, of similarity `[P, side^2]`."""
        return torch.sigmoid(CONFIDENCE[-1] - self._doubts(similarity, places) @ torch.tensor(CONFIDENCE[:-1]))

    def _doubts(self, similarity: Tensor, places: Tensor) -> Tensor:
        """What speaks against each place, `[P, 2]`, as logarithms.

        How far from it the rest of the picture is alike, as a share of the side, and how far from 1 the cosine is.
        """
        side = math.isqrt(similarity.shape[1])
        posterior = torch.softmax(similarity / self.arguments.temperature, dim=1)
        spread = (posterior * torch.cdist(places, node_places(side, side))).sum(dim=1)
        unlike = 1 - similarity.amax(dim=1)
        return torch.stack([torch.log(spread + 0.005), torch.log(unlike.clamp(min=0) + 0.02)], dim=1)

    def _sighting(self, reference: Reference, embedded: EmbeddedImage) -> list[Tensor]:
        """Embeddings `[P, D]` of the reference's points at each scale, NaN where it has none of the name."""
        rows = [self.point_names.index(name) for name in reference.points]
        places = _places(reference, embedded)
        sightings = []
        for part in embedded.maps:
            sightings.append(torch.full((len(self.point_names), len(part.vectors)), torch.nan))
            sightings[-1][rows] = part.at(places)
        return sightings

    def _sure_sighting(self, image: Image.Image) -> list[Tensor]:
        """The same of an image without annotation, of the points that are found in it for sure."""
        target = self._embed(image)
        places, confidence = self._find(target)
        unsure = (confidence < _SURE)[:, None]
        return [part.at(places).masked_fill(unsure, torch.nan) for part in target.maps]


#: Logistic regression of "within 5 % of the side" on the doubts, and its constant (`scripts/fit_confidence.py`, on
#: phantoms and SCR's training fold).
CONFIDENCE = (3.87, 1.77, -17.53)
#: Confidence at which a point found in an unlabelled image joins the prototypes.
_SURE = 0.8


def _places(reference: Reference, embedded: EmbeddedImage) -> Tensor:
    """The reference's points as shares `[P, 2]` of the square that the model sees."""
    points = torch.tensor(list(reference.points.values()), dtype=torch.float32).view(-1, 2)
    return embedded.maps[0].places(points)


def _prototypes(sightings: Sequence[Sequence[Tensor]]) -> list[Prototypes]:
    """Prototypes at each scale, of the sightings at each scale."""
    return [make_prototypes(torch.stack(scale)) for scale in zip(*sightings, strict=True)]
