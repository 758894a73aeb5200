"""What reading an epoch takes, streamed from Parquet and prepared before: `python scripts/measure_streaming.py`.

The images are JPEG of 64 drawn chests, many times over, in files that lie in memory once they were written.
"""

import subprocess
import sys
import tempfile
import time
from io import BytesIO
from pathlib import Path

import psutil
import pyarrow as pa
import torch
from jsonargparse import auto_cli
from pyarrow.parquet import ParquetWriter

from eden_hf.data.phantoms import phantom_dataset
from eden_hf.data.prepared import Images, prepare_images
from eden_hf.data.streamed import StreamedImages
from eden_hf.training.curriculum import epoch_order
from eden_hf.training.processor import keep_freed_memory
from eden_hf.training.settings import ConfigParser

PER_FILE, PER_GROUP, BATCH = 512, 64, 64


def measure_streaming(images: int = 2048, size: int = 512, windows: tuple[int, ...] = (256, 1024)) -> None:
    """Print what an epoch takes by one thread, each way in a process of its own.

    Args:
        images: How many.
        size: Pixels a side of the files; they are read to 256.
        windows: Values of `data.shuffle_window`.
    """
    with tempfile.TemporaryDirectory() as name:
        folder, cache = Path(name) / "parquet", Path(name) / "cache"
        folder.mkdir()
        print(f"{images} images, {_write(folder, images, size) / images / 1e3:.0f} kB each\n")
        prepare_images(str(folder), cache_dir=cache, num_proc=0)
        print("| read | images/s of a core | peak MB above the start |\n| --- | --- | --- |", flush=True)
        for window in (0, *windows):
            subprocess.run([sys.executable, __file__, "--read", str(folder), str(cache), str(window)], check=True)


def _write(folder: Path, count: int, size: int) -> int:
    encoded = []
    for picture in phantom_dataset(64, size=size)["image"]:
        picture.save(file := BytesIO(), "JPEG", quality=92)
        encoded.append({"bytes": file.getvalue(), "path": None})
    group = pa.table({"image": encoded * (PER_GROUP // 64)})
    for number in range(count // PER_FILE):
        with ParquetWriter(folder / f"train-{number:05}.parquet", group.schema) as writer:
            for _ in range(PER_FILE // PER_GROUP):
                writer.write_table(group)
    return sum(file.stat().st_size for file in folder.iterdir())


def read(folder: str, cache: str, window: int) -> None:
    """Read two epochs by the batch, of which the second counts for time."""
    keep_freed_memory()
    images: Images = StreamedImages(folder, window=window) if window else prepare_images(folder, cache_dir=cache)
    me, peak = psutil.Process(), 0
    memory = me.memory_info()
    begin = memory.rss - memory.shared
    for epoch in range(2):
        since = time.process_time()
        for indices in epoch_order(torch.arange(len(images)), 0, epoch, images.row_groups).split(BATCH):
            images.get(indices)
            memory = me.memory_info()
            peak = max(peak, memory.rss - memory.shared)
    rate = len(images) / (time.process_time() - since)
    name = f"streamed, window of {window:,}" if window else "prepared, raw"
    print(f"| {name} | {rate:,.0f} | {(peak - begin) / 1e6:.0f} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--read"]:
        read(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        auto_cli(measure_streaming, as_positional=False, parser_class=ConfigParser)
