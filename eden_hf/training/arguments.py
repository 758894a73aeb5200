"""The settings of a run: typed dataclasses that are the YAML schema and the command line at once.

Pretraining's are here; `eden_hf.training.finetune_arguments` has those of fine-tuning, and `eden_hf.training.settings`
reads both.
"""

import dataclasses
import re
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from eden_hf.anatomy import finest_level
from eden_hf.data.view_arguments import AnchorArguments, PointArguments, ViewArguments
from eden_hf.training.settings import Settings, parse_settings, read_settings, require

if TYPE_CHECKING:
    from eden_hf.configuration_eden import EdenConfig


@dataclass
class ModelArguments:
    """What is trained; see `EdenConfig`, whose defaults are the paper's.

    Args:
        backbone: A preset (`resnet18`, `resnet18-half`, `resnet34`, `resnet50`) or a transformers configuration as a
            mapping with its `model_type`.
        projection_dim: Dimension of the contrasted embeddings.
        memory_bank_size: Number of past keys kept as negatives.
        memory_bank_init: `random` unit rows count from the start (published), or `empty` rows count once filled.
        contrastive_temperature: Temperature of the loss.
        teacher_momentum: Momentum of the teacher's average; in Adam-v2's stages it rises from there to 1.
        localizability_hidden_size: Width of the hidden layers of Adam-v2's localizability head.
        localizability_bottleneck_size: Dimension of the unit vectors before its last layer.
        localizability_outputs: Number of its outputs.
        student_temperature: Temperature of the student's softmax over them.
        teacher_temperature: Temperature of the teacher's.
        center_momentum: Momentum of the moving mean of the teacher's outputs.
        decomposition_norm: Decomposed parts become unit vectors together (`whole`, published) or each (`part`).
        joined_parts: Embed all parts in one pass (faster), not each in one of its own (published).
        dense_dim: Dimension of the dense embeddings, which a stage of objective `points` trains; `null` for none.
        dense_hidden_size: Channels of the dense decoder.
        dense_temperature: Temperature of the dense stage's loss.
        dense_tolerance: How near counts as the same point there, as a share of the image's side.
        start: Folder or Hub id of a model to start from. Of an Eden pretraining model (or a repository that has one in
            `pretraining/`), student, teacher, projectors and memory bank go on; of any other Eden model, and of any
            vision model of transformers (docs/trunks.md), student and teacher begin as its trunk. Trunk and sizes are
            then its own.
    """

    backbone: str | dict[str, Any] = "resnet50"
    projection_dim: int = 128
    memory_bank_size: int = 65536
    memory_bank_init: Literal["random", "empty"] = "random"
    contrastive_temperature: float = 0.2
    teacher_momentum: float = 0.999
    localizability_hidden_size: int = 2048
    localizability_bottleneck_size: int = 256
    localizability_outputs: int = 65536
    student_temperature: float = 0.1
    teacher_temperature: float = 0.04
    center_momentum: float = 0.9
    decomposition_norm: Literal["whole", "part"] = "whole"
    joined_parts: bool = False
    dense_dim: int | None = None
    dense_hidden_size: int = 64
    dense_temperature: float = 0.07
    dense_tolerance: float = 0.014
    start: str | None = None

    def to_config(self) -> "EdenConfig":
        """The model configuration these settings stand for, but for `start`.

        Raises:
            ValueError: one is out of its range, or the trunk is unknown.
        """
        from huggingface_hub.errors import StrictDataclassError  # heavy, and settings are parsed without them

        from eden_hf.configuration_eden import EdenConfig
        from eden_hf.model_names import first_line

        settings = dataclasses.asdict(self)
        del settings["start"]
        try:
            return EdenConfig(backbone_config=settings.pop("backbone"), **settings)
        except StrictDataclassError as error:
            raise ValueError(f"`model`: {first_line(error)}") from error


