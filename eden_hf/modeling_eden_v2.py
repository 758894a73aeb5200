"""Adam-v2's pretraining: localizability, composability and decomposability (travels as remote code)."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple

from .configuration_eden import EdenConfig
from .modeling_eden_base import EdenModel, EdenPreTrainedModel
from .modeling_eden_trunk import without_dense_decoder

#: Parts of a whole: 2 x 2, row by row.
PARTS = 4


@dataclass
class EdenV2ForPreTrainingOutput(ModelOutput):
    """Output of `EdenV2ForPreTraining`: the loss first, then its parts.

    Args:
        loss (`torch.FloatTensor` without dimension): Weighted sum of the three, mean over the batch.
        localizability_loss (`torch.FloatTensor` without dimension): Cross-entropy between teacher and student.
        composability_loss (`torch.FloatTensor` without dimension, *optional*): Of the whole composed of its parts.
        decomposability_loss (`torch.FloatTensor` without dimension, *optional*): Of the parts decomposed of a whole.
        teacher_embeddings (`torch.FloatTensor` of shape `(batch_size, C)`): The teacher's of the whole anchors, or of
            the first global crops where there are none; not unit vectors.
    """

    loss: Tensor = None  # type: ignore[assignment]
    localizability_loss: Tensor = None  # type: ignore[assignment]
    composability_loss: Tensor | None = None
    decomposability_loss: Tensor | None = None
    teacher_embeddings: Tensor = None  # type: ignore[assignment]


class _NarrowLinear(nn.Linear):
    """A linear layer that starts as a truncated normal of 0.02, without bias."""


class EdenLocalizabilityHead(nn.Module):
    """Three linear layers with GELU to unit vectors, and their cosines to the unit rows of a last one (as in DINO)."""

    def __init__(self, num_features: int, config: EdenConfig) -> None:
        super().__init__()
        hidden, bottleneck = config.localizability_hidden_size, config.localizability_bottleneck_size
        self.mlp = nn.Sequential(
            _NarrowLinear(num_features, hidden), nn.GELU(), _NarrowLinear(hidden, hidden), nn.GELU(),
            _NarrowLinear(hidden, bottleneck),
        )  # fmt: skip
        self.last_layer = nn.Linear(bottleneck, config.localizability_outputs, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Cosines `[N, outputs]` in [-1, 1] of pooled features `[N, C]`."""
        return F.linear(F.normalize(self.mlp(features), dim=1), F.normalize(self.last_layer.weight, dim=1))


class EdenStudent(nn.Module):
    """What is trained of Adam-v2's localizability: a trunk and its head. The teacher has the same."""

    def __init__(self, config: EdenConfig) -> None:
        super().__init__()
        self.eden = EdenModel(config)
        self.head = EdenLocalizabilityHead(self.eden.num_features, config)


def cross_view_entropy(
    student: Tensor,
    teacher: Tensor,
    center: Tensor,
    student_temperature: float,
    teacher_temperature: float,
) -> Tensor:
    r"""Localizability: mean cross-entropy of the student's crops under the teacher's.

    With `p_i = softmax((t_i - c) / T_t)` of the teacher's crop i, the mean over crops i and v of
    `- p_i . log softmax(s_v / T_s)`. Where the teacher has several crops, they are the student's first ones, and no
    crop is compared with itself. Computed in float32; the student alone gets a gradient.

    Args:
        student: Logits `(crops, batch_size, outputs)`.
        teacher: Logits `(teacher's crops, batch_size, outputs)`.
        center: c, `(1, outputs)`.
        student_temperature: T_s.
        teacher_temperature: T_t.

    Returns:
        The loss, without dimension.
    """
    with torch.autocast(student.device.type, enabled=False):
        targets = ((teacher.detach().float() - center) / teacher_temperature).softmax(dim=2)
        logs = (student.float() / student_temperature).log_softmax(dim=2)
        entropies = -torch.einsum("ibk,vbk->iv", targets, logs) / student.shape[1]
        if len(teacher) > 1:
            others = ~torch.eye(len(teacher), len(student), dtype=torch.bool, device=student.device)
            return (entropies * others).sum() / others.sum()
        return entropies.mean()


def composability(composed: Tensor, whole: Tensor) -> Tensor:
    """Mean squared difference of the unit vectors of what was composed of parts and of the whole, both `[B, C]`."""
    with torch.autocast(composed.device.type, enabled=False):
        return F.mse_loss(F.normalize(composed.float(), dim=1), F.normalize(whole.float(), dim=1))


