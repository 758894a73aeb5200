"""Several processes of one launch: none waits for ever for another that hangs or is gone."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.distributed_c10d import _set_pg_timeout

#: Hours that processes wait while one of them prepares the images.
PREPARING = timedelta(hours=6)


def wait_at_most(seconds: float) -> None:
    """Have the processes of a launch wait for one another no longer than this from now on."""
    if dist.is_initialized():
        _set_pg_timeout(timedelta(seconds=seconds))


@contextmanager
def others_answer(seconds: float) -> Iterator[None]:
    """Say it plainly where another process of the launch does not.

    Raises:
        ConnectionError: it ended, or did not answer for `seconds`.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise ConnectionError(
            f"another process of this launch ended, or did not answer for {seconds:g} s: what it says "
            f"itself, or the launcher, tells why; --resume goes on from the last checkpoint ({error})"
        ) from error
