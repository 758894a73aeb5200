"""What things cost as one quantity grows: the memory bank, the level, the side of images, their number, and files."""

import json
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from eden_hf.benchmarks.measuring import seconds
from eden_hf.data.chunks import prepare_in_chunks
from eden_hf.data.phantoms import phantom_dataset
from eden_hf.data.prepared import ABOUT, PIXELS, PreparedImages, split_holdout
from eden_hf.data.view_arguments import ViewArguments
from eden_hf.data.views import TwoViews
from eden_hf.modeling_eden import pruned_info_nce
from eden_hf.training.curriculum import epoch_order

Work = tuple[Callable[[], object], int]  # what is timed, and how many items it does


@dataclass(frozen=True)
class Curve:
    """One quantity, and what is timed at some of its values, in seconds of a core.

    Attributes:
        quantity: What grows.
        about: What is timed.
        item: Of what the cost is told.
        values: Of the quantity.
        prepare: Gives for a value what is timed and how many items that does.
    """

    quantity: str
    about: str
    item: str
    values: tuple[int, ...]
    prepare: Callable[[int], AbstractContextManager[Work]]

    def costs(self, rounds: int) -> dict[int, float]:
        """Seconds of a core an item by value, medians of `rounds` after a turn that does not count."""
        found = {}
        for value in self.values:
            with self.prepare(value) as (work, items):
                turns = [seconds(work, "processor") for _ in range(rounds + 1)]
            found[value] = statistics.median(turns[1:]) / items
        return found


@contextmanager
def _objective(rows: int) -> Iterator[Work]:
    generator = torch.Generator().manual_seed(0)
    queries, keys, bank = (F.normalize(torch.randn(n, 128, generator=generator), dim=1) for n in (256, 256, rows))
    queries.requires_grad_()
    yield lambda: pruned_info_nce(queries, keys, bank, 0.2, 0.8).loss.backward(), 256


def _views(side: int, level: int) -> Work:
    images = torch.randint(0, 256, (16, 1, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    make, epochs = TwoViews(ViewArguments()), iter(range(1_000_000))
    return lambda: make(images, torch.arange(16), level=level, seed=0, epoch=next(epochs)), 16


@contextmanager
def _of_level(level: int) -> Iterator[Work]:
    yield _views(512, level)


@contextmanager
def _of_side(side: int) -> Iterator[Work]:
    yield _views(side, 2)


@contextmanager
def _begin(count: int) -> Iterator[Work]:
    """A prepared folder whose pixels, which are not read, are a hole in a file."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ids = [f"images_{index % 12:03}/images/{index:08}_000.png" for index in range(count)]
        (folder / ABOUT).write_text(json.dumps({"ids": ids, "channels": 1, "side": 256, "skipped": 0}))
        with (folder / PIXELS).open("wb") as file:
            file.truncate(count * 256 * 256)

        def begin() -> None:
            images = PreparedImages(folder)
            epoch_order(split_holdout(images.ids, 0.1, seed=0)[0], seed=0, epoch=0)

        yield begin, count


@contextmanager
def _prepare(count: int) -> Iterator[Work]:
    """64 phantoms as JPEG of 1,024 pixels, under as many names as asked for."""
    with tempfile.TemporaryDirectory() as name:
        source, turns = Path(name) / "images", iter(range(1_000_000))
        source.mkdir()
        for index, phantom in enumerate(phantom_dataset(min(64, count), size=1024)["image"]):
            phantom.save(source / f"{index}.jpg", quality=92)
        for index in range(64, count):
            (source / f"{index}.jpg").hardlink_to(source / f"{index % 64}.jpg")
        yield (
            lambda: prepare_in_chunks(str(source), f"{name}/{next(turns)}", chunk_size=256, num_proc=0),
            count,
        )


CURVES = {
    "bank": Curve("rows of the memory bank", "objective of 256 queries, forward and backward", "query",
                  (4096, 16384, 65536, 262144, 1048576), _objective),
    "level": Curve("level", "two grey views of 224 pixels of images of 512", "pair", (0, 1, 2, 3, 4, 5, 6), _of_level),
    "side": Curve("side of the images", "two grey views of 224 pixels", "pair", (128, 256, 512, 1024), _of_side),
    "images": Curve("prepared images", "opening them, holding some out, and the order of an epoch", "image",
                    (3000, 30000, 300000), _begin),
    "prepare": Curve("files", "`eden prepare` of JPEG of 1,024 pixels to 256", "image", (64, 256, 1024), _prepare),
}  # fmt: skip


def markdown(costs: dict[str, dict[int, float]]) -> str:
    """A line a curve: microseconds of a core an item at each value."""
    lines = ["| curve | what | microseconds of a core |", "| --- | --- | --- |"]
    for name, found in costs.items():
        curve = CURVES[name]
        told = ", ".join(f"{value:,}: {float(f'{1e6 * cost:.3g}'):,g}" for value, cost in found.items())
        lines.append(f"| {name} | {curve.about}; per {curve.item}, by {curve.quantity} | {told} |")
    return "\n".join(lines) + "\n"
