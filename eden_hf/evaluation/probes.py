"""Probes: what a frozen embedding tells about labels, by a linear model or by its nearest neighbours (scikit-learn).

eden probe --model outputs/run/last random:outputs/run/last --source cxr --label_column label --output outputs/probe
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegressionCV, RidgeCV
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from eden_hf.data.patients import patients_apart, patients_or_images
from eden_hf.data.tasks import Kind, Task, load_source_task
from eden_hf.encoders import Encoder, check_encoders, embed
from eden_hf.evaluation.controls import columns, revision_of
from eden_hf.evaluation.results import Results, data_hash, table
from eden_hf.evaluation.statistics import (
    Estimate,
    Measured,
    Resampled,
    averaged,
    averaged_draws,
    by_patient,
    resampled,
)
from eden_hf.model_names import MAJORITY
from eden_hf.training.downstream_data import row_image
from eden_hf.training.downstream_metrics import measure
from eden_hf.training.run_folder import keeps_output
from eden_hf.training.settings import require

logger = logging.getLogger(__name__)

NEIGHBOURS = 20
#: Inverse penalties that cross-validation on the training images chooses among.
PENALTIES = np.logspace(-4, 0, 5)
#: Most steps of logistic regression: embeddings of random weights, of which all channels go together, take hundreds.
STEPS = 5000


@keeps_output
def probe(
    model: list[str],
    source: str,
    output: str = "outputs/probe",
    label_column: str | None = None,
    label_columns: list[str] | None = None,
    kind: Literal["single_label", "multi_label", "regression"] = "single_label",
    id_column: str | None = None,
    patient_column: str | None = None,
    untrained: int = 3,
    probes: Sequence[str] = ("linear", "knn"),
    size: int | None = None,
    intensity: Literal["fixed", "per_image"] | None = None,
    images: int | None = None,
    seed: int = 0,
) -> Path:
    """Train probes on the frozen embeddings of the `train` images and score them on the `test` images.

    Args:
        model: Encoders, as for `load_encoder`.
        source: Images with labels, with the splits `train` and `test`.
        output: Folder for one `results.json` an encoder and control, and `probe.md` with all side by side.
        label_column: Column with the class (`single_label`): `label` if there is one, else the folders, by default.
        label_columns: Columns with a number each (`multi_label`, `regression`).
        kind: What is learned.
        id_column: Column whose values name the images.
        patient_column: Column that tells patients apart, who are what is drawn for intervals, and whom `train` and
            `test` may not share. Images are taken for patients by default.
        untrained: How many fresh weights of each model's architecture are probed beside it, as one column.
        probes: `linear`, `knn` or both.
        size: Pixels a side that images are brought to, instead of each processor's own.
        intensity: How intensities are normalised, instead of each processor's own way.
        images: How many of the first training images to use; all by default.
        seed: Of the bootstrap and of fresh weights.

    Returns:
        The page written.

    Raises:
        ValueError: the source has no such columns or splits, its splits share patients, a class has one training image
            alone, or a probe is unknown.
    """
    task = load_source_task(
        source, kind, label_column=label_column, label_columns=label_columns or (), id_column=id_column,
        patient_column=patient_column,
    )  # fmt: skip
    _check_task(task, probes)
    if patient_column:
        patients_apart({split: task.splits[split] for split in ("train", "test")}, patient_column)
    check_encoders(model, size=size, intensity=intensity)
    test = task.splits["test"]
    patients = patients_or_images(test, patient_column, "--patient-column")
    digest = data_hash(test["source_id"], map(row_image, test))
    settings = {"size": size, "intensity": intensity, "training_images": images, "neighbours": NEIGHBOURS}
    results, drawn = [], []

    def keep(name: str, revision: str | None, folder: str, found: Sequence[Probed], **more: Any) -> None:
        """One column: the mean of what was found with each seed."""
        draws = {metric: averaged_draws([one.draws[metric] for one in found]) for metric in found[0].draws}
        values = {metric: draw.estimate() for metric, draw in draws.items()}
        measured = {of: averaged([one.measured[of] for one in found]) for of in found[0].measured}
        results.append(Results("probe", name, revision, source, digest, seed, values, settings | more, measured))
        results[-1].save(Path(output) / folder)
        drawn.append(draws)

    loaded = columns(model, untrained=untrained, pixels=True, size=size, intensity=intensity, seed=seed)
    for number, (name, encoders) in enumerate(loaded.items()):
        used = [load() for load in encoders]
        found = [probed(encoder, task, probes, images=images, patients=patients, seed=seed) for encoder in used]
        keep(name, revision_of(used), f"encoder-{number}", found, **over_seeds(found))
    keep(MAJORITY, None, MAJORITY, [probed(None, task, probes, images=images, patients=patients, seed=seed)])
    page = Path(output) / "probe.md"
    page.write_text(_page(task, results, drawn, len(set(patients))), encoding="utf-8")
    return page


class Probed(NamedTuple):
    """What probes of one encoder scored: each metric over draws of patients, and values of each patient."""

    draws: dict[str, Resampled]
    measured: dict[str, Measured]


def over_seeds(found: Sequence[Probed]) -> dict[str, Any]:
    """As a setting: the standard deviation of each metric over seeds, where there are several."""
    if len(found) < 2:
        return {}
    values = {metric: [one.draws[metric].value for one in found] for metric in found[0].draws}
    return {"deviation_over_seeds": {metric: float(np.std(of, ddof=1)) for metric, of in values.items()}}


def _page(task: Task, results: Sequence[Results], drawn: Sequence[dict[str, Resampled]], patients: int) -> str:
    """All columns side by side, the first less each other, and what the test images are."""
    labels = np.array(task.splits["test"]["label"][:])
    about = f"{len(labels)} test images of {patients} patients."
    if task.kind == "single_label":
        counts = np.bincount(labels, minlength=len(task.labels))
        most = int(counts.argmax())
        share = counts[most] / len(labels)
        about += f" The commonest class, `{task.labels[most]}`, has {counts[most]} of them ({share:.1%})."
    first, draws = results[0], drawn[0]
    less = [
        replace(
            result,
            encoder=f"- {result.encoder}",
            values={metric: draws[metric].minus(other[metric]).estimate() for metric in draws if metric in other},
        )
        for result, other in zip(results[1:], drawn[1:], strict=True)
    ]
    spread = [
        f"`{result.encoder}` ({result.revision}): standard deviation over seeds "
        + ", ".join(f"{metric} {value:.3f}" for metric, value in result.settings["deviation_over_seeds"].items())
        for result in results
        if "deviation_over_seeds" in result.settings
    ]
    parts = [
        "# Probes on frozen embeddings",
        f"{about} Means with bootstrap 95 % intervals over patients. `pixels` are 16 x 16 grey values, `majority` is "
        "what looks at no image: the training images' shares or mean.",
        table(results),
        f"Differences: `{first.encoder}` minus each other, in the same draws of patients.",
        table(less),
        *spread,
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def probe_scores(
    encoder: Encoder,
    task: Task,
    probes: Sequence[str] = ("linear", "knn"),
    *,
    images: int | None = None,
    patients: Sequence[str] | None = None,
    seed: int = 0,
) -> dict[str, dict[str, Estimate]]:
    """The metrics of each probe on the test images of a task, each with its bootstrap interval.

    Args:
        encoder: As in `embed`.
        task: Labels of whole images, with the splits `train` and `test`.
        probes: Of `PROBES`: `linear` is logistic regression (ridge regression of numbers) on standardised embeddings,
            its penalty chosen by cross-validation on the training images; `knn` the vote (or mean) of the 20
            nearest training images by cosine, weighted by nearness.
        images: How many of the first training images to use; all by default.
        patients: Whose each test image is; images are taken for patients by default.
        seed: Of the bootstrap.

    Returns:
        For each probe the metrics of the task's kind (see `eden_hf.training.downstream_metrics`), without those that
        the test images do not define, and for classes `balanced_accuracy`, the mean recall of those that occur. Two
        classes have one AUC.

    Raises:
        ValueError: the task is a segmentation, has no `train` or `test`, lacks labels, a class has one training image
            alone, or a probe is unknown.
    """
    found = probed(encoder, task, probes, images=images, patients=patients, seed=seed).draws
    return {
        name: {
            metric.removeprefix(f"{name} "): draws.estimate()
            for metric, draws in found.items()
            if metric.startswith(f"{name} ")
        }
        for name in probes
    }


def probed(
    encoder: Encoder | None,
    task: Task,
    probes: Sequence[str],
    *,
    images: int | None = None,
    patients: Sequence[str] | None = None,
    seed: int = 0,
) -> Probed:
    """The metrics of each probe, `linear accuracy` and so on, and values of each patient; arguments as `probe_scores`.

    Without an encoder, of what looks at no image and answers with the training images' shares or mean.
    """
    _check_task(task, probes)
    require(images is None or images > 0, "images", images, "at least 1, or left out for all")
    train, test = task.splits["train"], task.splits["test"]
    if images is not None:
        train = train.select(range(min(images, len(train))))
    train_y, test_y = (np.array(rows["label"][:]) for rows in (train, test))
    _check_labels(task, train_y, test_y, probes)
    whose = list(test["source_id"]) if patients is None else list(patients)
    if encoder is None:
        shares = np.eye(len(task.labels))[train_y] if task.kind == "single_label" else train_y
        constant = np.tile(np.nanmean(shares, axis=0), (len(test), 1))
        predictions = dict.fromkeys(probes, constant)
    else:
        train_x, test_x = (embed(encoder, map(row_image, rows)).numpy() for rows in (train, test))
        predictions = {
            name: predict_by_probe(PROBES[name], task.kind, len(task.labels), train_x, train_y, test_x)
            for name in probes
        }
    draws: dict[str, Resampled] = {}
    measured: dict[str, Measured] = {}
    for name, predicted in predictions.items():
        own = resampled(partial(_metrics, task, predicted, test_y), whose, seed)
        draws |= {f"{name} {metric}": draw for metric, draw in own.items() if not np.isnan(draw.value)}
        if undefined := [metric for metric, draw in own.items() if np.isnan(draw.value)]:
            logger.warning("not defined on these test images: %s", ", ".join(sorted(undefined)))
        values = _of_images(task, predicted, test_y)
        measured |= {f"{name} {of}": by_patient(value, whose) for of, value in values.items()}
    return Probed(draws, measured)


def _metrics(task: Task, predicted: np.ndarray, true: np.ndarray, chosen: np.ndarray) -> dict[str, float]:
    """Those of chosen images, with the balanced accuracy of classes; two classes have one AUC, so it comes once."""
    predictions, truths = predicted[chosen], true[chosen]
    found = measure(task.kind, task.labels, predictions, truths)
    if task.kind == "single_label":
        found["balanced_accuracy"] = _balanced_accuracy(np.column_stack([truths, predictions.argmax(axis=1)]))
        if len(task.labels) == 2:
            found = {name: value for name, value in found.items() if not name.startswith("auc_")}
    return found


def _of_images(task: Task, predictions: np.ndarray, truths: np.ndarray) -> dict[str, np.ndarray]:
    """Values of each image `[N]`: whether it was right or how far off, and what was predicted."""
    said = "value" if task.kind == "regression" else "probability"
    values = {f"{said} of {label}": predictions[:, index] for index, label in enumerate(task.labels)}
    if task.kind == "single_label":
        values["accuracy"] = predictions.argmax(axis=1) == truths
    if task.kind == "regression":
        values["mae"] = np.abs(predictions - truths).mean(axis=1)
    return values


def _check_task(task: Task, probes: Sequence[str]) -> None:
    if unknown := set(probes).difference(PROBES):
        raise ValueError(f"unknown probes {sorted(unknown)}; there are {', '.join(PROBES)}")
    if task.kind == "segmentation" or not {"train", "test"} <= set(task.splits):
        raise ValueError(
            f"probes need labels of images and the splits train and test; {task.name} is {task.kind} with the splits "
            f"{', '.join(task.splits)}"
        )


def _check_labels(task: Task, train_y: np.ndarray, test_y: np.ndarray, probes: Sequence[str]) -> None:
    """Regression needs every number; of several labels each needs an image in which it is known.

    The linear probe needs two images of every class that it sees: one to learn from and one to choose its penalty.
    """
    if task.kind == "regression" and (missing := int(np.isnan(train_y).sum() + np.isnan(test_y).sum())):
        raise ValueError(f"{missing} numbers of {task.name} are missing: leave those images out")
    if task.kind == "multi_label":
        known = (~np.isnan(train_y)).any(axis=0)
        if unknown := [label for label, is_known in zip(task.labels, known, strict=True) if not is_known]:
            raise ValueError(f"no training image of {task.name} has {', '.join(unknown)}: leave the label out")
    if "linear" in probes and task.kind != "regression":
        shown = train_y if task.kind == "multi_label" else np.eye(len(task.labels))[train_y]
        counts = np.stack([(shown == value).sum(axis=0) for value in (0, 1)])
        if task.kind == "single_label":
            counts = counts[1:]
        if lone := [label for label, of in zip(task.labels, (counts == 1).any(axis=0), strict=True) if of]:
            raise ValueError(
                f"{task.name} has one training image alone with, or without, {', '.join(lone)}, and a linear probe "
                "needs 2 of each class: add images, leave it out, or probe by `knn` alone"
            )


def _balanced_accuracy(pairs: np.ndarray) -> float:
    """Mean recall of the classes among `pairs` `[N, 2]` of true and predicted classes."""
    true, predicted = pairs.astype(int).T
    count, hit = np.bincount(true), np.bincount(true, weights=true == predicted)
    return float((hit[count > 0] / count[count > 0]).mean())


def linear_probe(kind: Kind, count: int) -> Any:
    """An untrained linear probe for `count` training images, or as many of the rarest class."""
    if kind == "regression":
        return make_pipeline(StandardScaler(), RidgeCV(1 / PENALTIES))
    folds = min(3, count)
    regression = LogisticRegressionCV(
        Cs=PENALTIES, cv=folds, max_iter=STEPS, l1_ratios=(0,), use_legacy_attributes=False, scoring="neg_log_loss"
    )
    return make_pipeline(StandardScaler(), regression)


def knn_probe(kind: Kind, count: int) -> Any:
    """An untrained nearest-neighbour probe for `count` training images."""
    neighbours = KNeighborsRegressor if kind == "regression" else KNeighborsClassifier
    return neighbours(min(NEIGHBOURS, count), metric="cosine", weights="distance")


PROBES: dict[str, Callable[[Kind, int], Any]] = {"linear": linear_probe, "knn": knn_probe}


def predict_by_probe(
    make: Callable[[Kind, int], Any],
    kind: Kind,
    labels: int,
    train_x: np.ndarray,
    train_y: np.ndarray,
    test_x: np.ndarray,
) -> np.ndarray:
    """Predictions `[M, labels]` for `test_x` `[M, C]` of a probe trained on `train_x` `[N, C]`.

    Args:
        make: Of `PROBES`.
        kind: `single_label` (probabilities of the classes), `multi_label` (probabilities) or `regression` (values).
        labels: Number of classes or labels.
        train_x: Embeddings.
        train_y: `[N]` classes, or `[N, labels]` numbers, NaN where unknown: such images are left out for that label.
        test_x: Embeddings.
    """
    predicted = np.zeros((len(test_x), labels))
    if kind == "single_label":
        classes, found = _class_probabilities(make, kind, train_x, train_y, test_x)
        predicted[:, classes] = found
        return predicted
    for label in range(labels):
        known = ~np.isnan(train_y[:, label])
        own_x, own_y = train_x[known], train_y[known, label]
        if kind == "regression":
            predicted[:, label] = make(kind, len(own_x)).fit(own_x, own_y).predict(test_x)
        else:
            classes, found = _class_probabilities(make, kind, own_x, own_y, test_x)
            predicted[:, label] = found[:, classes == 1].sum(axis=1)
    return predicted


def _class_probabilities(
    make: Callable[[Kind, int], Any], kind: Kind, train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The classes that occur in training, and their probabilities `[M, classes]`; a lone one is certain."""
    classes = np.unique(train_y)
    if len(classes) == 1:
        return classes, np.ones((len(test_x), 1))
    count = min(np.unique(train_y, return_counts=True)[1]) if make is linear_probe else len(train_x)
    return classes, make(kind, count).fit(train_x, train_y).predict_proba(test_x)
