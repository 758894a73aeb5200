"""The sections of a card: each function puts into Markdown what `Facts` and the declared data hold, and no more."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult

from eden_hf.hub.card_facts import CardError, Facts, Measurement, data_name, model_name
from eden_hf.model_names import FRESH

if TYPE_CHECKING:
    from eden_hf.hub.cards import EdenModelCardData

METHOD_CITATION = """@inproceedings{hosseinzadehtaher2023adam,
  title = {Towards Foundation Models Learned from Anatomy in Medical Imaging via Self-Supervision},
  author = {Hosseinzadeh Taher, Mohammad Reza and Gotway, Michael B. and Liang, Jianming},
  booktitle = {MICCAI Workshop on Domain Adaptation and Representation Transfer},
  year = {2023},
  note = {arXiv:2309.15358}
}"""

SECOND_CITATION = """@inproceedings{hosseinzadehtaher2024representing,
  title = {Representing Part-Whole Hierarchies in Foundation Models by Learning Localizability, Composability, and
           Decomposability from Anatomy via Self-Supervision},
  author = {Hosseinzadeh Taher, Mohammad Reza and Gotway, Michael B. and Liang, Jianming},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year = {2024},
  note = {arXiv:2404.15672}
}"""

_WHAT = {
    "EdenModel": "A {trunk} trunk that turns a medical image into an embedding and a feature map, with no head on it.",
    "EdenForImageClassification": "A {trunk} trunk with a head that labels whole images: {labels}.",
    "EdenForSemanticSegmentation": "A {trunk} trunk with a U-Net decoder that outlines structures: {labels}.",
}

_LOAD = """from PIL import Image
from transformers import AutoImageProcessor, {auto_class}

processor = AutoImageProcessor.from_pretrained("{model_id}", trust_remote_code=True)
model = {auto_class}.from_pretrained("{model_id}", trust_remote_code=True)

image = Image.open("image.png")
"""
_LOAD_WITH_PACKAGE = """from eden_hf import EdenImageProcessor, {eden_class}
from eden_hf.data import read_image

processor = EdenImageProcessor.from_pretrained("{model_id}")
model = {eden_class}.from_pretrained("{model_id}")

image = read_image("image.png")
"""
_RUN = 'outputs = model(**processor(image, return_tensors="pt"))\n'
_EMBED = """outputs.pooler_output  # [1, C], the image's embedding
outputs.last_hidden_state  # [1, C, h, w], its map"""
_EMBED_POINTS = """
outputs.dense_embeddings  # [1, D, H / 4, W / 4], a unit vector for each point"""
_CLASSIFY = {
    problem: f"scores = dict(zip(model.config.id2label.values(), outputs.{scores}.tolist()))"
    for problem, scores in {
        "single_label_classification": "logits.softmax(-1)[0]",
        "multi_label_classification": "logits.sigmoid()[0]",
        "regression": "logits[0]",
    }.items()
}
_OUTLINE = {
    "overlapping": """size = [(image.height, image.width)]
found = processor.post_process_instance_segmentation(outputs, target_sizes=size)[0]
masks = found["segmentation"].masks  # bool [labels, H, W], at the image's own size""",
    "exclusive": """size = [(image.height, image.width)]
labels = processor.post_process_semantic_segmentation(outputs, target_sizes=size)[0]  # [H, W], a label a pixel""",
}

#: What each evaluation asks, in a sentence or two.
_QUESTIONS = {
    "locality": "Are patches of one landmark alike in different patients? Higher is better, but for mirror confusion.",
    "compositionality": "Is a whole near the mean of its parts (own), and nearer than to another patient's (margin)?",
    "relations": "Do sums and differences of embeddings stand for neighbouring, mirrored and scaled anatomy? "
    "A margin is over another patient's; a gain above zero means that the arithmetic helped.",
    "correspondence": "Are landmarks found in other patients from one, five, twenty annotated references? Errors in "
    "millimetres, all pairs; same place is the error of not looking at all, pixels and registration learned nothing.",
    "nuisances": "What moves the embedding besides anatomy? Share of images whose nearest one, of another patient, "
    "has the same border, marker, exposure or source; best is no more than by chance.",
    "correspondence_windows": "Is a landmark of one patient found in the next, by the nearest window? Errors in "
    "millimetres; same place is the error of not looking at all.",
    "disturbances": "How much worse are landmarks found in pictures that are scaled, turned, framed, noisy, inverted? "
    "Errors in millimetres, and over the undisturbed error.",
    "confidence": "Does the confidence of a found point tell how far it is to be trusted, and a missing one?",
    "probe": "How much do frozen embeddings tell about labels, by a linear model and by nearest neighbours?",
    "pruner audit": "Is what the pruner drops the same anatomy?",
}


