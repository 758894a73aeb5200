"""Which model of this package is published, and exported, of a folder."""

import json
from pathlib import Path

from transformers import PreTrainedModel

from eden_hf.modeling_eden import EdenForImageClassification, EdenForSemanticSegmentation, EdenModel

#: What is published of each class that a folder may hold: of a pretraining folder the trunk, student's or (Adam-v2)
#: teacher's.
PUBLISHED: dict[str, type[PreTrainedModel]] = {
    "EdenForPreTraining": EdenModel,
    "EdenV2ForPreTraining": EdenModel,
    "EdenModel": EdenModel,
    "EdenForImageClassification": EdenForImageClassification,
    "EdenForSemanticSegmentation": EdenForSemanticSegmentation,
}


def architecture_of(folder: Path) -> str | None:
    """The class that the `config.json` of a model folder names."""
    return (json.loads((folder / "config.json").read_text()).get("architectures") or [None])[0]
