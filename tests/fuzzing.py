"""Damaged and hostile input, by the thousand: every file gives what it holds, or one error that names it.

python -m tests.fuzzing --tries 10000

A sound file of a kind is damaged at random and read as the package reads it, in a process of its own, which a parent
watches: no crash, an end within `SECONDS` of its own, no more than `MEGABYTES` beyond what the process had.
`MAX_PIXELS` stands for PIL.Image.MAX_IMAGE_PIXELS. Reading may start no program, unpickle nothing, open no connection,
and open no file outside the folder that it was given. Every try is known by its kind and number: `--kinds tiff --only
123` repeats one.
"""

import argparse
import base64
import copy
import csv
import io
import json
import logging
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, suppress
from functools import cache, partial, wraps
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock
from xml.etree import ElementTree

import datasets
import numpy as np
import PIL.Image
import yaml
from PIL.PngImagePlugin import PngInfo

from eden_hf.data.annotations import load_references
from eden_hf.data.errors import SourceError
from eden_hf.data.reading import ImageReadError, image_sizes, read_image
from eden_hf.data.skips import TooManyUnreadable
from eden_hf.data.sources import load_source, read_cell
from eden_hf.data.tasks import TaskError, load_source_task, load_task

from .data.readers import layouts

SECONDS, MEGABYTES, MAX_PIXELS = 10, 256, 2**20
PATIENCE = 60 * SECONDS  # of the clock, for what waits
RESERVED = 6000  # MB of addresses: Arrow and threads reserve much more than they use
OUTSIDE = "outside.png"  # lies beside the folder that is read
#: Events of Python that no file may cause (see the audit events of its documentation).
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class", "socket.connect")


class FaultError(AssertionError):
    """What reading must not do."""


class Kind(NamedTuple):
    """A kind of file.

    Attributes:
        name: Of the file that is damaged, in the folder.
        sound: Fills a folder with the file and what goes with it.
        damage: Damages its bytes.
        read: Reads the folder, of which the file is at the given path.
        errors: What reading may raise; the message names the file.
    """

    name: str
    sound: Callable[[Path, random.Random], None]
    damage: Callable[[bytes, random.Random], bytes]
    read: Callable[[Path], None]
    errors: tuple[type[BaseException], ...]


# damage

NUMBERS = (0, 1, -1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF, 65500)


