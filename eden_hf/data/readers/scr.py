"""SCR (van Ginneken et al., Medical Image Analysis 2006): structures outlined on the radiographs of JSRT."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from eden_hf.data.errors import first
from eden_hf.data.readers.files import Images, Published, key_of
from eden_hf.data.readers.masks import Row, drawn, read_masks
from eden_hf.data.readers.task import Task, features_of

LAYOUT = """\
All247images/JPCLN001.IMG ...                           JSRT's raw radiographs (or the same as .png)
scratch/fold1/masks/heart/JPCLN001.gif ...              odd numbers
scratch/fold1/masks/left clavicle/JPCLN001.gif ...
scratch/fold1/masks/right clavicle/JPCLN001.gif ...
scratch/fold1/masks/left lung/JPCLN001.gif ...          lungs for `scr_anatomy` alone
scratch/fold1/masks/right lung/JPCLN001.gif ...
scratch/fold2/masks/heart/JPCLN002.gif ...              even numbers, and so on"""
FOLDS = {"train": "fold1", "test": "fold2"}
STRUCTURES = ("heart", "left lung", "right lung", "left clavicle", "right clavicle")


def _read(folder: Path, max_skipped_share: float, name: str, labels: Mapping[str, Sequence[str]]) -> Task:
    """A task whose labels are made up of one or more of SCR's structures each."""
    published = Published(folder, LAYOUT, max_skipped_share)
    images = published.images("JPC[LN]N???.IMG")
    if not images.paths:
        images = published.images("JPC[LN]N???.png")
    rows = {split: _rows(published, images, fold, list(labels.values())) for split, fold in FOLDS.items()}
    _check_folds(published, **{split: [row.source_id for row in own] for split, own in rows.items()})
    images.report_unlisted([row.source_id for own in rows.values() for row in own], "either fold")
    splits = drawn(features_of("segmentation", list(labels)), rows, read_masks)
    return Task(name, "segmentation", tuple(labels), "dice", splits)


def _rows(published: Published, images: Images, fold: str, labels: Sequence[Sequence[str]]) -> list[Row]:
    """The images of one fold, with the masks that make up each label."""
    structures = [structure for parts in labels for structure in parts]
    masks = {structure: published.images(f"{fold}/masks/{structure}/*") for structure in structures}
    for structure in structures:
        if not masks[structure].paths:
            raise published.error(f"there are no masks in {fold}/masks/{structure}")
    names = sorted({key_of(name): name for files in masks.values() for name in files.paths}.values())
    files = images.listed(names, f"{fold}/masks")
    outlines = {structure: masks[structure].listed(files, f"{fold}/masks") for structure in structures}
    rows = []
    for name in files:
        if all(name in outline for outline in outlines.values()):
            own = tuple(tuple(str(outlines[part][name].absolute()) for part in parts) for parts in labels)
            rows.append(Row(name, str(files[name].absolute()), own, sum(own, ())))
    return rows


def _check_folds(published: Published, train: Sequence[str], test: Sequence[str]) -> None:
    """Fold 1 has the odd numbers, fold 2 the even ones, and no radiograph is in both."""
    if shared := sorted(set(train) & set(test)):
        raise published.error(f"{len(shared)} radiographs are in both folds: {first(shared)}")
    if not any(_is_odd(name) for name in train) and all(_is_odd(name) for name in test):
        raise published.error(f"fold1 has even numbers ({first(train)}), fold2 odd ones: are the folds swapped?")


def _is_odd(name: str) -> bool:
    return name[-1] in "13579"


def read_heart(folder: Path, max_skipped_share: float = 0.0) -> Task:
    """Task `scr_heart`, Dice of the heart.

    Train and test are SCR's fold 1 and fold 2 (its own protocol also trains on 2 and tests on 1). Masks are published
    at 1024 x 1024, half the side of the radiographs: every pixel is repeated to the radiograph's size, nothing lost.

    Raises:
        TaskError: files are missing or not as published, or the folds are swapped.
    """
    return _read(folder, max_skipped_share, "scr_heart", {"heart": ["heart"]})


def read_clavicles(folder: Path, max_skipped_share: float = 0.0) -> Task:
    """Task `scr_clavicle`, Dice of both clavicles as one structure, `clavicles`; else as `read_heart`."""
    return _read(folder, max_skipped_share, "scr_clavicle", {"clavicles": ["left clavicle", "right clavicle"]})


def read_anatomy(folder: Path, max_skipped_share: float = 0.0) -> Task:
    """Task `scr_anatomy`, Dice of heart, lungs and clavicles, each lung and clavicle its own; else as `read_heart`."""
    labels = {structure.replace(" ", "_"): [structure] for structure in STRUCTURES}
    return _read(folder, max_skipped_share, "scr_anatomy", labels)
