"""The study of docs/study.md: pretrain every arm and seed, measure all of them the same way, write table and figures.

python scripts/study.py --cxr cxr-pretrain --scr scr --output outputs/study

Each step leaves a file and is not done again, so that an interrupted study goes on where it stopped.
"""

import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from accelerate.utils import set_seed
from jsonargparse import auto_cli

from eden_hf.evaluation.few_shot import (
    Score,
    compare_encoders,
    few_shot_cells,
    few_shot_legend,
    few_shot_table,
    labelled_images,
    read_scores,
)
from eden_hf.evaluation.probes import probe
from eden_hf.evaluation.report_card import evaluate
from eden_hf.evaluation.results import Results, differences
from eden_hf.hub.repository import stage_model
from eden_hf.modeling_eden import EdenForPreTraining
from eden_hf.plots import plot_few_shot, plot_groups
from eden_hf.training.arguments import ConfigParser, read_arguments
from eden_hf.training.finetune_arguments import (
    FinetuneTrainingArguments,
    Recipe,
    StartArguments,
    TaskArguments,
)
from eden_hf.training.pretraining import image_processor

REPOSITORY = Path(__file__).parents[1]
#: Of the anatomy evaluations and the probes, what the study's table shows.
SHOWN = {
    "locality": ["retrieval_at_1", "prototype_accuracy", "side_accuracy", "auroc", "silhouette"],
    "compositionality": ["own", "others", "margin", "auroc"],
    "relations": [
        *("decomposability margin", "symmetry margin", "scale margin"),
        *("decomposability gain", "interpolation gain", "extrapolation gain"),
    ],
    "correspondence": ["mean_radial_error_mm", "within_20_mm", "same_place_mm", "pixels_mm"],
    "nuisances": ["border", "marker", "exposure", "mark_chance"],
    "probe": ["linear accuracy", "knn accuracy"],
}
SHOTS = (3, 6, 12, 24)
#: Table of the paper (arXiv 2309.15358), ResNet-50 at 224 pixels, 600 epochs of 75 k images: another scale.
PAPER = {
    "heart": {"Adam": (84.35, 86.70, 89.79, 90.45), "MoCo-v2": (44.84, 59.97, 69.90, 79.69)},
    "clavicles": {"Adam": (66.69, 79.41, 83.96, 84.76), "MoCo-v2": (23.77, 29.24, 38.07, 44.47)},
}


def study(
    cxr: str,
    scr: str,
    recipe: str = str(REPOSITORY / "configs" / "study.yaml"),
    output: str = "outputs/study",
    workers: int = 2,
    pretrain_only: bool = False,
):
    """Run what is left of the study.

    Args:
        cxr: Radiographs to pretrain on, with splits `train`, `validation`, `test` and a class `label`.
        scr: SCR's radiographs with masks and landmarks, splits `train` and `test`.
        recipe: Arms, seeds and settings.
        output: Folder for runs (`runs/ARM-SEED`), complete model folders with cards (`models/ARM-SEED`), scores, and
            `study.md` with its figures.
        workers: Arms pretrained at a time, one thread each; not more than there are CPU cores, or GPUs.
        pretrain_only: Stop before anything is measured.
    """
    settings = yaml.safe_load(Path(recipe).read_text())
    root = Path(output)
    runs = {(arm, seed): root / "runs" / f"{arm}-{seed}" for seed, arm in product(settings["seeds"], settings["arms"])}
    with ThreadPoolExecutor(workers) as pool:
        submitted = [
            pool.submit(_pretrain, folder, settings["pretrain"], settings["arms"][arm], seed, cxr)
            for (arm, seed), folder in runs.items()
        ]
    for run in submitted:
        run.result()
    if pretrain_only:
        return
    measured: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    found: dict[tuple[str, int], dict[str, Results]] = {}
    for (arm, seed), folder in runs.items():
        measures = root / "measures" / folder.name
        results = _measure(folder, measures, cxr, scr)
        found[arm, seed] = {result.evaluation: result for result in results}
        for result in results:
            for name in SHOWN[result.evaluation]:
                measured[f"{result.evaluation}: {name.replace('_', ' ')}"][arm].append(result.values[name].value)
        _stage(folder, measures, root / "models" / folder.name)
    few_shot = {
        mode: _few_shot(mode, list(runs.values()), scr, root / "few_shot", settings["few_shot"][mode])
        for mode in settings["few_shot"]
    }
    _write(root, measured, _by_seed(found), few_shot)


def _measure(run: Path, output: Path, cxr: str, scr: str) -> list[Results]:
    """Anatomy evaluations on SCR's test images and probes on the classes, of one run."""
    model = str(run / "last")
    if not (output / "probe.md").exists():
        evaluate([model], scr, str(output), split="test", id_column="image_id", untrained=0)  # an arm of its own
        probe([model], cxr, str(output), id_column="image_id", size=128, untrained=0)
    found = [Results.load(file) for file in output.glob("**/results.json")]
    found = [result for result in found if result.encoder == model]
    return sorted(found, key=lambda result: list(SHOWN).index(result.evaluation))


