"""Downstream tasks: labelled images in one shape, from a raw published layout or from any source.

`load_task` knows the data sets of the paper (arXiv 2309.15358) by name, each read by its own module in
`eden_hf.data.readers`; `load_source_task` takes any folder, Parquet or Hub data set with label or mask columns.
"""

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from pathlib import Path

from eden_hf.data.readers import chestx_det, chestxray14, retina, scr, shenzhen, siim_acr, vindr_cxr, vindr_rib
from eden_hf.data.readers.source import load_source_task
from eden_hf.data.readers.task import KINDS, USUAL_METRIC, Kind, Task, TaskError

__all__ = ["KINDS", "TASKS", "USUAL_METRIC", "Kind", "Task", "TaskError", "load_source_task", "load_task"]

#: The published layouts that are known: from a folder and the share of images that may be missing to a task.
TASKS: Mapping[str, Callable[[Path, float], Task]] = {
    "chestxray14": chestxray14.read,
    "vindr_cxr": vindr_cxr.read,
    "shenzhen": shenzhen.read,
    "scr_heart": scr.read_heart,
    "scr_clavicle": scr.read_clavicles,
    "scr_anatomy": scr.read_anatomy,
    "chestx_det": chestx_det.read,
    "siim_acr": siim_acr.read,
    "vindr_rib": vindr_rib.read,
    "drive": retina.read_drive,
    "chase": retina.read_chase,
}
#: Mask columns of those that also go round as Parquet, with the ids in `image_id`.
PARQUET = {
    "scr_heart": {"heart": ["heart"]},
    "scr_clavicle": {"clavicles": ["left_clavicle", "right_clavicle"]},
    "scr_anatomy": {name: [name] for name in (structure.replace(" ", "_") for structure in scr.STRUCTURES)},
    "chase": {"vessels": ["vessels"]},
}


def load_task(name: str, data_dir: str | Path, max_skipped_share: float = 0.0) -> Task:
    """A data set of the paper, or `chase`, from its files as they are published (docs/tasks.md shows the layouts).

    Images stay where they are, undecoded; masks are drawn once into the cache of `datasets`. `scr_heart`,
    `scr_clavicle`, `scr_anatomy` and `chase` may also be a folder of Parquet with a column a structure.

    Args:
        name: One of `TASKS`.
        data_dir: Folder that holds the files, at any depth.
        max_skipped_share: Share of the listed images, in [0, 1], that may be absent. Those are left out, which is
            logged; the default allows none.

    Raises:
        TaskError: there is no such task, or files are missing, misplaced or not as published.
        ValueError: `max_skipped_share` is no share.
    """
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise TaskError(
            f"there is no task {name!r}; {hint}Known are {', '.join(TASKS)}; load_source_task takes others"
        )
    folder = Path(data_dir).expanduser()
    if name in PARQUET and any(folder.glob("*.parquet")):
        task = load_source_task(folder, "segmentation", mask_columns=PARQUET[name], id_column="image_id")
        return dataclasses.replace(task, name=name)
    return TASKS[name](folder, max_skipped_share)
