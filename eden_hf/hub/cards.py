"""Model cards: what was declared (`card.yaml`), what was measured (result files), what is fixed (template).

A card's folder is what is published: weights, `config.json`, `preprocessor_config.json`, `card.yaml`, `training/` and
`evaluation/`. `write_card` makes its `README.md` of those files alone, so it can be made again at any time, and
`check_card` finds whatever in a card they do not hold.
"""

import difflib
import re
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import (
    HFValidationError,
    StrictDataclassClassValidationError,
    StrictDataclassFieldValidationError,
)
from huggingface_hub.utils import validate_repo_id

from eden_hf.hub import card_checks, card_sections
from eden_hf.hub.card_checks import LICENSES
from eden_hf.hub.card_facts import CardError, read_facts
from eden_hf.hub.card_numbers import Evidence, looks_like_a_result, standalone_numbers

TEMPLATE = Path(__file__).with_name("model_card.md.jinja")


def _require(condition: Any, name: str, value: Any, mend: str) -> None:
    if not condition:
        raise ValueError(f"`{name}` must be {mend}, got {value!r}")


def _require_hub_id(name: str, value: str | None) -> None:
    """A Hub id with its owner, `user/name`, or nothing."""
    if value is None:
        return
    try:
        validate_repo_id(value)
    except HFValidationError as error:
        raise ValueError(f"`{name}` must be a Hub id such as user/name, got {value!r}") from error


def _require_prose(name: str, value: str) -> None:
    """Free text may hold no number: numbers of a card come from files, or from the fields that are for them."""
    if found := standalone_numbers(value):
        raise ValueError(
            f"`{name}` holds the number {found[0]}: results come from result files; write other numbers in words, or "
            "say them in `training_data`"
        )


def _require_no_result(name: str, value: str) -> None:
    """Text that may hold numbers holds none that is said of a metric."""
    if found := looks_like_a_result(value):
        raise ValueError(f"`{name}` holds what looks like a result, {found!r}: results come from result files alone")


@strict
@dataclass
class TrainingData:
    """One set of training images, as its publisher describes it; its numbers are not checked against files.

    Attributes:
        name: Such as `ChestX-ray14`.
        description: What images, of whom, from where.
        license: Licence or terms of use, in words or as an identifier.
        url: Where it is published.
        hub_id: Its id on the Hub.
    """

    name: str
    description: str
    license: str
    url: str | None = None
    hub_id: str | None = None

    def validate_texts(self) -> None:
        """Check that nothing is empty, and that no text holds what looks like a result."""
        for name in ("name", "description", "license"):
            value = getattr(self, name)
            _require(value.strip(), f"training_data.{name}", value, "given")
            _require_no_result(f"training_data.{name}", value)
        _require_hub_id("training_data.hub_id", self.hub_id)
        starts = (self.url or "https://").startswith(("https://", "http://"))
        _require(starts, "training_data.url", self.url, "a link (https://...)")


