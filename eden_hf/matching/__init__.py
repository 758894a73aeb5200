"""Points, matches and masks from annotated examples: dense embeddings, the matcher, the paper's windows."""

from eden_hf.data.references import Reference
from eden_hf.matching.dense_maps import DenseMap, dense_maps
from eden_hf.matching.matcher import AnatomyMatcher, FoundPoint, MatcherArguments

__all__ = ["AnatomyMatcher", "DenseMap", "FoundPoint", "MatcherArguments", "Reference", "dense_maps"]