@dataclass
class DataArguments:
    """Which images are learned from, and how they are prepared (decoded once, to `side` x `side` uint8).

    Args:
        source: A folder of images or DICOM files, Parquet, a Hub data set id, or `phantoms` / `phantoms:N`.
        split: Split of the source to train on.
        image_column: Column that holds the images.
        id_column: Column whose values name the images; file paths or row numbers by default.
        list_file: Text file naming the images to use, one a line (an official train list, say).
        side: Pixels a side of the prepared images.
        channels: 1 for grey images, 3 for colour.
        aspect_ratio: `resize` stretches an image to the square, `pad` keeps its ratio on black.
        holdout_share: Share of the images held out for the validation loss.
        split_seed: Seed of the images held out. `training.seed` does not move them.
        patient_column: Column that tells patients apart; the images of one are then held out together.
        max_skipped_share: Share of unreadable images above which the run stops.
        cache_dir: Where prepared images are kept; the package's cache folder by default.
        streaming: Prepare nothing: read Parquet, here or on the Hub, while training.
        shuffle_window: Images among which an epoch is shuffled when streaming. About as many, encoded, are held in
            memory by each process.
    """

    source: str = "phantoms:256"
    split: str = "train"
    image_column: str = "image"
    id_column: str | None = None
    list_file: str | None = None
    side: int = 256
    channels: Literal[1, 3] = 1
    aspect_ratio: Literal["resize", "pad"] = "resize"
    holdout_share: float = 0.1
    split_seed: int = 0
    patient_column: str | None = None
    max_skipped_share: float = 0.01
    cache_dir: str | None = None
    streaming: bool = False
    shuffle_window: int = 4096

    def __post_init__(self) -> None:
        require(self.shuffle_window >= 1, "data.shuffle_window", self.shuffle_window, "at least 1 image")
        listed = self.streaming and self.list_file is not None
        require(not listed, "data.list_file", self.list_file, "left out with data.streaming, which reads all rows")
        require(self.side >= 1, "data.side", self.side, "at least 1 pixel")
        require(0 <= self.holdout_share < 1, "data.holdout_share", self.holdout_share, "in [0, 1)")
        require(0 <= self.max_skipped_share <= 1, "data.max_skipped_share", self.max_skipped_share, "in [0, 1]")


#: Settings of a stage that not all objectives have a use for, and those that have.
_USED_BY = {
    **dict.fromkeys(("level", "prune_threshold"), ("parts",)),
    "partner_weight": ("points",),
    **dict.fromkeys(("composability_weight", "decomposability_weight"), ("part_whole",)),
    **dict.fromkeys(
        ("frozen_epochs", "first_teacher_temperature", "teacher_temperature_epochs"), ("localize", "part_whole")
    ),
}


