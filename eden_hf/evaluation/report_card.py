"""The anatomy report card: every anatomy evaluation of one or several encoders, on a page each and side by side.

eden evaluate --model outputs/run/last random:outputs/run/last --source scr --split test --output outputs/report
"""

import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm.auto import tqdm

from eden_hf.data.landmarks import LandmarkedImage, load_landmarked, patients_of
from eden_hf.data.patients import of_subgroup
from eden_hf.data.sources import load_source
from eden_hf.encoders import FRESH, check_encoders
from eden_hf.evaluation.compositionality import compositionality
from eden_hf.evaluation.confidence import confidence
from eden_hf.evaluation.controls import columns, revision_of
from eden_hf.evaluation.correspondence import SCR_SIDE_MM, SHOTS, Control, correspondence, find_controls
from eden_hf.evaluation.correspondence_windows import correspondence_windows
from eden_hf.evaluation.disturbances import disturbances
from eden_hf.evaluation.locality import locality, locality_scores
from eden_hf.evaluation.nuisances import nuisances
from eden_hf.evaluation.relations import relations
from eden_hf.evaluation.results import (
    WITHIN_ARCHITECTURE,
    Evaluation,
    Results,
    data_hash,
    difference_table,
    may_stand_beside,
    table,
)
from eden_hf.evaluation.statistics import averaged, estimates
from eden_hf.model_names import PIXELS
from eden_hf.training.run_folder import keeps_output

EVALUATIONS: dict[str, Callable[..., Evaluation]] = {
    "locality": locality,
    "compositionality": compositionality,
    "relations": relations,
    "correspondence": correspondence,
    "nuisances": nuisances,
    "correspondence_windows": correspondence_windows,
    "disturbances": disturbances,
    "confidence": confidence,
}
#: Those that are measured where none are chosen; the others take long.
USUAL = ("locality", "compositionality", "relations", "correspondence", "nuisances")
#: Those that 16 x 16 pixels are set beside as a column of their own; `correspondence` has pixels within.
WITH_PIXELS = ("locality", "nuisances")
#: Whose docstring tells what the numbers are.
_EXPLAINED: dict[str, Callable] = EVALUATIONS | {"locality": locality_scores}


