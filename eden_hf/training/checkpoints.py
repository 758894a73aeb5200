"""Checkpoints that are whole or absent: written under a temporary name, then renamed.

A checkpoint is accelerate's own state folder (model, optimiser, gradient scaler, random states of every process) and
`progress.json`. It belongs to the run: pickles inside, so resume only from your own. What is shared is a model folder.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator

from eden_hf.modeling_eden_base import readable_like_neighbours
from eden_hf.training.curriculum import Progress
from eden_hf.training.optimizers import same_groups

logger = logging.getLogger(__name__)

PROGRESS_FILE = "progress.json"


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Make `folder` by `write(temporary)`; never a part of one stands under its name.

    An interruption leaves the old folder or the new one; between the two renames, the old one as `.<name>.old`.
    """
    temporary, old = (folder.with_name(f".{folder.name}.{suffix}") for suffix in ("new", "old"))
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir(parents=True)
    write(temporary)
    if folder.exists():
        folder.rename(old)
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def save_checkpoint(accelerator: Accelerator, folder: Path, progress: Progress, keep: int) -> None:
    """Write `folder/step-<step>` and remove all but the newest `keep`. Every process must call it."""
    target = folder / f"step-{progress.step:08d}"
    temporary = folder / f".{target.name}.new"
    if accelerator.is_main_process:
        for leftover in folder.glob(".step-*.new"):  # of a run killed while it wrote
            shutil.rmtree(leftover)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(temporary))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (temporary / PROGRESS_FILE).write_text(json.dumps(progress.to_dict(), indent=2))
        readable_like_neighbours(temporary)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(temporary, target)  # noqa: PTH105 (says that it replaces)
        for old in _checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def load_last_checkpoint(accelerator: Accelerator, folder: Path) -> Progress:
    """Restore the newest checkpoint of `folder` into what `accelerator` prepared, and return its position.

    A run that ended before its first checkpoint starts over, and says so.

    Raises:
        ValueError: the optimiser of the checkpoint decayed other parameters (an older version's).
    """
    found = _checkpoints(folder)
    if not found:
        logger.warning("no checkpoint was written yet to %s: starting at step 0", folder)
        return Progress()
    with same_groups(found[-1]):
        accelerator.load_state(str(found[-1]))
    return Progress(**json.loads((found[-1] / PROGRESS_FILE).read_text()))


def _checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(path.parent for path in folder.glob(f"step-*/{PROGRESS_FILE}"))
