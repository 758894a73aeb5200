"""What a reader makes of a data set: a `Task`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from datasets import ClassLabel, DatasetDict, Features, Image, List, Value

Kind: TypeAlias = Literal["single_label", "multi_label", "regression", "segmentation"]
KINDS: tuple[Kind, ...] = get_args(Kind)
#: The metric by which a kind of task is judged where its publishers name no other.
USUAL_METRIC = {"single_label": "accuracy", "multi_label": "auc", "regression": "mae", "segmentation": "dice"}


@dataclass(frozen=True)
class Task:
    """Labelled images to fine-tune on and to measure by.

    Attributes:
        name: Such as `scr_heart`.
        kind: `single_label`, `multi_label`, `regression` or `segmentation`.
        labels: Names of the classes, of the labels, of the values or of the structures.
        metric: Name of the primary metric: `accuracy`, `auc`, `mae` or `dice`.
        splits: `train`, `test` and, where one is official, `validation`. Columns: `image` (`{bytes, path}`, which
            `read_cell` opens), `source_id`, and what is to be learned: `label`, an index into `labels`
            (`single_label`) or a list of float32, one for each of `labels`, NaN where unknown (`multi_label`,
            `regression`); or `masks`, a list with an image of the image's size for each of `labels`, above 0 inside
            (`segmentation`: structures may overlap). Some readers add columns that say more of an image.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    metric: str
    splits: DatasetDict


class TaskError(ValueError):
    """A task's files are missing, misplaced or not as published; the message says what was looked for and where."""


def features_of(kind: Kind, labels: Sequence[str]) -> Features:
    """The columns of a task's splits."""
    features = Features({"image": Image(decode=False), "source_id": Value("string")})
    if kind == "segmentation":
        features["masks"] = List(Image(decode=False), length=len(labels))
    elif kind == "single_label":
        features["label"] = ClassLabel(names=list(labels))
    else:
        features["label"] = List(Value("float32"), length=len(labels))
    return features


def with_patients(splits: DatasetDict, whose: Callable[[str], str]) -> DatasetDict:
    """Splits with a column `patient`, which a function tells from the names of images."""
    return DatasetDict(
        {split: data.add_column("patient", list(map(whose, data["source_id"]))) for split, data in splits.items()}
    )
