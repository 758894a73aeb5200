"""Configuration of Eden models (travels to the Hub as remote code: imports transformers and huggingface_hub only)."""

from copy import deepcopy
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

_RESNET18 = {"model_type": "resnet", "layer_type": "basic", "depths": [2, 2, 2, 2]}
_RESNET_WIDTHS = {"embedding_size": 64, "hidden_sizes": [64, 128, 256, 512]}

#: Trunks by name. The ResNets are torchvision's (v1.5: the bottleneck strides in its 3x3 convolution).
BACKBONE_PRESETS: dict[str, dict[str, Any]] = {
    "resnet18": {**_RESNET18, **_RESNET_WIDTHS},
    "resnet18-half": {**_RESNET18, "embedding_size": 32, "hidden_sizes": [32, 64, 128, 256]},
    "resnet34": {**_RESNET18, **_RESNET_WIDTHS, "depths": [3, 4, 6, 3]},
    "resnet50": {
        "model_type": "resnet",
        "layer_type": "bottleneck",
        "embedding_size": 64,
        "hidden_sizes": [256, 512, 1024, 2048],
        "depths": [3, 4, 6, 3],
    },
}

_PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")


@strict
class EdenConfig(PreTrainedConfig):
    r"""Configuration of an Eden model: a trunk, what self-supervised pretraining puts round it, and its heads.

    Args:
        backbone_config (`PreTrainedConfig`, `dict` or `str`, *optional*, defaults to `"resnet50"`):
            The trunk: the configuration of any image encoder of transformers, or of a model with two towers such as
            CLIP, of which the vision tower is taken (a `dict` needs its `model_type`); or the name of a preset:
            `"resnet18"`, `"resnet18-half"`, `"resnet34"`, `"resnet50"`.
        projection_dim (`int`, *optional*, defaults to 128):
            Dimension D of the embeddings that the contrastive loss compares.
        memory_bank_size (`int`, *optional*, defaults to 65536):
            Number K of past keys that serve as negatives.
        memory_bank_init (`str`, *optional*, defaults to `"random"`):
            `"random"`: the bank starts as random unit rows that count as negatives, as published. `"empty"`: it
            warms up, and a row counts only once a key has filled it (rows of zeros never count).
        contrastive_temperature (`float`, *optional*, defaults to 0.2):
            Temperature T of the loss.
        teacher_momentum (`float`, *optional*, defaults to 0.999):
            Momentum m of the teacher's exponential moving average.
        prune_threshold (`float`, *optional*):
            Gamma of the Purposive Pruner: negatives whose cosine similarity to the anchor is at or above it are
            dropped. `None` prunes nothing.
        localizability_hidden_size (`int`, *optional*, defaults to 2048):
            Width of the hidden layers of Adam-v2's localizability head.
        localizability_bottleneck_size (`int`, *optional*, defaults to 256):
            Dimension of the unit vectors before its last layer.
        localizability_outputs (`int`, *optional*, defaults to 65536):
            Number of its outputs, cosines to as many unit rows.
        student_temperature (`float`, *optional*, defaults to 0.1):
            Temperature of the student's softmax over these outputs.
        teacher_temperature (`float`, *optional*, defaults to 0.04):
            Temperature of the teacher's.
        center_momentum (`float`, *optional*, defaults to 0.9):
            Momentum of the moving mean of the teacher's outputs, which is taken off them.
        decomposition_norm (`str`, *optional*, defaults to `"whole"`):
            `"whole"` brings the decomposed parts of an image to unit length together, as published; `"part"` each.
        joined_parts (`bool`, *optional*, defaults to `False`):
            Embed the parts of the images in one pass, with common BatchNorm statistics; faster. As published, the
            first parts pass together, then the second ones ...
        dense_dim (`int`, *optional*):
            Dimension of the dense embeddings, of the point under each pixel. `None`: the model has no dense decoder.
        dense_hidden_size (`int`, *optional*, defaults to 64):
            Channels of the dense decoder.
        dense_temperature (`float`, *optional*, defaults to 0.07):
            Temperature of the softmax over the points of an image, in the dense stage's loss.
        dense_tolerance (`float`, *optional*, defaults to 0.014):
            How near counts as the same point in that loss, as a share of the image's side (5 mm of a chest).
        decoder_hidden_size (`int`, *optional*, defaults to 64):
            Channels of the segmentation decoder at the trunk's finest map.
        decoder_detail_size (`int`, *optional*, defaults to 0):
            Channels of a shallow branch over the pixels that the segmentation decoder joins at half the image's side,
            for the fine detail that a trunk's stem throws away. 0: there is none.
        segmentation_type (`str`, *optional*, defaults to `"overlapping"`):
            `"overlapping"`: each label is a mask of its own. `"exclusive"`: each pixel has one label.
        semantic_loss_ignore_index (`int`, *optional*, defaults to 255):
            Label of pixels that exclusive segmentation leaves out of the loss; the processor has a setting of this
            name for the padding.

    Raises:
        ValueError: a value is out of its range, or the trunk is unknown (`StrictDataclass...Error` of huggingface_hub,
            which name the field, wrap it).

    Example:

        >>> from eden_hf import EdenConfig, EdenModel
        >>> config = EdenConfig(backbone_config="resnet18", prune_threshold=0.8)
        >>> model = EdenModel(config)
    """

    model_type = "eden"
    sub_configs: ClassVar = {"backbone_config": AutoConfig}

    backbone_config: Any = None  # a PreTrainedConfig once made
    projection_dim: int = 128
    memory_bank_size: int = 65536
    memory_bank_init: Literal["random", "empty"] = "random"
    contrastive_temperature: float | int = 0.2
    teacher_momentum: float | int = 0.999
    prune_threshold: float | int | None = None
    localizability_hidden_size: int = 2048
    localizability_bottleneck_size: int = 256
    localizability_outputs: int = 65536
    student_temperature: float | int = 0.1
    teacher_temperature: float | int = 0.04
    center_momentum: float | int = 0.9
    decomposition_norm: Literal["whole", "part"] = "whole"
    joined_parts: bool = False
    dense_dim: int | None = None
    dense_hidden_size: int = 64
    dense_temperature: float | int = 0.07
    dense_tolerance: float | int = 0.014
    decoder_hidden_size: int = 64
    decoder_detail_size: int = 0
    segmentation_type: Literal["overlapping", "exclusive"] = "overlapping"
    semantic_loss_ignore_index: int = 255

    def __post_init__(self, **kwargs: Any) -> None:
        stages = {name: kwargs.pop(name) for name in ("out_features", "out_indices") if name in kwargs}
        self.backbone_config = _resolve_backbone(self.backbone_config)
        super().__post_init__(**kwargs)
        if stages:  # together, so that those which contradict each other are refused
            self.backbone_config.set_output_features_output_indices(
                stages.get("out_features"), stages.get("out_indices")
            )

    @property
    def stage_names(self) -> list[str]:
        """Names of the trunk's stages, coarsest last, as `out_features` takes them.

        Raises:
            AttributeError: the trunk has no stages in transformers (a plain ViT, for one).
        """
        return self.backbone_config.stage_names

    @property
    def out_features(self) -> list[str]:
        """Stages whose feature maps the trunk returns; the last one by default. Kept in `backbone_config`."""
        return self.backbone_config.out_features

    @out_features.setter
    def out_features(self, value: list[str]) -> None:
        self.backbone_config.out_features = value

    @property
    def out_indices(self) -> list[int]:
        """The same stages as `out_features`, by their index in `stage_names`."""
        return self.backbone_config.out_indices

    @out_indices.setter
    def out_indices(self, value: list[int]) -> None:
        self.backbone_config.out_indices = value

    def validate_sizes(self) -> None:
        """Check the sizes of embeddings, memory bank and decoders."""
        least = {"projection_dim": 1, "memory_bank_size": 1, "dense_hidden_size": 1}
        least |= {"decoder_hidden_size": 2, "decoder_detail_size": 0}
        least |= dict.fromkeys(
            ("localizability_hidden_size", "localizability_bottleneck_size", "localizability_outputs"), 1
        )
        if self.dense_dim is not None:
            least["dense_dim"] = 1
        for name, size in least.items():
            if getattr(self, name) < size:
                raise ValueError(f"`{name}` must be at least {size}, got {getattr(self, name)}")

    def validate_problem_type(self) -> None:
        """Check `problem_type`, of classification heads."""
        if self.problem_type not in (None, *_PROBLEM_TYPES):
            raise ValueError(
                f"`problem_type` is one of {', '.join(map(repr, _PROBLEM_TYPES))}, or `None` to let the first labels "
                f"settle it, got {self.problem_type!r}"
            )

    def validate_temperatures(self) -> None:
        """Check `contrastive_temperature` and those of Adam-v2's student and teacher."""
        published = {"contrastive_temperature": 0.2, "student_temperature": 0.1, "teacher_temperature": 0.04}
        for name, value in published.items():
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be above 0 (published: {value}), got {getattr(self, name)}")

    def validate_dense_loss(self) -> None:
        """Check `dense_temperature` and `dense_tolerance`."""
        for name in ("dense_temperature", "dense_tolerance"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be above 0, got {getattr(self, name)}")

    def validate_teacher_momentum(self) -> None:
        """Check `teacher_momentum` and `center_momentum`."""
        if not 0 <= self.teacher_momentum <= 1:
            raise ValueError(
                f"`teacher_momentum` must be between 0 (the teacher copies the student) and 1 (it stands still), "
                f"got {self.teacher_momentum}"
            )
        if not 0 <= self.center_momentum <= 1:
            raise ValueError(f"`center_momentum` must be between 0 and 1 (published: 0.9), got {self.center_momentum}")

    def validate_prune_threshold(self) -> None:
        """Check `prune_threshold`."""
        if self.prune_threshold is not None and not -1 <= self.prune_threshold <= 1:
            raise ValueError(
                f"`prune_threshold` is a cosine similarity between -1 and 1 (published: 0.8), or `None` to prune "
                f"nothing, got {self.prune_threshold}"
            )


def _resolve_backbone(backbone: Any) -> PreTrainedConfig:
    """The trunk's configuration, given as itself, a dict with `model_type`, the name of a preset, or nothing."""
    if isinstance(backbone, PreTrainedConfig):
        # Of a model with two towers, the one that sees. A copy: it may serve other models too, with other stages.
        return deepcopy(getattr(backbone, "vision_config", backbone))
    if backbone is None:
        backbone = "resnet50"
    if isinstance(backbone, str):
        if backbone not in BACKBONE_PRESETS:
            raise ValueError(
                f"`backbone_config` names no preset: got {backbone!r}, known are {', '.join(BACKBONE_PRESETS)}; for "
                "any other trunk give its transformers configuration or a dict with `model_type`"
            )
        backbone = BACKBONE_PRESETS[backbone]
    model_type = backbone.get("model_type") if isinstance(backbone, dict) else type(backbone).__name__
    if model_type is None or model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"`backbone_config` needs the `model_type` of a transformers vision model such as 'resnet', 'convnextv2', "
            f"'swin', 'vit' or 'dinov2', got {model_type!r}"
        )
    return _resolve_backbone(CONFIG_MAPPING[model_type].from_dict(deepcopy(backbone)))


EdenConfig.register_for_auto_class()

__all__ = ["BACKBONE_PRESETS", "EdenConfig"]
