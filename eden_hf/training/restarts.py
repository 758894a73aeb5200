"""Processes that torchrun starts again (`--max-restarts`), with the command of the first time."""

import logging
import os
from pathlib import Path

from accelerate.utils import gather_object

logger = logging.getLogger(__name__)


def goes_on(folder: Path, asked: bool) -> bool:
    """Whether a run is resumed: if asked, or if torchrun started its processes again after one of them ended.

    Every process must call this before any writes to `folder`. One that was started again speaks for all: on a node
    that took the place of a lost one, torchrun starts the processes for the first time.

    Args:
        folder: Of the run.
        asked: By the command.
    """
    restarted = any(gather_object([int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0]))
    if asked or not restarted or not (folder / "config.yaml").exists():
        return asked
    logger.warning("torchrun started the processes again: going on from the last checkpoint in %s", folder)
    return True
