"""The folder of a run: one program's at a time, never written over by mistake, telling what ran (`config.yaml`,
`environment.json`), and which images it had.
"""

import functools
import json
import logging
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout

from eden_hf.data.text_files import read_record, write_text
from eden_hf.training.lineage import license_of, package_revision, renew_lineage, stale_records, write_lineage
from eden_hf.training.monitors import read_metrics
from eden_hf.training.settings import Settings, read_settings

P = ParamSpec("P")
R = TypeVar("R")

logger = logging.getLogger(__name__)

PACKAGES = ("eden_hf", "torch", "transformers", "datasets", "accelerate", "huggingface_hub", "safetensors", "numpy")
#: Files that say what ran.
RECORDS = ("config.yaml", "environment.json")
#: Seconds after which a folder counts as another program's: helpers of a program that was killed end a little later.
PATIENCE = 10


@contextmanager
def only_writer(folder: Path, setting: str, processes: PartialState | None = None) -> Iterator[None]:
    """Keep `folder`, made if it is not there, for this program alone.

    The lock is the system's (`.lock` in the folder), which takes it from a program that ends, however it ends.

    Args:
        folder: What the program writes to.
        setting: Which names the folder, for the error.
        processes: Of a launch, which all call this and write to the folder as one; the main one holds the lock.

    Raises:
        FileExistsError: another program writes to it, which every process of the launch is told.
        OSError: nothing can be written there.
    """
    lock = FileLock(folder / ".lock", timeout=PATIENCE)
    refused: OSError | None = None
    if processes is None or processes.is_main_process:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except (Timeout, FileNotFoundError):  # of a folder that is removed at the end
            refused = FileExistsError(
                f"another program writes to {folder}: wait for its end, or choose another {setting}"
            )
        except OSError as error:
            refused = error
    if processes is not None:
        (refused,) = broadcast_object_list([refused])
    if refused is not None:
        raise refused
    try:
        yield
    finally:
        lock.release()


def keeps_output(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function write to its argument `output`, a folder, alone (`only_writer`)."""

    @functools.wraps(function)
    def alone(*args: P.args, **kwargs: P.kwargs) -> R:
        given = signature(function).bind(*args, **kwargs)
        given.apply_defaults()
        with only_writer(Path(given.arguments["output"]), "--output"):
            return function(*args, **kwargs)

    return alone


def check_folder(folder: Path, settings: Settings, resume: bool) -> bool:
    """Refuse to write over a run, and to go on with other settings than it had.

    A run that did not take a step is none: it is started, whatever its settings were.

    Returns:
        Whether there is a run to go on with.

    Raises:
        FileExistsError: the folder holds a run already and `resume` is not set.
        FileNotFoundError: there is nothing to resume.
        ValueError: the run to resume had other settings, of those that must stay.
    """
    if resume and not (folder / "config.yaml").exists():
        raise FileNotFoundError(f"nothing to resume in {folder}: it has no config.yaml; check --run.output_dir")
    if not _has_steps(folder):
        if resume:
            logger.warning("the run in %s took no step that was kept: starting at step 0", folder)
        return False
    if not resume:
        raise FileExistsError(f"{folder} holds a run already: --resume it, or choose another --run.output_dir")
    changed = _changes(folder, settings)
    if refused := {key: change for key, change in changed.items() if not settings.may_change(key)}:
        raise ValueError(
            f"the run in {folder} had other settings, which may not change on resuming:\n  "
            + "\n  ".join(f"{key}: {change}" for key, change in refused.items())
        )
    return True


def _has_steps(folder: Path) -> bool:
    """Whether a run left metrics or checkpoints, which its first steps do."""
    metrics = folder / "metrics.jsonl"
    lines = read_metrics(metrics) if metrics.exists() else []
    return any(folder.glob("checkpoints/*")) or any(line.get("step", 1) > 0 for line in lines)


def _changes(folder: Path, settings: Settings) -> dict[str, str]:
    return settings.differences(read_settings(type(settings), folder / "config.yaml"))


def check_images(folder: Path, **lists: Any) -> None:
    """Refuse to go on with other images than the run had: learned from or held out, they would change places.

    Args:
        folder: Of the run.
        lists: What tells the images, under the names by which `record_run` was given it.

    Raises:
        ValueError: it is not what was recorded.
    """
    recorded = read_record(folder / "environment.json")
    changed = [name for name, value in lists.items() if name in recorded and recorded[name] != value]
    if changed:
        told = ", ".join(f"{name} {recorded[name]} -> {lists[name]}" for name in changed)
        raise ValueError(
            f"the run in {folder} had other images: some were added, renamed, removed or can no longer be read "
            f"({told}); bring the source back to what it was, or start a run in another --run.output_dir"
        )


def record_run(folder: Path, settings: Settings, device: torch.device, start: str | None = None, **facts: Any) -> None:
    """Write what runs: settings, command, versions, revision, device, further `facts`, and what it starts from.

    Args:
        folder: Of the run.
        settings: Its settings.
        device: Which it computes on.
        start: Folder or Hub id of the model that it starts from.
        **facts: For `environment.json`.
    """
    environment = {
        "command": sys.argv,
        "packages": {name: version(name) for name in PACKAGES},
        "git_revision": package_revision(),
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "CPU",
        **facts,
    }
    if start and (terms := license_of(start)):
        environment["start_license"] = terms
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "environment.json", json.dumps(environment, indent=2) + "\n")
    write_text(folder / "config.yaml", settings.to_yaml())
    lists = {name: facts[name] for name in ("image_list_hash", "image_list_hashes") if name in facts}
    write_lineage(folder, "run", [start] if start else [], RECORDS, **lists)


def record_changes(folder: Path, settings: Settings, step: int) -> None:
    """Write what a resumed run has from `step` on: its settings, and in `environment.json` the `changes` of them.

    The settings are written after the changes, and what a kill kept from being written is written the next time.
    """
    for told in stale_records(folder):
        logger.warning("%s, and is recorded anew", told)
    if changed := _changes(folder, settings):
        logger.warning("from step %d on: %s", step, ", ".join(f"{key} {change}" for key, change in changed.items()))
        file, change = folder / "environment.json", {"step": step, **changed}
        environment = read_record(file)
        changes = environment.setdefault("changes", [])
        if change not in changes[-1:]:
            changes.append(change)
        write_text(file, json.dumps(environment, indent=2) + "\n")
        write_text(folder / "config.yaml", settings.to_yaml())
    renew_lineage(folder)
