"""The study of docs/study.md: pretrain every arm and seed, measure all of them the same way, write table and figures.

python scripts/study.py --cxr cxr-pretrain --scr scr --output outputs/study

Each step leaves a file and is not done again, so that an interrupted study goes on where it stopped.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

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
from eden_hf.evaluation.report_card import USUAL, evaluate
from eden_hf.evaluation.results import Results, differences
from eden_hf.evaluation.statistics import Estimate
from eden_hf.hub.repository import stage_model
from eden_hf.model_names import PIXELS
from eden_hf.modeling_eden import EdenForPreTraining
from eden_hf.plots import plot_few_shot, plot_groups
from eden_hf.training.arguments import read_arguments
from eden_hf.training.finetune_arguments import Recipe, StartArguments, TaskArguments
from eden_hf.training.pretraining import image_processor
from eden_hf.training.settings import ConfigParser

REPOSITORY = Path(__file__).parents[1]
#: Of the anatomy evaluations and the probes, what the study's tables show.
SHOWN = {
    "locality": ["retrieval_at_1", "prototype_accuracy", "side_accuracy", "auroc", "silhouette"],
    "compositionality": ["own", "others", "margin", "auroc"],
    "relations": [
        *("decomposability margin", "symmetry margin", "scale margin"),
        *("decomposability gain", "interpolation gain", "extrapolation gain"),
    ],
    "correspondence": [
        *("mean_radial_error_mm", "within_10_mm", "same_place_mm", "pixels_mm"),
        *("5_references_mean_radial_error_mm", "5_references_same_place_mm", "5_references_pixels_mm"),
    ],
    "nuisances": ["border", "marker", "exposure", "mark_chance"],
    "probe": ["linear accuracy", "knn accuracy"],
}
#: Of those, what is the same for all arms.
OF_NO_ENCODER = ("same_place_mm", "pixels_mm", "5_references_same_place_mm", "5_references_pixels_mm", "mark_chance")
#: Results of one arm (or of plain pixels) and seed, by evaluation.
Found = dict[tuple[str, int], dict[str, Results]]


def study(
    cxr: str,
    scr: str,
    recipe: str = str(REPOSITORY / "configs" / "study.yaml"),
    output: str = "outputs/study",
    seeds: list[int] | None = None,
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
        seeds: Instead of the recipe's.
        workers: Arms pretrained at a time, one thread each; not more than there are CPU cores, or GPUs.
        pretrain_only: Stop before anything is measured.
    """
    settings = yaml.safe_load(Path(recipe).read_text())
    if unknown := set(settings["compared"]) - set(settings["arms"]):
        arms = ", ".join(settings["arms"])
        raise SystemExit(f"{recipe}: `compared` names {', '.join(sorted(unknown))}, which is no arm: there are {arms}")
    root = Path(output)
    runs = {
        (arm, seed): root / "runs" / f"{arm}-{seed}"
        for seed, arm in product(seeds or settings["seeds"], settings["arms"])
    }
    with ThreadPoolExecutor(workers) as pool:
        submitted = [
            pool.submit(_pretrain, folder, settings["pretrain"], settings["arms"][arm], seed, cxr)
            for (arm, seed), folder in runs.items()
        ]
    for run in submitted:
        run.result()
    if pretrain_only:
        return
    found: Found = {}
    for (arm, seed), folder in runs.items():
        measures = root / "measures" / folder.name
        for result in _measure(folder, measures, cxr, scr, settings["measured"], pixels=not found):
            column = PIXELS if result.encoder == PIXELS else arm
            found.setdefault((column, seed), {})[result.evaluation] = result
        _stage(folder, measures, root / "models" / folder.name)
    few_shot = _few_shot(list(runs.values()), scr, root / "few_shot", settings["few_shot"])
    _write(root, found, settings["compared"], few_shot)


def _measure(run: Path, output: Path, cxr: str, scr: str, images: dict[str, int], pixels: bool) -> list[Results]:
    """Anatomy evaluations on SCR's test images and probes on the classes, of one run and, if asked, of pixels.

    Landmarks are looked for, and probes trained, in the first `images` alone: all would take longer than a run.
    """
    model = str(run / "last")
    if not (output / "probe.md").exists():
        shared = {"split": "test", "id_column": "image_id", "untrained": 0}  # random weights are an arm
        shared["controls"] = (PIXELS,) if pixels else ()  # they are the same for every run
        usual = [name for name in USUAL if name != "correspondence"]
        evaluate([model], scr, str(output / "anatomy"), evaluations=usual, **shared)
        shared |= {"evaluations": ["correspondence"], "images": images["landmarks"], "shots": (1, 5)}
        evaluate([model], scr, str(output / "landmarks"), **shared)
        probe([model], cxr, str(output), id_column="image_id", size=128, untrained=0, images=images["probes"])
    wanted = (model, PIXELS) if pixels else (model,)
    found = [Results.load(file) for file in output.glob("**/results.json")]
    return [result for result in found if result.encoder in wanted]


