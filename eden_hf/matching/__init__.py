"""Points, matches and masks from annotated examples: dense embeddings, the matcher, the paper's windows."""

from eden_hf.data.references import Reference
from eden_hf.matching.dense_maps import DenseMap, dense_maps
from eden_hf.matching.matcher import AnatomyMatcher, EmbeddedImage, FoundPoint, MatcherArguments, embed_image
from eden_hf.matching.pixel_classifier import ClassifierArguments, PixelClassifier

__all__ = [
    "AnatomyMatcher",
    "ClassifierArguments",
    "DenseMap",
    "EmbeddedImage",
    "FoundPoint",
    "MatcherArguments",
    "PixelClassifier",
    "Reference",
    "dense_maps",
    "embed_image",
]
