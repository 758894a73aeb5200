"""Fine-tuning on `transformers.Trainer`, of whole runs (`scripts/finetune.py`, `eden finetune`) and of few shots.

A run's folder holds `config.yaml` and `environment.json` (what ran), `metrics.jsonl`, `checkpoints/` (Trainer's, to
resume from), and `best`, a model folder for `AutoModelForImageClassification` or `AutoModelForSemanticSegmentation`
and for `pipeline`: the checkpoint of the best validation. `eden_hf.evaluation.downstream` measures it on the test
split.
"""

import dataclasses
import json
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import set_seed
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    EarlyStoppingCallback,
    EvalPrediction,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations import get_reporting_integration_callbacks
from transformers.utils.logging import disable_progress_bar

from eden_hf.configuration_eden import EdenConfig
from eden_hf.data.prepared import list_hash
from eden_hf.data.skips import SKIPPED_FILE, skipped_entries
from eden_hf.data.tasks import Kind, Task
from eden_hf.data.workers import with_obeying_workers, workers_live
from eden_hf.image_processing_eden import EdenImageProcessor
from eden_hf.model_names import adapted_processor, find_model, own_intensity
from eden_hf.modeling_eden import EdenForImageClassification, EdenForSemanticSegmentation
from eden_hf.modeling_eden_base import readable_like_neighbours
from eden_hf.training.checkpoints import SUMS_FILE, newest_whole, remove, replace_folder, seal
from eden_hf.training.curriculum import FullBatches, enough_values
from eden_hf.training.downstream_data import (
    TaskImages,
    augment,
    label_scale,
    warn_of_inverted_masks,
    with_holdouts,
    without_skipped,
    without_unreadable,
)
from eden_hf.training.downstream_metrics import (
    LOWER_IS_BETTER,
    METRICS,
    mask_pixels,
    measure,
    overlaps,
    predict,
    probabilities,
    unmeasured_labels,
)
from eden_hf.training.finetune_arguments import AugmentationArguments, FinetuneArguments, Recipe, StartArguments
from eden_hf.training.lineage import write_model_lineage
from eden_hf.training.monitors import TrackerCallback
from eden_hf.training.optimizers import decayed_names, of_this_version
from eden_hf.training.precision import check_precision, held_dtypes, in_float32, precision_used
from eden_hf.training.processor import keep_freed_memory
from eden_hf.training.restarts import goes_on
from eden_hf.training.run_folder import check_folder, check_images, only_writer, record_run
from eden_hf.training.settings import read_settings
from eden_hf.training.starts import OPTIONAL, load_stock_trunk, load_whole
from eden_hf.training.stop_request import StopRequest, StopTraining

logger = logging.getLogger(__name__)

PROBLEM_TYPES: dict[Kind, str] = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}


def finetune(arguments: FinetuneArguments, resume: bool = False) -> Path:
    """Fine-tune by `arguments`; under a launcher, every process calls this.

    Args:
        arguments: The settings.
        resume: Go on from the last checkpoint in `run.output_dir`. On a CPU the result equals an uninterrupted run's
            bit for bit. Only settings under `run` may differ from the run's own. Processes that torchrun starts again
            go on unasked.

    Returns:
        Folder of the run. SIGTERM or SIGINT saves a checkpoint and returns early, without `best`.

    Raises:
        FileExistsError: the folder holds a run already and `resume` is not set, or another program writes to it.
        FileNotFoundError: there is nothing to resume.
        TaskError: the task's files are missing or not as they must be.
        ValueError: the settings differ from those of the run to resume, or do not fit the task.
    """
    check_precision(arguments.training.mixed_precision)
    keep_freed_memory()
    folder = Path(arguments.run.output_dir)
    processes = PartialState(cpu=not torch.accelerator.is_available())
    resume = goes_on(folder, asked=resume)
    with only_writer(folder, "--run.output_dir", processes):
        _finetune(arguments, folder, check_folder(folder, arguments, resume), processes)
    return folder