@dataclass
class Stage:
    """One step of the coarse-to-fine curriculum (arXiv 2309.15358, Anatomy Decomposer), or the dense stage after it.

    Or one of Adam-v2's two, of which `composability_weight` and the settings after it are.

    Args:
        objective: `parts` contrasts views of parts (published); `points` looks for the points of one view of a whole
            image in another (views as in `points`), and has no use for `level` and `prune_threshold`.
            `localize` and `part_whole` are Adam-v2's (views as in `anchors`): crops of an anchor agree; and parts
            compose the anchor, which decomposes into them.
        level: Granularity n; views are cut from one of the 2^n parts.
        epochs: Passes over the training images. In a stage of Adam-v2 it may be a list: those with anchors of
            granularity 0, 1, 2 ... in turn, under one schedule.
        prune_threshold: Gamma of the Purposive Pruner; `null` prunes nothing.
        learning_rate: Peak learning rate, brought down along a half cosine over the stage.
        final_learning_rate: Where it comes to.
        warmup_epochs: Epochs in which it first rises from 0 to the peak.
        momentum: Momentum of SGD, or the first beta of AdamW.
        weight_decay: Weight decay; of AdamW on the weights of linear maps and convolutions alone.
        final_weight_decay: Where weight decay comes to along a half cosine; `null` keeps it.
        optimizer: Of this stage; `training.optimizer` by default.
        batch_size: Of this stage; `training.batch_size` by default.
        partner_weight: Of looking for points in another patient's image as well, where the teacher finds them; 0 for
            none. Only once a stage without it has taught the teacher.
        composability_weight: Of composability in the loss of a stage of objective `part_whole`; 0 leaves it out.
        decomposability_weight: Of decomposability, likewise.
        frozen_epochs: First epochs in which the last layer of the localizability head stands still.
        frozen_trunk_epochs: First epochs in which the trunk stands still while what is fresh upon it learns. Its
            BatchNorm statistics go on.
        first_teacher_temperature: Where the teacher's temperature starts from, to come to `model.teacher_temperature`.
        teacher_temperature_epochs: Epochs that it takes.
    """

    objective: Literal["parts", "points", "localize", "part_whole"] = "parts"
    level: int = 0
    epochs: int | list[int] = 200
    prune_threshold: float | None = None
    learning_rate: float = 0.03
    final_learning_rate: float = 0.0
    warmup_epochs: int = 0
    momentum: float = 0.9
    weight_decay: float = 1e-4
    final_weight_decay: float | None = None
    optimizer: Literal["sgd", "adamw"] | None = None
    batch_size: int | None = None
    partner_weight: float = 0.0
    composability_weight: float = 1.0
    decomposability_weight: float = 1.0
    frozen_epochs: int = 0
    frozen_trunk_epochs: int = 0
    first_teacher_temperature: float | None = None
    teacher_temperature_epochs: int = 0

    @property
    def is_second_generation(self) -> bool:
        """Whether it is one of Adam-v2's."""
        return self.objective in ("localize", "part_whole")

    @property
    def total_epochs(self) -> int:
        """Epochs of all granularities together."""
        return self.epochs if isinstance(self.epochs, int) else sum(self.epochs)

    def granularity(self, epoch: int) -> int:
        """Of the anchors in an epoch of this stage; 0 where `epochs` is no list."""
        ends = accumulate([self.epochs] if isinstance(self.epochs, int) else self.epochs)
        return next(granularity for granularity, end in enumerate(ends) if epoch < end)

    def __post_init__(self) -> None:
        require(self.level >= 0, "stages.level", self.level, "an integer >= 0 (0 is the whole image)")
        self._check_epochs()
        self._check_schedules()
        gamma = self.prune_threshold
        require(gamma is None or -1 <= gamma <= 1, "stages.prune_threshold", gamma, "a cosine in [-1, 1], or null")
        size = self.batch_size
        require(size is None or size >= 1, "stages.batch_size", size, "at least 1, or null for training.batch_size")
        for name in ("partner_weight", "composability_weight", "decomposability_weight"):
            require(getattr(self, name) >= 0, f"stages.{name}", getattr(self, name), "at least 0")
        self._check_used()

    def _check_used(self) -> None:
        """Refuse what the objective has no use for."""
        for name, objectives in _USED_BY.items():
            value, unset = getattr(self, name), getattr(Stage, name)
            mend = f"left out of a stage of objective {self.objective}: it is of {' and '.join(objectives)}"
            require(self.objective in objectives or value == unset, f"stages.{name}", value, mend)

    def _check_epochs(self) -> None:
        least = min(self.epochs, default=-1) if isinstance(self.epochs, list) else self.epochs
        require(least >= 0 and self.total_epochs >= 1, "stages.epochs", self.epochs, "at least 1")
        listed = isinstance(self.epochs, int) or self.is_second_generation
        require(listed, "stages.epochs", self.epochs, f"one number in a stage of objective {self.objective}")
        for name in ("warmup_epochs", "frozen_epochs", "teacher_temperature_epochs"):
            value, mend = getattr(self, name), f"from 0 to fewer than the stage's {self.total_epochs} epochs"
            require(0 <= value < self.total_epochs, f"stages.{name}", value, mend)
        frozen, mend = self.frozen_trunk_epochs, f"from 0 to the stage's {self.total_epochs} epochs"
        require(0 <= frozen <= self.total_epochs, "stages.frozen_trunk_epochs", frozen, mend)

    def _check_schedules(self) -> None:
        require(self.learning_rate > 0, "stages.learning_rate", self.learning_rate, "above 0")
        require(0 <= self.momentum < 1, "stages.momentum", self.momentum, "in [0, 1)")
        for name in ("weight_decay", "final_weight_decay", "final_learning_rate"):
            value = getattr(self, name)
            require(value is None or value >= 0, f"stages.{name}", value, "at least 0")
        first, epochs = self.first_teacher_temperature, self.teacher_temperature_epochs
        require(first is None or first > 0, "stages.first_teacher_temperature", first, "above 0, or null")
        mend = "given with stages.teacher_temperature_epochs, and only then"
        require((first is None) == (epochs == 0), "stages.first_teacher_temperature", first, mend)


