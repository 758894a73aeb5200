"""Progress bars."""

from typing import Any

from tqdm.auto import tqdm


def progress_bar(*arguments: Any, shown: bool = True, **options: Any) -> tqdm:
    """A bar of tqdm where it is to be `shown`; then as TQDM_DISABLE says, which an option would override."""
    options |= {} if shown else {"disable": True}
    bar: Any = tqdm  # whose overloads take no mapping
    return bar(*arguments, dynamic_ncols=True, **options)