def bytes_damaged(data: bytes, rng: random.Random) -> bytes:
    """One to four changes: flipped, set, lost, repeated, moved, and the end cut off."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if not changed:
            break
        at, length = _place(changed, rng), rng.choice((1, 1, 2, 4, 8, 64))
        match rng.randrange(8):
            case 0:
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                changed[at] = rng.randrange(256)
            case 2 | 3:  # a number of 16 or 32 bits
                size, number = rng.choice(((2, ">H"), (4, ">I"), (2, "<H"), (4, "<I")))
                changed[at : at + size] = struct.pack(number, rng.choice(NUMBERS) % 2 ** (8 * size))
            case 4:
                del changed[at : at + length]
            case 5:
                changed[at:at] = changed[at : at + length] * rng.choice((1, 2, 500))
            case 6:
                changed[at : at + length] = rng.randbytes(length)
            case 7 if rng.random() < 0.3:
                del changed[at:]
    return bytes(changed)


def _place(data: bytearray, rng: random.Random) -> int:
    """Headers are hit as often as pixels."""
    return rng.randrange(len(data) if rng.random() < 0.5 else min(len(data), 256))


def png_damaged(data: bytes, rng: random.Random) -> bytes:
    """Half of the time with checksums that fit the damage, so that decoders go on."""
    changed = bytes_damaged(data, rng)
    if rng.random() < 0.5:
        return changed
    mended, at = changed[:8], 8
    while at + 12 <= len(changed):
        length = int.from_bytes(changed[at : at + 4], "big")
        body = changed[at + 4 : at + 8 + length]
        mended += changed[at : at + 4] + body + zlib.crc32(body).to_bytes(4, "big")
        at += 12 + length
    return mended + changed[at:]


#: What stands where another value was expected.
VALUES = (
    *(None, True, -1, 0, 0.5, 1e308, float("nan"), float("inf"), 10**30, "", "x", "1", "\0", "\ud83d", "9" * 5000),
    *([], {}, [[]], [None], {"a": None}, [1, 2, 3], [[1, 2], [3]], "x" * 20000, f"../{OUTSIDE}", f"./../{OUTSIDE}"),
    *("/etc/passwd", "file:///etc/passwd", "http://127.0.0.1:9/a.png", "C:\\a.png", "~/a.png", "*.png", "."),
)


def tree_damaged(tree: Any, rng: random.Random) -> Any:
    """A value of parsed JSON or YAML in place of another, lost, or repeated; one to three times."""
    tree = {"": tree}
    for _ in range(rng.randint(1, 3)):
        places = list(_places(tree))
        holder, key = rng.choice(places)
        match rng.randrange(5):
            case 0 if holder is not tree:
                del holder[key]
            case 1 if isinstance(holder, list):
                holder.insert(key, copy.deepcopy(holder[key]))
            case 2:
                other, name = rng.choice(places)
                holder[key] = copy.deepcopy(other[name])
            case _:
                holder[key] = copy.deepcopy(rng.choice(VALUES))
    return tree[""]


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    for key, value in list(tree.items() if isinstance(tree, dict) else enumerate(tree)):
        yield tree, key
        if isinstance(value, dict | list):
            yield from _places(value)


def json_damaged(data: bytes, rng: random.Random) -> bytes:
    """As a tree, as bytes, or nested without end."""
    if rng.random() < 0.02:
        return rng.choice((b"[", b'{"shapes":', b'[{"a":')) * rng.choice((900, 200_000))
    if rng.random() < 0.3:
        return bytes_damaged(data, rng)
    return json.dumps(tree_damaged(json.loads(data), rng)).encode()


def lines_damaged(data: bytes, rng: random.Random) -> bytes:
    """JSON, one a line."""
    if rng.random() < 0.3:
        return bytes_damaged(data, rng)
    return b"\n".join(json_damaged(line, rng) for line in data.splitlines())


def yaml_damaged(data: bytes, rng: random.Random) -> bytes:
    """As a tree, as bytes, nested without end, or with references that double at each line."""
    if rng.random() < 0.04:
        kind = rng.choice(("[*a{0}, *a{0}]", "{{<<: [*a{0}, *a{0}]}}"))
        doubled = "\n".join(f"a{n}: &a{n} {kind.format(n - 1)}" for n in range(1, 40))
        return rng.choice((b"[" * 50_000, b"a: " * 5000, f"a0: &a0 {{x: 1}}\n{doubled}\nmodel: *a39\n".encode()))
    if rng.random() < 0.3:
        return bytes_damaged(data, rng)
    return yaml.safe_dump(tree_damaged(yaml.safe_load(data), rng)).encode("utf-8", "surrogatepass")


def xml_damaged(data: bytes, rng: random.Random) -> bytes:
    """Attributes changed or lost, elements lost, repeated or moved; or bytes."""
    if rng.random() < 0.02:
        return b"<annotations>" + b"<image>" * 100_000
    if rng.random() < 0.3:
        return bytes_damaged(data, rng)
    root = ElementTree.fromstring(data)
    for _ in range(rng.randint(1, 3)):
        parents = [element for element in root.iter() if len(element)] or [root]
        element, parent = rng.choice(list(root.iter())), rng.choice(parents)
        match rng.randrange(4):
            case 0 if element.attrib:
                del element.attrib[rng.choice(list(element.attrib))]
            case 1 if len(parent):
                parent.append(rng.choice(list(parent)))
            case 2 if len(parent):
                parent.remove(rng.choice(list(parent)))
            case _ if element.attrib:
                value = str(rng.choice(VALUES)).replace("\0", "").encode("utf-8", "replace").decode()
                element.attrib[rng.choice(list(element.attrib))] = value
    return ElementTree.tostring(root)


def table_damaged(data: bytes, rng: random.Random) -> bytes:
    """Cells changed, lines lost, repeated or cut, another separator; or bytes."""
    if rng.random() < 0.3:
        return bytes_damaged(data, rng)
    rows = list(csv.reader(io.StringIO(data.decode())))
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(rows))
        match rng.randrange(5):
            case 0:
                rows.insert(at, list(rows[at]))
            case 1 if len(rows) > 1:
                del rows[at]
            case 2:
                rows[at] = rows[at][: rng.randrange(len(rows[at]) + 1)]
            case _ if rows[at]:
                rows[at][rng.randrange(len(rows[at]))] = str(rng.choice(VALUES))
    text = io.StringIO()
    csv.writer(text, delimiter=rng.choice(",,,;\t"), lineterminator=rng.choice(("\n", "\r\n", "\r"))).writerows(rows)
    return text.getvalue().encode(rng.choice(("utf-8", "utf-8-sig", "utf-16")), "replace")


# images


def _pixels(rng: random.Random, *shape: int, dtype: Any = np.uint8) -> np.ndarray:
    return np.random.default_rng(rng.randrange(2**32)).integers(0, 250, shape).astype(dtype)


def _picture(rng: random.Random, *modes: str) -> PIL.Image.Image:
    mode = rng.choice(modes)
    if mode == "I;16":
        return PIL.Image.fromarray(_pixels(rng, 24, 32, dtype=np.uint16) * 200)
    if mode == "F":
        return PIL.Image.fromarray(_pixels(rng, 24, 32, dtype=np.float32) / 255)
    return PIL.Image.fromarray(_pixels(rng, 24, 32, 3)).convert(mode)


def png(folder: Path, rng: random.Random) -> None:
    """With EXIF, resolution and text at times."""
    exif = PIL.Image.Exif()
    exif[0x0112] = rng.randint(1, 8)
    text = PngInfo()
    text.add_text("Comment", "words", zip=True)
    options = rng.choice(({}, {"exif": exif}, {"dpi": (300, 150)}, {"pnginfo": text}))
    _picture(rng, "L", "RGB", "I;16", "P", "LA", "RGBA", "1").save(folder / "a.png", **options)


def jpeg(folder: Path, rng: random.Random) -> None:
    """Grey, colour and CMYK, one scan or several."""
    exif = PIL.Image.Exif()
    exif[0x0112] = rng.randint(1, 8)
    options = rng.choice(({}, {"exif": exif}, {"dpi": (300, 150)}, {"progressive": True}))
    _picture(rng, "L", "RGB", "CMYK").save(folder / "a.jpg", **options)


def tiff(folder: Path, rng: random.Random) -> None:
    """Of every compression, one page or three."""
    compression = rng.choice((None, "tiff_lzw", "tiff_adobe_deflate", "packbits"))
    pages = {} if rng.random() < 0.7 else {"save_all": True, "append_images": [_picture(rng, "L")] * 2}
    options = rng.choice(({}, {"dpi": (300, 150)}, {"tiffinfo": {274: rng.randint(1, 8)}}, {"big_tiff": True}))
    picture = _picture(rng, "L", "RGB", "I;16", "F", "1", "P", "RGBA")
    picture.save(folder / "a.tif", compression=compression, **options, **pages)


def other_image(folder: Path, rng: random.Random) -> None:
    """GIF, WebP, BMP, PPM, JPEG 2000, TGA or ICO, all called GIF: PIL goes by the content."""
    formats = ("GIF", "WEBP", "BMP", "PPM", "JPEG2000", "TGA", "ICO", "PCX", "SGI", "DDS")
    _picture(rng, "L", "RGB").save(folder / "a.gif", format=rng.choice(formats))


def dicom(folder: Path, rng: random.Random) -> None:
    """Grey, colour, several frames; plain, deflated and compressed; with windows, look-up tables and spacings."""
    from pydicom.uid import (
        DeflatedExplicitVRLittleEndian,
        ExplicitVRBigEndian,
        ImplicitVRLittleEndian,
        JPEG2000Lossless,
        JPEGLSLossless,
        RLELossless,
    )

    from .data.test_dicom import dicom, lut, saved

    size = (36, 40)  # JPEG 2000 takes no less than 32
    pixels = rng.choice((_pixels(rng, *size, dtype=np.uint16) * 16, _pixels(rng, *size), _pixels(rng, *size, 3)))
    elements = rng.choice(
        (
            {},
            {"WindowCenter": 900, "WindowWidth": 400, "RescaleSlope": 1, "RescaleIntercept": -3},
            {"PixelSpacing": [0.5, 0.25], "PhotometricInterpretation": "MONOCHROME1"} if pixels.ndim == 2 else {},
            {"VOILUTSequence": lut(np.arange(256) * 255)},
            {"PixelPaddingValue": 0},
        )
    )
    plain = (ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
    syntax = {"syntax": rng.choice(plain)} if rng.random() < 0.4 else {}
    dataset = dicom(pixels, **syntax, **elements)
    if not syntax and rng.random() < 0.5:
        dataset.compress(rng.choice((RLELossless, JPEG2000Lossless, JPEGLSLossless)))
    (folder / "a.dcm").write_bytes(saved(dataset))


def read_picture(file: Path) -> None:
    """The picture, and its size from the header."""
    try:
        sizes = image_sizes(file, str(file)).picture
    except ImageReadError as error:
        _check_named(error, file)
        sizes = None
    picture = read_image(file)
    if picture.mode not in ("L", "RGB"):
        raise FaultError(f"a picture of mode {picture.mode}")
    if sizes is not None and picture.size != sizes:
        raise FaultError(f"a picture of {picture.size}, by its header {sizes}")


# data sets, weights and settings


def parquet(folder: Path, rng: random.Random) -> None:
    """Three images with ids and a number."""
    cells = [{"bytes": _encoded(_picture(rng, "L", "RGB")), "path": None} for _ in range(3)]
    rows = {"image": cells, "image_id": ["one", "two", "three"], "age": [1, None, 3]}
    data = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    data.to_parquet(folder / "train.parquet")


def _encoded(picture: PIL.Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def read_parquet(file: Path) -> None:
    """Every image of it; those that cannot be read are named by their rows."""
    for row in load_source(file, id_column="image_id"):
        try:
            read_cell(row["image"], row["source_id"])
        except ImageReadError as error:
            if not str(error).startswith(str(row["image"]["path"] if row["image"] else row["source_id"])[:20]):
                _check_named(error, Path(row["source_id"]))


@cache
def _tiny_model() -> Path:
    """A model folder of a tiny trunk."""
    from eden_hf import EdenImageProcessor, EdenModel

    from .tiny import tiny_config

    folder = Path(tempfile.mkdtemp())
    EdenModel(tiny_config()).save_pretrained(folder)
    EdenImageProcessor(size=32).save_pretrained(folder)
    return folder


def model_folder(folder: Path, rng: random.Random) -> None:
    """Weights, configuration and processor."""
    for file in _tiny_model().iterdir():
        shutil.copy(file, folder)


def read_model(file: Path) -> None:
    """As an encoder."""
    from eden_hf.encoders import load_encoder

    load_encoder(str(file.parent))


def read_weights(file: Path) -> None:
    """As a checkpoint of others."""
    from eden_hf.hub.conversion import read_checkpoint

    read_checkpoint(file)


def settings_file(name: str, folder: Path, rng: random.Random) -> None:
    """A recipe of the repository."""
    files = sorted((Path(__file__).parents[1] / "configs").glob(name))
    shutil.copy(rng.choice(files), folder / "config.yaml")


class BegunError(Exception):
    """The settings were taken, and the work of a command would begin."""


def read_config(command: str, work: str, more: tuple[str, ...], file: Path) -> None:
    """By the command, up to its work; it ends with status 2 and a message on what is wrong."""
    from eden_hf.cli import COMMANDS

    module, name = work.split(":")

    @wraps(getattr(import_module(module), name))
    def begin(*arguments: Any, **options: Any) -> None:
        raise BegunError

    said = io.StringIO()
    try:
        with redirect_stderr(said), mock.patch(f"{module}.{name}", begin), suppress(BegunError):
            COMMANDS[command]([f"--config={file}", *more])
    except SystemExit as error:
        if error.code != 2 or not re.search(rf"error: |^eden {command}: ", said.getvalue()):
            raise FaultError(f"ended with {error.code}: {said.getvalue()}") from error
        raise ValueError(f"{file.name}: {said.getvalue()}") from error  # which the command line named


def card_file(folder: Path, rng: random.Random) -> None:
    """What is declared of a model."""
    cards = Path(__file__).parents[1] / "model_cards"
    shutil.copy(rng.choice(sorted(cards.glob("*/card.yaml"))), folder / "card.yaml")


def read_card(file: Path) -> None:
    """As the card's writer does."""
    from eden_hf.hub.cards import EdenModelCardData

    EdenModelCardData.load(file)


