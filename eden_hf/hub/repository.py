"""The folder of a published model: made of a run or a model folder, whole, with its card (`stage_model`).

It holds `model.safetensors`, `config.json` and the code files, `preprocessor_config.json`, `README.md`, `card.yaml`;
`training/` with the recipe, the metrics, the loss figure, the images' list hash and the environment; `evaluation/`
with the results; and if asked `pretraining/` with student, teacher, projector and memory bank. No pickle anywhere.
"""

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedModel

from eden_hf.configuration_eden import EdenConfig
from eden_hf.hub.card_facts import data_name
from eden_hf.hub.cards import EdenModelCardData, write_card
from eden_hf.image_processing_eden import EdenImageProcessor
from eden_hf.model_names import weights_revision
from eden_hf.modeling_eden import (
    EdenForImageClassification,
    EdenForPreTraining,
    EdenForSemanticSegmentation,
    EdenModel,
)
from eden_hf.training.checkpoints import replace_folder

logger = logging.getLogger(__name__)

#: What is published of each class that a folder may hold: of a pretraining folder the student's trunk.
PUBLISHED: dict[str, type[PreTrainedModel]] = {
    "EdenForPreTraining": EdenModel,
    "EdenModel": EdenModel,
    "EdenForImageClassification": EdenForImageClassification,
    "EdenForSemanticSegmentation": EdenForSemanticSegmentation,
}
#: Evaluations whose figures show the very images that were measured on.
SHOWS_IMAGES = ("correspondence",)


class StagingError(ValueError):
    """A run or model folder from which no repository can be made."""


def stage_model(
    source: str | Path,
    output: str | Path,
    card: str | Path,
    results: Sequence[str | Path] = (),
    pretraining: bool = False,
    images: bool = False,
) -> Path:
    """Make the folder that is published of a model.

    Args:
        source: A run's folder (its `best` model is taken, or `last` where there is none), one of these two itself, or
            any folder of an Eden model.
        output: Folder to make; one that was staged before is replaced.
        card: What the publisher declares (`card.yaml`, see `EdenModelCardData`).
        results: Folders of result files of this model (as `eden evaluate` and `eden finetune` write them).
        pretraining: Whether everything needed to go on pretraining comes along, in `pretraining/`.
        images: Whether figures come along that show images measured on; they are left out, which is logged, unless
            those are phantoms.

    Returns:
        `output`.

    Raises:
        StagingError: there is no Eden model or no result in a folder named, results are of other weights, or `output`
            holds something else.
        CardError: `card` or the repository is not as a card needs it.
        ImportError: the loss figure, or results, need an extra that is not installed.
    """
    EdenModelCardData.load(card)  # before the work, and with the error naming the file that was given
    model_folder, run = _find_model(Path(source))
    output = Path(output)
    if output.exists() and any(output.iterdir()) and not (output / "card.yaml").is_file():
        raise StagingError(f"{output} holds something else than a staged repository: choose another output")
    revision = weights_revision(str(model_folder), None)  # type: ignore[arg-type]  # there are weights: no model is asked
    measured = _measured(results, revision)

    def write(folder: Path) -> None:
        _write_model(model_folder, folder, pretraining)
        if run is not None:
            _write_training(run, folder / "training")
        for name, file in measured.items():
            _copy_result(file, folder / "evaluation" / name, images)
        shutil.copy(card, folder / "card.yaml")
        write_card(folder)

    replace_folder(output, write)
    return output


def _find_model(source: Path) -> tuple[Path, Path | None]:
    """The folder of the model meant by `source`, and of its run if it has one."""
    for folder in (source, source / "best", source / "last"):
        if (folder / "config.json").is_file():
            if not any(folder.glob("*.safetensors")):
                raise StagingError(f"{folder} has no weights as safetensors: save the model with save_pretrained")
            runs = [run for run in (folder, folder.parent) if (run / "metrics.jsonl").is_file()]
            return folder, runs[0] if runs else None
    raise StagingError(f"{source} is neither a model folder (no config.json) nor a run with a best or last model")


