"""The folder of a published model: made of a run or a model folder, whole, with its card (`stage_model`).

It holds `model.safetensors`, `config.json` and the code files, `preprocessor_config.json`, `README.md`, `card.yaml`,
`lineage.json` (what it was made of), `SHA256SUMS`; `handler.py` and `requirements.txt`, for Inference Endpoints;
`training/` with the recipe, the metrics, the loss figure, the images' list hash and the environment; `evaluation/`
with the results; and if asked `pretraining/` with student, teacher and the rest, and `onnx/`. No pickle anywhere,
and no folder of the machine that it was made on: of a path the files hold the name alone.
"""

import json
import logging
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from eden_hf.configuration_eden import EdenConfig
from eden_hf.data.text_files import read_record
from eden_hf.hub.card_checks import weights_problems
from eden_hf.hub.card_facts import LOCAL, WEIGHTS, data_name, read_facts
from eden_hf.hub.cards import EdenModelCardData, write_card
from eden_hf.hub.export import export_for_web
from eden_hf.hub.published import PUBLISHED, architecture_of
from eden_hf.hub.sums import SUMS, sums_problems
from eden_hf.image_processing_eden import EdenImageProcessor
from eden_hf.model_names import load_pretrained, weights_revision
from eden_hf.modeling_eden import EdenForPreTraining, EdenV2ForPreTraining
from eden_hf.training.checkpoints import replace_folder
from eden_hf.training.lineage import write_lineage
from eden_hf.training.monitors import read_metrics

logger = logging.getLogger(__name__)

_PRETRAINING = {"EdenForPreTraining": EdenForPreTraining, "EdenV2ForPreTraining": EdenV2ForPreTraining}
LICENSE = "LICENSE"
HANDLER = Path(__file__).with_name("handler.py")
#: Evaluations whose figures show the very images that were measured on.
SHOWS_IMAGES = ("correspondence", "correspondence_windows", "disturbances")


class StagingError(ValueError):
    """A run or model folder from which no repository can be made."""


def stage_model(
    source: str | Path,
    output: str | Path,
    card: str | Path | None = None,
    results: Sequence[str | Path] = (),
    pretraining: bool = False,
    images: bool = False,
    half: bool = False,
    onnx: bool = False,
) -> Path:
    """Make the folder that is published of a model.

    Args:
        source: A run's folder (its `best` model is taken, or `last` where there is none), one of these two itself, or
            any folder of an Eden model. Of one that was staged before, its training's record comes along.
        output: Folder to make; one that was staged before is replaced.
        card: What the publisher declares (`card.yaml`, see `EdenModelCardData`); none means that of a `source` which
            was staged before.
        results: Folders of result files of this model (as `eden evaluate` and `eden finetune` write them); none means
            those of a `source` which was staged before.
        pretraining: Whether everything needed to go on pretraining comes along, in `pretraining/`.
        images: Whether figures come along that show images measured on; they are left out, which is logged, unless
            those are phantoms.
        half: Whether weights are stored as float16, in half the bytes. They still load, and compute, as float32.
        onnx: Whether the model comes along as ONNX, in `onnx/`, for transformers.js (see `export_for_web`).

    Returns:
        `output`.

    Raises:
        StagingError: there is no Eden model or no result in a folder named, results are of other weights, or `output`
            holds something else.
        CardError: `card` or the repository is not as a card needs it.
        ExportError: the model cannot be exported to ONNX.
        ImportError: the loss figure, results, or ONNX need an extra that is not installed.
    """
    model_folder, run = _find_model(Path(source))
    card = _card_file(Path(source), model_folder, card)
    declared = _declared(card)  # before the work, and with the error naming the file that was given
    output = Path(output)
    if output.exists() and any(output.iterdir()) and not (output / "card.yaml").is_file():
        raise StagingError(f"{output} holds something else than a staged repository: choose another output")
    measured = _measured(results)
    _tell_of_changes(model_folder)
    kept = _kept(model_folder, [name for name, told in (("training", run), ("evaluation", measured)) if not told])

    def write(folder: Path) -> None:
        _write_model(model_folder, folder, pretraining, half)
        if onnx:
            export_for_web(model_folder, folder)
        if run is not None:
            _write_training(run, folder / "training")
        for name in kept:
            shutil.copytree(model_folder / name, folder / name)
        for name, file in measured.items():
            _copy_result(file, folder / "evaluation" / name, images)
        if (folder / "evaluation").is_dir():
            _write_revisions(model_folder, folder)
        write_endpoint(folder)
        shutil.copy(card, folder / "card.yaml")
        if declared.license_link == LICENSE:
            shutil.copy(card.with_name(LICENSE), folder / LICENSE)
        write_public_lineage(folder, "stage", model_folder)
        write_card(folder)  # and the sums of all that is there
        if problems := list(weights_problems(read_facts(folder, declared.evaluated_as))):
            raise StagingError(problems[0])

    replace_folder(output, write)
    return output


