"""The trunk of Eden models: any vision model of transformers, behind one shape (travels to the Hub as remote code)."""

import copy
import inspect
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoBackbone, AutoModel, PreTrainedModel
from transformers.backbone_utils import BackboneMixin
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING_NAMES

from .configuration_eden import EdenConfig


def build_trunk(config: Any) -> PreTrainedModel:
    """The transformers backbone of a trunk's configuration, or the plain encoder where its type has no backbone.

    Raises:
        ValueError: transformers has no encoder of the type alone.
    """
    if has_stages(config):
        if isinstance(getattr(config, "hidden_sizes", None), tuple):  # FocalNet's default, which its backbone refuses
            config.hidden_sizes = list(config.hidden_sizes)
        return with_final_norm(AutoBackbone.from_config(config))
    if type(config) not in AutoModel._model_mapping:
        raise ValueError(f"model_type {config.model_type!r} cannot be a trunk: transformers has no such encoder alone")
    encoder_class: Any = AutoModel._model_mapping[type(config)]
    takes = inspect.signature(encoder_class).parameters
    # A pooling head would be trained by nothing and found unused by DDP.
    if hasattr(config, "vision_use_head"):
        config.vision_use_head = False
    return AutoModel.from_config(config, **({"add_pooling_layer": False} if "add_pooling_layer" in takes else {}))


#: Final norms of encoders whose backbones give the last map before it: under the encoder's own name, made if missing.
FINAL_NORMS = {
    "bit": "bit.norm",
    "focalnet": "focalnet.layernorm",
    "swinv2": "layernorm",
    "dinov3_convnext": "layer_norm",
}


def final_norm(trunk: Any) -> nn.Module | None:
    """The norm that the encoder of a trunk's type has after its last stage, and its backbone does not apply."""
    owner, _, name = FINAL_NORMS.get(trunk.config.model_type, "").rpartition(".")
    return getattr(trunk.get_submodule(owner), name, None) if name else None


def with_final_norm(trunk: Any) -> Any:
    """A backbone of transformers, with the final norm of its type's encoder if it has none: a fresh one."""
    name = FINAL_NORMS.get(trunk.config.model_type)
    if name and final_norm(trunk) is None:
        trunk.add_module(name, nn.LayerNorm(trunk.num_features[-1], trunk.config.layer_norm_eps))
    return trunk


def has_stages(config: Any) -> bool:
    """Whether transformers has a backbone for a trunk's configuration, with a feature map for each stage."""
    return config.model_type in MODEL_FOR_BACKBONE_MAPPING_NAMES


def map_channels(config: Any) -> list[int]:
    """Channels of the maps that the trunk of this configuration gives, by a dry run without numbers.

    Raises:
        ValueError: it gives none of an image.
    """
    try:
        maps = _dry_run(config, _own_size(config))
    except Exception as error:  # each type fails in a way of its own
        raise ValueError(
            f"model_type {config.model_type!r} cannot be a trunk: transformers makes no map of features of a batch of "
            f"images with it ({error})"
        ) from error
    return [features.shape[1] for features in maps]


def _dry_run(config: Any, size: tuple[int, int]) -> tuple[Tensor, ...]:
    with torch.device("meta"):
        images = torch.empty(1, getattr(config, "num_channels", 3), *size)
        return _run_trunk(build_trunk(copy.deepcopy(config)).eval(), images, {})[0]


def _takes(config: Any, size: tuple[int, int]) -> bool:
    try:
        _dry_run(config, size)
    except (RuntimeError, ValueError):
        return False
    return True


def _own_size(config: Any) -> tuple[int, int]:
    """Height and width of the images that a trunk is made for."""
    side = getattr(config, "image_size", None) or 224
    return (side, side) if isinstance(side, int) else tuple(side)


def run_trunk(trunk: Any, pixel_values: Tensor, **asked: Any) -> tuple[tuple[Tensor, ...], Any]:
    """Feature maps `[B, C, h, w]` of images, fine to coarse (one of a plain encoder), and all that the trunk gave.

    Raises:
        ValueError: the trunk cannot take images of another size than its own.
    """
    try:
        return _run_trunk(trunk, pixel_values, asked)
    except (RuntimeError, ValueError) as error:
        (height, width), own = pixel_values.shape[-2:], _own_size(trunk.config)
        size = (height, width)
        if own == size or _takes(trunk.config, size):  # then it is something else
            raise
        raise ValueError(
            f"the trunk, model_type {trunk.config.model_type!r}, is made for images of {own[0]} x {own[1]} pixels and "
            f"cannot take {size[0]} x {size[1]} ({error}); resize images to its `image_size`, or choose a trunk that "
            "takes any size (docs/trunks.md)"
        ) from error