def published_curriculum() -> list[Stage]:
    """The paper's stages: levels 0, 2, 4 of 200 epochs each, pruning at 0.8 after the first."""
    return [Stage(level=0), Stage(level=2, prune_threshold=0.8), Stage(level=4, prune_threshold=0.8)]


@dataclass
class TrainingArguments:
    """How it is trained.

    Args:
        batch_size: Images of one optimiser step, over all processes and accumulated batches together.
        gradient_accumulation_steps: Batches that one optimiser step is split into.
        optimizer: `sgd` (published) or `adamw` (for transformer trunks).
        layer_decay: Each layer of the trunk (stage, or block of a ViT) learns at this share of the rate of the next.
        max_grad_norm: Norm that gradients are clipped to; `null` clips nothing.
        clip_each_tensor: Clip each parameter's gradient to that norm by itself (Adam-v2), not all together.
        mixed_precision: `no`, `bf16` or, on a GPU, `fp16`.
        channels_last: Lay images out channels last (faster with bf16 on CPUs and GPUs that know it).
        compile: Compile the trunks with `torch.compile`.
        sync_batchnorm: Share BatchNorm statistics between the GPUs; otherwise key batches are shuffled.
        validate_every: Epochs between validations; by default as few as take a fiftieth of the time at most. The last
            epoch of a stage is validated in any case.
        validation_images: Most of the held-out images that a validation takes.
        seed: Seed of every draw of training: weights, bank, order, views.
    """

    batch_size: int = 256
    gradient_accumulation_steps: int = 1
    optimizer: Literal["sgd", "adamw"] = "sgd"
    layer_decay: float = 1.0
    max_grad_norm: float | None = None
    clip_each_tensor: bool = False
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    channels_last: bool = False
    compile: bool = False
    sync_batchnorm: bool = False
    validate_every: int | None = None
    validation_images: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, "training.batch_size", self.batch_size, "at least 1")
        steps = self.gradient_accumulation_steps
        require(steps >= 1, "training.gradient_accumulation_steps", steps, "at least 1")
        every = self.validate_every
        require(every is None or every >= 1, "training.validate_every", every, "at least 1, or null")
        require(self.validation_images >= 1, "training.validation_images", self.validation_images, "at least 1")
        require(0 < self.layer_decay <= 1, "training.layer_decay", self.layer_decay, "above 0 and at most 1")
        norm = self.max_grad_norm
        require(norm is None or norm > 0, "training.max_grad_norm", norm, "above 0, or null")


@dataclass
class HubArguments:
    """Whether the finished model is published on the Hub.

    Args:
        push_to_hub: Publish it on the Hub, private, as the `model_id` of `card`.
        card: YAML file of what the publisher declares (`EdenModelCardData`).
    """

    push_to_hub: bool = False
    card: str | None = None

    def __post_init__(self) -> None:
        require(not self.push_to_hub or self.card is not None, "run.card", self.card, "given with run.push_to_hub")