def _by_seed(found: dict[tuple[str, int], dict[str, Results]]) -> dict[str, dict[str, list[str]]]:
    """For each measure and arm, seed by seed, how much more the last arm has, in the same patients, with intervals."""
    arms = list(dict.fromkeys(arm for arm, _ in found))
    rows: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for (arm, seed), results in found.items():
        for evaluation, result in results.items() if arm != arms[-1] else ():
            for name, value in differences(found[arms[-1], seed][evaluation], result).items():
                if name in SHOWN[evaluation]:
                    rows[f"{evaluation}: {name.replace('_', ' ')}"][arm].append(str(value))
    return rows


def _stage(run: Path, measures: Path, output: Path) -> None:
    """The run's model as a complete folder with its card, as it could be published."""
    declared = yaml.safe_load((REPOSITORY / "configs" / "study_card.yaml").read_text())
    card = output.with_suffix(".yaml")
    card.parent.mkdir(parents=True, exist_ok=True)
    card.write_text(yaml.safe_dump(declared | {"model_id": f"models/{run.name}"}, sort_keys=False))
    stage_model(run / "last", output, card, [measures])


def _few_shot(mode: str, runs: list[Path], scr: str, output: Path, settings: dict[str, Any]) -> list[Score]:
    """Scores of all runs on SCR's heart and clavicles; encoders named by their arm, each with its seed."""
    masks = {"heart": ["heart"], "clavicles": ["left_clavicle", "right_clavicle"]}
    task = TaskArguments(source=scr, mask_columns=masks, id_column="image_id", validation_share=0.2)
    recipe = Recipe(
        StartArguments(**settings["model"]), training=FinetuneTrainingArguments(**settings.get("training", {}))
    )
    models = [str(run / "last") for run in runs]
    page = compare_encoders(
        models, task, recipe, mode == "frozen", shots=SHOTS, draws=settings["draws"], output=str(output / mode),
        checkpoint="best",  # as docs/study.md measured it: chosen on labelled images beyond k, which its page says
    )  # fmt: skip
    renamed = []
    for score in read_scores(page.with_suffix(".jsonl")):
        arm, seed = re.fullmatch(r"(.+)-(\d+)", Path(score.encoder).parent.name).groups()
        renamed.append(score._replace(encoder=arm, seed=int(seed)))
    return renamed


def _write(
    root: Path,
    measured: dict[str, dict[str, list[float]]],
    by_seed: dict[str, dict[str, list[str]]],
    few_shot: dict[str, list[Score]],
) -> None:
    """`study.md`: all numbers by arm, mean and standard deviation over seeds, or over draws by seed, with figures."""
    arms = list(next(iter(measured.values())))
    lines = [["", *arms], ["---"] * (1 + len(arms))]
    lines += [[name, *(_mean(values[arm]) for arm in arms)] for name, values in measured.items()]
    text = ["# The study's numbers", "", "Mean ± standard deviation over seeds.", "", _table(lines)]
    if by_seed:
        others = arms[:-1]
        lines = [["", *others], ["---"] * (1 + len(others))]
        lines += [[name, *("; ".join(values.get(arm, ["-"])) for arm in others)] for name, values in by_seed.items()]
        said = f"`{arms[-1]}` minus each other arm, seed by seed, in the same patients, with 95 % intervals."
        text += ["", "## Differences by seed", "", said, "", _table(lines)]
    plot_groups({name: dict(values) for name, values in measured.items()}).savefig(root / "study.png", dpi=90)
    for mode, scores in few_shot.items():
        scores.sort(key=lambda score: -arms.index(score.encoder))
        paper = [
            [label, f"({name} in the paper)", *map(str, values)]
            for label, rows in PAPER.items()
            for name, values in rows.items()
        ]
        text += [
            "",
            f"## Few-shot segmentation, {mode}",
            "",
            f"{few_shot_legend(len({score.draw for score in scores}))} {labelled_images(scores[0].validation)}",
            "",
            few_shot_table(scores),
            "The paper's, by a protocol of its own:",
            "",
            _table([["structure", "encoder", *(f"k = {k}" for k in SHOTS)], ["---"] * (2 + len(SHOTS)), *paper]),
        ]
        plot_few_shot([cell._asdict() for cell in few_shot_cells(scores)]).savefig(
            root / f"few_shot-{mode}.png", dpi=90
        )
    (root / "study.md").write_text("\n".join(text), encoding="utf-8")
    (root / "study.json").write_text(json.dumps(measured, indent=2))


def _mean(values: list[float]) -> str:
    if not values:
        return "-"
    digits = 1 if abs(np.mean(values)) >= 10 else 3
    return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1) if len(values) > 1 else 0:.{digits}f}"


def _table(rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


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
    auto_cli(study, as_positional=False, parser_class=ConfigParser)
