"""Heads that a trunk is fine-tuned with: classification and segmentation (travels to the Hub as remote code)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.loss.loss_for_object_detection import dice_loss
from transformers.modeling_outputs import ImageClassifierOutput, SemanticSegmenterOutput
from transformers.utils import can_return_tuple

from .configuration_eden import EdenConfig
from .modeling_eden_base import DENSE_KEYS, PRETRAINING_KEYS, EdenModel, EdenPreTrainedModel, check_batch, selected
from .modeling_eden_dense import convolution
from .modeling_eden_trunk import run_trunk, with_decoder_stages, without_dense_decoder

#: Class that the loss of a classification leaves out, as torch and transformers have it.
_IGNORED = -100


def check_classes(labels: Tensor, num_labels: int, ignored: int, mend: str) -> None:
    """Raise ValueError unless labels are classes below `num_labels`, or the one that is left out.

    torch would raise an IndexError without the value, and on a GPU end the process.
    """
    wrong = labels[((labels < 0) | (labels >= num_labels)) & (labels != ignored)]
    if wrong.numel():
        raise ValueError(
            f"labels must be classes from 0 to {num_labels - 1} (`config.num_labels`), or {ignored} for what is left "
            f"out, got {wrong.unique()[:5].tolist()}: {mend}, or make the model with more labels"
        )


class EdenForImageClassification(EdenPreTrainedModel):
    """The trunk with a linear classifier on its pooled features: one label, several labels, or regression.

    `config.problem_type` is `"single_label_classification"` (cross-entropy), `"multi_label_classification"` (binary
    cross-entropy; NaN marks a label that is not known and does not count) or `"regression"` (mean squared error).
    Where it is not set, the first labels settle it: one output is a regression, integers are a single label, floats
    are several.
    """

    _keys_to_ignore_on_load_unexpected = PRETRAINING_KEYS + DENSE_KEYS

    def __init__(self, config: EdenConfig) -> None:
        config = without_dense_decoder(config)
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
            ValueError: `labels` have another shape than the logits need, or are no classes of the model.
        """
        outputs = self.eden(pixel_values, return_dict=True, **self.asked_of_trunk(kwargs))
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
            check_classes(labels, self.num_labels, _IGNORED, "correct the labels")
            return F.cross_entropy(logits, labels.long(), ignore_index=_IGNORED)
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

    _keys_to_ignore_on_load_unexpected = PRETRAINING_KEYS + DENSE_KEYS

    def __init__(self, config: EdenConfig) -> None:
        config = without_dense_decoder(with_decoder_stages(config, "segmentation"))
        super().__init__(config)
        self.eden = EdenModel(config)
        self.decoder = EdenUNetDecoder(
            self.eden.map_channels,
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
                `config.segmentation_type` needs, or are no classes of the model.
        """
        check_batch(pixel_values)
        pixel_values = pixel_values.to(self.dtype)
        asked = self.asked_of_trunk(kwargs)
        maps, outputs = run_trunk(self.eden.backbone, pixel_values, **asked)
        logits = self.decoder(pixel_values, maps)
        logits = F.interpolate(logits, size=pixel_values.shape[-2:], mode="bilinear")
        loss = None if labels is None else self._loss(logits.float(), labels)
        return SemanticSegmenterOutput(
            loss=loss,
            logits=logits,
            hidden_states=selected(outputs.hidden_states, asked.get("output_hidden_states")),
            attentions=outputs.get("attentions"),
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
            mend = "set `config.semantic_loss_ignore_index` to the label of pixels that do not count"
            check_classes(labels, logits.shape[1], ignored, mend)
            loss = F.cross_entropy(logits, labels.long(), ignore_index=ignored, reduction="sum")
            return loss / (labels != ignored).sum().clamp(min=1)
        masks = labels.float()
        dice = dice_loss(
            logits.flatten(0, 1).flatten(1), masks.flatten(0, 1).flatten(1), masks.shape[0] * masks.shape[1]
        )
        return dice + F.binary_cross_entropy_with_logits(logits, masks)


__all__ = ["EdenForImageClassification", "EdenForSemanticSegmentation"]