def _finetune(arguments: FinetuneArguments, folder: Path, resume: bool, processes: PartialState) -> None:
    processes.wait_for_everyone()  # before one of them writes to the folder
    task, metric = load_task_and_metric(arguments)
    skipped, workers = folder / SKIPPED_FILE, arguments.run.num_workers
    splits = without_unreadable(task.splits, task.kind, arguments.task.max_skipped_share, skipped, workers)
    task, total = dataclasses.replace(task, splits=splits), sum(map(len, task.splits.values()))
    if task.kind == "segmentation" and processes.is_main_process:
        warn_of_inverted_masks(task)
    model, processor = load_start(arguments.model, task.kind, task.labels, arguments.training.seed)
    if resume:
        check_images(folder, **_image_lists(task))
    elif processes.is_main_process:
        record_run(
            folder,
            arguments,
            processes.device,
            start=arguments.model.name,
            processes=processes.num_processes,
            task=task.name,
            labels=task.labels,
            start_dtypes=held_dtypes(arguments.model.name),
            images_skipped=total - sum(map(len, splits.values())),
            **_image_lists(task),
        )
    with StopRequest() as request:
        stop, checkpoints = StopTraining(request, arguments.run.log_every), folder / "checkpoints"
        model, history = fit(
            model, processor, task, arguments, metric=metric, folder=checkpoints, resume=resume, callbacks=[stop]
        )
    if stop.stopped_at is not None:
        logger.info("%s: stopped at step %d; --resume goes on from there", folder, stop.stopped_at)
    elif processes.is_main_process:

        def write(best: Path) -> None:
            model.save_pretrained(best)
            processor.save_pretrained(best)
            write_model_lineage(best, folder, "finetune")

        replace_folder(folder / "best", write)
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in history))


def _image_lists(task: Task) -> dict[str, Any]:
    """What tells the images of a run: how many, and hashes of their names."""
    hashes = {name: list_hash(rows["source_id"]) for name, rows in task.splits.items()}
    images = {name: len(rows) for name, rows in task.splits.items()}
    return {"images": images, "image_list_hash": hashes["train"], "image_list_hashes": hashes}


def load_run(folder: str | Path) -> tuple[FinetuneArguments, Task, str]:
    """Settings, task and metric of a run, with the images that it had.

    Raises:
        FileNotFoundError: the run has no `config.yaml`.
        ValueError: the source has other images now.
    """
    arguments = read_settings(FinetuneArguments, Path(folder) / "config.yaml")
    task, metric = load_task_and_metric(arguments)
    splits = without_skipped(task.splits, skipped_entries(Path(folder) / SKIPPED_FILE))
    task = dataclasses.replace(task, splits=splits)
    check_images(Path(folder), **_image_lists(task))
    return arguments, task, metric


def load_task_and_metric(arguments: FinetuneArguments) -> tuple[Task, str]:
    """The task of a run, with all of `train`, `validation` and `test`, and the metric that it is judged by.

    Raises:
        ValueError: the task's kind does not have the metric asked for.
    """
    task = arguments.task.load()
    metric = arguments.task.metric or task.metric
    if metric not in METRICS[task.kind]:
        raise ValueError(f"`task.metric` of a {task.kind} task is {' or '.join(METRICS[task.kind])}, got {metric!r}")
    return dataclasses.replace(task, splits=with_holdouts(task, arguments.task)), metric


def finetune_few_shot(
    model_name: str,
    train: Dataset,
    validation: Dataset | None,
    test: Dataset,
    labels: tuple[str, ...],
    recipe: Recipe,
    seed: int,
) -> np.ndarray:
    """Fine-tune an encoder for segmentation on a few images and score it on others, in memory.

    Args:
        model_name: The encoder, in place of `recipe.model.name`.
        train: The few images, rows of a segmentation `Task`.
        validation: Images to choose the best of `recipe.training.evaluations` checkpoints by; none takes the last.
        test: Images to score.
        labels: Names of the structures.
        recipe: The same for all encoders compared; `run` and `training.seed` are not used.
        seed: Of the fresh weights, the order and the augmentation.

    Returns:
        Dice `[test images, labels]` at the images' own sizes; NaN where an image has no such structure.
    """
    check_precision(recipe.training.mixed_precision)
    splits = {"train": train} if validation is None else {"train": train, "validation": validation}
    task = Task("few-shot", "segmentation", labels, "dice", splits)
    with TemporaryDirectory() as folder:
        own = Recipe(
            dataclasses.replace(recipe.model, name=model_name),
            recipe.augmentation,
            dataclasses.replace(recipe.training, seed=seed),
            dataclasses.replace(recipe.run, num_workers=0, cache_images=True, keep_checkpoints=1, trackers=[]),
        )
        model, processor = load_start(own.model, task.kind, labels, seed)
        model, _ = fit(model, processor, task, own, metric="dice", folder=Path(folder), quiet=True)
    return overlaps(*predict(model, processor, test, task.kind))[0]


