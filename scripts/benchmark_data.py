"""Speed of the data path, and its ratio to a plain per-image PIL version of the same recipe, in one process.

python scripts/benchmark_data.py --side 256 --size 224
"""

import math
import tempfile
import time
from collections.abc import Callable
from io import BytesIO

import numpy as np
import torch
from jsonargparse import auto_cli
from PIL import Image, ImageEnhance, ImageFilter

from eden_hf.data.phantoms import phantom_dataset
from eden_hf.data.prepared import prepare_images
from eden_hf.data.view_arguments import ViewArguments
from eden_hf.data.views import draw_views, make_views


def benchmark(
    side: int = 256, size: int = 224, level: int = 0, batch: int = 64, source_side: int = 1024, threads: int = 1
):
    """Print samples per second (one sample is two views) of each part of the data path.

    Args:
        side: Pixels a side of the prepared images.
        size: Pixels a side of the views.
        level: Level that views are cut from.
        batch: Images in a batch.
        source_side: Pixels a side of the PNG files that the plain version decodes anew for each sample.
        threads: Threads of torch.
    """
    torch.set_num_threads(threads)
    phantoms = phantom_dataset(batch, size=source_side)
    files = [row["bytes"] for row in phantoms.with_format("arrow")["image"].to_pylist()]
    with tempfile.TemporaryDirectory() as cache:
        start = time.process_time()
        images = prepare_images(phantoms, side=side, cache_dir=cache, num_proc=0)
        print(f"prepare once    {batch / (time.process_time() - start):8.0f} images/s from {source_side}-pixel PNG")
        arguments, indices = ViewArguments(size=size), torch.arange(batch)

        def draw():
            return draw_views(indices, arguments, level=level, seed=0, epoch=0, height=side, width=side)

        pixels, draws = images.get(indices), draw()
        print(f"read a batch    {best_rate(lambda: images.get(indices), batch):8.0f} samples/s")
        print(f"draw            {best_rate(draw, batch):8.0f} samples/s")
        print(f"make views      {best_rate(lambda: make_views(pixels, draws, arguments), batch):8.0f} samples/s")
        whole = best_rate(lambda: make_views(images.get(indices), draw(), arguments), batch)
        plain = best_rate(lambda: [plain_sample(file, size) for file in files[:8]], 8)
    print(f"all three       {whole:8.0f} samples/s, views of {size} from prepared {side}")
    print(f"plain PIL       {plain:8.0f} samples/s, decoding {source_side}-pixel PNG")
    print(f"ratio           {whole / plain:8.1f}")


def best_rate(call: Callable[[], object], samples: int, repeats: int = 7) -> float:
    """Samples a second of processor time, best of `repeats`, the first not counted."""
    times = []
    for _ in range(repeats + 1):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return samples / min(times[1:])


def plain_sample(file: bytes, size: int) -> list[torch.Tensor]:
    """Two views of one image, the usual way: decode, crop, jitter, blur, rotate, normalise, one image at a time."""
    image = Image.open(BytesIO(file)).convert("RGB")
    return [plain_view(image, size) for _ in range(2)]


def plain_view(image: Image.Image, size: int) -> torch.Tensor:
    """One view of the recipe by PIL; hue is left out, which only makes this faster."""
    rng = np.random.default_rng()
    area = image.width * image.height * rng.uniform(0.2, 1)
    ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
    width, height = min(image.width, round(math.sqrt(area * ratio))), min(image.height, round(math.sqrt(area / ratio)))
    x, y = rng.integers(0, image.width - width + 1), rng.integers(0, image.height - height + 1)
    view = image.resize((size, size), Image.Resampling.BILINEAR, box=(x, y, x + width, y + height))
    if rng.random() < 0.8:
        for enhance in rng.permutation(np.array([ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color])):
            view = enhance(view).enhance(rng.uniform(0.6, 1.4))
    if rng.random() < 0.5:
        view = view.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2)))
    view = view.rotate(rng.uniform(-30, 30))
    tensor = torch.from_numpy(np.asarray(view, np.float32).transpose(2, 0, 1) / 255)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
    return (tensor - mean) / std


if __name__ == "__main__":
    auto_cli(benchmark)