@keeps_output
def evaluate(
    model: list[str],
    source: str = "phantoms:32",
    output: str = "outputs/report",
    split: str = "train",
    id_column: str | None = None,
    patient_column: str | None = None,
    origin_column: str | None = None,
    images: int | None = None,
    evaluations: Sequence[str] = USUAL,
    size: int | None = None,
    intensity: Literal["fixed", "per_image"] | None = None,
    window: float = 0.25,
    side_mm: float = SCR_SIDE_MM,
    shots: Sequence[int] = SHOTS,
    controls: Sequence[Control] = ("pixels",),
    untrained: int = 3,
    dilated: bool = False,
    subgroup: dict[str, str | list[str]] | None = None,
    seed: int = 0,
) -> list[Path]:
    """Measure what encoders know of anatomy, on radiographs with landmarks.

    Args:
        model: Encoders, as for `load_encoder`: Eden folders, any transformers vision model, `random:` and either.
        source: Radiographs with landmarks: SCR's Parquet, phantoms, or any with a `landmarks` column.
        output: Folder for the reports, one folder an encoder, and `comparison.md` of several.
        split: Split of the source.
        id_column: Column whose values name the images.
        patient_column: Column that tells patients apart, who are what is compared and drawn. Images are taken for
            patients by default.
        origin_column: Column that tells where images come from (hospital, device, data set), for `nuisances`.
        images: How many of the first images with landmarks; all by default.
        evaluations: Which of `locality`, `compositionality`, `relations`, `correspondence`, `nuisances`, and of those
            that take long: `correspondence_windows` (the paper's definition), `disturbances`, `confidence`
            (for phantoms).
        size: Pixels a side that patches are brought to, instead of each processor's own.
        intensity: How intensities are normalised, instead of each processor's own way.
        window: Side of patches, as a share of the image's smaller side.
        side_mm: Millimetres along an image's width, for the errors of correspondence (SCR's by default).
        shots: Numbers of annotated references from which correspondence looks for landmarks.
        controls: What else looks for them: `pixels`, which have a column beside `locality` and `nuisances` too, and
            `registration` (needs the extra of that name, and a second for each reference).
        untrained: How many fresh weights of each model's architecture are measured beside it, as one column: their
            mean in each patient. As many times as long; 0 leaves them out.
        dilated: Search windows in one pass over each image (`dilated_embeddings`; convolutional trunks only).
        subgroup: Patients whose values are told apart as well, by columns of the source: `--subgroup.sex "[F, M]"`,
            `--subgroup.age "[0-59, 60-120]"`. All are slices of the one run, compared with all other patients.
        seed: Of all that is drawn.

    Returns:
        The pages written, Markdown.

    Raises:
        ValueError: the source has no landmarks or too few images, nobody is of a subgroup, or two encoders would share
            a folder.
    """
    if unknown := set(evaluations).difference(EVALUATIONS):
        raise ValueError(f"unknown evaluations {sorted(unknown)}; there are {', '.join(EVALUATIONS)}")
    pixels = PIXELS in controls and not set(WITH_PIXELS).isdisjoint(evaluations)
    check_encoders(model, size=size, intensity=intensity)
    loaded = columns(model, untrained=untrained, pixels=pixels, size=size, intensity=intensity, seed=seed)
    folders = _folders(list(loaded))
    data = load_landmarked(
        source, split, id_column=id_column, patient_column=patient_column, origin_column=origin_column, images=images
    )
    members = _members(data, source, split, id_column, subgroup or {})
    digest = data_hash([item.source_id for item in data], [item.image for item in data])
    patches = {"window": window}  # wholes of compositionality have sizes of their own
    searched = {**patches, "side_mm": side_mm, "dilated": dilated}
    options: dict[str, dict[str, Any]] = {
        "locality": patches, "compositionality": {}, "relations": patches, "correspondence_windows": searched,
        "correspondence": {"side_mm": side_mm, "shots": shots}, "disturbances": {"side_mm": side_mm},
        "confidence": {"side_mm": side_mm},
        "nuisances": {},
    }  # fmt: skip
    if "correspondence" in evaluations:
        options["correspondence"]["controls"] = find_controls(data, shots, controls, seed)
    written, everything = [], []
    for name, folder in folders.items():
        encoders = [load() for load in loaded[name]]
        results = []
        for chosen in tqdm([e for e in evaluations if name != PIXELS or e in WITH_PIXELS], desc=name):
            found = [EVALUATIONS[chosen](encoder, data, seed=seed, **options[chosen]) for encoder in encoders]
            evaluation = _over_seeds(found, seed)
            settings = evaluation.settings | {"size": size, "intensity": intensity}
            settings["architecture"] = encoders[0].architecture
            where = f"{source} ({split}, {len(data)} images)"
            values, measured, revision = evaluation.values, evaluation.measured, revision_of(encoders)
            result = Results(chosen, name, revision, where, digest, seed, values, settings, measured)
            result.save(Path(output) / folder / chosen)
            for (column, value), patients in members.items():
                part = result.of(patients, subgroup={column: value})
                part.save(Path(output) / folder / chosen / re.sub(r"[^\w.-]+", "-", f"{column}-{value}"))
            evaluation.figure.savefig(Path(output) / folder / chosen / "figure.png", dpi=110)
            results.append(result)
        everything += results
        page = Path(output) / folder / "report.md"
        page.write_text(_page(name, results), encoding="utf-8")
        written.append(page)
    if len(folders) > 1:
        page = Path(output) / "comparison.md"
        page.write_text(_comparison(everything, folders), encoding="utf-8")
        written.append(page)
    return written


def _over_seeds(found: Sequence[Evaluation], seed: int) -> Evaluation:
    """What several seeds gave, on the mean in each patient, and how much they differ; ratios and deviations go."""
    first = found[0]
    if len(found) == 1:
        return first
    measured = {name: averaged([one.measured[name] for one in found]) for name in first.measured}
    spread = {name: float(np.std([one.values[name].value for one in found], ddof=1)) for name in measured}
    settings = first.settings | {"deviation_over_seeds": spread}
    return dataclasses.replace(first, values=estimates(measured, seed), settings=settings, measured=measured)


