"""Adam's pretraining (arXiv 2309.15358): student, teacher, memory bank, pruned loss (travels as remote code)."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple

from .configuration_eden import EdenConfig
from .modeling_eden_base import EdenModel, EdenPreTrainedModel
from .modeling_eden_dense import (
    PointTargets,
    expected_places,
    match_smoothly,
    point_contrast,
    sample_embeddings,
    smooth_support,
)
from .modeling_eden_trunk import with_decoder_stages


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
        hidden_states, attentions (`tuple(torch.FloatTensor)`, *optional*): Of the student's trunk, if asked for.
    """

    loss: Tensor = None  # type: ignore[assignment]
    query_embeddings: Tensor = None  # type: ignore[assignment]
    key_embeddings: Tensor = None  # type: ignore[assignment]
    positive_similarity: Tensor = None  # type: ignore[assignment]
    kept_negatives: Tensor = None  # type: ignore[assignment]
    pruned_share: Tensor = None  # type: ignore[assignment]
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class EdenPointOutput(ModelOutput):
    """Output of `EdenForPreTraining.match_points`, the objective of the dense stage.

    Args:
        loss (`torch.FloatTensor` without dimension): Of both kinds of search, weighted.
        point_error (`torch.FloatTensor` without dimension): Mean distance between found and true points of the other
            view of the same image, as a share of the image's side.
        partner_error (`torch.FloatTensor` without dimension, *optional*): The same between the student's and the
            teacher's points of another image, where one was searched.
        hidden_states, attentions (`tuple(torch.FloatTensor)`, *optional*): Of the student's trunk for queries and
            keys, if asked for.
    """

    loss: Tensor = None  # type: ignore[assignment]
    point_error: Tensor = None  # type: ignore[assignment]
    partner_error: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class EdenProjector(nn.Module):
    """Projection head: Linear(C, C) - ReLU - Linear(C, D), then unit length (as in MoCo v2)."""

    def __init__(self, num_features: int, projection_dim: int) -> None:
        super().__init__()
        self.dense = nn.Linear(num_features, num_features)
        self.out_proj = nn.Linear(num_features, projection_dim)

    def forward(self, features: Tensor) -> Tensor:
        """Unit rows [B, D], float32 under autocast too, of pooled features [B, C]."""
        return F.normalize(self.out_proj(F.relu(self.dense(features))).float(), dim=1)


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
    float32 whatever the inputs' dtype and autocast: bfloat16 cannot tell a cosine of 0.798 from 0.8. Queries alone get
    a gradient, which is formed in the forward pass: the bank may be written before the backward pass.

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
        losses, positive, kept_negatives, filled = _PrunedInfoNCE.apply(
            queries.float(),
            keys.float(),
            memory_bank,
            temperature,
            math.inf if prune_threshold is None else prune_threshold,
        )
        return EdenForPreTrainingOutput(
            loss=losses.mean(),
            query_embeddings=queries,
            key_embeddings=keys,
            positive_similarity=positive,
            kept_negatives=kept_negatives,
            pruned_share=(filled - kept_negatives.float().mean()) / filled.clamp(min=1),
        )