def sections(declared: "EdenModelCardData", facts: Facts) -> dict[str, Any]:
    """The values of the template's fields.

    Raises:
        CardError: a setting that a card tells is missing from a file.
    """
    try:
        return {
            "declared": declared,
            "what": what(facts),
            "remote_snippet": _LOAD.format(model_id=declared.model_id, **facts.kind._asdict()) + _use(facts),
            "package_snippet": _LOAD_WITH_PACKAGE.format(model_id=declared.model_id, **facts.kind._asdict())
            + _use(facts),
            "input_table": input_table(facts),
            "recorded_data": recorded_data(facts),
            "recipe": recipe(facts),
            "evaluation": evaluation(facts),
            "subgroups": subgroups(facts),
            "compute": compute(facts),
            "without_control": bool(facts.measurements)
            and not any(found.results.encoder.startswith(FRESH) for found in facts.measurements),
            "lineage": lineage(declared, facts),
            "method_citation": method_citation(facts),
        }
    except KeyError as error:
        raise CardError(
            f"{facts.folder}: the setting {error} is missing from its files, and a card tells it"
        ) from error


def what(facts: Facts) -> str:
    """One sentence on the model's class, trunk and labels."""
    backbone = facts.config["backbone_config"]
    layers = backbone.get("depths")
    trunk = backbone["model_type"] + (f" ({'-'.join(map(str, layers))} blocks)" if layers else "")
    labels = ", ".join((facts.config.get("id2label") or {}).values()) or "labels without names"
    return _WHAT[facts.kind.eden_class].format(trunk=trunk, labels=labels)


def _use(facts: Facts) -> str:
    """The lines of a snippet that use what was loaded."""
    if facts.kind.eden_class == "EdenForImageClassification":
        return _RUN + _CLASSIFY[facts.config.get("problem_type") or "single_label_classification"]
    if facts.kind.eden_class == "EdenForSemanticSegmentation":
        return _RUN + _OUTLINE[facts.config["segmentation_type"]]
    return _RUN + _EMBED + (_EMBED_POINTS if facts.config.get("dense_dim") else "")


def method_citation(facts: Facts) -> str:
    """The method's publication, and of a run of its second generation that one's too."""
    second = any(is_second_generation(stage) for stage in facts.recipe.get("stages", []))
    return f"{METHOD_CITATION}\n\n{SECOND_CITATION}" if second else METHOD_CITATION


def input_table(facts: Facts) -> str:
    """Size, channels, range, normalisation and orientation of images."""
    processor = facts.processor
    size = processor["size"]
    fit = "fitted in, proportions kept, on black" if processor["aspect_ratio"] == "pad" else "stretched to that"
    mean, std = (", ".join(f"{value:g}" for value in processor[name]) for name in ("image_mean", "image_std"))
    normalised = f"mean {mean} and standard deviation {std} of the channels, of intensities from 0 to 1"
    if processor["intensity"] == "per_image":
        normalised = "each image by its own mean and standard deviation"
    dense = [is_dense(stage) for stage in facts.recipe.get("stages", [])]
    views = "points" if dense and all(dense) else "views"
    turned = facts.recipe.get(views, facts.recipe.get("augmentation", {})).get("rotation_degrees")
    turns = f"; training turned images by up to {turned:g} degrees and mirrored none" if turned else ""
    rows = {
        "size": f"{size['width']} x {size['height']} pixels; images of another size are {fit}",
        "channels": "3 (RGB); grey images are repeated",
        "range": "8-bit values from 0 (black) to 255 (white); 16-bit values are stretched from the image's own "
        "minimum and maximum; floats lie in [0, 1]",
        "normalisation": normalised,
        "orientation": "upright and not mirrored; in a frontal radiograph the patient's right is on the image's left"
        + turns,
    }
    return _table(["", ""], rows.items())


