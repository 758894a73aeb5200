"""Embeddings of all images of a source as one Parquet file.

| column | type | |
| --- | --- | --- |
| `image` | string | `source_id` of the source: of a folder the path relative to it |
| `embedding` | fixed-size list of float32 | unit vector: of the image, or with `dense` of one point |
| `row`, `column` | int32 | with `dense`: which node of the map |
| `x`, `y` | float32 | with `dense`: where it lies: pixel indices, (0, 0) the centre of the top left pixel |

The metadata of the file holds, as JSON under `eden_hf`, what made it: `model`, `weights_revision`, `dense`, `size`,
`intensity`, and the source with its split and columns.

Where a GPU runs the model, processes decode and resize images meanwhile; on a CPU the same threads decode a batch and
then run the model, from which other processes would take the processors. Rows are written as they come, in pieces, and
under `accelerate launch` or `torchrun` each process makes some (the folder of the output must be one for all).
A piece is there whole or not at all, so that a call goes on where another was stopped; all of them become the file.
"""

import json
import logging
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from accelerate import PartialState
from datasets import Dataset
from datasets.fingerprint import Hasher
from torch import Tensor
from torch.utils.data import DataLoader

from eden_hf.data.decoders import decoder_versions
from eden_hf.data.errors import SourceError
from eden_hf.data.prepared import processors
from eden_hf.data.progress import progress_bar
from eden_hf.data.reading import ImageReadError
from eden_hf.data.scratch import told_without_room
from eden_hf.data.skips import SKIPPED_FILE, SkipLog, check_share
from eden_hf.data.sources import find_source, read_cell, refuse_output_inside
from eden_hf.data.stopping import undone_on_sigterm
from eden_hf.data.text_files import parse_json, read_list, read_record, write_text
from eden_hf.data.workers import check_workers, obey_parent
from eden_hf.encoders import Encoder, gains_from_bfloat16, load_encoder, pooled, processed, with_norms_folded
from eden_hf.matching.dense_maps import DenseMap, covered_share
from eden_hf.modeling_eden_dense import node_places
from eden_hf.training.processor import keep_freed_memory
from eden_hf.training.run_folder import only_writer

logger = logging.getLogger(__name__)

#: Key of the file's metadata.
METADATA = "eden_hf"
_ROW_GROUP_BYTES = 16 * 2**20
_WORTH_WORKERS = 64  # fewer images are faster than starting processes
_MOST_WORKERS = 16
_PIECE = 8192  # images: what is lost at most of a process that is stopped
_PLAN = "plan.json"


class EmbeddedImages(NamedTuple):
    """What `embed_images` wrote.

    Attributes:
        file: The Parquet file.
        images: Number of images in it.
        skipped: Number of images that could not be read.
        skipped_file: JSON lines with the name and the reason of each of those; absent if there is none.
    """

    file: Path
    images: int
    skipped: int
    skipped_file: Path


