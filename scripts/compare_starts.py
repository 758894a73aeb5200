"""Pretraining from trunks that others trained beside fresh weights, at equal steps: a table of docs/starts.md.

python scripts/compare_starts.py --config configs/compare_starts_cxr.yaml --source cxr-pretrain --scr scr

Each step leaves a file and is not done again, so that an interrupted comparison goes on where it stopped.
"""

from itertools import product, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jsonargparse import ActionConfigFile

from eden_hf.data.landmarks import load_landmarked
from eden_hf.encoders import check_encoders, load_encoder
from eden_hf.evaluation.correspondence import correspondence
from eden_hf.evaluation.few_shot import compare_encoders, read_scores
from eden_hf.evaluation.results import Results, data_hash
from eden_hf.training.arguments import read_arguments
from eden_hf.training.finetune_arguments import Recipe, StartArguments, TaskArguments
from eden_hf.training.pretraining import Pretraining
from eden_hf.training.settings import ConfigParser


def compare_starts(
    source: str, scr: str, arms: dict[str, Any], pretraining: dict[str, Any], *,
    seeds: list[int], images: int = 24, shots: list[int], draws: int = 3, size: int = 128,
    models: dict[str, str] | None = None, output: str = "outputs/starts",
) -> Path:  # fmt: skip
    """Pretrain each arm on `source` and measure all of them on SCR: one-shot landmarks and frozen few-shot Dice.

    Args:
        source: Images to pretrain on.
        scr: SCR's radiographs with masks and landmarks, splits `train` and `test`.
        arms: For each, the settings that are its own, as in the configs for `eden pretrain`; of `stages` one by one.
        pretraining: What the arms share.
        seeds: Of training.
        images: How many of SCR's test images landmarks are found in, from each of them in all others.
        shots: Numbers of labelled images of few-shot segmentation.
        draws: Draws of each.
        size: Pixels a side of the images of few-shot segmentation.
        models: Models that are measured beside the arms as they are, by name.
        output: Folder for runs, measures and the page.

    Returns:
        The page written.
    """
    root = Path(output)
    check_encoders((models or {}).values())
    planned = [
        (arm, root / "runs" / f"{arm}-{seed}", own or {}, seed) for seed, (arm, own) in product(seeds, arms.items())
    ]
    recipes = [_settings(run, source, pretraining, own, seed) for _, run, own, seed in planned]
    all_settings = [
        read_arguments(recipe) for recipe in recipes
    ]  # a mistake in any is told before the first is trained
    found: dict[str, list[str]] = {}
    for (arm, run, *_), settings in zip(planned, all_settings, strict=True):
        if not (run / "finished").exists():
            training = Pretraining(settings, resume=(run / "config.yaml").exists())
            training.train()
            if not training.finished:
                raise SystemExit(f"{run} was stopped; the same command goes on from there")
            (run / "finished").touch()
        found.setdefault(arm, []).append(str(run / "last"))
    found |= {name: [model] for name, model in (models or {}).items()}
    landmarks = load_landmarked(scr, "test", id_column="image_id", images=images)
    errors = {model: _errors(model, landmarks, root) for of_arm in found.values() for model in of_arm}
    task = TaskArguments(
        source=scr, mask_columns={"heart": ["heart"], "clavicles": ["left_clavicle", "right_clavicle"]},
        id_column="image_id", validation_share=0.2,
    )  # fmt: skip
    recipe = Recipe(StartArguments(size=size, intensity="per_image"))
    page = compare_encoders(
        list(errors), task, recipe, frozen=True, shots=shots, draws=draws, output=str(root / "few_shot")
    )
    scores = read_scores(page.with_suffix(".jsonl"))
    columns = [(label, k) for label in task.mask_columns for k in shots]
    lines = [["", "error of landmarks in mm", *(f"{label}, k = {k}" for label, k in columns)]]
    lines.append(["---"] * len(lines[0]))
    for arm, of_arm in found.items():
        dice = [
            [100 * score.dice[label] for score in scores if score.encoder == model and score.shots == k]
            for label, k in columns
            for model in of_arm
        ]
        by_column = [dice[index : index + len(of_arm)] for index in range(0, len(dice), len(of_arm))]
        cells = [_by_seed([errors[model]["mean_radial_error_mm"] for model in of_arm])]
        lines.append([arm, *cells, *(_by_seed([float(np.mean(draw)) for draw in column]) for column in by_column)])
    copied = next(iter(errors.values()))["same_place_mm"]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    text = f"{table}\n\nMean of the seeds, in brackets each. Copying the coordinates: {copied:.1f} mm.\n"
    file = root / "starts.md"
    file.write_text(text, encoding="utf-8")
    return file


def _settings(run: Path, source: str, shared: dict[str, Any], own: dict[str, Any], seed: int) -> Path:
    """The YAML of a run: an arm's own settings over those that all share."""
    sections = {name: shared.get(name, {}) | own.get(name, {}) for name in {**shared, **own} if name != "stages"}
    sections["data"] = {**sections.get("data", {}), "source": source}
    sections["training"] = {**sections.get("training", {}), "seed": seed}
    sections["run"] = {**sections.get("run", {}), "output_dir": str(run)}
    stages = [stage | others for stage, others in zip_longest(shared["stages"], own.get("stages", []), fillvalue={})]
    run.mkdir(parents=True, exist_ok=True)
    file = run.with_suffix(".yaml")
    file.write_text(yaml.safe_dump({**sections, "stages": stages}))
    return file


def _errors(model: str, landmarks: list, root: Path) -> dict[str, float]:
    """Errors of landmarks found from one reference, by the model and by copying coordinates."""
    folder = root / "landmarks" / model.strip("/").replace("/", "-")
    if not (folder / "results.json").exists():
        encoder = load_encoder(model)
        evaluation = correspondence(encoder, landmarks, shots=[1])
        digest = data_hash([item.source_id for item in landmarks], [item.image for item in landmarks])
        Results(
            "correspondence", model, encoder.revision, "scr (test)", digest, 0, evaluation.values, evaluation.settings
        ).save(folder)
    values = Results.load(folder / "results.json").values
    return {name: values[name].value for name in ("mean_radial_error_mm", "same_place_mm")}


def _by_seed(values: list[float]) -> str:
    told = ", ".join(f"{value:.1f}" for value in values)
    return f"{np.mean(values):.1f} ({told})" if len(values) > 1 else told


if __name__ == "__main__":
    parser = ConfigParser(description=__doc__)
    parser.add_argument("--config", action=ActionConfigFile)
    parser.add_function_arguments(compare_starts, None)
    parsed = parser.parse_args()
    del parsed["config"]
    print(compare_starts(**parser.instantiate(parsed)).read_text())
