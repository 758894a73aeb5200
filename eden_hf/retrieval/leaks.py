"""Images that two sources share: of a pretraining set in a test set, say.

An image is found again by its id, by its pixels, and by its looks (`eden_hf.retrieval.looks`): scaled, compressed,
brightened, mirrored, or with up to a tenth of a side cut off. Not found are turned, inverted and strongly cut copies.
Another radiograph of the same patient is found where columns of both sources tell patients.
"""

import csv
import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset
from torch.utils.data import DataLoader

from eden_hf.data.folders import IMAGE_SUFFIXES
from eden_hf.data.patients import told_patients
from eden_hf.data.progress import progress_bar
from eden_hf.data.reading import ImageReadError
from eden_hf.data.skips import SKIPPED_FILE, SkipLog
from eden_hf.data.sources import find_source, read_cell
from eden_hf.data.workers import check_workers, obey_parent
from eden_hf.retrieval.embedding import worker_count
from eden_hf.retrieval.looks import SIDE, alike, small_picture

#: Similarity of looks from which two images are one (`scripts/measure_leaks.py` shows what it parts).
SAME = 0.93


class Leak(NamedTuple):
    """An image that two sources share.

    Attributes:
        a, b: Its ids, the split before them where a source has several.
        found_by: `id`, `patient`, `pixels`, `looks`, or some of them with `+` between.
        similarity: Of looks, as of `eden_hf.retrieval.looks.alike`; 0 where they are not alike.
    """

    a: str
    b: str
    found_by: str
    similarity: float


class LeakReport(NamedTuple):
    """What `find_leaks` found.

    Attributes:
        file: CSV of the leaks, with the fields of `Leak`.
        leaks: Those that are in it.
        images: Numbers of images of the two sources.
        unreadable: Images that could not be read, so not compared but by id; listed in `skipped_file`.
    """

    file: Path
    leaks: list[Leak]
    images: tuple[int, int]
    unreadable: int
    skipped_file: Path


class _Pictures(NamedTuple):
    """What is compared of a source: labels, ids (none where rows have only numbers), whose, hashes, small pictures."""

    labels: list[str]
    ids: list[str | None]
    patients: list[str | None]  # of columns that tell them
    hashes: list[str | None]  # None where the image could not be read, whose small picture is black
    small: np.ndarray  # float32 [N, 64, 64]


def find_leaks(
    a: str,
    b: str,
    output: str = "leaks.csv",
    split_a: str | None = None,
    split_b: str | None = None,
    image_column_a: str = "image",
    image_column_b: str = "image",
    id_column_a: str | None = None,
    id_column_b: str | None = None,
    patient_column_a: str | None = None,
    patient_column_b: str | None = None,
    num_workers: int | None = None,
) -> LeakReport:
    """Find the images that two sources share; see the module's text for how.

    Args:
        a: A source, as for `eden_hf.data.sources.load_source`: that of pretraining, say.
        b: Another, the test images, say. Of each of these the eight likest of `a` are looked at closely.
        output: CSV file to write.
        split_a: Split of `a`; by default all of them.
        split_b: Split of `b`; by default all of them.
        image_column_a: Column of images of `a`.
        image_column_b: Column of images of `b`.
        id_column_a: Column of `a` whose values name its images; row numbers, which `a` has without, are not compared.
        id_column_b: The same of `b`.
        patient_column_a: Column of `a` that tells patients apart: images of a patient whom both have are found too.
        patient_column_b: The same of `b`.
        num_workers: Processes that decode; by default all processors, 0 for this process alone.

    Raises:
        SourceError: a source is absent, empty or not of the shape asked for.
        ValueError: `num_workers` is negative, or a column tells the patients of one source alone.
    """
    check_workers(num_workers, "--num-workers")
    if (patient_column_a is None) != (patient_column_b is None):
        raise ValueError("give --patient-column-a and --patient-column-b, or neither: patients are compared by both")
    file = Path(output)
    file.parent.mkdir(parents=True, exist_ok=True)
    skipped_file = file.with_name(f"{file.stem}-{SKIPPED_FILE}")
    skips = SkipLog(skipped_file, max_share=1.0)
    first = _pictures(a, split_a, image_column_a, id_column_a, patient_column_a, num_workers, skips)
    second = _pictures(b, split_b, image_column_b, id_column_b, patient_column_b, num_workers, skips)
    found: dict[tuple[int, int], list[str]] = defaultdict(list)
    compared = {
        "id": (first.ids, second.ids),
        "patient": (first.patients, second.patients),
        "pixels": (first.hashes, second.hashes),
    }
    for kind, (ours, theirs) in compared.items():
        for pair in _equal(ours, theirs):
            found[pair].append(kind)
    looks = {pair: score for pair, score in alike(first.small, second.small) if score >= SAME}
    for pair in looks:
        found[pair].append("looks")
    leaks = [
        Leak(first.labels[i], second.labels[j], "+".join(kinds), round(looks.get((i, j), 0.0), 3))
        for (i, j), kinds in sorted(found.items())
    ]
    with file.open("w", newline="", encoding="utf-8") as opened:
        csv.writer(opened).writerows([Leak._fields, *leaks])
    return LeakReport(file, leaks, (len(first.labels), len(second.labels)), skips.count, skipped_file)