# annotations


def two_images(folder: Path) -> None:
    """32 x 24 pixels each."""
    for name in ("a.png", "sub/b.png"):
        layouts.save(folder / name, layouts.pixels(len(name), 32, 24))


def points_table(folder: Path, rng: random.Random) -> None:
    """landmarks.csv."""
    two_images(folder)
    rows = (["a.png", "apex", 10, 20.5], ["a.png", "base", 1, 2], ["sub/b.png", "apex", 0, 0])
    layouts.write_table(folder / "landmarks.csv", ["image", "name", "x", "y"], *rows)


def coco(folder: Path, rng: random.Random) -> None:
    """Keypoints, polygons and run lengths."""
    two_images(folder)
    images = [{"id": n, "file_name": f, "width": 32, "height": 24} for n, f in enumerate(("a.png", "sub/b.png"))]
    runs = {"size": [24, 32], "counts": [10, 20, 32 * 24 - 30]}
    annotations = [
        {"id": 1, "image_id": 0, "category_id": 7, "keypoints": [1, 2, 2, 0, 0, 0], "segmentation": []},
        {"id": 2, "image_id": 0, "category_id": 7, "segmentation": [[1, 1, 9, 1, 9, 9]]},
        {"id": 3, "image_id": 1, "category_id": 7, "segmentation": runs},
    ]
    category = {"id": 7, "name": "lung", "keypoints": ["apex", "base"]}
    layouts.write_json(folder / "c.json", {"images": images, "annotations": annotations, "categories": [category]})