def _run_trunk(trunk: Any, pixel_values: Tensor, asked: dict[str, Any]) -> tuple[tuple[Tensor, ...], Any]:
    if isinstance(trunk, BackboneMixin):
        if _normalises_averages(trunk):
            asked = {**asked, "output_hidden_states": True}
        outputs = trunk.forward_with_filtered_kwargs(pixel_values, return_dict=True, **asked)
        return _normalised(trunk, outputs.feature_maps), outputs
    takes = inspect.signature(trunk.forward).parameters
    if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in takes.values()):
        asked = {name: value for name, value in asked.items() if name in takes}  # convolutions have no attentions
    if "interpolate_pos_encoding" in takes:  # parts are smaller than the image that a ViT was made for
        asked = {**asked, "interpolate_pos_encoding": True}
    outputs = trunk(pixel_values, return_dict=True, **asked)
    return (as_map(outputs.last_hidden_state, pixel_values, trunk.config),), outputs


def _normalised(trunk: Any, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Maps of stages, the last as the trunk's type normalises it at its end."""
    norm = final_norm(trunk)
    if norm is None or trunk.out_features[-1] != trunk.stage_names[-1]:
        return maps
    last = norm(maps[-1].movedim(1, -1)).movedim(-1, 1) if isinstance(norm, nn.LayerNorm) else norm(maps[-1])
    return (*maps[:-1], last)


def as_map(features: Tensor, pixel_values: Tensor, config: Any) -> Tensor:
    """Feature map `[B, C, h, w]` of `features`: itself, or rows of tokens `[B, prefix + h * w + suffix, C]`.

    Class and register tokens come before the patches, detection tokens after them.

    Raises:
        ValueError: the tokens are not those of a grid.
    """
    if features.ndim == 4:
        return features
    sides = pixel_values.shape[-2:]
    patch = getattr(config, "patch_size", None) or math.prod(getattr(config, "patch_sizes", [1]))
    steps = (patch, patch) if isinstance(patch, int) else patch
    height, width = (side // step for side, step in zip(sides, steps, strict=True))
    end = features.shape[1] - getattr(config, "num_detection_tokens", 0)
    if height * width > end:  # fewer than patches, where stages have merged some
        height = round(math.sqrt(end * sides[0] / sides[1]))
        width = end // max(1, height)
        if height * width != end:
            raise ValueError(f"{end} tokens of an image of {tuple(sides)} pixels are no grid")
    return features[:, end - height * width : end].transpose(1, 2).unflatten(2, (height, width))


#: Types that normalise the average of their last map, beside or instead of the map.
_NORMALISE_AVERAGES = ("convnext", "convnextv2", "dinov3_convnext")


def _normalises_averages(trunk: Any) -> bool:
    return trunk.config.model_type in _NORMALISE_AVERAGES


def average(trunk: Any, maps: tuple[Tensor, ...], outputs: Any) -> Tensor:
    """The embedding `[B, C]` of each image from what `run_trunk` gave, as the trunk's type pools its last map."""
    if not _normalises_averages(trunk):
        return maps[-1].mean(dim=(2, 3))
    norm: Any = final_norm(trunk) or trunk.hidden_states_norms[trunk.stage_names[-1]]
    averages = outputs.hidden_states[-1].mean(dim=(2, 3))
    return F.layer_norm(averages, averages.shape[1:], norm.weight, norm.bias, norm.eps)


#: At most this many stages feed a decoder: token trunks have one a layer.
_DECODER_STAGES = 4


def with_decoder_stages(config: EdenConfig, purpose: str) -> EdenConfig:
    """`config`, or a copy, whose trunk returns the maps that a decoder takes: its last stages, stem apart.

    Raises:
        ValueError: the trunk's type has no feature maps in transformers.
    """
    if not has_stages(config.backbone_config):
        raise ValueError(
            f"{purpose} needs a trunk with feature maps, and transformers has none for model_type "
            f"{config.backbone_config.model_type!r}; use 'resnet', 'convnextv2', 'swin' or 'dinov2'"
        )
    stages = config.stage_names[1:]
    steps = np.linspace(0, len(stages) - 1, min(len(stages), _DECODER_STAGES)).round().astype(int).tolist()
    chosen = [stages[step] for step in steps]
    if config.out_features == chosen:
        return config
    config = copy.deepcopy(config)  # others made from the same settings return their own stages
    config.out_features = chosen
    return config


def without_dense_decoder(config: EdenConfig) -> EdenConfig:
    """`config`, or a copy without the dense decoder, for models that do not use it."""
    if config.dense_dim is None:
        return config
    config = copy.deepcopy(config)
    config.dense_dim = None
    return config


__all__ = [
    "FINAL_NORMS",
    "as_map",
    "average",
    "build_trunk",
    "final_norm",
    "has_stages",
    "map_channels",
    "run_trunk",
    "with_decoder_stages",
    "with_final_norm",
    "without_dense_decoder",
]
