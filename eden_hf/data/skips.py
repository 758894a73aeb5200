"""Images that cannot be used: listed with a reason, and bearable up to a share."""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eden_hf.data.reading import NoImageError

logger = logging.getLogger(__name__)

SKIPPED_FILE = "skipped.jsonl"


class TooManyUnreadable(RuntimeError):  # noqa: N818 (names what happened)
    """More images than the configured share could not be used."""


class SkipLog:
    """The one policy for images that cannot be used: listed with a reason, and bearable up to a share.

    Each image is one JSON line `{"source_id": ..., "reason": ...}` in `path`, however often it is added. Files that
    hold no image (`NoImageError`: reports and directories among DICOM images) have `"no_image": true` besides, and do
    not count. Opening a log starts a new list, unless it goes on with the one that is there. A log that was pickled to
    another process goes on with the same file, and its `count` is that of all of them.

    Args:
        path: the file to write (`skipped.jsonl` by convention), or `None` to keep the list in memory only.
        max_share: share of all images, in [0, 1], up to which a run goes on.
        goes_on: keep what is listed, but for a last line that an interruption cut short.
    """

    def __init__(self, path: str | Path | None, max_share: float = 0.01, goes_on: bool = False) -> None:
        check_share(max_share)
        self.path = None if path is None else Path(path)
        self.max_share = max_share
        self._known: dict[str, None] = {}
        if self.path is not None and self.path.exists() and goes_on:
            whole = self.path.read_bytes().rpartition(b"\n")[:2]
            os.truncate(self.path, sum(map(len, whole)))  # of several processes each may do that
            self._known = dict.fromkeys(whole[0].decode().split("\n"))
        elif self.path is not None:
            self.path.unlink(missing_ok=True)

    def add(self, source_id: str, reason: str | Exception, **details: Any) -> None:
        """List one image, with any further `details` (its split, say)."""
        entry = {"source_id": source_id, "reason": str(reason), **details}
        if isinstance(reason, NoImageError):
            entry["no_image"] = True
        line = json.dumps(entry)
        if line in self._known:  # read again, in another epoch
            return
        self._known[line] = None
        logger.warning("skipped %s: %s", source_id, reason)
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab", buffering=0) as file:  # one write a line: processes do not mix theirs
            file.write(line.encode() + b"\n")

    @property
    def entries(self) -> list[dict[str, Any]]:
        """What was listed so far, by every process."""
        return [json.loads(line) for line in self._known] if self.path is None else skipped_entries(self.path)

    @property
    def count(self) -> int:
        """Number of images listed so far, by every process."""
        return len(_images(self.entries))

    def check(self, total: int, keep_at: Path | None = None) -> None:
        """Stop the run if more than `max_share` of the images, or all of them, are listed.

        Args:
            total: number of all images, with the files that hold none.
            keep_at: where the list is moved if so, from a folder that goes with the run.

        Raises:
            TooManyUnreadable: they are; the message gives the first reasons and the file that has them all.
        """
        listed = self.entries
        entries = _images(listed)
        total -= len(listed) - len(entries)
        if not entries or (len(entries) <= self.max_share * total and len(entries) < total):
            return
        if self.path is not None and keep_at is not None:
            self.path = self.path.replace(keep_at)
        examples = "; ".join(f"{entry['source_id']}: {entry['reason']}" for entry in entries[:3])
        where = f" All are listed in {self.path}." if self.path is not None else ""
        raise TooManyUnreadable(
            f"{len(entries)} of {total} images could not be used, which the limit of {self.max_share:.2%} forbids "
            f"({examples}).{where} Mend or remove them, or raise the limit (max_skipped_share)."
        )


def check_share(max_share: float) -> None:
    """Raise ValueError if it is no share: for those who look at it after the work."""
    if not 0 <= max_share <= 1:
        raise ValueError(f"max_skipped_share is a share of the images in [0, 1], got {max_share}")


def skipped_entries(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a `skipped.jsonl`, none where there is no such file."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in dict.fromkeys(lines) if line.endswith("\n")]


def left_out(entries: Sequence[Mapping[str, Any]]) -> str:
    """What a list of skipped images comes to, in words."""
    images = len(_images(entries))
    others = len(entries) - images
    counts = [f"{images} images left out as unreadable"] * bool(images)
    return " and ".join(counts + [f"{others} files left out that hold no image"] * bool(others))


def _images(entries: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [entry for entry in entries if not entry.get("no_image")]
