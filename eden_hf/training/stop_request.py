"""SIGTERM and Ctrl-C: a run saves a checkpoint and ends."""

import signal
from types import FrameType
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from transformers import TrainerCallback, TrainerControl, TrainerState


class StopRequest:
    """SIGTERM or SIGINT as a request, answered after the optimiser step; a second one ends the process at once."""

    def __enter__(self) -> "StopRequest":
        self.requested = False
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(number, signal.SIG_DFL)

    def agreed(self, step: int, every: int) -> bool:
        """Whether a signal asked any process to stop; several processes agree on it each `every` steps.

        Args:
            step: Optimiser steps taken; every process calls this after each.
            every: Steps between agreements.
        """
        state = PartialState()
        if state.num_processes == 1:
            return self.requested
        return step % every == 0 and bool(reduce(torch.tensor([float(self.requested)], device=state.device)).item())


class StopTraining(TrainerCallback):
    """Lets a `StopRequest` end a `Trainer` with a checkpoint."""

    def __init__(self, request: StopRequest, every: int) -> None:
        self.request, self.every = request, every
        self.stopped_at: int | None = None

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop before the end, if asked."""
        if state.global_step < state.max_steps and self.request.agreed(state.global_step, self.every):
            self.stopped_at = state.global_step
            control.should_log = control.should_save = control.should_training_stop = True
