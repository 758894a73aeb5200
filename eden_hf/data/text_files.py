"""Text files as people write them: lists and tables from any editor or spreadsheet program."""

import codecs
import logging
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
