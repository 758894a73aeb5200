"""`eden doctor`: what this machine is, what a run of some settings would take here, and what binds it."""

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eden_hf.benchmarks.measuring import machine
from eden_hf.data.prepared import CACHE_DIR, Decoder, Images, processors, split_holdout
from eden_hf.data.sources import find_source, is_prepared
from eden_hf.encoders import gains_from_bfloat16
from eden_hf.training.arguments import PretrainArguments, Stage
from eden_hf.training.curriculum import StageBatches
from eden_hf.training.objectives import objective_of
from eden_hf.training.optimizers import make_optimizer
from eden_hf.training.precision import check_precision
from eden_hf.training.pretraining import prepared_images, readers, streamed_images, whose_images
from eden_hf.training.processor import keep_freed_memory
from eden_hf.training.starts import as_started

_SAMPLE = 32  # images that are decoded to tell the speed of decoding
_SECONDS = 8.0  # that each measurement takes, about
_ON_CPU = 32  # images of a batch that are timed on a CPU, where each of the others takes as long
_MOMENTS = {"sgd": 1, "adamw": 2}  # numbers that an optimiser keeps for each weight


@dataclass(frozen=True)
class StageCost:
    """What one stage of a run costs here.

    Attributes:
        steps: Optimiser steps.
        step_seconds: Of forward, backward and update.
        view_seconds: Of making the step's views.
        read_seconds: That a step waits for its images, or its cores decode them.
    """

    name: str
    steps: int
    step_seconds: float
    view_seconds: float
    read_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """Of the whole stage."""
        return self.steps * (self.step_seconds + self.view_seconds + self.read_seconds)


def examine(arguments: PretrainArguments) -> Iterator[str]:
    """What `eden doctor` says, line by line as it is found; about a minute on two cores.

    Args:
        arguments: Settings of the run. Its images are looked over, some decoded; nothing is written but to a
            temporary folder.

    Raises:
        SourceError: the source is not there.
        ValueError: the run would refuse its precision, or so few images.
    """
    keep_freed_memory()
    check_precision(arguments.training.mixed_precision)
    arguments = replace(arguments, model=as_started(arguments.model, objective_of(arguments).model_class))
    about = machine()
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    yield from _told(about, arguments)
    images, reading, told = _images(arguments)
    yield told
    data = arguments.data
    train, _ = split_holdout(whose_images(images, data), data.holdout_share, data.split_seed)
    steps = [_steps(arguments, stage, train) for stage in arguments.stages]
    at_hand = data.streaming or is_prepared(Path(data.source).expanduser())
    yield from _disk(arguments, 0 if at_hand else len(images), steps)
    costs = []
    for stage, count in zip(arguments.stages, steps, strict=True):
        costs.append(cost := _stage_cost(arguments, stage, count, reading, device))
        reads = f" and {cost.read_seconds:.3f} s of reading" if cost.read_seconds >= 0.0005 else ""
        yield (
            f"{cost.name}: {cost.steps} steps of {cost.step_seconds:.3f} s and {cost.view_seconds:.3f} s of views"
            f"{reads}: {_duration(cost.seconds)}"
        )
    yield f"training: about {_duration(sum(cost.seconds for cost in costs))} in one process on {device.type}"
    yield from _advice(arguments, costs, device)


def _images(arguments: PretrainArguments) -> tuple[Images, float, str]:
    """The images, processor seconds that reading one takes in each epoch, and what it takes to decode them."""
    data, workers = arguments.data, processors()
    prepared = is_prepared(Path(data.source).expanduser())
    if prepared or data.streaming:
        images: Images = prepared_images(data) if prepared else streamed_images(data)
        some = _some(len(images)) if prepared else list(range(min(_SAMPLE, len(images))))  # of few row groups
        start = time.process_time()
        images.get(some)
        reading = max(1e-6, (time.process_time() - start) / len(some))
        told = "prepared" if prepared else "read and decoded in each epoch"
        return images, reading, f"images: {len(images)}; {told}, {1 / reading:.0f} a second and core"
    rows = find_source(data.source, list_file=data.list_file).load(
        data.split, image_column=data.image_column, id_column=data.id_column
    )
    decoding = _decoding_seconds(arguments, rows)
    spent = f"{_duration(len(rows) * decoding / workers)} on {workers} cores"
    told = f"images: {len(rows)}; decoding {1 / decoding:.0f} a second and core, once: {spent}"
    return Images(list(rows["source_id"]), data.side, data.channels), 0.0, told


def _some(count: int) -> list[int]:
    """Places of some of so many, from all over."""
    return np.unique(np.linspace(0, count - 1, min(_SAMPLE, count)).round().astype(int)).tolist()


def _steps(arguments: PretrainArguments, stage: Stage, train: torch.Tensor) -> int:
    """Optimiser steps of a stage; batches that a run refuses are refused."""
    training = arguments.training
    batches = StageBatches(
        train, stage.batch_size or training.batch_size, epochs=stage.total_epochs, seed=0, first_epoch=0,
        pieces=training.gradient_accumulation_steps,
    )  # fmt: skip
    return batches.epochs * batches.batches_per_epoch


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
    sample = list(rows.select(_some(len(rows))))
    start = time.process_time()
    decoder(sample)
    return max(1e-6, (time.process_time() - start) / len(sample))