def labelme(folder: Path, rng: random.Random) -> None:
    """A point, a polygon, a rectangle and a mask."""
    two_images(folder)
    mask = base64.b64encode(_encoded(PIL.Image.new("1", (5, 4), 1))).decode()
    shapes = [
        {"label": "apex", "points": [[3.5, 4.5]], "shape_type": "point"},
        {"label": "lung", "points": [[1, 1], [9, 1], [9, 9]], "shape_type": "polygon"},
        {"label": "heart", "points": [[1, 1], [9, 7]], "shape_type": "rectangle"},
        {"label": "rib", "points": [[2, 2], [6, 5]], "shape_type": "mask", "mask": mask},
    ]
    content = {"imagePath": "a.png", "imageWidth": 32, "imageHeight": 24, "shapes": shapes}
    layouts.write_json(folder / "a.json", content)


CVAT = """<?xml version="1.0"?><annotations><version>1.1</version>
<image id="0" name="a.png" width="32" height="24">
<points label="apex" points="3.5,4.5"/><polygon label="lung" points="1,1;9,1;9,9"/>
<box label="heart" xtl="1" ytl="1" xbr="9" ybr="7"/>
<mask label="rib" rle="2,3,5" left="1" top="1" width="5" height="2"/>
<skeleton label="spine"><points label="top" outside="0" points="5,6"/></skeleton></image></annotations>"""


