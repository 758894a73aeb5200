"""The order of things: which images make up each batch of each stage, and the learning rate there.

Everything here is a function of the settings and the position, never of the number of processes or workers, so that
a resumed run equals an uninterrupted one, and two processes one.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.utils.data import Sampler

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


def learning_rate(stage: Stage, step: int, total_steps: int) -> float:
    """Half a cosine from the stage's rate at its first step to 0 after its last, without warm-up (as published)."""
    return 0.5 * stage.learning_rate * (1 + math.cos(math.pi * step / total_steps))


def epoch_order(indices: Tensor, seed: int, epoch: int) -> Tensor:
    """`indices` (int64, any length) in the order of `epoch`, counted over the whole run."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return indices[torch.randperm(len(indices), generator=generator)]


class StageBatches(Sampler[list[int]]):
    """This process's share of the batches of a stage, from a position on: lists of image indices.

    The images left over at an epoch's end, fewer than a batch, are not used in that epoch; the next draws anew. With
    accumulation or several processes, a batch is cut into equal pieces in order: piece `p` of process `r` of `R` is
    chunk `p * R + r`, so that the pieces of all processes together are the batch in order.

    Raises:
        ValueError: there are fewer images than a batch, or the batch does not split evenly.
    """

    def __init__(
        self, indices: Tensor, batch_size: int, *, epochs: int, seed: int, first_epoch: int,
        start: tuple[int, int] = (0, 0), pieces: int = 1, rank: int = 0, world_size: int = 1,
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
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        """Pieces left for this process."""
        epoch, batch = self.start
        return ((self.epochs - epoch) * self.batches_per_epoch - batch) * self.pieces

    def __iter__(self) -> Iterator[list[int]]:
        start_epoch, start_batch = self.start
        for epoch in range(start_epoch, self.epochs):
            order = epoch_order(self.indices, self.seed, self.first_epoch + epoch)
            first = start_batch if epoch == start_epoch else 0
            for batch in range(first, self.batches_per_epoch):
                chunks = order[batch * self.batch_size :][: self.batch_size].chunk(self.pieces * self.world_size)
                for piece in range(self.pieces):
                    yield chunks[piece * self.world_size + self.rank].tolist()
