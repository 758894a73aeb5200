"""The settings of fine-tuning: typed dataclasses that are the YAML schema and the command line at once."""

from dataclasses import dataclass, field
from typing import Literal

from eden_hf.data.tasks import Kind, Task, load_source_task, load_task
from eden_hf.training.arguments import HubArguments
from eden_hf.training.settings import Settings, require


@dataclass
class TaskArguments:
    """What is learned: a task by its name and folder, or any source with label or mask columns.

    Args:
        name: A data set of the paper (`scr_heart`, `chestxray14` ...; docs/tasks.md) in `data_dir`.
        data_dir: Folder with the files of `name`, as they are published.
        source: Where there is no `name`: a folder, Parquet, a Hub data set id, or `phantoms:N`.
        kind: Of a source: `single_label`, `multi_label`, `regression` or `segmentation`.
        label_column: Of a source: column with the class of each image; by default `label` if there is one, else its
            folder.
        label_columns: Of a source: columns with a number each.
        mask_columns: Of a source: columns with a mask each, or for each structure the columns that make it up.
        image_column: Of a source: column that holds the images.
        id_column: Of a source: column whose values name the images.
        metric: Primary metric, instead of the task's own: `accuracy`, `auc`, `mae`, `r2`, `dice` or `iou`.
        max_skipped_share: Share of the images that may be absent or unreadable; they are left out and listed.
        test_share: Share of the training images held out for testing, where there is no test split.
        validation_share: Share of the training images held out to choose by, where there is no validation split; 0
            holds out none, and the last weights are taken.
        patient_column: Column that tells patients apart; the images of one are then held out together.
        shared_patients: What becomes of patients that given splits share: `refuse` them, or `drop` their images from
            training.
        split_seed: Seed of the images held out. Other seeds do not move them.
    """

    name: str | None = None
    data_dir: str | None = None
    source: str = "phantoms:64"
    kind: Kind = "segmentation"
    label_column: str | None = None
    label_columns: list[str] = field(default_factory=list)
    mask_columns: dict[str, list[str]] | list[str] = field(default_factory=list)
    image_column: str = "image"
    id_column: str | None = None
    metric: Literal["accuracy", "auc", "mae", "r2", "dice", "iou"] | None = None
    max_skipped_share: float = 0.0
    test_share: float = 0.2
    validation_share: float = 0.1
    patient_column: str | None = None
    shared_patients: Literal["refuse", "drop"] = "refuse"
    split_seed: int = 0

    def __post_init__(self) -> None:
        require(self.name is None or self.data_dir is not None, "task.data_dir", self.data_dir, "given with task.name")
        share = self.max_skipped_share
        require(0 <= share <= 1, "task.max_skipped_share", share, "in [0, 1]")
        require(0 < self.test_share < 1, "task.test_share", self.test_share, "in (0, 1)")
        require(0 <= self.validation_share < 1, "task.validation_share", self.validation_share, "in [0, 1)")

    def load(self) -> Task:
        """The task, as its files or its source have it.

        Raises:
            TaskError: files, columns or values are not as they must be.
            SourceError: there is no such source.
        """
        if self.name is not None:
            return load_task(self.name, self.data_dir or "", self.max_skipped_share)
        return load_source_task(
            self.source,
            self.kind,
            label_column=self.label_column,
            label_columns=self.label_columns,
            mask_columns=self.mask_columns,
            image_column=self.image_column,
            id_column=self.id_column,
            patient_column=self.patient_column,
        )


@dataclass
class StartArguments:
    """What fine-tuning starts from, and what of it moves.

    Args:
        name: An Eden folder or Hub id, a folder or id of any transformers vision model, or `random:` and such a name
            or a preset (`random:resnet18-half`) for fresh weights.
        trust_remote_code: Whether code that comes with a Hub model may run.
        size: Pixels a side that images are brought to, instead of the model's own.
        intensity: How intensities are normalised (`fixed` or `per_image`), instead of the model's own way.
        freeze: Keep the trunk as it is and train the head alone (a linear probe, for classification).
        lora_rank: Rank of LoRA adapters, which train in the trunk's place (needs `peft`); 0 for none.
        decoder_hidden_size: Channels of a segmentation decoder at the trunk's finest map, instead of the model's own.
        decoder_detail_size: Channels of its branch over the pixels, instead of the model's own.
    """

    name: str = "random:resnet18-half"
    trust_remote_code: bool = False
    size: int | None = None
    intensity: Literal["fixed", "per_image"] | None = None
    freeze: bool = False
    lora_rank: int = 0
    decoder_hidden_size: int | None = None
    decoder_detail_size: int | None = None

    def __post_init__(self) -> None:
        require(self.size is None or self.size >= 32, "model.size", self.size, "at least 32 pixels, or null")
        require(self.lora_rank >= 0, "model.lora_rank", self.lora_rank, "at least 0")
        mend = "0 with model.freeze, which trains the head alone"
        require(not (self.freeze and self.lora_rank), "model.lora_rank", self.lora_rank, mend)


