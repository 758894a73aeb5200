"""One-shot landmark protocols that others published numbers for, in one command.

eden one-shot --model outputs/run/last --source scr --protocol uod
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from eden_hf.data.errors import SourceError
from eden_hf.data.references import Reference
from eden_hf.data.sources import load_source, read_cell
from eden_hf.encoders import Encoder, check_encoders, load_encoder
from eden_hf.evaluation.correspondence import SCR_SIDE_MM, Control
from eden_hf.evaluation.pixels import pixel_encoder
from eden_hf.evaluation.registration import Registered, register
from eden_hf.evaluation.results import Results, data_hash
from eden_hf.evaluation.statistics import by_patient, estimates
from eden_hf.matching import AnatomyMatcher, adaptation
from eden_hf.matching.adaptation import ADAPT_STEPS
from eden_hf.training.run_folder import keeps_output


@dataclass(frozen=True)
class Protocol:
    """What is annotated, what is searched, and what others reached.

    Attributes:
        title: Name and reference.
        template: Id of the one annotated image.
        tested: For the beginning of an id, how many of the last such ids, sorted, are searched.
        points: For each column of outlines the indices of its points.
        side_mm: Millimetres along an image's width.
        within_mm: Distances within which a found point counts.
        published: Mean radial error in mm of other methods, by name and reference.
    """

    title: str
    template: str
    tested: Mapping[str, int]
    points: Mapping[str, tuple[int, ...]]
    side_mm: float
    within_mm: tuple[int, ...]
    published: Mapping[str, float]


PROTOCOLS = {
    "uod": Protocol(
        title="UOD's one-shot protocol (arXiv 2306.07615)",
        template="JPCLN035",
        tested={"JPCNN": 18, "JPCLN": 32},
        points={"landmarks_right_lung": (0, 21, 29), "landmarks_left_lung": (0, 21, 27)},
        side_mm=SCR_SIDE_MM,
        within_mm=(3, 6, 9),
        published={"CC2D (arXiv 2103.04527)": 10.25, "UOD (arXiv 2306.07615)": 8.49},
    )
}


class Annotated(NamedTuple):
    """An image, mode L, with the protocol's points `[P, 2]` in pixels, and their names."""

    image: Image.Image
    source_id: str
    points: Tensor
    names: list[str]

    def as_reference(self) -> Reference:
        """The image as a reference for its points."""
        x_y = self.points.tolist()
        named = {name: (x, y) for name, (x, y) in zip(self.names, x_y, strict=True)}
        return Reference(self.image, self.source_id, points=named)


#: From an image to the points found in it, `[P, 2]`.
Finder = Callable[[Image.Image], Tensor]


@keeps_output
def one_shot(
    model: list[str],
    source: str,
    protocol: Literal["uod"] = "uod",
    output: str = "outputs/one_shot",
    splits: Sequence[str] = ("train", "test"),
    id_column: str = "image_id",
    controls: Sequence[Control] = ("pixels",),
    adapt: bool = False,
    adapt_steps: int = ADAPT_STEPS,
    seed: int = 0,
) -> Path:
    """Find landmarks from the one annotated image of a published protocol, beside the published numbers.

    Args:
        model: Encoders, as for `load_encoder`.
        source: The radiographs: SCR's Parquet.
        protocol: `uod`: six outline points of the lungs of SCR in 50 images, from JPCLN035.
        output: Folder for the page `one_shot.md` and, a folder for each method, `results.json`.
        splits: Splits of the source that hold the protocol's images.
        id_column: Column whose values name the images.
        controls: What else looks for the points, beside copying their coordinates: `pixels`, and `registration` (needs
            the extra of that name).
        adapt: Whether each model with a dense decoder is measured once more after `adapt` on the source's images that
            are not searched, unlabelled; its run is kept in the output as `adapted-0` and so on.
        adapt_steps: Optimiser steps of that, of 8 images each.
        seed: Of the bootstrap, and of adapting.

    Returns:
        The page written.

    Raises:
        SourceError: the source lacks images or outlines of the protocol.
        ImportError: SimpleITK is missing.
    """
    chosen = PROTOCOLS[protocol]
    check_encoders(model)
    template, images = protocol_images(source, chosen, splits, id_column)
    others = _save_others(source, images, splits, id_column, Path(output) / "unlabelled") if adapt else None
    finders: dict[str, tuple[str | None, Finder]] = {}
    for index, name in enumerate(model):
        encoder = load_encoder(name)
        finders[name] = encoder.revision, _by_matcher(encoder, template)
        if others is not None and encoder.is_dense:
            run = Path(output) / f"adapted-{index}"
            adapted = adaptation.adapt(name, [template.as_reference()], str(others), run, steps=adapt_steps, seed=seed)
            encoder = load_encoder(str(adapted.folder))
            finders[f"{name}, adapted"] = encoder.revision, _by_matcher(encoder, template)
    finders |= _control_finders(template, controls)
    digest = data_hash([item.source_id for item in images], [item.image for item in images])
    settings = {"protocol": protocol, "template": template.source_id, "images": [item.source_id for item in images]}
    results = []
    for index, (name, (revision, find)) in enumerate(finders.items()):
        errors = np.stack([_errors(item, find(item.image), chosen) for item in tqdm(images, desc=name, unit="image")])
        values = {"mean_radial_error_mm": errors}
        values |= {f"within_{limit}_mm": errors <= limit for limit in chosen.within_mm}
        values |= {f"{point}_mm": errors[:, i] for i, point in enumerate(template.names)}
        measured = {measure: by_patient(of, settings["images"]) for measure, of in values.items()}
        found = estimates(measured, seed)
        results.append(
            Results(f"one_shot {protocol}", name, revision, source, digest, seed, found, settings, measured)
        )
        results[-1].save(Path(output) / f"method-{index}")
    page = Path(output) / "one_shot.md"
    page.write_text(_page(results, chosen), encoding="utf-8")
    return page