def _pictures(
    name: str,
    split: str | None,
    image_column: str,
    id_column: str | None,
    patient_column: str | None,
    workers: int | None,
    skips: SkipLog,
) -> _Pictures:
    source = find_source(name)
    splits = source.splits if split is None else (split,)
    all_of = _Pictures([], [], [], [], np.empty((0, SIDE, SIDE), np.float32))
    small = []
    for split in splits:
        rows = source.load(split, image_column=image_column, id_column=id_column)
        ids = rows["source_id"]
        numbers = id_column is None and list(ids) == [str(number) for number in range(len(rows))]
        all_of.labels.extend(f"{split}/{id_}" if len(splits) > 1 else id_ for id_ in ids)
        all_of.ids.extend([None] * len(rows) if numbers else map(_plain, ids))
        all_of.patients.extend(told_patients(rows, patient_column) if patient_column else [None] * len(rows))
        for digest, picture, fault in _read(rows, f"{name} {split}", workers):
            if fault:
                skips.add(**fault)
            all_of.hashes.append(digest)
            small.append(picture)
    return all_of._replace(small=np.stack(small))


def _plain(id_: str) -> str:
    """An id without what changes when a file is converted: its suffix and the case of its letters."""
    stem, dot, suffix = id_.casefold().rpartition(".")
    return stem if f"{dot}{suffix}" in IMAGE_SUFFIXES else id_.casefold()


_Compared = tuple[str | None, np.ndarray, dict[str, str] | None]  # hash, small picture, why it could not be read


def _read(rows: Dataset, title: str, workers: int | None) -> Iterator[_Compared]:
    loader = DataLoader(
        rows.select_columns(["image", "source_id"]),
        batch_size=32,
        num_workers=worker_count(len(rows)) if workers is None else workers,
        collate_fn=_compared,
        worker_init_fn=obey_parent,
    )
    with progress_bar(total=len(rows), desc=title, unit="image", shown=len(rows) > 1) as bar:
        for batch in loader:
            bar.update(len(batch))
            yield from batch


def _compared(rows: Sequence[Mapping[str, Any]]) -> list[_Compared]:
    made: list[_Compared] = []
    for row in rows:
        try:
            picture = read_cell(row["image"], row["source_id"]).convert("L")
        except ImageReadError as error:
            fault = {"source_id": row["source_id"], "reason": str(error)}
            made.append((None, np.zeros((SIDE, SIDE), np.float32), fault))
            continue
        digest = hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).hexdigest()
        made.append((digest, small_picture(picture), None))
    return made


def _equal(first: Sequence[str | None], second: Sequence[str | None]) -> Iterator[tuple[int, int]]:
    """Places of equal values of two lists."""
    places = defaultdict(list)
    for place, value in enumerate(first):
        places[value].append(place)
    for other, value in enumerate(second):
        if value is not None:
            yield from ((place, other) for place in places.get(value, ()))