def recorded_data(facts: Facts) -> str:
    """What the run recorded of its training images."""
    images = facts.data.get("images")
    if images is None:
        return "Which images, and how many, was not recorded."
    counts = ", ".join(f"{n} for {split}" for split, n in images.items()) if isinstance(images, dict) else str(images)
    said = f"Images that the run read: {counts}"
    if "images_skipped" in facts.data:
        said += f" ({facts.data['images_skipped']} unreadable ones skipped)"
    if listed := facts.data.get("list_hash"):
        said += f"; sha256 of their list `{listed}`"
    if held := facts.recipe.get("data", {}).get("holdout_share"):
        said += f"; a share of {held:g} of them was held out for validation"
    return said + "."


def recipe(facts: Facts) -> str:
    """The settings of the run and its loss figure."""
    if not facts.recipe:
        return "Not recorded."
    tables = _pretraining(facts.recipe) if "stages" in facts.recipe else _finetuning(facts.recipe)
    rest = "Everything else is in [training/config.yaml](training/config.yaml)."
    return "\n\n".join([tables, rest, *_figure(facts, "training/loss.png", "Loss of the run")])


def is_dense(stage: dict[str, Any]) -> bool:
    """Whether a stage of a recipe is the dense one; recipes from before there was one do not say."""
    return stage.get("objective", "parts") == "points"


def is_second_generation(stage: dict[str, Any]) -> bool:
    """Whether a stage of a recipe is one of Adam-v2's."""
    return stage.get("objective") in ("localize", "part_whole")


def _setting(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_setting, value))
    return "none" if value is None else value if isinstance(value, str) else f"{value:g}"


def _shown(stage: dict[str, Any]) -> dict[str, Any]:
    """A stage with its objective in the columns that are not its own."""
    if is_dense(stage) or is_second_generation(stage):
        return {**stage, "level": stage["objective"].replace("_", " "), "prune_threshold": None}
    return stage


def _pretraining(recipe: dict[str, Any]) -> str:
    """A row for each stage of the curriculum, and the settings that all of them share."""
    dense = [is_dense(stage) for stage in recipe["stages"]]
    second = is_second_generation(recipe["stages"][0])
    columns = ["level", "epochs", "prune_threshold", "learning_rate", "momentum", "weight_decay"]
    columns += ["partner_weight"] if any(dense) else []
    columns += ["composability_weight", "decomposability_weight"] if second else []
    shown = map(_shown, recipe["stages"])
    stages = [[number, *(_setting(stage.get(name)) for name in columns)] for number, stage in enumerate(shown, 1)]
    training = recipe["training"]
    rows = {
        "optimiser": f"{training['optimizer']}, the learning rate brought down by a cosine over each stage",
        "batch": f"{training['batch_size']} images, {_precision(training)}",
        "teacher": f"momentum {recipe['model']['teacher_momentum']:g}",
        **({} if all(dense) else _of_anchors(recipe) if second else _of_parts(recipe)),
        **(_of_points(recipe) if any(dense) else {}),
        "seed": training["seed"],
    }
    header = ["stage", *(name.replace("prune_threshold", "pruning from").replace("_", " ") for name in columns)]
    return f"{_table(header, stages)}\n\n{_table(['', ''], rows.items())}"


def _of_parts(recipe: dict[str, Any]) -> dict[str, str]:
    """Settings of stages that contrast views of parts."""
    model, views = recipe["model"], recipe["views"]
    low, high = views["crop_scale"]
    return {
        "contrast": f"temperature {model['contrastive_temperature']:g}, memory bank {model['memory_bank_size']}",
        "views of parts": f"{views['size']} pixels, from {low:g} to {high:g} of a part",
    }


def _of_anchors(recipe: dict[str, Any]) -> dict[str, str]:
    """Settings of Adam-v2's stages."""
    model, views, anchors = recipe["model"], recipe["views"], recipe["anchors"]
    return {
        "localizability": f"{model['localizability_outputs']} outputs, temperatures {model['student_temperature']:g} "
        f"(student) and {model['teacher_temperature']:g} (teacher), centre with momentum {model['center_momentum']:g}",
        "views of anchors": f"wholes, parts and global crops of {views['size']} pixels, "
        f"{anchors['local_count']} local crops of {anchors['local_size']}",
    }


