"""Numbers in the text of a card: finding them, and finding what file holds them."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from eden_hf.hub.card_facts import Facts

#: Words that make a number beside them a result.
METRICS = frozenset(
    "accuracy acc auc auroc auprc dice iou jaccard f1 sensitivity specificity precision recall mae mse rmse error score "
    "scores performance ap map kappa hausdorff correlation r2 percent points".split()
)
_NUMBER = re.compile(
    r"(?P<word>[^\W\d]+[-_]?)?(?<![\d.,])(?P<sign>[-−])?"  # noqa: RUF001 (a minus sign)
    r"(?P<number>[1-9]\d{0,2}(?:,\d{3})+(?![\d.])|\d+,\d+|\d+(?:\.\d+)?(?:[eE][-+]?\d+)?|\.\d+)"
    r"(?P<percent>\s?(?:%|percent\b))?(?P<letters>[^\W\d]+)?"
)
#: What holds digits and is no number said of anything: links, papers, versions, and the name of an interval.
_REFERENCES = re.compile(
    r"https?://[^\s)]+|arXiv[: ]\s?\d{4}\.\d{4,5}|\d+(?:\.\d+){2,}|95\s?% (?:confidence |bootstrap )?(?:intervals?|CIs?)\b",
    re.IGNORECASE,
)
_INTERVAL = re.compile(r"([-−]?\d*\.?\d+) ?\(([-−]?\d*\.?\d+)(?:, ?| to |–|-)([-−]?\d*\.?\d+)\)")  # noqa: RUF001
_CLAUSE = re.compile(r"(?<!\d)[.](?=\s|$)|(?<=\d)\.(?=\s|$)|[;:|!?]|,(?=\s)|\band\b|\bbut\b|\bwhile\b")


class Number(NamedTuple):
    """A number as it is written: `text` and `value`, its decimals, and whether it is a percentage."""

    text: str
    value: float
    decimals: int
    percent: bool

    def rounds(self, value: float) -> bool:
        """Whether this is `value`, rounded as it is written."""
        return abs(self.value - value) <= 0.5 * 10**-self.decimals * (1 + 1e-6)

    @property
    def digits(self) -> int:
        """How many digits are written."""
        return sum(character.isdigit() for character in self.text)


def numbers(text: str) -> Iterator[Number]:
    """The numbers of a text, without those that are part of a name (`ResNet-50`, `COVID-19`, `3D`) or a reference."""
    for match in _NUMBER.finditer(_REFERENCES.sub(" ", text)):
        written = match["number"]
        number = (
            written.replace(",", "") if re.fullmatch(r"[1-9]\d{0,2}(,\d{3})+", written) else written.replace(",", ".")
        )
        word = (match["word"] or "").rstrip("-_").lower()
        named = bool(word and word not in METRICS) or bool(match["letters"])
        if number.isdigit() and named and not match["percent"]:
            continue
        decimals = len(number.partition("e")[0].partition(".")[2])
        negative = match["sign"] is not None and not word
        yield Number(written, -float(number) if negative else float(number), decimals, match["percent"] is not None)


def words(text: str) -> set[str]:
    """The words of a text, in lower case."""
    return set(re.findall(r"[^\W\d_]+\d?", text.lower()))


def clauses(text: str) -> list[str]:
    """The pieces of a text between commas, stops and conjunctions: what a number in one of them is said of."""
    return [clause for clause in _CLAUSE.split(text) if clause.strip()]


def standalone_numbers(text: str) -> list[str]:
    """The numbers of a text as they are written."""
    return [number.text + (" %" if number.percent else "") for number in numbers(text)]


def looks_like_a_result(text: str) -> str | None:
    """The first sentence of a text with a number and a word of `METRICS`, if any."""
    for sentence in re.split(r"(?<=[.;!?])\s+", text):
        if words(sentence) & METRICS and standalone_numbers(sentence):
            return sentence.strip()
    return None


@dataclass
class Evidence:
    """The numbers that the files of a model repository hold.

    Attributes:
        estimates: For each value of the result files the words of its name, and its value and interval.
        counts: Integers of the result files: patients, seeds, settings.
        settings: All numbers of configurations, data and environment.
    """

    estimates: list[tuple[set[str], tuple[float, float, float]]] = field(default_factory=list)
    counts: set[float] = field(default_factory=set)
    settings: set[float] = field(default_factory=set)

    @classmethod
    def of(cls, facts: Facts) -> "Evidence":
        """What the files behind `facts` hold."""
        evidence = cls()
        for measured in facts.measurements:
            results = measured.results
            for name, value in results.values.items():
                named = words(f"{results.evaluation} {name}".replace("_", " "))
                evidence.estimates.append((named, (value.value, value.low, value.high)))
                evidence.counts.add(value.n)
            evidence.counts |= {results.seed, *_leaves(results.settings)}
        for part in (facts.config, facts.processor, facts.recipe, facts.environment, facts.data):
            evidence.settings |= set(_leaves(part))
        evidence.settings |= {value for value in _leaves(facts.metrics) if not float(value).is_integer()}
        return evidence

    def unheld(self, text: str) -> list[str]:
        """The numbers of a text that no file holds, as they are written."""
        missing = []
        for match in list(_INTERVAL.finditer(text)):
            triple = [next(numbers(part), None) for part in match.groups()]
            if None not in triple and not self._holds_interval([n for n in triple if n]):
                missing.append(match[0])
        rest = _INTERVAL.sub(" ", text)
        for clause in clauses(rest):
            said_of = words(clause)
            missing += [n.text + (" %" if n.percent else "") for n in numbers(clause) if not self._holds(n, said_of)]
        return missing

    def _holds_interval(self, triple: list[Number]) -> bool:
        """Whether one estimate has this value and this interval."""
        return any(all(n.rounds(v) for n, v in zip(triple, value, strict=True)) for _, value in self.estimates)

    def _holds(self, number: Number, said_of: set[str]) -> bool:
        """Whether a file holds a number that is said of some words.

        A number said of a metric is of the result files, and of the value that shares most words with what is said;
        another may be of any file. Rounding needs two digits behind the point (or three in all, or a percentage with
        two), since a shorter number is near to many.
        """
        metric = bool(said_of & METRICS) or number.percent
        others = self.counts if metric else self.counts | self.settings
        scale = 100 if number.percent else 1
        if not number.percent and number.value in others:
            return True
        if number.percent and not said_of & METRICS and number.value / 100 in self.settings:
            return True
        precise = number.digits >= 2 if number.percent else number.decimals >= 2 or number.digits >= 3
        candidates = [scale * value for value in self._candidates(said_of)]
        integer = number.decimals == 0 and not number.percent
        return any(number.value == value or (precise and not integer and number.rounds(value)) for value in candidates)

    def _candidates(self, said_of: set[str]) -> list[float]:
        """The values and bounds of the estimates that share most words with what is said."""
        shared = [len(named & said_of) for named, _ in self.estimates]
        most = max(shared, default=0)
        return [v for count, (_, value) in zip(shared, self.estimates, strict=True) if count == most for v in value]


def _leaves(content: Any) -> Iterable[float]:
    """All numbers in a nest of mappings and lists, those in strings too."""
    if isinstance(content, bool) or content is None:
        return
    if isinstance(content, int | float):
        yield content
    elif isinstance(content, str):
        yield from (number.value for number in numbers(content))
    else:
        for item in content.values() if isinstance(content, dict) else content:
            yield from _leaves(item)
