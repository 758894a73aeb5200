"""Time `eden embed` against a loop over single images.

python scripts/benchmark_embed.py --model outputs/run/last --images my_xrays/
"""

import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from jsonargparse import auto_cli

from eden_hf.data.sources import load_source, read_cell
from eden_hf.encoders import load_encoder, pooled
from eden_hf.retrieval import embed_images


def benchmark(model: str, images: str, split: str = "train", num_workers: int | None = None) -> None:
    """Print processor seconds (workers included) and wall-clock seconds of both, the model's loading in each.

    Args:
        model: Any image encoder.
        images: A source.
        split: Split of the source.
        num_workers: Of `eden embed`.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = str(Path(folder) / "e.parquet")
        ours = _seconds(lambda: embed_images(model, images, output, split=split, num_workers=num_workers))
    naive = _seconds(lambda: _one_by_one(model, images, split))
    for name, (busy, wall) in {"eden embed": ours, "one by one": naive}.items():
        print(f"{name}: {busy:.1f} s of processors, {wall:.1f} s")
    print(f"ratio: {naive[0] / ours[0]:.2f} of processor time, {naive[1] / ours[1]:.2f} of time")


@torch.inference_mode()
def _one_by_one(model: str, images: str, split: str) -> torch.Tensor:
    encoder = load_encoder(model)
    vectors = []
    for row in load_source(images, split=split):
        image = read_cell(row["image"], row["source_id"])
        outputs = encoder.model(pixel_values=encoder.pixel_values([image]))
        vectors.append(F.normalize(pooled(outputs), dim=1).cpu())
    return torch.cat(vectors)


def _seconds(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds of this process and its children, and by the clock."""
    busy, wall = _busy(), time.perf_counter()
    run()
    return _busy() - busy, time.perf_counter() - wall


def _busy() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


if __name__ == "__main__":
    auto_cli(benchmark, as_positional=False)
