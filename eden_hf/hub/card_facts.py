"""What the files of a model repository tell of a model: read, checked and gathered for its card."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from eden_hf.data.text_files import read_list, read_record
from eden_hf.model_names import CONTROLS, FRESH

if TYPE_CHECKING:  # needs an extra, which a card without results does without
    from eden_hf.evaluation.few_shot import Score
    from eden_hf.evaluation.results import Estimate, Results


class CardError(ValueError):
    """A card cannot be made: a file of its folder is missing or not as it must be."""


class Kind(NamedTuple):
    """A class of models, as a card speaks of it."""

    eden_class: str
    auto_class: str
    pipeline_tag: str
    does: str


KINDS = {
    kind.eden_class: kind
    for kind in (
        Kind(
            "EdenModel", "AutoModel", "image-feature-extraction",
            "that turns a medical image into an embedding and a feature map, with no head on it",
        ),
        Kind(
            "EdenForImageClassification", "AutoModelForImageClassification", "image-classification",
            "with a head that labels whole images: {labels}",
        ),
        Kind(
            "EdenForSemanticSegmentation", "AutoModelForSemanticSegmentation", "image-segmentation",
            "with a U-Net decoder that outlines structures: {labels}",
        ),
    )
}  # fmt: skip

#: The values of an evaluation that a card shows; others are a link away. A choice of names, made before any result.
HEADLINES = {
    "locality": ("retrieval_at_1", "prototype_accuracy", "mirror_confusion"),
    "compositionality": ("margin", "auroc"),
    "relations": ("decomposability margin", "symmetry margin", "scale margin", "decomposability gain"),
    "correspondence": (
        *("mean_radial_error_mm", "20_references_mean_radial_error_mm", "within_10_mm"),
        *("same_place_mm", "pixels_mm", "registration_mm"),
    ),
    "nuisances": (
        *("border", "marker", "exposure", "mark_chance"),
        *("source_neighbours", "source_chance", "parts_across_sources"),
    ),
    "correspondence_windows": ("mean_radial_error_mm", "within_20_mm", "same_place_mm"),
}
#: How a path begins that one machine alone can read: at its root, home, here, above, on a drive or share, as a URL.
LOCAL = r"(?:file:/+|~[\w.-]*[/\\]|\.{0,2}[/\\]|[A-Za-z]:[/\\]|\\\\)"
#: Where a folder says of which weights its own were made.
WEIGHTS = "evaluation/weights.json"
_EXTRA = "pip install 'eden_hf[evaluation]'"
_LONG = 12  # rows from which values of single labels are left to the link


@dataclass(frozen=True)
class Measurement:
    """One result file: `folder` (relative to the repository) and what it holds."""

    folder: str
    results: "Results"

    @property
    def data(self) -> tuple[str, str | None]:
        """Name and split of the test images, without the folders they lay in."""
        source, _, where = self.results.source.partition(" (")
        split = where.partition(",")[0].rstrip(")") or None
        if split is None and self.results.evaluation.split()[0] in ("probe", "finetuned"):
            split = "test"  # what both always score
        return data_name(source), split

    @property
    def title(self) -> str:
        """Name of the evaluation, such as `Fine-tuned on scr`."""
        name, _, task = self.results.evaluation.partition(" ")
        whole = self.results.evaluation.replace("_", " ").capitalize()
        return f"Fine-tuned on {data_name(task)}" if name == "finetuned" else whole

    @property
    def is_audit(self) -> bool:
        """Whether it is of the checkpoints of a run, whose names are steps."""
        return self.results.evaluation == "pruner audit"

    @property
    def weights(self) -> tuple[str | None, ...]:
        """Revisions of the weights that it is of; of an audit those of the run's models."""
        models = self.results.settings.get("models", [None]) if self.is_audit else [self.results.revision]
        return tuple(models)

    @property
    def subgroup(self) -> dict[str, str]:
        """The patients it is of where not of all, such as `{"sex": "female"}`: `subgroup` in its settings."""
        return self.results.settings.get("subgroup") or {}

    @property
    def headline(self) -> "dict[str, Estimate]":
        """The values that a card shows."""
        values = self.results.values
        if chosen := [name for name in HEADLINES.get(self.results.evaluation, ()) if name in values]:
            return {name: values[name] for name in chosen}
        names, metric = list(values), self.results.settings.get("metric")
        if metric in values:
            names = [name for name in names if name == metric or name.startswith(f"{metric}_")]
        if len(names) > _LONG:
            names = [name for name in names if not any(name.startswith(f"{other}_") for other in names)]
        return {name: values[name] for name in names}


@dataclass(frozen=True)
class FewShot:
    """A page of few-shot scores (relative to the repository), its title, and the scores of all its encoders."""

    page: str
    title: str
    scores: "list[Score]"


@dataclass(frozen=True)
class Facts:
    """What the files of a model repository hold; empty where an optional one is absent.

    Attributes:
        folder: The repository.
        kind: Class of the model.
        config, processor: `config.json`, and the image processor's settings.
        recipe, environment, data: `training/config.yaml`, `environment.json` and `data.json`.
        metrics: Rows of `training/metrics.json`.
        measurements: The result files, in the order of their folders.
        few_shot: The pages of few-shot scores.
        staged: Revision of the weights that were staged and measured, and of the same as `published`
            (`evaluation/weights.json`).
        own: The name that result files give to this model; `None` without result files of it.
    """

    folder: Path
    kind: Kind
    config: dict[str, Any]
    processor: dict[str, Any]
    recipe: dict[str, Any]
    environment: dict[str, Any]
    data: dict[str, Any]
    metrics: list[dict[str, Any]]
    measurements: list[Measurement]
    few_shot: list[FewShot]
    staged: dict[str, str]
    own: str | None

    def speaks_of(self, found: Measurement) -> bool:
        """Whether a result is this model's, or its run's, and none of what stands beside it."""
        return found.is_audit or found.results.encoder == self.own


