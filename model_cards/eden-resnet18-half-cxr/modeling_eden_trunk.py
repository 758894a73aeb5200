"""The trunk of Eden models: any vision model of transformers, behind one shape (travels to the Hub as remote code)."""

import copy
import inspect
from typing import Any

import numpy as np
from torch import Tensor
from transformers import AutoBackbone, AutoModel, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING_NAMES

from .configuration_eden import EdenConfig


def build_trunk(config: EdenConfig) -> PreTrainedModel:
    """The transformers backbone of `config.backbone_config`, or the plain encoder where the type has no backbone."""
    backbone_config: Any = config.backbone_config
    if backbone_config.model_type in MODEL_FOR_BACKBONE_MAPPING_NAMES:
        return AutoBackbone.from_config(backbone_config)
    encoder_class: Any = AutoModel._model_mapping[type(backbone_config)]
    takes = inspect.signature(encoder_class).parameters
    # A pooling head would be trained by nothing and found unused by DDP.
    return AutoModel.from_config(
        backbone_config, **({"add_pooling_layer": False} if "add_pooling_layer" in takes else {})
    )


#: At most this many stages feed a decoder: token trunks have one a layer.
_DECODER_STAGES = 4


def with_decoder_stages(config: EdenConfig, purpose: str) -> EdenConfig:
    """A copy of `config` whose trunk returns the maps that a decoder takes: its last stages, stem apart.

    Raises:
        ValueError: the trunk's type has no feature maps in transformers.
    """
    if config.backbone_config.model_type not in MODEL_FOR_BACKBONE_MAPPING_NAMES:
        raise ValueError(
            f"{purpose} needs a trunk with feature maps, and transformers has none for model_type "
            f"{config.backbone_config.model_type!r}; use 'resnet', 'convnextv2', 'swin' or 'dinov2'"
        )
    config = copy.deepcopy(config)  # others made from the same settings return their own stages
    stages = config.stage_names[1:]
    steps = np.linspace(0, len(stages) - 1, min(len(stages), _DECODER_STAGES)).round().astype(int).tolist()
    config.out_features = [stages[step] for step in steps]
    return config


def without_dense_decoder(config: EdenConfig) -> EdenConfig:
    """`config`, or a copy without the dense decoder, for models that do not use it."""
    if config.dense_dim is None:
        return config
    config = copy.deepcopy(config)
    config.dense_dim = None
    return config


def as_grid(features: Tensor, pixel_values: Tensor, patch_size: int | tuple[int, int]) -> Tensor:
    """Feature map [B, C, h, w] of `features`: itself, or token rows [B, prefix + h * w, C] reshaped."""
    if features.ndim == 4:
        return features
    patch_height, patch_width = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
    height, width = pixel_values.shape[-2] // patch_height, pixel_values.shape[-1] // patch_width
    tokens = features[:, features.shape[1] - height * width :]  # class and register tokens come first
    return tokens.transpose(1, 2).unflatten(2, (height, width))


__all__ = ["as_grid", "build_trunk", "with_decoder_stages", "without_dense_decoder"]