def load_start(
    arguments: StartArguments, kind: Kind, labels: tuple[str, ...], seed: int
) -> tuple[PreTrainedModel, EdenImageProcessor]:
    """The model that fine-tuning starts from, with a head for `labels`, and its image processor.

    The trunk of any other transformers model goes on under an Eden head with its weights, and its processor becomes an
    `EdenImageProcessor` with its mean and standard deviation, so that all encoders are treated alike.

    Raises:
        OSError: there is no such model, or its weights cannot be read.
        ValueError: its trunk does not serve: it has no feature maps for segmentation, or lacks weights, say.
    """
    set_seed(seed)
    named = find_model(arguments.name, trust_remote_code=arguments.trust_remote_code)
    intensity = arguments.intensity or own_intensity(named.processor)
    processor = adapted_processor(named.processor, arguments.size, intensity)
    is_eden = named.config.model_type == EdenConfig.model_type
    config: Any = named.config if is_eden else EdenConfig(backbone_config=named.config)
    in_float32(config)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
    config.problem_type = PROBLEM_TYPES.get(kind)
    config.segmentation_type = processor.segmentation_type = "overlapping"
    processor.semantic_loss_ignore_index = config.semantic_loss_ignore_index
    for name in ("decoder_hidden_size", "decoder_detail_size"):
        if (size := getattr(arguments, name)) is not None:
            setattr(config, name, size)
    head = EdenForSemanticSegmentation if kind == "segmentation" else EdenForImageClassification
    if is_eden and not named.fresh:
        # A head that was made for another number of labels starts afresh.
        model, _ = load_whole(head, named.origin, fresh=(*OPTIONAL, "classifier.", "decoder."), config=config)
        if kind == "regression":  # so does one that predicts in units: labels are standardised while it is trained
            model.classifier.reset_parameters()
        return model, processor
    model = head(config)
    if not named.fresh:
        load_stock_trunk(model.eden.backbone, named.origin)
    return model, processor


def fit(
    model: PreTrainedModel,
    processor: EdenImageProcessor,
    task: Task,
    recipe: Recipe,
    *,
    metric: str,
    folder: Path,
    resume: bool = False,
    quiet: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
) -> tuple[PreTrainedModel, list[dict[str, Any]]]:
    """Train on the task's `train`, choosing by its `validation` where it has one.

    Args:
        model: From `load_start`.
        processor: The model's.
        task: The task.
        recipe: How.
        metric: Name of the metric to choose by.
        folder: For checkpoints.
        resume: Go on from the newest checkpoint in `folder`; a run that ended before its first starts over.
        quiet: Show neither progress nor metrics.
        callbacks: What else takes part.

    Returns:
        The model as it was at its best, without adapters, and the lines that Trainer logged.
    """
    disable_progress_bar()  # of writing checkpoints
    trunk: Any = model.eden
    scale = label_scale(task.splits["train"]) if task.kind == "regression" else None
    images = {
        name: TaskImages(task.splits[name], task.kind, processor, scale, recipe.run.cache_images)
        for name in ("train", "validation")
        if name in task.splits
    }
    if recipe.model.freeze or recipe.model.lora_rank:
        trunk.requires_grad_(False)
    if recipe.model.lora_rank:
        model = _with_adapters(model, recipe.model.lora_rank)
    if recipe.training.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-arg]  # transformers wraps `to`
    patience = [EarlyStoppingCallback(recipe.training.patience)] if recipe.training.patience else []
    trainer = TaskTrainer(
        model=model,
        args=_training_arguments(recipe, len(images["train"]), "validation" in images, metric, folder, quiet),
        train_dataset=images["train"],
        eval_dataset=images.get("validation"),
        processing_class=processor,
        compute_metrics=lambda found: _validation_metrics(task, metric, found),
        callbacks=[*callbacks, *patience, SealedCheckpoints(recipe.run.keep_checkpoints)],
        task_kind=task.kind,
        scale=scale,
        augmentation=recipe.augmentation,
        frozen=trunk if recipe.model.freeze or recipe.model.lora_rank else None,
    )
    if quiet:
        trainer.remove_callback(PrinterCallback)
    handler, tracking = trainer.callback_handler, tuple(get_reporting_integration_callbacks(trainer.args.report_to))
    handler.callbacks = [TrackerCallback(each) if isinstance(each, tracking) else each for each in handler.callbacks]
    checkpoint = _last_checkpoint(folder) if resume else None
    with of_this_version(checkpoint or folder), workers_live():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    best: Any = trainer.accelerator.unwrap_model(trainer.model)
    if recipe.model.lora_rank:
        best = best.merge_and_unload()
    if scale is not None:
        _predict_in_units(best.classifier, *scale)
    return best.eval(), trainer.state.log_history


