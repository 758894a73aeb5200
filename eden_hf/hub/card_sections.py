"""The sections of a card: each function puts into Markdown what `Facts` and the declared data hold, and no more."""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import EvalResult

from eden_hf.configuration_eden import EdenConfig
from eden_hf.hub.card_facts import HEADLINES, CardError, Facts, Measurement, data_name, model_name
from eden_hf.model_names import FRESH
from eden_hf.modeling_eden import EdenModel

if TYPE_CHECKING:
    from eden_hf.evaluation.results import Estimate
    from eden_hf.hub.cards import EdenModelCardData

#: What a model gives of an image.
_EMBEDDINGS = {
    "pooler_output": "the embedding of the image",
    "last_hidden_state": "its map",
    "dense_embeddings": "a unit vector for each point",
}
#: Rows that are no results of the model, but of what learned nothing.
BASELINES = {
    "same_place_mm": "copying the example's coordinates",
    "pixels_mm": "matching pixels",
    "registration_mm": "registering the images",
    "mark_chance": "border, marker, exposure by chance",
    "source_chance": "source by chance",
}
_LOWER = ("mirror_confusion", "border", "marker", "exposure", "source_neighbours")  # and errors in millimetres
#: The Hub's ids of metrics (https://huggingface.co/metrics) that fine-tuned models are measured by.
_HUB_METRICS = {"accuracy": "accuracy", "auc": "roc_auc", "iou": "mean_iou"}


def sections(declared: "EdenModelCardData", facts: Facts) -> dict[str, Any]:
    """The values of the template's fields.

    Raises:
        CardError: a setting that a card tells is missing from a file.
    """
    try:
        return {
            "declared": declared,
            "beside_untrained": beside_untrained(facts),
            "beside_copying": beside_copying(facts),
            "facts": _table(["", ""], fact_rows(declared, facts).items()),
            "kind": facts.kind,
            "onnx": has_onnx(facts),
            "config": facts.config,
            "shapes": shapes(facts) if facts.kind.eden_class == "EdenModel" else {},
            "evaluation": evaluation(facts),
            "subgroups": subgroups(facts),
            "objectives": {objective(stage) for stage in facts.recipe.get("stages", [])},
        }
    except KeyError as error:
        raise CardError(
            f"{facts.folder}: the setting {error} is missing from its files, and a card tells it"
        ) from error


def _arrow(found: Measurement, name: str) -> str:
    """Whether more of a value is better or less; nothing for baselines, and where it depends on the value."""
    evaluation = found.results.evaluation.split()[0]
    if name in BASELINES or evaluation not in (*HEADLINES, "probe", "finetuned"):
        return ""
    lower = name in _LOWER or name.startswith("mae") or (name.endswith("_mm") and "within" not in name)
    return "↓" if lower else "↑"


def _is_better(arrow: str, value: "Estimate", other: "Estimate") -> bool:
    """Whether the interval of a value lies on the better side of the other's."""
    return value.high < other.low if arrow == "↓" else value.low > other.high


def beside_untrained(facts: Facts) -> str:
    """A sentence: in which measures this model is not better than a trunk of random weights."""
    compared: list[str] = []
    failed: list[str] = []
    for group in _groups(facts):
        control = next((found for found in group if found.results.encoder.startswith(FRESH)), None)
        own = next((found for found in group if found.results.encoder == facts.own), None)
        for name, value in own.headline.items() if own and control else ():
            arrow, other = _arrow(group[0], name), control.results.values.get(name)  # type: ignore[union-attr]
            if not arrow or other is None:
                continue
            told = f"{_readable(name)} ({group[0].title.lower()})"
            compared.append(told)
            if not _is_better(arrow, value, other):
                failed.append(told)
    if not compared:
        return "No untrained trunk was measured beside it."
    if not failed:
        return f"It is better than an untrained trunk in all of the {len(compared)} measures below."
    return (
        f"It is not better than an untrained trunk in {len(failed)} of the {len(compared)} measures below: "
        f"{', '.join(failed)}."
    )


