"""Adam's pretraining under accelerate: coarse to fine through the stages, on any number of processes.

    accelerate launch scripts/pretrain.py --config configs/adam_resnet18_small.yaml
    torchrun --nproc_per_node 2 scripts/pretrain.py --config ...     # two CPU processes

A run's folder holds `config.yaml` and `environment.json` (what ran), `metrics.jsonl`, `checkpoints/` (to resume from),
and two model folders for `from_pretrained`: `best` (lowest validation loss of the last stage) and `last`.
"""

import dataclasses
import logging
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, broadcast, set_seed
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from eden_hf.data.patients import patient_names, tell_of_no_patients
from eden_hf.data.phi import data_findings, guard, read_accepted
from eden_hf.data.prepared import Images, PreparedImages, prepare_images, split_holdout
from eden_hf.data.skips import SKIPPED_FILE, SkipLog
from eden_hf.data.sources import is_prepared, load_source
from eden_hf.data.streamed import StreamedImages, parquet_rows
from eden_hf.data.workers import obey_parent, workers_live
from eden_hf.image_processing_eden import EdenImageProcessor
from eden_hf.training.arguments import (
    DataArguments,
    ModelArguments,
    PretrainArguments,
    RunArguments,
    Stage,
    read_arguments,
)
from eden_hf.training.checkpoints import load_last_checkpoint, replace_folder, save_checkpoint
from eden_hf.training.curriculum import (
    Progress,
    StageBatches,
    enough_values,
    epoch_order,
    key_order,
    learning_rate,
    validation_interval,
    weight_decay,
)
from eden_hf.training.lineage import write_model_lineage
from eden_hf.training.monitors import LossGuard, Monitor, health
from eden_hf.training.objectives import freeze_unreached, objective_of
from eden_hf.training.optimizers import clip_each, make_optimizer
from eden_hf.training.precision import check_precision, held_dtypes
from eden_hf.training.probing import Probe
from eden_hf.training.processes import PREPARING, others_answer, wait_at_most
from eden_hf.training.processor import keep_freed_memory
from eden_hf.training.restarts import goes_on
from eden_hf.training.run_folder import check_folder, check_images, only_writer, record_changes, record_run
from eden_hf.training.starts import as_recorded, as_started, started_model, trunks, warn_of_other_intensities
from eden_hf.training.stop_request import StopRequest

logger = logging.getLogger(__name__)


def pretrain(arguments: PretrainArguments, resume: bool = False) -> Path:
    """Pretrain by `arguments`; under a launcher, every process calls this.

    Args:
        arguments: The settings.
        resume: Go on from the last checkpoint in `run.output_dir`. On a CPU the result equals an uninterrupted run's
            bit for bit. Of the run's own settings only those under `run`, `training.max_grad_norm` and the stages'
            `learning_rate` may change. Processes that torchrun starts again go on unasked.

    Returns:
        Folder of the run. SIGTERM or SIGINT saves a checkpoint and returns early.

    Raises:
        FileExistsError: the folder holds a run already and `resume` is not set, or another program writes to it.
        FileNotFoundError: there is nothing to resume.
        ValueError: the settings differ from those of the run to resume, or do not fit the data or the processes.
        NonFiniteLossError: the loss or a weight became infinite or NaN.
        OSError: something could not be written, or another process of the launch ended or hangs.
    """
    return Pretraining(arguments, resume).train()


