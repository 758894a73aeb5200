"""Numbers in the text of a card: finding them, and finding what file holds them."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from eden_hf.hub.card_facts import Facts

_METRICS = """
    accuracy acc auc auroc dice iou jaccard f1 sensitivity specificity precision recall retrieval mae mse rmse r2 error
    score scores performance confusion margin gain kappa hausdorff correlation
    """
#: Words that make a number beside them a result.
METRICS = frozenset(_METRICS.split())
#: What holds digits and is said of nothing: links, papers, versions, the name of an interval, `3D`, `16-bit`, `2nd`.
_NAMES = re.compile(
    r"https?://[^\s)]+|\b\d{4}\.\d{5}\b|\d+(?:\.\d+){2,}|95\s?% (?:confidence |bootstrap )?(?:intervals?|CIs?)\b"
    r"|\b\d+(?:[dDx]|st|nd|rd|th|-?bit)\b",
    re.IGNORECASE,
)
_NUMBER = re.compile(
    r"(?<![^\W\d])(?<![^\W\d]-)(?<![\d.])"  # not of a name such as ResNet-50
    r"(?P<sign>(?<!\w)[-−])?"  # noqa: RUF001 (a minus sign)
    r"(?P<digits>[1-9]\d{0,2}(?:,\d{3})+(?!\d)|\d*\.?\d+(?:[eE][-+]?\d+)?)(?P<percent>\s?(?:%|percent\b))?"
)


class Number(NamedTuple):
    """A number as it is written, its value, its decimals, and whether it is a percentage."""

    text: str
    value: float
    decimals: int
    percent: bool

    def rounds(self, value: float) -> bool:
        """Whether this is `value`, rounded as it is written; only two digits and more may be rounded."""
        significant = len(re.sub(r"\D", "", self.text).lstrip("0"))
        near = 0.5 * 10**-self.decimals * (1 + 1e-6) if significant > 1 and (self.decimals or self.percent) else 1e-9
        return abs(self.value - value * (100 if self.percent else 1)) <= near


def numbers(text: str) -> Iterator[Number]:
    """The numbers of a text, without those of names and references."""
    for match in _NUMBER.finditer(_NAMES.sub(" ", text)):
        digits = match["digits"].replace(",", "")
        value = -float(digits) if match["sign"] else float(digits)
        decimals = len(re.split("[eE]", digits)[0].partition(".")[2])
        yield Number(match[0].strip(), value, decimals, match["percent"] is not None)


def words(text: str) -> set[str]:
    """The words of a text, in lower case; underscores part words."""
    return set(re.findall(r"[^\W\d_]+\d?", text.lower()))


def result_in(text: str) -> str | None:
    """The first sentence of a text that says a number of a metric, if any."""
    for sentence in re.split(r"(?<=[.;!?])\s+", text):
        if words(sentence) & METRICS and any(numbers(sentence)):
            return sentence.strip()
    return None


@dataclass
class Evidence:
    """The numbers that the files of a model repository hold.

    Attributes:
        estimates: For each value of the result files the words of its name, and its value and interval.
        counts: Other numbers of the result files: patients, seeds, settings.
        settings: Numbers of configurations, data, environment and declaration.
    """

    estimates: list[tuple[set[str], tuple[float, float, float]]] = field(default_factory=list)
    counts: set[float] = field(default_factory=set)
    settings: set[float] = field(default_factory=set)

    @classmethod
    def of(cls, facts: Facts, declared: dict[str, Any]) -> "Evidence":
        """What the files behind `facts` hold, and what was declared."""
        evidence = cls()
        for found in facts.measurements:
            for name, value in found.results.values.items():
                evidence.estimates.append((words(f"{found.results.evaluation} {name}"), value[:3]))
                evidence.counts.add(value.n)
            evidence.counts |= {found.results.seed, *_leaves(found.results.settings)}
        for part in (facts.config, facts.processor, facts.recipe, facts.environment, facts.data, declared):
            evidence.settings |= set(_leaves(part))
        return evidence

    def unheld(self, text: str) -> list[str]:
        """The numbers of a text that no file holds, as they are written.

        What is said of a metric must be a value of that metric, or a count of the result files.
        """
        said = words(text) & METRICS
        values = [value for named, triple in self.estimates if not said or named & said for value in triple]
        exact = self.counts if said else self.counts | self.settings
        return [
            number.text
            for number in numbers(text)
            if not any(number.rounds(value) for value in values)
            and not any(Number("", number.value, 0, number.percent).rounds(value) for value in exact)
        ]


def _leaves(content: Any) -> Iterable[float]:
    """All numbers in a nest of mappings and lists, those in strings too."""
    if isinstance(content, int | float) and not isinstance(content, bool):
        yield content
    elif isinstance(content, str):
        yield from (number.value for number in numbers(content))
    elif isinstance(content, dict | list | tuple):
        for item in content.values() if isinstance(content, dict) else content:
            yield from _leaves(item)
