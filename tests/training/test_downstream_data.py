"""Which images fine-tuning learns from, chooses and is tested by: splits, patients, and files that cannot be read."""

import dataclasses

import datasets
import numpy as np
import PIL.Image
import pytest
from datasets import Dataset, DatasetDict, Features, Image, Value

from eden_hf.data.errors import SourceError
from eden_hf.data.phantoms import phantom_dataset
from eden_hf.data.skips import TooManyUnreadable, skipped_entries
from eden_hf.data.tasks import load_source_task
from eden_hf.training.downstream_data import with_holdouts, without_skipped, without_unreadable
from eden_hf.training.finetune_arguments import TaskArguments

from ..data.readers.layouts import pixels, save_dicom, save_mask


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")


def ages(count, patients=None, first=0):
    images = [PIL.Image.fromarray(np.full((8, 8), index, np.uint8)) for index in range(first, first + count)]
    names = [f"{index}.png" for index in range(first, first + count)]
    columns = {"image": images, "name": names, "age": [3.0] * count}
    features = Features({"image": Image(), "name": Value("string"), "age": Value("float32")})
    data = Dataset.from_dict(columns, features)
    return data if patients is None else data.add_column("patient", patients)


def settings(**changes):
    return TaskArguments(kind="regression", label_columns=["age"], id_column="name", **changes)


def splits_of(data, **changes):
    arguments = settings(**changes)
    columns = {"label_columns": ["age"], "id_column": "name", "patient_column": arguments.patient_column}
    return with_holdouts(load_source_task(data, "regression", **columns), arguments)


def names(splits):
    return {split: set(rows["source_id"]) for split, rows in splits.items()}


def test_splits_move_by_their_own_seed_alone():
    first = names(splits_of(ages(40)))
    assert {split: len(own) for split, own in first.items()} == {"train": 29, "validation": 3, "test": 8}
    assert names(splits_of(ages(40), split_seed=0)) == first
    assert names(splits_of(ages(40), split_seed=1))["test"] != first["test"]


def test_patients_with_gaps_are_held_out(caplog):
    splits = splits_of(ages(8, [1, 1, None, 2, 2, None, 3, 3]), patient_column="patient", test_share=0.3)
    held = names(splits)
    assert set.union(*held.values()) == {f"{index}.png" for index in range(8)}
    for pair in ({"0.png", "1.png"}, {"3.png", "4.png"}, {"6.png", "7.png"}):
        assert any(pair <= own for own in held.values())
    assert "2 of 8 images have no patient" in caplog.text


def test_given_splits_that_share_patients(caplog):
    given = DatasetDict(train=ages(6, [1, 1, 2, 3, 4, 5]), test=ages(3, [2, 9, 3], first=6))
    with pytest.raises(SourceError, match=r"2 of train \(2, 3\)"):
        splits_of(given, patient_column="patient")
    assert names(splits_of(given))["test"] == {"6.png", "7.png", "8.png"}  # nobody told of patients
    splits = splits_of(given, patient_column="patient", shared_patients="drop", validation_share=0.3)
    assert names(splits)["train"] | names(splits)["validation"] == {"0.png", "1.png", "4.png", "5.png"}
    assert not set(splits["train"]["patient"]) & set(splits["test"]["patient"])


def segmented(folder, count=12):
    """Phantoms as files with masks, in a folder with metadata."""
    lines = []
    for row, index in zip(phantom_dataset(count, size=32), range(count), strict=True):
        row["image"].save(folder / f"{index:02}.png")
        row["heart"].save(folder / f"heart-{index:02}.png")
        lines.append(f"{index:02}.png,heart-{index:02}.png")
    (folder / "metadata.csv").write_text("\n".join(["file_name,heart_file_name", *lines]))
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_files_that_cannot_be_read_are_counted_and_listed(tmp_path, workers):
    folder = tmp_path / "images"
    folder.mkdir()
    segmented(folder)
    (folder / "01.png").write_bytes((folder / "01.png").read_bytes()[:-100])  # torn in its pixels, with a good header
    (folder / "04.png").unlink()
    (folder / "heart-07.png").write_bytes(b"torn")
    task = load_source_task(folder, "segmentation", mask_columns=["heart"])
    splits = with_holdouts(task, TaskArguments(validation_share=0.4))
    given = names(splits)
    left = without_unreadable(splits, "segmentation", 0.25, tmp_path / "skipped.jsonl", workers)
    assert set.union(*names(left).values()) == {f"{index:02}.png" for index in range(12) if index not in (1, 4, 7)}
    entries = {entry["source_id"]: entry for entry in skipped_entries(tmp_path / "skipped.jsonl")}
    assert sorted(entries) == ["01.png", "04.png", "07.png"]
    assert all(entry["source_id"] in given[entry["split"]] for entry in entries.values())
    assert "heart-07.png: damaged" in entries["07.png"]["reason"]
    assert "04.png: cannot be opened" in entries["04.png"]["reason"]
    assert names(without_skipped(splits, entries.values())) == names(left)
    with pytest.raises(TooManyUnreadable, match=r"3 of 12 images .*All are listed in .*skipped.jsonl"):
        without_unreadable(splits, "segmentation", 0.2, tmp_path / "skipped.jsonl", workers)
    assert len(skipped_entries(tmp_path / "skipped.jsonl")) == 3


def test_masks_of_dicom_images_can_be_read(tmp_path):
    folder = tmp_path / "images"
    save_dicom(folder / "a.dcm", pixels(0, 8, 8))
    save_mask(folder / "a-heart.png", pixels(1, 8, 8) > 100)
    (folder / "metadata.csv").write_text("file_name,heart_file_name\na.dcm,a-heart.png\n")
    task = load_source_task(folder, "segmentation", mask_columns=["heart"])
    assert without_unreadable(task.splits, "segmentation", 0, tmp_path / "skipped.jsonl")["train"].num_rows == 1


def test_labels_of_images_that_cannot_be_read(tmp_path):
    data = ages(12)
    cells = [
        {"bytes": b"torn", "path": None} if index == 5 else cell
        for index, cell in enumerate(data.cast_column("image", Image(decode=False))["image"])
    ]
    data = data.remove_columns("image").add_column("image", cells).cast_column("image", Image())
    splits = splits_of(data)
    left = without_unreadable(splits, "regression", 0.1, tmp_path / "skipped.jsonl")
    assert set.union(*names(splits).values()) - set.union(*names(left).values()) == {"5.png"}


def test_all_readable_leaves_no_list(tmp_path):
    splits = splits_of(ages(12))
    left = without_unreadable(splits, "regression", 0.0, tmp_path / "skipped.jsonl")
    assert names(left) == names(splits)
    assert not (tmp_path / "skipped.jsonl").exists()


def test_settings_of_splits_are_checked():
    with pytest.raises(ValueError, match=r"task\.max_skipped_share"):
        dataclasses.replace(settings(), max_skipped_share=2)
