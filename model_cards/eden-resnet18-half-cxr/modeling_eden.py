"""Eden models (travels to the Hub as remote code: imports torch, transformers and its own siblings only).

`EdenModel` is the trunk that users load, `EdenBackbone` the same with a feature map per stage, `EdenForPreTraining`
the student, the teacher, the memory bank and the pruned contrastive loss of Adam (arXiv 2309.15358),
`EdenForImageClassification` and `EdenForSemanticSegmentation` the heads that it is fine-tuned with, and
`EdenForKeypointMatching` finds the points of one image in another. An independent implementation: no code or weights
of the authors are used.
"""

import copy
import inspect
import math
import os
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import AutoBackbone, AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin
from transformers.loss.loss_for_object_detection import dice_loss
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutputWithPooling,
    ImageClassifierOutput,
    SemanticSegmenterOutput,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING_NAMES
from transformers.utils import ModelOutput, can_return_tuple

from .configuration_eden import EdenConfig
from .modeling_eden_dense import (
    EdenDenseDecoder,
    PointTargets,
    convolution,
    expected_places,
    match_smoothly,
    point_contrast,
    sample_embeddings,
    smooth_support,
)
from .modeling_eden_matching import EdenKeypointMatchingOutput, match_points

#: What a saved folder offers to `Auto*.from_pretrained(..., trust_remote_code=True)`, whichever class saved it.
AUTO_MAP = {
    "AutoConfig": "configuration_eden.EdenConfig",
    "AutoModel": "modeling_eden.EdenModel",
    "AutoBackbone": "modeling_eden.EdenBackbone",
    "AutoModelForPreTraining": "modeling_eden.EdenForPreTraining",
    "AutoModelForImageClassification": "modeling_eden.EdenForImageClassification",
    "AutoModelForSemanticSegmentation": "modeling_eden.EdenForSemanticSegmentation",
    "AutoModelForKeypointMatching": "modeling_eden.EdenForKeypointMatching",
}

#: What a pretraining folder holds beside the student's trunk, and what the heads put on it.
_PRETRAINING_KEYS = [r"^teacher\.", r"^projector\.", r"^memory_bank$", r"^bank_ptr$"]
_HEAD_KEYS = [r"^classifier\.", r"^decoder\."]
_DENSE_KEYS = [r"^(eden\.)?dense_decoder\."]


@dataclass
class EdenModelOutput(BaseModelOutputWithPooling):
    """Output of `EdenModel`: that of any image encoder of transformers, and embeddings of points.

    Args:
        dense_embeddings (`torch.FloatTensor` of shape `(batch_size, dense_dim, height / 4, width / 4)`, *optional*):
            Unit vectors of the points under the pixels (sides rounded up), float32; of a model with `dense_dim`.
    """

    dense_embeddings: Tensor | None = None


@dataclass
class EdenForPreTrainingOutput(ModelOutput):
    """Output of `EdenForPreTraining`: the loss first, then what tells how the method fares.

    Args:
        loss (`torch.FloatTensor` of shape `(1,)` without its dimension): Pruned InfoNCE, mean over the batch.
        query_embeddings (`torch.FloatTensor` of shape `(batch_size, projection_dim)`): Unit rows of the student.
        key_embeddings (`torch.FloatTensor` of shape `(batch_size, projection_dim)`): Unit rows of the teacher.
        positive_similarity (`torch.FloatTensor` of shape `(batch_size,)`): Cosine of each query and its key.
        kept_negatives (`torch.LongTensor` of shape `(batch_size,)`): Negatives left to each anchor by the pruner.
        pruned_share (`torch.FloatTensor` without dimension): Share of the bank's filled rows that was pruned.
    """

    loss: Tensor = None  # type: ignore[assignment]
    query_embeddings: Tensor = None  # type: ignore[assignment]
    key_embeddings: Tensor = None  # type: ignore[assignment]
    positive_similarity: Tensor = None  # type: ignore[assignment]
    kept_negatives: Tensor = None  # type: ignore[assignment]
    pruned_share: Tensor = None  # type: ignore[assignment]


@dataclass
class EdenPointOutput(ModelOutput):
    """Output of `EdenForPreTraining.match_points`, the objective of the dense stage.

    Args:
        loss (`torch.FloatTensor` without dimension): Of both kinds of search, weighted.
        point_error (`torch.FloatTensor` without dimension): Mean distance between found and true points of the other
            view of the same image, as a share of the image's side.
        partner_error (`torch.FloatTensor` without dimension, *optional*): The same between the student's and the
            teacher's points of another image, where one was searched.
    """

    loss: Tensor = None  # type: ignore[assignment]
    point_error: Tensor = None  # type: ignore[assignment]
    partner_error: Tensor | None = None