def beside_copying(facts: Facts) -> str:
    """A sentence: what copying the coordinates of an example scores, or the mean mask of the training images."""
    for found in facts.measurements:
        values = found.results.values
        if found.results.encoder == facts.own and {"mean_radial_error_mm", "same_place_mm"} <= values.keys():
            error, copied = values["mean_radial_error_mm"], values["same_place_mm"]
            verdict = ", which is better" if copied.high < error.low else ", which is not worse"
            verdict = "" if error.high < copied.low else verdict
            return (
                f"Landmarks of one example are found in others {_mean(error)} mm off on the mean; copying its "
                f"coordinates gives {_mean(copied)} mm{verdict}."
            )
    for group in _groups(facts):
        own = next((found for found in group if found.results.encoder == facts.own), None)
        mean = next((found for found in group if found.results.encoder.startswith("mean mask")), None)
        if own and mean:
            name, value = next(iter(own.headline.items()))
            return (
                f"On {own.data[0]} its {_readable(name)} is {_mean(value)}; the mean mask of the training images has "
                f"{_mean(mean.results.values[name])}."
            )
    return "It was not measured beside copying coordinates."


def _mean(value: "Estimate") -> str:
    return str(value).split()[0]


def fact_rows(declared: "EdenModelCardData", facts: Facts) -> dict[str, str]:
    """What it is, takes and was made by."""
    rows = {"model": what(facts), **input_rows(facts), "training images": recorded_data(facts)}
    if steps := lineage(declared, facts):
        rows["made"] = " ".join(steps)
    if facts.recipe:
        told = {"settings": "training/config.yaml", "losses": "training/loss.png"}
        links = [f"[{name}]({file})" for name, file in told.items() if (facts.folder / file).is_file()]
        rows["recipe"] = ", ".join(links)
    if facts.environment:
        rows["compute"] = compute(facts)
    return rows


def what(facts: Facts) -> str:
    """One sentence on the model's class, trunk and labels."""
    backbone = facts.config["backbone_config"]
    layers = backbone.get("depths")
    trunk = backbone["model_type"] + (f" ({'-'.join(map(str, layers))} blocks)" if layers else "")
    labels = ", ".join((facts.config.get("id2label") or {}).values()) or "labels without names"
    return f"A {trunk} trunk {facts.kind.does.format(labels=labels)}."


def has_onnx(facts: Facts) -> bool:
    """Whether the folder holds the model for transformers.js."""
    return (facts.folder / "onnx" / "model.onnx").is_file()


def shapes(facts: Facts) -> dict[str, tuple[list[int], str]]:
    """Shapes of a trunk's outputs for one image of the processor's size, and what they are."""
    config, size = EdenConfig.from_pretrained(facts.folder), facts.processor["size"]
    with torch.device("meta"):
        pixels = torch.empty(1, config.backbone_config.num_channels, size["height"], size["width"])
        outputs = EdenModel(config).eval()(pixels)
    return {
        name: (list(outputs[name].shape), said) for name, said in _EMBEDDINGS.items() if outputs.get(name) is not None
    }


def input_rows(facts: Facts) -> dict[str, str]:
    """Size, range, normalisation and orientation of images; the processor does it all."""
    processor = facts.processor
    size = processor["size"]
    fit = "fitted in, proportions kept, on black" if processor["aspect_ratio"] == "pad" else "stretched to that"
    mean, std = (", ".join(f"{value:g}" for value in processor[name]) for name in ("image_mean", "image_std"))
    normalised = f"by mean {mean} and standard deviation {std} of the channels"
    if processor["intensity"] == "per_image":
        normalised = "each by its own mean and standard deviation"
    views = "points" if {objective(stage) for stage in facts.recipe.get("stages", [])} == {"points"} else "views"
    turned = facts.recipe.get(views, facts.recipe.get("augmentation", {})).get("rotation_degrees")
    turns = f"; training turned them by up to {turned:g} degrees and mirrored none" if turned else ""
    return {
        "images": f"{size['width']} x {size['height']} pixels (others are {fit}), grey or RGB, 8 or 16 bits, black is "
        f"0; normalised {normalised}",
        "orientation": f"upright, not mirrored, the patient's right on the image's left{turns}",
    }