def cvat(folder: Path, rng: random.Random) -> None:
    """All shapes that are read."""
    two_images(folder)
    (folder / "a.xml").write_text(CVAT)


def mask(folder: Path, rng: random.Random) -> None:
    """A mask of a.png."""
    two_images(folder)
    layouts.save(folder / "masks" / "heart" / "a.png", (layouts.pixels(3, 32, 24) > 128).astype(np.uint8) * 255)


def read_annotations(file: Path) -> None:
    """References of the folder."""
    load_references(next(folder for folder in file.parents if (folder / "sub").is_dir()))


def metadata(name: str, folder: Path, rng: random.Random) -> None:
    """Labels and masks by file name."""
    two_images(folder)
    layouts.save(folder / "m.png", (layouts.pixels(3, 32, 24) > 128).astype(np.uint8) * 255)
    rows = [{"file_name": "a.png", "age": 3, "heart_file_name": "m.png"}, {"file_name": "sub/b.png", "age": 4.5}]
    if name.endswith("l"):
        (folder / name).write_text("\n".join(map(json.dumps, rows)))
    else:
        layouts.write_table(folder / name, rows[0], *[[row.get(column, "") for column in rows[0]] for row in rows])


def read_metadata(file: Path) -> None:
    """A regression and a segmentation."""
    load_source_task(file.parent, "regression", label_columns=["age"])


