"""Embeddings of whole collections, kept as Parquet, and what in them is most alike to an image or a region."""

from eden_hf.retrieval.embedding import EmbeddedImages, embed_images, embedding_rows
from eden_hf.retrieval.searching import Hit, SearchError, search

__all__ = ["EmbeddedImages", "Hit", "SearchError", "embed_images", "embedding_rows", "search"]
