"""What weight decay pulls on: AdamW's as the field has it, SGD's as published."""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd


def decayed_names(model: nn.Module) -> list[str]:
    """Names of the parameters that AdamW decays: the weights of linear maps and convolutions.

    Biases, norms, scales of layers, class, register and mask tokens, and positions are left alone.
    """
    maps = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | _ConvNd)]
    return [f"{name}.weight" if name else "weight" for name in maps]


def make_optimizer(model: nn.Module, name: str, layer_decay: float = 1.0, **rates: Any) -> torch.optim.Optimizer:
    """`sgd`, which decays every parameter (published), or `adamw`, with torch's `lr` and `weight_decay` as `rates`.

    For pretraining, which sets the rates each step, a group says by `decayed` whether weight decay is for it, and by
    `scale` what share of the learning rate: `layer_decay` to the power of the layers between it and the trunk's end.
    """
    trained = {key: parameter for key, parameter in model.named_parameters() if parameter.requires_grad}
    scales = layer_scales(list(trained), layer_decay)
    decayed = set(decayed_names(model)) if name == "adamw" else set(trained)
    grouped: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for is_decayed in (True, False):
        for key in (key for key in trained if (key in decayed) == is_decayed):
            grouped.setdefault((is_decayed, scales[key]), []).append(trained[key])
    groups: list[dict[str, Any]] = [
        {"params": parameters, "decayed": is_decayed, "scale": scale, **({} if is_decayed else {"weight_decay": 0.0})}
        for (is_decayed, scale), parameters in grouped.items()
    ]
    return torch.optim.SGD(groups, momentum=0.9, **rates) if name == "sgd" else torch.optim.AdamW(groups, **rates)


#: Within a trunk, the number of its stage or, of a ViT, of its block. The stem of SwiftFormer is numbered too.
_LAYER = re.compile(r"(?<=\.)(?<!patch_embedding\.)\d+(?=\.)")


def layer_scales(names: Sequence[str], layer_decay: float) -> dict[str, float]:
    """Shares of the learning rate by the names of parameters, in the order of the model.

    The trunk's last layer (a stage, or a block of a ViT) has `layer_decay`, the one before it the square, and so on
    to its stem or embeddings; what comes after the last layer or is no trunk's has 1.
    """
    depths: dict[str, int | None] = {}
    found: list[str] = []
    for name in names:
        inside = name.partition("backbone.")[2]
        layer = _LAYER.search(inside)
        if layer and layer[0] not in found:
            found.append(layer[0])
        depths[name] = (found.index(layer[0]) + 1 if layer else 0 if not found else None) if inside else None
    return {name: 1.0 if depth is None else layer_decay ** (len(found) + 1 - depth) for name, depth in depths.items()}


def clip_each(parameters: Iterable[nn.Parameter], max_norm: float) -> None:
    """Bring the norm of each gradient by itself to at most `max_norm` (Adam-v2)."""
    for parameter in parameters:
        nn.utils.clip_grad_norm_(parameter, max_norm)


@contextmanager
def of_this_version(checkpoint: Path) -> Iterator[None]:
    """Say why a checkpoint does not fit, where another version of the package wrote it.

    Raises:
        ValueError: it holds another position, other weights or an optimiser of other groups than this version's.
    """
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if not any(words in str(error) for words in ("parameter group", "loading state_dict", "progress.json")):
            raise
        raise ValueError(
            f"{checkpoint} was written by another version of eden_hf ({str(error).splitlines()[0]}): go on with that "
            "version (git_revision in environment.json), or start a new run from the model that there is"
        ) from error
