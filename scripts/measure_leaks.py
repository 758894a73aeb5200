"""How well `eden leaks` finds copies again: planted ones, changed as copies are, among all images of a source.

python scripts/measure_leaks.py --source cxr-pretrain --split validation
"""

from collections.abc import Callable
from io import BytesIO

import numpy as np
from jsonargparse import auto_cli
from PIL import Image
from PIL.Image import Transpose

from eden_hf.data.sources import load_source, read_cell
from eden_hf.retrieval.leaks import SAME
from eden_hf.retrieval.looks import alike, small_picture
from eden_hf.training.settings import ConfigParser

Change = Callable[[Image.Image, np.random.Generator], Image.Image]


def recompressed(image: Image.Image, quality: int) -> Image.Image:
    """Through JPEG and back."""
    buffer = BytesIO()
    image.convert("L").save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("L")


def rescaled(image: Image.Image, across: float, down: float) -> Image.Image:
    """By a factor for each side."""
    return image.resize((round(image.width * across), round(image.height * down)), Image.Resampling.BICUBIC)


def cropped(image: Image.Image, share: float, rng: np.random.Generator) -> Image.Image:
    """Without a share of each side, cut at random from its two ends."""
    left, top = (rng.uniform(0, share) for _ in range(2))
    ends = (left, top, left + 1 - share, top + 1 - share)
    return image.crop(tuple(round(end * side) for end, side in zip(ends, image.size * 2, strict=True)))


CHANGES: dict[str, Change] = {
    "half the size": lambda image, rng: rescaled(image, 0.5, 0.5),
    "another aspect ratio": lambda image, rng: rescaled(image, 1.5, 1.2),
    "JPEG, quality 30": lambda image, rng: recompressed(image, 30),
    "brightened (gamma 0.6)": lambda image, rng: image.point(lambda value: 255 * (value / 255) ** 0.6),
    "mirrored": lambda image, rng: image.transpose(Transpose.FLIP_LEFT_RIGHT),
    "cropped 5 %": lambda image, rng: cropped(image, 0.05, rng),
    "cropped 10 %": lambda image, rng: cropped(image, 0.10, rng),
    "cropped 15 %": lambda image, rng: cropped(image, 0.15, rng),
    "cropped 5 %, mirrored, 0.6 of the size, JPEG 40": lambda image, rng: recompressed(
        rescaled(cropped(image, 0.05, rng).transpose(Transpose.FLIP_LEFT_RIGHT), 0.6, 0.6), 40
    ),
}


def measure_leaks(
    source: str, split: str = "train", id_column: str | None = None, copies: int = 200, seed: int = 0
) -> None:
    """Print, for each change, how many planted copies were found, and the pairs that were found besides.

    Args:
        source: Of images, as for `eden leaks`.
        split: Of the source.
        id_column: Column whose values name the images.
        copies: How many images are planted, changed.
        seed: Of which they are, and where they are cut.
    """
    rng = np.random.default_rng(seed)
    rows = load_source(source, split=split, id_column=id_column)
    images = [read_cell(row["image"], row["source_id"]) for row in rows]
    small = np.stack([small_picture(image) for image in images])
    planted = rng.permutation(len(images))[:copies]
    print(f"{len(planted)} copies among {len(images)} images of {source}, split {split}")
    print("| change | found | lowest similarity | pairs besides | highest similarity besides |\n" + "| --- " * 5 + "|")
    known: dict[tuple[str, str], float] = {}
    for name, change in CHANGES.items():
        changed = np.stack([small_picture(change(images[index], rng)) for index in planted])
        own, others = np.zeros(len(changed)), [0.0]
        for (place, copy), similarity in alike(small, changed):
            if place == planted[copy]:
                own[copy] = similarity
            else:
                others.append(similarity)
                if similarity >= SAME:
                    known[rows[int(planted[copy])]["source_id"], rows[place]["source_id"]] = similarity
        besides = sum(similarity >= SAME for similarity in others)
        print(f"| {name} | {(own >= SAME).mean():.1%} | {own.min():.3f} | {besides} | {max(others):.3f} |", flush=True)
    print("pairs besides, which may be copies that the source itself holds:", known)


if __name__ == "__main__":
    auto_cli(measure_leaks, as_positional=False, parser_class=ConfigParser)
