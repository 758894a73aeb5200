"""The Eden classes, registered with transformers' auto classes. Importing `eden_hf` imports it."""

from pathlib import Path
from typing import Any

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForKeypointMatching,
    AutoModelForPreTraining,
    AutoModelForSemanticSegmentation,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # 5.17 hides it without torchvision
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING

from eden_hf.configuration_eden import EdenConfig
from eden_hf.image_processing_eden import EdenImageProcessor
from eden_hf.modeling_eden import (
    EdenBackbone,
    EdenForImageClassification,
    EdenForKeypointMatching,
    EdenForPreTraining,
    EdenForSemanticSegmentation,
    EdenModel,
    EdenV2ForPreTraining,
)

AutoConfig.register("eden", EdenConfig)
AutoModel.register(EdenConfig, EdenModel)
AutoBackbone.register(EdenConfig, EdenBackbone)
# Of a folder that one of the two saved, transformers takes the one that `architectures` names.
AutoModelForPreTraining.register(EdenConfig, (EdenForPreTraining, EdenV2ForPreTraining))
AutoModelForImageClassification.register(EdenConfig, EdenForImageClassification)
AutoModelForSemanticSegmentation.register(EdenConfig, EdenForSemanticSegmentation)
AutoModelForKeypointMatching.register(EdenConfig, EdenForKeypointMatching)
# The segmentation pipeline looks in a copy of these names, which lacks what was registered: it would log that the
# model is not supported, and then use it.
MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES[EdenConfig.model_type] = EdenForSemanticSegmentation.__name__
AutoImageProcessor.register(EdenConfig, image_processor_classes={"pil": EdenImageProcessor})
# Pipelines look for a video processor beside every image processor, and ask whether remote code may run for it, unless
# the configuration is known to have none.
VIDEO_PROCESSOR_MAPPING.register(EdenConfig, {})  # type: ignore[arg-type]  # its own annotation is outdated


def _let_auto_backbone_load_folders() -> None:
    """Teach `AutoBackbone.from_pretrained` local folders; transformers (5.17 to 5.23) asks the Hub for any name."""
    auto: Any = AutoBackbone
    from_hub = auto.from_pretrained.__func__

    def from_pretrained(cls: Any, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        if not Path(pretrained_model_name_or_path).is_dir():
            return from_hub(cls, pretrained_model_name_or_path, *args, **kwargs)
        kwargs.pop("use_timm_backbone", None)
        return super(auto.__base__, cls).from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    from_pretrained.__doc__ = from_hub.__doc__
    auto.from_pretrained = classmethod(from_pretrained)


_let_auto_backbone_load_folders()
