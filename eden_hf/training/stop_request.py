"""SIGTERM and Ctrl-C: a run saves a checkpoint and ends."""

import signal
import time
from types import FrameType
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from transformers import TrainerCallback, TrainerControl, TrainerState

#: Seconds in which signals are one request: `timeout` and torchrun send theirs to the process and to its group.
ONE_REQUEST = 1.0


class StopRequest:
    """SIGTERM or SIGINT as a request, answered after the optimiser step; one more, later, ends the process at once."""

    def __enter__(self) -> "StopRequest":
        self.requested, self._since = False, 0.0
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if not self.requested:
            self.requested, self._since = True, time.monotonic()
        elif time.monotonic() - self._since > ONE_REQUEST:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

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