def _write_model(source: Path, output: Path, pretraining: bool) -> None:
    """The model as it is published: weights, configuration and processor with their code."""
    architecture = (json.loads((source / "config.json").read_text()).get("architectures") or [None])[0]
    if architecture not in PUBLISHED:
        raise StagingError(f"{source / 'config.json'} is of {architecture}; published are {', '.join(PUBLISHED)}")
    if pretraining and architecture != "EdenForPreTraining":
        raise StagingError(f"{source} holds no teacher and no memory bank: stage it without `pretraining`")
    config = EdenConfig.from_pretrained(source)
    kinds = {output: PUBLISHED[architecture]} | ({output / "pretraining": EdenForPreTraining} if pretraining else {})
    for folder, kind in kinds.items():
        kind.from_pretrained(source, config=config).save_pretrained(folder)
        EdenImageProcessor.from_pretrained(source).save_pretrained(folder)


def _write_training(run: Path, output: Path) -> None:
    """What the run recorded: recipe, environment, metrics as JSON and as a figure, and what the images were."""
    output.mkdir()
    for name in ("config.yaml", "environment.json"):
        shutil.copy(run / name, output)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (output / "metrics.json").write_text(json.dumps(rows, indent=1) + "\n")
    _draw_losses(rows, output / "loss.png")
    recipe = yaml.safe_load((run / "config.yaml").read_text())
    environment = json.loads((run / "environment.json").read_text())
    (output / "data.json").write_text(json.dumps(_data(recipe, environment), indent=2) + "\n")


def _data(recipe: dict[str, Any], environment: dict[str, Any]) -> dict[str, Any]:
    """What tells the training images: source without the machine's folders, how many, and the hash of their list."""
    if "task" in recipe:
        source, split = recipe["task"]["name"] or recipe["task"]["source"], None
    else:
        source, split = recipe["data"]["source"], recipe["data"]["split"]
    known = {"source": data_name(source), "split": split, "list_hash": environment.get("image_list_hash")}
    known |= {name: environment.get(name) for name in ("images", "images_skipped", "labels")}
    return {name: value for name, value in known.items() if value is not None}


def _draw_losses(rows: list[dict[str, Any]], file: Path) -> None:
    """The run's losses: stage by stage of pretraining, training and validation loss of fine-tuning."""
    from eden_hf.evaluation.plots import COLOURS, Figure, plot_history

    if any("stage" in row for row in rows):
        plot_history(rows).savefig(file, dpi=100)
        return
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for name, colour, label in (("loss", COLOURS[0], "training"), ("eval_loss", COLOURS[5], "validation")):
        points = [(row["step"], row[name]) for row in rows if name in row]
        axes.plot([step for step, _ in points], [loss for _, loss in points], color=colour, marker=".", label=label)
    axes.set(xlabel="optimiser step", ylabel="loss")
    axes.legend(frameon=False)
    figure.savefig(file, dpi=100)


def _measured(results: Sequence[str | Path], revision: str | None) -> dict[str, Path]:
    """Result files by the name of the folder that they go to; those of this model's weights must be among them."""
    files: dict[str, Path] = {}
    for given in map(Path, results):
        found = sorted(given.glob("**/results.json"))
        if not found:
            raise StagingError(f"{given} holds no results.json: name folders that eden evaluate or finetune wrote")
        for file in found:
            above = given.parent if len(results) > 1 or file.parent == given else given
            name = "-".join(file.parent.relative_to(above).parts)
            if name in files:
                raise StagingError(f"{files[name]} and {file} would go to one folder, {name}: rename one of theirs")
            files[name] = file
    revisions = {json.loads(file.read_text())["revision"] for file in files.values()}
    if files and revision not in revisions:
        raise StagingError(
            f"the results are of other weights ({', '.join(map(str, revisions))}) than the model's ({revision}): "
            "evaluate the very folder that is published"
        )
    return files


def _copy_result(file: Path, output: Path, images: bool) -> None:
    """A result folder: `results.json`, `results.md`, and its figure if it may be shown."""
    output.mkdir(parents=True)
    about = json.loads(file.read_text())
    for name in ("results.json", "results.md", "figure.png"):
        if not file.with_name(name).is_file():
            continue
        if name == "figure.png" and shows_images(about) and not images:
            logger.warning("%s stays behind: it shows images of %s", file.with_name(name), about["source"])
            continue
        shutil.copy(file.with_name(name), output)


def shows_images(results: dict[str, Any]) -> bool:
    """Whether the figure beside a `results.json` shows images of patients."""
    return results["evaluation"] in SHOWS_IMAGES and not results["source"].startswith("phantoms")
