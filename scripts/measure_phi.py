"""How well `eden check-phi` finds text burned into images: planted in many fonts, sizes and places, and in real ones.

python scripts/measure_phi.py                                       # text planted in chest phantoms; none, and L or R
python scripts/measure_phi.py --source scr --split test             # planted in radiographs; and what is found without
"""

from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
from jsonargparse import auto_cli
from PIL import Image, ImageDraw, ImageFont

from eden_hf.data.phantoms import draw_phantom
from eden_hf.data.phi.burned_in import find_text
from eden_hf.data.sources import load_source, read_cell
from eden_hf.training.settings import ConfigParser

WORDS = ("DOE^JANE", "Smith, John 01/02/1956", "MRN 4471203", "Hospital St. Anna", "12-05-1948 F", "Nguyen Thi Lan")
FAMILIES = ("DejaVuSans", "DejaVuSerif", "STIXGeneral", "cmr10", "cmss10", "cmtt10", "cmb10")


def fonts() -> list[Path]:
    """Of matplotlib: sans, serif and typewriter, regular, bold and slanted."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return sorted(
        file for file in folder.glob("*.ttf") if file.name.startswith(FAMILIES) and "Display" not in file.name
    )


def with_text(image: Image.Image, words: str, height: int, font: Path, rng: np.random.Generator) -> Image.Image:
    """A copy with words in a corner or at an edge: bright or dark, on the image or on a box."""
    image = image.convert("L")
    draw, type_ = ImageDraw.Draw(image), ImageFont.truetype(str(font), height)
    left, top, right, bottom = draw.textbbox((0, 0), words, font=type_)
    room = (image.width - (right - left), image.height - (bottom - top))
    margin = max(2, min(image.size) // 100)
    x, y = (int(rng.choice([margin, free - margin, max(margin, free // 2)])) for free in room)
    if abs(x - room[0] / 2) < 2 and abs(y - room[1] / 2) < 2:
        y = margin  # corners and edges alone
    bright, boxed = rng.random() < 0.7, rng.random() < 0.3
    if boxed or not bright:  # dark text is read on something bright
        box = (x - 3, y - 3, x + right - left + 3, y + bottom - top + 3)
        draw.rectangle(box, fill=0 if bright else 255)
    draw.text((x - left, y - top), words, fill=255 if bright else 0, font=type_)
    return image


def phantom(seed: int, side: int) -> Image.Image:
    """A chest phantom with noise, as radiographs have."""
    noise = np.random.default_rng(seed).normal(0, 6, (side, side))
    return Image.fromarray((np.asarray(draw_phantom(seed, side).image) + noise).clip(0, 255).astype(np.uint8))


def measure_phi(
    source: str = "phantoms",
    split: str = "train",
    sides: tuple[int, ...] = (256, 512, 1024),
    heights: tuple[float, ...] = (8, 10, 12, 16, 24),
    images: int = 40,
    clean: int = 40,
    seed: int = 0,
) -> None:
    """Print the share of planted texts that were found, and what was found where none was planted.

    Args:
        source: Of images, as for `eden check-phi`; `phantoms` draws them at each side.
        split: Of the source.
        sides: Pixels a side of the phantoms; images of a source are taken as they are.
        heights: Sizes of the font in pixels; capitals have about 0.7 of them.
        images: How many texts are planted at each side and height; 0 for none.
        clean: How many images are looked at without a planted text.
        seed: Of words, fonts and places.
    """
    rng, typefaces = np.random.default_rng(seed), fonts()
    print(f"{len(typefaces)} fonts; {images} texts at each size, {source}")
    print(
        "| side | " + " | ".join(f"{height} px" for height in heights) + " |\n" + "| --- " * (len(heights) + 1) + "|"
    )
    for side, pictures in _pictures(source, split, sides, images) if images else ():
        shares = []
        for height in heights:
            found = [
                _is_found(
                    with_text(picture, str(rng.choice(WORDS)), int(height), Path(str(rng.choice(typefaces))), rng)
                )
                for picture in pictures
            ]
            shares.append(f"{np.mean(found):.0%}")
        print(f"| {side} | " + " | ".join(shares) + " |", flush=True)
    for side, pictures in _pictures(source, split, sides, clean):
        told = {place: text for place, picture in enumerate(pictures) if (text := find_text(picture))}
        print(f"{side}, as it is: {len(told)} of {len(pictures)} images have findings")
        for place, found in told.items():
            print(
                f"  {place}: {', '.join(f'{text.text} ({text.score:.2f}) {text.box}' for text in found)}", flush=True
            )
        if source == "phantoms":
            marked = [
                with_text(p, str(rng.choice(["L", "R"])), int(side) // 16, Path(str(rng.choice(typefaces))), rng)
                for p in pictures
            ]
            print(
                f"{side}, with L or R: {sum(map(_is_found, marked))} of {len(marked)} images have findings", flush=True
            )


def _is_found(picture: Image.Image) -> bool:
    return bool(find_text(picture))


def _pictures(source: str, split: str, sides: tuple[int, ...], count: int) -> Iterator[tuple[str, list[Image.Image]]]:
    if source == "phantoms":
        yield from ((str(side), [phantom(seed, side) for seed in range(count)]) for side in sides)
        return
    rows = load_source(source, split=split)
    yield source, [read_cell(rows[index]["image"], str(index)) for index in range(min(count, len(rows)))]


if __name__ == "__main__":
    auto_cli(measure_phi, as_positional=False, parser_class=ConfigParser)
