"""A second pass for those who have a folder of images and minutes: the dense stage goes on, on their own images.

The model learns to find points of each image in its own deformations and in the other images, where its teacher finds
them; no annotation is used. Whether it helped is measured by the way there and back: points of a reference, found in
an image, are looked for in the reference again.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from eden_hf.data.references import Reference
from eden_hf.data.sources import load_source, read_cell
from eden_hf.data.view_arguments import PointArguments
from eden_hf.encoders import Encoder, load_encoder
from eden_hf.matching.matcher import AnatomyMatcher
from eden_hf.training.arguments import (
    DataArguments,
    ModelArguments,
    PretrainArguments,
    RunArguments,
    Stage,
    TrainingArguments,
)
from eden_hf.training.pretraining import pretrain

logger = logging.getLogger(__name__)

BATCH = 8
ADAPT_STEPS = 600
#: Images on which the way there and back is measured.
MEASURED = 12


class Adapted(NamedTuple):
    """What adaptation gave: the model's folder, and its error there and back before and after, in % of the side."""

    folder: Path
    before: float
    after: float

    @property
    def helped(self) -> bool:
        """Whether the way there and back became more exact."""
        return self.after < self.before


def adapt(
    model: str,
    references: Sequence[Reference],
    images: str,
    output: str | Path,
    *,
    steps: int = ADAPT_STEPS,
    seed: int = 0,
) -> Adapted:
    """Go on training a dense model on unlabelled images.

    Args:
        model: Folder or Hub id of an Eden model with a dense decoder.
        references: Annotated images with points, for measuring; nothing is learned from the annotation.
        images: The images: a folder, Parquet, a Hub data set id.
        output: Folder of the run, which must not hold one yet.
        steps: Optimiser steps, of 8 images each (about half a second on one CPU core).
        seed: Of all that is drawn.

    Raises:
        ValueError: the model has no dense decoder, or there are fewer than eight images.
        FileExistsError: `output` holds a run.
    """
    encoder = load_encoder(model)
    if not encoder.is_dense:
        raise ValueError(f"{model} has no dense decoder to adapt; pretrain it with a stage of objective points")
    rows = load_source(images)
    if len(rows) < BATCH:
        raise ValueError(f"adapting needs at least {BATCH} images, {images} has {len(rows)}")
    shown = [
        read_cell(row["image"], row["source_id"]).convert("L") for row in rows.select(range(min(MEASURED, len(rows))))
    ]
    before = there_and_back(encoder, references, shown)
    folder = pretrain(_arguments(model, images, Path(output), encoder, len(rows), steps, seed)) / "last"
    adapted = Adapted(folder, before, there_and_back(load_encoder(str(folder)), references, shown))
    logger.info("there and back: %.2f %% of the side before, %.2f %% after", before, adapted.after)
    return adapted


def there_and_back(encoder: Encoder, references: Sequence[Reference], images: Sequence[Image.Image]) -> float:
    """Mean distance between annotated points and where they are found again by way of other images, in % of the side.

    All points count, found for sure or not, so that a model cannot gain by giving up.
    """
    distances = []
    for reference in references:
        matcher, size = AnatomyMatcher(encoder, [reference]), reference.image.size
        for image in images:
            there = {name: _inside(point[:2], image.size) for name, point in matcher.find(image).items()}
            back = AnatomyMatcher(encoder, [Reference(image, points=there)]).find(reference.image)
            distances += [
                np.hypot(*((np.array(point[:2]) - reference.points[name]) / size)) for name, point in back.items()
            ]
    return 100 * float(np.mean(distances))


def _inside(point: tuple[float, float], size: tuple[int, int]) -> tuple[float, float]:
    x, y = (min(max(value, -0.5), side - 0.5) for value, side in zip(point, size, strict=True))
    return x, y


def _arguments(
    model: str, images: str, output: Path, encoder: Encoder, count: int, steps: int, seed: int
) -> PretrainArguments:
    """The settings of the run: one dense stage with partners."""
    batches = max(1, count // BATCH)
    stage = Stage(
        objective="points", epochs=max(1, round(steps / batches)), learning_rate=5e-4, weight_decay=0.05,
        optimizer="adamw", partner_weight=1.0,
    )  # fmt: skip
    return PretrainArguments(
        model=ModelArguments(start=model, teacher_momentum=0.995),
        data=DataArguments(source=images, holdout_share=0.0),
        points=PointArguments(size=encoder.processor.size["height"]),
        stages=[stage],
        training=TrainingArguments(
            batch_size=BATCH, mixed_precision="bf16", channels_last=True, max_grad_norm=5.0, seed=seed
        ),
        run=RunArguments(output_dir=str(output), num_workers=0, checkpoint_every=10**6),
    )