class _PrunedInfoNCE(torch.autograd.Function):
    """Loss of each query, its gradient formed on the way, over tiles of the bank: no matrix of all cosines is kept.

    With softmax weights w of the positive k and the kept rows b_j, the gradient is `(w_0 k + sum w_j b_j - k) / T`;
    its sums grow with the loss's, tile by tile, relative to the largest logit so far.
    """

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, bank: Tensor, temperature: float, threshold: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        positive = (queries * keys).sum(dim=1)
        largest, total, mixture = positive, torch.ones_like(positive), keys
        kept_negatives = torch.zeros(len(queries), dtype=torch.long, device=queries.device)
        filled = torch.zeros((), dtype=torch.long, device=queries.device)
        for rows in bank.split(max(1, _TILE // len(queries))):
            rows = rows.float()
            is_filled = rows.norm(dim=1) > 0
            similarity = queries @ rows.T
            kept = similarity < torch.where(is_filled, threshold, -math.inf)
            similarity.masked_fill_(~kept, -math.inf)
            before, largest = largest, torch.maximum(largest, similarity.amax(dim=1))
            weights = similarity.sub_(largest[:, None]).div_(temperature).exp_()
            shrunk = ((before - largest) / temperature).exp()
            total = total * shrunk + weights.sum(dim=1)
            mixture = torch.addmm(mixture * shrunk[:, None], weights, rows)
            kept_negatives += kept.sum(dim=1)
            filled += is_filled.sum()
        ctx.save_for_backward((mixture / total[:, None] - keys) / temperature)
        ctx.mark_non_differentiable(positive, kept_negatives, filled)
        return (largest - positive) / temperature + total.log(), positive, kept_negatives, filled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_losses: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * of_losses[:, None], None, None, None, None


#: Cosines held at a time (8 MB in float32): larger tiles leave the caches of a CPU.
_TILE = 2**21


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _gather_rows(rows: Tensor, equal: bool = False) -> tuple[Tensor, list[int]]:
    """Rows of every process in rank order, and how many each gave.

    Processes may give different numbers, unless they are known to be `equal`: to ask for them is to wait for a GPU.
    """
    if _world_size() == 1:
        return rows, [len(rows)]
    if equal:
        gathered = [torch.empty_like(rows) for _ in range(_world_size())]
        dist.all_gather(gathered, rows.contiguous())
        return torch.cat(gathered), [len(rows)] * _world_size()
    count = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.empty_like(count) for _ in range(_world_size())]
    dist.all_gather(counts, count)
    sizes = [int(size) for size in counts]
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])
    padded[: len(rows)] = rows
    gathered = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(gathered, padded)
    return torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)]), sizes


def _shuffle_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """As many rows as this process gave, of those of all in an order that rank 0 draws, and the order."""
    everything, sizes = _gather_rows(rows)
    order = torch.randperm(len(everything)).to(rows.device)
    dist.broadcast(order, src=0)
    return everything[order.split(sizes)[dist.get_rank()]], order