def read_facts(folder: Path, evaluated_as: str | None = None) -> Facts:
    """Read everything in a model repository that a card tells.

    Args:
        folder: The repository.
        evaluated_as: Name of this model in result files, where they are of several.

    Raises:
        CardError: a file is missing or not as it must be.
        ImportError: there are result files, and the extra `evaluation` is not installed.
    """
    config = _read(folder / "config.json", dict)
    architecture = (config.get("architectures") or [None])[0]
    if architecture not in KINDS:
        raise CardError(
            f"{folder / 'config.json'}: `architectures` names {architecture!r}; cards are of {', '.join(KINDS)}"
        )
    training = folder / "training"
    recipe = _read(training / "config.yaml", dict, required=False)
    try:
        measurements = [_measurement(file, folder) for file in sorted(folder.glob("evaluation/**/results.json"))]
        few_shot = [_few_shot(page, folder) for page in sorted(folder.glob("evaluation/**/few_shot-*.md"))]
    except ImportError as error:
        raise ImportError(f"{folder / 'evaluation'} is of evaluations, which need an extra: {_EXTRA}") from error
    names = [m.results.encoder for m in measurements if not m.is_audit]
    names = names or [score.encoder for found in few_shot for score in found.scores]
    return Facts(
        folder=folder,
        kind=KINDS[architecture],
        config=config,
        processor=_processor(folder),
        recipe=recipe,
        environment=_read(training / "environment.json", dict, required=False),
        data=_read(training / "data.json", dict, required=False),
        metrics=_read(training / "metrics.json", list, required=False),
        measurements=measurements,
        few_shot=few_shot,
        staged=_read(folder / WEIGHTS, dict, required=False),
        own=_own_name(list(dict.fromkeys(names)), evaluated_as, recipe),
    )


def _read(file: Path, kind: type, required: bool = True) -> Any:
    """What a JSON or YAML file holds, a mapping or a list; an empty one where an optional file is absent."""
    if not file.is_file():
        if required:
            raise CardError(f"{file} is missing: a card is made of a whole model folder")
        return kind()
    try:
        return read_record(file) if kind is dict else read_list(file)
    except ValueError as error:
        raise CardError(str(error)) from error


def _processor(folder: Path) -> dict[str, Any]:
    """As transformers finds it: where `preprocessor_config.json` is for transformers.js, it is nested in another."""
    both = _read(folder / "processor_config.json", dict, required=False)
    return both.get("image_processor") or _read(folder / "preprocessor_config.json", dict)


def _measurement(file: Path, folder: Path) -> Measurement:
    from eden_hf.evaluation.results import Results

    try:
        results = Results.load(file)
        wrong = [name for name, value in results.values.items() if not all(isinstance(v, int | float) for v in value)]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CardError(f"{file} is no result file of eden_hf.evaluation.results: {error}") from error
    if wrong:
        raise CardError(f"{file} is no result file of eden_hf.evaluation.results: {wrong[0]!r} is no number")
    return Measurement(file.parent.relative_to(folder).as_posix(), results)


def _few_shot(page: Path, folder: Path) -> FewShot:
    from eden_hf.evaluation.few_shot import read_scores

    file = page.with_suffix(".jsonl")
    if not file.exists():
        raise CardError(f"{page} must have its scores beside it, in {file.name}; `eden few-shot` writes it anew")
    try:
        scores = read_scores(file)
    except (ValueError, TypeError) as error:
        raise CardError(f"{file} holds no scores of eden_hf.evaluation.few_shot: {error}") from error
    title, _, source = page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ").rpartition(": ")
    return FewShot(page.relative_to(folder).as_posix(), f"{title}: {data_name(source)}", scores)


def _own_name(names: Sequence[str], declared: str | None, recipe: dict[str, Any]) -> str | None:
    """Which encoder of the result files is this model: fresh weights, pixels and the majority are controls."""
    if not names:
        return None
    if declared is not None:
        if declared not in names:
            raise CardError(f"card.yaml: `evaluated_as` is {declared!r}, but evaluation/ is of {', '.join(names)}")
        return declared
    if "task" in recipe and recipe["model"]["name"] in names:  # a fine-tuned model goes by what it grew from
        return recipe["model"]["name"]
    trained = [name for name in names if not name.startswith(FRESH) and name not in CONTROLS]
    if len(trained) != 1:
        raise CardError(
            f"evaluation/ holds results of {', '.join(names)}: say in card.yaml by `evaluated_as` which is this model"
        )
    return trained[0]


def data_name(source: str) -> str:
    """The name of a source without the folders of the machine that it lay on; Hub ids and links stay as they are."""
    *folders, name = re.split(r"[/\\]", source.rstrip("/\\"))
    is_link = re.match(r"(?!file:)\w+://", source)
    is_path = re.match(LOCAL, source) or len(folders) > 1 or re.search(r"[\s\\]", source)
    return name if is_path and not is_link else source


def model_name(name: str) -> str:
    """The same of a model: the last two parts of a folder, which are the run and its `last` or `best`."""
    return "/".join(name.removeprefix(FRESH).strip("/").split("/")[-2:])
