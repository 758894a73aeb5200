"""Points, matches and masks from annotated examples: dense embeddings, the matcher, the paper's windows."""

from eden_hf.matching.dense_maps import DenseMap, dense_maps
from eden_hf.matching.matcher import AnatomyMatcher, FoundPoint, MatcherArguments
from eden_hf.matching.references import Reference

__all__ = ["AnatomyMatcher", "DenseMap", "FoundPoint", "MatcherArguments", "Reference", "dense_maps"]