def recorded_data(facts: Facts) -> str:
    """What the run recorded of its training images."""
    images = facts.data.get("images")
    if images is None:
        return "not recorded"
    said = ", ".join(f"{n} for {split}" for split, n in images.items()) if isinstance(images, dict) else str(images)
    if skipped := facts.data.get("images_skipped"):
        said += f" ({skipped} unreadable ones skipped)"
    if held := facts.recipe.get("data", {}).get("holdout_share"):
        said += f", a share of {held:g} held out"
    return f"{said} ([training/data.json](training/data.json))"


def objective(stage: dict[str, Any]) -> str:
    """The objective of a stage of a recipe; recipes from before there was a choice do not say."""
    return stage.get("objective", "parts")


def _groups(facts: Facts) -> Iterator[list[Measurement]]:
    """Results of all patients by evaluation and set of images, this model's first, with what may stand beside it."""

    def same(found: Measurement) -> tuple[str, ...]:
        return found.results.evaluation, found.results.source, found.results.data_hash

    whole = sorted((found for found in facts.measurements if not found.subgroup), key=same)
    for _, group in groupby(whole, key=same):
        from eden_hf.evaluation.results import may_stand_beside

        first, *others = sorted(group, key=lambda found: found.results.encoder != facts.own)
        yield [first, *(found for found in others if may_stand_beside(found.results, first.results))]


def evaluation(facts: Facts) -> str:
    """One table of the chosen values, controls beside this model; all others are a link away."""
    groups = list(_groups(facts))
    columns = list(dict.fromkeys(_column(found, facts) for group in groups for found in group))
    columns.sort(key=lambda name: (name != "this model", not name.startswith("random")))
    rows: list[list[str]] = []
    for group in groups:
        first, (data, split) = group[0], group[0].data
        n = max((value.n for value in first.results.values.values()), default=0)
        where = f"{data}, {split}" if split else data
        rows.append([f"**[{first.title}]({first.folder}/results.md)**: {where}, n = {n}", *("" for _ in columns)])
        by_column = {_column(found, facts): found.results.values for found in group}
        for name in first.headline:
            told = f"{BASELINES.get(name, _readable(name))} {_arrow(first, name)}".rstrip()
            rows.append([told, *(str(by_column.get(column, {}).get(name, "-")) for column in columns)])
    said = "Means with 95 % bootstrap intervals over patients of one test set; they say nothing of other seeds."
    parts = [said, _table(["", *columns], rows)] if rows else []
    return "\n\n".join([*parts, *_few_shot(facts)]) or "Not measured."


def _few_shot(facts: Facts) -> Iterator[str]:
    """Dice on few labelled images: this model's row of each page."""
    for found in facts.few_shot:
        from eden_hf.evaluation.few_shot import few_shot_table, labelled_images

        own = [score._replace(encoder="this model") for score in found.scores if score.encoder == facts.own]
        if not own:
            encoders = ", ".join(dict.fromkeys(score.encoder for score in found.scores))
            raise CardError(f"{found.page} has no scores of {facts.own}, only of {encoders}")
        draws = len({score.draw for score in own})
        about = f"Dice in percent with k labelled images, mean ± standard deviation over {draws} draws of them. "
        about += labelled_images(own[0].validation)
        yield f"**[{found.title}]({found.page})**. {about}\n\n{few_shot_table(own)}".rstrip()


def _column(found: Measurement, facts: Facts) -> str:
    name = found.results.encoder
    if name == facts.own:
        return "this model"
    return f"random weights ({model_name(name)})" if name.startswith(FRESH) else model_name(name)


def subgroups(facts: Facts) -> str:
    """The headline values of result files that are of some patients only."""
    parts = [found for found in facts.measurements if found.subgroup and found.results.encoder == facts.own]
    if not parts:
        return ""
    cells = {
        (f"{found.title}, {_readable(name)}", _patients(found)): value
        for found in parts
        for name, value in found.headline.items()
    }
    rows, columns = (sorted({key[axis] for key in cells}) for axis in (0, 1))
    of = {patients: next(value.n for (_, who), value in cells.items() if who == patients) for patients in columns}
    return _table(
        ["", *(f"{patients} (n = {of[patients]})" for patients in columns)],
        [[row, *(cells.get((row, patients), "") for patients in columns)] for row in rows],
    )