@strict
@dataclass
class EdenModelCardData:
    """What only the publisher of a model can say: the keys of `card.yaml`.

    Texts hold no numbers, but for those of `training_data` and the citation: results come from result files.

    Attributes:
        model_id: Hub id that the model is published under, `user/name`; the loading snippets use it.
        license: Licence of the weights, as the Hub names it (`apache-2.0`, `cc-by-nc-4.0`, `other` ...).
        intended_use: What the model is for.
        training_data: The sets of images that it was trained on, with their licences.
        license_name: Name of the licence, with `other`.
        license_link: Link or file of the licence, with `other`.
        summary: One or two sentences under the title.
        limits: What is known not to work, beside what every card says.
        out_of_scope: Uses to refuse, beside what every card says.
        base_model: Hub id of the checkpoint that it grew from.
        lineage: How it grew from that, or from where the weights were converted.
        evaluated_as: Name of the model in its result files, where they are of several.
        tags: Tags for the Hub, beside those that every card has.
        citation: BibTeX of the model itself, put above the method's.

    Raises:
        ValueError: a value is empty, unknown or of another form (`StrictDataclass...Error` of
            huggingface_hub wrap it).
    """

    model_id: str
    license: str
    intended_use: str
    training_data: list[TrainingData]
    license_name: str | None = None
    license_link: str | None = None
    summary: str | None = None
    limits: list[str] = field(default_factory=list)
    out_of_scope: list[str] = field(default_factory=list)
    base_model: str | None = None
    lineage: str | None = None
    evaluated_as: str | None = None
    tags: list[str] = field(default_factory=list)
    citation: str | None = None

    def validate_ids(self) -> None:
        """Check `model_id` and `base_model`."""
        _require("/" in self.model_id, "model_id", self.model_id, "a Hub id with its owner, user/name")
        _require_hub_id("model_id", self.model_id)
        _require_hub_id("base_model", self.base_model)

    def validate_license(self) -> None:
        """Check `license` by the Hub's list, and that `other` is named."""
        near = difflib.get_close_matches(self.license.lower(), LICENSES, 1)
        hint = f" (perhaps {near[0]})" if near else ", or `other` with its name and link"
        _require(self.license in LICENSES, "license", self.license, f"one of the Hub's licences{hint}")
        if self.license == "other":
            for name in ("license_name", "license_link"):
                _require(getattr(self, name), name, getattr(self, name), "given, since the license is `other`")

    def validate_texts(self) -> None:
        """Check that what must be said is said, and that free text holds no numbers."""
        _require(self.intended_use.strip(), "intended_use", self.intended_use, "said")
        _require(self.training_data, "training_data", self.training_data, "a list of at least one set of images")
        texts = {"intended_use": self.intended_use, "summary": self.summary, "lineage": self.lineage}
        for name, text in texts.items():
            _require_prose(name, text or "")
        for name in ("limits", "out_of_scope"):
            for text in getattr(self, name):
                _require_prose(name, text)
        starts = (self.citation or "@").lstrip().startswith("@")
        _require(starts, "citation", self.citation, "BibTeX, which starts with @")

    @classmethod
    def load(cls, file: str | Path) -> "EdenModelCardData":
        """Read a `card.yaml`.

        Raises:
            CardError: there is no such file, it is no YAML, or a key or value of it is unknown, missing or wrong; the
                message names the file, the value and the mend.
        """
        file = Path(file)
        if not file.is_file():
            raise CardError(f"{file} is missing: write one with {', '.join(_required(cls))}")
        try:
            declared = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise CardError(f"{file} cannot be read as YAML: {error}") from error
        declared = _checked_keys(cls, declared, str(file))
        entries = declared["training_data"]
        if not isinstance(entries, list):
            raise CardError(f"{file}: `training_data` must be a list of sets of images, got {entries!r}")
        where = f"{file}: training_data"
        sets = [_made(TrainingData, _checked_keys(TrainingData, entry, where), file) for entry in entries]
        return _made(cls, declared | {"training_data": sets}, file)


def _required(kind: type) -> list[str]:
    return [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]


def _checked_keys(kind: type, declared: Any, where: str) -> dict[str, Any]:
    """`declared`, a mapping with known keys only and all that are required; a key without a value counts as absent."""
    if not isinstance(declared, dict):
        raise CardError(f"{where} must be a mapping with {', '.join(_required(kind))}, got {declared!r}")
    known = [f.name for f in fields(kind)]
    for key in declared:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1, cutoff=0.5)
            mend = f"did you mean `{near[0]}`?" if near else f"known are {', '.join(known)}"
            raise CardError(f"{where}: unknown key {key!r}; {mend}")
    given = {key: value for key, value in declared.items() if value is not None}
    if missing := [name for name in _required(kind) if name not in given]:
        raise CardError(f"{where}: {', '.join(missing)} must be declared")
    return given