class EdenPreTrainedModel(PreTrainedModel):
    """What the Eden models share: configuration, weight initialisation, saving with their code."""

    config_class = EdenConfig
    base_model_prefix = "eden"
    main_input_name = "pixel_values"
    input_modalities = "image"
    # Each trunk states its own ability; the flags here only let transformers ask it.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @property
    def supports_gradient_checkpointing(self) -> bool:  # type: ignore[override]
        """Whether the trunk can recompute its activations in the backward pass (transformers' ResNet cannot)."""
        inner = (module for module in self.modules() if isinstance(module, PreTrainedModel) and module is not self)
        return any(module.supports_gradient_checkpointing for module in inner)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # The trunk initialises itself: transformers calls the `_init_weights` of an inner model for its modules.
        if isinstance(module, nn.Linear):  # torch's own default, which the published recipe trains from
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            bound = 1 / math.sqrt(module.in_features)
            init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.Conv2d):  # of the decoder: He et al., for ReLU
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            super()._init_weights(module)
        elif isinstance(module, EdenForPreTraining):
            module.reset_memory_bank()
            for teacher, student in zip(*module.teacher_and_student_tensors(buffers=True), strict=True):
                init.copy_(teacher, student)

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Save weights, configuration and the code that loads them without this package.

        The same as in `PreTrainedModel`; the `auto_map` written names every Eden class, so that a pretraining folder
        loads by `AutoModel` and `AutoBackbone` too.
        """
        self.config.auto_map = dict(AUTO_MAP)
        super().save_pretrained(save_directory, *args, **kwargs)


def _build_trunk(config: EdenConfig) -> PreTrainedModel:
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


def _with_decoder_stages(config: EdenConfig, purpose: str) -> EdenConfig:
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
    steps = torch.linspace(0, len(stages) - 1, min(len(stages), _DECODER_STAGES)).round().int().tolist()
    config.out_features = [stages[step] for step in steps]
    return config


def _without_dense_decoder(config: EdenConfig) -> EdenConfig:
    """`config`, or a copy without the dense decoder, for models that do not use it."""
    if config.dense_dim is None:
        return config
    config = copy.deepcopy(config)
    config.dense_dim = None
    return config


def _check_batch(pixel_values: Tensor) -> None:
    if pixel_values.ndim != 4:
        raise ValueError(
            "`pixel_values` must have shape (batch_size, num_channels, height, width), "
            f"got {tuple(pixel_values.shape)}"
        )


def _as_grid(features: Tensor, pixel_values: Tensor, patch_size: int | tuple[int, int]) -> Tensor:
    """Feature map [B, C, h, w] of `features`: itself, or token rows [B, prefix + h * w, C] reshaped."""
    if features.ndim == 4:
        return features
    patch_height, patch_width = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
    height, width = pixel_values.shape[-2] // patch_height, pixel_values.shape[-1] // patch_width
    tokens = features[:, features.shape[1] - height * width :]  # class and register tokens come first
    return tokens.transpose(1, 2).unflatten(2, (height, width))


class EdenModel(EdenPreTrainedModel):
    """The trunk: any transformers backbone with global average pooling, ready for `AutoModel`.

    `backbone` is the transformers model of `config.backbone_config`. Loaded from a pretraining folder it is the
    student's trunk; teacher, projector and memory bank stay behind.

    With `config.dense_dim`, `dense_decoder` makes embeddings of points as well.

    Raises:
        ValueError: `out_features` leaves out the trunk's last stage, which this model pools; or `dense_dim` is set and
            the trunk has no feature maps.
    """

    _keys_to_ignore_on_load_unexpected = _PRETRAINING_KEYS + _HEAD_KEYS

    def __init__(self, config: EdenConfig) -> None:
        if config.dense_dim is not None:
            config = _with_decoder_stages(config, "`dense_dim`")
        super().__init__(config)
        self.backbone = _build_trunk(config)
        self.dense_decoder: EdenDenseDecoder | None = None
        if config.dense_dim is not None:
            trunk: Any = self.backbone
            channels = getattr(config.backbone_config, "num_channels", 3)
            self.dense_decoder = EdenDenseDecoder(
                list(trunk.channels), config.dense_hidden_size, config.dense_dim, channels
            )
        if isinstance(self.backbone, BackboneMixin):
            last = self.backbone.stage_names[-1]
            if last not in self.backbone.out_features:
                raise ValueError(
                    f"EdenModel pools the last stage, {last!r}, but out_features is {self.backbone.out_features}; add "
                    "it, or load the folder with EdenBackbone for earlier stages alone"
                )
            self.num_features = self.backbone.num_features[-1]
        else:
            self.num_features = self.backbone.config.hidden_size
            takes = inspect.signature(self.backbone.forward).parameters
            # Parts are smaller than the image a ViT was made for: its position grid is resized to each input.
            self._trunk_arguments = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in takes else {}
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
            output_attentions (`bool`, *optional*): Return the attentions of a trunk that has some as well.
            return_dict (`bool`, *optional*): `False` gives a plain tuple.

        Returns:
            `last_hidden_state` `(batch_size, C, h, w)`, `pooler_output` `(batch_size, C)`: its average over the map
            (not a unit vector), `dense_embeddings` of a model with `config.dense_dim`, and `hidden_states`,
            `attentions` if asked for, in the trunk's own shapes.

        Raises:
            ValueError: `pixel_values` is no batch of images.
        """
        _check_batch(pixel_values)
        pixel_values = pixel_values.to(self.dtype)
        dense_embeddings = None
        if isinstance(self.backbone, BackboneMixin):
            outputs = self.backbone.forward_with_filtered_kwargs(pixel_values, return_dict=True, **kwargs)
            last_hidden_state = outputs.feature_maps[-1]
            if self.dense_decoder is not None and output_dense_embeddings:
                dense_embeddings = self.dense_decoder(pixel_values, outputs.feature_maps)
        else:
            outputs = self.backbone(pixel_values, return_dict=True, **self._trunk_arguments, **kwargs)
            last_hidden_state = outputs.last_hidden_state
        patch_size = getattr(self.config.backbone_config, "patch_size", 1)
        last_hidden_state = _as_grid(last_hidden_state, pixel_values, patch_size)
        return EdenModelOutput(
            last_hidden_state=last_hidden_state,
            pooler_output=last_hidden_state.mean(dim=(2, 3)),
            hidden_states=outputs.hidden_states,
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

    _keys_to_ignore_on_load_unexpected = _PRETRAINING_KEYS + _HEAD_KEYS + _DENSE_KEYS

    def __init__(self, config: EdenConfig) -> None:
        model_type = config.backbone_config.model_type
        if model_type not in MODEL_FOR_BACKBONE_MAPPING_NAMES:
            raise ValueError(
                f"transformers has no backbone with feature maps for model_type {model_type!r}; use "
                "EdenModel, or a trunk such as 'resnet', 'convnextv2', 'swin' or 'dinov2'"
            )
        super().__init__(config)
        self.backbone: Any = _build_trunk(config)
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
        return self.backbone.forward_with_filtered_kwargs(pixel_values, return_dict=True, **kwargs)


class EdenProjector(nn.Module):
    """Projection head: Linear(C, C) - ReLU - Linear(C, D), then unit length (as in MoCo v2)."""

    def __init__(self, num_features: int, projection_dim: int) -> None:
        super().__init__()
        self.dense = nn.Linear(num_features, num_features)
        self.out_proj = nn.Linear(num_features, projection_dim)

    def forward(self, features: Tensor) -> Tensor:
        """Unit rows [B, D] of pooled features [B, C]."""
        return F.normalize(self.out_proj(F.relu(self.dense(features))), dim=1)


class EdenTeacher(nn.Module):
    """The momentum encoder: the student's trunk and projector once more, moved by averaging, never by gradients."""

    def __init__(self, config: EdenConfig) -> None:
        super().__init__()
        self.eden = EdenModel(config)
        self.projector = EdenProjector(self.eden.num_features, config.projection_dim)
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, pixel_values: Tensor) -> Tensor:
        """Unit keys [B, D] of images [B, 3, H, W]."""
        return self.projector(self.eden(pixel_values, output_dense_embeddings=False, return_dict=True).pooler_output)


