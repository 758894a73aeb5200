"""What a run says of itself: metric lines, progress bar, trackers, and the alarm for a loss that is not finite."""

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from torch import Tensor
from torch.nn.utils import get_total_norm
from transformers import TrainerCallback

from eden_hf.data.progress import progress_bar
from eden_hf.data.text_files import append_line, read_lines, write_text
from eden_hf.modeling_eden import EdenForPreTrainingOutput, EdenPointOutput, EdenV2ForPreTrainingOutput
from eden_hf.training.curriculum import Progress

logger = logging.getLogger(__name__)


_MEND = (
    "lower stages[].learning_rate or set training.max_grad_norm, which may change with --resume (first remove the "
    "newest folder of checkpoints/ if the loss rises again at once)"
)


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, but for one that an interruption cut short."""
    return read_lines(file)


class NonFiniteLossError(RuntimeError):
    """The loss, or a weight after it, became infinite or NaN; the message says where and what helps."""


def health(output: EdenForPreTrainingOutput | EdenPointOutput | EdenV2ForPreTrainingOutput) -> dict[str, Tensor]:
    """Scalars of one batch that tell how the method fares, on the device; of the dense stage, those of its output.

    `embedding_std` is the standard deviation of the queries over the batch, mean over dimensions, times sqrt(D): 1 for
    directions spread evenly over the sphere, 0 for a collapsed encoder. Of Adam-v2 it is that of the teacher's
    embeddings, brought to unit length.
    """
    if isinstance(output, EdenPointOutput):
        return {name: value.detach() for name, value in output.items()}
    if isinstance(output, EdenV2ForPreTrainingOutput):
        losses = {name: value.detach() for name, value in output.items() if name.endswith("loss")}
        return losses | {"embedding_std": _spread(F.normalize(output.teacher_embeddings.float(), dim=1))}
    return {
        "loss": output.loss.detach(),
        "positive_similarity": output.positive_similarity.mean(),
        "pruned_share": output.pruned_share,
        "embedding_std": _spread(output.query_embeddings.detach().float()),
    }


def _spread(rows: Tensor) -> Tensor:
    return rows.std(dim=0, correction=0).mean() * math.sqrt(rows.shape[1])


#: What the progress bar shows of a line, and its name there.
_SHOWN = {
    "loss": "loss", "positive_similarity": "pos", "pruned_share": "pruned", "embedding_std": "std",
    "point_error": "error", "partner_error": "partner", "composability_loss": "comp", "decomposability_loss": "dec",
    "probe_landmark_error": "landmarks", "probe_neighbour_accuracy": "knn", "probe_effective_rank": "rank",
}  # fmt: skip


class LossGuard:
    """Stops the run at a non-finite loss: it keeps the losses, and reads them together when the run waits anyway."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.file = folder / (f"nonfinite-rank{rank}.json" if rank else "nonfinite.json")
        self._pending: list[tuple[Tensor, list[str], dict]] = []

    def watch(self, loss: Tensor, ids: list[str], where: dict[str, Any]) -> None:
        """Keep a loss (a scalar on any device) of the images `ids` for the next check. No device is waited for."""
        self._pending.append((loss.detach(), ids, where))

    def check(self) -> None:
        """Check the losses since the last check.

        Raises:
            NonFiniteLossError: one is infinite or NaN. The image ids of the first such batch are in `nonfinite.json`.
        """
        if not self._pending:
            return
        kept, self._pending = self._pending, []
        losses = torch.stack([loss for loss, _, _ in kept]).tolist()
        bad = next((index for index, loss in enumerate(losses) if not math.isfinite(loss)), None)
        if bad is None:
            return
        value, (_, ids, where) = losses[bad], kept[bad]
        write_text(self.file, json.dumps({"loss": str(value), **where, "ids": ids}, indent=2))
        raise NonFiniteLossError(
            f"the loss is {value} at step {where['step']}; the {len(ids)} images of the batch are listed in "
            f"{self.file}. Look at them; {_MEND}"
        )

    def check_weights(self, weights: Sequence[Tensor], step: int) -> None:
        """Check weights that are about to be kept: a step may have broken them, of which the next loss would tell.

        Raises:
            NonFiniteLossError: one is infinite or NaN.
        """
        if not get_total_norm(weights, norm_type=math.inf).isfinite():
            raise NonFiniteLossError(f"weights are no longer finite after step {step}; {_MEND}")


class MayFail:
    """Lets trackers fail, as their servers may: each is told of once, and the run goes on."""

    def __init__(self) -> None:
        self.failed: set[str] = set()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """What the tracker of a name is asked to do."""
        try:
            yield
        except Exception as error:
            if name not in self.failed:
                self.failed.add(name)
                logger.warning(
                    "the tracker %s failed (%s: %s): the run goes on, and metrics.jsonl has every number",
                    name, type(error).__name__, error,
                )  # fmt: skip


