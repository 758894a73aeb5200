"""`eden match`: points of one image found in another, drawn."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from eden_hf.data.errors import SourceError
from eden_hf.data.pixel_size import picture_point, stored_point
from eden_hf.data.reading import read_image
from eden_hf.data.references import Reference
from eden_hf.encoders import load_encoder
from eden_hf.matching.matcher import AnatomyMatcher, FoundPoint

#: Rows and columns of the grid of points, and what of the picture's sides it spans.
GRID, SPAN = (4, 3), (0.15, 0.85)
#: A point lies in the body where the picture around it is not flat: by this share of its whole spread.
_FLAT = 0.05


def match_images(
    model: str, images: tuple[str, str], points: list[str] | None = None, output: str = "outputs/match.png"
) -> dict[str, FoundPoint]:
    """Find points of one image in another, and draw both with lines, and the similarity map of each point.

    Args:
        model: Any image encoder, as for `eden_hf.encoders.load_encoder`; one with a dense decoder finds points best.
        images: Paths of the image that the points are in, and of the one in which they are looked for.
        points: `x,y` in pixels of the first image; by default a grid over the body.
        output: The picture, PNG.

    Returns:
        For each point, by its number, its place in the second image, in pixels of the file.

    Raises:
        SourceError: a point is no `x,y` within the image.
        ImageReadError: an image cannot be read.
    """
    from eden_hf.plots import plot_matches  # which needs matplotlib

    first, second = (read_image(Path(image).expanduser()) for image in images)
    wanted = body_points(first) if points is None else _parsed(points, first, images[0])
    matcher = AnatomyMatcher(load_encoder(model), [Reference(first, images[0], wanted)])
    found = matcher.find(second)
    titles = (Path(images[0]).name, Path(images[1]).name)
    figure = plot_matches((first, second), wanted, found, matcher.similarity(second), titles)
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110)
    stored = {name: stored_point(second, point.x, point.y) for name, point in found.items()}
    return {name: point._replace(x=stored[name][0], y=stored[name][1]) for name, point in found.items()}


def body_points(image: Image.Image) -> dict[str, tuple[float, float]]:
    """Nodes of a grid over an image, by number, without those around which it is flat, as beside the body.

    All nodes where no part of the image differs from the rest.
    """
    width, height = image.size
    grey = np.asarray(image.convert("L").resize((96, 96), Image.Resampling.BOX), float)
    rows, columns = (np.linspace(*SPAN, count) for count in GRID)
    nodes = [(x, y) for y in rows for x in columns]
    spread = [grey[int(96 * y) - 6 : int(96 * y) + 6, int(96 * x) - 6 : int(96 * x) + 6].std() for x, y in nodes]
    kept = [node for node, value in zip(nodes, spread, strict=True) if value > _FLAT * grey.std()] or nodes
    return {str(number): (x * width - 0.5, y * height - 0.5) for number, (x, y) in enumerate(kept, start=1)}


def _parsed(points: list[str], picture: Image.Image, image: str) -> Mapping[str, tuple[float, float]]:
    parsed = {}
    (width, height) = picture.info["stored_size"]
    for number, text in enumerate(points, start=1):
        try:
            x, y = map(float, text.split(","))
        except ValueError as error:
            raise SourceError(f"a point is given as x,y in pixels, as in 120,80.5, got {text!r}") from error
        if not (-0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5):  # NaN too
            raise SourceError(f"point {text} lies off {image}, which has {width} x {height} pixels")
        parsed[str(number)] = picture_point(picture, x, y)
    return parsed
