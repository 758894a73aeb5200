"""`EdenModel`, the trunk that users load, and `EdenBackbone`, a map for each of its stages (travel as remote code)."""

import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput, BaseModelOutputWithPooling
from transformers.utils import can_return_tuple

from .configuration_eden import EdenConfig
from .modeling_eden_dense import EdenDenseDecoder
from .modeling_eden_trunk import average, build_trunk, has_stages, map_channels, run_trunk, with_decoder_stages

#: What a saved folder offers to `Auto*.from_pretrained(..., trust_remote_code=True)`, whichever class saved it.
_AUTO_MAP = {
    "AutoConfig": "configuration_eden.EdenConfig",
    "AutoModel": "modeling_eden.EdenModel",
    "AutoBackbone": "modeling_eden.EdenBackbone",
    "AutoModelForPreTraining": "modeling_eden.EdenForPreTraining",
    "AutoModelForImageClassification": "modeling_eden.EdenForImageClassification",
    "AutoModelForSemanticSegmentation": "modeling_eden.EdenForSemanticSegmentation",
    "AutoModelForKeypointMatching": "modeling_eden.EdenForKeypointMatching",
}

#: What a pretraining folder holds beside the trunk that is used, and what the heads put on it.
PRETRAINING_KEYS = [r"^teacher\.", r"^projector\.", r"^memory_bank$", r"^bank_ptr$"]
PRETRAINING_KEYS += [r"^student\.", r"^head\.", r"^(de)?compose\.", r"^center$"]  # of Adam-v2
HEAD_KEYS = [r"^classifier\.", r"^decoder\."]
DENSE_KEYS = [r"^(eden\.)?dense_decoder\."]


@dataclass
class EdenModelOutput(BaseModelOutputWithPooling):
    """Output of `EdenModel`: that of any image encoder of transformers, and embeddings of points.

    Args:
        dense_embeddings (`torch.FloatTensor` of shape `(batch_size, dense_dim, height / 4, width / 4)`, *optional*):
            Unit vectors of the points under the pixels (sides rounded up), float32; of a model with `dense_dim`.
    """

    dense_embeddings: Tensor | None = None


