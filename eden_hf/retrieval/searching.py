"""What in a collection is most alike to an image, or to a region of one.

Images are compared by the cosine of their embeddings. A region is the mean of the embeddings of the points inside; it
is compared with the same mean over windows of its size (in the square that the model sees) all over each image of the
collection, and an image is as alike as its best window. So a region finds itself with a cosine of 1.
"""

import heapq
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from datasets import Dataset, Image
from torch import Tensor

from eden_hf.anatomy import Box
from eden_hf.data.errors import SourceError
from eden_hf.data.parquet import damage_told
from eden_hf.data.reading import read_image
from eden_hf.data.skips import SkipLog
from eden_hf.data.sources import load_source, read_cell
from eden_hf.encoders import Encoder, load_encoder
from eden_hf.model_names import FRESH
from eden_hf.retrieval.embedding import embedding_rows, read_about


class SearchError(SourceError):
    """What is asked cannot be found in these embeddings; the message says how to mend it."""


class Hit(NamedTuple):
    """An image found, or a place in it.

    Attributes:
        image: Its name in the collection.
        similarity: Cosine, -1 to 1.
        box: x0, y0, x1, y1 in its pixels, half open, of the window that is most alike to the query's region.
    """

    image: str
    similarity: float
    box: Box | None = None


def search(
    model: str,
    query: str,
    embeddings: str | None = None,
    images: str | None = None,
    region: str | None = None,
    top: int = 10,
    output: str | None = None,
    split: str = "train",
    image_column: str = "image",
    id_column: str | None = None,
    trust_remote_code: bool = False,
) -> list[Hit]:
    """Find the images that are most alike to an image, or to a region of it.

    Args:
        model: The encoder that made the embeddings.
        query: Image file, DICOM included.
        embeddings: Parquet of `eden embed`: of images, or for a region of points (`--dense`).
        images: The collection itself, embedded now instead of `embeddings` (for a region, where those are not dense);
            also where the pictures of `output` are taken from, by default the source that was embedded.
        region: `x0,y0,x1,y1` in pixels of the query, half open.
        top: How many to find. A query that is itself in the collection finds itself first.
        output: PNG to draw them on.
        split, image_column, id_column: Of `images`.
        trust_remote_code: Whether code that comes with a Hub model may run.

    Returns:
        The most alike first.

    Raises:
        SearchError: the embeddings are of other weights or of another kind, there are neither embeddings nor images,
            or the region is none.
        SourceError, ImageReadError: the embeddings, the images or the query cannot be read.
    """
    about = read_about(embeddings) if embeddings is not None else {}
    made: dict[str, Any] = {name: about.get(name) for name in ("size", "intensity")}
    encoder = load_encoder(model, **made, trust_remote_code=trust_remote_code)
    picture = read_image(query)
    box = None if region is None else parse_region(region, picture.size)
    source: tuple[Any, ...] = (images, split, image_column, id_column)
    unreadable: list[dict[str, str]] = []
    if about and (box is None or about["dense"] or images is None):
        _check_made(about, encoder, dense=box is not None, file=embeddings)
        gallery: Iterable[pa.RecordBatch] = _batches(embeddings)
        if images is None:
            source = tuple(about[name] for name in ("images", "split", "image_column", "id_column"))
    elif images is None:
        raise SearchError("nothing to search: give embeddings (of `eden embed`), or images to embed now")
    else:
        rows = _open(source)
        gallery = embedding_rows(encoder, rows, dense=box is not None, unreadable=unreadable)
    asked = Dataset.from_dict({"image": [str(query)], "source_id": ["query"]}).cast_column(
        "image", Image(decode=False)
    )
    (of_query,) = embedding_rows(encoder, asked, dense=box is not None)
    hits = _alike_images(of_query, gallery) if box is None else _alike_windows(of_query, box, gallery)
    found = heapq.nlargest(top, hits, key=lambda hit: hit.similarity)
    for entry in unreadable:
        SkipLog(None).add(**entry)
    if output is not None:
        _draw(Path(output), picture, box, found, _open(source))
    return found


def _batches(embeddings: str | None) -> Iterator[pa.RecordBatch]:
    """The rows of a file of embeddings."""
    with damage_told(str(embeddings), [str(embeddings)]):
        yield from pq.ParquetFile(embeddings).iter_batches()


def parse_region(text: str, size: tuple[int, int]) -> Box:
    """The box that `x0,y0,x1,y1` names in an image of `size` (width, height).

    Raises:
        SearchError: these are not four whole numbers, or no pixels of the image.
    """
    try:
        box = Box(*(int(number) for number in text.split(",")))
    except (TypeError, ValueError) as error:
        raise SearchError(f"a region is four whole numbers x0,y0,x1,y1, got {text!r}") from error
    width, height = size
    if not (0 <= box.x0 < box.x1 <= width and 0 <= box.y0 < box.y1 <= height):
        raise SearchError(f"region {text} is not inside the query of {width} x {height} pixels")
    return box


def _check_made(about: dict[str, Any], encoder: Encoder, dense: bool, file: str | None) -> None:
    """That embeddings are of the weights that the query is embedded by, and of its kind."""
    told_apart = encoder.revision is not None and not encoder.name.startswith(FRESH)  # a seed tells no architecture
    if about["weights_revision"] != encoder.revision or not (told_apart or about["model"] == encoder.name):
        raise SearchError(
            f"{file} was made by {about['model']} ({about['weights_revision']}), and {encoder.name} is "
            f"{encoder.revision}: search with the model that made it, or embed again"
        )
    if dense and not about["dense"]:
        raise SearchError(f"{file} holds embeddings of images: for a region make one with --dense, or give images")
    if about["dense"] and not dense:
        raise SearchError(f"{file} holds embeddings of points: give a region, or make one without --dense")