def pruned_info_nce(
    queries: Tensor,
    keys: Tensor,
    memory_bank: Tensor,
    temperature: float,
    prune_threshold: float | None = None,
) -> EdenForPreTrainingOutput:
    r"""InfoNCE over the negatives that the Purposive Pruner keeps (sections 3.2 and 3.3 of arXiv 2309.15358).

    With the cosine s_j of a query to bank row j, and gamma the threshold:
    `loss = -log(exp(q.k / T) / (exp(q.k / T) + sum over {j: s_j < gamma} of exp(s_j / T)))`, mean over the batch.
    Without a threshold this is MoCo's loss. With every negative pruned it is 0, and so is its gradient. Computed in
    float32 whatever the inputs' dtype and autocast: bfloat16 cannot tell a cosine of 0.798 from 0.8.

    Args:
        queries: Unit rows `(batch_size, dim)`.
        keys: Unit rows `(batch_size, dim)`; row i is the positive of query i.
        memory_bank: Rows `(size, dim)`, unit, or zero where nothing was ever stored: those never count.
        temperature: T.
        prune_threshold: Gamma, or `None` to keep every negative.

    Returns:
        `EdenForPreTrainingOutput` with every field set.
    """
    with torch.autocast(queries.device.type, enabled=False):
        query, key, bank = queries.float(), keys.float(), memory_bank.float()
        positive = (query * key).sum(dim=1)
        similarity = query @ bank.T  # [B, K]
        filled = bank.any(dim=1)
        kept = filled.expand_as(similarity)
        if prune_threshold is not None:
            kept = kept & (similarity.detach() < prune_threshold)
        logits = torch.cat([positive[:, None], similarity.masked_fill(~kept, -math.inf)], dim=1) / temperature
        loss = F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))
        kept_negatives = kept.sum(dim=1)
        candidates = filled.sum().clamp(min=1)
        return EdenForPreTrainingOutput(
            loss=loss,
            query_embeddings=queries,
            key_embeddings=keys,
            positive_similarity=positive.detach(),
            kept_negatives=kept_negatives,
            pruned_share=(filled.sum() - kept_negatives.float().mean()) / candidates,
        )


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _gather_rows(rows: Tensor) -> tuple[Tensor, list[int]]:
    """Rows of every process in rank order, and how many each gave; processes may give different numbers."""
    if _world_size() == 1:
        return rows, [len(rows)]
    count = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.empty_like(count) for _ in range(_world_size())]
    dist.all_gather(counts, count)
    sizes = [int(size) for size in counts]
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])
    padded[: len(rows)] = rows
    gathered = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(gathered, padded)
    return torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)]), sizes


