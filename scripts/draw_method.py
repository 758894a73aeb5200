"""Draw the Purposive Pruner at work in a pretrained model: the figure of docs/method.md.

make demo
python scripts/draw_method.py --model outputs/demo/run/last --output docs/method.png
"""

from collections.abc import Sequence

import numpy as np
import torch
from jsonargparse import auto_cli
from matplotlib.figure import Figure, SubFigure
from PIL import Image
from torch import Tensor
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from eden_hf import EdenForPreTraining
from eden_hf.anatomy import part_boxes
from eden_hf.data.sources import load_source, read_cell
from eden_hf.encoders import Encoder
from eden_hf.evaluation.pruner_audit import queries_and_keys
from eden_hf.plots import COLOURS, Part, outline, show
from eden_hf.training.settings import ConfigParser

KEPT, DROPPED = COLOURS[0], COLOURS[5]
SHOWN = 5  # parts of each kind


def draw_method(
    model: str,
    output: str,
    source: str = "phantoms:64",
    level: int = 4,
    part: int = 5,
    prune_threshold: float = 0.8,
):
    """Write a picture: an anchor, its cosines to a bank of keys, and which of them the pruner drops and keeps.

    Args:
        model: Folder of a pretraining run's model (`last`, `best`).
        output: PNG file to write.
        source: Images; the anchor is from the first, the bank from all the others.
        level: Level whose parts are anchor and bank.
        part: Which part of the first image is the anchor.
        prune_threshold: Gamma.
    """
    rows = load_source(source)
    pictures = [read_cell(row["image"], row["source_id"]).convert("L") for row in rows]
    encoder = Encoder(EdenForPreTraining.from_pretrained(model), AutoImageProcessor.from_pretrained(model))
    queries, keys = queries_and_keys(encoder, pictures, level)
    cosines = keys[1:].flatten(0, 1) @ queries[0, part]
    boxes = part_boxes(*pictures[0].size, level)
    bank = [Part(picture, box, "") for picture in pictures[1:] for box in boxes]
    same = torch.arange(len(boxes)).repeat(len(pictures) - 1) == part
    figure = _figure(Part(pictures[0], boxes[part], ""), bank, cosines, same, prune_threshold)
    figure.savefig(output, dpi=80)


def _figure(anchor: Part, bank: Sequence[Part], cosines: Tensor, same: Tensor, gamma: float) -> Figure:
    """Anchor, histogram of cosines `[K]`, and examples; `same` `[K]` tells which rows are the anchor's own part."""
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    left, middle, right = figure.subfigures(1, 3, width_ratios=[2, 4, 5])
    axes = show(left.subplots(), anchor.image)
    axes.set_title("anchor", fontsize=10)
    outline(axes, anchor.box, COLOURS[1])
    _histogram(middle, cosines.numpy(), same.numpy(), gamma)
    order = cosines.argsort(descending=True)
    dropped, kept = order[cosines[order] >= gamma], order[cosines[order] < gamma]
    chosen = {
        ("dropped", DROPPED): _evenly(dropped),
        ("kept: the nearest", KEPT): kept[:SHOWN],
        ("kept: others", KEPT): _evenly(kept[len(kept) // 2 :]),
    }
    grid = right.subplots(len(chosen), SHOWN, squeeze=False)
    for (name, colour), examples, row in zip(chosen, chosen.values(), grid, strict=True):
        _examples(row, [bank[index] for index in examples], cosines[examples].tolist(), name, colour)
    return figure


def _evenly(indices: Tensor) -> Tensor:
    """At most `SHOWN` of indices `[N]`, from the first to the last."""
    return indices[torch.linspace(0, max(len(indices) - 1, 0), min(SHOWN, len(indices))).long()]


def _histogram(figure: SubFigure, cosines: np.ndarray, same: np.ndarray, gamma: float) -> None:
    """How many rows of the bank have which cosine to the anchor; those from gamma on are dropped."""
    axes = figure.subplots()
    edges = np.linspace(-1, 1, 81)
    dropped = cosines >= gamma
    for chosen, colour, name in ((~dropped, KEPT, "kept"), (dropped, DROPPED, "dropped")):
        label = f"{name}: {chosen.sum()}, of which {same[chosen].sum()} the same part"
        axes.hist(cosines[chosen], edges, color=colour, label=label)
    axes.axvline(gamma, color="black", linestyle="--")
    axes.annotate(f"gamma {gamma:g}", (gamma, 1.01), xycoords=("data", "axes fraction"), ha="center")
    axes.set(xlabel="cosine of a bank row to the anchor", ylabel="rows of the bank (log scale)", yscale="log")
    axes.set_xlim(cosines.min() - 0.05, 1)
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.06))
    axes.spines[["top", "right"]].set_visible(False)


def _examples(row: Sequence, parts: Sequence[Part], cosines: Sequence[float], name: str, colour: str) -> None:
    """Parts side by side, with their cosines."""
    row[0].set_ylabel(name, color=colour, fontsize=10)
    for axes in row[len(parts) :]:
        axes.set_axis_off()
    for axes, part, cosine in zip(row, parts, cosines, strict=False):
        thumbnail = part.image.crop(part.box).resize((64, 64), Image.Resampling.BILINEAR)
        show(axes, thumbnail).set_title(f"{cosine:.3f}", color=colour, fontsize=9)
        axes.spines[:].set_color(colour)


if __name__ == "__main__":
    auto_cli(draw_method, as_positional=False, parser_class=ConfigParser)
