"""Names of splits: one rule for folders, files and data sets, whoever named them."""

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

SPLIT_NAMES = ("train", "validation", "test")
SPLIT_WORDS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
_SPLIT_OF_WORD = {word: split for split, words in SPLIT_WORDS.items() for word in words}


@cache
def split_of(name: str) -> str | None:
    """The split that a name stands for, upper and lower case alike: `TRAIN`, `Training` and `trainset` for `train`."""
    return _SPLIT_OF_WORD.get(name.strip().casefold().removesuffix("set"))


@cache
def split_in(name: str) -> str | None:
    """The one split that words of a name stand for: `train_data`, `xrays-test`, `TestImages`; no `train_val`."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)
    found = {split for word in words if (split := split_of(word))}
    return found.pop() if len(found) == 1 else None


def in_order(splits: Iterable[str]) -> tuple[str, ...]:
    """Splits in the usual order: train, validation, test, then others by name."""
    return tuple(sorted(splits, key=lambda split: (*SPLIT_NAMES, split).index(split)))


def by_common_names(splits: Iterable[str]) -> dict[str, str]:
    """The splits of a data set by their usual names: `val` is `validation`, unless several would be."""
    usual = {name: split_of(name) for name in splits}
    names = Counter(usual.values())
    return {name if split is None or names[split] > 1 else split: name for name, split in usual.items()}


def split_folders(images: Sequence[str], root: Path) -> Mapping[str, Sequence[str]]:
    """The images of a folder by split.

    The topmost folder on an image's path that is named as a split says which (`train/normal/a.png`,
    `xrays/Train/a.png`, `normal/train/a.png`); an image below no such folder is of the split of its topmost folder.
    Names that only hold such a word (`train_data`) count where no whole name does, and one is `train` and another
    is not. Without split folders all are `train`.

    Args:
        images: Paths relative to `root`.
        root: The folder, for messages.
    """
    for rule in (split_of, split_in):
        named = [_split_on_the_way(image, rule) for image in images]
        found = {split for split in named if split}
        at_the_top = rule is split_of and any(rule(image.partition("/")[0]) for image in images if "/" in image)
        if at_the_top or ("train" in found and len(found) > 1):
            return _told(_parted(images, named, root), root)
    return _told({"train": images}, root)


def _told(splits: dict[str, Any], root: Path) -> dict[str, Any]:
    """`splits`, of which a line says once how many images of which folders each has."""
    tops = {split: Counter(image.split("/")[0] for image in own if "/" in image) for split, own in splits.items()}
    if any(tops.values()):
        parts = (f"{split} {len(splits[split])} of {_named(tops[split])}" for split in in_order(splits))
        _tell_once(f"{root}: images by split and folder: {'; '.join(parts)}")
    return splits


def _named(folders: Counter[str], most: int = 5) -> str:
    named = ", ".join(f"{name} ({count})" for name, count in folders.most_common(most))
    return f"{named}, and {len(folders) - most} more" if len(folders) > most else named


@cache
def _tell_once(message: str) -> None:
    logger.info(message)


def class_folder(image: str) -> str:
    """The folder that names the class of an image: the nearest that is no split (`normal` in `train/normal/a.png`)."""
    return next((folder for folder in reversed(image.split("/")[:-1]) if split_of(folder) is None), "")


def _split_on_the_way(image: str, rule: Callable[[str], str | None]) -> str | None:
    return next((split for folder in image.split("/")[:-1] if (split := rule(folder))), None)


def _parted(images: Sequence[str], named: Sequence[str | None], root: Path) -> dict[str, list[str]]:
    splits: dict[str, list[str]] = {}
    for image, split in zip(images, named, strict=True):
        splits.setdefault(split or (image.split("/")[0] if "/" in image else ""), []).append(image)
    if outside := splits.pop("", []):
        logger.warning("%s: left out %d images outside the split folders %s", root, len(outside), sorted(splits))
    if others := {name: len(own) for name, own in splits.items() if name not in SPLIT_NAMES}:
        logger.warning("%s: folders beside train, validation and test are splits of their own: %s", root, others)
    return splits