@dataclass
class RunArguments(HubArguments):
    """Where a run writes and how often; nothing here changes what is learned.

    Args:
        push_to_hub: Publish the finished model on the Hub, private, as the `model_id` of `card`.
        card: YAML file of what the publisher declares (`EdenModelCardData`).
        output_dir: Folder of the run.
        checkpoint_every: Optimiser steps between checkpoints; one is written at each stage's end as well. With them go
            the model folders `last` and, where a validation found a better one, `best`.
        keep_checkpoints: Newest checkpoints that are kept.
        log_every: Optimiser steps that one line of metrics sums up.
        num_workers: Processes that read batches ahead; 0 reads them in the training process. By default 2 for a GPU,
            and 0 on a CPU, of which they would take a share.
        trackers: Experiment trackers by accelerate's names (`tensorboard`, `wandb`, ...).
        check_phi: Refuse to start on images that may tell who a patient is; what was found is in `phi.csv` then.
        accepted_phi: CSV of findings that you accept: rows kept of that `phi.csv`.
        timeout: Seconds that the processes of a launch wait for one another, once the images are prepared, before they
            end for one that hangs.
        probe: Source with landmarks or a class `label` (Parquet, `phantoms:N` ...) that the model is measured on while
            it is trained: `probe_...` in metrics, trackers and progress bar. None by default.
        probe_split: Split of that source.
        probe_images: How many of its first images.
        probe_every: Epochs between measurements; the last epoch of a stage is measured in any case.
    """

    output_dir: str = "outputs/pretrain"
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    log_every: int = 10
    num_workers: int | None = None
    trackers: list[str] = field(default_factory=list)
    check_phi: bool = False
    accepted_phi: str | None = None
    timeout: float = 600.0
    probe: str | None = None
    probe_split: str = "train"
    probe_images: int = 64
    probe_every: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.timeout > 0, "run.timeout", self.timeout, "above 0")
        for name in ("checkpoint_every", "keep_checkpoints", "log_every", "probe_every"):
            require(getattr(self, name) >= 1, f"run.{name}", getattr(self, name), "at least 1")
        workers = self.num_workers
        require(workers is None or workers >= 0, "run.num_workers", workers, "at least 0, or null")
        require(self.probe_images >= 2, "run.probe_images", self.probe_images, "at least 2")


@dataclass
class PretrainArguments(Settings):
    """A pretraining run, section by section. The defaults are the paper's recipe on phantoms.

    Attributes:
        stages: The curriculum: what is learned, one stage after the other.
    """

    model: ModelArguments = field(default_factory=ModelArguments)
    data: DataArguments = field(default_factory=DataArguments)
    views: ViewArguments = field(default_factory=ViewArguments)
    points: PointArguments = field(default_factory=PointArguments)
    anchors: AnchorArguments = field(default_factory=AnchorArguments)
    stages: list[Stage] = field(default_factory=published_curriculum)
    training: TrainingArguments = field(default_factory=TrainingArguments)
    run: RunArguments = field(default_factory=RunArguments)

    def may_change(self, key: str) -> bool:
        """Whether a setting may be another on resuming: what helps a run whose loss went to infinity."""
        return key == "training.max_grad_norm" or re.fullmatch(r"stages\.\d+\.learning_rate", key) is not None

    @property
    def is_mixed(self) -> bool:
        """Whether some parameters are trained in some stages alone: the projector's, the dense decoder's, heads'."""
        branches = {(s.objective, s.composability_weight > 0, s.decomposability_weight > 0) for s in self.stages}
        return len(branches) > 1

    @property
    def is_second_generation(self) -> bool:
        """Whether this is a run of Adam-v2."""
        return self.stages[0].is_second_generation

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.stages) >= 1, "stages", self.stages, "a list of at least one stage")
        finest = finest_level(self.data.side, self.data.side)
        for number, stage in enumerate(self.stages):
            mixed = stage.is_second_generation != self.is_second_generation
            mend = "of one generation in all stages of a run"
            require(not mixed, f"stages.{number}.objective", stage.objective, mend)
            dense = self.model.dense_dim is not None or self.model.start is not None
            mend = "given (64, say) for a stage of objective points"
            require(stage.objective != "points" or dense, "model.dense_dim", self.model.dense_dim, mend)
            mend = f"at most {finest} for prepared images of {self.data.side} pixels a side (see data.side)"
            require(stage.level <= finest, f"stages.{number}.level", stage.level, mend)
            granularity = stage.granularity(stage.total_epochs - 1)
            mend = f"a list of fewer granularities: anchors of {granularity} have no parts in {self.data.side} pixels"
            fits = not stage.is_second_generation or self.data.side >> granularity >= 2
            require(fits, f"stages.{number}.epochs", stage.epochs, mend)


def parse_arguments(arguments: list[str] | None = None, **parser_options: Any) -> tuple[PretrainArguments, bool]:
    """`parse_settings` of a pretraining run."""
    return parse_settings(PretrainArguments, arguments, **parser_options)


def read_arguments(path: str | Path) -> PretrainArguments:
    """`read_settings` of a pretraining run."""
    return read_settings(PretrainArguments, path)
