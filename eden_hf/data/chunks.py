"""A source of any size prepared in chunks, by one machine or many, each of which may be stopped and started again.

| file | what |
| --- | --- |
| `plan.json` | settings, number of images and what tells the source: the same for everyone who works on the folder |
| `chunk-00000/` ... | some images of the source in its order, as of `eden_hf.data.prepared`: whole or not there |
| `prepared.json` | the chunks in order, with the sums of their bytes; written last, once all are checked |

A folder with that last file is a source of pretraining: `--data.source FOLDER`.
"""

import hashlib
import json
import re
import uuid
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datasets import Dataset, Features
from tqdm.auto import tqdm

from eden_hf.data.decoders import decoder_versions
from eden_hf.data.errors import SourceError
from eden_hf.data.prepared import (
    ABOUT,
    PIXELS,
    Decoder,
    Storage,
    bytes_of,
    check_shape,
    decode_all,
    kept_rows,
    move_into_place,
    write_images,
)
from eden_hf.data.scratch import scratch_folder, told_without_room
from eden_hf.data.skips import SKIPPED_FILE, SkipLog, check_share, skipped_entries
from eden_hf.data.sources import MANIFEST, PLAN, find_source
from eden_hf.data.stopping import undone_on_sigterm
from eden_hf.data.text_files import read_record
from eden_hf.data.workers import check_workers, workers_live


