"""Which model of this package is published, and exported, of a folder."""

from pathlib import Path

from transformers import PreTrainedModel

from eden_hf.data.text_files import read_record
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
    return (read_record(folder / "config.json").get("architectures") or [None])[0]
