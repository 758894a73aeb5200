"""Folders of images as sources: which files are images, which of them a list names, and what tells their content."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from datasets import Dataset, DatasetInfo, Features, Image, Value
from datasets.fingerprint import Hasher
from datasets.table import InMemoryTable

from eden_hf.data.columns import refuse_repeats
from eden_hf.data.errors import SourceError, first
from eden_hf.data.splits import split_folders
from eden_hf.data.text_files import read_text

logger = logging.getLogger(__name__)

FOLLOW_LINKS = "EDEN_FOLLOW_LINKS"
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".dcm", ".dicom"})


def images_by_split(root: Path, list_file: str | Path | None = None) -> Mapping[str, Sequence[str]]:
    """Images below a folder by split (see `split_folders`), or those that a list names, as `train`.

    Returns:
        For each split the sorted paths relative to `root`.

    Raises:
        SourceError: there is no image, or the list does not fit the folder.
    """
    images = images_below(root)
    if list_file is not None:
        return {"train": _listed(images, Path(list_file).expanduser(), root)}
    return split_folders(images, root)


def images_below(root: Path) -> list[str]:
    """Images below a folder, sorted paths relative to it; other files are counted in a warning.

    Raises:
        SourceError: there is none, or a name is no UTF-8, which neither Parquet nor JSON could hold.
    """
    files, hidden = list_files(root)
    images = [file for file in files if is_image(root / file)]
    if strange := [str(os.fsencode(image)) for image in images if not _is_unicode(image)]:
        raise SourceError(f"names in {root} are no UTF-8: {first(strange)}; rename these {len(strange)} files")
    if not images:
        raise SourceError(
            f"no images in {root} ({len(files)} other files); known: {', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    if hidden or len(images) < len(files):
        others = sorted(set(files).difference(images))
        what = f"{len(others)} files that are no images {others[:3]} and {hidden} hidden ones"
        logger.warning("%s: left out %s", root, what)
    return images


def _is_unicode(name: str) -> bool:
    """Whether a file's name was UTF-8: of one that was not, Python gives bytes as halves of characters."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def image_rows(root: Path, images: Sequence[str]) -> Dataset:
    """Images of a folder as rows `image` (`{bytes, path}`, not read) and `source_id`, the path relative to it."""
    folder = str(root.absolute())
    features = Features({"image": Image(decode=False), "source_id": Value("string")})
    columns = {"image": [{"bytes": None, "path": f"{folder}/{image}"} for image in images], "source_id": images}
    table = InMemoryTable.from_pydict(columns, schema=features.arrow_schema)
    fingerprint = Hasher.hash([folder, images_fingerprint(root, images)])
    return Dataset(table, info=DatasetInfo(features=features), fingerprint=fingerprint)


def images_fingerprint(root: Path, images: Sequence[str]) -> str:
    """Changes with the names, sizes and times of change of the files."""
    return Hasher.hash([_stamp(root, image) for image in images])


def list_files(root: Path) -> tuple[list[str], int]:
    """Relative paths of the files below `root`, sorted, and the number of hidden files and folders left out.

    Pipes, sockets and devices, which would keep a reader waiting, are left out too, and counted with the hidden ones.
    Links are followed within `root`; out of it only if the environment variable `EDEN_FOLLOW_LINKS` is 1.

    Raises:
        SourceError: links lead out of it, and nobody has said what to do with them.
        OSError: a folder cannot be opened.
    """
    files: list[str] = []
    outside: list[str] = []
    hidden, seen, waiting = 0, set(), [str(root)]
    while waiting:
        folder = waiting.pop()
        if (real := os.path.realpath(folder)) in seen:  # a link back up
            continue
        seen.add(real)
        with os.scandir(folder) as entries:  # which tells links and folders without asking for each file
            for entry in entries:
                if entry.name.startswith("."):
                    hidden += 1
                elif entry.is_symlink() and _leads_out(entry.path, root):
                    outside.append(entry.path)
                elif entry.is_dir():
                    waiting.append(entry.path)
                elif entry.is_file() or not os.path.exists(entry.path):  # noqa: PTH110 (a broken link is a file)
                    files.append(entry.path)
                else:
                    hidden += 1
    asked = os.environ.get(FOLLOW_LINKS)
    if outside and asked != "0":
        raise SourceError(
            f"links in {root} lead out of it: {first(sorted(outside))}; set {FOLLOW_LINKS}=1 in the environment to "
            f"follow them, or {FOLLOW_LINKS}=0 to leave them out"
        )
    return sorted(Path(file).relative_to(root).as_posix() for file in files), hidden


def _leads_out(link: str, root: Path) -> bool:
    """Whether a link is one to leave alone; a broken one is a file that cannot be read."""
    if os.environ.get(FOLLOW_LINKS) == "1" or not os.path.exists(link):  # noqa: PTH110 (many, and fast)
        return False
    return not Path(os.path.realpath(link)).is_relative_to(os.path.realpath(root))


def is_image(path: Path) -> bool:
    """By its suffix, or by the DICOM mark: names such as `IM0001` and `1.2.840.10008` are usual there."""
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _listed(images: Sequence[str], list_file: Path, root: Path) -> list[str]:
    """Those of `images` that `list_file` names, by relative path or by file name."""
    if not list_file.is_file():
        raise SourceError(f"no list file at {list_file}")
    names = [line.strip() for line in read_text(list_file).splitlines() if line.strip()]
    by_name: dict[str, set[str]] = {}
    for image in images:
        by_name.setdefault(image, set()).add(image)
        by_name.setdefault(Path(image).name, set()).add(image)
    absent = [name for name in names if name not in by_name]
    if absent:
        raise SourceError(
            f"{len(absent)} of the {len(names)} images in {list_file} are not in {root}: {first(absent)}"
        )
    unclear = [name for name in names if len(by_name[name]) > 1]
    if unclear:
        raise SourceError(f"{list_file} names files that {root} has in several folders: {first(unclear)}")
    refuse_repeats((image for name in names for image in by_name[name]), str(list_file))
    if not names:
        raise SourceError(f"{list_file} names no image")
    return sorted(image for name in names for image in by_name[name])


def _stamp(root: Path, image: str) -> tuple[str, int, int]:
    """Name, size and time of change of a file; a broken link has neither and fails when it is read."""
    try:
        status = (root / image).stat()
    except OSError:
        return image, -1, -1
    return image, status.st_size, status.st_mtime_ns
