"""Embeddings of images and of their parts, and first looks at them: nearest neighbours and t-SNE.

Any image encoder of transformers will do, with the image processor that belongs to it.
"""

from collections.abc import Iterable

import numpy as np
from PIL.Image import Image
from torch import Tensor

from eden_hf.anatomy import part_boxes
from eden_hf.encoders import Encoder, embed


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