class EdenForPreTraining(EdenPreTrainedModel):
    """Adam's pretraining: a student and its momentum teacher agree on two views of one part of an image.

    Attributes: `eden` (the student's trunk), `projector`, `teacher` (with its own `eden` and `projector` of the same
    shapes), `memory_bank` (K, D) and `bank_ptr` (1,), the row that the next key replaces. All are saved and restored.

    In several processes (`torch.distributed`), keys enter every bank in rank order, so the banks stay equal. A
    trunk with BatchNorm gets its key batch shuffled over the processes, so that shared statistics do not tell
    which key belongs to which query (MoCo); `SyncBatchNorm`, other norms and a single process need no shuffle.
    Images are exchanged for it, unless the caller has given each process its share of the shuffled ones (`key_order`).
    """

    main_input_name = "query_pixel_values"
    memory_bank: Tensor
    bank_ptr: Tensor

    def __init__(self, config: EdenConfig) -> None:
        if config.dense_dim is not None:
            config = with_decoder_stages(config, "`dense_dim`")
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

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            self.reset_memory_bank()
            for teacher, student in zip(*self.teacher_and_student_tensors(buffers=True), strict=True):
                init.copy_(teacher, student)

    def reset_memory_bank(self) -> None:
        """Fill the bank as `config.memory_bank_init` says, unless a checkpoint has just filled it."""
        rows = torch.zeros_like(self.memory_bank)
        if self.config.memory_bank_init == "random":
            rows = F.normalize(torch.randn_like(self.memory_bank, dtype=torch.float32), dim=1)
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
    def _encode_keys(self, pixel_values: Tensor, order: Tensor | None) -> tuple[Tensor, Tensor]:
        """Keys of this process's queries [B, D], and those of all processes in rank order."""
        equal = order is not None
        if order is None and self._keys_are_shuffled():
            pixel_values, order = _shuffle_rows(pixel_values)
        keys = self.teacher(pixel_values)
        all_keys, sizes = _gather_rows(keys, equal)
        if order is None:
            return keys, all_keys
        all_keys = torch.empty_like(all_keys).index_copy_(0, order, all_keys)
        return all_keys.split(sizes)[dist.get_rank() if _world_size() > 1 else 0], all_keys

    @can_return_tuple
    def forward(
        self,
        query_pixel_values: Tensor,
        key_pixel_values: Tensor,
        prune_threshold: float | Literal["config"] | None = "config",
        update_teacher: bool = True,
        key_order: Tensor | None = None,
        points: PointTargets | None = None,
        partner_pixel_values: Tensor | None = None,
        partner_weight: float = 1.0,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> EdenForPreTrainingOutput | EdenPointOutput:
        r"""One step of the objective. In train mode the teacher and the bank move once; in eval mode neither does.

        Args:
            query_pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                One view of each part, for the student.
            key_pixel_values (`torch.FloatTensor` of the same batch size):
                Another view of the same parts, for the teacher; with `key_order`, of other parts of the whole batch.
            prune_threshold (`float`, *optional*):
                Gamma of this step, instead of the configuration's; `None` prunes nothing.
            update_teacher (`bool`, *optional*, defaults to `True`):
                `False` leaves the teacher's average as it is, for all but the first of accumulated batches.
            key_order (`torch.LongTensor` of shape `(batch_size of all processes,)`, *optional*):
                Says that the keys' images were shuffled over the processes already: key i of all, in rank order, is
                of query `key_order[i]` of all. The processes must have equal batches then.
            points (`PointTargets`, *optional*):
                Makes it a step of the dense stage: both views go through the student, each searched for the points
                of the other. Neither bank nor pruner takes part.
            partner_pixel_values (`torch.FloatTensor` of the same batch size, *optional*):
                In the dense stage, the images themselves: the teacher tells where the points of each lie in the next
                of the batch, by a smooth map, and the student looks for them there too.
            partner_weight (`float`, *optional*, defaults to 1): Weight of that search in the loss.
            output_hidden_states, output_attentions (`bool`, *optional*): Return those of the student's trunk as well.
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
        asked = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        if points is not None:
            student = self.eden(
                torch.cat([query_pixel_values, key_pixel_values]), return_dict=True, **self.asked_of_trunk(asked)
            )
            output: Any = self._match_points(
                student.dense_embeddings, points, partner_pixel_values, partner_weight, update_teacher
            )
        else:
            gamma = self.config.prune_threshold if prune_threshold == "config" else prune_threshold
            asked["output_dense_embeddings"] = False
            student = self.eden(query_pixel_values, return_dict=True, **self.asked_of_trunk(asked))
            queries = self.projector(student.pooler_output)
            output = self._contrast(queries, key_pixel_values, gamma, update_teacher, key_order)
        output.hidden_states, output.attentions = student.hidden_states, student.attentions
        return output

    def _contrast(
        self,
        queries: Tensor,
        key_pixel_values: Tensor,
        gamma: float | None,
        update_teacher: bool,
        key_order: Tensor | None,
    ) -> EdenForPreTrainingOutput:
        """The step on the student's unit rows `[B, D]` and the keys' images."""
        if self.training and update_teacher:
            self.update_teacher()
        if self.training:
            keys, all_keys = self._encode_keys(key_pixel_values, key_order)
        else:  # evaluation talks to no other process: their numbers of batches may differ
            keys = self.teacher(key_pixel_values)
        output = pruned_info_nce(queries, keys, self.memory_bank, self.config.contrastive_temperature, gamma)
        if self.training:
            self.enqueue(all_keys)
        return output

    def _match_points(
        self,
        dense_embeddings: Any,
        points: PointTargets,
        partners: Tensor | None,
        weight: float,
        update_teacher: bool,
    ) -> EdenPointOutput:
        """The dense stage's step on the student's maps of the queries and then the keys, `[2 B, D, h, w]`."""
        if self.config.dense_dim is None:
            raise ValueError("points need a dense decoder: set `dense_dim` in the configuration")
        settings = self.config.dense_temperature, self.config.dense_tolerance
        query_map, key_map = dense_embeddings.chunk(2)
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


__all__ = ["EdenForPreTraining", "EdenForPreTrainingOutput", "EdenPointOutput", "pruned_info_nce"]
