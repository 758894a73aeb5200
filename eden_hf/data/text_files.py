"""Text files: read as people write them, from any editor or spreadsheet program; written whole or not at all."""

import codecs
import csv
import io
import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import yaml

logger = logging.getLogger(__name__)

_MOST_VALUES = 100_000  # of a YAML file
_MARKS = {  # longest first: UTF-32's begins with UTF-16's
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def read_text(path: str | Path) -> str:
    """The text of a file: in the encoding that its byte order mark tells, else UTF-8, else Windows-1252 (Latin-1).

    Raises:
        OSError: it cannot be opened.
        ValueError: it is no text; the message names it.
    """
    path = Path(path).expanduser()
    data = path.read_bytes()
    encoding = next((encoding for mark, encoding in _MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            raise ValueError(f"{path} is torn: not the {encoding} that it begins as; restore it") from error
        text = data.decode("cp1252", errors="replace")
        logger.warning("%s is no UTF-8: read as Windows-1252", path)
    if "\0" in text:
        raise ValueError(f"{path} holds null characters, so it is no text, or UTF-16 without mark; save it as UTF-8")
    return text.lstrip("\ufeff")  # a second mark, of a file converted with its first


def write_text(path: Path, text: str) -> None:
    """Write a file in UTF-8, whole or not at all: an interruption leaves the one that was there.

    Raises:
        OSError: it cannot be written; the error names it.
    """
    temporary = path.with_name(f".{path.name}.new")
    try:
        with _named(path):
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def append_line(path: Path, line: str) -> None:
    """Write one more line to a file in UTF-8; an interruption may leave a part of it, without an end of line.

    Raises:
        OSError: it cannot be written; the error names it.
    """
    with _named(path), path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Have errors name the file: those of a full disk do not."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def parse_json(text: str) -> Any:
    """The content of a JSON text.

    Raises:
        ValueError: it is none, or nested more deeply than Python goes.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("lists in lists without end") from error


def parse_yaml(text: str) -> Any:
    """The content of a YAML text, nothing but lists, mappings and plain values.

    Raises:
        ValueError: it is none, is nested more deeply than Python goes, or has too many values by reference.
    """
    yaml_tree(text)
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, AttributeError, LookupError) as error:  # the latter of tags: `!!bool maybe`
        raise ValueError(f"no YAML of plain values: {error}") from error


def yaml_tree(text: str) -> yaml.Node | None:
    """What a YAML text is built of. One that would crash or hang what makes values of it is refused.

    Raises:
        ValueError: it is none, is nested more deeply than Python goes, has too many values by reference, or a name
            twice, of which others take the last.
    """
    try:
        tree = yaml.compose(text, yaml.SafeLoader)
        if _values(tree, {}) > _MOST_VALUES:
            raise ValueError("references to references, that come to too many values: write them out")
    except RecursionError as error:
        raise ValueError("lists in lists without end") from error
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    return tree


def _values(node: yaml.Node | None, known: dict[int, int]) -> int:
    """How many values there are once every reference is written out, and every mapping merged."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        if isinstance(node, yaml.MappingNode):
            _refuse_repeats([key for key, _ in node.value if isinstance(key, yaml.ScalarNode)])
        own = (value for pair in node.value for value in (pair if isinstance(pair, tuple) else (pair,)))
        known[id(node)] = 1 + sum(_values(value, known) for value in own)
    return known[id(node)]


def _refuse_repeats(keys: Iterable[yaml.ScalarNode]) -> None:
    seen = set()
    for key in keys:
        if key.value in seen:
            raise ValueError(f"`{key.value}` comes twice, again in line {key.start_mark.line + 1}: keep one")
        seen.add(key.value)


def read_record(path: str | Path) -> dict[str, Any]:
    """The mapping that a JSON or YAML file holds, as its suffix tells.

    Raises:
        OSError: it cannot be opened.
        ValueError: it holds none; the message names it.
    """
    return _read(path, dict, "a mapping")


def read_list(path: str | Path) -> list[Any]:
    """The list that a JSON or YAML file holds; errors as of `read_record`."""
    return _read(path, list, "a list")


def _read(path: str | Path, kind: type, called: str) -> Any:
    path = Path(path)
    text = read_text(path)
    try:
        content = parse_json(text) if path.suffix == ".json" else parse_yaml(text)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(content, kind):
        raise ValueError(f"{path} must hold {called}, got {str(content)[:60]!r}")
    return content


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """The mappings of a file of JSON lines, but for a last line that an interruption cut short.

    Raises:
        OSError: it cannot be opened.
        ValueError: a line holds none; the message names file and line.
    """
    *whole, last = read_text(path).split("\n")
    with suppress(ValueError):  # of a line that was cut short; an editor may have left the end of a whole one away
        parse_json(last)
        whole.append(last)
    try:
        return parse_lines(whole)
    except ValueError as error:
        raise ValueError(f"{path}, {error}") from error


def parse_lines(lines: Iterable[str]) -> list[dict[str, Any]]:
    """The mappings of JSON lines, blank ones left out.

    Raises:
        ValueError: a line holds none; the message names it.
    """
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found.append(parse_json(line))
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
        if not isinstance(found[-1], dict):
            raise ValueError(f"line {number}: must be a mapping, got {line[:60]!r}")
    return found


class Line(NamedTuple):
    """A line of a table: file and line, for errors, and its cells, stripped of blanks."""

    where: str
    cells: list[str]


def read_csv(path: str | Path) -> tuple[str, list[Line]]:
    """The delimiter of a table, whichever of comma, semicolon and tab its first line has most of, and its lines.

    Lines that are blank are left out.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is no table; the message names file and line.
    """
    text = read_text(path)
    delimiter = max(",;\t", key=text.lstrip("\r\n").partition("\n")[0].count)
    reader, lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), []
    try:
        for row in reader:
            if cells := [cell.strip() for cell in row] if any(map(str.strip, row)) else []:
                lines.append(Line(f"{path}, line {reader.line_num}", cells))
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}; save it as CSV again") from error
    return delimiter, lines
