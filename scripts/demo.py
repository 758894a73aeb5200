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
from eden_hf.evaluation.results import Results
from eden_hf.training.arguments import read_arguments
from eden_hf.training.pretraining import pretrain
from eden_hf.training.settings import ConfigParser

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
    shown = "phantoms:64" if data == "phantoms" else data
    _run("gallery", "--model", str(model), "--output", output, "--source", shown, "--images", str(min(64, count)))
    source = data if data != "phantoms" and _has_landmarks(data) else "phantoms:64"
    _run(
        *("evaluate", "--model", str(model), f"random:{model}", "--source", source, "--untrained", "0"),
        *("--images", str(REPORTED_IMAGES), "--output", f"{output}/report"),
    )
    print(summary(Path(output)))


def _run(command: str, *options: str) -> None:
    """Run a script of the same folder in a new process, without the list of files that it prints."""
    program = [sys.executable, str(REPOSITORY / "scripts" / f"{command}.py"), *options]
    subprocess.run(program, check=True, stdout=subprocess.DEVNULL)


def summary(folder: Path) -> str:
    """What came out, in six lines.

    Args:
        folder: Of a finished demo, with `run`, `report` and the pictures.
    """
    report, error, same_place = folder / "report", "mean_radial_error_mm", "same_place_mm"
    found, found_untrained, alike, alike_untrained = (
        Results.load(report / model / name / "results.json")
        for name in ("correspondence", "locality")
        for model in ("last", "random-last")
    )
    share, share_untrained = (results.values["auroc"].value for results in (alike, alike_untrained))
    return "\n".join(
        [
            f"Measured on {found.source}, beside the same network untrained:",
            f"  Landmarks of one image are found in the others {found.values[error].value:.0f} mm off on average "
            f"(untrained {found_untrained.values[error].value:.0f} mm, "
            f"copied coordinates {found.values[same_place].value:.0f} mm).",
            f"  The same landmark in two patients looks more alike than two different ones in {share:.0%} of cases "
            f"(untrained {share_untrained:.0%}).",
            f"Pictures: {', '.join(str(file) for file in sorted(folder.glob('*.png')))}",
            f"All numbers, with intervals: {report}/comparison.md; what they mean: {report}/last/report.md",
            f'Use it: AutoModel.from_pretrained("{folder}/run/last", trust_remote_code=True). '
            "On your own images: make demo DATA=my_xrays/",
        ]
    )


def _has_landmarks(data: str) -> bool:
    columns = load_source(data).column_names
    return "landmarks" in columns or "landmarks_heart" in columns


if __name__ == "__main__":
    auto_cli(demo, parser_class=ConfigParser)
