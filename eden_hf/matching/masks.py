"""Masks from one or more annotated examples: of a folder of images as PNG, DICOM SEG and a contact sheet."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from tqdm.auto import tqdm

import eden_hf
from eden_hf.data.annotations import load_references
from eden_hf.data.dicom_seg import write_dicom_seg
from eden_hf.data.errors import SourceError, first
from eden_hf.data.pictures import Pictures
from eden_hf.data.references import Reference, mask_names
from eden_hf.data.skips import SKIPPED_FILE, SkipLog
from eden_hf.encoders import Encoder, load_encoder
from eden_hf.matching.matcher import AnatomyMatcher
from eden_hf.matching.pixel_classifier import PixelClassifier

Method: TypeAlias = Literal["classifier", "carry"]
SHEET_FILE = "contact_sheet.png"
SEG_FOLDER = "dicom-seg"
#: Of outlines, told apart by the colour-blind as well; a structure's is that of its place among the names.
COLOURS = ("#56B4E9", "#E69F00", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2")
_TILE = 240  # pixels a side of a picture on the contact sheet
_MOST_TILES = 60


class WrittenMasks(NamedTuple):
    """What `write_masks` did: the `images` that got masks, `names` of structures, images `skipped`, and `output`."""

    images: list[str]
    names: list[str]
    skipped: int
    output: Path


def find_masks(
    model: str,
    references: str,
    images: list[str],
    output: str = "outputs/masks",
    method: Method = "classifier",
    dicom_seg: bool = False,
    seed: int = 0,
) -> WrittenMasks:
    """Find the structures that annotated examples show in a folder of images: masks as PNG, and as DICOM SEG.

    Args:
        model: As for `load_encoder`; best one with a dense decoder.
        references: Annotated images: a folder with masks, or what else `load_references` reads.
        images: Image files, a folder of them (DICOM too), or a data set.
        output: Folder to write to.
        method: `classifier` learns from the pixels of the references; `carry` brings their masks over by a smooth map.
        dicom_seg: Also write DICOM segmentations of the images that are DICOM.
        seed: Of the classifier.

    Raises:
        OSError: there is no such model.
        SourceError, TooManyUnreadable: as `load_references` and `write_masks`.
    """
    encoder = load_encoder(model)
    return write_masks(
        encoder, load_references(references), images, output, method=method, dicom_seg=dicom_seg, seed=seed
    )


def write_masks(
    encoder: Encoder,
    references: Sequence[Reference],
    images: Sequence[str],
    output: str | Path,
    *,
    method: Method = "classifier",
    dicom_seg: bool = False,
    seed: int = 0,
) -> WrittenMasks:
    """Find the structures of references in other images, and write them.

    Of the image `a/b.dcm` the folder gets `NAME/a/b.png` for each structure, 0 and 255 at the image's own size, and
    one picture on `contact_sheet.png` (of the first 60 images). Images that cannot be read are listed in
    `skipped.jsonl`.

    Args:
        encoder: From `load_encoder`; best one with a dense decoder.
        references: At least one with a mask.
        images: Image files, a folder with all below it, or a data set.
        output: Folder.
        method: As in `find_masks`.
        dicom_seg: Also write `dicom-seg/a/b.dcm` of each image that is DICOM.
        seed: Of the classifier.

    Raises:
        SourceError: no reference has a mask, a structure's name cannot be that of a folder, there are no images, two
            of them would give the same file, or with `dicom_seg` none is DICOM or one's header does not do.
        TooManyUnreadable: none of them can be read.
    """
    names, output = mask_names(references), Path(output)
    if not names:
        raise SourceError(f"none of the {len(references)} references has a mask")
    if unfit := [name for name in names if Path(name).name != name or name in (SEG_FOLDER, "..")]:
        raise SourceError(f"these names of structures cannot be names of folders: {unfit}; call them otherwise")
    pictures = Pictures(images)
    _refuse_twins(pictures.names)
    sources = [file if dicom_seg and file and _is_dicom(file) else None for file in pictures.files]
    if dicom_seg and not any(sources):
        raise SourceError(f"none of the {len(pictures)} images of {images[0]} is a DICOM file: leave out --dicom_seg")
    find = _finder(encoder, references, method, seed)
    skips = SkipLog(output / SKIPPED_FILE, max_share=1)
    done: list[str] = []
    tiles: list[Image.Image] = []
    for index, name, image in tqdm(pictures.read(skips), total=len(pictures), desc="masks", unit="image"):
        masks, place = find(image), PurePosixPath(name).with_suffix("")
        _write_pngs(masks, output, place)
        if (source := sources[index]) is not None:
            target = output / SEG_FOLDER / f"{place}.dcm"
            write_dicom_seg(source, masks, target, algorithm=f"eden_hf masks, {method}", **_origin(encoder))
        if len(tiles) < _MOST_TILES:
            tiles.append(tile(image, masks, name))
        done.append(name)
    skips.check(len(pictures))
    if not done:
        raise SourceError(f"none of the {len(pictures)} files of {images[0]} holds an image")
    contact_sheet(tiles, names).save(output / SHEET_FILE)
    return WrittenMasks(done, names, skips.count, output)


def _finder(
    encoder: Encoder, references: Sequence[Reference], method: Method, seed: int
) -> Callable[[Image.Image], Mapping[str, np.ndarray]]:
    if method == "carry":
        return AnatomyMatcher(encoder, references).carry_masks
    return PixelClassifier(encoder, seed=seed).fit(references).predict


def _origin(encoder: Encoder) -> dict[str, str]:
    """What a file says of the program and the model, without folders of this machine."""
    model = Path(encoder.name).name or "unknown"
    return {"version": eden_hf.__version__, "model": f"{model} {encoder.revision or ''}".strip()}


def _refuse_twins(images: Sequence[str]) -> None:
    """Images whose masks would be the same files, or lie elsewhere."""
    places: dict[PurePosixPath, list[str]] = {}
    for image in images:
        place = PurePosixPath(image)
        if place.is_absolute() or ".." in place.parts:
            raise SourceError(f"the masks of {image} would lie outside the output folder; name it otherwise")
        places.setdefault(place.with_suffix(""), []).append(image)
    if twins := [" and ".join(same) for same in places.values() if len(same) > 1]:
        raise SourceError(f"the masks of {first(twins)} would be the same files; rename one")


def _is_dicom(file: Path) -> bool:
    """By the mark at byte 128, or by the suffix."""
    with file.open("rb") as content:
        return content.read(132)[128:] == b"DICM" or file.suffix.lower() in (".dcm", ".dicom")


def _write_pngs(masks: Mapping[str, np.ndarray], output: Path, place: PurePosixPath) -> None:
    for name, mask in masks.items():
        file = output / name / f"{place}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).save(file)


# the contact sheet


def tile(image: Image.Image, masks: Mapping[str, np.ndarray], title: str) -> Image.Image:
    """A small picture of an image with the outlines of its masks and its name below, `[_TILE + line, _TILE]` RGB."""
    shrunk = image.convert("RGB")
    shrunk.thumbnail((_TILE, _TILE))
    for (_, mask), colour in zip(masks.items(), _colours(), strict=False):
        inside = Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).resize(shrunk.size, Image.Resampling.BOX)
        solid = inside.point(lambda value: 255 * (value > 127))
        border = Image.fromarray(np.asarray(solid) - np.asarray(solid.filter(ImageFilter.MinFilter(3))))
        shrunk.paste(colour, mask=border)
    made = Image.new("RGB", (_TILE, _TILE + 14), "white")
    made.paste(shrunk, ((_TILE - shrunk.width) // 2, (_TILE - shrunk.height) // 2))
    ImageDraw.Draw(made).text((2, _TILE + 1), title[-40:], fill="black")
    return made


def contact_sheet(tiles: Sequence[Image.Image], names: Sequence[str], columns: int = 5) -> Image.Image:
    """Tiles side by side, and below them which colour is which structure's."""
    columns = min(columns, len(tiles))
    width, height = tiles[0].size
    rows = -(-len(tiles) // columns)
    legend = [(name, colour) for name, colour in zip(names, _colours(), strict=False)]
    sheet = Image.new("RGB", (columns * width, rows * height + 14 * len(legend) + 6), "white")
    for index, made in enumerate(tiles):
        sheet.paste(made, (index % columns * width, index // columns * height))
    brush = ImageDraw.Draw(sheet)
    for index, (name, colour) in enumerate(legend):
        y = rows * height + 3 + 14 * index
        brush.rectangle((3, y + 2, 13, y + 11), fill=colour)
        brush.text((18, y), name, fill="black")
    return sheet


def _colours() -> Iterator[str]:
    while True:
        yield from COLOURS
