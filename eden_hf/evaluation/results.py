"""What every evaluation writes: values with intervals as JSON, and the same as a Markdown table."""

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from eden_hf.data.text_files import read_record
from eden_hf.evaluation.statistics import Estimate, Measured, estimates, few_patients, load_values, save_values

#: Values by patient, in a neighbour of `results.json`.
VALUES = "values.parquet"
#: Evaluations whose cosines spread by architecture, with random weights already: only trunks of one stand side by
#: side.
WITHIN_ARCHITECTURE = ("compositionality", "relations")


@dataclass
class Evaluation:
    """What an evaluation of one encoder found: estimates by name, what they depend on, a figure, values by patient.

    Every mean among the estimates is that of the values of its name in `measured`; ratios and deviations have none.
    """

    name: str
    values: dict[str, Estimate]
    settings: dict[str, Any]
    figure: Figure
    measured: dict[str, Measured]


@dataclass
class Results:
    """The numbers of one evaluation of one encoder.

    Attributes:
        evaluation: Such as `locality`.
        encoder: The encoder's name.
        revision: The encoder's revision (see `Encoder`).
        source: What the images were read from.
        data_hash: Of the ids and pixels of the images used (see `data_hash`).
        seed: Of all that was drawn.
        values: The estimates by name.
        settings: What else the numbers depend on (window, stride ...).
        measured: What the estimates are the means of, by patient: `values.parquet` beside `results.json`.
    """

    evaluation: str
    encoder: str
    revision: str | None
    source: str
    data_hash: str
    seed: int
    values: dict[str, Estimate]
    settings: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, Measured] = field(default_factory=dict, compare=False, repr=False)

    def save(self, folder: str | Path) -> Path:
        """Write `results.json`, `results.md` and `values.parquet` to `folder`, made if needed; returns the first.

        `values.parquet` names patients: it is for one's own use, and is never published.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "measured"}
        plain["values"] = {name: e._asdict() for name, e in self.values.items()}
        file = folder / "results.json"
        if self.measured:
            save_values(self.measured, self.encoder, folder / VALUES)
        file.write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")
        (folder / "results.md").write_text(table([self]), encoding="utf-8")
        return file

    @classmethod
    def load(cls, file: str | Path) -> "Results":
        """Read a `results.json`, and the values by patient where they lie beside it.

        Raises:
            ValueError: it is none; the message names it.
        """
        plain = read_record(file)
        values = Path(file).with_name(VALUES)
        measured = load_values(values) if values.exists() else {}
        try:
            plain["values"] = {name: Estimate(**e) for name, e in plain["values"].items()}
            return cls(**plain, measured=measured)
        except (AttributeError, LookupError, TypeError) as error:
            raise ValueError(f"{file} is not of `eden evaluate` or another command that measures ({error})") from error

    def of(self, patients: Collection[str], **settings: Any) -> "Results":
        """The same of some patients alone, with further settings that say who they are: a slice of one run.

        Raises:
            ValueError: there are too few of them to give an interval.
        """
        measured = {name: values.of(patients) for name, values in self.measured.items()}
        values = estimates({n: m for n, m in measured.items() if not np.isnan(m.values).all()}, self.seed)
        return dataclasses.replace(self, values=values, settings=self.settings | settings, measured=measured)


def may_stand_beside(one: Results, other: Results) -> bool:
    """Whether an encoder's numbers of an evaluation say anything beside those of another encoder."""
    alike = one.settings.get("architecture") == other.settings.get("architecture")
    return alike or one.evaluation not in WITHIN_ARCHITECTURE


def differences(first: Results, other: Results) -> dict[str, Estimate]:
    """How much more each measure of `first` is than that of `other`, in the same patients and pairs."""
    common = first.measured.keys() & other.measured.keys()
    try:
        paired = {name: first.measured[name] - other.measured[name] for name in first.measured if name in common}
    except ValueError as error:
        raise ValueError(f"{first.evaluation} of {first.encoder} and of {other.encoder}: {error}") from error
    return estimates({n: m for n, m in paired.items() if not np.isnan(m.values).all()}, first.seed)


def difference_table(results: Sequence[Results]) -> str:
    """Markdown: the first encoder's measures minus those of each other, in the same patients (`differences`)."""
    first: Mapping[str, Results] = {r.evaluation: r for r in results if r.encoder == results[0].encoder}
    rows = [
        dataclasses.replace(r, encoder=f"- {r.encoder}", values=differences(first[r.evaluation], r))
        for r in results
        if r.encoder != results[0].encoder and r.evaluation in first
    ]
    return table(rows)


def table(results: Sequence[Results]) -> str:
    """Markdown: a row for each evaluation's value, a column for each encoder; a dash where there is no value.

    Below it stands what intervals of few patients are worth, where some are.
    """
    encoders = list(dict.fromkeys(result.encoder for result in results))
    cells = {(r.evaluation, name, r.encoder): str(value) for r in results for name, value in r.values.items()}
    lines = [["", "", *encoders], ["---"] * (2 + len(encoders))]
    for evaluation, name in dict.fromkeys((evaluation, name) for evaluation, name, _ in cells):
        values = [cells.get((evaluation, name, encoder), "-") for encoder in encoders]
        lines.append([evaluation, name.replace("_", " "), *values])
    rows = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    few = few_patients(value for result in results for value in result.values.values())
    return f"{rows}\n\n{few}".rstrip() + "\n"


def data_hash(ids: Iterable[str], images: Iterable[Any]) -> str:
    """The first 12 digits of the sha256 over ids and pixels, in order: what tells one set of images from another."""
    digest = hashlib.sha256()
    for name, image in zip(ids, images, strict=True):
        pixels = np.asarray(image)
        digest.update(f"{name} {pixels.shape} {pixels.dtype}\n".encode())
        digest.update(pixels.tobytes())
    return digest.hexdigest()[:12]