def read_task(name: str, file: Path) -> None:
    """A task by its name, and its first rows."""
    task = load_task(name, next(folder for folder in file.parents if folder.name == "given"))
    for split in task.splits.values():
        for cell in split[0].get("masks", []):
            read_cell(cell, "mask")


_OF_IMAGES = (ImageReadError,)
_OF_ANNOTATIONS = (SourceError, TooManyUnreadable, ImageReadError)
_OF_MODELS = (OSError, ValueError)
_OF_TASKS = (TaskError, SourceError, ImageReadError)


def _list(task: str, name: str, write: Callable[[Path], Any], damage: Callable) -> Kind:
    return Kind(name, lambda folder, rng: write(folder), damage, partial(read_task, task), _OF_TASKS)


def _of_command(command: str, work: str, recipes: str, *more: str) -> Kind:
    read = partial(read_config, command, work, more)
    return Kind("config.yaml", partial(settings_file, recipes), yaml_damaged, read, (ValueError,))


RIBS = "Data/train/Vindr_RibCXR_train_mask.json"
KINDS: Mapping[str, Kind] = {
    "png": Kind("a.png", png, png_damaged, read_picture, _OF_IMAGES),
    "jpeg": Kind("a.jpg", jpeg, bytes_damaged, read_picture, _OF_IMAGES),
    "tiff": Kind("a.tif", tiff, bytes_damaged, read_picture, _OF_IMAGES),
    "other images": Kind("a.gif", other_image, bytes_damaged, read_picture, _OF_IMAGES),
    "dicom": Kind("a.dcm", dicom, bytes_damaged, read_picture, _OF_IMAGES),
    "parquet": Kind("train.parquet", parquet, bytes_damaged, read_parquet, (SourceError, ImageReadError)),
    "safetensors": Kind("model.safetensors", model_folder, bytes_damaged, read_weights, (ValueError,)),
    "model weights": Kind("model.safetensors", model_folder, bytes_damaged, read_model, _OF_MODELS),
    "model config": Kind("config.json", model_folder, json_damaged, read_model, _OF_MODELS),
    "processor config": Kind("preprocessor_config.json", model_folder, json_damaged, read_model, _OF_MODELS),
    "pretraining config": _of_command("pretrain", "eden_hf.training.pretraining:Pretraining", "adam_*.yaml"),
    "fine-tuning config": _of_command("finetune", "eden_hf.training.finetuning:finetune", "finetune_*.yaml"),
    "few-shot config": _of_command(
        "few-shot", "eden_hf.evaluation.few_shot:compare_encoders", "few_shot_*.yaml", "--encoders", "a"
    ),
    "card.yaml": Kind("card.yaml", card_file, yaml_damaged, read_card, (ValueError,)),
    "landmarks.csv": Kind("landmarks.csv", points_table, table_damaged, read_annotations, _OF_ANNOTATIONS),
    "coco": Kind("c.json", coco, json_damaged, read_annotations, _OF_ANNOTATIONS),
    "labelme": Kind("a.json", labelme, json_damaged, read_annotations, _OF_ANNOTATIONS),
    "cvat": Kind("a.xml", cvat, xml_damaged, read_annotations, _OF_ANNOTATIONS),
    "mask": Kind("masks/heart/a.png", mask, png_damaged, read_annotations, _OF_ANNOTATIONS),
    "metadata.csv": Kind("metadata.csv", partial(metadata, "metadata.csv"), table_damaged, read_metadata, _OF_TASKS),
    "metadata.jsonl": Kind(
        "metadata.jsonl", partial(metadata, "metadata.jsonl"), lines_damaged, read_metadata, _OF_TASKS
    ),
    "chestxray14": _list("chestxray14", "Data_Entry_2017.csv", layouts.chestxray14, table_damaged),
    "vindr_cxr": _list("vindr_cxr", "annotations/image_labels_train.csv", layouts.vindr_cxr, table_damaged),
    "chestx_det": _list("chestx_det", "ChestX_Det_train.json", layouts.chestx_det, json_damaged),
    "siim_acr": _list("siim_acr", "train-rle.csv", layouts.siim_acr, table_damaged),
    "vindr_rib": _list("vindr_rib", RIBS, layouts.vindr_rib, json_damaged),
}

