"""What stands beside encoders in every table: their own untrained trunks, and plain pixels."""

from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from eden_hf.encoders import FRESH, Encoder, load_encoder
from eden_hf.image_processing_eden import EdenImageProcessor
from eden_hf.model_names import PIXELS, find_model

#: Pixels along a side of the pictures that are compared as they are.
SIDE = 16


class GreyPixels(nn.Module):
    """The grey values of a picture as its embedding."""

    device, dtype = torch.device("cpu"), torch.float32

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        """`pooler_output` `[B, H * W]` of images `[B, C, H, W]`, each less its mean: cosines are correlations."""
        grey = pixel_values.mean(dim=1).flatten(1)
        return SimpleNamespace(pooler_output=grey - grey.mean(dim=1, keepdim=True))


def grey_encoder() -> Encoder:
    """16 x 16 pixels as an encoder: what can be told without anything learned."""
    processor = EdenImageProcessor(size={"height": SIDE, "width": SIDE}, intensity="per_image")
    return Encoder(cast(Any, GreyPixels()), processor, PIXELS, f"{SIDE} x {SIDE}")


def columns(
    models: Sequence[str],
    *,
    untrained: int = 0,
    pixels: bool = False,
    size: int | None = None,
    intensity: Literal["fixed", "per_image"] | None = None,
    seed: int = 0,
) -> dict[str, list[Callable[[], Encoder]]]:
    """The columns of a table by their names, each of one encoder, or of several that differ in their seed alone.

    Args:
        models: As for `load_encoder`.
        untrained: How many fresh weights of each model's architecture make a column of their own, `random:MODEL`;
            there is none where the models name it already, or another of the same architecture.
        pixels: Whether pixels have a column.
        size: As for `load_encoder`, as is `intensity`.
        seed: The first of the fresh weights'.

    Raises:
        ValueError: a model is named twice.
    """
    if len(set(models)) < len(models):
        raise ValueError(f"encoders must differ, got {', '.join(models)}")
    load = partial(load_encoder, size=size, intensity=intensity)
    found: dict[str, list[Callable[[], Encoder]]] = {name: [partial(load, name, seed=seed)] for name in models}
    built = {_build(name) for name in models if name.startswith(FRESH)}
    for name in models if untrained else ():
        if not name.startswith(FRESH) and _build(name) not in built:
            built.add(_build(name))
            found[FRESH + name] = [partial(load, FRESH + name, seed=seed + i) for i in range(untrained)]
    return found | ({PIXELS: [grey_encoder]} if pixels else {})


def _build(name: str) -> str:
    """What models have in common that differ in their weights alone."""
    model = find_model(name)
    config = {k: v for k, v in model.config.to_dict().items() if k not in ("_name_or_path", "architectures", "dtype")}
    return f"{config} {model.processor.to_dict()}"


def revision_of(encoders: Sequence[Encoder]) -> str | None:
    """What the weights of a column are."""
    return encoders[0].revision if len(encoders) == 1 else ", ".join(str(encoder.revision) for encoder in encoders)