def decomposability(decomposed: Tensor, parts: Tensor, norm: str = "whole") -> Tensor:
    """Mean squared difference of what was decomposed of the wholes and their parts.

    Args:
        decomposed: `[B, parts * C]`.
        parts: `[parts, B, C]`; each becomes a unit vector.
        norm: `"whole"` brings all parts of an image to unit length together (published: the least loss is then
            `(sqrt(parts) - 1)^2 / (parts * C)`, for 4 parts `1 / 4C`), `"part"` each by itself (the least is 0).
    """
    with torch.autocast(decomposed.device.type, enabled=False):
        rows = decomposed.float()
        if norm == "whole":
            rows = F.normalize(rows, dim=1)
        rows = rows.unflatten(1, (len(parts), -1)).transpose(0, 1)
        if norm == "part":
            rows = F.normalize(rows, dim=2)
        return F.mse_loss(rows, F.normalize(parts.float(), dim=2))


class EdenV2ForPreTraining(EdenPreTrainedModel):
    """Adam-v2's pretraining: crops of an anchor agree, its parts compose it, and it decomposes into them.

    Attributes: `student` (a trunk `eden` and a localizability `head`), the teacher's `eden` and `head` of the same
    shapes, which follow it, `compose` and `decompose` (the student's part-whole heads) and `center` (1, outputs), the
    moving mean of the teacher's outputs. The teacher's trunk is the one that is used, so it is the one under `eden`.

    In train mode a call leaves the teacher as it is; after the optimiser's step call `update_teacher(momentum)`, which
    moves the centre too, by the calls since the last. In several processes the centre is of the rows of all.
    """

    main_input_name = "local_pixel_values"
    center: Tensor
    _center_sum: Tensor
    _center_rows: Tensor

    def __init__(self, config: EdenConfig) -> None:
        config = without_dense_decoder(config)
        super().__init__(config)
        self.student = EdenStudent(config)
        self.eden = EdenModel(config)
        features = self.eden.num_features
        self.head = EdenLocalizabilityHead(features, config)
        self.compose = _part_whole_head(PARTS * features, features)
        self.decompose = _part_whole_head(features, PARTS * features)
        self.register_buffer("center", torch.zeros(1, config.localizability_outputs))
        self.register_buffer("_center_sum", torch.zeros(1, config.localizability_outputs), persistent=False)
        self.register_buffer("_center_rows", torch.zeros(1), persistent=False)
        self._fix_teacher()
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load as `PreTrainedModel.from_pretrained` does; the teacher takes no gradients, as when newly made."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # a pair with output_loading_info=True
        model._fix_teacher()  # loading makes every tensor trainable
        return loaded

    def _fix_teacher(self) -> None:
        for module in (self.eden, self.head):
            module.requires_grad_(False)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, _NarrowLinear):
            init.trunc_normal_(module.weight, std=0.02)
            init.zeros_(module.bias)
        if module is self:
            for name in ("center", "_center_sum", "_center_rows"):
                init.zeros_(getattr(self, name))
            for teacher, student in zip(*self.teacher_and_student_tensors(buffers=True), strict=True):
                init.copy_(teacher, student)

    def teacher_and_student_tensors(self, buffers: bool = False) -> tuple[list[Tensor], list[Tensor]]:
        """The teacher's parameters (and buffers, if asked) and the student's that they follow, pair by pair."""
        follows = [self.eden, self.head], [self.student.eden, self.student.head]
        teacher, student = (
            [t for module in side for t in (*module.parameters(), *(module.buffers() if buffers else ()))]
            for side in follows
        )
        return teacher, student

    @torch.no_grad()
    def update_teacher(self, momentum: float | None = None) -> None:
        """Move the teacher's parameters, t <- m t + (1 - m) s, and the centre. BatchNorm statistics are its own.

        Args:
            momentum: m of this step, by default `config.teacher_momentum`.
        """
        teacher, student = self.teacher_and_student_tensors()
        m = self.config.teacher_momentum if momentum is None else momentum
        get_ema_multi_avg_fn(m)(teacher, student, None)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self._center_sum)
            dist.all_reduce(self._center_rows)
        moved = (self._center_rows > 0) * (1 - self.config.center_momentum)  # on the device, which nobody waits for
        self.center.lerp_(self._center_sum / self._center_rows.clamp(min=1), moved)
        self._center_sum.zero_()
        self._center_rows.zero_()

    @can_return_tuple
    def forward(
        self,
        global_pixel_values: Tensor,
        local_pixel_values: Tensor,
        whole_pixel_values: Tensor | None = None,
        part_pixel_values: Tensor | None = None,
        teacher_temperature: float | None = None,
        composability_weight: float = 1.0,
        decomposability_weight: float = 1.0,
    ) -> EdenV2ForPreTrainingOutput:
        r"""The loss of the crops of a batch of anchors. Only after it does the centre take in the teacher's outputs.

        Args:
            global_pixel_values (`torch.FloatTensor` of shape `(crops, batch_size, num_channels, height, width)`):
                Large crops, for the student, and without wholes for the teacher too.
            local_pixel_values (`torch.FloatTensor` of shape `(crops, batch_size, num_channels, height, width)`):
                Small crops, for the student.
            whole_pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`, *optional*):
                The anchors. The teacher's targets are then of them alone.
            part_pixel_values (`torch.FloatTensor` of shape `(4, batch_size, channels, height, width)`, *optional*):
                Their parts, row by row, for composability and decomposability.
            teacher_temperature (`float`, *optional*):
                Of this step, instead of the configuration's.
            composability_weight, decomposability_weight (`float`, *optional*, defaults to 1):
                Weights in the loss, beside localizability's 1. With 0 nothing is computed of it.
            return_dict (`bool`, *optional*): `False` gives a plain tuple.

        Returns:
            `EdenV2ForPreTrainingOutput`.

        Raises:
            ValueError: there are parts without wholes, or other than four.
        """
        if part_pixel_values is not None and (whole_pixel_values is None or len(part_pixel_values) != PARTS):
            raise ValueError(f"parts are {PARTS} and come with their wholes, got {len(part_pixel_values)} parts")
        targets = global_pixel_values if whole_pixel_values is None else whole_pixel_values[None]
        with torch.no_grad():
            embedded = _embed(self.eden, targets)
            logits = self.head(embedded.flatten(0, 1)).unflatten(0, embedded.shape[:2])
        localized = self._localizability(global_pixel_values, local_pixel_values, logits, teacher_temperature)
        composed = decomposed = None
        if part_pixel_values is not None and composability_weight:
            parts = self._embed_parts(self.student.eden, part_pixel_values)
            composed = composability(self.compose(torch.cat([*parts], dim=1)), embedded[0])
        if part_pixel_values is not None and decomposability_weight:
            whole = _embed(self.student.eden, targets)[0]
            with torch.no_grad():
                parts = self._embed_parts(self.eden, part_pixel_values)
            decomposed = decomposability(self.decompose(whole), parts, self.config.decomposition_norm)
        weighted = (localized, 1.0), (composed, composability_weight), (decomposed, decomposability_weight)
        return EdenV2ForPreTrainingOutput(
            loss=sum(weight * loss for loss, weight in weighted if loss is not None),  # type: ignore[arg-type]
            localizability_loss=localized,
            composability_loss=composed,
            decomposability_loss=decomposed,
            teacher_embeddings=embedded[0],
        )

    def _localizability(
        self, global_crops: Tensor, local_crops: Tensor, targets: Tensor, teacher_temperature: float | None
    ) -> Tensor:
        features = torch.cat([_embed(self.student.eden, crops) for crops in (global_crops, local_crops)])
        logits = self.student.head(features.flatten(0, 1)).unflatten(0, features.shape[:2])
        loss = cross_view_entropy(
            logits, targets, self.center, self.config.student_temperature,
            self.config.teacher_temperature if teacher_temperature is None else teacher_temperature,
        )  # fmt: skip
        if self.training:
            self._center_sum += targets.float().sum(dim=(0, 1))
            self._center_rows += targets.shape[0] * targets.shape[1]
        return loss

    def _embed_parts(self, trunk: EdenModel, parts: Tensor) -> Tensor:
        """`[parts, B, C]`: in one pass, or each part in a pass of its own, as published."""
        return _embed(trunk, parts) if self.config.joined_parts else torch.cat([_embed(trunk, p[None]) for p in parts])


def _part_whole_head(inputs: int, outputs: int) -> nn.Sequential:
    """Linear - ReLU - Linear, of hidden width C: the smaller of its two sides."""
    hidden = min(inputs, outputs)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def _embed(trunk: EdenModel, images: Tensor) -> Tensor:
    """Embeddings `[crops, B, C]` of images `[crops, B, channels, H, W]`, in one pass."""
    return trunk(images.flatten(0, 1), return_dict=True).pooler_output.unflatten(0, images.shape[:2])


__all__ = [
    "PARTS",
    "EdenV2ForPreTraining",
    "EdenV2ForPreTrainingOutput",
    "composability",
    "cross_view_entropy",
    "decomposability",
]