def write_endpoint(folder: Path) -> None:
    """What Inference Endpoints need to serve a folder: their handler, and the package that it asks for."""
    shutil.copy(HANDLER, folder / HANDLER.name)
    (folder / "requirements.txt").write_text("eden_hf[dicom]\n")


def write_public_lineage(folder: Path, made_by: str, parent: Path) -> None:
    """Record what a model was made of in a folder that may be published: names alone, no place of this machine."""
    file = write_lineage(folder, made_by, [parent])
    file.write_text(json.dumps(_without_folders(read_record(file)), indent=2) + "\n")


def _find_model(source: Path) -> tuple[Path, Path | None]:
    """The folder of the model meant by `source`, and of its run if it has one."""
    for folder in (source, source / "best", source / "last"):
        if (folder / "config.json").is_file():
            if not any(folder.glob("*.safetensors")):
                raise StagingError(f"{folder} has no weights as safetensors: save the model with save_pretrained")
            runs = [run for run in (folder, folder.parent) if (run / "metrics.jsonl").is_file()]
            return folder, runs[0] if runs else None
    raise StagingError(f"{source} is neither a model folder (no config.json) nor a run with a best or last model")


def _write_model(source: Path, output: Path, pretraining: bool, half: bool) -> None:
    """The model as it is published: weights, configuration and processor with their code."""
    architecture = architecture_of(source)
    if architecture not in PUBLISHED:
        raise StagingError(f"{source / 'config.json'} is of {architecture}; published are {', '.join(PUBLISHED)}")
    if pretraining and architecture not in _PRETRAINING:
        raise StagingError(f"{source} holds no teacher beside a student: stage it without `pretraining`")
    config = EdenConfig.from_pretrained(source)
    kinds = {output: PUBLISHED[architecture]} | (
        {output / "pretraining": _PRETRAINING[architecture]} if pretraining else {}
    )
    for folder, kind in kinds.items():
        model = load_pretrained(kind, source, config=config)
        weights = {name: w.half() if half and w.is_floating_point() else w for name, w in model.state_dict().items()}
        model.save_pretrained(folder, state_dict=weights)  # the configuration keeps the dtype to compute in
        EdenImageProcessor.from_pretrained(source).save_pretrained(folder)


