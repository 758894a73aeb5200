"""`PixelClassifier`: masks of structures in new images, from one or a few annotated examples.

A small network tells which structures a pixel belongs to: from its dense embeddings at several sizes of the image,
which know the place in the body, and from the grey values around it, which know where edges run. The encoder stays as
it is. What the few references show is stretched by deformed copies of them, changed in intensity.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from eden_hf.data.point_views import make_annotated_copies
from eden_hf.data.references import Reference, mask_names
from eden_hf.data.view_arguments import PointArguments
from eden_hf.encoders import Encoder
from eden_hf.matching.dense_maps import DenseMap, dense_maps
from eden_hf.training.optimizers import make_optimizer

#: Copies of references: milder than the views that the dense stage learns from, as embeddings bear those already.
COPIES = PointArguments(
    size=320,
    scale=(0.85, 1.19),
    aspect=0.065,
    rotation_degrees=8.5,
    shift=0.11,
    elastic=0.025,
    gamma=0.24,
    gain=0.21,
    noise=0.03,
    blur_probability=0.2,
    inversion_probability=0.0,
    hole_probability=0.0,
    marker_probability=0.0,
    border_probability=0.15,
)


@dataclass(frozen=True)
class ClassifierArguments:
    """How the classifier learns.

    Args:
        scales: Sizes at which an image is embedded, as multiples of the processor's; the classifier sees all of them.
        hidden_size: Units of the hidden layer.
        copies: Deformed copies of each reference, besides itself.
        pixels: Pixels learned from of each copy: half of them anywhere, half in and around the structures.
        steps: Of AdamW, with `batch_size` pixels each and the learning rate falling to 0.
        batch_size: Pixels in one step.
        learning_rate: At the start.
        weight_decay: Of AdamW.
        dropout: Share of hidden units left out in training.
        side: Pixels of the longer side at which grey values are seen and masks told, before those are brought to the
            image's own size.
        views: The recipe of the copies.
    """

    scales: tuple[float, ...] = (1.0, 1.4, 1.6)
    hidden_size: int = 64
    copies: int = 15
    pixels: int = 2400
    steps: int = 500
    batch_size: int = 4096
    learning_rate: float = 3e-3
    weight_decay: float = 1e-3
    dropout: float = 0.1
    side: int = 256
    views: PointArguments = field(default_factory=lambda: COPIES)


class PixelClassifier:
    """Learns masks from references, and tells them in other images.

    Args:
        encoder: With a dense decoder, or any other (by windows, which are coarser and slower).
        arguments: How.
        seed: Of the copies, the weights and the pixels that are drawn. Global random state is left alone.

    Example:

        >>> classifier = PixelClassifier(load_encoder("model")).fit([Reference(image, masks={"heart": mask})])
        >>> classifier.predict(another)["heart"]
        array([[False, ...
    """

    def __init__(self, encoder: Encoder, arguments: ClassifierArguments | None = None, seed: int = 0) -> None:
        self.encoder, self.arguments, self.seed = encoder, arguments or ClassifierArguments(), seed
        self.names: list[str] = []

    def fit(self, references: Sequence[Reference]) -> "PixelClassifier":
        """Learn from scratch. A structure that a reference has no mask of is not annotated there, not absent.

        Raises:
            ValueError: no reference has a mask.
        """
        self.names = mask_names(references)
        if not self.names:
            raise ValueError(f"none of the {len(references)} references has a mask: a classifier learns from masks")
        generator = torch.Generator().manual_seed(self.seed)
        drawn = [self._pixels(reference, generator) for reference in references if reference.masks]
        features, inside = (torch.cat(part) for part in zip(*drawn, strict=True))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self._hidden, self._output = _train(features, inside, self.arguments)
        return self

    def predict(self, image: Image.Image) -> dict[str, np.ndarray]:
        """Masks of `image` (mode L or RGB, any size): boolean `[H, W]` of its size by name; they may overlap."""
        return {name: probability > 0.5 for name, probability in self.probabilities(image).items()}

    @torch.no_grad()
    def probabilities(self, image: Image.Image) -> dict[str, np.ndarray]:
        """How sure each pixel is inside: float32 `[H, W]` of the image's size in [0, 1], by name.

        Raises:
            RuntimeError: nothing was learned yet.
        """
        if not self.names:
            raise RuntimeError("this classifier has learned nothing yet: call `fit` with references first")
        width, height = image.size
        shrink = self.arguments.side / max(image.size)
        rows, columns = (max(1, round(length * shrink)) for length in (height, width))
        axes = [
            (torch.arange(count) + 0.5) * step - 0.5
            for count, step in ((rows, height / rows), (columns, width / columns))
        ]
        points = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], dim=-1).flatten(0, 1)
        # The hidden layer is linear in each map: it is applied before the map is brought to many pixels.
        maps, hidden = self._embed(image), self._hidden.bias.view(-1)
        weights = self._hidden.weight.split([len(part.vectors) for part in maps], dim=1)
        for part, weight in zip(maps, weights, strict=True):
            hidden = hidden + _sample(torch.einsum("kd,dhw->khw", weight, part.vectors), part.places(points))
        logits = self._output(hidden.relu()).T.view(1, -1, rows, columns)
        logits = F.interpolate(logits, size=(height, width), mode="bilinear")[0]
        return dict(zip(self.names, logits.sigmoid().numpy(), strict=True))

    def _embed(self, image: Image.Image) -> list[DenseMap]:
        """What the classifier sees of an image: its embeddings at each scale, and its grey patches."""
        scales = self.arguments.scales if self.encoder.is_dense else (1.0,)
        patches = DenseMap(grey_patches(image, self.arguments.side), image.size)
        return [*(dense_maps(self.encoder, [image], scale)[0] for scale in scales), patches]

    def _pixels(self, reference: Reference, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Features `[N, scales x D + 52]` of drawn pixels, and `[N, L]` how far inside each is (NaN: not told)."""
        features, inside = [], []
        for image, masks in self._copies(reference, generator):
            points = _draw_points(masks, self.arguments.pixels, generator)
            maps = self._embed(image)
            features.append(torch.cat([_sample(part.vectors, part.places(points)) for part in maps], dim=1))
            inside.append(_sample(masks, (points + 0.5) / torch.tensor(image.size)))
        return torch.cat(features), torch.cat(inside)

    def _copies(self, reference: Reference, generator: torch.Generator) -> list[tuple[Image.Image, Tensor]]:
        """The reference and copies of it, none larger than views are, with masks `[L, H, W]` (NaN: there is none)."""
        image = reference.image.convert("RGB") if reference.image.mode != "L" else reference.image
        masks = _stacked(reference.masks, self.names, image.size)
        size = self.arguments.views.size
        width, height = (max(1, round(length * min(1, size / max(image.size)))) for length in image.size)
        pixels = torch.from_numpy(np.array(image)).view(image.height, image.width, -1).permute(2, 0, 1)
        seed = int(torch.randint(2**31, (), generator=generator))
        copies, warped = make_annotated_copies(pixels, masks, self.arguments.copies, self.arguments.views, seed=seed)
        warped = F.interpolate(warped, size=(height, width), mode="bilinear", antialias=True)
        pictures = [Image.fromarray(copy.permute(1, 2, 0).squeeze(2).numpy()) for copy in copies]
        resized = [picture.resize((width, height), Image.Resampling.BILINEAR) for picture in pictures]
        return [(image, masks), *zip(resized, warped, strict=True)]


def grey_patches(image: Image.Image, side: int) -> Tensor:
    """Grey values in and around each pixel of an image brought to `side` pixels along its longer side.

    Returns:
        `[52, h, w]`: a patch of 5 x 5 pixels, and one of 5 x 5 means of 3 x 3, both of grey values normalised by the
        33 x 33 pixels around each; the grey value itself and the mean of those, normalised by the whole image.
    """
    shrink = side / max(image.size)
    size = [max(1, round(length * shrink)) for length in (image.height, image.width)]
    pixels = torch.from_numpy(np.array(image.convert("L"), np.float32))[None, None]
    grey = F.interpolate(pixels, size=size, mode="bilinear", antialias=True)
    grey = (grey - grey.mean()) / grey.std().clamp(min=1e-3)
    mean = _blurred(grey, 33)
    std = (_blurred(grey.square(), 33) - mean.square()).clamp(min=0).sqrt()
    normal = (grey - mean) / (std + 0.1)
    fine, coarse = _neighbours(normal, 1), _neighbours(_blurred(normal, 3), 3)
    return torch.cat([fine, coarse, grey, mean], dim=1)[0]


def _blurred(values: Tensor, width: int) -> Tensor:
    """Means over `width` x `width`; the edge's pixels go on beyond it."""
    return F.avg_pool2d(F.pad(values, [width // 2] * 4, mode="replicate"), width, stride=1)


def _neighbours(values: Tensor, step: int) -> Tensor:
    """`[1, 25, h, w]` of `[1, 1, h, w]`: the values at 5 x 5 places `step` apart."""
    padded = F.pad(values, [2 * step] * 4, mode="replicate")
    return F.unfold(padded, 5, dilation=step).view(1, 25, *values.shape[-2:])


def _stacked(masks: Mapping[str, np.ndarray], names: Sequence[str], size: tuple[int, int]) -> Tensor:
    """Masks as float `[L, H, W]` in the order of `names`, NaN where there is none."""
    width, height = size
    missing = torch.full((height, width), torch.nan)
    return torch.stack([torch.from_numpy(np.asarray(masks[n], np.float32)) if n in masks else missing for n in names])


def _draw_points(masks: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Pixel indices `[N, 2]` of about `count` places: half anywhere, half in and a little around each structure."""
    height, width = masks.shape[-2:]
    size = torch.tensor([width, height])
    drawn = [torch.rand(count // 2, 2, generator=generator) * size - 0.5]
    for mask in masks:
        inside = (mask > 0.5).nonzero().flip(1)
        if len(inside):
            share = count // 2 // len(masks)
            chosen = inside[torch.randint(len(inside), (share,), generator=generator)]
            astray = torch.randn(share, 2, generator=generator) * (size / 64)
            drawn.append((chosen + astray).clamp(min=torch.tensor([-0.5, -0.5]), max=size - 0.5))
    return torch.cat(drawn)


def _train(features: Tensor, inside: Tensor, arguments: ClassifierArguments) -> tuple[nn.Linear, nn.Linear]:
    """The hidden and the output layer, by cross-entropy and Dice of batches of pixels."""
    hidden = nn.Linear(features.shape[1], arguments.hidden_size)
    output = nn.Linear(arguments.hidden_size, inside.shape[1])
    network = nn.Sequential(hidden, nn.ReLU(), nn.Dropout(arguments.dropout), output)
    optimizer = make_optimizer(network, "adamw", lr=arguments.learning_rate, weight_decay=arguments.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, arguments.steps)
    mean, std = features.mean(dim=0), features.std(dim=0).clamp(min=1e-3)
    for _ in range(arguments.steps):
        rows = torch.randint(len(features), (arguments.batch_size,))
        loss = _loss(network((features[rows] - mean) / std), inside[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():  # standardisation becomes part of the layer
        hidden.weight.div_(std)
        hidden.bias.sub_(hidden.weight @ mean)
    return hidden, output


def _loss(logits: Tensor, inside: Tensor) -> Tensor:
    """Cross-entropy and Dice of `[N, L]` against how far pixels are inside; NaN does not count."""
    known = inside.isfinite()
    inside, probability = inside.nan_to_num(0), logits.sigmoid() * known
    entropy = F.binary_cross_entropy_with_logits(logits, inside, weight=known.float())
    overlap = (2 * (probability * inside).sum(dim=0) + 1) / (probability.sum(dim=0) + inside.sum(dim=0) + 1)
    return entropy + 1 - overlap.mean()


def _sample(values: Tensor, places: Tensor) -> Tensor:
    """Values `[C, h, w]` at shares of the sides `[P, 2]`, by bilinear interpolation: `[P, C]`."""
    grid = 2 * places[None, None] - 1
    return F.grid_sample(values[None], grid, padding_mode="border", align_corners=False)[0, :, 0].T
