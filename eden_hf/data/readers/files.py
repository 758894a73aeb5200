"""Finding the files of a published data set in a folder, and pairing them with the lists that name them."""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
from datasets import Dataset, DatasetDict, Features

from eden_hf.data.errors import first
from eden_hf.data.folders import IMAGE_SUFFIXES, list_files
from eden_hf.data.readers.task import TaskError
from eden_hf.data.splits import SPLIT_NAMES, SPLIT_WORDS
from eden_hf.data.text_files import parse_json, read_csv, read_text

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Published:
    """The files of a data set, as they lie in a folder after download and unpacking.

    Files are found by their names and the folder they are in, at any depth, upper and lower case alike: it does not
    matter whether `folder` is the data set's own or one above it. Hidden files are passed over.

    Args:
        folder: Where to look.
        layout: The layout expected, a line a file or folder, as errors show it.
        max_skipped_share: Share of the listed images, in [0, 1], that may be absent; 0 by default.

    Raises:
        TaskError: there is no such folder.
    """

    def __init__(self, folder: str | Path, layout: str, max_skipped_share: float = 0.0) -> None:
        if not 0 <= max_skipped_share <= 1:
            raise ValueError(f"max_skipped_share is a share of the images in [0, 1], got {max_skipped_share}")
        self.folder, self.layout, self.max_skipped_share = Path(folder).expanduser(), layout, max_skipped_share
        if not self.folder.is_dir():
            raise self.error(f"there is no folder {self.folder}")
        self.files = list_files(self.folder)[0]

    def error(self, message: str) -> TaskError:
        """An error that goes on to show the layout expected."""
        return TaskError(f"{message}\nExpected in {self.folder.absolute()}, at any depth:\n{self.layout}")

    def matching(self, *patterns: str) -> list[Path]:
        """Files whose last parts match one of the glob `patterns`, such as `fold1/masks/heart/*.gif`; sorted."""
        wanted = [pattern.lower() for pattern in patterns]
        lower = ((file, PurePosixPath(file.lower())) for file in self.files)
        return [self.folder / file for file, path in lower if any(path.match(pattern) for pattern in wanted)]

    def one(self, *patterns: str) -> Path:
        """The only file that matches the first of the patterns that any file matches.

        Raises:
            TaskError: there is none, or several.
        """
        for pattern in patterns:
            found = self.matching(pattern)
            if len(found) > 1:
                raise self.error(f"several files match {pattern}, keep one of them: {first(self.relative(found))}")
            if found:
                return found[0]
        raise self.error(f"there is no file {' or '.join(patterns)} below {self.folder}")

    def relative(self, paths: Iterable[Path]) -> list[str]:
        """Paths as seen from the folder."""
        return [path.relative_to(self.folder).as_posix() for path in paths]

    def images(self, *patterns: str) -> "Images":
        """Image files that match one of the patterns, by name without suffix; the suffix may be of any image format.

        Args:
            patterns: Globs without suffix, such as `train/*`.
        """
        return self._images(patterns, " or ".join(patterns))

    def images_of(self, split: str, *rest: str, called: str | None = None) -> "Images":
        """As `images`, in the folders of a split, whichever word for it is their name.

        Args:
            split: A usual name: `train`, `validation` or `test`.
            rest: What follows the word in the glob: `/images/*`, `_data/*`.
            called: The word in messages, where it is not `split`.
        """
        patterns = [f"{word}{own}" for word in SPLIT_WORDS[split] for own in rest]
        return self._images(patterns, " or ".join(f"{called or split}{own}" for own in rest))

    def _images(self, patterns: Sequence[str], where: str) -> "Images":
        paths: dict[str, list[Path]] = {}
        for path in self.matching(*patterns):
            if path.suffix.lower() in (*IMAGE_SUFFIXES, ".img"):
                paths.setdefault(stem(path.name), []).append(path)
        return Images(self, where, paths)


