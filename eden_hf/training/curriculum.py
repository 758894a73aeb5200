"""The order of things: which images make up each batch of each stage, and the learning rate there.

Everything here is a function of the settings and the position, never of the number of processes or workers, so that
a resumed run equals an uninterrupted one, and two processes one.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from eden_hf.data.prepared import RowGroups
from eden_hf.training.arguments import Stage


@dataclass
class Progress:
    """Position of a run: the next optimiser step to take, and what was reached so far.

    Attributes: `stage` and `epoch` (within the stage) and `batch` (within the epoch) say where; `step` counts the
    optimiser steps of the whole run, `seen_epochs` its whole epochs; `best_validation_loss` is that of the stage.
    """

    stage: int = 0
    epoch: int = 0
    batch: int = 0
    step: int = 0
    seen_epochs: int = 0
    best_validation_loss: float = math.inf

    def to_dict(self) -> dict[str, float]:
        """The fields, for JSON."""
        return asdict(self)


def half_cosine(start: float, end: float, step: int, total_steps: int) -> float:
    """From `start` at step 0 to `end` at `total_steps`."""
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * step / total_steps))


def learning_rate(stage: Stage, step: int, total_steps: int) -> float:
    """Half a cosine from the stage's rate to its final one after its last step, behind a linear warm-up if any.

    The warm-up's first step has the rate 0, and its last the peak, as has the next (Adam-v2, as published).
    """
    warmup = stage.warmup_epochs * total_steps // stage.total_epochs
    if step < warmup:
        return step * stage.learning_rate / max(1, warmup - 1)
    return half_cosine(stage.learning_rate, stage.final_learning_rate, step - warmup, total_steps - warmup)


def weight_decay(stage: Stage, step: int, total_steps: int) -> float:
    """The stage's, or half a cosine to its final one."""
    if stage.final_weight_decay is None:
        return stage.weight_decay
    return half_cosine(stage.weight_decay, stage.final_weight_decay, step, total_steps)


def teacher_temperature(stage: Stage, epoch: int, final: float) -> float:
    """Linear over the stage's first epochs from its first to the `final` one, which the last of them has."""
    first, epochs = stage.first_teacher_temperature, stage.teacher_temperature_epochs
    if first is None or epoch >= epochs:
        return final
    return first + (final - first) * epoch / max(1, epochs - 1)


def validation_interval(train_images: int, validation_images: int) -> int:
    """Epochs between validations, so that these take at most a fiftieth of the time.

    An image costs half as much to validate as to train on: two forward passes, where training has two and a backward
    pass, which is as much as another two.
    """
    return max(1, math.ceil(validation_images / 2 / (train_images / 50)))


def epoch_order(indices: Tensor, seed: int, epoch: int, row_groups: RowGroups | None = None) -> Tensor:
    """`indices` (int64, any length) in the order of `epoch`, counted over the whole run.

    Images in `row_groups` come group after group, in an order of the epoch, each up to a window later than its turn:
    those under way at a time are no more groups than fill the window.
    """
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    if row_groups is None:
        return indices[torch.randperm(len(indices), generator=generator)]
    group = torch.searchsorted(row_groups.starts, indices, right=True) - 1
    order = torch.randperm(len(row_groups.starts), generator=generator)
    sizes = torch.bincount(group, minlength=len(order))[order]
    turns = torch.empty_like(order)
    turns[order] = sizes.cumsum(0) - sizes
    later = row_groups.window * torch.rand(len(indices), generator=generator, dtype=torch.float64)
    return indices[torch.argsort(turns[group] + later, stable=True)]


def key_order(size: int, *, seed: int, epoch: int, batch: int, piece: int) -> Tensor:
    """The order [size] int64 in which the keys of a piece of all processes are shuffled over them."""
    drawn = np.random.default_rng([seed % 2**64, epoch, batch, piece])
    return torch.from_numpy(drawn.permutation(size))


