"""What is wrong with a card: its metadata, its sections, its snippets and figures, and numbers that no file holds."""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from huggingface_hub import EvalResult, ModelCard
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.repocard_data import model_index_to_eval_results

from eden_hf.hub.card_numbers import Evidence, numbers

_LICENSES = """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
    afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0
    lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl
    openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
    fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma other
    """
#: What the Hub takes as `license` (https://huggingface.co/docs/hub/repositories-licenses), without `unknown`.
LICENSES = frozenset(_LICENSES.split())
_DIGITS = re.compile(r"\d+(?:[.,]\d+)*")
_LINK = re.compile(r"\]\(([^)\s]+)\)|<img[^>]*\ssrc=[\"']([^\"']+)")
_MODEL_ID = re.compile(r"(?:from_pretrained\(|pipeline\([^)]*?model=)\s*[\"']([^\"']+)[\"']")
#: Metadata that may hold digits and is not about results; `license` is checked by itself.
_NAMES = ("license", "license_name", "license_link", "tags", "datasets", "base_model", "language", "model-index")


def split_card(text: str) -> tuple[dict[str, Any] | str, list[str], int]:
    """Metadata of a card (or what is wrong with it), the lines of its body, and the number of lines before those."""
    match = REGEX_YAML_BLOCK.search(text)
    if not match:
        return "README.md has no metadata between --- lines: run eden card write", text.splitlines(), 0
    body, before = text[match.end() :].splitlines(), text[: match.end()].count("\n")
    try:
        metadata = yaml.safe_load(match[2])
    except yaml.YAMLError as error:
        return f"README.md: the metadata is no YAML: {error}", body, before
    if not isinstance(metadata, dict):
        return f"README.md: the metadata must be a mapping, got {metadata!r}", body, before
    return metadata, body, before


def metadata_problems(metadata: dict[str, Any]) -> Iterator[str]:
    """What the Hub would refuse, as far as can be told without asking it."""
    license_ = metadata.get("license")
    if license_ not in LICENSES:
        yield f"metadata: `license` of the weights must be one of the Hub's, got {license_!r}: declare it in card.yaml"
    if license_ == "other":
        for name in ("license_name", "license_link"):
            if not metadata.get(name):
                yield f"metadata: `{name}` must be given, since the license is `other`"
    for name in ("library_name", "pipeline_tag"):
        if not isinstance(metadata.get(name), str):
            yield f"metadata: `{name}` must be a name, got {metadata.get(name)!r}"
    for name in ("tags", "datasets", "metrics", "language", "base_model"):
        values = metadata.get(name, [])
        values = [values] if isinstance(values, str) and name != "tags" else values
        if not (isinstance(values, list) and all(isinstance(value, str) for value in values)):
            yield f"metadata: `{name}` must be a list of names, got {metadata[name]!r}"
    if "model-index" in metadata:
        yield from _model_index_problems(metadata["model-index"])


def _model_index_problems(index: Any) -> Iterator[str]:
    try:
        _, results = model_index_to_eval_results(index)
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        yield f"metadata: `model-index` is not as the Hub wants it: {type(error).__name__} {error}"
        return
    for result in results:
        if isinstance(result.metric_value, bool) or not isinstance(result.metric_value, int | float):
            what = f"{result.metric_type} must be a number, got {result.metric_value!r}"
            yield f"metadata: `model-index`: the value of {what}"


def section_problems(body: list[str], required: list[str]) -> Iterator[str]:
    """Sections that are missing or empty."""
    contents: dict[str, str] = defaultdict(str)
    heading, fenced = "", False
    for line in body:
        fenced ^= line.startswith("```")
        if line.startswith("## ") and not fenced:
            heading = line[3:].strip()
            contents[heading] += ""
        else:
            contents[heading] += line.strip()
    for name in required:
        if name not in contents:
            yield f"README.md: the section `## {name}` is missing"
        elif not contents[name]:
            yield f"README.md: the section `## {name}` is empty"


def snippet_problems(body: list[str], before: int, model_id: str) -> Iterator[str]:
    """Snippets that load another model, or none."""
    found = False
    for number, line in enumerate(body, before + 1):
        for name in _MODEL_ID.findall(line):
            found = True
            if name != model_id:
                yield f"README.md:{number}: the snippet loads {name!r}, but the card is of {model_id!r}"
    if not found:
        yield f"README.md: no snippet loads {model_id!r}"