#: Those that take some hundredths of a second, for the caches and models that are made.
SLOW = (
    *("parquet", "model weights", "model config", "processor config", "pretraining config", "fine-tuning config"),
    *(
        "few-shot config",
        "card.yaml",
        "metadata.csv",
        "metadata.jsonl",
        "chestxray14",
        "vindr_cxr",
        "chestx_det",
        "siim_acr",
        "vindr_rib",
    ),
)


# trying


class Outcome(NamedTuple):
    """What became of one try: `read`, `refused`, or a `fault` that the text tells."""

    kind: str
    number: int
    what: str
    text: str = ""
    seconds: float = 0.0
    megabytes: float = 0.0
    died: bool = False


def attempt(name: str, number: int, folder: Path) -> Outcome:
    """One try, in this process; the damaged file stays in `folder`."""
    kind, rng = KINDS[name], random.Random(f"{name} {number}")
    given = folder / "given"
    shutil.rmtree(given, ignore_errors=True)
    given.mkdir(parents=True)
    PIL.Image.new("L", (32, 24), 3).save(folder / OUTSIDE)
    kind.sound(given, rng)
    file = given / kind.name
    file.write_bytes(kind.damage(file.read_bytes(), rng))
    started, events = time.process_time(), []
    _watched[:] = [given, events]
    try:
        kind.read(file)
        what, text = "read", ""
    except kind.errors as error:
        what, text = "refused", str(error)
        wrong = _wrongly_told(error, file)
        what, text = ("fault", wrong) if wrong else (what, text)
    except BaseException as error:  # pydicom and others raise anything
        what, text = "fault", f"{type(error).__name__}: {error}"
    finally:
        _watched.clear()
    if events:
        what, text = "fault", f"caused {events[0]}"
    return Outcome(name, number, what, text, time.process_time() - started)


_watched: list = []


def _audit(event: str, arguments: tuple) -> None:
    if not _watched:
        return
    given, events = _watched
    if event in FORBIDDEN:
        events.append(f"{event} {arguments}"[:200])
    elif event == "open" and isinstance(arguments[0], str | Path) and _is_outside(str(arguments[0]), given):
        events.append(f"open {arguments[0]}"[:200])


def _is_outside(path: str, given: Path) -> bool:
    return path.endswith((OUTSIDE, "passwd"))


def _check_named(error: BaseException, file: Path) -> None:
    if wrong := _wrongly_told(error, file):
        raise FaultError(wrong) from error


def _wrongly_told(error: BaseException, file: Path) -> str:
    """What is wrong with the message of an error, if anything."""
    message = str(error)
    if file.name not in message and file.parent.name not in message:
        return f"{type(error).__name__} does not name {file.name}: {message}"
    if re.search(r"MemoryError|[Cc]annot allocate|[Uu]nable to allocate", message):
        return f"ran out of memory: {message}"
    cause = message.replace(str(file), "")
    return "" if len(re.findall(r"[A-Za-z]{2,}", cause)) >= 2 else f"tells no cause: {message}"


def _megabytes(field: str) -> float:
    """`VmHWM`, the most memory since it was reset, or `VmRSS`, that of now (Linux)."""
    return int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


@cache
def watch() -> None:
    """Have `attempt` see what reading does, in this process."""
    sys.addaudithook(_audit)


