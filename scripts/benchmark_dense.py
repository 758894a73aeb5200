"""The two forms of dense embeddings of one image: how much faster the dilated one is, and how alike they are.

OMP_NUM_THREADS=1 python scripts/benchmark_dense.py --model outputs/demo/run/last
"""

import time

import torch
from jsonargparse import auto_cli

from eden_hf.data.landmarks import load_landmarked
from eden_hf.encoders import load_encoder
from eden_hf.matching.windows import dense_embeddings, dilated_embeddings


def benchmark(model: str, source: str = "phantoms:1", side: int = 256, window: int = 64, stride: int = 8):
    """Time both forms on the first image of a source, brought to `side` pixels.

    Args:
        model: A convolutional encoder, as for `load_encoder`.
        source: Radiographs with landmarks.
        side: Pixels a side of the image.
        window: Side of the windows in pixels.
        stride: Steps in pixels.
    """
    image = load_landmarked(source, images=1)[0].image.resize((side, side))
    for intensity in ("fixed", "per_image"):
        encoder = load_encoder(model, intensity=intensity)
        seconds = []
        for _ in range(3):  # the last of three, once everything is warm
            start = time.perf_counter()
            windows = dense_embeddings(encoder, image, window=window, stride=stride).vectors
            middle = time.perf_counter()
            dilated = next(dilated_embeddings(encoder, [image], window=window, stride=stride)).vectors
            seconds = [middle - start, time.perf_counter() - middle]
        cosine = (windows * dilated).sum(dim=-1).mean().item()
        ratio = seconds[0] / seconds[1]
        print(
            f"{intensity}: {windows[..., 0].numel()} windows {seconds[0]:.2f} s, dilated {seconds[1]:.3f} s, ratio "
            f"{ratio:.1f}; mean cosine of the two {cosine:.2f}; {torch.get_num_threads()} threads"
        )


if __name__ == "__main__":
    auto_cli(benchmark, as_positional=False)