class EdenForPreTraining(EdenPreTrainedModel):
    """Adam's pretraining: a student and its momentum teacher agree on two views of one part of an image.

    Attributes: `eden` (the student's trunk), `projector`, `teacher` (with its own `eden` and `projector` of the same
    shapes), `memory_bank` (K, D) and `bank_ptr` (1,), the row that the next key replaces. All are saved and restored.

    In several processes (`torch.distributed`), keys enter every bank in rank order, so the banks stay equal. A
    trunk with BatchNorm gets its key batch shuffled over the processes, so that shared statistics do not tell
    which key belongs to which query (MoCo); `SyncBatchNorm`, other norms and a single process need no shuffle.
    """

    main_input_name = "query_pixel_values"
    memory_bank: Tensor
    bank_ptr: Tensor

    def __init__(self, config: EdenConfig) -> None:
        super().__init__(config)
        self.eden = EdenModel(config)
        self.projector = EdenProjector(self.eden.num_features, config.projection_dim)
        self.teacher = EdenTeacher(config)
        self.register_buffer("memory_bank", torch.zeros(config.memory_bank_size, config.projection_dim))
        self.register_buffer("bank_ptr", torch.zeros(1, dtype=torch.long))
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load as `PreTrainedModel.from_pretrained` does; the teacher takes no gradients, as when newly made."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # a pair with output_loading_info=True
        model.teacher.requires_grad_(False)  # loading makes every tensor trainable
        return loaded

    def reset_memory_bank(self) -> None:
        """Fill the bank as `config.memory_bank_init` says, unless a checkpoint has just filled it."""
        rows = torch.zeros_like(self.memory_bank)
        if self.config.memory_bank_init == "random":
            rows = F.normalize(torch.randn_like(self.memory_bank), dim=1)
        init.copy_(self.memory_bank, rows)
        init.zeros_(self.bank_ptr)

    def teacher_and_student_tensors(self, buffers: bool = False) -> tuple[list[Tensor], list[Tensor]]:
        """The teacher's parameters (and buffers, if asked) and the student's that they follow, pair by pair."""
        follows = [self.teacher.eden, self.teacher.projector], [self.eden, self.projector]
        teacher, student = (
            [t for module in side for t in (*module.parameters(), *(module.buffers() if buffers else ()))]
            for side in follows
        )
        return teacher, student

    @torch.no_grad()
    def update_teacher(self) -> None:
        """Move the teacher's parameters: t <- m t + (1 - m) s. Its BatchNorm statistics are its own."""
        teacher, student = self.teacher_and_student_tensors()
        get_ema_multi_avg_fn(self.config.teacher_momentum)(teacher, student, None)

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Store unit keys (N, D), oldest rows first; the bank is a ring, so any N fits (of N > K the last K stay)."""
        size = len(self.memory_bank)
        newest = keys[-size:]
        start = self.bank_ptr + len(keys) - len(newest)
        rows = (start + torch.arange(len(newest), device=keys.device)) % size
        self.memory_bank[rows] = newest.to(self.memory_bank.dtype)
        self.bank_ptr.copy_((self.bank_ptr + len(keys)) % size)

    def _keys_are_shuffled(self) -> bool:
        norms = [m for m in self.teacher.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
        return _world_size() > 1 and any(not isinstance(norm, nn.SyncBatchNorm) for norm in norms)

    @torch.no_grad()
    def _encode_keys(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys of this process's images [B, D], and those of all processes in rank order."""
        if not self._keys_are_shuffled():
            keys = self.teacher(pixel_values)
            return keys, _gather_rows(keys)[0]
        rank = dist.get_rank()
        images, sizes = _gather_rows(pixel_values)
        order = torch.randperm(len(images)).to(images.device)
        dist.broadcast(order, src=0)
        shuffled, _ = _gather_rows(self.teacher(images[order.split(sizes)[rank]]))
        all_keys = torch.empty_like(shuffled)
        all_keys[order] = shuffled
        return all_keys.split(sizes)[rank], all_keys

    @can_return_tuple
    def forward(
        self,
        query_pixel_values: Tensor,
        key_pixel_values: Tensor,
        prune_threshold: float | Literal["config"] | None = "config",
        update_teacher: bool = True,
        points: PointTargets | None = None,
        partner_pixel_values: Tensor | None = None,
        partner_weight: float = 1.0,
    ) -> EdenForPreTrainingOutput | EdenPointOutput:
        r"""One step of the objective. In train mode the teacher and the bank move once; in eval mode neither does.

        Args:
            query_pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                One view of each part, for the student.
            key_pixel_values (`torch.FloatTensor` of the same batch size):
                Another view of the same parts, for the teacher.
            prune_threshold (`float`, *optional*):
                Gamma of this step, instead of the configuration's; `None` prunes nothing.
            update_teacher (`bool`, *optional*, defaults to `True`):
                `False` leaves the teacher's average as it is, for all but the first of accumulated batches.
            points (`PointTargets`, *optional*):
                Makes it a step of the dense stage: both views go through the student, each searched for the points
                of the other. Neither bank nor pruner takes part.
            partner_pixel_values (`torch.FloatTensor` of the same batch size, *optional*):
                In the dense stage, the images themselves: the teacher tells where the points of each lie in the next
                of the batch, by a smooth map, and the student looks for them there too.
            partner_weight (`float`, *optional*, defaults to 1): Weight of that search in the loss.
            return_dict (`bool`, *optional*): `False` gives a plain tuple.

        Returns:
            `EdenForPreTrainingOutput`, or `EdenPointOutput` in the dense stage.

        Raises:
            ValueError: queries and keys differ in number, or the model has no dense decoder.
        """
        if len(query_pixel_values) != len(key_pixel_values):
            raise ValueError(
                f"each query needs its key: got {len(query_pixel_values)} query and {len(key_pixel_values)} key images"
            )
        if points is not None:
            views = torch.cat([query_pixel_values, key_pixel_values])
            return self._match_points(views, points, partner_pixel_values, partner_weight, update_teacher)
        gamma = self.config.prune_threshold if prune_threshold == "config" else prune_threshold
        pooled = self.eden(query_pixel_values, output_dense_embeddings=False, return_dict=True).pooler_output
        queries = self.projector(pooled)
        if self.training and update_teacher:
            self.update_teacher()
        if self.training:
            keys, all_keys = self._encode_keys(key_pixel_values)
        else:  # evaluation talks to no other process: their numbers of batches may differ
            keys = self.teacher(key_pixel_values)
        # The loss sees the bank as it was; a copy, because the ring is written in place before the backward pass.
        output = pruned_info_nce(queries, keys, self.memory_bank.clone(), self.config.contrastive_temperature, gamma)
        if self.training:
            self.enqueue(all_keys)
        return output

    def _match_points(
        self, views: Tensor, points: PointTargets, partners: Tensor | None, weight: float, update_teacher: bool
    ) -> EdenPointOutput:
        """The dense stage's step on queries and keys `[2 B, C, H, W]`."""
        if self.config.dense_dim is None:
            raise ValueError("points need a dense decoder: set `dense_dim` in the configuration")
        settings = self.config.dense_temperature, self.config.dense_tolerance
        query_map, key_map = self.eden(views, return_dict=True).dense_embeddings.chunk(2)
        queries = sample_embeddings(query_map, points.query_points)
        keys = sample_embeddings(key_map, points.key_points)
        forth, forth_error = point_contrast(queries, points.query_places, key_map, points.key_nodes, *settings)
        back, back_error = point_contrast(keys, points.key_places, query_map, points.query_nodes, *settings)
        loss, partner_error = (forth + back) / 2, None
        if self.training and update_teacher:
            self.update_teacher()
        if partners is not None and len(partners) > 1:
            places = self._places_in_partners(partners, points.query_places)
            partner_loss, partner_error = point_contrast(
                queries, places, key_map.roll(-1, dims=0), points.key_nodes.roll(-1, dims=0),
                settings[0], _PARTNER_TOLERANCE * settings[1],
            )  # fmt: skip
            loss = loss + weight * partner_loss
        return EdenPointOutput(loss=loss, point_error=(forth_error + back_error) / 2, partner_error=partner_error)

    @torch.no_grad()
    def _places_in_partners(self, images: Tensor, places: Tensor) -> Tensor:
        """Where `places` `[B, P, 2]` of each image lie in the next, by the teacher; NaN where it cannot tell."""
        dense = self.teacher.eden(images, return_dict=True).dense_embeddings
        partners, known = dense.roll(-1, dims=0), places.isfinite().all(dim=2)
        places = places.nan_to_num(0.5)
        with torch.autocast(images.device.type, enabled=False):
            smooth_map, trusted = match_smoothly(dense, partners, step=2)
            targets = expected_places(
                sample_embeddings(dense, 2 * places - 1), partners, smooth_map(places),
                temperature=_PARTNER_TEMPERATURE, spread=_PARTNER_SPREAD,
            )  # fmt: skip
            support = smooth_support(dense, trusted, step=2)
            supported = F.grid_sample(support, 2 * places[:, :, None] - 1, align_corners=False)[:, 0, :, 0]
        known &= (supported > _LEAST_SUPPORT) & ((targets > 0) & (targets < 1)).all(dim=2)
        return torch.where(known[..., None], targets, torch.nan)