def link_problems(body: list[str], before: int, folder: Path) -> Iterator[str]:
    """Figures and files that the card refers to and the folder does not hold."""
    for number, line in enumerate(body, before + 1):
        for match in _LINK.finditer(line):
            file = match[1] or match[2]
            if not re.match(r"[a-z]+:|#", file) and not (folder / file.partition("#")[0]).is_file():
                yield f"README.md:{number}: {file} is missing from the folder"


class _Line(NamedTuple):
    """A line of a card in its place: the heading above it, its text, and its number."""

    heading: str
    text: str
    number: int = 0

    @property
    def mask(self) -> tuple[str, str]:
        """Place and text without the numbers."""
        return self.heading, _DIGITS.sub("#", self.text)


def _lines(body: list[str], before: int = 0) -> Iterator[_Line]:
    heading, fenced = "", False
    for number, line in enumerate(body, before + 1):
        text = " ".join(line.split())
        if text:
            yield _Line(heading, text, number)
        fenced ^= text.startswith("```")
        if text.startswith("#") and not fenced:
            heading = text


def number_problems(body: list[str], before: int, expected: list[str], evidence: Evidence) -> Iterator[str]:
    """Numbers in the body of a card that no file holds.

    A line that the files give as it stands is right. One that differs from such a line in its numbers only has wrong
    numbers, whatever else holds them. Numbers of any other line must be in the files (see `Evidence`).
    """
    given: dict[tuple[str, str], list[str]] = defaultdict(list)
    for line in _lines(expected):
        given[line.mask].append(line.text)
    written = list(_lines(body, before))
    for line in written:
        twins = given.get(line.mask)
        if twins is None:
            for number in evidence.unheld(line.text):
                yield f"README.md:{line.number}: no file of the folder holds {number}"
        elif line.text not in twins:
            yield from _altered(line, twins)
    yield from _left_out(written, expected)


def _altered(line: _Line, twins: list[str]) -> Iterator[str]:
    """The numbers of a line that differ from those of the nearest line that the files give."""
    found = _DIGITS.findall(line.text)
    nearest = max(twins, key=lambda twin: sum(a == b for a, b in zip(found, _DIGITS.findall(twin), strict=True)))
    for number, held in zip(found, _DIGITS.findall(nearest), strict=True):
        if number != held:
            yield f"README.md:{line.number}: no file of the folder holds {number} here; they hold {held}"


def _left_out(written: list[_Line], expected: list[str]) -> Iterator[str]:
    """Rows of result tables that the files give and the card lacks, and headers that were changed."""
    masks = {line.mask for line in written}
    for line in _lines(expected):
        if line.text.startswith("|") and line.mask not in masks:
            yield f"README.md: {line.heading.lstrip('# ')!r} lacks or has changed the table row {line.text}"


def index_problems(text: str, metadata: dict[str, Any], expected: dict[str, Any], evidence: Evidence) -> Iterator[str]:
    """Values of `model-index`, and numbers of other metadata, that no file holds."""
    try:
        given = {_what(result): result.metric_value for result in _results(expected)}
        found = _results(metadata)
    except (KeyError, TypeError, IndexError, AttributeError, ValueError):
        return  # told by metadata_problems
    for result in found:
        value, what, name = result.metric_value, _what(result), result.metric_name or result.metric_type
        wrong = f"README.md:{_line_of(text, value)}: model-index: no file holds {value} for {name}"
        if what in given and value != given[what]:
            yield f"{wrong}; they hold {given[what]}"
        elif what not in given and evidence.unheld(f"{name} {value}"):
            yield wrong
    if metadata.get("license") != expected.get("license"):
        yield f"metadata: `license` is {metadata.get('license')!r}, but card.yaml declares {expected.get('license')!r}"
    for name, value in metadata.items():
        if name not in _NAMES:
            for number in numbers(str(value)):
                line = _line_of(text, number.text)
                yield f"README.md:{line}: metadata: no file holds the number {number.text} of `{name}`"


def _results(metadata: dict[str, Any]) -> list[EvalResult]:
    return model_index_to_eval_results(metadata["model-index"])[1] if "model-index" in metadata else []


def _what(result: EvalResult) -> tuple[Any, ...]:
    """What a result is of: everything of it but the value."""
    return (*result.unique_identifier, result.metric_type, result.metric_name, str(result.metric_args))


def _line_of(text: str, value: Any) -> int:
    """Number of the first line that holds a value."""
    return next((number for number, line in enumerate(text.splitlines(), 1) if str(value) in line), 1)


def online_problems(file: Path) -> Iterator[str]:
    """What the Hub itself says of the metadata; asks its API."""
    try:
        ModelCard.load(file).validate()
    except ValueError as error:
        yield f"the Hub refuses the metadata: {error}"
