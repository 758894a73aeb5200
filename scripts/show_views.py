"""Draw the views that a recipe's pretraining sees: look at them before training on your own images.

python scripts/show_views.py --recipe configs/adam_v1_resnet50_chestxray14.yaml --source phantoms:3 --output views.png
"""

from dataclasses import replace

import numpy as np
import torch
from jsonargparse import auto_cli
from PIL import Image

from eden_hf.data.prepared import prepare_images
from eden_hf.training.arguments import read_arguments
from eden_hf.training.objectives import objective_of
from eden_hf.training.settings import ConfigParser

CELL = 104


def show_views(recipe: str, source: str, output: str, split: str = "train", images: int = 3):
    """Write a picture: for each level of the recipe a row of images, each with two pairs of views: query
    and key, or of Adam-v2, at the finest granularity, two global crops, or an anchor and its global crop.

    Args:
        recipe: YAML file of a run.
        source: Images to show, in place of the recipe's own.
        output: PNG file to write.
        split: Split of the source.
        images: How many images, from the first on.
    """
    settings = read_arguments(recipe)
    data = settings.data
    shown = prepare_images(
        source, split=split, side=data.side, channels=data.channels, aspect_ratio=data.aspect_ratio
    ).get(range(images))
    raw = replace(settings.views, intensity="fixed", image_mean=(0.0, 0.0, 0.0), image_std=(1.0, 1.0, 1.0))
    rows = []
    settings.views = raw
    objective = objective_of(settings)
    for stage in settings.stages:
        cells = [shown.expand(-1, 3, -1, -1) / 255]
        for epoch in range(2):
            last = stage.granularity(stage.total_epochs - 1)
            inputs = objective.inputs(shown, torch.arange(images), stage, last, seed=0, epoch=epoch)
            cells += _pair(inputs)
        cells = [torch.nn.functional.interpolate(cell, (CELL, CELL), mode="area") for cell in cells]
        rows.append(torch.stack(cells, dim=1).flatten(0, 1))  # source, query, key, query, key of each image
    sheet = torch.stack(rows).permute(0, 3, 1, 4, 2).reshape(len(rows) * CELL, -1, 3)
    picture = Image.fromarray((sheet.numpy() * 255).round().astype(np.uint8))
    picture.convert("L" if data.channels == 1 else "RGB").save(output, optimize=True)


def _pair(inputs: dict) -> list[torch.Tensor]:
    """Two views of each image: query and key, two global crops, or an anchor and its global crop."""
    if "query_pixel_values" in inputs:
        return [inputs["query_pixel_values"], inputs["key_pixel_values"]]
    whole = [inputs["whole_pixel_values"]] if "whole_pixel_values" in inputs else []
    return [*whole, *inputs["global_pixel_values"]]


if __name__ == "__main__":
    auto_cli(show_views, as_positional=False, parser_class=ConfigParser)
