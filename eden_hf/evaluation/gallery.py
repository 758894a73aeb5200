"""Four pictures that show what a pretraining run learned, and a fifth of nearest neighbours.

python scripts/gallery.py --model outputs/demo/run/last --source phantoms:64 --output outputs/demo
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from eden_hf.anatomy import grid_shape, part_boxes
from eden_hf.data.sources import first_pictures
from eden_hf.encoders import Encoder, load_encoder, nearest_neighbours
from eden_hf.evaluation.embeddings import part_embeddings, tsne
from eden_hf.matching import AnatomyMatcher, Reference
from eden_hf.matching.windows import correspond
from eden_hf.plots import (
    Part,
    plot_correspondence,
    plot_history,
    plot_levels,
    plot_matches,
    plot_neighbours,
    plot_tsne,
)
from eden_hf.training.monitors import read_metrics


def draw_gallery(
    model: str,
    source: str = "phantoms:64",
    output: str = "outputs/gallery",
    split: str = "train",
    id_column: str | None = None,
    images: int = 64,
    side: int = 256,
    level: int = 4,
) -> list[Path]:
    """Draw decomposer levels, t-SNE of parts, correspondence, neighbours and, for a run's model, its loss curves.

    Args:
        model: Any image encoder, as for `eden_hf.encoders.load_encoder`.
        source: Images to look at: whatever `eden_hf.data.sources.load_source` takes.
        output: Folder for the pictures.
        split: Split of the source.
        id_column: Column whose values name the images in the pictures.
        images: How many of its first images are used.
        side: Pixels a side that the images are brought to, so that parts and windows match between them.
        level: Level whose parts are embedded.

    Returns:
        The files written, PNG.

    Raises:
        ValueError: `images` is below 2 or more than there are.
    """
    encoder = load_encoder(model)
    rows, pictures = first_pictures(source, images, split=split, id_column=id_column)
    pictures = [picture.convert("L").resize((side, side), Image.Resampling.BOX) for picture in pictures]
    embeddings = part_embeddings(encoder, pictures, level)
    figures = {
        "levels": plot_levels(pictures[0], [0, 1, 2, 3, 4]),
        "tsne": _tsne_figure(embeddings, level),
        "correspondence": _correspondence_figure(encoder, pictures),
        "neighbours": _neighbours_figure(embeddings, pictures, list(rows["source_id"]), level),
    }
    metrics = Path(model).parent / "metrics.jsonl"
    if metrics.exists():
        figures["history"] = plot_history(read_metrics(metrics))
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{name}.png" for name in figures]
    for file, figure in zip(files, figures.values(), strict=True):
        figure.savefig(file, dpi=120)
    return files


def _tsne_figure(embeddings: torch.Tensor, level: int) -> Figure:
    """Parts named by row and column: 1a is at the top left."""
    rows, columns = grid_shape(level)
    names = [f"{row + 1}{chr(ord('a') + column)}" for row in range(rows) for column in range(columns)]
    labels = np.tile(np.arange(rows * columns), len(embeddings))
    return plot_tsne(tsne(embeddings.flatten(0, 1)), labels, names)


def _correspondence_figure(encoder: Encoder, pictures: list[Image.Image]) -> Figure:
    """Nine points of the first image found in the second: by the matcher, or without dense decoder by windows."""
    side = pictures[0].width
    grid = torch.tensor([[x, y] for y in (0.25, 0.5, 0.75) for x in (0.25, 0.5, 0.75)]) * side
    if encoder.is_dense:
        points = {str(number): (x, y) for number, (x, y) in enumerate(grid.tolist(), start=1)}
        matcher = AnatomyMatcher(encoder, [Reference(pictures[0], points=points)])
        found, similarity = matcher.find(pictures[1]), matcher.similarity(pictures[1])
        return plot_matches((pictures[0], pictures[1]), points, found, similarity)
    nearest, _ = correspond(encoder, pictures[0], grid, pictures[1], window=side // 4, stride=side // 32)
    return plot_correspondence(pictures[0], pictures[1], grid, nearest)


def _neighbours_figure(
    embeddings: torch.Tensor, pictures: list[Image.Image], names: Sequence[str], level: int, k: int = 5
) -> Figure:
    """Three parts of the first image, and the parts of all the others that are most like them."""
    boxes = part_boxes(*pictures[0].size, level)
    chosen = [len(boxes) * eighths // 8 for eighths in (2, 5, 7)]
    others = embeddings[1:].flatten(0, 1)
    similarities, indices = nearest_neighbours(embeddings[0, chosen], others, k)
    queries = [Part(pictures[0], boxes[index], names[0]) for index in chosen]
    neighbours = [
        [Part(pictures[1 + i // len(boxes)], boxes[i % len(boxes)], names[1 + i // len(boxes)]) for i in row]
        for row in indices.tolist()
    ]
    return plot_neighbours(queries, neighbours, similarities)
