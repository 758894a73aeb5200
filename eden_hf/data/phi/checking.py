"""Everything that is looked at in a file, a folder or a data set for what may tell who a patient is."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, cast

import pyarrow as pa
from datasets import Dataset
from PIL import Image
from pyarrow.parquet import ParquetFile

from eden_hf.data.dicom import frame_count, open_dicom
from eden_hf.data.errors import NoPixelsError, SourceError
from eden_hf.data.folders import is_image, list_files
from eden_hf.data.phi.attributes import attribute_findings
from eden_hf.data.phi.burned_in import Text, find_text, overlap
from eden_hf.data.phi.findings import (
    Finding,
    Kind,
    PhiError,
    brief,
    in_short,
    not_accepted,
    read_accepted,
    told_apart,
    write_findings,
)
from eden_hf.data.phi.names import name_findings, tells_patients
from eden_hf.data.phi.tags import tag_findings
from eden_hf.data.progress import progress_bar
from eden_hf.data.reading import decode_image, is_dicom, is_raw, open_image
from eden_hf.data.sources import find_source, is_saved

_ROWS = 64  # of a table that are in memory at once
_PARQUET = b"PAR1"
#: How DICOM begins that has neither its mark nor its suffix: an element of group 2 or 8, with or without its type.
_UNMARKED = re.compile(rb"[\x02\x08]\0.\0(?:[A-Z]{2}|..\0\0)|\0[\x02\x08]\0.[A-Z]{2}", re.DOTALL)
_CLOSED_WORDS = """
    7z arrow avi bz2 doc docx feather gz h5 hdf hdf5 mat mha mhd mkv mov mp4 nhdr nii npy npz nrrd pdf ppt pptx rar tar
    tfrecord tfrecords tgz xz zip zst
    """
#: Suffixes of files that may hold images or tables of them, and cannot be looked into.
_CLOSED = frozenset(f".{word}" for word in _CLOSED_WORDS.split())
#: Of tables, as `datasets` and pandas write them.
_TECHNICAL_METADATA = (b"content_defined_chunking", b"huggingface", b"pandas")


class PhiReport(NamedTuple):
    """What `check_phi` found.

    Attributes:
        file: CSV of the findings, with the fields of `Finding`.
        findings: Those that are in it, which are not accepted.
        accepted: Number of findings that are.
        images: Number of images that were looked at.
        others: Number of files of which the names alone were looked at: they are no images and no Parquet.
        hidden: Number of hidden files and folders, which were left out.
    """

    file: Path
    findings: list[Finding]
    accepted: int
    images: int
    others: int
    hidden: int


class _Looked:
    """Counts of what was looked at."""

    images = others = hidden = 0


def check_phi(
    paths: Sequence[str], output: str = "phi.csv", accepted: str | None = None, skip_text: bool = False
) -> PhiReport:
    """Look for what may tell who a patient is, and write it down.

    Args:
        paths: Files, folders (everything below them) or sources of `eden_hf.data.sources.load_source`.
        output: CSV file to write. It holds the very words that were found: keep it where the images are.
        accepted: CSV of findings that a person looked at and accepts: rows kept of an earlier one.
        skip_text: Do not look for burned-in text, which takes most of the time.

    Raises:
        SourceError: there is nothing at a path, or nothing in it.
        ImportError: the extra `phi` is not installed.
    """
    known, looked = read_accepted(accepted), _Looked()
    findings: list[Finding] = []
    for path in paths:
        above = f"{path.rstrip('/')}/" if len(paths) > 1 else ""
        found = _path_findings(path, looked, not skip_text)
        findings += [finding._replace(file=above + finding.file) for finding in found]
    left = not_accepted(findings, known)
    write_findings(Path(output), left)
    return PhiReport(Path(output), left, len(findings) - len(left), looked.images, looked.others, looked.hidden)


def guard(findings: Iterable[Finding], accepted: frozenset[Finding], report: Path, setting: str) -> None:
    """Refuse to go on with findings that nobody accepted.

    Args:
        findings: What was found.
        accepted: What was looked at and may be.
        report: CSV that is written of the others.
        setting: What takes the file of accepted findings, for the error.

    Raises:
        PhiError: there are others.
    """
    if left := not_accepted(findings, accepted):
        write_findings(report, left)
        raise PhiError(
            f"images may tell who the patients are: {in_short(left)}\n{report} says what was found: mend the images, "
            f"or keep in it what may be, and give it as {setting}"
        )


def data_findings(data: Dataset | Iterable[pa.RecordBatch], name: str) -> Iterator[Finding]:
    """What rows of `datasets` or of Arrow tell, in any column: images, and texts that are names."""
    tables = data.with_format("arrow").iter(_ROWS) if isinstance(data, Dataset) else data
    return _table_findings(tables, name, _Looked(), True)


def file_findings(folder: Path, name: str, text: bool = True) -> Iterator[Finding]:
    """What the content of a file tells: of an image, or of Parquet whatever it holds; nothing of other files.

    Args:
        folder: Where it is.
        name: Its path there.
        text: Whether burned-in text is looked for.
    """
    return _file_findings(folder, name, _Looked(), text)


def names_in(path: str) -> Iterator[Finding]:
    """What the last part of a path tells."""
    yield from (Finding(path, "name", what, words) for what, words in name_findings(PurePosixPath(path).name))


def _path_findings(given: str, looked: _Looked, text: bool) -> Iterator[Finding]:
    path = Path(given).expanduser()
    if path.is_file():
        yield from names_in(path.name)
        yield from _file_findings(path.parent, path.name, looked, text)
    elif path.is_dir() and not is_saved(path):
        files, hidden = list_files(path)
        looked.hidden += hidden
        if not files:
            raise SourceError(f"nothing to look at in {given}: it has no files")
        yield from (found._replace(file=".") for found in names_in(path.absolute().name))
        below = dict.fromkeys(str(part) for file in files for part in (*PurePosixPath(file).parents, file))
        for part in below:
            yield from names_in(part)
        for file in progress_bar(files, desc=given, unit="file", shown=len(files) > 1):
            yield from _file_findings(path, file, looked, text)
    else:
        source = find_source(given)
        for split in source.splits:
            rows = cast(Dataset, source.open_split(split, False)).with_format("arrow")
            yield from _table_findings(rows.iter(_ROWS), split, looked, text)


def _file_findings(folder: Path, name: str, looked: _Looked, text: bool) -> Iterator[Finding]:
    file = folder / name
    start = _start(file)
    if file.suffix.lower() == ".parquet" or start.startswith(_PARQUET):
        try:
            with ParquetFile(file) as table:
                yield from _table_findings(table.iter_batches(_ROWS), name, looked, text)
        except (OSError, pa.ArrowException) as error:
            yield Finding(name, "unreadable", "table", str(error))
    elif is_image(file) or is_raw(start, name) or _UNMARKED.match(start) or _opens(file):
        looked.images += 1
        try:
            data = file.read_bytes()
        except OSError as error:
            yield Finding(name, "unreadable", "image", str(error))
            return
        yield from (Finding(name, *found) for found in _image_findings(data, name, text))
    elif file.suffix.lower() in _CLOSED:
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()[:16]
        cause = f"may hold images, and is not looked into: unpack or convert it (sha256 {digest})"
        yield Finding(name, "unreadable", "file", cause)
    else:
        looked.others += 1


def _start(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(132)
    except OSError:  # which is told when it is read
        return b""


def _opens(file: Path) -> bool:
    """Whether PIL takes a file for an image, whatever it is called."""
    try:
        with Image.open(file):
            return True
    except Exception:  # none of its formats, or damaged, or one that opens as none for want of a library
        return False


def _table_findings(
    batches: Iterable[pa.Table | pa.RecordBatch], name: str, looked: _Looked, text: bool
) -> Iterator[Finding]:
    """What a table tells: by the names of its columns, by their images and by their texts."""
    number, told = 0, False
    for batch in batches:
        if not told:
            yield from (Finding(name, *found) for found in _schema_findings(batch.schema))
            told = True
        for row in batch.to_pylist():
            for column, value in row.items():
                found = _cell_findings(value, f"{name} row {number}", looked, text)
                yield from (
                    Finding(f"{name} row {number}", kind, f"{column}: {where}", what) for kind, where, what in found
                )
            number += 1


def _schema_findings(schema: pa.Schema) -> Iterator[tuple[Kind, str, str]]:
    """What a table tells by the names of its columns, those within others too, and by words about it."""
    yield from (("name", "column", column) for column in _column_names(schema) if tells_patients(column))
    for key, value in (schema.metadata or {}).items():
        if key not in _TECHNICAL_METADATA:
            yield "tag", f"metadata {brief(key)}", brief(value)


def _column_names(fields: Iterable[pa.Field]) -> Iterator[str]:
    for own in fields:
        yield own.name
        kind = own.type
        while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
            kind = kind.value_type
        if pa.types.is_struct(kind):
            yield from _column_names(kind.fields)


def _cell_findings(value: Any, name: str, looked: _Looked, text: bool) -> Iterator[tuple[Kind, str, str]]:
    if isinstance(value, str):
        yield from (("name", what, words) for what, words in name_findings(value))
    elif isinstance(value, date):
        yield "name", "date", value.isoformat()
    elif isinstance(value, bytes):
        looked.images += 1
        yield from _image_findings(value, name, text)
    elif isinstance(value, dict) and value.keys() == {"bytes", "path"}:
        yield from _image_cell_findings(value["bytes"], value["path"], name, looked, text)
    elif isinstance(value, dict):
        for key, own in value.items():
            yield from (
                (kind, f"{key}: {where}", what) for kind, where, what in _cell_findings(own, name, looked, text)
            )
    elif isinstance(value, list | tuple) and not isinstance(
        next(iter(value), 0), int | float
    ):  # long as embeddings are
        for own in value:
            yield from _cell_findings(own, name, looked, text)


def _image_cell_findings(
    data: bytes | None, path: str | None, name: str, looked: _Looked, text: bool
) -> Iterator[tuple[Kind, str, str]]:
    if data is None and path is not None:
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            yield "unreadable", "image", str(error)
    elif path is not None:
        yield from (("name", what, words) for what, words in name_findings(path))
    if data is not None:
        looked.images += 1
        yield from _image_findings(data, path or name, text)


def _image_findings(data: bytes, name: str, text: bool) -> Iterator[tuple[Kind, str, str]]:
    """What a file of an image tells, as kind, where and value."""
    if _UNMARKED.match(data):
        name = f"{name}.dcm"
    try:
        if is_dicom(data[:132], name):
            yield from (("attribute", *found) for found in attribute_findings(data, name))
            frames = frame_count(open_dicom(data, name)) if text else 0
        elif is_raw(data[:132], name):
            frames = 1
        else:
            with open_image(data) as image:
                frames = getattr(image, "n_frames", 1)
                for frame in range(frames):
                    image.seek(frame)
                    yield from (("tag", *found) for found in tag_findings(image, b"" if frame else data))
        for frame in range(frames if text else 0):
            yield from _text_findings(_pictures(data, name, frame), frame if frames > 1 else None)
    except NoPixelsError:  # a report, say, of which the attributes tell
        return
    except ImportError:
        raise
    except Exception as error:  # decoders raise anything on damaged bytes
        yield "unreadable", "image", f"{error} ({told_apart(data)})"


def _pictures(data: bytes, name: str, frame: int) -> Iterator[Image.Image]:
    """A frame as it is shown; of one with transparent parts also its colours without and its transparency."""
    yield decode_image(data, name, frame=frame)
    if not is_dicom(data[:132], name) and not is_raw(data[:132], name):
        with open_image(data, frame) as image:
            if image.has_transparency_data:
                *colours, alpha = image.convert("RGBA").split()
                yield from (Image.merge("RGB", colours), alpha)


def _text_findings(pictures: Iterable[Image.Image], frame: int | None) -> Iterator[tuple[Kind, str, str]]:
    """Text in pictures of one frame, each place once."""
    of_frame = "" if frame is None else f"frame {frame} "
    known: list[Text] = []
    for picture in pictures:
        for found in find_text(picture):
            if not any(overlap(found.box, other.box) for other in known):
                known.append(found)
                yield "text", of_frame + "box {},{},{},{}".format(*found.box), found.text