def _patients(found: Measurement) -> str:
    """Of whom a result is, such as `sex female`."""
    return ", ".join(f"{name} {value}" for name, value in found.subgroup.items())


def eval_results(facts: Facts) -> list[EvalResult]:
    """What `model-index` may hold by the Hub's specification: Hub metrics of this model's head on Hub data sets."""
    return [
        EvalResult(
            task_type=facts.kind.pipeline_tag,
            dataset_type=found.data[0],
            dataset_name=found.data[0],
            dataset_split=found.data[1],
            metric_type=_HUB_METRICS[name],
            metric_name=name,
            metric_value=float(_mean(value)),
        )
        for found in facts.measurements
        if found.results.encoder == facts.own and not found.subgroup
        if found.results.evaluation.startswith("finetuned") and re.fullmatch(r"[\w.-]+/[\w.-]+", found.data[0])
        for name, value in found.results.values.items()
        if name in _HUB_METRICS
    ]


def compute(facts: Facts) -> str:
    """Device, length and versions of the run."""
    environment = facts.environment
    processes = environment.get("processes", 1)
    said = f"{environment.get('device') or 'CPU'}, {processes} process{'es' if processes > 1 else ''}"
    if steps := max((row.get("step", 0) for row in facts.metrics), default=0):
        said += f", {steps} optimiser steps"
    if seconds := _seconds(facts):
        length = f"{seconds / 3600:.1f} hours" if seconds > 5400 else f"{seconds / 60:.1f} minutes"
        said += f", {length}"
    versions = environment.get("packages", {})
    named = ", ".join(f"{name} {versions[name]}" for name in ("eden_hf", "torch", "transformers") if name in versions)
    return f"{said}; {named}" if named else said


def _seconds(facts: Facts) -> float:
    """Seconds that a run logged: Trainer's own sum, or images over images a second of each interval."""
    if runtime := next((row["train_runtime"] for row in facts.metrics if "train_runtime" in row), 0):
        return runtime
    batch, seconds, before = facts.recipe.get("training", {}).get("batch_size", 0), 0.0, 0
    for row in facts.metrics:
        if rate := row.get("images_per_second"):
            seconds += (row["step"] - before) * batch / rate
            before = row["step"]
    return seconds


def lineage(declared: "EdenModelCardData", facts: Facts) -> list[str]:
    """From which checkpoint it grew, stage by stage."""
    steps = list(declared.lineage)
    if declared.base_model:
        steps.insert(0, f"The checkpoint [{declared.base_model}](https://huggingface.co/{declared.base_model}).")
    if "stages" in facts.recipe:
        start = facts.recipe["model"].get("start")
        steps += [f"Started from {model_name(start)}{_terms(facts)}."] if start else []
        steps += [] if steps else ["Random weights."]
        steps.append(f"Stages: {'; '.join(map(_stage, facts.recipe['stages']))}.")
    elif "task" in facts.recipe:
        start, task = facts.recipe["model"]["name"], facts.recipe["task"]
        weights = "Random weights" if start.startswith(FRESH) else "The trunk"
        steps.append(f"{weights} of {model_name(start)}{_terms(facts)}.")
        steps.append(f"Fine-tuned on {data_name(task['name'] or task['source'])}.")
    return [step.strip() for step in steps]


def _terms(facts: Facts) -> str:
    """The licence of the model that a run started from, as that model's card declares it."""
    terms = facts.environment.get("start_license")
    return f", which is under the licence {terms}" if terms else ""


def _stage(stage: dict[str, Any]) -> str:
    """Such as `parts at level 2, gamma 0.8, 20 epochs`."""
    told = [objective(stage)]
    if told == ["parts"]:
        gamma = stage["prune_threshold"]
        told = [f"parts at level {stage['level']}", "no pruning" if gamma is None else f"gamma {gamma:g}"]
    epochs = sum(stage["epochs"]) if isinstance(stage["epochs"], list) else stage["epochs"]
    return ", ".join([*told, f"{epochs} epoch{'s' if epochs > 1 else ''}"])


def _readable(name: str) -> str:
    return name.replace("_", " ")


def _table(header: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    """A Markdown table; bars inside cells are escaped."""
    cells = [list(header), ["---"] * len(header), *([str(cell).replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)