def _stage(run: Path, measures: Path, output: Path) -> None:
    """The run's model as a complete folder with its card, as it could be published."""
    declared = yaml.safe_load((REPOSITORY / "configs" / "study_card.yaml").read_text())
    card = output.with_suffix(".yaml")
    card.parent.mkdir(parents=True, exist_ok=True)
    card.write_text(yaml.safe_dump(declared | {"model_id": f"models/{run.name}"}, sort_keys=False))
    stage_model(run / "last", output, card, [measures])


def _few_shot(runs: list[Path], scr: str, output: Path, settings: dict[str, Any]) -> list[Score]:
    """Frozen scores of all runs on SCR's heart and clavicles; encoders named by their arm, each with its seed."""
    masks = {"heart": ["heart"], "clavicles": ["left_clavicle", "right_clavicle"]}
    task = TaskArguments(source=scr, mask_columns=masks, id_column="image_id", validation_share=0.2)
    recipe = Recipe(StartArguments(**settings["model"]))
    models = [str(run / "last") for run in runs]
    page = compare_encoders(models, task, recipe, frozen=True, draws=settings["draws"], output=str(output))
    renamed = []
    for score in read_scores(page.with_suffix(".jsonl")):
        arm, seed = re.fullmatch(r"(.+)-(\d+)", Path(score.encoder).parent.name).groups()
        renamed.append(score._replace(encoder=arm, seed=int(seed)))
    return renamed


def _write(root: Path, found: Found, compared: list[str], few_shot: list[Score]) -> None:
    """`study.md`: a table an evaluation, differences in the same patients below it, few shots, and the figures."""
    text = ["# The study's numbers", "Means over patients with bootstrap 95 % intervals, of each seed by itself."]
    for evaluation, names in SHOWN.items():
        text += [f"## {evaluation.capitalize()}", _values(found, evaluation, names)]
        text += [_differences(found, evaluation, [name for name in names if name not in OF_NO_ENCODER], compared)]
    few_shot.sort(key=lambda score: compared.index(score.encoder) if score.encoder in compared else len(compared))
    about = f"{few_shot_legend(len({score.draw for score in few_shot}))} {labelled_images(few_shot[0].validation)}"
    text += ["## Few-shot segmentation, frozen", about, few_shot_table(few_shot)]
    (root / "study.md").write_text("\n\n".join(text), encoding="utf-8")
    plot_few_shot([cell._asdict() for cell in few_shot_cells(few_shot)]).savefig(root / "few_shot-frozen.png", dpi=90)
    by_measure: dict[str, dict[str, list[float]]] = {}
    for (column, _), results in found.items():
        for evaluation, names in SHOWN.items():
            for name in names if evaluation in results else ():
                if name not in OF_NO_ENCODER and (value := results[evaluation].values.get(name)) is not None:
                    measure = by_measure.setdefault(f"{evaluation}: {name.replace('_', ' ')}", {})
                    measure.setdefault(column, []).append(value.value)
    plot_groups(by_measure).savefig(root / "study.png", dpi=72)
    (root / "study.json").write_text(json.dumps(by_measure, indent=2))


def _values(found: Found, evaluation: str, names: list[str]) -> str:
    """A row an arm and seed, a column a measure."""
    rows = {
        f"{arm}, seed {seed}" if arm != PIXELS else arm: results[evaluation].values
        for (arm, seed), results in found.items()
        if evaluation in results
    }
    return _table(rows, names)


def _differences(found: Found, evaluation: str, names: list[str], compared: list[str]) -> str:
    """How much more some arms have than each other one, seed by seed, in the same patients and pairs."""
    rows = {
        f"{first} - {arm}, seed {seed}": differences(found[first, seed][evaluation], results[evaluation])
        for index, first in enumerate(compared)
        for (arm, seed), results in found.items()
        if arm not in compared[: index + 1] and evaluation in results
    }
    return _table(rows, names)


def _table(rows: dict[str, Mapping[str, Estimate]], names: list[str]) -> str:
    """Markdown of the named values, those that some row has."""
    shown = [name for name in names if any(name in values for values in rows.values())]
    lines = [["", *(name.replace("_", " ") for name in shown)], ["---"] * (1 + len(shown))]
    lines += [[label, *(str(values.get(name, "-")) for name in shown)] for label, values in rows.items()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _pretrain(folder: Path, shared: dict[str, Any], arm: dict[str, Any], seed: int, source: str) -> None:
    """One run, from where it stands; a fresh process each, so that runs do not share threads or random states."""
    recipe = {
        section: shared.get(section, {}) | arm.get(section, {})
        for section in dict.fromkeys([*shared, *arm])
        if section != "stages"
    }
    recipe["data"] |= {"source": source}
    recipe["training"] |= {"seed": seed}
    recipe["run"] |= {"output_dir": str(folder)}
    recipe["stages"] = arm.get("stages", [{"level": 0, "epochs": 1}])
    file = folder.with_suffix(".yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(recipe, sort_keys=False))
    if "stages" not in arm:
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
