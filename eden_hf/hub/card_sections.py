"""The sections of a card: each function puts into Markdown what `Facts` and the declared data hold, and no more."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult

from eden_hf.hub.card_facts import Facts, Measurement, data_name, model_name
from eden_hf.model_names import FRESH

if TYPE_CHECKING:
    from eden_hf.evaluation.results import Estimate
    from eden_hf.hub.cards import EdenModelCardData

METHOD_CITATION = """@inproceedings{hosseinzadehtaher2023adam,
  title = {Towards Foundation Models Learned from Anatomy in Medical Imaging via Self-Supervision},
  author = {Hosseinzadeh Taher, Mohammad Reza and Gotway, Michael B. and Liang, Jianming},
  booktitle = {MICCAI Workshop on Domain Adaptation and Representation Transfer},
  year = {2023},
  note = {arXiv:2309.15358}
}"""

_WHAT = {
    "EdenModel": "A {trunk} trunk that turns a medical image into an embedding and a feature map, with no head on it.",
    "EdenForImageClassification": "A {trunk} trunk with a head that tells of a whole image: {labels}.",
    "EdenForSemanticSegmentation": "A {trunk} trunk with a U-Net decoder that outlines structures: {labels}.",
}

_USE = {
    "EdenModel": """outputs = model(**processor(image, return_tensors="pt"))
outputs.pooler_output  # [1, C], the image's embedding
outputs.last_hidden_state  # [1, C, h, w], its map""",
    "EdenForImageClassification": """outputs = model(**processor(image, return_tensors="pt"))
{scores}""",
    "EdenForSemanticSegmentation": """outputs = model(**processor(image, return_tensors="pt"))
size = [(image.height, image.width)]
{masks}""",
}
_SCORES = {
    "single_label_classification": "dict(zip(model.config.id2label.values(), outputs.logits.softmax(-1)[0].tolist()))",
    "multi_label_classification": "dict(zip(model.config.id2label.values(), outputs.logits.sigmoid()[0].tolist()))",
    "regression": "dict(zip(model.config.id2label.values(), outputs.logits[0].tolist()))",
}
_MASKS = {
    "overlapping": """found = processor.post_process_instance_segmentation(outputs, target_sizes=size)[0]
found["segmentation"].masks  # bool [labels, H, W] at the image's own size""",
    "exclusive": """processor.post_process_semantic_segmentation(outputs, target_sizes=size)[0]  # [H, W], a label a pixel""",
}

#: What each evaluation asks, in a sentence.
_QUESTIONS = {
    "locality": "Are patches of one landmark alike in different patients? Higher is better, but for mirror confusion.",
    "compositionality": "Is a whole near the mean of its parts (own), and nearer than to another patient's (margin)?",
    "relations": "Do sums and differences of embeddings stand for neighbouring, mirrored and scaled anatomy? "
    "A margin is over another patient's; a gain above zero means that the arithmetic helped.",
    "correspondence": "Is a landmark of one patient found in the next? Errors in millimetres; same place is the error "
    "of not looking at all.",
    "probe": "How much do frozen embeddings tell about labels, by a linear model and by nearest neighbours?",
    "pruner audit": "Is what the pruner drops the same anatomy?",
}


def sections(declared: "EdenModelCardData", facts: Facts) -> dict[str, str | list[str]]:
    """The values of the template's fields."""
    return {
        "title": declared.model_id.split("/")[-1],
        "summary": (declared.summary or "Anatomy-aware embeddings of medical images.").strip(),
        "what": what(facts),
        "remote_snippet": remote_snippet(declared.model_id, facts),
        "package_snippet": package_snippet(declared.model_id, facts),
        "input_table": input_table(facts),
        "intended_use": declared.intended_use.strip(),
        "training_data": training_data(declared, facts),
        "recipe": recipe(facts),
        "evaluation": evaluation(facts),
        "subgroups": subgroups(facts),
        "compute": compute(facts),
        "limits": limits(declared, facts),
        "out_of_scope": out_of_scope(declared),
        "lineage": lineage(declared, facts),
        "licence": licence(declared),
        "data_licences": [f"{data.name}: {_one_line(data.license)}" for data in declared.training_data],
        "citation": "\n\n".join([*([declared.citation.strip()] if declared.citation else []), METHOD_CITATION]),
    }


def what(facts: Facts) -> str:
    """One sentence on the model's class, trunk and labels."""
    backbone = facts.config["backbone_config"]
    layers = backbone.get("depths")
    trunk = backbone["model_type"] + (f" ({'-'.join(map(str, layers))} blocks)" if layers else "")
    labels = ", ".join((facts.config.get("id2label") or {}).values())
    return _WHAT[facts.kind.eden_class].format(trunk=trunk, labels=labels)