class EdenPreTrainedModel(PreTrainedModel):
    """What the Eden models share: configuration, weight initialisation, saving with their code."""

    config_class = EdenConfig
    base_model_prefix = "eden"
    main_input_name = "pixel_values"
    input_modalities = "image"
    #: The losses are means over the batch, whatever the number of items that `transformers.Trainer` tells.
    accepts_loss_kwargs = False
    # Each trunk states its own ability; the flags here only let transformers ask it.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def post_init(self) -> None:
        """Initialise the weights; say whether the trunk can recompute activations in the backward pass (few can)."""
        inner = (module for module in self.modules() if isinstance(module, PreTrainedModel) and module is not self)
        self.supports_gradient_checkpointing = any(module.supports_gradient_checkpointing for module in inner)
        super().post_init()

    def asked_of_trunk(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """`arguments` of a call, for the trunk: what the configuration asks for counts where the call does not say."""
        asked = {name: getattr(self.config, name) for name in ("output_hidden_states", "output_attentions")}
        given = {name: value for name, value in arguments.items() if value is not None}
        return {name: value for name, value in asked.items() if value} | given

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # The trunk initialises itself: transformers calls the `_init_weights` of an inner model for its modules.
        if isinstance(module, nn.Linear):  # torch's own default, which the published recipe trains from
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            bound = 1 / math.sqrt(module.in_features)
            if module.bias is not None:
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.Conv2d):  # of the decoder: He et al., for ReLU
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            super()._init_weights(module)

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Save weights, configuration and the code that loads them without this package.

        The same as in `PreTrainedModel`; the `auto_map` written names every Eden class, so that a pretraining folder
        loads by `AutoModel` and `AutoBackbone` too.
        """
        self.config.auto_map = dict(_AUTO_MAP)
        super().save_pretrained(save_directory, *args, **kwargs)
        readable_like_neighbours(Path(save_directory))


def readable_like_neighbours(folder: Path) -> None:
    """Give weights the mode of the files beside them in `folder`: safetensors writes them for their owner alone."""
    for weights in folder.glob("*.safetensors"):
        beside = next(file for file in folder.iterdir() if file.is_file() and file.suffix != weights.suffix)
        shutil.copymode(beside, weights)


def check_batch(pixel_values: Tensor) -> None:
    """Raise ValueError unless `pixel_values` is a batch of images."""
    if pixel_values.ndim != 4:
        raise ValueError(
            "`pixel_values` must have shape (batch_size, num_channels, height, width), "
            f"got {tuple(pixel_values.shape)}"
        )


def selected(states: tuple[Tensor, ...] | None, asked: bool | Sequence[int] | None) -> tuple[Any, ...] | None:
    """Hidden states as asked for: all, none, or those at some indices and `None` at the others."""
    if not asked or states is None or asked is True:
        return states if asked else None
    indices = {index % len(states) for index in asked}
    return tuple(state if index in indices else None for index, state in enumerate(states))


class EdenModel(EdenPreTrainedModel):
    """The trunk: any image encoder of transformers with global average pooling, ready for `AutoModel`.

    `backbone` is the transformers model of `config.backbone_config`. Loaded from a pretraining folder it is the
    student's trunk; teacher, projector and memory bank stay behind.

    With `config.dense_dim`, `dense_decoder` makes embeddings of points as well.

    Raises:
        ValueError: `out_features` leaves out the trunk's last stage, which this model pools; `dense_dim` is set and
            the trunk has no feature maps; or the trunk's type makes no map of an image.
    """

    _keys_to_ignore_on_load_unexpected = PRETRAINING_KEYS + HEAD_KEYS

    def __init__(self, config: EdenConfig) -> None:
        if config.dense_dim is not None:
            config = with_decoder_stages(config, "`dense_dim`")
        super().__init__(config)
        self.backbone = build_trunk(config.backbone_config)
        self.map_channels = map_channels(config.backbone_config)
        self.num_features = self.map_channels[-1]
        self.dense_decoder: EdenDenseDecoder | None = None
        if config.dense_dim is not None:
            image_channels = getattr(config.backbone_config, "num_channels", 3)
            self.dense_decoder = EdenDenseDecoder(
                self.map_channels, config.dense_hidden_size, config.dense_dim, image_channels
            )
        if isinstance(self.backbone, BackboneMixin):
            last = self.backbone.stage_names[-1]
            if last not in self.backbone.out_features:
                raise ValueError(
                    f"EdenModel pools the last stage, {last!r}, but out_features is {self.backbone.out_features}; add "
                    "it, or load the folder with EdenBackbone for earlier stages alone"
                )
        self.post_init()

    @can_return_tuple
    def forward(self, pixel_values: Tensor, output_dense_embeddings: bool = True, **kwargs: Any) -> EdenModelOutput:
        r"""Features of images.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Images from `EdenImageProcessor`. Cast to the model's dtype.
            output_dense_embeddings (`bool`, *optional*, defaults to `True`):
                `False` spares the dense decoder of a model that has one.
            output_hidden_states (`bool`, *optional*): Return the hidden states of the trunk's stages as well.
            output_attentions (`bool`, *optional*): Return the attentions of a trunk that has some as well. As in
                transformers, there are none (an empty tuple) but with `attn_implementation="eager"`.
            return_dict (`bool`, *optional*): `False` gives a plain tuple.

        Returns:
            `last_hidden_state` `(batch_size, C, h, w)`, `pooler_output` `(batch_size, C)`: its average over the map
            (not a unit vector; ConvNeXt normalises the average, as in transformers, not the map), `dense_embeddings`
            of a model with `config.dense_dim`, and `hidden_states`, `attentions` if asked for, in the trunk's own
            shapes.

        Raises:
            ValueError: `pixel_values` is no batch of images.
        """
        check_batch(pixel_values)
        pixel_values = pixel_values.to(self.dtype)
        kwargs = self.asked_of_trunk(kwargs)
        maps, outputs = run_trunk(self.backbone, pixel_values, **kwargs)
        dense_embeddings = None
        if self.dense_decoder is not None and output_dense_embeddings:
            dense_embeddings = self.dense_decoder(pixel_values, maps)
        return EdenModelOutput(
            last_hidden_state=maps[-1],
            pooler_output=average(self.backbone, maps, outputs),
            hidden_states=selected(outputs.hidden_states, kwargs.get("output_hidden_states")),
            attentions=outputs.get("attentions"),
            dense_embeddings=dense_embeddings,
        )


class EdenBackbone(BackboneMixin, EdenPreTrainedModel):
    """The trunk as a transformers backbone: a feature map for each stage of `out_features`.

    Load with `AutoBackbone.from_pretrained(folder, out_features=["stage1", "stage4"])`. Trunks that normalise the
    maps of the stages they return (Swin, ConvNeXt) start the norms of newly asked stages afresh and report them.

    Raises:
        ValueError: the trunk's type has no backbone in transformers (a plain ViT, for one).
    """

    _keys_to_ignore_on_load_unexpected = PRETRAINING_KEYS + HEAD_KEYS + DENSE_KEYS

    def __init__(self, config: EdenConfig) -> None:
        if not has_stages(config.backbone_config):
            model_type = config.backbone_config.model_type
            raise ValueError(
                f"transformers has no backbone with feature maps for model_type {model_type!r}; use "
                "EdenModel, or a trunk such as 'resnet', 'convnextv2', 'swin' or 'dinov2'"
            )
        super().__init__(config)
        self.backbone: Any = build_trunk(config.backbone_config)
        self.num_features: Any = self.backbone.num_features
        self.has_attentions: Any = self.backbone.has_attentions
        self.post_init()

    def post_init(self) -> None:
        """Initialise the weights."""
        # Not BackboneMixin's: it would record the trunk's layers a second time, beside the trunk itself.
        EdenPreTrainedModel.post_init(self)

    def _init_transformers_backbone(self) -> None:
        # Stages live in one place, the trunk's own configuration, which checks them.
        self.stage_names = self.config.stage_names
        self.num_features = None

    @property  # type: ignore[misc]
    def out_features(self) -> list[str]:
        """Names of the stages returned."""
        return self.config.out_features

    @property  # type: ignore[misc]
    def out_indices(self) -> list[int]:
        """Indices of the stages returned."""
        return self.config.out_indices

    @can_return_tuple
    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BackboneOutput:
        r"""Feature maps of images.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Images from `EdenImageProcessor`. Cast to the model's dtype.

        Returns:
            `feature_maps`, one `(batch_size, C_stage, h_stage, w_stage)` per stage of `out_features`, and
            `hidden_states`, `attentions` if asked for.
        """
        pixel_values = pixel_values.to(self.dtype)
        asked = self.asked_of_trunk(kwargs)
        maps, outputs = run_trunk(self.backbone, pixel_values, **asked)
        return BackboneOutput(
            feature_maps=maps,  # type: ignore[arg-type]  # its annotation means one map
            hidden_states=selected(outputs.hidden_states, asked.get("output_hidden_states")),
            attentions=outputs.get("attentions"),
        )


__all__ = ["EdenBackbone", "EdenModel", "EdenModelOutput", "EdenPreTrainedModel", "check_batch", "selected"]
