"""Names, dates and numbers of patients in file and folder names.

A name is a given name beside a family name, by the lists of the package `faker` (some 70 languages, most in Latin
letters), with or without its accents, initials and small words (`de la`) between; a date is a day between 1900 and
2099, months in numbers or in English. A number alone may be a patient's or a data set's, so it is found only where a
word says what it is.
"""

import re
import unicodedata
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from itertools import pairwise
from pkgutil import iter_modules

_YEAR, _MONTH, _DAY = r"(?:19|20)\d\d", r"(?:0[1-9]|1[0-2])", r"(?:0[1-9]|[12]\d|3[01])"
_TIME = r"(?:[01]\d|2[0-3])[0-5]\d(?:[0-5]\d)?"
#: The same without leading zeros, of which numbers of images are made as well.
_SHORT_MONTH, _SHORT_DAY = r"(?:0?[1-9]|1[0-2])", r"(?:0?[1-9]|[12]\d|3[01])"
_MONTH_NAME = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sep(?:t|tember)?|oct(?:ober)?"
    r"|nov(?:ember)?|dec(?:ember)?)"
)
_DATES = (
    rf"(?<!\d){_YEAR}{_MONTH}{_DAY}(?:{_TIME})?(?!\d)",
    rf"(?<!\d){_YEAR}([-_. /]){_MONTH}\1{_DAY}(?!\d)",
    rf"(?<!\d)(?:{_DAY}([-_. /]){_MONTH}\2|{_MONTH}([-_. /]){_DAY}\3){_YEAR}(?!\d)",
    rf"(?<![\d./]){_YEAR}([./]){_SHORT_MONTH}\4{_SHORT_DAY}(?![./]?\d)",
    rf"(?<![\d./])(?:{_SHORT_DAY}([-./]){_SHORT_MONTH}\5|{_SHORT_MONTH}([-./]){_SHORT_DAY}\6){_YEAR}(?![./]?\d)",
    rf"(?<!\d){_SHORT_DAY}(?:st|nd|rd|th)?[-_. ]*{_MONTH_NAME}[-_., ]*{_YEAR}(?!\d)",
    rf"(?<![^\W\d_]){_MONTH_NAME}[-_. ]*{_SHORT_DAY}(?:st|nd|rd|th)?[-_., ]+{_YEAR}(?!\d)",
)
_PATTERNS = {
    "name as DICOM has it": r"[^\W\d_]{2,}\^[^\W\d_]+",
    "e-mail address": r"[\w.+-]+@[\w-]+\.\w{2,}",
    "date": "|".join(_DATES),
    "number of a patient": (
        r"(?<![a-z])(?:mrn|ssn|nhs|medrec|dob|birth(?:date)?|phone|tel)[-_ .#:=+]*[a-z]{0,2}\d(?:[ -]?\d){3,}"
    ),
    "social security number": r"(?<![\d-])\d{3}-\d{2}-\d{4}(?![\d-])",
}
_WORDS = re.compile(r"[^\W\d_]+")
_BETWEEN_WORDS = """
    al bin bint da das de del della den der di do dos du el ibn la las le los mac mc ten ter van von y
    """
#: Within names, between a given and a family one; single letters are as well.
_BETWEEN = frozenset(_BETWEEN_WORDS.split())
#: Letters with a stroke and the like, which have no accent to take off.
_PLAIN = str.maketrans("øłđ\u0131", "oldi")
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])")
_FIELD_WORDS = """
    angle art arm axial base baseline bed best black blank blue body bone brain brown case chance chest child
    cover cross crop day dense early eve extra field figure fine first fold fine good grade gray green grey hand
    head heart hill image july june knee large late left lens level light list long low lung male man mark mask
    may mild model moon name new normal north old page pair pale part patch pool post rand rib right row sample
    scan scar score series set sharp short side single skin slice small south spine star stage stone strong
    study subject summer swift teen test test tone train val valid view vein ward west white will wood young
    """
#: Words of the field that are names as well.
_FIELD = frozenset(_FIELD_WORDS.split())
_COLUMN = re.compile(
    r"(?:patient|subject|first|last|family|given|sur|full).?name|birth|e-?mail"
    r"|(?:^|[_ ])(?:dob|ssn|mrn|phone|address)$",
    re.IGNORECASE,
)


def name_findings(text: str) -> Iterator[tuple[str, str]]:
    """What a file name or path tells of a patient, as `(what it is, the words)`."""
    text = unicodedata.normalize("NFC", text)  # macOS parts letters from their accents
    for what, pattern in _PATTERNS.items():
        yield from ((what, match[0]) for match in re.finditer(pattern, text, re.IGNORECASE))
    pairs: dict[tuple[str, str], None] = {}
    for part in re.split(r"[/\\]", text):
        words = [word for piece in _WORDS.findall(part) for word in _HUMP.split(piece)]
        for beside in (words, [word for word in words if len(word) > 1 and word.casefold() not in _BETWEEN]):
            pairs |= dict.fromkeys(pair for pair in pairwise(beside) if _is_name(*map(_plain, pair)))
    yield from (("name of a person", " ".join(pair)) for pair in pairs)


def tells_patients(column: str) -> bool:
    """Whether a column is called as names, dates of birth or addresses of patients are."""
    return _COLUMN.search(column) is not None


def _plain(word: str) -> str:
    """A word in small letters, without accents."""
    letters = unicodedata.normalize("NFKD", word.casefold())
    return "".join(letter for letter in letters if not unicodedata.combining(letter)).translate(_PLAIN)


def _is_name(first: str, second: str) -> bool:
    if min(len(first), len(second)) < 3 or {first, second} & _FIELD:
        return False
    given, family = _known_names()
    return (first in given and second in family) or (first in family and second in given)


@cache
def _known_names() -> tuple[frozenset[str], frozenset[str]]:
    """Given and family names, as `_plain` gives them."""
    try:
        from faker.providers import person
    except ImportError as error:
        raise ImportError("names of persons need the lists of faker: pip install eden_hf[phi]") from error
    names: dict[str, set[str]] = {"first_name": set(), "last_name": set()}
    for module in iter_modules(person.__path__):
        provider = import_module(f"{person.__name__}.{module.name}").Provider
        for attribute in dir(provider):
            kind = re.match("first_name|last_name", attribute)
            values = getattr(provider, attribute)
            if kind and isinstance(values, tuple | list | dict):
                names[kind[0]].update(_plain(word) for value in values for word in _WORDS.findall(str(value)))
    return frozenset(names["first_name"]), frozenset(names["last_name"])