class Trackers:
    """Accelerate's experiment trackers, which may fail."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.may_fail = MayFail()
        self.started: list[GeneralTracker] = []
        asked, before = accelerator.log_with, accelerator.trackers
        for kind in asked:
            accelerator.log_with, accelerator.trackers = [kind], []
            with self.may_fail(getattr(kind, "name", str(kind))):
                accelerator.init_trackers("pretrain")
                self.started += accelerator.trackers
        accelerator.log_with, accelerator.trackers = asked, before

    def log(self, values: dict[str, float], step: int) -> None:
        """Send the values of a step to each."""
        for tracker in self.started:
            with self.may_fail(tracker.name):
                tracker.log(values, step=step)

    def finish(self) -> None:
        """Have each end its run."""
        for tracker in self.started:
            with self.may_fail(tracker.name):
                tracker.finish()


class TrackerCallback:
    """A tracker's callback of `Trainer`, which may fail."""

    def __init__(self, callback: TrainerCallback) -> None:
        self.callback, self.may_fail = callback, MayFail()

    def __getattr__(self, event: str) -> Callable[..., None]:
        def ask(*args: Any, **kwargs: Any) -> None:
            with self.may_fail(type(self.callback).__name__.removesuffix("Callback")):
                getattr(self.callback, event)(*args, **kwargs)

        return ask


class Monitor:
    """Sums up batches to metric lines: `metrics.jsonl`, the progress bar and accelerate's trackers.

    Lines hold `step` (optimiser steps done), `stage`, `epoch`, `level`; since the last line, means of the scalars of
    `health`, the `learning_rate` and `images_per_second` (pairs of views, or anchors, over all processes); or, at an
    epoch's end, `validation_loss`, or what the probe measured.
    """

    def __init__(self, accelerator: Accelerator, folder: Path, total_steps: int, progress: Progress) -> None:
        self.accelerator = accelerator
        self.file = folder / "metrics.jsonl"
        self.bar = progress_bar(
            total=total_steps, initial=progress.step, unit="step", shown=accelerator.is_main_process,
            smoothing=0.05,
        )  # fmt: skip
        if accelerator.is_main_process:
            self._forget_after(progress.step)
        self.trackers = Trackers(accelerator)
        self.probed: dict[str, float] = {}
        self.warned = False
        self._start_interval()

    def _forget_after(self, step: int) -> None:
        """Drop lines of steps that a resumed run takes again."""
        lines = read_metrics(self.file) if self.file.exists() else []
        write_text(self.file, "".join(json.dumps(line) + "\n" for line in lines if step and line["step"] <= step))

    def _start_interval(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.batches = self.images = 0
        self.since = time.perf_counter()

    def add(self, scalars: dict[str, Tensor], images: int) -> None:
        """Take in a batch of this process: its scalars, and how many images it had over all processes."""
        for name, value in scalars.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value
        self.batches += 1
        self.images += images

    def log(self, where: dict[str, Any], learning_rate: float) -> None:
        """Write the means since the last call. Every process must call it."""
        means = self.accelerator.reduce({name: total / self.batches for name, total in self.sums.items()}, "mean")
        line = {name: value.item() for name, value in means.items()}
        line |= {"learning_rate": learning_rate, "images_per_second": self.images / (time.perf_counter() - self.since)}
        values = self.probed | line
        shown = {short: f"{values[name]:.3f}" for name, short in _SHOWN.items() if name in values}
        place = {"stage": where["stage"], "level": where["level"]}
        self.bar.set_postfix({**place, **shown, "img_s": f"{line['images_per_second']:.0f}"}, refresh=False)
        self.write(where, line)
        self._warn_if_nothing_is_learned(line)
        self._start_interval()

    def _warn_if_nothing_is_learned(self, line: dict[str, float]) -> None:
        """Without a negative left the loss is 0: a run in which all embeddings are alike never recovers from it."""
        if line.get("pruned_share", 0) > 0.99 and not self.warned and self.accelerator.is_main_process:
            self.warned = True
            logger.warning(
                "the pruner dropped every negative, so nothing is learned: the embeddings are all alike "
                "(embedding_std %.3f). Train the stage before longer or with a lower learning_rate, or set "
                "model.memory_bank_init to empty",
                line["embedding_std"],
            )

    def write(self, where: dict[str, Any], values: dict[str, float]) -> None:
        """Write one line of values."""
        if self.accelerator.is_main_process:
            append_line(self.file, json.dumps({**where, **values}))
        self.trackers.log(values, where["step"])

    def close(self) -> None:
        """End the progress bar and the trackers."""
        self.bar.close()
        self.trackers.finish()

    def write_probe(self, where: dict[str, Any], values: dict[str, float]) -> None:
        """Write one line of what the probe measured, which the bar shows from then on. The main process calls it."""
        self.probed = values
        self.write(where, values)

    def pause_clock(self, seconds: float) -> None:
        """Leave out seconds that were spent on something else than training."""
        self.since += seconds