def _of_points(recipe: dict[str, Any]) -> dict[str, str]:
    """Settings of the dense stage."""
    model, points = recipe["model"], recipe["points"]
    low, high = points["scale"]
    return {
        "points": f"temperature {model['dense_temperature']:g}, tolerance {model['dense_tolerance']:g} of the side",
        "views of points": f"{points['size']} pixels, showing {low:g} to {high:g} of the image's side, "
        f"{points['count']} points each",
    }


def _finetuning(recipe: dict[str, Any]) -> str:
    model, training = recipe["model"], recipe["training"]
    moved = "the head alone" if model["freeze"] else "trunk and head"
    if model["lora_rank"]:
        moved = f"LoRA adapters of rank {model['lora_rank']}, and the head"
    length = f"{training['steps']} steps" if training["steps"] else f"at most {training['epochs']} epochs"
    rows = {
        "optimiser": f"AdamW, learning rate {training['learning_rate']:g}, weight decay {training['weight_decay']:g}",
        "length": f"{length} of {training['batch_size']} images, {_precision(training)}",
        "trained": moved,
        "seed": training["seed"],
    }
    return _table(["", ""], rows.items())


def _precision(training: dict[str, Any]) -> str:
    return "float32" if training["mixed_precision"] == "no" else training["mixed_precision"]


def evaluation(facts: Facts) -> str:
    """A table and a figure for each evaluation of all patients, controls beside this model."""
    whole = sorted((found for found in facts.measurements if not found.subgroup), key=_same_images)
    said = "Values with bootstrap 95 % intervals over the patients of one test set; they say nothing of other seeds."
    parts = [_evaluation(list(group), facts) for _, group in groupby(whole, key=_same_images)]
    return "\n\n".join([*([said] if parts else []), *parts, *_few_shot(facts)]) or "Not measured."


def _same_images(found: Measurement) -> tuple[str, ...]:
    return found.results.evaluation, found.results.source, found.results.data_hash


def _evaluation(group: Sequence[Measurement], facts: Facts) -> str:
    """One evaluation on one set of images: a column a result file, this model's first."""
    group = sorted(group, key=lambda found: found.results.encoder != facts.own)
    first, columns = group[0], [_column(found, facts) for found in group]
    rows = [
        [_readable(name), *(str(found.results.values.get(name, "-")) for found in group)] for name in first.headline
    ]
    data, split = first.data
    images = max(value.n for value in first.results.values.values()) if first.results.values else 0
    links = ", ".join(f"[{name}]({found.folder}/results.json)" for name, found in zip(columns, group, strict=True))
    parts = [
        f"### {first.title}: {data}" + (f", {split}" if split else ""),
        _QUESTIONS.get(first.results.evaluation, ""),
        _table(["", *columns], rows),
        f"{images} images. Weights {first.results.revision or 'not named'}, images `{first.results.data_hash}`, "
        f"seed {first.results.seed}. All {len(first.results.values)} values: {links}.",
        *_figure(facts, f"{first.folder}/figure.png", first.title),
    ]
    return "\n\n".join(filter(None, parts))


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
        yield f"### {found.title}\n\n{about} [Settings]({found.page}).\n\n{few_shot_table(own)}".rstrip()
        yield from _figure(facts, found.page.removesuffix("md") + "png", found.title)


def _column(found: Measurement, facts: Facts) -> str:
    name = found.results.encoder
    if name == facts.own:
        return "this model"
    return f"random weights ({model_name(name)})" if name.startswith(FRESH) else model_name(name)


def subgroups(facts: Facts) -> str:
    """The headline values of result files that are of some patients only."""
    parts = [found for found in facts.measurements if found.subgroup and found.results.encoder == facts.own]
    if not parts:
        return (
            "Not measured: no result file tells patients apart by sex or age, so whether it is equally good for all "
            "is not known."
        )
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
    """The headline values of this model and all patients for `model-index`, rounded as the card prints them."""
    return [
        EvalResult(
            task_type=_task_type(found, facts),
            dataset_type=found.data[0],
            dataset_name=found.data[0],
            dataset_split=found.data[1],
            dataset_revision=found.results.data_hash,
            metric_type=name.replace(", ", "_").replace(" ", "_"),
            metric_name=f"{found.title}: {_readable(name)}",
            metric_value=float(str(value).split()[0]),
            metric_args={"weights": found.results.revision, "seed": found.results.seed},
        )
        for found in facts.measurements
        if found.results.encoder == facts.own and not found.subgroup
        for name, value in found.headline.items()
    ]