def _members(
    data: Sequence[LandmarkedImage],
    source: str,
    split: str,
    id_column: str | None,
    subgroup: dict[str, str | list[str]],
) -> dict[tuple[str, str], set[str]]:
    """The patients of each subgroup, by column and value."""
    whose = dict(zip((item.source_id for item in data), patients_of(data), strict=True))
    members = {}
    for column, wanted in subgroup.items():
        for value in [wanted] if isinstance(wanted, str) else wanted:
            rows = of_subgroup(load_source(source, split=split, id_column=id_column), {column: value})
            patients = {whose[name] for name in rows["source_id"] if name in whose}
            if len(patients) < 2:
                raise ValueError(f"an interval needs 2 patients, and {len(patients)} have {column} {value!r}")
            members[column, value] = patients
    return members


def _folders(names: Sequence[str]) -> dict[str, str]:
    """A folder name for each encoder: the end of its own name that tells it from the others."""
    for parts in (1, 2, 3, 4):
        folders = {name: _short(name, parts) for name in names}
        if len(set(folders.values())) == len(names):
            return folders
    raise ValueError(f"encoders must differ, got {', '.join(names)}")


def _short(name: str, parts: int) -> str:
    """The last `parts` folders of a name, as one folder's name."""
    origin = name.removeprefix(FRESH)
    ending = "-".join([part for part in re.split(r"[/\\]", origin) if part not in ("", ".")][-parts:])
    return ("random-" if origin != name else "") + re.sub(r"[^\w.-]+", "-", ending)


def _page(name: str, results: Sequence[Results]) -> str:
    """The report card of one encoder."""
    first = results[0]
    lines = [
        f"# Anatomy report card: `{name}`",
        "",
        f"Weights: {first.revision}. Data: {first.source}, hash `{first.data_hash}`. Seed {first.seed}.",
        "Means over patients with bootstrap 95 % intervals; the folders beside this page hold them as `results.json`.",
        "",
        table(results),
    ]
    for result in results:
        lines += [
            f"## {result.evaluation.capitalize()}",
            "",
            _meaning(result.evaluation),
            "",
            f"![{result.evaluation}]({result.evaluation}/figure.png)",
            "",
            f"Settings: `{json.dumps(result.settings)}`",
            "",
        ]
    lines += ["Nothing here supports a clinical conclusion.", ""]
    return "\n".join(lines)


def _comparison(results: Sequence[Results], folders: dict[str, str]) -> str:
    """All encoders side by side, with links to their pages."""
    named = [dataclasses.replace(result, encoder=folders[result.encoder]) for result in results]
    first = results[0]
    beside = [r for r in named if may_stand_beside(r, first)]
    links = [f"- [{folder}]({folder}/report.md): `{name}`" for name, folder in folders.items()]
    text = [
        "# Anatomy report cards side by side",
        "\n".join(links),
        f"Data: {first.source}, hash `{first.data_hash}`. Means over patients with bootstrap 95 % intervals.",
        table(beside),
    ]
    if len(beside) < len(named):
        left = ", ".join(dict.fromkeys(f"`{r.encoder}`" for r in named if r not in beside))
        text.append(
            f"{' and '.join(WITHIN_ARCHITECTURE).capitalize()} of {left} are on pages of their own: random weights of "
            "one architecture reach what others do not when trained, so only trunks of one are set side by side."
        )
    text += [f"Differences: `{named[0].encoder}` minus each other, in the same patients and pairs."]
    return "\n\n".join(part.strip() for part in [*text, difference_table(beside)]) + "\n"


def _meaning(name: str) -> str:
    """What an evaluation's numbers are: its docstring, without the arguments."""
    text = (_EXPLAINED[name].__doc__ or "").partition("\n    Args:")[0]
    paragraphs = [line.removeprefix("    ") for line in text.strip().splitlines()]
    return "\n".join(paragraphs).strip()