#: The teacher tells places in a partner less exactly than a deformation of one's own image tells them.
_PARTNER_TOLERANCE = 1.4
_PARTNER_TEMPERATURE = 0.03
#: By how much a smooth map may be off, as a share of the side (20 mm of a chest).
_PARTNER_SPREAD = 0.056
#: Support (see `smooth_support`) below which a smooth map says nothing.
_LEAST_SUPPORT = 0.12


class EdenForImageClassification(EdenPreTrainedModel):
    """The trunk with a linear classifier on its pooled features: one label, several labels, or regression.

    `config.problem_type` is `"single_label_classification"` (cross-entropy), `"multi_label_classification"` (binary
    cross-entropy; NaN marks a label that is not known and does not count) or `"regression"` (mean squared error).
    Where it is not set, the first labels settle it: one output is a regression, integers are a single label, floats
    are several.
    """

    _keys_to_ignore_on_load_unexpected = _PRETRAINING_KEYS + _DENSE_KEYS

    def __init__(self, config: EdenConfig) -> None:
        config = _without_dense_decoder(config)
        super().__init__(config)
        self.num_labels: int = config.num_labels  # type: ignore[assignment]
        self.eden = EdenModel(config)
        self.classifier = nn.Linear(self.eden.num_features, self.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Any) -> ImageClassifierOutput:
        r"""Scores of images.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Images from `EdenImageProcessor`.
            labels (`torch.Tensor`, *optional*):
                Class indices `(batch_size,)` int64, or `(batch_size, num_labels)` float32 for several labels and for
                regression (`(batch_size,)` with one output).

        Returns:
            `loss` if labels are given, `logits` `(batch_size, num_labels)`, and `hidden_states`, `attentions` if asked
            for.

        Raises:
            ValueError: `labels` have another shape than the logits need.
        """
        outputs = self.eden(pixel_values, return_dict=True, **kwargs)
        logits = self.classifier(outputs.pooler_output)
        loss = None if labels is None else self._loss(logits, labels)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.config.problem_type is None:
            if self.num_labels == 1:
                self.config.problem_type = "regression"
            elif labels.is_floating_point():
                self.config.problem_type = "multi_label_classification"
            else:
                self.config.problem_type = "single_label_classification"
        wanted = logits.shape[:1] if self.config.problem_type == "single_label_classification" else logits.shape
        if labels.numel() != wanted.numel():
            raise ValueError(
                f"labels of {self.config.problem_type} must have shape {tuple(wanted)}, got {tuple(labels.shape)}"
            )
        labels, logits = labels.view(wanted), logits.float()
        if self.config.problem_type == "single_label_classification":
            return F.cross_entropy(logits, labels.long())
        known = ~labels.isnan()
        loss = F.mse_loss if self.config.problem_type == "regression" else F.binary_cross_entropy_with_logits
        # A sum over what is known, so that a batch in which nothing is gives 0 and not NaN.
        return loss(logits[known], labels[known].float(), reduction="sum") / known.sum().clamp(min=1)


