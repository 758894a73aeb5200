"""sha256 of every file of a published model, as `sha256sum -c SHA256SUMS` reads them."""

import re
from collections.abc import Iterator
from pathlib import Path

from eden_hf.data.text_files import write_text
from eden_hf.training.lineage import file_hash

SUMS = "SHA256SUMS"


def write_sums(folder: Path) -> Path:
    """Write `SHA256SUMS` of a folder, the last of its files; hidden ones are left out."""
    write_text(folder / SUMS, "".join(f"{digest}  {name}\n" for name, digest in _sums(folder).items()))
    return folder / SUMS


def sums_problems(folder: Path) -> Iterator[str]:
    """What of a folder is not as its `SHA256SUMS` say."""
    mend = f"restore it, or run eden card write {folder}"
    if not (folder / SUMS).is_file():
        yield f"{folder / SUMS} is missing: run eden card write {folder}"
        return
    text = (folder / SUMS).read_text(encoding="utf-8-sig", errors="replace")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    read = [re.fullmatch(r"([0-9A-Fa-f]{64}) [ *](.+)", line) for line in lines]
    if None in read:
        yield f"{SUMS}: {lines[read.index(None)][:200]!r} is no line of sha256sum: {mend}"
        return
    listed, found = {line[2]: line[1].lower() for line in read if line}, _sums(folder)
    for name in sorted({**listed, **found}):
        if name not in found:
            yield f"{SUMS}: {name} is missing: {mend}"
        elif name not in listed:
            yield f"{SUMS}: {name} came later: remove it, or run eden card write {folder}"
        elif listed[name] != found[name]:
            yield f"{SUMS}: {name} changed: {mend}"


def _sums(folder: Path) -> dict[str, str]:
    """The sha256 of each file by its path, in order."""
    paths = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}
    shown = {path: file for path, file in paths.items() if not re.search(r"(^|/)(\.|__pycache__/)", path)}
    return {path: file_hash(file) for path, file in shown.items() if path != SUMS}
