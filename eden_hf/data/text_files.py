"""Text files: read as people write them, from any editor or spreadsheet program; written whole or not at all."""

import codecs
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

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