class EdenDecoderBlock(nn.Module):
    """One step up of the U-Net: resize, join the skip, two 3 x 3 convolutions with BatchNorm and ReLU."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        channels = in_channels + skip_channels
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += convolution(channels, out_channels)
            channels = out_channels
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor, skip: Tensor | None, size: torch.Size) -> Tensor:
        """`[B, out_channels, *size]` of `features` `[B, in_channels, h, w]` and `skip` `[B, skip_channels, *size]`."""
        features = F.interpolate(features, size=size, mode="bilinear")
        return self.layers(features if skip is None else torch.cat([features, skip], dim=1))


class EdenUNetDecoder(nn.Module):
    """U-Net decoder (Ronneberger et al., 2015) over the maps of a trunk's stages, fine to coarse.

    Widths double from `hidden_size` at the finest map towards the coarsest, up to four times it; after the last skip
    one more step doubles the resolution at half the width. With `detail_size`, that step goes to half the image's side
    and joins a shallow branch over the pixels.

    Args:
        stage_channels: Channels of the trunk's maps, fine to coarse.
        hidden_size: Width at the finest map.
        num_labels: Channels of the logits.
        detail_size: Channels of the branch over the pixels; 0 for none.
        num_channels: Channels of the image.
    """

    def __init__(
        self,
        stage_channels: list[int],
        hidden_size: int,
        num_labels: int,
        detail_size: int = 0,
        num_channels: int = 3,
    ) -> None:
        super().__init__()
        *skips, channels = stage_channels
        self.blocks = nn.ModuleList()
        for index, skip in reversed(list(enumerate(skips))):
            width = hidden_size * min(4, 2**index)
            self.blocks.append(EdenDecoderBlock(channels, skip, width))
            channels = width
        self.detail: nn.Sequential | None = None
        if detail_size:
            self.detail = nn.Sequential(
                convolution(num_channels, detail_size, stride=2), convolution(detail_size, detail_size)
            )
        self.last_block = EdenDecoderBlock(channels, detail_size, hidden_size // 2)
        self.classifier = nn.Conv2d(hidden_size // 2, num_labels, 1)

    def forward(self, pixel_values: Tensor, feature_maps: tuple[Tensor, ...]) -> Tensor:
        """Logits of images `[B, C, H, W]` and their maps, the finest `[B, c, h, w]`.

        Returns:
            `[B, num_labels, 2 h, 2 w]`, or with a branch over the pixels `[B, num_labels, ceil(H / 2), ceil(W / 2)]`.
        """
        *skips, features = feature_maps
        for block, skip in zip(self.blocks, reversed(skips), strict=True):
            features = block(features, skip, skip.shape[-2:])
        detail = None if self.detail is None else self.detail(pixel_values)
        size = torch.Size(2 * side for side in features.shape[-2:]) if detail is None else detail.shape[-2:]
        return self.classifier(self.last_block(features, detail, size))


class EdenForSemanticSegmentation(EdenPreTrainedModel):
    """The trunk with a U-Net decoder that takes skips from its stages.

    `config.segmentation_type` says what masks are: `"overlapping"` structures, each a mask of its own (Dice + binary
    cross-entropy), or `"exclusive"` classes, one a pixel (cross-entropy; `config.semantic_loss_ignore_index` is left
    out). Made from a pretraining folder, the decoder starts afresh and the trunk is the student's.

    Raises:
        ValueError: the trunk's type has no feature maps in transformers (a plain ViT, for one).
    """

    _keys_to_ignore_on_load_unexpected = _PRETRAINING_KEYS + _DENSE_KEYS

    def __init__(self, config: EdenConfig) -> None:
        config = _without_dense_decoder(_with_decoder_stages(config, "segmentation"))
        super().__init__(config)
        self.eden = EdenModel(config)
        trunk: Any = self.eden.backbone
        self.decoder = EdenUNetDecoder(
            list(trunk.channels),
            config.decoder_hidden_size,
            int(config.num_labels or 0),
            config.decoder_detail_size,
            getattr(config.backbone_config, "num_channels", 3),
        )
        self.post_init()

    @can_return_tuple
    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Any) -> SemanticSegmenterOutput:
        r"""Scores of pixels.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Images from `EdenImageProcessor`.
            labels (`torch.Tensor`, *optional*):
                Overlapping: `(batch_size, num_labels, height, width)` float32 in [0, 1]. Exclusive:
                `(batch_size, height, width)` int64.

        Returns:
            `loss` if labels are given, `logits` `(batch_size, num_labels, height, width)` at the size of the input,
            and `hidden_states`, `attentions` if asked for.

        Raises:
            ValueError: `pixel_values` is no batch of images, or `labels` have another shape than
                `config.segmentation_type` needs.
        """
        _check_batch(pixel_values)
        trunk: Any = self.eden.backbone
        pixel_values = pixel_values.to(self.dtype)
        outputs = trunk.forward_with_filtered_kwargs(pixel_values, return_dict=True, **kwargs)
        logits = self.decoder(pixel_values, outputs.feature_maps)
        logits = F.interpolate(logits, size=pixel_values.shape[-2:], mode="bilinear")
        loss = None if labels is None else self._loss(logits.float(), labels)
        return SemanticSegmenterOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.get("attentions")
        )

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        overlapping = self.config.segmentation_type == "overlapping"
        wanted = logits.shape if overlapping else logits[:, 0].shape
        if labels.shape != wanted:
            raise ValueError(
                f"labels of {self.config.segmentation_type} masks must have shape {tuple(wanted)}, got "
                f"{tuple(labels.shape)}; see `config.segmentation_type`"
            )
        if not overlapping:
            ignored = self.config.semantic_loss_ignore_index
            loss = F.cross_entropy(logits, labels.long(), ignore_index=ignored, reduction="sum")
            return loss / (labels != ignored).sum().clamp(min=1)
        masks = labels.float()
        dice = dice_loss(
            logits.flatten(0, 1).flatten(1), masks.flatten(0, 1).flatten(1), masks.shape[0] * masks.shape[1]
        )
        return dice + F.binary_cross_entropy_with_logits(logits, masks)


class EdenForKeypointMatching(EdenPreTrainedModel):
    """Points of one image found in another, by the embeddings of points; for `pipeline("keypoint-matching")`.

    It has no weights beyond `EdenModel`'s: any saved folder with a dense decoder loads.

    Raises:
        ValueError: the model has no dense decoder.
    """

    _keys_to_ignore_on_load_unexpected = _PRETRAINING_KEYS + _HEAD_KEYS

    def __init__(self, config: EdenConfig) -> None:
        if config.dense_dim is None:
            raise ValueError(
                "matching needs embeddings of points, and this configuration has no `dense_dim`: load a model whose "
                "training had a dense stage"
            )
        super().__init__(config)
        self.eden = EdenModel(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor, original_sizes: Tensor | None = None, **kwargs: Any
    ) -> EdenKeypointMatchingOutput:
        r"""Matches of pairs of images; `EdenImageProcessor.post_process_keypoint_matching` gives them in pixels.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 2, num_channels, height, width)`):
                Pairs of images from `EdenImageProcessor`; or `(2 * batch_size, num_channels, height, width)`, each
                pair one after the other, as it gives them.
            original_sizes (`torch.LongTensor` of shape `(2 * batch_size, 2)`, *optional*):
                Height and width of the images before the processor, which hands them on to post-processing.
            return_dict (`bool`, *optional*): `False` gives a plain tuple.

        Returns:
            `matches`, `matching_scores`, `keypoints`, and `original_sizes` where given.

        Raises:
            ValueError: `pixel_values` are no pairs of images.
        """
        if pixel_values.ndim == 5 and pixel_values.shape[1] == 2:
            pixel_values = pixel_values.flatten(0, 1)
        if pixel_values.ndim != 4 or len(pixel_values) % 2:
            raise ValueError(
                "`pixel_values` must be pairs of images, (batch_size, 2, num_channels, height, width) or "
                f"(2 * batch_size, num_channels, height, width), got {tuple(pixel_values.shape)}"
            )
        dense = self.eden(pixel_values, return_dict=True).dense_embeddings
        with torch.autocast(dense.device.type, enabled=False):
            keypoints, scores = match_points(dense[::2], dense[1::2])
        matches = torch.where(scores > 0, torch.arange(scores.shape[1], device=scores.device), -1)
        return EdenKeypointMatchingOutput(
            matches=torch.stack([matches, matches], dim=1),
            matching_scores=torch.stack([scores, scores], dim=1),
            keypoints=keypoints,
            original_sizes=None if original_sizes is None else original_sizes.view(-1, 2, 2),
        )


EdenModel.register_for_auto_class("AutoModel")
EdenBackbone.register_for_auto_class("AutoBackbone")
EdenForPreTraining.register_for_auto_class("AutoModelForPreTraining")
EdenForImageClassification.register_for_auto_class("AutoModelForImageClassification")
EdenForSemanticSegmentation.register_for_auto_class("AutoModelForSemanticSegmentation")
EdenForKeypointMatching.register_for_auto_class("AutoModelForKeypointMatching")

__all__ = [
    "EdenBackbone",
    "EdenForImageClassification",
    "EdenForKeypointMatching",
    "EdenForPreTraining",
    "EdenForPreTrainingOutput",
    "EdenForSemanticSegmentation",
    "EdenModel",
    "EdenPreTrainedModel",
    "pruned_info_nce",
]
