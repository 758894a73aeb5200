"""Eden models (travels to the Hub as remote code: imports torch, transformers and its own siblings only).

`EdenModel` is the trunk that users load, `EdenBackbone` the same with a feature map per stage, `EdenForPreTraining`
the student, the teacher, the memory bank and the pruned contrastive loss of Adam (arXiv 2309.15358),
`EdenV2ForPreTraining` the three losses of its second generation,
`EdenForImageClassification` and `EdenForSemanticSegmentation` the heads that it is fine-tuned with, and
`EdenForKeypointMatching` finds the points of one image in another. Each lives in a file beside this one. An
independent implementation: no code or weights of the authors are used.
"""

from .modeling_eden_base import EdenBackbone, EdenModel, EdenPreTrainedModel
from .modeling_eden_heads import EdenForImageClassification, EdenForSemanticSegmentation
from .modeling_eden_matching import EdenForKeypointMatching
from .modeling_eden_pretraining import EdenForPreTraining, EdenForPreTrainingOutput, EdenPointOutput, pruned_info_nce
from .modeling_eden_v2 import EdenV2ForPreTraining, EdenV2ForPreTrainingOutput

for _model, _auto_class in {
    EdenModel: "AutoModel",
    EdenBackbone: "AutoBackbone",
    EdenForPreTraining: "AutoModelForPreTraining",
    EdenV2ForPreTraining: "AutoModelForPreTraining",
    EdenForImageClassification: "AutoModelForImageClassification",
    EdenForSemanticSegmentation: "AutoModelForSemanticSegmentation",
    EdenForKeypointMatching: "AutoModelForKeypointMatching",
}.items():
    # Saving copies the file of a class's module and what that imports: this one, so that each folder holds them all.
    _model.__module__ = __name__
    _model.register_for_auto_class(_auto_class)

__all__ = [
    "EdenBackbone",
    "EdenForImageClassification",
    "EdenForKeypointMatching",
    "EdenForPreTraining",
    "EdenForPreTrainingOutput",
    "EdenForSemanticSegmentation",
    "EdenModel",
    "EdenPointOutput",
    "EdenPreTrainedModel",
    "EdenV2ForPreTraining",
    "EdenV2ForPreTrainingOutput",
    "pruned_info_nce",
]
