"""Probes: what a frozen embedding tells about labels, by a linear model or by its nearest neighbours (scikit-learn).

eden probe --model outputs/run/last random:outputs/run/last --source cxr --label_column label --output outputs/probe
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from sklearn.linear_model import LogisticRegressionCV, RidgeCV
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from eden_hf.data.tasks import Kind, Task, load_source_task
from eden_hf.evaluation.downstream import intervals
from eden_hf.evaluation.embeddings import embed
from eden_hf.evaluation.encoders import Encoder, load_encoder
from eden_hf.evaluation.results import Estimate, Results, data_hash, table
from eden_hf.training.downstream_data import row_image

NEIGHBOURS = 20
#: Inverse penalties that cross-validation on the training images chooses among.
PENALTIES = np.logspace(-4, 0, 5)


def probe(
    model: list[str],
    source: str,
    output: str = "outputs/probe",
    label_column: str | None = "label",
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
        label_column: Column with the class (`single_label`).
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
        For each probe the metrics of the task's kind (see `eden_hf.training.downstream_metrics`).

    Raises:
        ValueError: the task is a segmentation, has no `train` or `test`, or a probe is unknown.
    """
    if unknown := set(probes).difference(PROBES):
        raise ValueError(f"unknown probes {sorted(unknown)}; there are {', '.join(PROBES)}")
    if task.kind == "segmentation" or not {"train", "test"} <= set(task.splits):
        raise ValueError(
            f"probes need labels of images and the splits train and test; {task.name} is {task.kind} with the splits "
            f"{', '.join(task.splits)}"
        )
    train, test = task.splits["train"], task.splits["test"]
    if images is not None:
        train = train.select(range(min(images, len(train))))
    train_x, test_x = (embed(encoder, map(row_image, rows)).numpy() for rows in (train, test))
    train_y, test_y = (np.array(rows["label"][:]) for rows in (train, test))
    found = {}
    for name in probes:
        predictions = predict_by_probe(PROBES[name], task.kind, len(task.labels), train_x, train_y, test_x)
        found[name] = intervals(task, predictions, test_y, seed=seed)
    return found


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
        fitted = make(kind, len(train_x)).fit(train_x, train_y)
        predicted[:, np.unique(train_y)] = fitted.predict_proba(test_x)
        return predicted
    for label in range(labels):
        known = ~np.isnan(train_y[:, label])
        fitted = make(kind, int(known.sum())).fit(train_x[known], train_y[known, label])
        predicted[:, label] = fitted.predict(test_x) if kind == "regression" else fitted.predict_proba(test_x)[:, -1]
    return predicted