def _use(facts: Facts) -> str:
    scores = _SCORES[facts.config.get("problem_type") or "single_label_classification"]
    masks = _MASKS[facts.config.get("segmentation_type") or "overlapping"]
    return _USE[facts.kind.eden_class].format(scores=scores, masks=masks)


def remote_snippet(model_id: str, facts: Facts) -> str:
    """Loading and using the model with transformers, its code from the repository."""
    auto = facts.kind.auto_class
    return f"""from PIL import Image
from transformers import AutoImageProcessor, {auto}

processor = AutoImageProcessor.from_pretrained("{model_id}", trust_remote_code=True)
model = {auto}.from_pretrained("{model_id}", trust_remote_code=True)

image = Image.open("image.png")
{_use(facts)}"""


def package_snippet(model_id: str, facts: Facts) -> str:
    """The same by the package."""
    eden_class = facts.kind.eden_class
    return f"""from eden_hf import EdenImageProcessor, {eden_class}
from eden_hf.data import read_image

processor = EdenImageProcessor.from_pretrained("{model_id}")
model = {eden_class}.from_pretrained("{model_id}")

image = read_image("image.png")
{_use(facts)}"""


def input_table(facts: Facts) -> str:
    """Size, channels, range, normalisation and orientation of images."""
    processor = facts.processor
    size = processor["size"]
    fit = "fitted in, proportions kept, on black" if processor.get("aspect_ratio") == "pad" else "stretched to that"
    mean, std = (", ".join(f"{value:g}" for value in processor[name]) for name in ("image_mean", "image_std"))
    normalised = f"mean {mean} and standard deviation {std} of the channels"
    if processor.get("intensity") == "per_image":
        normalised = "each image by its own mean and standard deviation"
    turned = facts.recipe.get("views", facts.recipe.get("augmentation", {})).get("rotation_degrees")
    turns = f"; training turned images by up to {turned:g} degrees" if turned else ""
    rows = {
        "size": f"{size['width']} x {size['height']} pixels; images of another size are {fit}",
        "channels": "3; grey images are repeated, RGB stays",
        "range": "8-bit values from 0 to 255; 16-bit ones are stretched from their own minimum to maximum; "
        "floats lie in [0, 1]",
        "normalisation": normalised,
        "orientation": f"upright, not mirrored: the patient's right is on the image's left{turns}",
    }
    return _table(["", ""], rows.items())


def training_data(declared: "EdenModelCardData", facts: Facts) -> str:
    """What was declared of the images, and what the run recorded of them."""
    parts = []
    for data in declared.training_data:
        name = f"[{data.name}]({data.url})" if data.url else data.name
        parts.append(f"**{name}**. {_one_line(data.description)} Licence or terms: {_one_line(data.license)}.")
    return "\n\n".join([*parts, _recorded_data(facts)])


def _recorded_data(facts: Facts) -> str:
    recorded = facts.data | {
        key: facts.environment[key] for key in ("images", "images_skipped") if key in facts.environment
    }
    images = recorded.get("images")
    if images is None:
        return "How many images there were, and which, was not recorded."
    counts = ", ".join(f"{n} for {split}" for split, n in images.items()) if isinstance(images, dict) else str(images)
    said = f"Images that the run read: {counts}"
    if "images_skipped" in recorded:
        said += f" ({recorded['images_skipped']} unreadable ones skipped)"
    if listed := recorded.get("list_hash") or facts.environment.get("image_list_hash"):
        said += f"; sha256 of their list `{listed[:12]}`"
    if held := facts.recipe.get("data", {}).get("holdout_share"):
        said += f"; a share of {held:g} of them was held out for validation"
    return said + "."


def recipe(facts: Facts) -> str:
    """The settings of the run and its loss figure."""
    if not facts.recipe:
        return "Not recorded."
    rows = _pretraining_rows(facts) if "stages" in facts.recipe else _finetuning_rows(facts)
    parts = [_table(["setting", ""], rows.items())]
    if "stages" in facts.recipe:
        parts.insert(0, _stages(facts.recipe["stages"]))
    parts.append("Everything else is in [training/config.yaml](training/config.yaml).")
    return "\n\n".join([*parts, *_figure(facts, "training/loss.png", "Curves of the run")])


def _stages(stages: Sequence[dict[str, Any]]) -> str:
    """A row for each stage of the curriculum."""
    rows = [
        [number, s["level"], s["epochs"], "none" if s["prune_threshold"] is None else f"{s['prune_threshold']:g}",
         f"{s['learning_rate']:g}"]
        for number, s in enumerate(stages, 1)
    ]  # fmt: skip
    return _table(["stage", "level", "epochs", "pruning from", "learning rate"], rows)


