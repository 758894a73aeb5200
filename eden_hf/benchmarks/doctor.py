"""`eden doctor`: what this machine is, what a run of some settings would take here, and what binds it."""

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eden_hf.benchmarks.measuring import machine
from eden_hf.data.prepared import CACHE_DIR, Decoder, processors
from eden_hf.data.sources import find_source, is_prepared
from eden_hf.encoders import gains_from_bfloat16
from eden_hf.training.arguments import PretrainArguments, Stage
from eden_hf.training.objectives import objective_of
from eden_hf.training.pretraining import prepared_images, streamed_images
from eden_hf.training.processor import keep_freed_memory
from eden_hf.training.starts import as_started

_SAMPLE = 32  # images that are decoded to tell the speed of decoding
_SECONDS = 8.0  # that each measurement takes, about


@dataclass(frozen=True)
class StageCost:
    """What one stage of a run costs here.

    Attributes:
        steps: Optimiser steps.
        step_seconds: Of forward, backward and update.
        view_seconds: Of making the step's views.
    """

    name: str
    steps: int
    step_seconds: float
    view_seconds: float

    @property
    def seconds(self) -> float:
        """Of the whole stage."""
        return self.steps * (self.step_seconds + self.view_seconds)


def examine(arguments: PretrainArguments) -> Iterator[str]:
    """What `eden doctor` says, line by line as it is found; about a minute on two cores.

    Args:
        arguments: Settings of the run. Its images are looked over, some decoded; nothing is written but to a
            temporary folder.

    Raises:
        SourceError: the source is not there.
    """
    keep_freed_memory()
    arguments = replace(arguments, model=as_started(arguments.model, objective_of(arguments).model_class))
    about = machine()
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    yield from _told(about, arguments)
    images, told = _images(arguments)
    yield told
    at_hand = arguments.data.streaming or is_prepared(Path(arguments.data.source).expanduser())
    held, weights = _gigabytes(arguments, 0 if at_hand else images)
    yield f"disk: {held:.2f} GB of prepared images, {weights:.2f} GB of checkpoints and models"
    places = {arguments.data.cache_dir or CACHE_DIR: held, arguments.run.output_dir: weights}
    for place, needed in places.items():
        free = shutil.disk_usage(_nearest(place)).free / 1e9
        yield f"  {place}: {free:.0f} GB free" + ("" if free > 1.1 * needed else f", TOO LITTLE for {needed:.1f}")
    train = images - round(images * arguments.data.holdout_share)
    costs = [_stage_cost(arguments, stage, train, device) for stage in arguments.stages]
    for cost in costs:
        yield (
            f"{cost.name}: {cost.steps} steps of {cost.step_seconds:.3f} s and {cost.view_seconds:.3f} s of views: "
            f"{_duration(cost.seconds)}"
        )
    yield f"training: about {_duration(sum(cost.seconds for cost in costs))} in one process on {device.type}"
    yield from _advice(arguments, costs, device)


def _images(arguments: PretrainArguments) -> tuple[int, str]:
    """How many images there are, and what it takes to decode them."""
    data, workers = arguments.data, processors()
    if is_prepared(Path(data.source).expanduser()):
        count = len(prepared_images(data))
        return count, f"images: {count}, prepared"
    if data.streaming:
        streamed = streamed_images(data)
        start, some = time.process_time(), min(_SAMPLE, len(streamed))
        streamed.get(range(some))
        rate = some / max(1e-6, time.process_time() - start)
        return len(streamed), f"images: {len(streamed)}; read and decoded in each epoch, {rate:.0f} a second and core"
    rows = find_source(data.source, list_file=data.list_file).load(
        data.split, image_column=data.image_column, id_column=data.id_column
    )
    decoding = _decoding_seconds(arguments, rows)
    spent = f"{_duration(len(rows) * decoding / workers)} on {workers} cores"
    return len(rows), f"images: {len(rows)}; decoding {1 / decoding:.0f} a second and core, once: {spent}"


