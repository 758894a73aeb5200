"""Anatomy-aware embeddings of medical images: an independent implementation of Adam / Eden (arXiv 2309.15358).

Importing this package registers the Eden classes with transformers, so that `AutoModel.from_pretrained` and its
siblings load Eden folders.
"""

import sys
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eden_hf.auto_classes import (
        EdenBackbone,
        EdenConfig,
        EdenForImageClassification,
        EdenForKeypointMatching,
        EdenForPreTraining,
        EdenForSemanticSegmentation,
        EdenImageProcessor,
        EdenModel,
        EdenV2ForPreTraining,
    )

__version__ = "0.1.0"
__all__ = [
    "EdenBackbone",
    "EdenConfig",
    "EdenForImageClassification",
    "EdenForKeypointMatching",
    "EdenForPreTraining",
    "EdenForSemanticSegmentation",
    "EdenImageProcessor",
    "EdenModel",
    "EdenV2ForPreTraining",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("eden_hf.auto_classes"), name)


def _runs_a_command() -> bool:
    """Whether this is `eden` or `python -m eden_hf`, which answer --help before torch and transformers are there."""
    return Path(sys.argv[0]).stem == "eden" or ("-m", "eden_hf") in pairwise(sys.orig_argv)


if not _runs_a_command():
    import_module("eden_hf.auto_classes")