def _pretraining_rows(facts: Facts) -> dict[str, str]:
    model, views, training = (facts.recipe[name] for name in ("model", "views", "training"))
    first = facts.recipe["stages"][0]
    return {
        "optimiser": f"{training['optimizer']}, momentum {first['momentum']:g}, weight decay {first['weight_decay']:g}, "
        "cosine over each stage",
        "batch": f"{training['batch_size']} images, {training['mixed_precision'].replace('no', 'float32')}",
        "contrast": f"temperature {model['contrastive_temperature']:g}, memory bank {model['memory_bank_size']}, "
        f"teacher momentum {model['teacher_momentum']:g}",
        "views": f"{views['size']} pixels, crops of {views['crop_scale'][0]:g} to {views['crop_scale'][1]:g} of a part",
        "seed": str(training["seed"]),
    }


def _finetuning_rows(facts: Facts) -> dict[str, str]:
    model, training = (facts.recipe[name] for name in ("model", "training"))
    moved = "the head alone" if model["freeze"] else "trunk and head"
    if model["lora_rank"]:
        moved = f"LoRA adapters of rank {model['lora_rank']}, and the head"
    length = f"{training['steps']} steps" if training["steps"] else f"{training['epochs']} epochs"
    return {
        "optimiser": f"AdamW, learning rate {training['learning_rate']:g}, weight decay {training['weight_decay']:g}",
        "length": f"{length} of {training['batch_size']} images, {training['mixed_precision'].replace('no', 'float32')}",
        "trained": moved,
        "seed": str(training["seed"]),
    }


def evaluation(facts: Facts) -> str:
    """A table and a figure for each evaluation of all patients, controls beside this model."""
    whole = [found for found in facts.measurements if not found.subgroup]
    if not whole:
        return "Not measured."
    said = "Values with bootstrap 95 % intervals over the patients of one test set; they say nothing of other runs or seeds."
    groups = groupby(sorted(whole, key=_same_images), key=_same_images)
    return "\n\n".join([said, *(_evaluation(list(group), facts) for _, group in groups)])


def _same_images(found: Measurement) -> tuple[str, ...]:
    return found.results.evaluation, found.results.source, found.results.data_hash


def _evaluation(group: Sequence[Measurement], facts: Facts) -> str:
    """One evaluation on one set of images: a column an encoder, this model's first."""
    group = sorted(group, key=lambda found: found.results.encoder != facts.own)
    columns = {_column(found, facts): found for found in group}
    first = group[0]
    rows = [
        [_readable(name), *(_cell(found.results.values.get(name)) for found in columns.values())]
        for name in first.headline
    ]
    data, split = first.data
    where = data + (f", {split}" if split else "")
    patients = max((value.n for value in first.results.values.values()), default=0)
    links = ", ".join(f"[{column}]({found.folder}/results.json)" for column, found in columns.items())
    seeds = f"Weights {first.results.revision or 'not named'}, images `{first.results.data_hash}`, seed {first.results.seed}."
    about = f"{patients} patients. {seeds} All {len(first.results.values)} values: {links}."
    question = _QUESTIONS.get(first.results.evaluation)
    parts = [f"### {first.title}: {where}", question, _table(["", *columns], rows), about]
    return "\n\n".join([*filter(None, parts), *_figure(facts, f"{first.folder}/figure.png", first.title)])


def _column(found: Measurement, facts: Facts) -> str:
    name = found.results.encoder
    if name == facts.own:
        return "this model"
    return f"random weights ({model_name(name)})" if name.startswith(FRESH) else model_name(name)


def subgroups(facts: Facts) -> str:
    """The headline values of result files that are of some patients only."""
    parts = [found for found in facts.measurements if found.subgroup and found.results.encoder == facts.own]
    if not parts:
        return "No result file tells women from men or the young from the old: whether it is equally good for all is not known."
    rows = []
    for found in parts:
        who = ", ".join(f"{name}: {value}" for name, value in found.subgroup.items())
        for name, value in found.headline.items():
            rows.append([f"{found.title}, {_readable(name)}", who, str(value), value.n])
    return _table(["", "patients", "value", "n"], rows)


def eval_results(facts: Facts) -> list[EvalResult]:
    """The headline values of this model for `model-index`, rounded as the card prints them."""
    entries = []
    for found in facts.measurements:
        results = found.results
        if results.encoder != facts.own:
            continue
        data, split = found.data
        of = "".join(f", {name} {value}" for name, value in found.subgroup.items())
        for name, value in found.headline.items():
            entries.append(
                EvalResult(
                    task_type=_task_type(found, facts),
                    dataset_type=data,
                    dataset_name=data,
                    dataset_split=split,
                    dataset_revision=results.data_hash,
                    metric_type=name.replace(", ", "_").replace(" ", "_"),
                    metric_name=f"{found.title}: {_readable(name)}{of}",
                    metric_value=float(str(value).split()[0]),
                    metric_args={"weights": results.revision, "seed": results.seed, **found.subgroup},
                )
            )
    return entries


