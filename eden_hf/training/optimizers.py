"""What weight decay pulls on: AdamW's as the field has it, SGD's as published."""

from collections.abc import Iterable, Iterator
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


def make_optimizer(model: nn.Module, name: str, **rates: Any) -> torch.optim.Optimizer:
    """`sgd`, which decays every parameter (published), or `adamw`, with torch's `lr` and `weight_decay` as `rates`.

    A group that is not decayed says so by `decayed`, for pretraining, which sets the rates each step.
    """
    trained = {key: parameter for key, parameter in model.named_parameters() if parameter.requires_grad}
    if name == "sgd":
        return torch.optim.SGD(trained.values(), momentum=0.9, **rates)
    decayed = set(decayed_names(model))
    maps, others = ([trained[key] for key in trained if (key in decayed) == is_map] for is_map in (True, False))
    return torch.optim.AdamW(
        [{"params": maps, "decayed": True}, {"params": others, "decayed": False, "weight_decay": 0.0}],
        **rates,
    )


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
