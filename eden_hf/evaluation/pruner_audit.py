"""Does the Purposive Pruner drop the right negatives? (arXiv 2309.15358, Purposive Pruner)

The pruner drops negatives that look like the anchor, hoping that they are the same anatomy. On aligned radiographs
the part's place in the image says whether they are: a negative is *the same* where it is the same part of another
patient. So what the pruner drops has a precision and a recall, for every gamma and every saved step of a run.

eden audit --run outputs/run --source scr --split test --output outputs/audit
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_model
from torch import Tensor
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # 5.17 hides it without torchvision

from eden_hf.anatomy import part_boxes
from eden_hf.configuration_eden import EdenConfig
from eden_hf.data.patients import patients_or_images
from eden_hf.data.sources import first_pictures
from eden_hf.encoders import Encoder
from eden_hf.evaluation.results import Results, data_hash, table
from eden_hf.evaluation.statistics import by_patient, estimates
from eden_hf.model_names import load_pretrained, weights_revision
from eden_hf.modeling_eden import EdenForPreTraining
from eden_hf.plots import plot_pruner_audit
from eden_hf.training.run_folder import keeps_output

GAMMAS = (0.5, 0.6, 0.7, 0.8, 0.9)


@keeps_output
def audit_pruner(
    run: str,
    source: str = "phantoms:32",
    output: str = "outputs/audit",
    split: str = "train",
    id_column: str | None = None,
    patient_column: str | None = None,
    images: int = 32,
    level: int = 4,
    gammas: list[float] = list(GAMMAS),  # noqa: B006 (jsonargparse shows it)
    seed: int = 0,
) -> Path:
    """Audit the pruner at every step of a run that was saved (`run.keep_checkpoints` tells how many are).

    Args:
        run: Folder of a pretraining run, or one model folder.
        source: Aligned images: the same part of two images must be the same anatomy.
        output: Folder for `audit.md`, a figure and one folder with `results.json` a step.
        split: Split of the source.
        id_column: Column whose values name the images.
        patient_column: Column that tells patients apart: parts of one patient's images are no negatives of each other.
            Images are taken for patients by default.
        images: How many of the first images.
        level: Granularity; an image has 2^level parts.
        gammas: Thresholds to try.
        seed: Of the bootstrap.

    Returns:
        The page written. Each step's result names the run's `models` by their weights, in its settings.

    Raises:
        FileNotFoundError: there is no pretraining model in `run`.
        ValueError: the source has fewer images, all of them are of one patient, or the model is no
            `EdenForPreTraining`.
    """
    rows, pictures = first_pictures(source, images, split=split, id_column=id_column)
    patients = patients_or_images(rows, patient_column, "--patient-column")
    digest = data_hash(rows["source_id"], pictures)
    results, scores = [], {}
    models = [weights_revision(str(folder)) for folder in _model_folders(Path(run))]
    for step, revision, model in _saved_models(Path(run)):
        encoder = Encoder(model, AutoImageProcessor.from_pretrained(_model_folders(Path(run))[0]), step)
        scores[step] = pruner_scores(*queries_and_keys(encoder, pictures, level), gammas, patients)
        measured = {
            f"{name}, gamma {gamma:g}": by_patient(of_images[:, index], patients)
            for name, of_images in scores[step].items()
            for index, gamma in enumerate(gammas)
            if not np.isnan(of_images[:, index]).all()  # nothing pruned has no precision
        }
        values = estimates(measured, seed)
        settings = {"level": level, "gammas": list(gammas), "same": 1 / 2**level, "models": models}
        where = f"{source} ({split}, {images} images)"
        results.append(Results("pruner audit", step, revision, where, digest, seed, values, settings, measured))
        results[-1].save(Path(output) / step)
    figure = plot_pruner_audit(scores, gammas, base_rate=1 / 2**level)
    figure.savefig(Path(output) / "figure.png", dpi=110)
    page = Path(output) / "audit.md"
    page.write_text(_page(run, results, level), encoding="utf-8")
    return page


@torch.inference_mode()
def queries_and_keys(
    encoder: Encoder, pictures: Sequence[Image.Image], level: int, batch_size: int = 64
) -> tuple[Tensor, Tensor]:
    """The student's queries and the teacher's keys of all parts at `level`, unit rows `[N, parts, D]` each.

    Args:
        encoder: Its model is an `EdenForPreTraining`.
        pictures: N images.
        level: Granularity.
        batch_size: Parts in one forward pass.
    """
    model: Any = encoder.model
    parts = [picture.crop(box) for picture in pictures for box in part_boxes(*picture.size, level)]
    queries, keys = [], []
    for start in range(0, len(parts), batch_size):
        pixel_values = encoder.pixel_values(parts[start : start + batch_size])
        queries.append(model.projector(model.eden(pixel_values).pooler_output).float().cpu())
        keys.append(model.teacher(pixel_values).float().cpu())
    shape = (len(pictures), -1)
    return torch.cat(queries).unflatten(0, shape), torch.cat(keys).unflatten(0, shape)


def pruner_scores(
    queries: Tensor, keys: Tensor, gammas: Sequence[float], patients: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """Precision, recall and share of what the pruner drops, for each image's anchors.

    A negative of an anchor is any part of any *other* patient; it is pruned where its cosine is at or above gamma,
    and it is the same anatomy where it is the same part. Precision = same and pruned / pruned (1 / parts by chance;
    near 1 is good), recall = same and pruned / same, share = pruned / all.

    Args:
        queries: `[N, parts, D]`, unit rows.
        keys: The same shape.
        gammas: Thresholds.
        patients: Whose each image is; each is of a patient of its own by default.

    Returns:
        `precision`, `recall` and `pruned share`, `[N, len(gammas)]` each; precision is NaN where nothing is pruned.

    Raises:
        ValueError: all images are of one patient.
    """
    images, parts = queries.shape[:2]
    _, number = np.unique(np.arange(images) if patients is None else patients, return_inverse=True)
    others = (number[:, None] != number).sum(axis=1)  # images of other patients
    if not others.all():
        raise ValueError(f"negatives are of other patients: all {images} images are of one")
    part = torch.arange(parts).repeat(images)
    patient = torch.from_numpy(number).repeat_interleave(parts)
    similarity = queries.flatten(0, 1) @ keys.flatten(0, 1).T
    negative = patient[:, None] != patient
    same = (part[:, None] == part) & negative
    above = torch.stack([(similarity >= gamma) & negative for gamma in gammas])  # [gammas, anchors, keys]
    pruned, hit = (
        chosen.sum(dim=2).view(len(gammas), images, parts).sum(dim=2).T.double().numpy()
        for chosen in (above, above & same)
    )
    same_part = (parts * others)[:, None]  # same-part negatives of all its anchors; times parts: all negatives
    with np.errstate(invalid="ignore"):
        return {"precision": hit / pruned, "recall": hit / same_part, "pruned share": pruned / (same_part * parts)}


def _model_folders(run: Path) -> list[Path]:
    """The model folders of a run, `last` first, or the folder itself.

    Raises:
        FileNotFoundError: there is none.
    """
    found = [folder for folder in (run / "last", run / "best", run) if (folder / "config.json").exists()]
    if not found:
        raise FileNotFoundError(f"no model in {run}: give the folder of a pretraining run, or of a model it saved")
    return found


def _saved_models(run: Path) -> Iterator[tuple[str, str | None, EdenForPreTraining]]:
    """The models of a run that were saved: step, revision and model; without checkpoints, its model folder's alone."""
    folder = _model_folders(run)[0]
    held = EdenConfig.from_pretrained(folder).architectures or []
    if EdenForPreTraining.__name__ not in held:  # its projectors would be drawn at random
        raise ValueError(f"{folder} holds {', '.join(held)}, which has no pruner: give an EdenForPreTraining")
    model = load_pretrained(EdenForPreTraining, folder)
    checkpoints = sorted(run.glob("checkpoints/step-*/model.safetensors"))
    if not checkpoints:
        yield folder.name, weights_revision(str(folder)), model.eval()
    for weights in checkpoints:
        load_model(model, weights)
        yield re.sub("-0*", " ", weights.parent.name), weights_revision(str(weights.parent)), model.eval()


def _page(run: str, results: Sequence[Results], level: int) -> str:
    first = results[0]
    return "\n".join(
        [
            f"# Pruner audit of `{run}`",
            "",
            f"Level {level}: {2**level} parts an image, so a negative is the same anatomy with a chance of "
            f"{1 / 2**level:.1%}. Data: {first.source}, hash `{first.data_hash}`. Means over patients with bootstrap "
            "95 % intervals.",
            "",
            table(results),
            "",
            "![precision and recall against gamma](figure.png)",
            "",
        ]
    )