class Images:
    """Image files by name without suffix (see `Published.images`)."""

    def __init__(self, published: Published, where: str, paths: Mapping[str, list[Path]]) -> None:
        self.published, self.where, self.paths = published, where, paths
        self._by_key: dict[str, list[Path]] = {}
        for name, own in paths.items():
            self._by_key.setdefault(key_of(name), []).extend(own)

    def __contains__(self, name: str) -> bool:
        return key_of(name) in self._by_key

    def listed(self, names: Iterable[str], listing: str, elsewhere: "Images | None" = None) -> dict[str, Path]:
        """The files of the images that a list names, in its order; those that have none are reported.

        Args:
            names: The images, with or without folder and suffix, upper and lower case alike.
            listing: What the list is called in messages.
            elsewhere: Images of another split. If the absent ones lie there, the message says so.

        Returns:
            Paths by name as listed.

        Raises:
            TaskError: more than the allowed share have no file, or several, or one file has several names.
        """
        names = list(names)
        spellings: dict[str, str] = {}
        if other := next((name for name in names if spellings.setdefault(key_of(name), name) != name), None):
            raise self.published.error(f"{listing} has one image by two names: {spellings[key_of(other)]}, {other}")
        paths = {name: self._by_key.get(key_of(name), []) for name in names}
        for name, found in paths.items():
            if len(found) > 1:
                raise self.published.error(
                    f"several files for image {name} of {listing}: {first(self.published.relative(found))}"
                )
        missing = [name for name, found in paths.items() if not found]
        if missing:
            self._report_missing(missing, len(names), listing, elsewhere)
        return {name: found[0] for name, found in paths.items() if found}

    def _report_missing(self, missing: Sequence[str], total: int, listing: str, elsewhere: "Images | None") -> None:
        message = f"{len(missing)} of the {total} images of {listing} have no file {self.where}: {first(missing)}"
        if elsewhere is not None and all(name in elsewhere for name in missing):
            raise self.published.error(f"{message}; they lie in {elsewhere.where}: are the two swapped?")
        if len(missing) == total or len(missing) > self.published.max_skipped_share * total:
            raise self.published.error(f"{message}; restore them, or allow a share by max_skipped_share")
        logger.warning("%s; they are left out", message)

    def report_unlisted(self, names: Iterable[str], listing: str) -> None:
        """Log how many of these images no list names."""
        listed = {key_of(name) for name in names}
        others = sorted(name for name in self.paths if key_of(name) not in listed)
        if others:
            logger.warning("%d images %s are not in %s: %s", len(others), self.where, listing, first(others))


def stem(name: str) -> str:
    """A file name without folders and the suffix of an image; other dots, as in DICOM identifiers, stay."""
    path = PureWindowsPath(name)  # which knows both slashes
    return path.stem if path.suffix.lower() in (*IMAGE_SUFFIXES, ".img") else path.name


def key_of(name: str) -> str:
    """What an image's name is known by: no folder, no suffix, upper and lower case alike."""
    return stem(name).casefold()


def plain(word: str) -> str:
    """A word of a table as all spellings of it are: lower case, `-` and `_` as blanks."""
    return re.sub(r"[\s_-]+", " ", word).strip().casefold()