def _open(source: Sequence[Any]) -> Dataset:
    images, split, image_column, id_column = source
    return load_source(images, split=split, image_column=image_column, id_column=id_column)


def _one_row(file: str) -> Dataset:
    """One image in the shape of a source."""
    row = Dataset.from_dict({"image": [str(file)], "source_id": [str(file)]})
    return row.cast_column("image", Image(decode=False))


def _alike_images(query: pa.RecordBatch, gallery: Iterable[pa.RecordBatch]) -> Iterator[Hit]:
    """Every image with its similarity."""
    vector = _vectors(query)[0]
    for batch in gallery:
        similarities = _vectors(batch) @ vector
        yield from map(Hit, batch["image"].to_pylist(), similarities.tolist())


def _alike_windows(query: pa.RecordBatch, box: Box, gallery: Iterable[pa.RecordBatch]) -> Iterator[Hit]:
    """Every image with its window that is most alike to the query's region."""
    (own,) = _maps([query])
    inside = own.window(box)
    rows, columns = (len(range(*part.indices(10**9))) for part in inside)
    vector = F.normalize(own.vectors[:, inside[0], inside[1]].mean(dim=(1, 2)), dim=0)
    for found in _maps(gallery):
        kernel = min(rows, found.vectors.shape[1]), min(columns, found.vectors.shape[2])
        means = F.normalize(F.avg_pool2d(found.vectors[None], kernel, stride=1)[0], dim=0)
        similarity = torch.einsum("dhw,d->hw", means, vector)
        row, column = divmod(int(similarity.argmax()), similarity.shape[1])
        yield Hit(found.image, float(similarity.max()), found.box(row, column, *kernel))


class _Map(NamedTuple):
    """The points of one image: unit vectors `[D, h, w]`, and x `[w]` and y `[h]` of the nodes in pixels."""

    image: str
    vectors: Tensor
    x: np.ndarray
    y: np.ndarray

    def window(self, box: Box) -> tuple[slice, slice]:
        """Rows and columns of the nodes inside a box, or of the one nearest to its middle."""
        return _within(self.y, box.y0, box.y1), _within(self.x, box.x0, box.x1)

    def box(self, row: int, column: int, rows: int, columns: int) -> Box:
        """The pixels that a window of nodes stands for."""
        x0, x1 = _extent(self.x, column, columns)
        y0, y1 = _extent(self.y, row, rows)
        return Box(x0, y0, x1, y1)


def _within(places: np.ndarray, start: int, end: int) -> slice:
    inside = np.flatnonzero((places >= start - 0.5) & (places < end - 0.5))
    if not len(inside):
        inside = np.array([np.abs(places - (start + end - 1) / 2).argmin()])
    return slice(int(inside[0]), int(inside[-1]) + 1)


def _extent(places: np.ndarray, first: int, number: int) -> tuple[int, int]:
    """Start and end of the pixels round some neighbouring nodes, half open."""
    spacing = (places[-1] - places[0]) / (len(places) - 1) if len(places) > 1 else 2 * places[0] + 1
    start, end = places[first] - spacing / 2 + 0.5, places[first + number - 1] + spacing / 2 + 0.5
    return round(float(start)), round(float(end))


def _maps(batches: Iterable[pa.RecordBatch]) -> Iterator[_Map]:
    """The maps of images whose points follow one another, over the bounds of batches."""
    for image, parts in groupby(_runs(batches), key=lambda part: part["image"][0].as_py()):
        points = pa.Table.from_batches(list(parts))
        row, column = (points[name].to_numpy() for name in ("row", "column"))
        height, width = row.max() - row.min() + 1, column.max() - column.min() + 1
        vectors = torch.cat([_vectors(part) for part in points.to_batches()])
        x, y = (points[name].to_numpy().reshape(height, width) for name in ("x", "y"))
        yield _Map(image, vectors.mT.unflatten(1, (int(height), int(width))), x[0], y[:, 0])


def _runs(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Batches cut where another image begins."""
    for batch in batches:
        names = batch["image"].to_numpy(zero_copy_only=False)
        starts = [0, *(np.flatnonzero(names[1:] != names[:-1]) + 1).tolist(), len(names)]
        yield from (batch.slice(start, end - start) for start, end in pairwise(starts))


def _vectors(batch: pa.RecordBatch) -> Tensor:
    """`[N, C]` of the column `embedding`."""
    column = batch["embedding"]
    return torch.tensor(column.flatten().to_numpy()).view(len(batch), -1)


def _draw(file: Path, picture: Any, box: Box | None, hits: Sequence[Hit], rows: Dataset) -> None:
    """The query and the hits side by side, their regions outlined."""
    from eden_hf.plots import Part, plot_hits

    place = {name: index for index, name in enumerate(rows["source_id"])}
    if absent := [hit.image for hit in hits if hit.image not in place]:
        raise SourceError(f"{absent[0]} was embedded and is not in the images given: give those that were embedded")
    parts = [Part(picture, box or Box(0, 0, *picture.size), "query")]
    for hit in hits:
        found = read_cell(rows[place[hit.image]]["image"], hit.image)
        parts.append(Part(found, hit.box or Box(0, 0, *found.size), hit.image))
    file.parent.mkdir(parents=True, exist_ok=True)
    plot_hits(parts, [hit.similarity for hit in hits]).savefig(file, dpi=120)
