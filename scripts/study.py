"""The study of docs/study.md: pretrain every arm and seed, measure all of them the same way, write table and figures.

python scripts/study.py --cxr cxr-pretrain --scr scr --output outputs/study

Each step leaves a file and is not done again, so that an interrupted study goes on where it stopped.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from accelerate.utils import set_seed
from jsonargparse import auto_cli

from eden_hf.modeling_eden import EdenForPreTraining
from eden_hf.training.arguments import read_arguments
from eden_hf.training.pretraining import image_processor

REPOSITORY = Path(__file__).parents[1]


def study(
    cxr: str,
    scr: str,
    recipe: str = str(REPOSITORY / "configs" / "study.yaml"),
    output: str = "outputs/study",
    workers: int = 2,
):
    """Run what is left of the study.

    Args:
        cxr: Radiographs to pretrain on, with splits `train`, `validation`, `test` and a class `label`.
        scr: SCR's radiographs with masks and landmarks, splits `train` and `test`.
        recipe: Arms, seeds and settings.
        output: Folder for runs (`runs/ARM-SEED`, complete model folders), scores, tables and figures.
        workers: Arms pretrained at a time, one thread each; not more than there are CPU cores, or GPUs.
    """
    settings = yaml.safe_load(Path(recipe).read_text())
    runs = Path(output) / "runs"
    wanted = {
        runs / f"{arm}-{seed}": (stages, seed)
        for seed, (arm, stages) in product(settings["seeds"], settings["arms"].items())
    }
    with ThreadPoolExecutor(workers) as pool:
        done = [
            pool.submit(_pretrain, folder, settings["pretrain"], stages, seed, cxr)
            for folder, (stages, seed) in wanted.items()
        ]
    for finished in done:
        finished.result()


def _pretrain(folder: Path, shared: dict[str, Any], stages: list[dict], seed: int, source: str) -> None:
    """One run, from where it stands; a fresh process each, so that runs do not share threads or random states."""
    recipe = {section: dict(values) for section, values in shared.items()}
    recipe["data"]["source"], recipe["training"]["seed"], recipe["run"]["output_dir"] = source, seed, str(folder)
    recipe["stages"] = stages or [{"level": 0, "epochs": 1}]
    file = folder.with_suffix(".yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(recipe, sort_keys=False))
    if not stages:
        return _save_untrained(file, folder)
    command = [sys.executable, str(REPOSITORY / "scripts" / "pretrain.py"), f"--config={file}"]
    if (folder / "config.yaml").exists():
        command.append("--resume")
    with folder.with_suffix(".log").open("a") as log:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT, env=environment)


def _save_untrained(recipe: Path, folder: Path) -> None:
    """The model folder that a run of `recipe` would start from."""
    arguments = read_arguments(recipe)
    set_seed(arguments.training.seed)
    EdenForPreTraining(arguments.model.to_config()).save_pretrained(folder / "last")
    image_processor(arguments).save_pretrained(folder / "last")


if __name__ == "__main__":
    auto_cli(study, as_positional=False)
