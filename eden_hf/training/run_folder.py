"""The folder of a run: never written over by mistake, telling what ran (`config.yaml`, `environment.json`), and
which images it had.
"""

import json
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from eden_hf.training.arguments import Settings, read_settings

PACKAGES = ("eden_hf", "torch", "transformers", "datasets", "accelerate", "huggingface_hub", "safetensors", "numpy")


def check_folder(folder: Path, settings: Settings, resume: bool) -> None:
    """Refuse to write over a run, and to go on with other settings than it had.

    Raises:
        FileExistsError: the folder holds a run already and `resume` is not set.
        FileNotFoundError: there is nothing to resume.
        ValueError: the run to resume had other settings.
    """
    saved = folder / "config.yaml"
    if not resume:
        if saved.exists():
            raise FileExistsError(f"{folder} holds a run already: --resume it, or choose another --run.output_dir")
        return
    if not saved.exists():
        raise FileNotFoundError(f"nothing to resume in {folder}: it has no config.yaml; check --run.output_dir")
    if differences := settings.differences(read_settings(type(settings), saved)):
        raise ValueError(
            f"the run in {folder} had other settings, and only those under `run` may change on resuming:\n  "
            + "\n  ".join(differences)
        )


def check_images(folder: Path, **lists: Any) -> None:
    """Refuse to go on with other images than the run had: learned from or held out, they would change places.

    Args:
        folder: Of the run.
        lists: What tells the images, under the names by which `record_run` was given it.

    Raises:
        ValueError: it is not what was recorded.
    """
    recorded = json.loads((folder / "environment.json").read_text())
    changed = [name for name, value in lists.items() if name in recorded and recorded[name] != value]
    if changed:
        told = ", ".join(f"{name} {recorded[name]} -> {lists[name]}" for name in changed)
        raise ValueError(
            f"the run in {folder} had other images: some were added, renamed, removed or can no longer be read "
            f"({told}); bring the source back to what it was, or start a run in another --run.output_dir"
        )


def record_run(folder: Path, settings: Settings, device: torch.device, **facts: Any) -> None:
    """Write what runs: settings, command, versions, revision, device and further `facts`."""
    folder.mkdir(parents=True, exist_ok=True)
    revision = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    environment = {
        "command": sys.argv,
        "packages": {name: version(name) for name in PACKAGES},
        "git_revision": revision.stdout.strip() or None,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor(),
        **facts,
    }
    (folder / "environment.json").write_text(json.dumps(environment, indent=2) + "\n")
    (folder / "config.yaml").write_text(settings.to_yaml())
