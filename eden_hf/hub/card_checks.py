"""What is wrong with a card: metadata, sections, snippets, links, and numbers that no file holds.

Each check compares the card with the one that its files give (`expected`).
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

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
_SNIPPET = re.compile(r"```python\n.*?```", re.DOTALL)


class Line(NamedTuple):
    """A line of a card: the heading above it, its text with single spaces, and its number."""

    heading: str
    text: str
    number: int

    @property
    def place(self) -> tuple[str, str]:
        """The heading, and the text without its numbers: what a line keeps when its numbers change."""
        return self.heading, _DIGITS.sub("#", self.text)


class Card:
    """A `README.md`, taken apart.

    Attributes:
        text: All of it.
        metadata: What stands between the --- lines.
        lines: The lines of its body that hold something.

    Raises:
        ValueError: there is no metadata, or it is no mapping in YAML.
    """

    def __init__(self, text: str) -> None:
        match = REGEX_YAML_BLOCK.search(text)
        if not match:
            raise ValueError("README.md has no metadata between --- lines: run eden card write")
        try:
            metadata = yaml.safe_load(match[2])
        except yaml.YAMLError as error:
            raise ValueError(f"README.md: the metadata is no YAML: {error}") from error
        if not isinstance(metadata, dict):
            raise ValueError(f"README.md: the metadata must be a mapping, got {metadata!r}")
        self.text, self.metadata = text, metadata
        self.lines = list(_lines(text[match.end() :], before=text[: match.end()].count("\n")))


def _lines(body: str, before: int) -> Iterator[Line]:
    heading, fenced = "", False
    for number, line in enumerate(body.splitlines(), before + 1):
        text = " ".join(line.split())
        if text:
            yield Line(heading, text, number)
        fenced ^= text.startswith("```")
        if text.startswith("#") and not fenced:
            heading = text


def metadata_problems(card: Card, expected: Card) -> Iterator[str]:
    """What the files give otherwise, and numbers that they do not give."""
    for name, value in expected.metadata.items():
        given = card.metadata.get(name)
        if isinstance(value, list) and name != "model-index":
            if not isinstance(given, list) or any(item not in given for item in value):
                yield f"README.md: metadata: `{name}` must be a list with {', '.join(value)}, got {given!r}"
        elif name != "model-index" and given != value:
            yield f"README.md: metadata: `{name}` is {given!r}, but the files give {value!r}"
    for name in card.metadata.keys() - expected.metadata.keys() - {"model-index"}:
        for number in numbers(str(card.metadata[name])):
            yield f"README.md:{_line_of(card.text, name)}: metadata: no file holds {number.text} of `{name}`"
    try:
        found = _results(card)
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        yield f"README.md: metadata: `model-index` is not as the Hub wants it: {type(error).__name__} {error}"
    else:
        yield from _index_problems(found, _results(expected))


def _results(card: Card) -> list[tuple[EvalResult, int]]:
    """The results of `model-index`, as huggingface_hub reads them, each with the line of its value."""
    if "model-index" not in card.metadata:
        return []
    results = model_index_to_eval_results(card.metadata["model-index"])[1]
    lines = [number for number, line in enumerate(card.text.splitlines(), 1) if re.match(r"\s+(- )?value:", line)]
    return list(zip(results, lines + len(results) * [1], strict=False))


def _index_problems(found: list[tuple[EvalResult, int]], expected: list[tuple[EvalResult, int]]) -> Iterator[str]:
    for result, line in found:
        held = [other.metric_value for other, _ in expected if result.is_equal_except_value(other)]
        if result.metric_value not in held:
            name = f"{result.metric_name or result.metric_type} on {result.dataset_name}"
            mend = f"; they hold {held[0]}" if held else ""
            yield f"README.md:{line}: model-index: no file holds {result.metric_value} for {name}{mend}"
    for other, _ in expected:
        if not any(result.is_equal_except_value(other) for result, _ in found):
            yield f"README.md: model-index lacks {other.metric_name} on {other.dataset_name}, which a file gives"


def section_problems(card: Card, expected: Card) -> Iterator[str]:
    """Sections that are missing or empty."""
    filled = {line.heading for line in card.lines if not line.text.startswith("## ")}
    for line in expected.lines:
        if line.text.startswith("## ") and line.text not in filled:
            yield f"README.md: the section `{line.text}` is missing or empty"


def snippet_problems(card: Card, expected: Card) -> Iterator[str]:
    """Snippets that are not those that load this model."""
    for snippet in _SNIPPET.findall(expected.text):
        if snippet not in card.text:
            first = snippet.splitlines()[1]
            yield f"README.md: the snippet that starts with `{first}` is changed or missing: run eden card write"


def link_problems(card: Card, folder: Path) -> Iterator[str]:
    """Figures and files that the card refers to and the folder does not hold."""
    for line in card.lines:
        for match in _LINK.finditer(line.text):
            file = match[1] or match[2]
            if not re.match(r"[a-z]+:|#", file) and not (folder / file.partition("#")[0]).is_file():
                yield f"README.md:{line.number}: {file} is missing from the folder"


def number_problems(card: Card, expected: Card, evidence: Evidence) -> Iterator[str]:
    """Numbers in the body that no file holds, and rows of tables that were left out.

    A line in the place of one that the files give must have its numbers; numbers of any other line must be in the
    files (see `Evidence`).
    """
    places: dict[tuple[str, str], tuple[list[Line], list[Line]]] = defaultdict(lambda: ([], []))
    for line in card.lines:
        places[line.place][0].append(line)
    for line in expected.lines:
        places[line.place][1].append(line)
    for written, given in places.values():
        for line, held in zip_longest(written, given):
            yield from _line_problems(line, held, evidence)


def _line_problems(line: Line | None, held: Line | None, evidence: Evidence) -> Iterator[str]:
    """What is wrong with a line as it is written, where the files give `held`; either may be absent."""
    if line is None:
        if held and held.text.startswith("|") and _DIGITS.search(held.text):
            yield f"README.md: {held.heading.lstrip('# ')!r} lacks, or has changed, the row {held.text}"
    elif held is None:
        for number in evidence.unheld(line.text):
            yield f"README.md:{line.number}: no file of the folder holds {number}"
    else:
        for number, right in zip(_DIGITS.findall(line.text), _DIGITS.findall(held.text), strict=True):
            if number != right:
                yield f"README.md:{line.number}: no file of the folder holds {number} here; they hold {right}"


def _line_of(text: str, key: str) -> int:
    """Number of the line with a key of the metadata."""
    return next((number for number, line in enumerate(text.splitlines(), 1) if line.startswith(f"{key}:")), 1)


def online_problems(text: str) -> Iterator[str]:
    """What the Hub itself says of the metadata; asks its API."""
    try:
        ModelCard(text).validate()
    except ValueError as error:
        yield f"README.md: the Hub refuses the metadata: {error}"