class FullBatches(Sampler[int]):
    """Indices of an epoch's images, in an order of its own, and some again to fill the last batch.

    BatchNorm takes no batch of one, and few shots fill none. What fills is drawn anew for each epoch, in turn: over
    the epochs all images are seen equally often, but for one time.

    Args:
        images: How many there are.
        batch_size: Over all processes together.
        seed: Of the orders.
        epoch: Tells the epoch whenever one begins, also in the middle of it on resuming.
    """

    def __init__(self, images: int, batch_size: int, seed: int, epoch: Callable[[], int]) -> None:
        self.images, self.seed, self.epoch = images, seed, epoch
        self.filled = math.ceil(images / batch_size) * batch_size

    def __len__(self) -> int:
        """Indices of an epoch, a multiple of the batch."""
        return self.filled

    def __iter__(self) -> Iterator[int]:
        everything, spare, epoch = torch.arange(self.images), self.filled - self.images, self.epoch()
        yield from epoch_order(everything, self.seed, epoch).tolist()
        turns = range(epoch * spare, (epoch + 1) * spare)
        orders = {turn: epoch_order(everything, self.seed + 1, turn) for turn in {t // self.images for t in turns}}
        yield from (int(orders[turn // self.images][turn % self.images]) for turn in turns)


@contextmanager
def enough_values(batch_size: str, size: str) -> Iterator[None]:
    """Name the settings that leave BatchNorm one value a channel: one image, of which the last map is one pixel.

    Raises:
        ValueError: they do.
    """
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ValueError(
            f"BatchNorm needs more than one image a process and step where the trunk's last map is one pixel: raise "
            f"`{batch_size}` (or use fewer processes or pieces) or `{size}`"
        ) from error


class StageBatches(Sampler[list[int]]):
    """This process's share of the batches of a stage, from a position on: lists of image indices.

    The images left over at an epoch's end, fewer than a batch, are not used in that epoch; the next draws anew. With
    accumulation or several processes, a batch is cut into equal pieces in order: piece `p` of process `r` of `R` is
    chunk `p * R + r`, so that the pieces of all processes together are the batch in order. With `shuffled_keys`, as
    many indices follow in each list: of the images whose keys the process encodes, its chunk of the piece of all
    processes in their `key_order`.

    Raises:
        ValueError: there are fewer images than a batch, or the batch does not split evenly.
    """

    def __init__(
        self, indices: Tensor, batch_size: int, *, epochs: int, seed: int, first_epoch: int,
        start: tuple[int, int] = (0, 0), pieces: int = 1, rank: int = 0, world_size: int = 1,
        shuffled_keys: bool = False, row_groups: RowGroups | None = None,
    ) -> None:  # fmt: skip
        if batch_size % (pieces * world_size):
            raise ValueError(
                f"training.batch_size {batch_size} does not split into {pieces} accumulated batches on each of "
                f"{world_size} processes; make it a multiple of {pieces * world_size}"
            )
        self.batches_per_epoch = len(indices) // batch_size
        if not self.batches_per_epoch:
            raise ValueError(
                f"there are {len(indices)} training images, fewer than one batch; lower training.batch_size "
                f"({batch_size}) or data.holdout_share, or add images"
            )
        self.indices, self.batch_size, self.epochs, self.seed = indices, batch_size, epochs, seed
        self.first_epoch, self.start, self.pieces = first_epoch, start, pieces
        self.rank, self.world_size, self.shuffled_keys = rank, world_size, shuffled_keys
        self.row_groups = row_groups

    def __len__(self) -> int:
        """Pieces left for this process."""
        epoch, batch = self.start
        return ((self.epochs - epoch) * self.batches_per_epoch - batch) * self.pieces

    def __iter__(self) -> Iterator[list[int]]:
        start_epoch, start_batch = self.start
        for epoch in range(start_epoch, self.epochs):
            order = epoch_order(self.indices, self.seed, self.first_epoch + epoch, self.row_groups)
            first = start_batch if epoch == start_epoch else 0
            for batch in range(first, self.batches_per_epoch):
                chunks = order[batch * self.batch_size :][: self.batch_size].chunk(self.pieces * self.world_size)
                for piece in range(self.pieces):
                    shares = chunks[piece * self.world_size :][: self.world_size]
                    mine = shares[self.rank]
                    if self.shuffled_keys:
                        everyone = torch.cat(shares)
                        position = {"epoch": self.first_epoch + epoch, "batch": batch, "piece": piece}
                        shuffled = everyone[key_order(len(everyone), seed=self.seed, **position)]
                        mine = torch.cat([mine, shuffled.chunk(self.world_size)[self.rank]])
                    yield mine.tolist()