def _task_type(found: Measurement, facts: Facts) -> str:
    """The Hub's name for what was measured."""
    kind = found.results.evaluation.split()[0]
    if kind == "finetuned":
        masks = found.results.settings.get("metric") in ("dice", "iou")
        return "image-segmentation" if masks else "image-classification"
    return "image-classification" if kind == "probe" else facts.kind.pipeline_tag


def compute(facts: Facts) -> str:
    """Device, length and versions of the run."""
    environment = facts.environment
    if not environment:
        return "Not recorded."
    processes = environment.get("processes", 1)
    said = f"{environment.get('device') or 'CPU'}, {processes} process{'es' if processes > 1 else ''}"
    if steps := max((row.get("step", 0) for row in facts.metrics), default=0):
        said += f", {steps} optimiser steps"
    if seconds := _seconds(facts):
        length = f"{seconds / 3600:.1f} hours" if seconds > 5400 else f"{seconds / 60:.1f} minutes"
        said += f", {length} of training by its own log"
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


def lineage(declared: "EdenModelCardData", facts: Facts) -> str:
    """From which checkpoint it grew, stage by stage."""
    steps = list(declared.lineage)
    if declared.base_model:
        steps.insert(0, f"The checkpoint [{declared.base_model}](https://huggingface.co/{declared.base_model}).")
    if "stages" in facts.recipe:
        start = facts.recipe["model"].get("start")
        steps += [f"The model {model_name(start)}."] if start else []
        steps += [] if steps else ["Random weights."]
        steps += [_stage(stage, first=index == 0) for index, stage in enumerate(facts.recipe["stages"])]
    elif "task" in facts.recipe:
        start, task = facts.recipe["model"]["name"], facts.recipe["task"]
        steps.append(f"{'Random weights' if start.startswith(FRESH) else 'The trunk'} of {model_name(start)}.")
        steps.append(f"Fine-tuned on {data_name(task['name'] or task['source'])}.")
    return "\n".join(f"{number}. {step.strip()}" for number, step in enumerate(steps, 1)) or "Not recorded."


def _stage(stage: dict[str, Any], first: bool) -> str:
    total = sum(stage["epochs"]) if isinstance(stage["epochs"], list) else stage["epochs"]
    epochs = f"{total} epoch{'s' if total > 1 else ''}"
    if is_second_generation(stage):
        return f"Pretrained by {_learned(stage)} for {epochs}{'' if first else ', from the last student and teacher'}."
    if is_dense(stage):
        also = " and in other images, where the teacher finds them" if stage["partner_weight"] else ""
        return f"Dense stage for {epochs}: points of one view found in another of the same image{also}."
    gamma = stage["prune_threshold"]
    pruned = "no pruning" if gamma is None else f"negatives pruned from a similarity of {gamma:g}"
    went_on = "" if first else ", from the last student, teacher and memory bank"
    return f"Pretrained at level {stage['level']} for {epochs}, {pruned}{went_on}."


def _learned(stage: dict[str, Any]) -> str:
    """What a stage of Adam-v2 learns, branches of weight 0 left out."""
    branches = ("composability", "decomposability") if stage["objective"] == "part_whole" else ()
    *most, last = ["localizability", *(name for name in branches if stage[f"{name}_weight"])]
    return f"{', '.join(most)} and {last}" if most else last


def _figure(facts: Facts, file: str, title: str) -> list[str]:
    return [f'<img src="{file}" alt="{title}" width="480">'] if (facts.folder / file).is_file() else []


def _readable(name: str) -> str:
    return name.replace("_", " ")


def _table(header: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    """A Markdown table; bars inside cells are escaped."""
    cells = [list(header), ["---"] * len(header), *([str(cell).replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)
