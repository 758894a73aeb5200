"""Model cards: what was declared (`card.yaml`), what was measured (result files), what is fixed (template).

A card's folder is what is published: weights, `config.json`, `preprocessor_config.json`, `card.yaml`, `training/` and
`evaluation/`. `write_card` makes its `README.md` of those files alone, so it can be made again at any time, and a card
is right exactly when it equals what they give (`check_card`).
"""

import difflib
import re
from argparse import ArgumentError
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from eden_hf.data.text_files import parse_yaml
from eden_hf.hub import card_checks, card_sections
from eden_hf.hub.card_checks import LICENSES
from eden_hf.hub.card_facts import CardError, read_facts
from eden_hf.hub.sums import sums_problems, write_sums
from eden_hf.training.settings import ConfigParser, require

TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
TAGS = ("medical-imaging", "radiology", "anatomy", "self-supervised-learning", "eden")


def require_license(license: str, name: str | None, link: str | None) -> None:  # noqa: A002 (the Hub's name)
    """Check a licence by the Hub's list, and that `other` has a name and a link.

    Raises:
        ValueError: it is unknown, or `other` and not named.
    """
    near = difflib.get_close_matches(license.lower(), LICENSES, 1)
    hint = f" (perhaps {near[0]})" if near else ", or `other` with its name and link"
    require(license in LICENSES, "license", license, f"one of the Hub's licences{hint}")
    if license == "other":
        for key, value in {"license_name": name, "license_link": link}.items():
            require(bool(value), key, value, "given, since the license is `other`")


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

    def __post_init__(self) -> None:
        for name in ("name", "description", "license"):
            value = getattr(self, name)
            require(bool(value.strip()), f"training_data.{name}", value, "given")
        is_link = self.url is None or self.url.startswith(("https://", "http://"))
        require(is_link, "training_data.url", self.url, "a link (https://...)")
        _require_hub_id("training_data.hub_id", self.hub_id)


#: Metadata of the Hub that only the publisher can say.
HUB_KEYS = {
    *(f"extra_gated_{name}" for name in ("heading", "description", "prompt", "fields", "button_content")),
    *("new_version", "co2_eq_emissions"),
}