def _task_type(found: Measurement, facts: Facts) -> str:
    """The Hub's name for what was measured."""
    kind = found.results.evaluation.split()[0]
    if kind == "finetuned":
        return (
            "image-segmentation" if found.results.settings.get("metric") in ("dice", "iou") else "image-classification"
        )
    return "image-classification" if kind == "probe" else facts.kind.pipeline_tag


def compute(facts: Facts) -> str:
    """Device, length and versions of the run."""
    if not facts.environment:
        return "Not recorded."
    environment = facts.environment
    processes = environment.get("processes", 1)
    said = f"{environment.get('device') or 'CPU'}, {processes} process{'es' if processes > 1 else ''}"
    if steps := max((row.get("step", 0) for row in facts.metrics), default=0):
        said += f", {steps} optimiser steps"
    if seconds := _seconds(facts):
        said += f", {seconds / 3600:.1f} hours" if seconds > 5400 else f", {seconds / 60:.0f} minutes"
        said += " of training by its own log"
    versions = environment.get("packages", {})
    named = ", ".join(f"{name} {versions[name]}" for name in ("eden_hf", "torch", "transformers") if name in versions)
    return f"{said}. {named}." if named else f"{said}."


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


def limits(declared: "EdenModelCardData", facts: Facts) -> str:
    """What is known not to work, or not known to work."""
    points = [
        "It has learned from the images named above and no others: other scanners, projections, ages and body parts are untested.",
        "Its embeddings may tell what they should not, such as the hospital or the sex: nobody has looked.",
    ]
    fresh = any(found.results.encoder.startswith(FRESH) for found in facts.measurements)
    if facts.measurements and not fresh:
        points.append("No trunk of random weights was measured beside it, and those score high in some evaluations.")
    return _bullets([*points, *declared.limits])


def out_of_scope(declared: "EdenModelCardData") -> str:
    """What it must not be used for."""
    points = [
        "Diagnosis, treatment, triage or any other decision about a patient: this is not a medical device.",
        "Telling who a patient is.",
    ]
    return _bullets([*points, *declared.out_of_scope])


def lineage(declared: "EdenModelCardData", facts: Facts) -> str:
    """From which checkpoint it grew, stage by stage."""
    steps = []
    if declared.base_model:
        steps.append(f"The checkpoint [{declared.base_model}](https://huggingface.co/{declared.base_model}).")
    if declared.lineage:
        steps.append(_one_line(declared.lineage))
    if "stages" in facts.recipe:
        steps += [] if steps else ["Random weights."]
        steps += [_stage(number, stage) for number, stage in enumerate(facts.recipe["stages"], 1)]
    elif "task" in facts.recipe:
        start, task = facts.recipe["model"]["name"], facts.recipe["task"]
        grew = (
            f"Random weights of {model_name(start)}."
            if start.startswith(FRESH)
            else f"The trunk of {model_name(start)}."
        )
        steps += [grew, f"Fine-tuned on {data_name(task['name'] or task['source'])}."]
    return "\n".join(f"{number}. {step}" for number, step in enumerate(steps, 1)) or "Not recorded."


def _stage(number: int, stage: dict[str, Any]) -> str:
    went_on = "" if number == 1 else ", from the last state (student, teacher and memory bank) of the stage before"
    gamma = stage["prune_threshold"]
    pruned = "no pruning" if gamma is None else f"negatives pruned from a similarity of {gamma:g}"
    return f"Stage {number}: level {stage['level']}, {stage['epochs']} epochs, {pruned}{went_on}."


def licence(declared: "EdenModelCardData") -> str:
    """The licence of the weights."""
    if declared.license != "other":
        return declared.license
    return f"[{declared.license_name}]({declared.license_link})"


def _figure(facts: Facts, file: str, title: str) -> list[str]:
    return [f'<img src="{file}" alt="{title}" width="480">'] if (facts.folder / file).is_file() else []


def _cell(value: "Estimate | None") -> str:
    return "-" if value is None else str(value)


def _readable(name: str) -> str:
    return name.replace("_", " ")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _bullets(points: Iterable[str]) -> str:
    return "\n".join(f"- {_one_line(point)}" for point in points)


def _table(header: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    """A Markdown table; bars inside cells are escaped."""
    cells = [list(header), ["---"] * len(header), *([str(cell).replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)
