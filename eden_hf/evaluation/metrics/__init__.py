"""The anatomy evaluations as metrics of `evaluate`, each in a folder of its own, loaded offline: `load_metric`."""

import inspect
from pathlib import Path
from typing import Any, ClassVar

try:
    import datasets
    import evaluate
except ImportError as error:
    raise ImportError("metrics need evaluate: pip install eden_hf[evaluation]") from error

NAMES = ("locality", "compositionality", "relations", "landmark_error", "pruned_negatives")
VECTOR = datasets.Sequence(datasets.Value("float32"))


class AnatomyMetric(evaluate.Metric):
    """A metric whose docstring is its description and, from `Args:` on, the description of its inputs.

    `evaluate` takes the first metric that it finds in a module for the module's own, so this one is reached as
    `metrics.AnatomyMetric` there, never imported by its name.
    """

    inputs: ClassVar[dict[str, Any]]  # the features of `predictions` and `references`

    def _info(self) -> evaluate.MetricInfo:
        description, _, arguments = inspect.cleandoc(type(self).__doc__ or "").partition("Args:")
        return evaluate.MetricInfo(
            description=description,
            citation="",
            inputs_description=f"Args:{arguments}",
            features=datasets.Features(self.inputs),
        )


def load_metric(name: str) -> Any:
    """One of `NAMES` as `evaluate.load` gives it, from this package's own files.

    Raises:
        ValueError: there is no such metric.
    """
    if name not in NAMES:
        raise ValueError(f"there is no metric {name!r}; there are {', '.join(NAMES)}")
    return evaluate.load(str(Path(__file__).with_name(name)))