def _disk(arguments: PretrainArguments, images: int, steps: Sequence[int]) -> Iterator[str]:
    """What a run keeps on disks, prepared `images` among it, and whether there is room."""
    run, data = arguments.run, arguments.data
    held, (model, checkpoint) = images * data.side**2 * data.channels / 1e9, _gigabytes(arguments)
    made = sum(steps) // run.checkpoint_every + len(steps)
    kept, most = (2 * model + min(made, run.keep_checkpoints + more) * checkpoint for more in (0, 1))
    yield (
        f"disk: {held:.2f} GB of prepared images, {kept:.2f} GB of checkpoints and models, {most:.2f} GB while one is "
        "written"
    )
    places = [(Path(data.cache_dir or CACHE_DIR), held)] * bool(held) + [(Path(run.output_dir), most)]
    disks = [_nearest(place).stat().st_dev for place, _ in places]
    for (place, _), disk in zip(places, disks, strict=True):
        needed = sum(size for (_, size), other in zip(places, disks, strict=True) if other == disk)
        free = shutil.disk_usage(_nearest(place)).free / 1e9
        room = "" if free > 1.1 * needed else f", TOO LITTLE for {needed:.1f}"
        writable = _nearest(place).is_dir() and os.access(_nearest(place), os.W_OK)
        yield f"  {place}: {free:.0f} GB free{room}{'' if writable else ', MAY NOT BE WRITTEN TO: choose another'}"


def _gigabytes(arguments: PretrainArguments) -> tuple[float, float]:
    """Of a model folder, and of a checkpoint, which has what optimisers keep besides."""
    with torch.device("meta"):
        model = objective_of(arguments).model_class(arguments.model.to_config())
    held = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    student = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    names = {stage.optimizer or arguments.training.optimizer for stage in arguments.stages}
    return held / 1e9, (held + sum(_MOMENTS[name] for name in names) * student) / 1e9


def _duration(seconds: float) -> str:
    unit, size = ("hours", 3600) if seconds >= 3600 else ("minutes", 60) if seconds >= 60 else ("seconds", 1)
    return f"{seconds / size:.1f} {unit}"


def _nearest(place: str | Path) -> Path:
    """The folder, or the first above it that is there."""
    path = Path(place).expanduser().absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _stage_cost(
    arguments: PretrainArguments, stage: Stage, steps: int, reading: float, device: torch.device
) -> StageCost:
    """Time a step of a stage as a run takes it."""
    training, data = arguments.training, arguments.data
    batch = stage.batch_size or training.batch_size
    piece = max(2, batch // training.gradient_accumulation_steps)
    timed = min(piece, _ON_CPU) if device.type == "cpu" else piece
    objective = objective_of(arguments)
    model: Any = objective.model_class(arguments.model.to_config())
    model.to(device).train()
    layout = torch.channels_last if training.channels_last else torch.contiguous_format
    model.to(memory_format=layout)
    optimizer = make_optimizer(model, stage.optimizer or training.optimizer, lr=0.0)
    pixels = torch.randint(0, 256, (timed, data.channels, data.side, data.side), dtype=torch.uint8, device=device)
    indices = torch.arange(timed)

    granularity = stage.granularity(stage.total_epochs - 1)

    def views() -> dict[str, Any]:
        return objective.inputs(pixels, indices, stage, granularity, seed=0, epoch=0)

    inputs = views() | objective.settings(stage, epoch=0, first_piece=True)

    def gradients() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=training.mixed_precision != "no"):
            loss = model(**inputs).loss
        loss.backward()

    def update() -> None:
        optimizer.step()
        objective.after_step(model, 0, steps)

    pieces = batch / timed
    name = f"stage {stage.objective}" + (f" level {stage.level}" if stage.objective == "parts" else "")
    step = pieces * _timed(gradients, device) + _timed(update, device)
    making = pieces * _timed(views, device)
    ahead = readers(arguments.run, device)
    threads = ahead or (torch.get_num_threads() if data.streaming else 1)
    waiting = batch * reading / min(threads, processors())
    if ahead and device.type == "cpu":
        waiting = batch * reading / processors()  # which step and read meanwhile
    elif ahead:
        waiting = max(0.0, waiting - step - making)
    return StageCost(name, steps, step, making, waiting)


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
    parts = {"step": "the model's steps", "view": "making views", "read": "reading images"}
    seconds = {part: sum(cost.steps * getattr(cost, f"{part}_seconds") for cost in costs) for part in parts}
    most = max(seconds, key=seconds.__getitem__)
    yield f"what binds: {parts[most]}, {seconds[most] / sum(seconds.values()):.0%} of the time"
    if most == "read":
        yield "change: a larger --run.num_workers, or `eden prepare --storage raw` once, which decodes nothing again"
    training = arguments.training
    if training.mixed_precision == "no" and gains_from_bfloat16(device):
        yield "change: --training.mixed_precision bf16 --training.channels_last true: this device is faster so"
    if device.type != "cpu" and not training.compile:
        yield "change: --training.compile true, for runs of more than some minutes"
