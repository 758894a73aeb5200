"""The images that a command is given, read one after the other; those that cannot be read are listed."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import PIL.Image
from datasets import Dataset

from eden_hf.data.columns import refuse_repeats
from eden_hf.data.errors import SourceError, first
from eden_hf.data.folders import image_rows, images_below
from eden_hf.data.reading import ImageReadError
from eden_hf.data.skips import SkipLog
from eden_hf.data.sources import find_source, is_image_folder, read_cell


class Pictures:
    """Images by name, in no more memory than one of them takes.

    Args:
        images: Image files, which go by their file names, or one source that `load_source` opens: its images go by
            their ids, those of a folder by their paths relative to it.
        split: Split of a source; all of them by default, and of a folder whatever lies below it.
        id_column: Column of a source whose values name the images.

    Raises:
        SourceError: there are none, two have one name, or a source is absent or not given alone.
    """

    def __init__(self, images: Sequence[str], *, split: str | None = None, id_column: str | None = None) -> None:
        files = [image for image in images if Path(image).expanduser().is_file() and not _is_parquet(image)]
        if len(files) < len(images) and len(images) > 1:
            others = [image for image in images if image not in files]
            raise SourceError(f"give image files, or one folder or data set alone; no image files: {first(others)}")
        if files:
            self.parts: list[Any] = [[_file_row(file) for file in files]]
        elif images and split is None and is_image_folder(root := Path(images[0]).expanduser()):
            self.parts = [image_rows(root, images_below(root))]
        elif images:
            found = find_source(images[0])
            self.parts = [found.load(name, id_column=id_column) for name in ([split] if split else found.splits)]
        else:
            raise SourceError("no images are given")
        if any(not hasattr(part, "__len__") for part in self.parts):
            raise SourceError(f"{images[0]} is a stream; give its files")
        refuse_repeats(self.names, ", ".join(images[:1]))

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @property
    def names(self) -> list[str]:
        """Of all images, also of those that cannot be read."""
        return [name for part in self.parts for name in _names(part)]

    @property
    def files(self) -> list[Path | None]:
        """Where they lie, `None` for images within a data set."""
        cells = (row["image"] or {} for part in self.parts for row in part)
        return [Path(cell["path"]) if cell.get("path") and cell.get("bytes") is None else None for cell in cells]

    def read(self, skips: SkipLog, **details: Any) -> Iterator[tuple[int, str, PIL.Image.Image]]:
        """Place among all, name and picture of each image that can be read; others go to `skips`, with `details`."""
        rows = (row for part in self.parts for row in part)
        for index, row in enumerate(rows):
            try:
                picture = read_cell(row["image"], row["source_id"])
            except ImageReadError as error:
                skips.add(row["source_id"], error, **details)
                continue
            yield index, row["source_id"], picture


def _is_parquet(image: str) -> bool:
    return image.lower().endswith(".parquet")


def _file_row(file: str) -> dict[str, Any]:
    path = Path(file).expanduser()
    return {"image": {"bytes": None, "path": str(path)}, "source_id": path.name}


def _names(part: Dataset | list[dict[str, Any]]) -> list[str]:
    return [row["source_id"] for row in part] if isinstance(part, list) else list(part["source_id"])