class TaskTrainer(Trainer):
    """`Trainer` with augmentation on the device, a frozen trunk that stays as it is, and predictions worth keeping.

    Args:
        task_kind: The task's.
        scale: Of regression labels, see `TaskImages`.
        augmentation: Of training batches, by seed, step and process alone: a resumed run draws the same.
        frozen: Module that is kept in evaluation mode, so that its BatchNorm statistics stay as they are.
    """

    def __init__(
        self,
        *args: Any,
        task_kind: Kind,
        scale: tuple[Tensor, Tensor] | None,
        augmentation: AugmentationArguments,
        frozen: nn.Module | None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.task_kind, self.scale, self.augmentation, self.frozen = task_kind, scale, augmentation, frozen

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The loss, in training that of the augmented batch."""
        if model.training:
            if self.frozen is not None:
                self.frozen.eval()
            masks = inputs["labels"] if self.task_kind == "segmentation" else None
            seed = (self.args.seed, self.state.global_step, self.args.process_index)
            images, masks = augment(inputs["pixel_values"], masks, self.augmentation, seed)
            inputs = {"pixel_values": images, "labels": inputs["labels"] if masks is None else masks}
        with enough_values("training.batch_size", "model.size"):
            return super().compute_loss(model, inputs, *args, **kwargs)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """As in pretraining; Trainer's own finds no BatchNorm, and decays class tokens and positions."""
        return decayed_names(model)

    def get_train_dataloader(self) -> DataLoader:
        """As Trainer's; a signal to all processes leaves the workers at work."""
        return with_obeying_workers(super().get_train_dataloader())

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """As Trainer's; a signal to all processes leaves the workers at work."""
        return with_obeying_workers(super().get_eval_dataloader(eval_dataset))

    def _get_train_sampler(self, train_dataset: Any = None) -> FullBatches:
        dataset: Any = train_dataset or self.train_dataset
        images, batch = len(dataset), self.args.train_batch_size * self.args.world_size
        return FullBatches(images, batch, self.args.seed, lambda: self.state.global_step // math.ceil(images / batch))

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        readable_like_neighbours(Path(output_dir or str(self.args.output_dir)))

    def prediction_step(self, *args: Any, **kwargs: Any) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Loss, predictions and truths as `measure` takes them: of masks the numbers of pixels at the model's size."""
        loss, logits, labels = super().prediction_step(*args, **kwargs)
        if logits is None or labels is None:
            return loss, logits, labels
        if self.task_kind == "segmentation":
            return loss, *mask_pixels(logits > 0, labels > 0.5)
        predictions = probabilities(self.task_kind, logits)
        if self.scale is not None:
            mean, std = (values.to(predictions) for values in self.scale)
            predictions, labels = predictions * std + mean, labels * std + mean
        return loss, predictions, labels


def _validation_metrics(task: Task, metric: str, found: EvalPrediction) -> dict[str, float]:
    metrics = measure(task.kind, task.labels, found.predictions, found.label_ids)  # type: ignore[arg-type]
    if math.isnan(metrics[metric]):
        why = "none of them has a structure" if task.kind == "segmentation" else "their labels are all alike"
        raise ValueError(
            f"the {metric} of the {len(found.label_ids)} validation images of {task.name} is not defined, since "
            f"{why}; raise `task.validation_share`, or choose another `task.metric`"
        )
    unmeasured_labels(metrics, task.labels, "validation")
    return {name: value for name, value in metrics.items() if not math.isnan(value)}


def _training_arguments(
    recipe: Recipe, images: int, validates: bool, metric: str, folder: Path, quiet: bool
) -> TrainingArguments:
    """Trainer's settings for a recipe."""
    training, run = recipe.training, recipe.run
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if training.batch_size % processes:
        raise ValueError(f"`training.batch_size` {training.batch_size} does not divide among {processes} processes")
    total = training.steps or training.epochs * math.ceil(images / training.batch_size)
    accelerated = torch.accelerator.is_available()
    device = torch.accelerator.current_accelerator() if accelerated else None
    precision = precision_used(training.mixed_precision, device or torch.device("cpu"))
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=training.batch_size // processes,
        per_device_eval_batch_size=max(1, training.batch_size // processes),
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        max_steps=total,
        warmup_steps=round(training.warmup_share * total),
        lr_scheduler_type="cosine",
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=not accelerated,
        eval_strategy="steps" if validates else "no",
        eval_steps=math.ceil(total / training.evaluations),
        save_strategy="steps" if validates or not quiet else "no",
        save_steps=math.ceil(total / training.evaluations),
        save_only_model=quiet,
        load_best_model_at_end=validates,
        metric_for_best_model=metric if validates else None,
        greater_is_better=metric not in LOWER_IS_BETTER if validates else None,
        restore_callback_states_from_checkpoint=True,
        logging_steps=run.log_every,
        report_to=run.trackers or "none",
        disable_tqdm=quiet,
        seed=training.seed,
        data_seed=training.seed,
        dataloader_num_workers=run.num_workers,
        dataloader_persistent_workers=run.num_workers > 0,
        dataloader_pin_memory=accelerated,
        remove_unused_columns=False,
        label_names=["labels"],
    )


class SealedCheckpoints(TrainerCallback):
    """Seals the checkpoints of `Trainer`, and keeps the newest: by their steps, while it goes by the clock.

    Args:
        keep: How many, beside the best one.
    """

    def __init__(self, keep: int) -> None:
        self.keep = keep

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """After a checkpoint was written."""
        PartialState().wait_for_everyone()
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir)
        seal(folder / f"checkpoint-{state.global_step}")
        best = state.best_model_checkpoint
        for old in _checkpoints(folder)[: -self.keep]:
            if best is None or old.name != Path(best).name:
                remove(old)


def _checkpoints(folder: Path) -> list[Path]:
    """Trainer's checkpoints, oldest first: those that are sealed; where none is, as older versions leave them, all."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    sealed = [path for path in found if (path / SUMS_FILE).exists()]
    return sealed or [path for path in found if (path / "trainer_state.json").exists()]


def _last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint."""
    whole = newest_whole(_checkpoints(folder))
    if whole is None:
        logger.warning("no checkpoint was written yet to %s: starting at step 0", folder)
    return whole


def _with_adapters(model: PreTrainedModel, rank: int) -> Any:
    """`model` with LoRA on every linear map and convolution of its trunk, and its head trained whole."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ImportError("model.lora_rank needs peft: pip install 'eden_hf[lora]'") from error
    inside = ((name, module) for name, module in model.named_modules() if name.startswith("eden."))
    dense = ((name, module) for name, module in inside if getattr(module, "groups", 1) == 1)  # not depthwise
    targets = [name for name, module in dense if isinstance(module, nn.Linear | nn.Conv2d)]
    heads = [name for name, _ in model.named_children() if name != "eden"]
    return get_peft_model(
        model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, modules_to_save=heads)
    )


@torch.no_grad()
def _predict_in_units(classifier: nn.Linear, mean: Tensor, std: Tensor) -> None:
    """Let a head trained on standardised labels predict the labels themselves."""
    mean, std = mean.to(classifier.weight), std.to(classifier.weight)
    classifier.weight.mul_(std[:, None])
    classifier.bias.mul_(std).add_(mean)
