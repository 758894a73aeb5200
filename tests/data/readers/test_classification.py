"""Readers of ChestX-ray14, VinDr-CXR and Shenzhen on small files in their published layouts."""

import logging

import numpy as np
import pytest

from eden_hf.data.patients import patients_apart
from eden_hf.data.readers import chestxray14, shenzhen, vindr_cxr
from eden_hf.data.readers.files import seeded_split
from eden_hf.data.readers.task import TaskError
from eden_hf.data.sources import read_cell
from eden_hf.data.tasks import load_task

from . import layouts
from .layouts import pixels, row_of, save


def ids(task):
    return {split: list(data["source_id"]) for split, data in task.splits.items()}


def shown(row):
    return np.asarray(read_cell(row["image"], row["source_id"]))


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


# ChestX-ray14


@pytest.mark.parametrize("images", ["images", "images_{:03d}/images"])
@pytest.mark.parametrize("table", ["Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv"])
def test_chestxray14_has_its_lists_as_splits_and_its_findings_as_labels(tmp_path, images, table):
    task = chestxray14.read(layouts.chestxray14(tmp_path, images, table))
    assert (task.name, task.kind, task.metric, len(task.labels)) == ("chestxray14", "multi_label", "auc", 14)
    own = ids(task)
    assert own["test"] == ["00000004_000.png"]
    assert sorted(own["train"] + own["validation"]) == sorted(list(layouts.FINDINGS)[:4])
    for data in task.splits.values():
        for row in data:
            found = {label for label, value in zip(task.labels, row["label"], strict=True) if value == 1}
            assert found == set(layouts.FINDINGS[row["source_id"]].split("|")) - {"No Finding"}
            assert set(row["label"]) <= {0.0, 1.0}
            seed = list(layouts.FINDINGS).index(row["source_id"])
            assert row["image"]["bytes"] is None
            assert np.array_equal(shown(row), pixels(seed))


def test_chestxray14_holds_out_whole_patients_and_always_the_same(tmp_path):
    folder = layouts.chestxray14(tmp_path)
    first, again = ids(chestxray14.read(folder)), ids(chestxray14.read(folder))
    assert first == again
    patients = {split: {name[:8] for name in names} for split, names in first.items()}
    assert len(patients["validation"]) == 1
    assert not patients["validation"] & patients["train"]


def test_chestxray14_refuses_a_patient_with_an_image_in_each_list(tmp_path):
    folder = layouts.chestxray14(tmp_path)
    edit(folder / "train_val_list.txt", "00000001_001.png\n", "")
    edit(folder / "test_list.txt", "00000004_000.png", "00000001_001.png")
    with pytest.raises(TaskError, match=r"1 patients are in both .*, which are to be apart: 00000001"):
        chestxray14.read(folder)


def test_chestxray14_names_images_without_file(tmp_path, caplog):
    folder = layouts.chestxray14(tmp_path)
    (folder / "images" / "00000002_000.png").unlink()
    with pytest.raises(TaskError, match=r"1 of the 5 images of train_val_list.txt and test_list.txt have no file"):
        chestxray14.read(folder)
    task = chestxray14.read(folder, max_skipped_share=0.2)
    assert sum(map(len, ids(task).values())) == 4
    assert "00000002_000.png; they are left out" in caplog.text
    with pytest.raises(ValueError, match=r"max_skipped_share is a share .* got 2"):
        chestxray14.read(folder, max_skipped_share=2)


def test_an_error_shows_the_layout_and_where_it_was_looked_for(tmp_path):
    with pytest.raises(TaskError, match="no file Data_Entry_2017") as caught:
        chestxray14.read(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert chestxray14.LAYOUT in str(caught.value)
    with pytest.raises(TaskError, match="there is no folder"):
        chestxray14.read(tmp_path / "nowhere")


def test_chestxray14_reports_files_that_no_list_names(tmp_path, caplog):
    folder = layouts.chestxray14(tmp_path)
    save(folder / "images" / "00000009_000.png", pixels(9))
    with caplog.at_level(logging.WARNING):
        chestxray14.read(folder)
    assert "1 images" in caplog.text
    assert "00000009_000" in caplog.text


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (
            "test_list.txt",
            "00000004_000.png",
            "00000007_000.png",
            r"1 images of .*test_list.txt are not in .*csv: 0000",
        ),
        ("test_list.txt", "00000004_000.png", "", "names no image"),
        ("train_val_list.txt", "00000001_001.png", "00000001_000.png", "1 names come more than once"),
        ("Data_Entry_2017.csv", "Infiltration", "Infiltrates", "findings 'Infiltrates'; known are Atelectasis"),
        ("Data_Entry_2017.csv", "Infiltration", "Hernia|No Finding", "No Finding alone"),
        (
            "Data_Entry_2017.csv",
            "Finding Labels",
            "Findings",
            "no column Finding Labels; it has Image Index, Findings",
        ),
        ("Data_Entry_2017.csv", "00000001_001.png", "00000001_000.png", "names come more than once"),
    ],
)
def test_chestxray14_refuses_files_that_contradict_each_other(tmp_path, file, old, new, message):
    folder = layouts.chestxray14(tmp_path)
    edit(folder / file, old, new)
    with pytest.raises(TaskError, match=message):
        chestxray14.read(folder)


def test_an_image_in_two_folders_is_refused(tmp_path):
    folder = layouts.chestxray14(tmp_path)
    save(folder / "images_002" / "images" / "00000002_000.png", pixels(2))
    with pytest.raises(TaskError, match=r"several files for image 00000002_000.png"):
        chestxray14.read(folder)