class Pretraining:
    """One run: what it is made of, and its loop. `finished` tells, after `train`, whether it was not stopped early."""

    finished = False
    _best: dict[str, Tensor] | None = None  # weights of the lowest validation loss, until they are saved

    def __init__(self, arguments: PretrainArguments, resume: bool = False) -> None:
        self.arguments = arguments
        self.folder = Path(arguments.run.output_dir)
        disable_progress_bar()
        with ExitStack() as undone, others_answer(PREPARING.total_seconds()):
            self.accelerator = _accelerator(arguments)
            resume = goes_on(self.folder, asked=resume)
            undone.enter_context(only_writer(self.folder, "--run.output_dir", PartialState()))
            arguments.model = self._as_started(resume)
            self._start(check_folder(self.folder, arguments, resume))
            self._until_trained = undone.pop_all()

    def _as_started(self, resume: bool) -> ModelArguments:
        """The model's settings with the sizes of its start; a run goes on without the start, which may be gone."""
        model, model_class = self.arguments.model, objective_of(self.arguments).model_class
        try:
            return as_started(model, model_class)
        except OSError:
            if not resume or not (self.folder / "config.yaml").exists():
                raise
            recorded = read_arguments(self.folder / "config.yaml").model
            if recorded.start != model.start:
                raise
            return as_recorded(model, recorded, model_class)

    def _start(self, resume: bool) -> None:
        """Make what trains, at the beginning or at the last checkpoint of the folder."""
        arguments, training = self.arguments, self.arguments.training
        keep_freed_memory()
        run, main = arguments.run, self.accelerator.is_main_process
        self.probe = Probe(run, image_processor(arguments)) if run.probe and main else None
        set_seed(training.seed)
        self.objective = objective_of(arguments)
        model = started_model(self.objective.model_class, arguments.model, loads=not resume)
        if arguments.model.start is not None and not resume:
            warn_of_other_intensities(arguments.model.start, image_processor(arguments))
        freeze_unreached(model, self.objective.reached(model.eval()))
        if arguments.run.check_phi and not resume and self.accelerator.is_main_process:
            self._check_phi()
        with self.accelerator.local_main_process_first():
            self.images = self._images(resume)
        self.train_indices, self.holdout_indices = split_holdout(
            whose_images(self.images, arguments.data), arguments.data.holdout_share, arguments.data.split_seed
        )
        self.validated = _some(self.holdout_indices, training.validation_images, self.images, arguments.data)
        interval = validation_interval(len(self.train_indices), len(self.validated))
        self.validate_every = training.validate_every or interval
        self.device = self.accelerator.device
        self.memory_format = torch.channels_last if training.channels_last else torch.contiguous_format
        model = _fit_to_hardware(model, arguments, self.accelerator).to(memory_format=self.memory_format)  # type: ignore[call-overload]
        self.model = self.accelerator.prepare(model)
        names = dict.fromkeys(self._optimizer_name(stage) for stage in arguments.stages)
        made = {name: make_optimizer(model, name, training.layer_decay) for name in names}
        self.optimizers = {name: self.accelerator.prepare(optimizer) for name, optimizer in made.items()}
        self.student = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.eden: PreTrainedModel = self.accelerator.unwrap_model(self.model)
        set_seed(training.seed, device_specific=True)  # a trunk's dropout differs between processes, as it should
        self.progress = Progress()
        if resume:
            check_images(self.folder, **self.images.facts)
            self.progress = load_last_checkpoint(self.accelerator, self.folder / "checkpoints", run.keep_checkpoints)
        if self.accelerator.is_main_process:
            if resume:
                record_changes(self.folder, arguments, self.progress.step)
            else:
                _record_run(self.folder, arguments, self.images, self.accelerator)
        self.accelerator.wait_for_everyone()

    def _images(self, resume: bool) -> Images:
        data = self.arguments.data
        if not data.streaming:
            return prepared_images(data)
        skips = SkipLog(self.folder / SKIPPED_FILE, data.max_skipped_share, goes_on=resume)
        return streamed_images(data, threads=self._readers or torch.get_num_threads(), skips=skips)

    @property
    def _readers(self) -> int:
        return readers(self.arguments.run, self.accelerator.device)

    def _check_phi(self) -> None:
        data, run = self.arguments.data, self.arguments.run
        rows = parquet_rows(data.source, data.split) if data.streaming else _rows(data)
        findings = data_findings(rows, data.split)
        guard(findings, read_accepted(run.accepted_phi), self.folder / "phi.csv", "--run.accepted_phi")

    def train(self) -> Path:
        """Run the stages that are left; returns the run's folder, which others may write to then."""
        timeout = self.arguments.run.timeout
        wait_at_most(timeout)
        with self._until_trained, others_answer(timeout), workers_live():
            return self._train()

    def _train(self) -> Path:
        stages = [self._batches(index) for index in range(len(self.arguments.stages))]
        total = sum(batches.epochs * batches.batches_per_epoch for batches in stages)
        self.monitor = Monitor(self.accelerator, self.folder, total, self.progress)
        self.guard = LossGuard(self.folder, self.accelerator.process_index)
        if self.progress.step == 0:
            self._probe(self.arguments.stages[0], self._where(self.arguments.stages[0]))
        with StopRequest() as self.stop:
            self.finished = all(self._run_stage(index) for index in range(self.progress.stage, len(stages)))
        self.monitor.close()
        self.model = self.accelerator.free_memory(self.model)[0]  # DDP must go before its process group does
        self.accelerator.end_training()
        if self.accelerator.is_main_process:
            done = (
                "finished" if self.finished else f"stopped at step {self.progress.step}; --resume goes on from there"
            )
            print(f"pretraining {done}: {self.folder}")
        return self.folder

    def _batches(self, stage_index: int) -> StageBatches:
        """This process's batches of a stage, from the current position if the stage is under way."""
        stages, progress = self.arguments.stages, self.progress
        training = self.arguments.training
        return StageBatches(
            self.train_indices,
            stages[stage_index].batch_size or training.batch_size,
            epochs=stages[stage_index].total_epochs,
            seed=training.seed,
            first_epoch=sum(stage.total_epochs for stage in stages[:stage_index]),
            start=(progress.epoch, progress.batch) if stage_index == progress.stage else (0, 0),
            pieces=training.gradient_accumulation_steps,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            shuffled_keys=self._shuffles_keys(stages[stage_index]),
            row_groups=self.images.row_groups,
        )

    def _shuffles_keys(self, stage: Stage) -> bool:
        return self.accelerator.num_processes > 1 and self.objective.shuffles_keys(stage)

    def _run_stage(self, index: int) -> bool:
        """Train one stage from the current position; `False` if asked to stop on the way."""
        stage, progress = self.arguments.stages[index], self.progress
        if (progress.epoch, progress.batch) == (0, 0):
            self._optimizer(stage).optimizer.state.clear()  # each stage starts with a fresh optimiser, as published
            progress.best_validation_loss = math.inf
        self.objective.begin_stage(self.eden, stage)
        batches = self._batches(index)
        pieces = _read(_loader(self.images, batches, self._readers, self.device))
        stage_steps = stage.total_epochs * batches.batches_per_epoch
        while progress.epoch < stage.total_epochs:
            step_of_stage = progress.epoch * batches.batches_per_epoch + progress.batch
            rate = learning_rate(stage, step_of_stage, stage_steps)
            self._set_rates(stage, rate, weight_decay(stage, step_of_stage, stage_steps))
            self._optimizer_step(pieces, stage)
            self.objective.after_step(self.eden, step_of_stage, stage_steps)
            progress.step += 1
            progress.batch += 1
            self.monitor.bar.update()
            ends_epoch = progress.batch == batches.batches_per_epoch
            if progress.step % self.arguments.run.log_every == 0 or ends_epoch:
                self.guard.check()
                self.monitor.log(self._where(stage), rate)
            if ends_epoch:
                self._end_epoch(stage)
            if progress.epoch == stage.total_epochs:
                progress.stage, progress.epoch = index + 1, 0
                self._checkpoint()
                return not self._stops() or index + 1 == len(self.arguments.stages)
            if self._stops():
                self._checkpoint()
                return False
            if progress.step % self.arguments.run.checkpoint_every == 0:
                self._checkpoint()
        return True

    def _where(self, stage: Stage) -> dict[str, Any]:
        progress = self.progress
        level: int | str = stage.level if stage.objective == "parts" else stage.objective
        if stage.is_second_generation:
            level = f"{stage.objective} {stage.granularity(progress.epoch)}"
        return {"step": progress.step, "stage": progress.stage, "epoch": progress.seen_epochs, "level": level}

    def _optimizer_name(self, stage: Stage) -> str:
        return stage.optimizer or self.arguments.training.optimizer

    def _optimizer(self, stage: Stage) -> Any:
        return self.optimizers[self._optimizer_name(stage)]

    def _set_rates(self, stage: Stage, rate: float, decay: float) -> None:
        for group in self._optimizer(stage).param_groups:
            group.update(lr=rate * group.get("scale", 1.0), weight_decay=decay if group.get("decayed", True) else 0.0)
            group.update({"momentum": stage.momentum} if "momentum" in group else {"betas": (stage.momentum, 0.999)})

    def _optimizer_step(self, pieces: Iterator[tuple[Tensor, Tensor]], stage: Stage) -> None:
        """One step of the student on the next batch, in as many pieces as accumulation says.

        Nothing in it waits for the device: what is read of it, is read when it is logged.
        """
        optimizer, steps = self._optimizer(stage), self.arguments.training.gradient_accumulation_steps
        size = "points.size" if stage.objective == "points" else "views.size"
        self.model.train()
        for piece in range(steps):
            indices, inputs = self._piece(*next(pieces), stage, piece)
            with nullcontext() if piece == steps - 1 else self.accelerator.no_sync(self.model):
                with enough_values("training.batch_size", size):
                    output = self.model(**inputs)
                ids = [self.images.ids[index] for index in indices]
                self.guard.watch(output.loss, ids, self._where(stage))
                self.accelerator.backward(output.loss / steps)
            self.monitor.add(health(output), len(indices) * self.accelerator.num_processes)
        self._clip(optimizer)
        self.objective.before_step(self.eden, stage, self.progress.epoch)
        if self.progress.epoch < stage.frozen_trunk_epochs:
            for eden in trunks(self.eden):
                for parameter in eden.backbone.parameters():
                    parameter.grad = None  # without one it does not decay either
        optimizer.step()
        optimizer.zero_grad()

    def _clip(self, optimizer: Any) -> None:
        training = self.arguments.training
        if training.max_grad_norm is None:
            return
        if training.clip_each_tensor:
            self.accelerator.unscale_gradients(optimizer)
            clip_each(self.student, training.max_grad_norm)
        else:
            self.accelerator.clip_grad_norm_(self.student, training.max_grad_norm)

    def _piece(self, indices: Tensor, images: Tensor, stage: Stage, piece: int) -> tuple[Tensor, dict[str, Any]]:
        """Of what the loader gives: the indices of this process's queries, and what the model takes."""
        progress = self.progress
        draw: dict[str, Any] = {"seed": self.arguments.training.seed, "epoch": progress.seen_epochs}
        inputs = self.objective.settings(stage, progress.epoch, first_piece=piece == 0)
        if self._shuffles_keys(stage):
            everyone = len(indices) // 2 * self.accelerator.num_processes
            order = key_order(everyone, **draw, batch=progress.batch, piece=piece)
            inputs["key_order"] = order.to(self.device, non_blocking=True)
            (indices, key_indices), (images, key_images) = indices.chunk(2), images.chunk(2)
            draw["keys"] = key_images.to(self.device, non_blocking=True), key_indices
        return indices, inputs | self._inputs(indices, images, stage, stage.granularity(progress.epoch), **draw)

    def _inputs(self, indices: Tensor, images: Tensor, stage: Stage, granularity: int, **draw: Any) -> dict[str, Any]:
        """What the model takes of source images [B, C, side, side], made on the device, laid out as asked."""
        images = images.to(self.device, non_blocking=True)
        inputs = self.objective.inputs(images, indices, stage, granularity, **draw)
        return {
            name: _laid_out(value, self.memory_format) if name.endswith("pixel_values") else value
            for name, value in inputs.items()
        }

    def _end_epoch(self, stage: Stage) -> None:
        """Move the position to the next epoch; validate, if it is time, and keep the best model for saving."""
        since = time.perf_counter()
        self._check_finite()
        progress = self.progress
        where = self._where(stage)
        progress.epoch, progress.batch, progress.seen_epochs = progress.epoch + 1, 0, progress.seen_epochs + 1
        is_time = progress.epoch % self.validate_every == 0 or progress.epoch == stage.total_epochs
        if len(self.validated) and is_time:
            loss = self.validation_loss(stage)
            self.monitor.write(where, {"validation_loss": loss})
            if loss < progress.best_validation_loss:
                progress.best_validation_loss = loss
                self._best = {name: tensor.cpu().clone() for name, tensor in self.eden.state_dict().items()}
        self.monitor.pause_clock(time.perf_counter() - since)
        if progress.seen_epochs % self.arguments.run.probe_every == 0 or progress.epoch == stage.total_epochs:
            self._probe(stage, where)

    def _probe(self, stage: Stage, where: dict[str, Any]) -> None:
        """Measure on the probe's images, if there are any, what would be used of the model if the run ended here."""
        if self.probe is not None:
            since = time.perf_counter()
            trunk: Any = self.eden.eden
            self.monitor.write_probe(where, self.probe.measure(trunk, dense=stage.objective == "points"))
            self.monitor.pause_clock(time.perf_counter() - since)

    @torch.no_grad()
    def validation_loss(self, stage: Stage) -> float:
        """Mean loss over the held-out images on fixed draws of views; touches neither teacher nor bank."""
        self.model.eval()
        for buffer in self.eden.buffers():  # BatchNorm statistics of other processes are their own
            broadcast(buffer)
        training, processes = self.arguments.training, self.accelerator.num_processes
        batch = stage.batch_size or training.batch_size
        piece = max(1, batch // (processes * training.gradient_accumulation_steps))
        mine = self.validated[self.accelerator.process_index :: processes]
        last = stage.total_epochs - 1  # the same task throughout the stage
        settings = self.objective.settings(stage, last, first_piece=False)
        total = torch.zeros(2, device=self.device)
        for indices in mine.split(piece) if len(mine) else ():  # of no images torch makes one empty piece
            # Another seed than training's, and always epoch 0: the same views whenever it is asked.
            inputs = self._inputs(
                indices,
                self.images.get_lasting(indices),
                stage,
                stage.granularity(last),
                seed=training.seed + 1,
                epoch=0,
            )
            loss = self.eden(**inputs, **settings).loss
            total += torch.stack([loss.float() * len(indices), torch.tensor(float(len(indices)), device=self.device)])
        summed, count = self.accelerator.reduce(total).tolist()
        return summed / count

    def _check_finite(self) -> None:
        """Nothing is kept of a run whose loss or weights are infinite or NaN."""
        self.guard.check()
        self.guard.check_weights(self.student, self.progress.step)

    def _stops(self) -> bool:
        return self.stop.agreed(self.progress.step, self.arguments.run.log_every)

    def _checkpoint(self) -> None:
        """Write the model folders and then a checkpoint: what was best before it is never lost to a later kill."""
        since = time.perf_counter()
        self._check_finite()
        if self._best is not None:
            self._save_model("best", self._best)
        self._best = None
        self._save_model("last", self.eden.state_dict())
        folder, keep = self.folder / "checkpoints", self.arguments.run.keep_checkpoints
        save_checkpoint(self.accelerator, folder, self.progress, keep)
        self.monitor.pause_clock(time.perf_counter() - since)

    def _save_model(self, name: str, weights: dict[str, Tensor]) -> None:
        """Write the folder that `from_pretrained` reads: weights, configuration, processor and their code."""
        if self.accelerator.is_main_process:
            processor = image_processor(self.arguments)

            def write(folder: Path) -> None:
                self.eden.save_pretrained(folder, state_dict=weights)
                processor.save_pretrained(folder)
                write_model_lineage(folder, self.folder, "pretrain", step=self.progress.step)

            replace_folder(self.folder / name, write)


def _laid_out(images: Tensor, memory_format: torch.memory_format) -> Tensor:
    """Images `[..., C, H, W]`, those of all leading axes together in a memory format."""
    return images.flatten(0, -4).contiguous(memory_format=memory_format).unflatten(0, images.shape[:-3])


def _read(loader: DataLoader) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches, of which one may be the error that there was instead."""
    for batch in loader:
        if isinstance(batch, Exception):
            raise batch
        yield batch


def _loader(images: Images, batches: StageBatches, workers: int, device: torch.device) -> DataLoader:
    """Batches as (indices [B] int64, images [B, C, side, side] uint8)."""
    return DataLoader(
        images,
        batch_sampler=batches,
        num_workers=images.workers(workers),
        collate_fn=_as_fetched,
        worker_init_fn=obey_parent,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # else each loader made, on resuming too, would move the global random state
    )


def _as_fetched(batch: Any) -> Any:
    return batch


def _accelerator(arguments: PretrainArguments) -> Accelerator:
    """Accelerate's view of the processes and devices there are.

    Raises:
        ValueError: a tracker is not installed, or there is none of its name.
    """
    if absent := {*arguments.run.trackers} - {"all", *map(str, get_available_trackers())}:
        raise ValueError(f"`run.trackers`: {', '.join(sorted(absent))} is not installed; install it or leave it out")
    check_precision(arguments.training.mixed_precision)
    return Accelerator(
        cpu=not torch.accelerator.is_available(),
        mixed_precision=arguments.training.mixed_precision,
        log_with=arguments.run.trackers or None,
        project_dir=arguments.run.output_dir,
        kwargs_handlers=[
            # Banks stay equal by themselves, and running statistics are those of the main process.
            DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=arguments.is_mixed),
            InitProcessGroupKwargs(timeout=PREPARING),
        ],
    )


def _rows(data: DataArguments) -> Dataset:
    """The rows of the source, nothing decoded."""
    return load_source(
        data.source, split=data.split, image_column=data.image_column, id_column=data.id_column,
        list_file=data.list_file,
    )  # fmt: skip


def _some(indices: Tensor, most: int, images: Images, data: DataArguments) -> Tensor:
    """Of the images held out at most some: spread over all, or of as few row groups as hold them."""
    if images.row_groups is None:
        return indices[:: math.ceil(len(indices) / most) or 1]
    return epoch_order(indices, data.split_seed, 0, images.row_groups._replace(window=0))[:most]


def whose_images(images: Images, data: DataArguments) -> list[str]:
    """Whose each image is: the image's own name where no column tells it."""
    if data.patient_column is None:
        if data.holdout_share:
            tell_of_no_patients(len(images), "--data.patient_column")
        return images.ids
    at_hand = data.streaming or is_prepared(Path(data.source).expanduser())
    rows = images.told(data.patient_column) if at_hand else _rows(data)
    whose = dict(zip(rows["source_id"], patient_names(rows, data.patient_column), strict=True))
    return [whose[id_] for id_ in images.ids]


def prepared_images(data: DataArguments) -> PreparedImages:
    """The images of a run's settings, decoded if they are not yet."""
    settings = dataclasses.asdict(data)
    for of_others in ("holdout_share", "split_seed", "patient_column", "streaming", "shuffle_window"):
        settings.pop(of_others)
    return prepare_images(settings.pop("source"), **settings)


def readers(run: RunArguments, device: torch.device) -> int:
    """Processes that read ahead: none by default beside a CPU's steps, which take as much longer as they help."""
    return run.num_workers if run.num_workers is not None else 0 if device.type == "cpu" else 2


def streamed_images(data: DataArguments, threads: int = 1, skips: SkipLog | None = None) -> StreamedImages:
    """The images of a run's settings, none of them decoded."""
    return StreamedImages(
        data.source, split=data.split, image_column=data.image_column, id_column=data.id_column, side=data.side,
        channels=data.channels, aspect_ratio=data.aspect_ratio, window=data.shuffle_window, threads=threads,
        skips=skips or SkipLog(None, data.max_skipped_share),
    )  # fmt: skip


def _fit_to_hardware(model: nn.Module, arguments: PretrainArguments, accelerator: Accelerator) -> nn.Module:
    """`model` with shared BatchNorm statistics and compiled trunks, as asked."""
    training = arguments.training
    if training.sync_batchnorm:
        if accelerator.device.type != "cuda":
            raise ValueError("training.sync_batchnorm works on GPUs only; leave it off and key batches are shuffled")
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if training.compile:
        for trunk in trunks(model):
            trunk.compile()
    return model


def image_processor(arguments: PretrainArguments) -> EdenImageProcessor:
    """The image processor that gives a model pretrained by `arguments` the input it knows."""
    views, dense = arguments.views, arguments.stages[-1].objective == "points"
    size = arguments.points.size if dense else views.size
    return EdenImageProcessor(
        size={"height": size, "width": size},
        image_mean=list(views.image_mean),
        image_std=list(views.image_std),
        intensity="per_image" if dense else views.intensity,
        aspect_ratio=arguments.data.aspect_ratio,
    )


def _record_run(folder: Path, arguments: PretrainArguments, images: Images, accelerator: Accelerator) -> None:
    """Write what runs, and which images could not be used."""
    record_run(
        folder,
        arguments,
        accelerator.device,
        start=arguments.model.start,
        processes=accelerator.num_processes,
        start_dtypes=held_dtypes(arguments.model.start or ""),
        images_skipped=images.skipped,
        **images.facts,
    )
    (folder / SKIPPED_FILE).unlink(missing_ok=True)
    if images.skipped:
        shutil.copy(images.skipped_file, folder)
