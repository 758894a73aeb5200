"""Parquet files of small images, in row groups of uneven sizes."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow.parquet import ParquetWriter


def png(pixels: np.ndarray) -> bytes:
    """A file of pixels [H, W] uint8."""
    Image.fromarray(pixels).save(encoded := BytesIO(), "png")
    return encoded.getvalue()


def write_shards(folder: Path, images: Sequence[bytes], groups: Sequence[Sequence[int]], **columns: Sequence) -> Path:
    """Write `train-00000.parquet` ... of row groups of these sizes, which take the images one after the other."""
    folder.mkdir(parents=True)
    cells = [{"bytes": image, "path": None} for image in images]
    table = pa.table({"image": cells, **columns})
    start = 0
    for number, sizes in enumerate(groups):
        with ParquetWriter(folder / f"train-{number:05}.parquet", table.schema) as writer:
            for size in sizes:
                writer.write_table(table.slice(start, size), row_group_size=max(1, size))
                start += size
    assert start == len(images)
    return folder
