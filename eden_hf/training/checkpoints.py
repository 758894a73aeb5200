"""Checkpoints that are whole or absent, and known to be: made under another name, sealed, then renamed.

A checkpoint is accelerate's own state folder (model, optimiser, gradient scaler, random states of every process),
`progress.json`, and the `checksums.json` of them all. It belongs to the run: pickles inside, so resume only from your
own. What is shared is a model folder.
"""

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list

from eden_hf.data.scratch import told_without_room
from eden_hf.data.text_files import write_text
from eden_hf.modeling_eden_base import readable_like_neighbours
from eden_hf.training.curriculum import Progress
from eden_hf.training.lineage import file_hash
from eden_hf.training.optimizers import of_this_version

logger = logging.getLogger(__name__)

PROGRESS_FILE = "progress.json"
#: Of a checkpoint: sha256 of each of its files, by its path.
SUMS_FILE = "checksums.json"


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Make `folder` by `write(temporary)`; never a part of one stands under its name.

    An interruption leaves the old folder or the new one; a kill between the two renames, the old one as `.<name>.old`,
    which gets its name back when the folder is made again.

    Raises:
        OSError: it could not be written; the old one is whole.
    """
    temporary, old = (folder.with_name(f".{folder.name}.{suffix}") for suffix in ("new", "old"))
    _give_back(old, folder)
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        with writing(temporary):
            temporary.mkdir(parents=True)
            write(temporary)
            if folder.exists():
                folder.rename(old)
            temporary.rename(folder)
    finally:
        _give_back(old, folder)
    shutil.rmtree(old, ignore_errors=True)


def _give_back(old: Path, folder: Path) -> None:
    if old.exists() and not folder.exists():
        old.rename(folder)


@contextmanager
def writing(temporary: Path) -> Iterator[None]:
    """Take a folder away that could not be written to its end.

    Raises:
        OSError: the disk is full; the message names the place and the mend.
    """
    try:
        with told_without_room(temporary.parent):
            yield
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)  # on a full disk its room is needed
        raise


def save_checkpoint(accelerator: Accelerator, folder: Path, progress: Progress, keep: int) -> None:
    """Write `folder/step-<step>` and remove all but the newest `keep`. Every process must call it.

    Raises:
        OSError: it could not be written; those before it are whole.
    """
    target = folder / f"step-{progress.step:08d}"
    temporary = folder / f".{target.name}.new"
    if accelerator.is_main_process:
        _clear(folder)
    accelerator.wait_for_everyone()
    with writing(temporary):
        accelerator.save_state(str(temporary))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            (temporary / PROGRESS_FILE).write_text(json.dumps(progress.to_dict(), indent=2))
            readable_like_neighbours(temporary)
            seal(temporary)
            remove(target)
            temporary.rename(target)
    if accelerator.is_main_process:
        _keep_newest(folder, keep)
    accelerator.wait_for_everyone()


def _keep_newest(folder: Path, keep: int) -> None:
    for old in _checkpoints(folder)[:-keep]:
        remove(old)


def _clear(folder: Path) -> None:
    """Remove what a run left that was killed while it wrote or removed a checkpoint."""
    for leftover in folder.glob(".step-*"):
        shutil.rmtree(leftover)


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint, of which no part may keep its name."""
    if checkpoint.exists():
        shutil.rmtree(checkpoint.rename(checkpoint.with_name(f".{checkpoint.name}.old")))


def load_last_checkpoint(accelerator: Accelerator, folder: Path, keep: int) -> Progress:
    """Restore the newest checkpoint of `folder` into what `accelerator` prepared, and return its position.

    A run that ended before its first checkpoint starts over, and says so. All but the newest `keep` are removed, which
    a run that was killed may have left. Every process must call it.

    Raises:
        ValueError: every checkpoint is damaged, or the newest is of another version.
    """
    if accelerator.is_main_process:
        _clear(folder)
    newest = newest_whole(_checkpoints(folder))
    if newest is None:
        logger.warning("no checkpoint was written yet to %s: starting at step 0", folder)
        return Progress()
    progress = _progress(newest / PROGRESS_FILE)
    with of_this_version(newest):
        accelerator.load_state(str(newest))
    accelerator.wait_for_everyone()  # who may be reading the one before
    if accelerator.is_main_process:
        _keep_newest(folder, keep)  # there may be no more to save
    return progress


def _checkpoints(folder: Path) -> list[Path]:
    """Checkpoints, oldest first."""
    return sorted(path.parent for path in folder.glob(f"step-*/{PROGRESS_FILE}"))


def _progress(file: Path) -> Progress:
    told, fields = json.loads(file.read_text()), {field.name for field in dataclasses.fields(Progress)}
    with of_this_version(file.parent):
        if told.keys() != fields:
            raise ValueError(f"{PROGRESS_FILE} has {sorted(told)}, not {sorted(fields)}")
    return Progress(**told)


def seal(folder: Path) -> None:
    """Write the checksums of a checkpoint: the last of its files. Those that were there go."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SUMS_FILE)
    write_text(folder / SUMS_FILE, json.dumps({str(file.relative_to(folder)): file_hash(file) for file in files}))


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint by its checksums; `None` where nothing is, or an older version wrote none."""
    sums = folder / SUMS_FILE
    try:
        recorded = json.loads(sums.read_text()).items() if sums.exists() else ()
        wrong = [name for name, digest in recorded if file_hash(folder / name) != digest]
    except (OSError, ValueError, AttributeError) as error:
        return str(error)
    return f"{', '.join(wrong)} changed since it was written" if wrong else None


def newest_whole(checkpoints: Sequence[Path]) -> Path | None:
    """The newest of `checkpoints`, which are in order of age, that is as it was written; `None` if there are none.

    Newer ones that are damaged are told, and kept under another name: `damaged-<name>`. Every process must call it;
    the main one looks.

    Raises:
        ValueError: all are damaged.
    """
    found: list[Path | ValueError | None] = [None]
    if PartialState().is_main_process:
        try:
            found = [_newest_whole(checkpoints)]
        except ValueError as error:
            found = [error]
    (newest,) = broadcast_object_list(found)
    if isinstance(newest, ValueError):
        raise newest
    return newest


def _newest_whole(checkpoints: Sequence[Path]) -> Path | None:
    damaged: dict[Path, str] = {}
    for checkpoint in reversed(checkpoints):
        if reason := damage(checkpoint):
            damaged[checkpoint] = reason
            continue
        for broken, reason in damaged.items():
            aside = broken.with_name(f"damaged-{broken.name}")
            logger.warning("%s is damaged (%s): kept as %s, going on from %s", broken, reason, aside.name, checkpoint)
            shutil.rmtree(aside, ignore_errors=True)
            broken.rename(aside)
        return checkpoint
    if not damaged:
        return None
    told = "; ".join(f"{broken} is damaged ({reason})" for broken, reason in damaged.items())
    raise ValueError(f"no checkpoint to go on from: {told}; bring one back from a copy, or start another run")