def _work(connection: Any, tries: Sequence[tuple[str, int]], folder: Path, keep: Path | None) -> None:
    """Make tries in a process of their own, each told before it begins."""
    import torch

    torch.set_num_threads(1)
    watch()
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    datasets.disable_progress_bars()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff writes there
    PIL.Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    for name, number in tries:
        connection.send((name, number))
        before = _megabytes("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        limit = int((_megabytes("VmSize") + RESERVED) * 2**20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # which ends the process
        outcome = attempt(name, number, folder)
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        used = max(_megabytes("VmHWM") - before, 0)
        outcome = outcome._replace(megabytes=used)
        if used > MEGABYTES:
            outcome = outcome._replace(what="fault", text=f"{used:.0f} MB: {outcome.text}")
        _keep(outcome, folder, keep)
        connection.send(outcome)
    connection.send(None)


def outcomes(
    tries: Sequence[tuple[str, int]], keep: Path | None = None, start_method: str = "spawn"
) -> Iterator[Outcome]:
    """What becomes of tries; a process that hangs or dies is a fault of the try that it was at."""
    left = list(tries)
    with tempfile.TemporaryDirectory() as root:
        while left:
            mine, theirs = multiprocessing.Pipe()
            started = multiprocessing.get_context(start_method)
            worker = started.Process(target=_work, args=(theirs, left, Path(root), keep))
            worker.start()
            theirs.close()
            for outcome in _of_worker(mine, worker):
                left = left[1:]
                _keep(outcome, Path(root), keep if outcome.died else None)
                yield outcome


def _keep(outcome: Outcome, folder: Path, keep: Path | None) -> None:
    """A copy of the file that is at fault."""
    file = folder / "given" / KINDS[outcome.kind].name
    if keep is not None and outcome.what == "fault" and file.exists():
        keep.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, keep / f"{outcome.kind}-{outcome.number}{file.suffix}".replace(" ", "-"))


def _of_worker(connection: Any, worker: Any) -> Iterator[Outcome]:
    """Until the work is done, or a try has ended it."""
    at: tuple[str, int] | None = None
    try:
        while connection.poll(PATIENCE):
            message = connection.recv()
            if message is None:
                return
            if isinstance(message, Outcome):
                at = None
                yield message
            else:
                at = message
        fault = f"no end within {PATIENCE} s"
    except EOFError:
        worker.join(PATIENCE)
        hung = worker.exitcode == -signal.SIGPROF
        fault = f"no end within {SECONDS} s" if hung else f"the process died ({worker.exitcode})"
    finally:
        worker.kill()
        worker.join()
    if at is None:
        raise RuntimeError(f"the process that tries is of no use: {fault}")
    yield Outcome(*at, "fault", fault, SECONDS, died=True)


def plan(count: int, kinds: Sequence[str], first: int = 0) -> list[tuple[str, int]]:
    """So many tries of kinds in turn, of slow ones one in a round, of others four."""
    numbers = dict.fromkeys(kinds, first)
    tries: list[tuple[str, int]] = []
    while len(tries) < count:
        for kind in kinds:
            often = 1 if kind in SLOW else 4
            tries += [(kind, numbers[kind] + more) for more in range(often)]
            numbers[kind] += often
    return tries[:count]


def main() -> None:
    """Print a table of the tries by kind, and every fault; exit with 1 if there is one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=10_000)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND")
    parser.add_argument("--first", type=int, default=0, help="number of the first try of each kind")
    parser.add_argument("--only", type=int, help="number of the one try of each kind")
    parser.add_argument("--keep", type=Path, help="folder for the files that are at fault")
    chosen = parser.parse_args()
    tries = plan(chosen.tries, chosen.kinds, chosen.first)
    if chosen.only is not None:
        tries = [(kind, chosen.only) for kind in chosen.kinds]
    counts: dict[str, Counter] = {kind: Counter() for kind in chosen.kinds}
    slowest, largest = dict.fromkeys(chosen.kinds, 0.0), dict.fromkeys(chosen.kinds, 0.0)
    with suppress(KeyboardInterrupt):  # what was tried is told
        for outcome in outcomes(tries, chosen.keep):
            counts[outcome.kind][outcome.what] += 1
            slowest[outcome.kind] = max(slowest[outcome.kind], outcome.seconds)
            largest[outcome.kind] = max(largest[outcome.kind], outcome.megabytes)
            if outcome.what == "fault" or chosen.only is not None:
                print(f"{outcome.kind} {outcome.number}: {outcome.what}: {outcome.text[:500]}", flush=True)
    print("| kind | tries | read | refused | faults | slowest, s | most memory, MB |", "| --- " * 7 + "|", sep="\n")
    for kind, count in counts.items():
        row = (kind, count.total(), count["read"], count["refused"], count["fault"])
        print("", *row, f"{slowest[kind]:.1f}", f"{largest[kind]:.0f}", "", sep=" | ")
    total = sum(counts.values(), Counter())
    print(f"{total.total()} tries: {total['read']} read, {total['refused']} refused, {total['fault']} faults")
    sys.exit(int(total["fault"] > 0))


if __name__ == "__main__":
    main()