@dataclass
class EdenModelCardData:
    """What only the publisher of a model can say: the keys of `card.yaml`.

    Attributes:
        model_id: Hub id that the model is published under, `user/name`; the loading snippets use it.
        license: Licence of the weights, as the Hub names it (`apache-2.0`, `cc-by-nc-4.0`, `other` ...).
        intended_use: What the model is for.
        training_data: The sets of images that it was trained on, with their licences.
        license_name: Name of the licence, with `other`.
        license_link: Link of the licence, with `other`, or `LICENSE`, a file beside `card.yaml` that goes along.
        summary: A sentence under the title: what it is good for.
        limits: What is known not to work, beside what every card says.
        out_of_scope: Uses to refuse, beside what every card says.
        base_model: Hub id of the checkpoint that it grew from.
        lineage: How it grew from that, or from where the weights were converted, one step an item.
        evaluated_as: Name of the model in its result files, where they are of several.
        notes: Markdown of your own, such as results that no file holds; nothing checks it.
        tags: Tags for the Hub, beside those that every card has.
        citation: BibTeX of the model itself, put above the method's.
        doi: The DOI that the Hub or an archive gave it, such as `10.57967/hf/1234`.
        hub: Metadata by the Hub's own names (`HUB_KEYS`): what people agree to before they may download, the model
            that takes this one's place, and grams of CO2.

    Raises:
        ValueError: a value is empty, unknown or of another form.
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
    lineage: list[str] = field(default_factory=list)
    evaluated_as: str | None = None
    notes: str | None = None
    tags: list[str] = field(default_factory=list)
    citation: str | None = None
    doi: str | None = None
    hub: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require("/" in self.model_id, "model_id", self.model_id, "a Hub id with its owner, user/name")
        _require_hub_id("model_id", self.model_id)
        _require_hub_id("base_model", self.base_model)
        require_license(self.license, self.license_name, self.license_link)
        require(bool(self.intended_use.strip()), "intended_use", self.intended_use, "said")
        require(bool(self.training_data), "training_data", self.training_data, "a list of at least one set of images")
        is_bibtex = self.citation is None or self.citation.lstrip().startswith("@")
        require(is_bibtex, "citation", self.citation, "BibTeX, which starts with @")
        is_doi = self.doi is None or re.fullmatch(r"10\.\d{4,}/\S+", self.doi) is not None
        require(is_doi, "doi", self.doi, "a DOI, 10.NNNN/... without an address before it")
        require(self.hub.keys() <= HUB_KEYS, "hub", sorted(self.hub.keys() - HUB_KEYS), f"of {sorted(HUB_KEYS)}")
        _require_hub_id("hub.new_version", self.hub.get("new_version"))
        emissions = self.hub.get("co2_eq_emissions", {"emissions": 0, "source": "none"})
        is_told = isinstance(emissions, dict) and {"emissions", "source"} <= emissions.keys()
        require(is_told, "hub.co2_eq_emissions", emissions, "a table of `emissions`, in grams, and their `source`")

    @classmethod
    def load(cls, file: str | Path) -> "EdenModelCardData":
        """Read a `card.yaml`.

        Raises:
            CardError: there is no such file, it is no YAML, or a key or value of it is unknown, missing or wrong; the
                message names the file, the value and the mend.
        """
        return read_declared(cls, file)


Declared = TypeVar("Declared")


def read_declared(kind: type[Declared], file: str | Path) -> Declared:
    """The dataclass of declarations that a YAML file holds.

    Raises:
        CardError: there is no such file, it is no YAML, or a key or value of it is unknown, missing or wrong; the
            message names the file, the value and the mend.
    """
    file, known = Path(file), ", ".join(key.name for key in fields(kind))  # type: ignore[arg-type]
    if not file.is_file():
        raise CardError(f"{file} is missing: write one; its keys are {known}")
    try:
        declared = parse_yaml(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CardError(f"{file} cannot be read as YAML: {error}") from error
    if not isinstance(declared, dict):
        raise CardError(f"{file} must be a mapping with the keys {known}, got {declared!r}")
    parser = ConfigParser(exit_on_error=False)
    parser.add_class_arguments(kind, None)
    try:
        return kind(**parser.instantiate(parser.parse_object(declared)))
    except ArgumentError as error:  # a key or a type
        raise CardError(f"{file}: {str(error).strip()}; its keys are {known}") from error
    except ValueError as error:
        raise CardError(f"{file}: {error}") from error


def _require_hub_id(name: str, value: str | None) -> None:
    """Raise a `ValueError` unless `value` is an id on the Hub, or nothing."""
    if value is None:
        return
    try:
        validate_repo_id(value)
    except HFValidationError as error:
        raise ValueError(f"`{name}` must be a Hub id such as user/name, got {value!r}") from error


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
    results = card_sections.eval_results(facts) or None
    metadata = ModelCardData(
        license=declared.license,
        license_name=declared.license_name,
        license_link=declared.license_link,
        library_name="transformers",
        pipeline_tag=facts.kind.pipeline_tag,
        tags=[*TAGS, *(["onnx", "transformers.js"] if card_sections.has_onnx(facts) else []), *declared.tags],
        datasets=[data.hub_id for data in declared.training_data if data.hub_id] or None,
        base_model=declared.base_model,
        model_name=declared.model_id.split("/")[-1] if results else None,
        eval_results=results,
        **declared.hub,
    )
    sections = card_sections.sections(declared, facts)
    card = ModelCard.from_template(metadata, template_path=str(TEMPLATE), **sections)
    return re.sub(r"\n{3,}", "\n\n", str(card)).rstrip() + "\n"


def write_card(folder: str | Path) -> Path:
    """Write `README.md` of a model repository from its other files (see `render_card`), and `SHA256SUMS` of them all.

    Returns:
        The path of the card.
    """
    file = Path(folder) / "README.md"
    file.write_text(render_card(folder), encoding="utf-8")
    write_sums(Path(folder))
    return file


def check_card(folder: str | Path, model_id: str | None = None, online: bool = False) -> list[str]:
    """Check the card of a model repository: that it is what the folder gives, of the folder's very weights.

    Where it is, the files must also be those that `SHA256SUMS` holds the sums of.

    Args:
        folder: Of the repository.
        model_id: Hub id that it is to be published under, if the card must be of that one.
        online: Ask the Hub about the metadata as well, and whether data sets and base model are there.

    Returns:
        The problems; none of a good card.

    Raises:
        ImportError: it has result files and the extra `evaluation` is not installed.
    """
    folder = Path(folder)
    file = folder / "README.md"
    if not file.is_file():
        return [f"{file} is missing: run eden card write {folder}"]
    try:
        declared = EdenModelCardData.load(folder / "card.yaml")
        facts = read_facts(folder, declared.evaluated_as)
        expected = render_card(folder)
    except CardError as error:
        return [str(error)]
    text = file.read_text(encoding="utf-8")
    problems = []
    if model_id not in (None, declared.model_id):
        problems.append(f"card.yaml: `model_id` is {declared.model_id!r}, but it is to be published as {model_id!r}")
    problems += card_checks.text_problems(text, expected)
    problems += card_checks.link_problems(expected, folder)
    problems += card_checks.weights_problems(facts)
    problems += card_checks.license_problems(declared, facts)
    if online:
        problems += card_checks.online_problems(text, declared)
    return problems or list(sums_problems(folder))  # which what mends the others writes again