def read_table(
    path: Path, columns: Sequence[str], spellings: Mapping[str, str] = MappingProxyType({})
) -> list[tuple[str, dict[str, str]]]:
    """The rows of a table with a header, values stripped of blanks, each with its file and line for errors.

    Args:
        path: Of values separated by commas, semicolons or tabs.
        columns: Those needed, found in any order and in any spelling of `plain`; others may be there.
        spellings: Other names of columns that are needed.

    Raises:
        TaskError: it is no table, lacks one of `columns` or has it twice, a row does not fit, or it has no row.
    """
    try:
        _, lines = read_csv(path)
    except ValueError as error:
        raise TaskError(str(error)) from error
    known = {plain(name): name for name in columns} | {plain(other): name for other, name in spellings.items()}
    header = [known.get(plain(cell), cell) for cell in lines[0].cells] if lines else []
    if absent := [column for column in columns if column not in header]:
        raise TaskError(f"{path} has no column {', '.join(absent)}; it has {', '.join(header) or 'no header'}")
    if twice := [column for column in columns if header.count(column) > 1]:
        raise TaskError(f"{lines[0].where}: there are two columns {twice[0]}; remove one")
    if len(lines) == 1:
        raise TaskError(f"{path} has a header but no rows")
    last = max(header.index(column) for column in columns)
    for where, cells in lines[1:]:
        if len(cells) <= last or any(cells[len(header) :]):
            few = "few" if len(cells) <= last else "many"
            raise TaskError(f"{where} has too {few} values for its header; download the file again")
    return [(where, dict(zip(header, cells, strict=False))) for where, cells in lines[1:]]


def read_names(path: Path) -> list[str]:
    """The names in a text file, one a line.

    Raises:
        TaskError: there are none, or one comes twice.
    """
    names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not names:
        raise TaskError(f"{path} names no image")
    refuse_repeats(names, str(path))
    return names


def read_json(path: Path, kind: type[T]) -> T:
    """A JSON file that holds one `kind` (list or dict).

    Raises:
        TaskError: it is damaged or holds something else.
    """
    try:
        content = parse_json(read_text(path))
    except ValueError as error:
        raise TaskError(f"{path} is no JSON ({error}); download it again") from error
    if not isinstance(content, kind):
        raise TaskError(f"{path} holds a {type(content).__name__} where a {kind.__name__} was expected")
    return content


def refuse_repeats(names: Sequence[str], where: str) -> None:
    """Raise a `TaskError` if a name comes twice."""
    seen: set[str] = set()
    repeated = [name for name in names if name in seen or seen.add(name)]  # type: ignore[func-returns-value]
    if repeated:
        raise TaskError(f"{len(repeated)} names come more than once in {where}: {first(repeated)}")


def labelled(features: Features, rows: Mapping[str, Mapping[str, Path]], labels: Mapping[str, Any]) -> DatasetDict:
    """The splits of a classification task.

    Args:
        features: Columns `image`, `source_id`, `label`.
        rows: For each split the paths of its images by name; splits without images are left out.
        labels: The label of each image by name.
    """
    splits = {
        split: Dataset.from_dict(
            {
                "image": [{"bytes": None, "path": str(path.absolute())} for path in paths.values()],
                "source_id": list(paths),
                "label": [labels[name] for name in paths],
            },
            features=features,
            split=split,
        )
        for split, paths in rows.items()
        if paths
    }
    return DatasetDict(splits)


def seeded_split(classes: Mapping[str, Any], seed: int = 0) -> dict[str, list[str]]:
    """Names shuffled into 70 % train, 10 % validation and 20 % test of every class, for sets without official split.

    Args:
        classes: The class of each name.
        seed: Of the shuffle; the same names give the same splits, in whatever order they come.

    Raises:
        TaskError: too few names to train and test on.
    """
    splits: dict[str, list[str]] = {split: [] for split in SPLIT_NAMES}
    for value in sorted(set(classes.values())):
        names = sorted(name for name, own in classes.items() if own == value)
        shuffled = [names[index] for index in np.random.default_rng(seed).permutation(len(names))]
        ends = (0, round(0.7 * len(names)), round(0.8 * len(names)), len(names))
        for split, start, stop in zip(SPLIT_NAMES, ends[:-1], ends[1:], strict=True):
            splits[split] += shuffled[start:stop]
    if not splits["train"] or not splits["test"]:
        raise TaskError(f"{len(classes)} images are too few to be split into train and test: {first(classes)}")
    return {split: sorted(names) for split, names in splits.items()}