def _made(kind: Any, values: dict[str, Any], file: Path) -> Any:
    try:
        return kind(**values)
    except (StrictDataclassFieldValidationError, StrictDataclassClassValidationError) as error:
        raise CardError(f"{file}: {error.__cause__ or error}") from error


def render_card(folder: str | Path) -> str:
    """The card that the files of a model repository give, as text.

    Args:
        folder: With `card.yaml`, `config.json`, `preprocessor_config.json`, and `training/` and `evaluation/` as far
            as there are any.

    Raises:
        CardError: a file is missing or not as it must be.
        ImportError: it has result files and the extra `evaluation` is not installed.
    """
    folder = Path(folder)
    declared = EdenModelCardData.load(folder / "card.yaml")
    facts = read_facts(folder, declared.evaluated_as)
    metadata = ModelCardData(
        license=declared.license,
        license_name=declared.license_name,
        license_link=declared.license_link,
        library_name="transformers",
        pipeline_tag=facts.kind.pipeline_tag,
        tags=["eden", "medical-imaging", "anatomy", "self-supervised-learning", *declared.tags],
        datasets=[data.hub_id for data in declared.training_data if data.hub_id] or None,
        base_model=declared.base_model,
        model_name=declared.model_id.split("/")[-1],
        eval_results=card_sections.eval_results(facts) or None,
    )
    card = ModelCard.from_template(metadata, template_path=str(TEMPLATE), **card_sections.sections(declared, facts))
    return re.sub(r"\n{3,}", "\n\n", str(card)).rstrip() + "\n"


def write_card(folder: str | Path) -> Path:
    """Write `README.md` of a model repository from its other files (see `render_card`); returns its path."""
    text = render_card(folder)
    file = Path(folder) / "README.md"
    file.write_text(text, encoding="utf-8")
    return file


def check_card(folder: str | Path, model_id: str | None = None, online: bool = False) -> list[str]:
    """Check the card of a model repository against its other files.

    Checked are `card.yaml`, the metadata by the Hub's rules, the sections, that snippets load this model, that figures
    are there, and every number: it must be what the files give in its place, or be held by one of them.

    Args:
        folder: Of the repository.
        model_id: Hub id that it is to be published under, if the card must be of that one.
        online: Ask the Hub's API about the metadata as well.

    Returns:
        The problems, with file and line; none of a good card.

    Raises:
        ImportError: it has result files and the extra `evaluation` is not installed.
    """
    folder = Path(folder)
    file = folder / "README.md"
    if not file.is_file():
        return [f"{file} is missing: run eden card write {folder}"]
    text = file.read_text(encoding="utf-8")
    metadata, body, before = card_checks.split_card(text)
    problems = [metadata] if isinstance(metadata, str) else list(card_checks.metadata_problems(metadata))
    problems += card_checks.section_problems(body, _required_sections())
    problems += card_checks.link_problems(body, before, folder)
    try:
        declared = EdenModelCardData.load(folder / "card.yaml")
        expected, expected_body, _ = card_checks.split_card(render_card(folder))
        evidence = Evidence.of(read_facts(folder, declared.evaluated_as))
    except CardError as error:
        return [*problems, str(error)]
    if model_id not in (None, declared.model_id):
        problems.append(f"card.yaml: `model_id` is {declared.model_id!r}, but it is to be published as {model_id!r}")
    problems += card_checks.snippet_problems(body, before, declared.model_id)
    problems += card_checks.number_problems(body, before, expected_body, evidence)
    if isinstance(metadata, dict) and isinstance(expected, dict):
        problems += card_checks.index_problems(text, metadata, expected, evidence)
    if online:
        problems += card_checks.online_problems(file)
    return problems


def _required_sections() -> list[str]:
    """The headings of the template."""
    return re.findall(r"^## (.+)$", TEMPLATE.read_text(encoding="utf-8"), re.MULTILINE)