def protocol_images(
    source: str, protocol: Protocol, splits: Sequence[str], id_column: str
) -> tuple[Annotated, list[Annotated]]:
    """The annotated image of a protocol, and those that are searched, sorted by their ids.

    Raises:
        SourceError: the source lacks images or outlines of the protocol.
    """
    rows = {row["source_id"]: row for split in splits for row in load_source(source, split=split, id_column=id_column)}
    outlined = sorted(name for name, row in rows.items() if all(row.get(column) for column in protocol.points))
    tested = [name for start, number in protocol.tested.items() for name in _last(outlined, start, number)]
    needed = sum(protocol.tested.values())
    if protocol.template not in outlined or len(tested) < needed:
        raise SourceError(
            f"{source} has {protocol.template in outlined:d} of 1 template ({protocol.template}) and {len(tested)} of "
            f"{needed} test images with {', '.join(protocol.points)} in its splits {', '.join(splits)}"
        )
    return _annotated(rows[protocol.template], protocol), [_annotated(rows[name], protocol) for name in sorted(tested)]


def _last(names: Sequence[str], start: str, number: int) -> list[str]:
    return [name for name in names if name.startswith(start)][-number:]


def _annotated(row: Mapping, protocol: Protocol) -> Annotated:
    image = read_cell(row["image"], row["source_id"]).convert("L")
    named = {
        f"{column.removeprefix('landmarks_')}_{index}": row[column][index]
        for column, indices in protocol.points.items()
        for index in indices
    }
    points = torch.tensor(list(named.values()), dtype=torch.float32) * torch.tensor(image.size) - 0.5
    return Annotated(image, row["source_id"], points, list(named))


def _save_others(
    source: str, images: Sequence[Annotated], splits: Sequence[str], id_column: str, folder: Path
) -> Path:
    """A folder of the source's images that are not searched, without what is annotated in them."""
    searched = {item.source_id for item in images}
    folder.mkdir(parents=True, exist_ok=True)
    for split in splits:
        for row in load_source(source, split=split, id_column=id_column):
            if row["source_id"] not in searched:
                read_cell(row["image"], row["source_id"]).convert("L").save(folder / f"{row['source_id']}.png")
    return folder


def _control_finders(template: Annotated, controls: Sequence[Control]) -> dict[str, tuple[str | None, Finder]]:
    finders: dict[str, tuple[str | None, Finder]] = {"same place": (None, lambda image: _copied(template, image))}
    if "pixels" in controls:
        finders["pixels"] = None, _by_matcher(pixel_encoder(), template)
    if "registration" in controls:
        finders["registration"] = None, _by_registration(template)
    return finders


def _by_matcher(encoder: Encoder, template: Annotated) -> Finder:
    matcher = AnatomyMatcher(encoder, [template.as_reference()])
    return lambda image: torch.tensor([point[:2] for point in matcher.find(image).values()])


def _by_registration(template: Annotated) -> Finder:
    reference = Registered(template.image)
    return lambda image: register(reference, Registered(image), template.points)


def _copied(template: Annotated, image: Image.Image) -> Tensor:
    """The template's places, as shares of the sides."""
    return (template.points + 0.5) * (torch.tensor(image.size) / torch.tensor(template.image.size)) - 0.5


def _errors(item: Annotated, found: Tensor, protocol: Protocol) -> np.ndarray:
    """Radial errors `[P]` in mm."""
    return ((found - item.points).norm(dim=1) * protocol.side_mm / item.image.width).numpy()


def _page(results: Sequence[Results], protocol: Protocol) -> str:
    """A row for each method, the published ones below."""
    first, limits = results[0], [f"within_{limit}_mm" for limit in protocol.within_mm]
    lines = [["method", "mean radial error in mm", *(limit.replace("_", " ") for limit in limits)]]
    lines.append(["---"] * len(lines[0]))
    for result in results:
        lines.append([result.encoder, *(str(result.values[name]) for name in ("mean_radial_error_mm", *limits))])
    lines += [
        [f"published: {name}", f"{value:.2f}", *("-" for _ in limits)] for name, value in protocol.published.items()
    ]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return (
        f"# {protocol.title}\n\nOne annotated image, `{protocol.template}`; {len(first.settings['images'])} images "
        f"searched for {sum(map(len, protocol.points.values()))} points. Means over images with bootstrap 95 % "
        f"intervals. Data: {first.source}, hash `{first.data_hash}`.\n\n{table}\n\n"
        "Published numbers are of methods that trained on the data set itself, without labels. "
        "Nothing here supports a clinical conclusion.\n"
    )
