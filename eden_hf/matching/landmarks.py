"""`eden landmarks`: the annotated points of references found in any number of images, as tables and pictures."""

import csv
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from PIL import Image
from tqdm.auto import tqdm

from eden_hf import __version__
from eden_hf.data.annotations import load_references
from eden_hf.data.errors import SourceError
from eden_hf.data.pictures import Pictures
from eden_hf.data.pixel_size import stored_point
from eden_hf.data.references import Reference
from eden_hf.data.skips import SKIPPED_FILE, SkipLog, left_out
from eden_hf.encoders import Encoder, load_encoder
from eden_hf.matching import adaptation
from eden_hf.matching.adaptation import ADAPT_STEPS
from eden_hf.matching.matcher import AnatomyMatcher, FoundPoint

logger = logging.getLogger(__name__)

TABLE = "landmarks.csv"
COLUMNS = {
    "image": pa.string(), "name": pa.string(), "x": pa.float64(), "y": pa.float64(),
    "confidence": pa.float64(), "found": pa.bool_(), "x_mm": pa.float64(), "y_mm": pa.float64(),
}  # fmt: skip
#: Images of the contact sheet, with a reference, and the pixels of their longer side.
SHEET_IMAGES, SHEET_SIDE = 20, 384


class Landmarks(NamedTuple):
    """What `find_landmarks` did: the files it wrote, and how many images were searched, unreadable, and points missed.

    Attributes:
        files: Tables and pictures.
        images: In how many the points were looked for.
        unreadable: How many could not be read; they are in `skipped.jsonl`.
        points: How many points were looked for in all.
        not_found: How many of these have no counterpart.
    """

    files: list[Path]
    images: int
    unreadable: int
    points: int
    not_found: int


class _Sketch(NamedTuple):
    """A small copy of an image with its points, for the contact sheet."""

    image: Image.Image
    points: dict[str, FoundPoint]
    title: str


def find_landmarks(
    model: str,
    references: str,
    images: list[str],
    output: str = "outputs/landmarks",
    unlabelled: str | None = None,
    adapt: str | None = None,
    adapt_steps: int = ADAPT_STEPS,
    overlays: bool = False,
    split: str | None = None,
    id_column: str | None = None,
) -> Landmarks:
    """Find the points of annotated references in other images.

    Writes into `output`, once all images are searched:

    - `landmarks.csv`: a line a point, `image,name,x,y,confidence,found,x_mm,y_mm`. `x` and `y` are pixel indices in
      the upright image as stored ((0, 0) is the centre of its top left pixel); millimetres count from there too, and
      are empty where the image does not tell its pixels' size. Points that are not found (`false`) have the place that
      is most like them. Corrected by hand and laid beside the images, it is a table of references;
    - `landmarks.parquet`: the same;
    - `contact_sheet.png`: a reference and up to 20 of the images, evenly chosen;
    - `overlays/IMAGE.png`, if asked;
    - `adapted/`, the run of `adapt`, if asked;
    - `skipped.jsonl`: images that cannot be read, if any.

    Args:
        model: Any image encoder, as for `eden_hf.encoders.load_encoder`; one with a dense decoder finds points best.
        references: Annotated images, as for `eden_hf.data.annotations.load_references`.
        images: Image files, a folder of them (DICOM too), or a data set.
        output: Folder for the results.
        unlabelled: Images without annotation, of the same kind, as go-betweens: a folder or a data set.
        adapt: Images without annotation (a folder or a data set; the searched ones, say) to go on training on first,
            with the dense stage. The adapted model searches if it finds its way there and back better than before,
            as is logged (see `eden_hf.matching.adaptation.adapt`).
        adapt_steps: Optimiser steps of that, of 8 images each: about half a second each on one CPU core.
        overlays: Whether each image is drawn with its points.
        split: Split of a data set of images; all by default.
        id_column: Column of a data set whose values name the images.

    Raises:
        SourceError: nothing is annotated, no image can be read, or `output` holds results already.
        ValueError: the model has no dense decoder to adapt, or there are too few images to adapt it to.
        TooManyUnreadable: no reference can be read.
    """
    folder = Path(output)
    if (folder / TABLE).exists():
        raise SourceError(
            f"{folder / TABLE} is there already, maybe corrected by hand: move it, or name another output"
        )
    annotated = load_references(references)
    if not any(reference.points for reference in annotated):
        raise SourceError(f"{references} has masks but no points")
    pictures = Pictures(images, split=split, id_column=id_column)
    folder.mkdir(parents=True, exist_ok=True)
    skips = SkipLog(folder / SKIPPED_FILE, max_share=1)
    encoder = load_encoder(model)
    if adapt is not None:
        encoder = _adapted(model, encoder, annotated, adapt, folder / "adapted", adapt_steps)
    matcher = AnatomyMatcher(encoder, annotated, unlabelled=_go_betweens(unlabelled, skips))
    begun = folder / f".{TABLE}"
    with begun.open("w", encoding="utf-8", newline="") as file:
        result = _search(matcher, pictures, skips, file, folder / "overlays" if overlays else None)
    if not result.images:
        begun.unlink()
        raise SourceError(f"no image can be searched: {left_out(skips.entries)}; {skips.path} says why of each")
    files = [*_tables(begun, folder, matcher), folder / "contact_sheet.png"]
    _draw([_reference_sketch(annotated), *result.sketches], files[-1])
    unreadable = sum(not entry.get("no_image") for entry in skips.entries)
    return Landmarks(files, result.images, unreadable, result.points, result.not_found)