def _write_training(run: Path, output: Path) -> None:
    """What the run recorded: recipe, environment, metrics as JSON and as a figure, and what the images were."""
    output.mkdir()
    rows = read_metrics(run / "metrics.jsonl")
    (output / "metrics.json").write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")  # a row a line
    _draw_losses(rows, output / "loss.png")
    _copy_small(output / "loss.png", output / "loss.png")
    recipe = _without_folders(read_record(run / "config.yaml"))
    (output / "config.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    environment = _without_folders(read_record(run / "environment.json"))
    (output / "environment.json").write_text(json.dumps(environment, indent=2) + "\n")
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
    from eden_hf.plots import plot_finetuning, plot_history

    plot = plot_history if any("stage" in row for row in rows) else plot_finetuning
    plot(rows).savefig(file, dpi=100)


def _measured(results: Sequence[str | Path]) -> dict[str, Path]:
    """Result files by the name of the folder that they go to."""
    files: dict[str, Path] = {}
    for given in map(Path, results):
        found = sorted(given.glob("**/results.json"))
        if not found:
            raise StagingError(f"{given} holds no results.json: name folders that eden evaluate or finetune wrote")
        for file in found:
            above = given.parent if len(results) > 1 or file.parent == given else given
            name = re.sub(r"[^\w.-]+", "-", "-".join(file.parent.relative_to(above).parts))  # as links can have it
            if name in files:
                raise StagingError(f"{files[name]} and {file} would go to one folder, {name}: rename one of theirs")
            files[name] = file
    return files


def _card_file(source: Path, model_folder: Path, given: str | Path | None) -> Path:
    """The `card.yaml` that is given, or that of a folder which was staged before."""
    card = Path(given or model_folder / "card.yaml")
    if not given and not card.is_file():
        raise StagingError(f"{source} was not staged before, so that it has no card.yaml: write one, and give --card")
    return card


def _declared(card: Path) -> EdenModelCardData:
    """What a `card.yaml` declares; the licence that it names as a file must be there."""
    declared = EdenModelCardData.load(card)
    if declared.license_link == LICENSE and not card.with_name(LICENSE).is_file():
        raise StagingError(f"{card}: `license_link` is {LICENSE}, but there is no such file beside it: write one")
    return declared


def _tell_of_changes(source: Path) -> None:
    """Say what of a source that was staged before is not as it was: the new one has sums of its own."""
    for problem in sums_problems(source) if (source / SUMS).is_file() else ():
        logger.warning("%s is not as it was staged: %s", source, problem)


def _kept(source: Path, names: Sequence[str]) -> list[str]:
    """The folders of `names` that a source has which was staged before."""
    return [name for name in names if (source / "card.yaml").is_file() and (source / name).is_dir()]


def _write_revisions(source: Path, output: Path) -> None:
    """Say which weights were staged and what they became here, if they changed: results may be of either."""
    before = output / WEIGHTS  # where results come along of a source that was staged before
    staged = read_record(before)["staged"] if before.is_file() else weights_revision(str(source))
    told = {"staged": staged, "published": weights_revision(str(output))}
    if told["staged"] != told["published"]:
        (output / WEIGHTS).write_text(json.dumps(told, indent=2) + "\n")


def _copy_result(file: Path, output: Path, images: bool) -> None:
    """A result folder: `results.json`, `results.md`, and its figure if it may be shown."""
    from eden_hf.evaluation.results import Results

    results = Results.load(file)
    names = {
        name: _without_folders(getattr(results, name)) for name in ("evaluation", "encoder", "source", "settings")
    }
    replace(results, **names, measured={}).save(output)  # what was measured in each patient stays behind
    figure = file.with_name("figure.png")
    if figure.is_file():
        if shows_images(read_record(file)) and not images:
            logger.warning("%s stays behind: it shows images of %s", figure, results.source)
        else:
            _copy_small(figure, output / figure.name)


def _copy_small(figure: Path, output: Path) -> None:
    """A drawing in as many colours as it needs, with its tags: a card's page shows several."""
    with Image.open(figure) as drawn:
        tags = PngInfo()
        for name, text in drawn.info.items():
            if isinstance(text, str):
                tags.add_text(str(name), text)
        drawn.convert("RGB").quantize(64).save(output, optimize=True, pnginfo=tags)


#: The first folder of a path: without blanks, or with them where a value begins.
_FIRST = (
    r"(?:[\w.~-]+|(?:^(?!random:|finetuned )|(?<=^random:)|(?<=^finetuned )|(?<=[=\"]))"
    r"[^\s/\\:=\"][^/\\:=\"\n]*)"
)
#: A path that one machine alone can read, to its last slash whatever is before that, and its name, up to quotes,
#: brackets or its end; or one of three parts and more, or with backslashes, which is no Hub id, as is none that ends
#: with a slash. No text and no protocol stands before it.
_PATH = re.compile(
    rf"(?<![\w/\\.~-])(?:(?:{LOCAL}(?=[^\s/])(?:[^\"'\n]*[/\\](?=[^\s/\\]))?"
    rf"|{_FIRST}[/\\]+(?:[\w.~-][^/\\\"'\n]*[/\\]+(?=\S))+|{_FIRST}\\+)"
    rf"(?:[^\s\"',;()\[\]]|\s(?!\())+|{_FIRST}/[^\s/][^/\"\n]*/$)"
)
#: Two parts, which are a Hub id (or words) unless there is such a folder here.
_ID_OR_FOLDER = re.compile(rf"(?<![\w/\\.~-]){_FIRST}/[\w.~-](?:[^/\\\"'\n(]*[^\s/\\\"'\n(])?(?![\w/\\])")


def _without_folders(value: Any) -> Any:
    """`value` with the name alone of every path of the machine; of a run's `last` and `best` the run's as well."""
    if isinstance(value, dict):
        return {_without_folders(key): _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    if not isinstance(value, str):
        return value
    return _ID_OR_FOLDER.sub(lambda id_: _name(id_) if Path(id_[0]).exists() else id_[0], _PATH.sub(_name, value))


def _name(path: re.Match) -> str:
    parts = re.split(r"[/\\]+", path[0].strip("/\\"))
    return "/".join(parts[-2:] if parts[-1] in ("last", "best") else parts[-1:])


def shows_images(results: dict[str, Any]) -> bool:
    """Whether the figure beside a `results.json` shows images of patients."""
    return results["evaluation"] in SHOWS_IMAGES and not results["source"].startswith("phantoms")
