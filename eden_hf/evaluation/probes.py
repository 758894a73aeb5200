"""Probes: what a frozen embedding tells about labels, by a linear model or by its nearest neighbours (scikit-learn).

eden probe --model outputs/run/last random:outputs/run/last --source cxr --label_column label --output outputs/probe
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from sklearn.linear_model import LogisticRegressionCV, RidgeCV
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from eden_hf.data.tasks import Kind, Task, load_source_task
from eden_hf.encoders import Encoder, check_encoders, embed, load_encoder
from eden_hf.evaluation.downstream import intervals
from eden_hf.evaluation.results import Estimate, Results, data_hash, estimate, table
from eden_hf.training.downstream_data import row_image
from eden_hf.training.run_folder import keeps_output

logger = logging.getLogger(__name__)

NEIGHBOURS = 20
#: Inverse penalties that cross-validation on the training images chooses among.
PENALTIES = np.logspace(-4, 0, 5)


@keeps_output
def probe(
    model: list[str],
    source: str,
    output: str = "outputs/probe",
    label_column: str | None = None,
    label_columns: list[str] | None = None,
    kind: Literal["single_label", "multi_label", "regression"] = "single_label",
    id_column: str | None = None,
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
        output: Folder for one `results.json` an encoder, and `probe.md` with all side by side.
        label_column: Column with the class (`single_label`): `label` if there is one, else the folders, by default.
        label_columns: Columns with a number each (`multi_label`, `regression`).
        kind: What is learned.
        id_column: Column whose values name the images.
        probes: `linear`, `knn` or both.
        size: Pixels a side that images are brought to, instead of each processor's own.
        intensity: How intensities are normalised, instead of each processor's own way.
        images: How many of the first training images to use; all by default.
        seed: Of the bootstrap and of fresh weights.

    Returns:
        The page written.

    Raises:
        ValueError: the source has no such columns or splits, or a probe is unknown.
    """
    task = load_source_task(
        source, kind, label_column=label_column, label_columns=label_columns or (), id_column=id_column
    )
    _check_task(task, probes)
    check_encoders(model, size=size, intensity=intensity)
    test = task.splits["test"]
    digest = data_hash(test["source_id"], map(row_image, test))
    results = []
    for number, name in enumerate(model):
        encoder = load_encoder(name, size=size, intensity=intensity, seed=seed)
        values = {
            f"{probe_name} {metric}": value
            for probe_name, found in probe_scores(encoder, task, probes, images=images, seed=seed).items()
            for metric, value in found.items()
        }
        settings = {"size": size, "intensity": intensity, "training_images": images, "neighbours": NEIGHBOURS}
        results.append(Results("probe", name, encoder.revision, source, digest, seed, values, settings))
        results[-1].save(Path(output) / f"encoder-{number}")
    page = Path(output) / "probe.md"
    page.write_text("# Probes on frozen embeddings\n\n" + table(results), encoding="utf-8")
    return page


def probe_scores(
    encoder: Encoder,
    task: Task,
    probes: Sequence[str] = ("linear", "knn"),
    *,
    images: int | None = None,
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
        seed: Of the bootstrap.

    Returns:
        For each probe the metrics of the task's kind (see `eden_hf.training.downstream_metrics`), without those that
        the test images do not define, and for classes `balanced_accuracy`, the mean recall of those that occur.

    Raises:
        ValueError: the task is a segmentation, has no `train` or `test`, lacks labels, or a probe is unknown.
    """
    _check_task(task, probes)
    train, test = task.splits["train"], task.splits["test"]
    if images is not None:
        train = train.select(range(min(images, len(train))))
    train_y, test_y = (np.array(rows["label"][:]) for rows in (train, test))
    _check_labels(task, train_y, test_y)
    train_x, test_x = (embed(encoder, map(row_image, rows)).numpy() for rows in (train, test))
    found = {}
    for name in probes:
        predictions = predict_by_probe(PROBES[name], task.kind, len(task.labels), train_x, train_y, test_x)
        metrics = intervals(task, predictions, test_y, seed=seed)
        if task.kind == "single_label":
            pairs = np.column_stack([test_y, predictions.argmax(axis=1)])
            metrics["balanced_accuracy"] = estimate(pairs, seed, _balanced_accuracy)
        found[name] = {metric: value for metric, value in metrics.items() if not np.isnan(value.value)}
        if undefined := metrics.keys() - found[name].keys():
            logger.warning("not defined on these test images: %s", ", ".join(sorted(undefined)))
    return found


def _check_task(task: Task, probes: Sequence[str]) -> None:
    if unknown := set(probes).difference(PROBES):
        raise ValueError(f"unknown probes {sorted(unknown)}; there are {', '.join(PROBES)}")
    if task.kind == "segmentation" or not {"train", "test"} <= set(task.splits):
        raise ValueError(
            f"probes need labels of images and the splits train and test; {task.name} is {task.kind} with the splits "
            f"{', '.join(task.splits)}"
        )


def _check_labels(task: Task, train_y: np.ndarray, test_y: np.ndarray) -> None:
    """Regression needs every number; of several labels each needs an image in which it is known."""
    if task.kind == "regression" and (missing := int(np.isnan(train_y).sum() + np.isnan(test_y).sum())):
        raise ValueError(f"{missing} numbers of {task.name} are missing: leave those images out")
    if task.kind == "multi_label":
        known = (~np.isnan(train_y)).any(axis=0)
        if unknown := [label for label, is_known in zip(task.labels, known, strict=True) if not is_known]:
            raise ValueError(f"no training image of {task.name} has {', '.join(unknown)}: leave the label out")


def _balanced_accuracy(pairs: np.ndarray) -> float:
    """Mean recall of the classes among `pairs` `[N, 2]` of true and predicted classes."""
    true, predicted = pairs.astype(int).T
    count, hit = np.bincount(true), np.bincount(true, weights=true == predicted)
    return float((hit[count > 0] / count[count > 0]).mean())


def linear_probe(kind: Kind, count: int) -> Any:
    """An untrained linear probe for `count` training images."""
    if kind == "regression":
        return make_pipeline(StandardScaler(), RidgeCV(1 / PENALTIES))
    folds = min(3, count)
    regression = LogisticRegressionCV(
        Cs=PENALTIES, cv=folds, max_iter=300, l1_ratios=(0,), use_legacy_attributes=False, scoring="neg_log_loss"
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
    return classes, make(kind, len(train_x)).fit(train_x, train_y).predict_proba(test_x)