@dataclass
class AugmentationArguments:
    """Random changes to training images, and to their masks alike. There is no mirroring: left is not right.

    Args:
        rotation_degrees: Largest rotation either way.
        scale: Largest share by which an image grows or shrinks.
        shift: Largest shift either way along x and y, as a share of the side.
        contrast: Largest share by which contrast grows or shrinks.
        brightness: Largest change of brightness, in standard deviations of the image.
        elastic: Largest shift either way at the nodes of a smooth field, six a side, as a share of the side.
    """

    rotation_degrees: float = 10.0
    scale: float = 0.1
    shift: float = 0.05
    contrast: float = 0.2
    brightness: float = 0.2
    elastic: float = 0.0

    def __post_init__(self) -> None:
        angle = self.rotation_degrees
        require(0 <= angle <= 180, "augmentation.rotation_degrees", angle, "in [0, 180]")
        for name in ("scale", "shift", "contrast", "brightness", "elastic"):
            require(0 <= getattr(self, name) < 1, f"augmentation.{name}", getattr(self, name), "in [0, 1)")


@dataclass
class FinetuneTrainingArguments:
    """How it is trained: AdamW, a linear warm-up, then down to 0 along a half cosine.

    Args:
        learning_rate: Peak learning rate.
        weight_decay: Weight decay, of the weights of linear maps and convolutions alone.
        epochs: Passes over the training images; images drawn anew fill the last batch of each.
        steps: Optimiser steps, instead of `epochs`.
        batch_size: Images of one optimiser step, over all processes together.
        warmup_share: Share of the steps over which the learning rate rises.
        mixed_precision: `no`, `bf16`, on a GPU `fp16`, or `auto`: bf16 where the device has instructions for it.
        channels_last: Lay images out channels last (faster with bf16 on CPUs and GPUs that know it).
        evaluations: Validations (each with a checkpoint) over the run, evenly spaced.
        patience: Validations without a better one after which the run stops; `null` runs to the end.
        seed: Seed of the draws of training: fresh weights, order, augmentation.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    epochs: int = 50
    steps: int | None = None
    batch_size: int = 16
    warmup_share: float = 0.1
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    channels_last: bool = True
    evaluations: int = 10
    patience: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.learning_rate > 0, "training.learning_rate", self.learning_rate, "above 0")
        require(self.weight_decay >= 0, "training.weight_decay", self.weight_decay, "at least 0")
        require(0 <= self.warmup_share < 1, "training.warmup_share", self.warmup_share, "in [0, 1)")
        for name in ("epochs", "steps", "batch_size", "evaluations", "patience"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"training.{name}", value, "at least 1")


@dataclass
class FinetuneRunArguments(HubArguments):
    """Where a run writes and how it reads; nothing here changes what is learned.

    Args:
        push_to_hub: Let `eden finetune` publish the model on the Hub, private, as the `model_id` of `card`, once it
            is measured.
        card: YAML file of what the publisher declares (`EdenModelCardData`).
        output_dir: Folder of the run.
        keep_checkpoints: Newest checkpoints that are kept, beside the best one.
        log_every: Optimiser steps that one line of metrics sums up.
        num_workers: Processes that read batches ahead; 0 reads them in the training process.
        cache_images: Keep decoded and resized images in memory (in each reading process).
        trackers: Experiment trackers by transformers' names (`tensorboard`, `wandb`, ...).
    """

    output_dir: str = "outputs/finetune"
    keep_checkpoints: int = 2
    log_every: int = 10
    num_workers: int = 2
    cache_images: bool = False
    trackers: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("keep_checkpoints", "log_every"):
            require(getattr(self, name) >= 1, f"run.{name}", getattr(self, name), "at least 1")
        require(self.num_workers >= 0, "run.num_workers", self.num_workers, "at least 0")


@dataclass
class Recipe(Settings):
    """How a model is fine-tuned, whatever it is and whatever it learns: the same for all encoders compared."""

    model: StartArguments = field(default_factory=StartArguments)
    augmentation: AugmentationArguments = field(default_factory=AugmentationArguments)
    training: FinetuneTrainingArguments = field(default_factory=FinetuneTrainingArguments)
    run: FinetuneRunArguments = field(default_factory=FinetuneRunArguments)


@dataclass
class FinetuneArguments(Recipe):
    """A fine-tuning run, section by section."""

    task: TaskArguments = field(default_factory=TaskArguments)
