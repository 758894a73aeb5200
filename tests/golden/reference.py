"""Models with the weights of the golden recordings: the recipe names tensors as torchvision does."""

import functools
import re

import torch

from eden_hf import EdenConfig, EdenForPreTraining, EdenV2ForPreTraining

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


@functools.cache
def golden_v2_model() -> EdenV2ForPreTraining:
    """`EdenV2ForPreTraining` on a ResNet-18 in train mode with the recipe's weights and 256 outputs; copy it."""
    model = EdenV2ForPreTraining(EdenConfig(backbone_config="resnet18", localizability_outputs=256)).train()
    for side in ("student", "teacher"):
        for name, tensor in v2_tensors_by_official_name(model, side).items():
            drawn = recipe.weight(name, tuple(tensor.shape), prefix="k." if side == "teacher" else "")
            tensor.copy_(torch.from_numpy(drawn))
    return model


def v2_tensors_by_official_name(model: EdenV2ForPreTraining, side: str) -> dict[str, torch.Tensor]:
    """Parameters and buffers of the `"student"`, with its part-whole heads, or of the `"teacher"`."""
    encoder = model.student if side == "student" else model
    tensors = {f"backbone.{torchvision_name(f'eden.{n}')}": t for n, t in encoder.eden.state_dict().items()}
    tensors |= {f"head.{name}": tensor for name, tensor in encoder.head.state_dict().items()}
    tensors["head.last_layer.weight_v"] = tensors.pop("head.last_layer.weight")
    if side == "student":
        for name in ("compose", "decompose"):
            tensors |= {f"{name}_head.{n}": tensor for n, tensor in getattr(model, name).state_dict().items()}
    return tensors


def v2_crops(tag: str) -> dict[str, torch.Tensor]:
    """The recipe's 14 crops of a batch of 4 as Adam-v2's second stage takes them."""
    small = range(2, 10)
    sides = [32 if i in small else 64 for i in range(14)]
    crops = [torch.from_numpy(recipe.images(f"{tag}.crop.{i}", (4, 3, side, side))) for i, side in enumerate(sides)]
    return {
        "whole_pixel_values": crops[0],
        "global_pixel_values": crops[1][None],
        "local_pixel_values": torch.stack(crops[2:10]),
        "part_pixel_values": torch.stack(crops[10:]),
    }


def v2_crops_of_the_first_stage(tag: str) -> dict[str, torch.Tensor]:
    """The recipe's first ten crops, of which the first two are global."""
    crops = v2_crops(tag)
    whole = crops.pop("whole_pixel_values")[None]
    del crops["part_pixel_values"]
    return crops | {"global_pixel_values": torch.cat([whole, crops["global_pixel_values"]])}


def images(name: str) -> torch.Tensor:
    """The recipe's input batch [8, 3, 64, 64]."""
    return torch.from_numpy(recipe.images(name, (8, 3, 64, 64)))