def test_two_tables_are_refused(tmp_path):
    folder = layouts.chestxray14(tmp_path)
    (folder / "Data_Entry_2017_v2020.csv").write_text("")
    with pytest.raises(TaskError, match="several files match"):
        chestxray14.read(folder)


def test_an_empty_table_is_refused(tmp_path):
    folder = layouts.chestxray14(tmp_path)
    (folder / "Data_Entry_2017.csv").write_text("")
    with pytest.raises(TaskError, match="it has no header"):
        chestxray14.read(folder)


# VinDr-CXR


def test_vindr_cxr_takes_the_vote_of_three_radiologists(tmp_path):
    task = vindr_cxr.read(layouts.vindr_cxr(tmp_path))
    assert (task.kind, task.metric) == ("multi_label", "auc")
    assert task.labels == ("COPD", "Lung tumor", "Pneumonia", "Tuberculosis", "Other diseases", "No finding")
    assert ids(task) == {"train": ["aa", "bb"], "test": ["cc"]}
    assert task.splits["train"]["label"][:] == [[1, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1]]
    assert task.splits["test"]["label"][:] == [[0, 0, 0, 1, 1, 0]]  # `Other disease` in this table
    assert shown(task.splits["test"][0]).shape == (6, 8)


def test_vindr_cxr_sees_swapped_folders(tmp_path):
    folder = layouts.vindr_cxr(tmp_path)
    for old, new in (("train", "x"), ("test", "train"), ("x", "test")):
        (folder / old).rename(folder / new)
    with pytest.raises(
        TaskError, match=r"2 of the 2 images of image_labels_train.csv .* in test/\*: are the two swap"
    ):
        vindr_cxr.read(folder)


@pytest.mark.parametrize(
    ("table", "old", "new", "message"),
    [
        ("train", "image_id", "image", "no column image_id; it has image, rad_id"),
        ("train", "Tuberculosis", "TB", "no column Tuberculosis"),
        ("train", "aa,R1,0,1", "aa,R1,0,2", "image aa has a label that is neither 0 nor 1"),
        ("train", "aa,R1,0,1", "aa,R1,0,yes", "image aa has a label that is neither 0 nor 1"),
        ("train", "bb,", "dd,", "1 of the 2 images of image_labels_train.csv have no file train"),
        ("test", "cc,", "aa,", "1 names come more than once"),
    ],
)
def test_vindr_cxr_refuses_other_tables(tmp_path, table, old, new, message):
    folder = layouts.vindr_cxr(tmp_path)
    edit(folder / "annotations" / f"image_labels_{table}.csv", old, new)
    with pytest.raises(TaskError, match=message):
        vindr_cxr.read(folder)


def test_vindr_cxr_has_one_row_a_test_image(tmp_path):
    folder = layouts.vindr_cxr(tmp_path)
    table = folder / "annotations" / "image_labels_test.csv"
    table.write_text(table.read_text() + table.read_text().splitlines()[1] + "\n")
    with pytest.raises(TaskError, match=r"1 names come more than once in .*image_labels_test.csv: cc"):
        vindr_cxr.read(folder)


# Shenzhen


@pytest.mark.parametrize("inside", ["", "ChinaSet_AllFiles", "ChinaSet_AllFiles/CXR_png"])
def test_shenzhen_reads_labels_off_the_names_and_splits_each_class(tmp_path, inside):
    task = shenzhen.read(layouts.shenzhen(tmp_path) / inside)
    assert (task.kind, task.metric, task.labels) == ("single_label", "auc", ("normal", "tuberculosis"))
    assert {split: len(data) for split, data in task.splits.items()} == {"train": 14, "validation": 2, "test": 4}
    for data in task.splits.values():
        assert all(row["label"] == int(row["source_id"][-1]) for row in data)
        assert sum(data["label"]) == len(data) / 2
    assert len({name for names in ids(task).values() for name in names}) == 20
    assert ids(shenzhen.read(tmp_path)) == ids(task)
    row = row_of(task.splits["train"], ids(task)["train"][0])
    assert np.array_equal(shown(row), pixels(int(row["source_id"].split("_")[1])))


def test_a_seeded_split_does_not_depend_on_the_order_of_names():
    classes = {f"{index:02d}": index % 3 == 0 for index in range(30)}
    split = seeded_split(classes)
    assert seeded_split(dict(reversed(classes.items()))) == split
    assert seeded_split(classes, seed=1) != split
    assert {name: sum(classes[member] for member in members) for name, members in split.items()} == {
        "train": 7,
        "validation": 1,
        "test": 2,
    }


def test_shenzhen_without_images_or_of_one_class_is_refused(tmp_path):
    with pytest.raises(TaskError, match="there are no images CHNCXR"):
        shenzhen.read(tmp_path)
    save(tmp_path / "CHNCXR_0001_0.png", pixels(0))
    with pytest.raises(TaskError, match="all 1 images are of one class, normal"):
        shenzhen.read(tmp_path)
    save(tmp_path / "CHNCXR_0002_1.png", pixels(0))
    with pytest.raises(TaskError, match="2 images are too few"):
        shenzhen.read(tmp_path)


def test_patients_are_told_where_names_of_images_tell_them(tmp_path):
    xrays = load_task("chestxray14", layouts.chestxray14(tmp_path / "x")).splits
    for data in xrays.values():
        assert data["patient"] == [name.split("_")[0] for name in data["source_id"]]
    eyes = load_task("chase", layouts.chase(tmp_path / "e")).splits
    assert sorted(eyes["test"]["patient"]) == ["image_11", "image_11", "image_14", "image_14"]
    patients_apart(xrays, "patient")
    patients_apart(eyes, "patient")