def _adapted(
    model: str, encoder: Encoder, references: list[Reference], images: str, output: Path, steps: int
) -> Encoder:
    """The encoder adapted to the images, if that made it better; else as it was."""
    pointed = [reference for reference in references if reference.points]
    adapted = adaptation.adapt(model, pointed, images, output, steps=steps)
    if not adapted.helped:
        logger.warning("adapting did not help: the model as given, %s, searches", model)
        return encoder
    return load_encoder(str(adapted.folder))


class _Result(NamedTuple):
    sketches: list[_Sketch]
    images: int
    points: int
    not_found: int


def _go_betweens(unlabelled: str | None, skips: SkipLog) -> Iterator[Image.Image]:
    if unlabelled is not None:
        pictures = Pictures([unlabelled])
        for _, _, picture in tqdm(pictures.read(skips, role="unlabelled"), total=len(pictures), desc="unlabelled"):
            yield picture


def _search(
    matcher: AnatomyMatcher, pictures: Pictures, skips: SkipLog, file: TextIO, overlays: Path | None
) -> _Result:
    """Write the lines of every image, and keep sketches of some."""
    table = csv.writer(file, lineterminator="\n")
    table.writerow(COLUMNS)
    shown = set(np.linspace(0, len(pictures) - 1, SHEET_IMAGES).round().astype(int).tolist())
    sketches: list[_Sketch] = []
    images = points = missed = 0
    with tqdm(total=len(pictures), desc="landmarks", unit="image") as bar:
        for index, name, picture in pictures.read(skips):
            found = matcher.find(picture)
            table.writerows(_lines(name, picture, found))
            images, points = images + 1, points + len(found)
            missed += sum(not point.found for point in found.values())
            if index in shown:
                sketches.append(_sketch(picture, found, name, SHEET_SIDE))
            if overlays is not None:
                _draw([_sketch(picture, found, name)], _inside(overlays, name))
            bar.update(index + 1 - bar.n)
        bar.update(len(pictures) - bar.n)
    return _Result(sketches, images, points, missed)


def _lines(image: str, picture: Image.Image, found: Mapping[str, FoundPoint]) -> Iterator[list[Any]]:
    """The lines of one image; half a hundredth of a pixel is lost."""
    spacing = picture.info.get("pixel_spacing_mm")
    stored = picture.info["stored_size"]
    for name, point in found.items():
        x, y = stored_point(picture, point.x, point.y)
        mm = [""] * 2
        if spacing is not None:
            sides = (side * of / to for side, of, to in zip(spacing, picture.size, stored, strict=True))
            mm = [f"{value * side:.2f}" for value, side in zip((x, y), sides, strict=True)]
        yield [image, name, f"{x:.2f}", f"{y:.2f}", f"{point.confidence:.3f}", str(point.found).lower(), *mm]


def _tables(begun: Path, folder: Path, matcher: AnatomyMatcher) -> list[Path]:
    """Put the finished table in its place, and the same as Parquet beside it."""
    convert = pyarrow.csv.ConvertOptions(column_types=COLUMNS, strings_can_be_null=False)
    table = pyarrow.csv.read_csv(begun, convert_options=convert)
    made_by = {"model": matcher.encoder.name, "revision": matcher.encoder.revision or "", "eden_hf": __version__}
    files = [folder / TABLE, folder / "landmarks.parquet"]
    pyarrow.parquet.write_table(table.replace_schema_metadata(made_by), files[1])
    begun.replace(files[0])
    return files


def _reference_sketch(references: list[Reference]) -> _Sketch:
    reference = next(reference for reference in references if reference.points)
    points = {name: FoundPoint(x, y, 1, True) for name, (x, y) in reference.points.items()}
    return _sketch(reference.image, points, f"reference: {reference.name}", SHEET_SIDE)


def _sketch(picture: Image.Image, points: Mapping[str, FoundPoint], title: str, side: int | None = None) -> _Sketch:
    """A copy of no more than `side` pixels, with the points where they then are."""
    scale = min(1.0, (side or max(picture.size)) / max(picture.size))
    small = picture.resize([max(1, round(length * scale)) for length in picture.size], Image.Resampling.BOX)
    across, down = (new / old for new, old in zip(small.size, picture.size, strict=True))
    moved = {
        name: point._replace(x=(point.x + 0.5) * across - 0.5, y=(point.y + 0.5) * down - 0.5)
        for name, point in points.items()
    }
    return _Sketch(small, moved, title)


def _inside(folder: Path, name: str) -> Path:
    """The file of a drawing of an image; a name that leads out of the folder is refused."""
    file = folder / f"{name}.png"
    if not file.resolve().is_relative_to(folder.resolve()):
        raise SourceError(f"image {name!r} names a place outside {folder}; name another id_column")
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def _draw(sketches: list[_Sketch], file: Path) -> None:
    from eden_hf.plots import plot_landmarks  # which needs matplotlib

    images, points, titles = zip(*sketches, strict=True)
    plot_landmarks(images, points, titles).savefig(file, dpi=110)
