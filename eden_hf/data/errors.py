"""What is wrong with a source, in few words."""

from collections.abc import Iterable


class SourceError(ValueError):
    """A source that is absent, empty, or not of the shape asked for; the message says how to mend it."""


def first(names: Iterable[str]) -> str:
    """The first three of some names."""
    names = list(names)
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
