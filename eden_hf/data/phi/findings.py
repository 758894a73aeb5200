"""What the PHI guard found, as rows of a CSV; the rows that a person keeps in it are what that person accepts."""

import csv
import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterable
from io import StringIO
from pathlib import Path
from typing import Literal, NamedTuple

from eden_hf.data.text_files import read_text

Kind = Literal["attribute", "name", "tag", "text", "unreadable"]


class Finding(NamedTuple):
    """What may tell who a patient is.

    Attributes:
        file: Of the image, relative to the folder that was checked; a row of Parquet has `row N` after it.
        kind: `attribute` of DICOM, `name` of a file, folder or column, `tag` beside the pixels, burned-in `text`, or
            `unreadable`, which could not be looked at.
        where: The attribute, the tag, or the box of the text in pixels.
        found: The value; of `unreadable` the reason.
    """

    file: str
    kind: Kind
    where: str
    found: str


_LONGEST = 200
#: What no CSV in UTF-8 holds.
_UNWRITABLE = re.compile("[\0\ud800-\udfff]")


class PhiError(ValueError):
    """Images that may tell who a patient is are not passed on."""


def brief(value: str | bytes) -> str:
    """A value in a line of at most 200 characters; of what does not show whole the sha256 too."""
    data = value if isinstance(value, bytes) else value.encode("utf-8", errors="surrogatepass")
    text = value if isinstance(value, str) else value.decode("utf-8", errors="replace")
    line = " ".join(text.strip("\0 ").replace("\0", " ").split())
    return f"{line[:_LONGEST]} ({told_apart(data)})" if len(line) > _LONGEST or "\ufffd" in line else line


def told_apart(data: bytes) -> str:
    """What tells bytes from others."""
    return f"{len(data)} bytes, sha256 {hashlib.sha256(data).hexdigest()[:16]}"


def not_accepted(findings: Iterable[Finding], accepted: Collection[Finding]) -> list[Finding]:
    """The findings that nobody accepted, as a CSV has them: what it cannot hold is written as Python does."""
    written = [Finding(*(_UNWRITABLE.sub(_escaped, value) for value in finding)) for finding in findings]  # type: ignore[arg-type]
    return [finding for finding in written if finding not in accepted]


def _escaped(character: re.Match) -> str:
    return ascii(character[0])[1:-1]


def write_findings(file: Path, findings: Iterable[Finding]) -> None:
    """Write the CSV, with the fields of `Finding`. It tells what was found: keep it where the images are."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as opened:
        csv.writer(opened).writerows([Finding._fields, *findings])


def read_accepted(file: str | Path | None) -> frozenset[Finding]:
    """The findings that a person looked at and accepts: rows of a CSV of `eden check-phi`; none without a file.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is no such CSV.
    """
    if file is None:
        return frozenset()
    header, *rows = list(csv.reader(StringIO(read_text(file), newline=""))) or [[]]
    if tuple(header) != Finding._fields:
        raise ValueError(
            f"{file} is no CSV of eden check-phi: its first line is {','.join(header)!r}, not "
            f"{','.join(Finding._fields)!r}; keep that line, and of the others those that are accepted"
        )
    for number, row in enumerate(rows, start=2):
        if row and len(row) != len(Finding._fields):
            raise ValueError(f"{file}: row {number} has {len(row)} values, not {len(Finding._fields)}: {row}")
    return frozenset(Finding(*row) for row in rows if row)  # type: ignore[arg-type]


def in_short(findings: Iterable[Finding], most: int = 10) -> str:
    """How many of each kind there are and where the first are, without what they tell."""
    findings = list(findings)
    counts = ", ".join(f"{count} {kind}" for kind, count in Counter(finding.kind for finding in findings).items())
    lines = [f"{finding.file}: {finding.kind} {finding.where}" for finding in findings[:most]]
    return "\n  ".join([counts, *lines, *(["..."] if len(findings) > most else [])])