def embed_images(
    model: str,
    images: str,
    output: str = "embeddings.parquet",
    split: str = "train",
    image_column: str = "image",
    id_column: str | None = None,
    dense: bool = False,
    size: int | None = None,
    intensity: Literal["fixed", "per_image"] | None = None,
    batch_size: int = 64,
    num_workers: int | None = None,
    max_skipped_share: float = 1.0,
    trust_remote_code: bool = False,
) -> EmbeddedImages:
    """Embed every image of a source; the module's table has the columns that are written.

    Args:
        model: Any image encoder, as for `eden_hf.encoders.load_encoder`.
        images: A folder (DICOM included), Parquet or Hub data set, as for `eden_hf.data.sources.load_source`.
        output: File to write.
        split: Split of the source.
        image_column: Its column of images.
        id_column: Its column whose values name the images.
        dense: Embeddings of points, not of images; of a model with a dense decoder.
        size: Pixels a side that images are brought to, instead of the processor's own.
        intensity: How intensities are normalised, instead of the processor's own way.
        batch_size: Images in one forward pass.
        num_workers: Processes that decode; 0 for the threads of this process alone, the default on a CPU. On a GPU by
            default all processors of this process.
        max_skipped_share: Share of the images that may be unreadable.
        trust_remote_code: Whether code that comes with a Hub model may run.

    Returns:
        What was written, the same in every process.

    Raises:
        SourceError: the source is absent, empty or not of the shape asked for, or `output` would be a part of it; or
            the model has no dense decoder.
        FileExistsError: another program writes the same file.
        ValueError: a number above is not as described, or `output` is a folder.
        TooManyUnreadable: more images than `max_skipped_share`, or all, cannot be read; no file is written then.
    """
    file = Path(output)
    _check(file, batch_size, num_workers, max_skipped_share)
    keep_freed_memory()
    state = PartialState(cpu=not torch.accelerator.is_available())
    with state.main_process_first():  # it fetches what the others find
        encoder = load_encoder(model, size=size, intensity=intensity, trust_remote_code=trust_remote_code)
        found = find_source(images)
        refuse_output_inside(found, images, file)
        rows: Any = found.load(split, image_column=image_column, id_column=id_column)
    about = {"model": model, "weights_revision": encoder.revision, "dense": dense, "size": size}
    about |= {"intensity": intensity, "images": images, "split": split, "image_column": image_column}
    about["id_column"] = id_column
    processor = Hasher.hash(encoder.processor.to_json_string())
    count = state.num_processes * math.ceil(len(rows) / _PIECE / state.num_processes)  # as many for each
    plan = {**about, "source": found.fingerprint, "processor": processor, "pieces": count, **decoder_versions()}
    skips_file = file.with_name(f"{file.stem}-{SKIPPED_FILE}")
    folder = file.with_name(f".{file.name}-pieces")
    spans = [range(len(rows) * number // count, len(rows) * (number + 1) // count) for number in range(count)]
    pieces = [_Piece(folder / f"{number:06}.parquet", span) for number, span in enumerate(spans)]
    with (
        undone_on_sigterm(),
        told_without_room(file.parent),
        only_writer(folder, "--output", state),
        ExitStack() as undo,
    ):
        if state.is_main_process:
            undo.callback(_remove_empty, folder)
            _agree(folder, plan)
            if made := sum(len(piece.span) for piece in pieces if piece.listed.exists()):
                logger.warning("%d of %d images were embedded by an earlier call: going on", made, len(rows))
        state.wait_for_everyone()
        for piece in pieces[state.process_index :: state.num_processes]:
            if not piece.listed.exists():
                piece.make(encoder, rows, about, dense=dense, batch_size=batch_size, num_workers=num_workers)
        state.wait_for_everyone()
        unreadable = [entry for piece in pieces for entry in read_list(piece.listed)]
        state.wait_for_everyone()  # before the pieces go
        if state.is_main_process:
            skips = SkipLog(skips_file, max_skipped_share)
            for entry in unreadable:
                skips.add(**entry)
            skips.check(len(rows))
            joined = _joined([piece.file for piece in pieces if piece.file.exists()], about)
            (folder / _PLAN).unlink()  # without it nobody goes on with what is left
            joined.replace(file)
            shutil.rmtree(folder)
        state.wait_for_everyone()
    return EmbeddedImages(file, len(rows) - len(unreadable), len(unreadable), skips_file)


def _check(file: Path, batch_size: int, num_workers: int | None, max_skipped_share: float) -> None:
    """Refuse what would fail after the work, or not say why."""
    if file.is_dir():
        raise ValueError(f"--output must be a file, and {file} is a folder: name one in it, {file}/embeddings.parquet")
    if batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {batch_size}")
    check_workers(num_workers, "--num-workers")
    check_share(max_skipped_share)


@dataclass(frozen=True)
class _Piece:
    """Some images of a source, whose embeddings are made together; `file` is absent if none of them can be read."""

    file: Path
    span: range

    @property
    def listed(self) -> Path:
        """Those that cannot; what is written last."""
        return self.file.with_suffix(".json")

    def make(self, encoder: Encoder, rows: Dataset, about: Mapping[str, Any], **options: Any) -> None:
        """Write both files."""
        begun = self.file.with_suffix(".new")
        unreadable: list[dict[str, str]] = []
        with ExitStack() as undo:
            undo.callback(begun.unlink, missing_ok=True)
            batches = embedding_rows(encoder, rows.select(self.span), unreadable=unreadable, **options)
            write_parquet(batches, begun, about)
            if begun.exists():
                begun.replace(self.file)
            write_text(self.listed, json.dumps(unreadable))


def _agree(folder: Path, plan: Mapping[str, Any]) -> None:
    """Keep the pieces of a call that was stopped if it was to make the same; else start over."""
    file = folder / _PLAN
    held = read_record(file) if file.exists() else plan
    if others := [name for name in plan if held.get(name) != plan[name]]:
        logger.warning("an earlier call that was stopped had other %s: starting over", ", ".join(others))
    if others or not file.exists():
        for path in folder.glob("[!.]*"):
            path.unlink()
        write_text(file, json.dumps(plan))


def _remove_empty(folder: Path) -> None:
    """Remove the folder of pieces if it has none."""
    if len(list(folder.glob("*.json"))) < 2:
        shutil.rmtree(folder, ignore_errors=True)


def embedding_rows(
    encoder: Encoder,
    rows: Dataset,
    *,
    dense: bool = False,
    batch_size: int = 64,
    num_workers: int | None = None,
    unreadable: list[dict[str, str]] | None = None,
) -> Iterator[pa.RecordBatch]:
    """Embeddings of rows `image`, `source_id` (see `load_source`), batch by batch as columns of the module's table.

    In bfloat16 where the device computes that faster; the vectors are normalised and given in float32.

    Args:
        encoder: From `load_encoder`.
        rows: The images.
        dense: Embeddings of points, those in padding left out.
        batch_size: Images in one forward pass.
        num_workers: Processes that decode ahead, as for `embed_images`.
        unreadable: Gets `source_id` and `reason` of each image that cannot be read; without it such an image raises.

    Raises:
        SourceError: `dense` is asked of a model without a dense decoder.
        ImageReadError: an image cannot be read, and there is no `unreadable`.
    """
    if dense and not encoder.is_dense:
        raise SourceError(
            f"{encoder.name} has no embeddings of points: take a model trained with a dense stage, or leave out dense"
        )
    device = encoder.model.device
    if num_workers is None:
        num_workers = 0 if device.type == "cpu" else worker_count(len(rows))
    if device.type == "cpu":
        encoder = replace(encoder, model=with_norms_folded(encoder.model))
    loader = DataLoader(
        rows.select_columns(["image", "source_id"]),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=_Reader(encoder.processor, threads=1 if num_workers else torch.get_num_threads()),
        worker_init_fn=obey_parent,
        pin_memory=device.type == "cuda",
    )
    columns = _points if dense else _images
    shown = len(rows) > 1 and PartialState().is_local_main_process
    with progress_bar(total=len(rows), desc="embedding", unit="image", shown=shown) as bar:
        for batch in loader:
            bar.update(len(batch.names) + len(batch.unreadable))
            if batch.unreadable and unreadable is None:
                raise ImageReadError(batch.unreadable[0]["reason"])
            (unreadable if unreadable is not None else []).extend(batch.unreadable)
            if batch.names:
                yield columns(encoder, batch)


def write_parquet(batches: Iterable[pa.RecordBatch], file: Path, about: Mapping[str, Any]) -> None:
    """Write batches as they come, in row groups of some megabytes; nothing where there are none."""
    with ExitStack() as stack:
        writer = None
        for table in _row_groups(batches):
            if writer is None:
                schema = table.schema.with_metadata({METADATA: json.dumps(about)})
                writer = stack.enter_context(pq.ParquetWriter(file, schema, use_dictionary=["image"]))
            writer.write_table(table)


def read_about(file: str | Path) -> dict[str, Any]:
    """What made a file of embeddings.

    Raises:
        SourceError: there is none, or it is not of `embed_images`.
    """
    try:
        metadata = pq.read_schema(file).metadata or {}
    except (OSError, pa.ArrowInvalid) as error:
        raise SourceError(f"{file} is no Parquet of embeddings ({error}); make one by `eden embed`") from error
    if METADATA.encode() not in metadata:
        raise SourceError(f"{file} does not tell what made it, so it is not of `eden embed`: make one by that")
    try:
        return dict(parse_json(metadata[METADATA.encode()].decode()))
    except (ValueError, TypeError) as error:
        raise SourceError(f"{file} is damaged: it does not tell what made it ({error})") from error


class _Batch(NamedTuple):
    """Images ready for the model, and those that could not be read (`source_id` and `reason`)."""

    names: list[str]
    sizes: list[tuple[int, int]]
    pixel_values: Tensor
    unreadable: list[dict[str, str]]


class _Reader:
    """Decodes rows of a source, some at a time, and brings them to the model's input."""

    def __init__(self, processor: Any, threads: int) -> None:
        self.processor, self.threads = processor, threads

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> _Batch:
        images, names, unreadable = [], [], []
        with ThreadPoolExecutor(self.threads) as pool:
            for row, image in zip(rows, pool.map(_read, rows), strict=True):
                if isinstance(image, ImageReadError):
                    unreadable.append({"source_id": row["source_id"], "reason": str(image)})
                else:
                    images.append(image)
                    names.append(row["source_id"])
        pixel_values = processed(self.processor, images) if images else torch.empty(0)
        return _Batch(names, [image.size for image in images], pixel_values, unreadable)


def _read(row: Mapping[str, Any]) -> Any:
    """The image of a row, or why it cannot be read."""
    try:
        return read_cell(row["image"], row["source_id"])
    except ImageReadError as error:
        return error


@torch.inference_mode()
def _outputs(encoder: Encoder, batch: _Batch, **arguments: Any) -> tuple[Any, Tensor]:
    """What the encoder gives of a batch, and its pixels on the device."""
    device = encoder.model.device
    pixel_values = batch.pixel_values.to(
        device, encoder.model.dtype, non_blocking=True, memory_format=torch.channels_last
    )
    with torch.autocast(device.type, torch.bfloat16, enabled=gains_from_bfloat16(device)):
        return encoder.model(pixel_values=pixel_values, **arguments), pixel_values


def _images(encoder: Encoder, batch: _Batch) -> pa.RecordBatch:
    """Columns `image` and `embedding`."""
    sparing = {"output_dense_embeddings": False} if encoder.is_dense else {}
    outputs, pixel_values = _outputs(encoder, batch, **sparing)
    vectors = F.normalize(pooled(outputs, pixel_values, encoder.model.config).float(), dim=1).cpu().numpy()
    return pa.record_batch({"image": pa.array(batch.names), "embedding": _vectors(vectors)})


def _points(encoder: Encoder, batch: _Batch) -> pa.RecordBatch:
    """All columns, of the nodes that lie on their image."""
    maps = _outputs(encoder, batch)[0].dense_embeddings.float().cpu()
    height, width = maps.shape[-2:]
    rows, columns = np.divmod(np.arange(height * width, dtype=np.int32), width)
    tables = []
    for name, size, vectors in zip(batch.names, batch.sizes, maps, strict=True):
        points = DenseMap(vectors, size, covered_share(encoder.processor, size)).points(node_places(height, width))
        inside = ((points >= -0.5) & (points <= torch.tensor(size) - 0.5)).all(dim=1).numpy()
        tables.append(
            {
                "image": np.full(inside.sum(), name, dtype=object),
                "row": rows[inside],
                "column": columns[inside],
                "x": points[inside, 0].numpy(),
                "y": points[inside, 1].numpy(),
                "embedding": vectors.flatten(1).mT[inside].numpy(),
            }
        )
    joined = {column: np.concatenate([table[column] for table in tables]) for column in tables[0]}
    return pa.record_batch({**joined, "image": pa.array(joined["image"]), "embedding": _vectors(joined["embedding"])})


def _vectors(vectors: np.ndarray) -> pa.FixedSizeListArray:
    """Rows `[N, C]` as a column."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(vectors).reshape(-1)), vectors.shape[1])


def _row_groups(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(part.nbytes for part in waiting) >= _ROW_GROUP_BYTES:
            yield pa.Table.from_batches(waiting)
            waiting = []
    if waiting:
        yield pa.Table.from_batches(waiting)


def _joined(parts: Sequence[Path], about: Mapping[str, Any]) -> Path:
    """What the parts hold, in order, as one file beside them."""
    if len(parts) == 1:
        return parts[0]
    joined = parts[0].with_name("joined.new")
    write_parquet(_batches(parts), joined, about)
    return joined


def _batches(files: Sequence[Path]) -> Iterator[pa.RecordBatch]:
    """What files hold, a row group at a time."""
    for file in files:
        with pq.ParquetFile(file) as parquet:
            for group in range(parquet.num_row_groups):
                yield from parquet.read_row_group(group).to_batches()


def worker_count(images: int) -> int:
    """Processes that decode, a fair share of the machine's."""
    launched = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # set by torchrun and accelerate launch
    return 0 if images < _WORTH_WORKERS else min(_MOST_WORKERS, max(1, processors() // launched))
