"""VinDr-CXR (Nguyen et al., Scientific Data 2022): six diagnoses of the whole image, several at a time."""

from pathlib import Path

from eden_hf.data.readers.files import Published, labelled, read_table, refuse_repeats
from eden_hf.data.readers.task import Task, TaskError, features_of

LAYOUT = """\
train/000434271f63a053c4128a0ba6352c7f.dicom ...
test/002a34c58c5b758217ed1f584ccbcfe9.dicom ...
annotations/image_labels_train.csv     image_id, rad_id, one column a label; three rows an image
annotations/image_labels_test.csv      image_id, one column a label; one row an image"""
#: The global labels of the data set's paper, those of the image as a whole.
LABELS = ("COPD", "Lung tumor", "Pneumonia", "Tuberculosis", "Other diseases", "No finding")
#: The test table writes one of them differently.
_SPELLINGS = {"Other disease": "Other diseases"}


def read(folder: Path, max_skipped_share: float = 0.0) -> Task:
    """Task `vindr_cxr`, multi-label, mean AUC of six global labels.

    Splits are the official ones, without validation. Three radiologists read every training image, each for
    themselves: a label is set where most of them set it. Test labels are the consensus of five. The 22 local labels,
    which come with boxes, are not read. (COPD is rare: AUC is to be taken over labels that occur in the split.)

    Raises:
        TaskError: files are missing or not as published.
    """
    published = Published(folder, LAYOUT, max_skipped_share)
    tables = {split: published.one(f"image_labels_{split}.csv") for split in ("train", "test")}
    labels = {split: _votes(path, single=split == "test") for split, path in tables.items()}
    refuse_repeats([*labels["train"], *labels["test"]], f"{tables['train'].name} and {tables['test'].name}")
    images = {split: published.images_of(split, "/*") for split in tables}
    rows = {}
    for split, other in (("train", "test"), ("test", "train")):
        rows[split] = images[split].listed(labels[split], tables[split].name, images[other])
        images[split].report_unlisted(labels[split], tables[split].name)
    splits = labelled(features_of("multi_label", LABELS), rows, labels["train"] | labels["test"])
    return Task("vindr_cxr", "multi_label", LABELS, "auc", splits)


def _votes(table: Path, single: bool) -> dict[str, list[float]]:
    """For each image a 1 where more than half of its rows have one."""
    votes: dict[str, list[list[float]]] = {}
    for where, row in read_table(table, ["image_id", *LABELS], _SPELLINGS):
        try:
            vote = [{0.0: 0.0, 1.0: 1.0}[float(row[label])] for label in LABELS]
        except (KeyError, ValueError) as error:
            raise TaskError(
                f"{where}: image {row['image_id']} has a label that is neither 0 nor 1 ({error})"
            ) from error
        votes.setdefault(row["image_id"], []).append(vote)
    if single:
        refuse_repeats([image for image, own in votes.items() for _ in own], str(table))
    return {
        image: [float(2 * sum(label) > len(own)) for label in zip(*own, strict=True)] for image, own in votes.items()
    }
