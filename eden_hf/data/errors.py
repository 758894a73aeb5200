"""What is wrong with a source or a file, in few words."""

from collections.abc import Iterable


class SourceError(ValueError):
    """A source that is absent, empty, or not of the shape asked for; the message says how to mend it."""


class DecodeError(ValueError):
    """Why bytes give no picture, and what to do about it; `eden_hf.data.reading` adds the name of the file."""


class NoPixelsError(DecodeError):
    """A sound object of another kind than an image."""


def first(names: Iterable[str]) -> str:
    """The first three of some names."""
    names = list(names)
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
