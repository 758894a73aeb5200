"""Data sets on the Hub: Parquet and card as `build_anatomy_crops` wrote them, and what the publisher declares."""

import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from huggingface_hub import DatasetCard

from eden_hf.hub.cards import CardError, read_declared, require_license
from eden_hf.hub.refusals import Refusal
from eden_hf.hub.upload import Push, PushOptions, publish
from eden_hf.training.settings import require

TERMS = """
## Provenance

{provenance}{source}

## Terms

Licence: {licence}. The crops are copies of the source's images, and whoever published this declared that these may be
shared under it. Not for clinical use.
{citation}"""


@dataclass
class EdenDatasetCardData:
    """What only the publisher of a data set can say: the keys of its `card.yaml`.

    Attributes:
        license: Licence of the images, as the Hub names it (`cc-by-4.0`, `cc0-1.0`, `other` ...).
        provenance: Where the images are from: of whom, by whom, under what approval and terms.
        images_may_be_shared: That the images may be given to others under that licence. Nothing goes without it.
        license_name: Name of the licence, with `other`.
        license_link: Link of the licence, with `other`.
        url: Where the source is published.
        citation: BibTeX of the source.

    Raises:
        ValueError: a value is empty or unknown, or the images may not be shared.
    """

    license: str
    provenance: str
    images_may_be_shared: bool
    license_name: str | None = None
    license_link: str | None = None
    url: str | None = None
    citation: str | None = None

    def __post_init__(self) -> None:
        require_license(self.license, self.license_name, self.license_link)
        require(bool(self.provenance.strip()), "provenance", self.provenance, "said: where the images are from")
        require(
            self.images_may_be_shared, "images_may_be_shared", self.images_may_be_shared,
            "true: a data set shares its images with everybody who may read it, which their licence and their "
            "patients' consent must allow",
        )  # fmt: skip

    @classmethod
    def load(cls, file: str | Path) -> "EdenDatasetCardData":
        """Read a `card.yaml` of a data set.

        Raises:
            CardError: it is absent or no YAML, or a key or value of it is unknown, missing or wrong.
        """
        return read_declared(cls, file)


def publish_dataset(
    folder: str | Path,
    repo_id: str,
    card: str | Path,
    **options: Unpack[PushOptions],
) -> Push:
    """Publish a folder of `build_anatomy_crops` as a data set: then `load_dataset("user/name", "level-2")` works.

    What goes as its card is the folder's `README.md`, which names configs, splits and features, completed with what
    `card` declares; the folder itself stays as it is.

    Args:
        folder: Of `eden crops`. Hidden files stay behind.
        repo_id: `user/name`. A repository that is not there yet is made, private.
        card: What the publisher declares (see `EdenDatasetCardData`).
        options: How.

    Raises:
        CardError: no licence or provenance is declared, nor that the images may be shared; or the folder has no card.
        RefusedError: Parquet that the card names is missing, a file is a pickle or of no known kind, or an image or
            DICOM file lies loose.
        PublishingError: as `publish`.
    """
    folder = Path(folder)
    text, configs = render_dataset_card(folder, repo_id, EdenDatasetCardData.load(card))
    with tempfile.TemporaryDirectory() as scratch:
        completed = Path(scratch) / "README.md"
        completed.write_text(text, encoding="utf-8")
        return publish(folder, repo_id, "dataset", _missing(folder, configs), completed, **options)


def render_dataset_card(folder: Path, repo_id: str, declared: EdenDatasetCardData) -> tuple[str, list[dict[str, Any]]]:
    """The completed `README.md` of a crops folder, and the configs that it names.

    Raises:
        CardError: there is no `README.md` of `build_anatomy_crops`.
    """
    file = folder / "README.md"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    made, ours, _ = text.partition("\n## Provenance\n" if "\n## Provenance\n" in text else "\n## Terms\n")
    card = DatasetCard(made)
    data: Any = card.data
    if not (ours and data.get("configs")):
        raise CardError(f"{file} is no card of anatomy crops: make the folder with eden crops")
    data.license, data.license_name, data.license_link = (
        declared.license, declared.license_name, declared.license_link,
    )  # fmt: skip
    named = f"[{declared.license_name}]({declared.license_link})" if declared.license == "other" else declared.license
    terms = TERMS.format(
        provenance=declared.provenance.strip(),
        source=f"\n\nSource: {declared.url}" if declared.url else "",
        licence=named,
        citation=f"\n## Citation\n\n```bibtex\n{declared.citation.strip()}\n```\n" if declared.citation else "",
    )
    body = re.sub(r'load_dataset\("[^"]+"', f'load_dataset("{repo_id}"', card.text)
    return f"---\n{data.to_yaml()}\n---\n{body.strip()}\n{terms}", data.configs


def _missing(folder: Path, configs: list[dict[str, Any]]) -> Iterator[Refusal]:
    for config in configs:
        for files in config["data_files"]:
            if not any(folder.glob(files["path"])):
                yield Refusal(f"{files['path']}, which the card names, is not there: run eden crops again", "files")
