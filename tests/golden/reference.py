"""Models with the weights of the golden recordings: the recipe names tensors as torchvision does."""

import re

import torch

from eden_hf import EdenConfig, EdenForPreTraining

from . import recipe

_LEAF = {"convolution": "conv", "normalization": "bn"}


def torchvision_name(name: str) -> str:
    """Torchvision's name of a student tensor on a ResNet trunk; `fc.0` and `fc.2` are the projector."""
    if name.startswith("projector."):
        return name.replace("projector.dense", "fc.0").replace("projector.out_proj", "fc.2")
    name = name.removeprefix("eden.backbone.")
    if match := re.fullmatch(r"embedder\.embedder\.(\w+)\.(\w+)", name):
        return f"{_LEAF[match[1]]}1.{match[2]}"
    if match := re.fullmatch(r"encoder\.stages\.(\d)\.layers\.(\d+)\.layer\.(\d)\.(\w+)\.(\w+)", name):
        return f"layer{int(match[1]) + 1}.{match[2]}.{_LEAF[match[4]]}{int(match[3]) + 1}.{match[5]}"
    match = re.fullmatch(r"encoder\.stages\.(\d)\.layers\.(\d+)\.shortcut\.(\w+)\.(\w+)", name)
    return f"layer{int(match[1]) + 1}.{match[2]}.downsample.{0 if match[3] == 'convolution' else 1}.{match[4]}"


def golden_model(backbone: str, memory_bank: torch.Tensor) -> EdenForPreTraining:
    """`EdenForPreTraining` in train mode with the recipe's student, teacher and the given bank [K, D]."""
    config = EdenConfig(backbone_config=backbone, memory_bank_size=len(memory_bank))
    model = EdenForPreTraining(config).train()
    state = model.state_dict()
    for name, tensor in state.items():
        if not name.startswith(("memory_bank", "bank_ptr")):
            prefix = "k." if name.startswith("teacher.") else ""
            source = torchvision_name(name.removeprefix("teacher."))
            state[name] = torch.from_numpy(recipe.weight(source, tuple(tensor.shape), prefix=prefix))
    state["memory_bank"] = memory_bank
    model.load_state_dict(state)
    return model


def tensors_by_torchvision_name(model: EdenForPreTraining, side: str) -> dict[str, torch.Tensor]:
    """Parameters and buffers of the `"student"` or the `"teacher"`."""
    state = {name: t for name, t in model.state_dict().items() if not name.startswith(("memory_bank", "bank_ptr"))}
    if side == "teacher":
        state = {name.removeprefix("teacher."): t for name, t in state.items() if name.startswith("teacher.")}
    return {torchvision_name(name): t for name, t in state.items() if not name.startswith("teacher.")}


def images(name: str) -> torch.Tensor:
    """The recipe's input batch [8, 3, 64, 64]."""
    return torch.from_numpy(recipe.images(name, (8, 3, 64, 64)))