def _told(about: dict[str, Any], arguments: PretrainArguments) -> Iterator[str]:
    yield ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    bf16 = ", ".join(about["bf16"]) or "none"
    yield (
        f"device: {about['device']}; {about['processors']} processors, {about['torch_threads']} threads, waiting "
        f"{about['waiting']}; bfloat16 instructions of the processor: {bf16}"
    )
    yield f"settings: {_trunk(arguments.model.backbone)}, precision {arguments.training.mixed_precision}"


def _trunk(backbone: str | dict[str, Any]) -> str:
    """A preset's name, or the type of a configuration."""
    return backbone if isinstance(backbone, str) else f"a {backbone['model_type']} trunk"


def _decoding_seconds(arguments: PretrainArguments, rows: Any) -> float:
    """Processor seconds an image, of some images spread over the source."""
    data = arguments.data
    decoder = Decoder(side=data.side, channels=data.channels, aspect_ratio=data.aspect_ratio)
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(_SAMPLE, len(rows))).round().astype(int)).tolist()
    sample = list(rows.select(chosen))
    start = time.process_time()
    decoder(sample)
    return max(1e-6, (time.process_time() - start) / len(sample))


def _gigabytes(arguments: PretrainArguments, images: int) -> tuple[float, float]:
    """Of prepared images, and of what a run keeps: checkpoints with the optimiser's state, `best` and `last`."""
    data = arguments.data
    with torch.device("meta"):
        model = objective_of(arguments).model_class(arguments.model.to_config())
    held = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    student = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    moments = 2 if "adamw" in {stage.optimizer or arguments.training.optimizer for stage in arguments.stages} else 1
    kept = (arguments.run.keep_checkpoints + 1) * (held + moments * student) + 2 * held
    return images * data.side**2 * data.channels / 1e9, kept / 1e9


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"


def _nearest(place: str | Path) -> Path:
    """The folder, or the first above it that is there."""
    path = Path(place).expanduser().absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _stage_cost(arguments: PretrainArguments, stage: Stage, images: int, device: torch.device) -> StageCost:
    """Time a step of a stage as a run takes it."""
    training, data = arguments.training, arguments.data
    batch = stage.batch_size or training.batch_size
    piece = max(2, batch // training.gradient_accumulation_steps)
    objective = objective_of(arguments)
    model: Any = objective.model_class(arguments.model.to_config())
    model.to(device).train()
    layout = torch.channels_last if training.channels_last else torch.contiguous_format
    model.to(memory_format=layout)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    pixels = torch.randint(0, 256, (piece, data.channels, data.side, data.side), dtype=torch.uint8, device=device)
    indices = torch.arange(piece)

    granularity = stage.granularity(stage.total_epochs - 1)

    def views() -> dict[str, Any]:
        return objective.inputs(pixels, indices, stage, granularity, seed=0, epoch=0)

    inputs = views() | objective.settings(stage, epoch=0, first_piece=True)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=training.mixed_precision != "no"):
            loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    pieces = batch / piece
    steps = stage.total_epochs * max(1, images // batch)
    name = f"stage {stage.objective}" + (f" level {stage.level}" if stage.objective == "parts" else "")
    return StageCost(name, steps, pieces * _timed(step, device), pieces * _timed(views, device))


def _timed(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds of a call, the least of some after one that does not count."""
    found = []
    begun = time.perf_counter()
    for _ in range(6):
        start = time.perf_counter()
        call()
        if device.type != "cpu":
            torch.accelerator.synchronize()
        found.append(time.perf_counter() - start)
        if time.perf_counter() - begun > _SECONDS and len(found) > 1:
            break
    return min(found[1:])


def _advice(arguments: PretrainArguments, costs: list[StageCost], device: torch.device) -> Iterator[str]:
    """Which part binds, and what to change."""
    steps, views = (sum(c.steps * getattr(c, f"{part}_seconds") for c in costs) for part in ("step", "view"))
    share, part = max((steps, "the model's steps"), (views, "making views"))
    yield f"what binds: {part}, {share / (steps + views):.0%} of the time"
    training = arguments.training
    if training.mixed_precision == "no" and gains_from_bfloat16(device):
        yield "change: --training.mixed_precision bf16 --training.channels_last true: this device is faster so"
    if device.type != "cpu" and not training.compile:
        yield "change: --training.compile true, for runs of more than some minutes"
