"""Pretrain a small Adam on phantoms or your own images, load it in a new process, draw and measure what it learned.

make demo
make demo DATA=my_xrays/
"""

import shutil
import subprocess
import sys
from pathlib import Path

from jsonargparse import auto_cli

from eden_hf.data.sources import load_source
from eden_hf.training.arguments import read_arguments
from eden_hf.training.pretraining import pretrain

REPOSITORY = Path(__file__).parents[1]
#: Images that the epochs of configs/demo.yaml are meant for; a larger set gets fewer.
IMAGES = 512
#: Images of the report card: few, since every one is searched for the others' landmarks.
REPORTED_IMAGES = 12


def demo(data: str = "phantoms", output: str = "outputs/demo"):
    """Pretrain through levels 0, 2, 4 by configs/demo.yaml, draw the pictures and write a small report card.

    Args:
        data: A folder of images, Parquet, a Hub id, or `phantoms`.
        output: Folder of the run, the pictures and the report card.
    """
    arguments = read_arguments(REPOSITORY / "configs" / "demo.yaml")
    if data != "phantoms":
        arguments.data.source = data
    arguments.run.output_dir = f"{output}/run"
    count = len(load_source(arguments.data.source))
    for stage in arguments.stages:
        stage.epochs = max(1, stage.epochs * IMAGES // count)
        stage.batch_size = min(stage.batch_size or arguments.training.batch_size, max(1, count // 4))
    shutil.rmtree(arguments.run.output_dir, ignore_errors=True)  # the demo's own earlier run
    model = pretrain(arguments) / "last"
    command = [sys.executable, str(REPOSITORY / "scripts" / "gallery.py"), "--model", str(model), "--output", output]
    shown = "phantoms:64" if data == "phantoms" else data
    subprocess.run([*command, "--source", shown, "--images", str(min(64, count))], check=True)
    _report_card(model, data, Path(output) / "report")


def _report_card(model: Path, data: str, folder: Path) -> None:
    """Measure the model beside its untrained self, on the data if it has landmarks, else on phantoms; print both."""
    source = data if data != "phantoms" and _has_landmarks(data) else "phantoms:64"
    command = [sys.executable, str(REPOSITORY / "scripts" / "evaluate.py"), "--model", str(model), f"random:{model}"]
    command += ["--source", source, "--images", str(REPORTED_IMAGES), "--output", str(folder)]
    subprocess.run(command, check=True)
    print((folder / "comparison.md").read_text())


def _has_landmarks(data: str) -> bool:
    columns = load_source(data).column_names
    return "landmarks" in columns or "landmarks_heart" in columns


if __name__ == "__main__":
    auto_cli(demo)