def prepare_in_chunks(
    source: str,
    output: str,
    split: str = "train",
    image_column: str = "image",
    id_column: str | None = None,
    list_file: str | None = None,
    side: int = 256,
    channels: Literal[1, 3] = 1,
    aspect_ratio: Literal["resize", "pad"] = "resize",
    max_skipped_share: float = 0.01,
    storage: Storage = "raw",
    shard: str = "1/1",
    chunk_size: int = 8192,
    num_proc: int | None = None,
    columns: list[str] | None = None,
) -> Path:
    """Decode a source once to a folder that any number of machines write to, and pretraining reads.

    A chunk that is there is not made again, so that a call goes on where another was stopped. A call without `shard`
    makes what is missing, checks all chunks against the source and their sums, and finishes the folder.

    Args:
        source: A folder of images or DICOM files, Parquet, a Hub data set id, or `phantoms:N`.
        output: Folder to write.
        split: Split of the source.
        image_column: Its column of images.
        id_column: Its column whose values name the images.
        list_file: Text file naming the images of a folder to take, one a line.
        side: Pixels a side.
        channels: 1 turns colour to grey, 3 repeats grey.
        aspect_ratio: `resize` stretches to the square; `pad` keeps the ratio, centred on black.
        max_skipped_share: Share of the images that may be unreadable; looked at when the folder is finished.
        storage: `raw` bytes; or the files of `png` (no loss) or `jpeg` (quality 95), which are smaller, and decoded
            again by the worker processes of each run.
        shard: `i/n`, for the i-th of n machines: every n-th chunk, and the folder is left unfinished.
        chunk_size: Images of a chunk, which is what is lost at most when a call is stopped.
        num_proc: Processes that decode; by default all processors of this process, 0 for this process alone.
        columns: Columns of texts or numbers that are kept with the images, such as the one for `data.patient_column`.

    Returns:
        The folder.

    Raises:
        FileExistsError: `output` holds something else.
        ValueError: a value above is not as described, or the folder was begun with other settings, another source
            or other decoders.
        SourceError: the source is absent or not of the shape asked for, has no such columns, or a chunk is not what
            it was.
        TooManyUnreadable: more images than `max_skipped_share` cannot be read; all are listed in `skipped.jsonl`.
        OSError: the disk is full; chunks that were whole are.
    """
    index, count = _shard(shard)
    check_shape(side, channels, aspect_ratio)
    if chunk_size < 1:
        raise ValueError(f"--chunk-size must be at least 1, got {chunk_size}")
    check_workers(num_proc, "--num-proc")
    check_share(max_skipped_share)
    folder = Path(output)
    found = find_source(source, list_file=list_file)
    split = found.usual_name(split)
    kept = list(dict.fromkeys(columns or ()))
    loaded: Any = found.load(split, image_column=image_column, id_column=id_column)
    _check_columns(loaded.features, kept, f"split {split!r} of {found.name}")
    rows = loaded.select_columns(["image", "source_id", *kept])
    settings = {"side": side, "channels": channels, "aspect_ratio": aspect_ratio, "storage": storage}
    told = {"split": split, "image_column": image_column, "id_column": id_column, "fingerprint": found.fingerprint,
            "columns": kept or None}  # fmt: skip
    plan = {**settings, **told, "images": len(rows), "chunk_size": chunk_size, **decoder_versions()}
    with told_without_room(folder):
        _agree(folder, plan)
        chunks = [folder / f"chunk-{number:05}" for number in range(-(-len(rows) // chunk_size))]
        missing = [number for number in range(index, len(chunks), count) if not chunks[number].exists()]
        _make(missing, chunks, rows, settings, chunk_size, num_proc)
        if count == 1:
            _finish(folder, chunks, rows, plan, max_skipped_share)
    return folder


def _check_columns(features: Features, columns: Sequence[str], where: str) -> None:
    """Refuse columns that are not there, or hold what JSON does not."""
    for name in columns:
        if name not in features or name in ("image", "source_id"):
            known = ", ".join(other for other in features if other not in ("image", "source_id")) or "no others"
            raise SourceError(f"{where} has no column {name!r} to keep (--columns); beside its images it has {known}")
        if not re.fullmatch(r"(large_)?string|u?int\d+|float\d+|bool", str(getattr(features[name], "dtype", None))):
            raise SourceError(
                f"column {name!r} of {where} holds neither texts nor numbers but {features[name]}: leave it out of "
                "--columns, or write it as text"
            )


def _told(rows: Dataset, span: range) -> dict[str, list[Any]]:
    """What the rows of a chunk hold beside their images."""
    return rows.select_columns([name for name in rows.column_names if name != "image"])[span.start : span.stop]


def _shard(shard: str) -> tuple[int, int]:
    """`i/n` as what is counted from 0, and how many there are."""
    told = re.fullmatch(r"(\d+)/(\d+)", shard)
    index, count = map(int, told.groups()) if told else (0, 0)
    if not 1 <= index <= count:
        raise ValueError(f"--shard must be i/n with i from 1 to n, as 3/16, got {shard!r}")
    return index - 1, count


def _agree(folder: Path, plan: dict[str, Any]) -> None:
    """Write the plan of a new folder; refuse to go on with one that was begun by another.

    Raises:
        FileExistsError: it holds something else.
        ValueError: it was.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / PLAN
    if not file.exists():
        if others := [path.name for path in folder.iterdir() if not path.name.startswith(".")]:
            raise FileExistsError(f"{folder} holds something else ({min(others)}): choose another --output")
        _write_whole(file, plan)
    try:
        begun = read_record(file)
    except ValueError as error:
        raise SourceError(f"{file} is torn: remove it with the folder, or choose another --output") from error
    others = [f"{name} {begun.get(name)!r} -> {plan[name]!r}" for name in plan if begun.get(name) != plan[name]]
    if others:
        raise ValueError(
            f"{folder} was begun with others: {', '.join(others)}; go on with the same, or choose another --output"
        )


def _write_whole(file: Path, content: dict[str, Any]) -> None:
    """Write JSON of which nobody reads a part."""
    temporary = file.with_name(f".{file.name}-{uuid.uuid4().hex}")
    try:
        temporary.write_text(json.dumps(content, indent=1))
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def _make(
    missing: Sequence[int],
    chunks: Sequence[Path],
    rows: Dataset,
    settings: Any,
    chunk_size: int,
    num_proc: int | None,
) -> None:
    """Decode the missing chunks of rows `image`, `source_id` and what is kept with them, each whole or not there."""
    spans = [_span(number, rows, chunk_size) for number in missing]
    if not spans:
        return
    chosen = rows.select(np.concatenate([np.arange(span.start, span.stop) for span in spans]))
    with undone_on_sigterm(), workers_live():
        decoded = decode_all(chosen, Decoder(**settings), num_proc)
        for number, span in zip(missing, spans, strict=True):
            with scratch_folder(chunks[number]) as scratch:
                skips = SkipLog(scratch / SKIPPED_FILE, 1.0)
                write_images(islice(decoded, len(span)), scratch, settings, skips, _told(rows, span))
                move_into_place(scratch, chunks[number])


def _span(number: int, rows: Dataset, chunk_size: int) -> range:
    """The rows of a chunk."""
    return range(number * chunk_size, min(len(rows), (number + 1) * chunk_size))


def _finish(folder: Path, chunks: Sequence[Path], rows: Dataset, plan: dict[str, Any], max_share: float) -> None:
    """Check the chunks one by one, and name them all.

    Raises:
        SourceError: one is not of its rows of the source, or its bytes are not those that were written.
        TooManyUnreadable: more images than `max_share` were left out.
    """
    (folder / MANIFEST).unlink(missing_ok=True)
    skips = SkipLog(folder / SKIPPED_FILE, max_share)
    checked = []
    for number, chunk in enumerate(tqdm(chunks, desc="checking chunks", unit="chunk", dynamic_ncols=True)):
        span = _span(number, rows, plan["chunk_size"])
        checked.append(_checked(chunk, _told(rows, span), plan, skips))
    skips.check(len(rows))
    if not any(chunk["images"] for chunk in checked):
        raise SourceError("the source has no images")
    _write_whole(folder / MANIFEST, {**plan, "skipped": skips.count, "chunks": checked})


def _checked(chunk: Path, told: dict[str, list[Any]], plan: dict[str, Any], skips: SkipLog) -> dict[str, Any]:
    """What the manifest says of a chunk, if it is of the rows `told` and its bytes are those that were written."""
    try:
        about = read_record(chunk / ABOUT)
        file = (chunk / PIXELS).open("rb")
    except (OSError, ValueError) as error:
        raise SourceError(f"{chunk} is torn ({error}); remove that folder and call again") from error
    entries = skipped_entries(chunk / SKIPPED_FILE)
    for entry in entries:
        skips.add(**entry)
    left_out = {entry["source_id"] for entry in entries}
    names, values = kept_rows(told, lambda name: name not in left_out)
    with file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    others = [name for name in ("side", "channels", "aspect_ratio", "storage") if about.get(name) != plan[name]]
    faults = {
        f"its {' and '.join(others)} is not that of the folder": bool(others),
        "its names are not those of the source": about["ids"] != names,
        "its columns are not those of the source": json.dumps(about.get("columns", {})) != json.dumps(values),
        "its bytes are not those that were written": digest != about["sha256"],
        "its size is wrong": (chunk / PIXELS).stat().st_size != bytes_of(about),
    }
    if found := [fault for fault, is_so in faults.items() if is_so]:
        raise SourceError(f"{chunk}: {' and '.join(found)}; remove that folder and call again")
    return {"name": chunk.name, "images": len(about["ids"]), "sha256": digest}
