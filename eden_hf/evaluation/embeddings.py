"""Embeddings of images and of their parts, and first looks at them: nearest neighbours and t-SNE.

Any image encoder of transformers will do, with the image processor that belongs to it.
"""

from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor

from eden_hf.anatomy import part_boxes
from eden_hf.evaluation.encoders import Encoder


def embed(encoder: Encoder, images: Iterable[Image | np.ndarray], batch_size: int = 64) -> Tensor:
    """One unit vector for each image.

    An embedding is the encoder's `pooler_output`, or where it has none the mean of `last_hidden_state`, scaled to
    length 1.

    Args:
        encoder: From `load_encoder`, or `Encoder(model, processor)`.
        images: What the processor takes; read `batch_size` at a time, so a generator may be longer than memory.
        batch_size: Images in one forward pass.

    Returns:
        `[N, C]` float32 on the CPU, unit rows.

    Raises:
        ValueError: there are no images, or the model's output has neither field.
    """
    encoder.model.eval()  # it may have gone back to training since
    waiting, embedded = iter(images), []
    while batch := list(islice(waiting, batch_size)):
        with torch.inference_mode():
            outputs = encoder.model(pixel_values=encoder.pixel_values(batch))
            embedded.append(F.normalize(pooled(outputs).float(), dim=1).cpu())
    if not embedded:
        raise ValueError("there are no images to embed: the sequence given is empty")
    return torch.cat(embedded)  # outside inference mode, so that a probe can be trained on the result


def pooled(outputs: Any) -> Tensor:
    """One vector an image, `[B, C]`, from the output of an image encoder.

    Raises:
        ValueError: it has neither `pooler_output` nor `last_hidden_state`.
    """
    if (vectors := getattr(outputs, "pooler_output", None)) is not None:
        return vectors.flatten(1)  # [B, C], or [B, C, 1, 1] of the ResNets in transformers
    if (features := getattr(outputs, "last_hidden_state", None)) is not None:
        return features.mean(dim=1) if features.ndim == 3 else features.mean(dim=(2, 3))  # tokens, or a map
    raise ValueError(
        f"{type(outputs).__name__} has neither pooler_output nor last_hidden_state; "
        "load an encoder without a head, for example with AutoModel.from_pretrained"
    )


def part_embeddings(encoder: Encoder, images: Iterable[Image], level: int, batch_size: int = 64) -> Tensor:
    """Unit vectors of the parts of images at `level` of the Anatomy Decomposer.

    Each part is cut out and goes through the processor as an image of its own. Level 0 is the whole image.

    Args:
        encoder: As in `embed`.
        images: PIL images, of any sizes.
        level: Granularity, >= 0.
        batch_size: Parts in one forward pass.

    Returns:
        `[N, 2**level, C]` float32 on the CPU; parts in the order of `part_boxes`, row by row.

    Raises:
        ValueError: there are no images, or `level` is finer than the pixels of one.
    """
    parts = (image.crop(box) for image in images for box in part_boxes(*image.size, level))
    return embed(encoder, parts, batch_size).unflatten(0, (-1, 2**level))


def nearest_neighbours(queries: Tensor, gallery: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The `k` rows of `gallery` that are most alike to each query, by cosine similarity.

    Args:
        queries: `[Q, C]`.
        gallery: `[N, C]`. A query that is itself in the gallery finds itself first.
        k: How many, 1 to N.

    Returns:
        Similarities `[Q, k]`, falling, and row numbers `[Q, k]` int64.

    Raises:
        ValueError: `k` is below 1 or above N.
    """
    if not 1 <= k <= len(gallery):
        raise ValueError(f"k must be between 1 and the {len(gallery)} rows of the gallery, got k={k}")
    similarities, indices = (F.normalize(queries, dim=1) @ F.normalize(gallery, dim=1).T).topk(k)
    return similarities, indices


def tsne(embeddings: Tensor, seed: int = 0, perplexity: float = 30) -> np.ndarray:
    """t-SNE of embeddings in the plane (van der Maaten and Hinton, JMLR 9, 2008), through scikit-learn.

    Args:
        embeddings: `[N, C]`, N >= 3.
        seed: The same seed and embeddings give the same picture.
        perplexity: About how many neighbours each point keeps near; lowered to a third of N where N is small.

    Returns:
        `[N, 2]` float32.

    Raises:
        ImportError: scikit-learn is missing.
        ValueError: there are fewer than three embeddings.
    """
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise ImportError("t-SNE needs scikit-learn: pip install eden_hf[plots]") from error
    if len(embeddings) < 3:
        raise ValueError(f"t-SNE needs at least 3 embeddings, got {len(embeddings)}")
    fitting = min(perplexity, (len(embeddings) - 1) / 3)
    return TSNE(perplexity=fitting, init="pca", random_state=seed).fit_transform(embeddings.numpy())
