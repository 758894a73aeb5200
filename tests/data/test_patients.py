import pytest
from datasets import Dataset

from eden_hf.data.errors import SourceError
from eden_hf.data.patients import of_subgroup, patient_names, patients_apart, patients_or_images

PATIENTS = {"source_id": list("abcde"), "sex": ["F", "M", None, "F", "M"], "age": [59, 60, 20, None, 0]}


@pytest.mark.parametrize(
    ("subgroup", "ids", "unknown"),
    [
        ({}, "abcde", []),
        ({"sex": "F"}, "ad", ["1 of 5 rows have no sex"]),
        ({"age": "0-59"}, "ace", ["1 of 5 rows have no age"]),
        ({"age": "60"}, "b", ["1 of 5 rows have no age"]),
        ({"sex": "M", "age": "0-59"}, "e", ["1 of 5 rows have no sex"]),
    ],
)
def test_rows_of_a_subgroup(subgroup, ids, unknown, caplog):
    rows = of_subgroup(Dataset.from_dict(PATIENTS), subgroup)
    assert rows["source_id"][:] == list(ids)
    assert [message.partition(" and ")[0] for message in caplog.messages] == unknown


def test_subgroups_that_are_not_there():
    rows = Dataset.from_dict(PATIENTS)
    with pytest.raises(SourceError, match="no column 'gender' to tell patients by, only source_id, sex, age"):
        of_subgroup(rows, {"gender": "F"})
    with pytest.raises(SourceError, match="nobody has sex 'female'; there are F, M"):
        of_subgroup(rows, {"sex": "female"})


def rows(*patients, first=0):
    return Dataset.from_dict({"source_id": [str(first + i) for i in range(len(patients))], "patient": list(patients)})


def test_where_no_column_is_named_images_are_patients_which_is_told(caplog):
    caplog.set_level("INFO")
    assert patients_or_images(rows("a", "a", "b"), None, "--patient-column") == ["0", "1", "2"]
    assert caplog.messages == [
        "each of 3 images counts as a patient: give --patient-column if some are of the same patient"
    ]
    caplog.clear()
    assert patients_or_images(rows("a", "a", "b"), "patient", "--patient-column") == ["a", "a", "b"]
    assert caplog.messages == []


def test_images_of_nobody_are_patients_of_their_own(caplog):
    assert patient_names(rows("a", None, "a", ""), "patient") == ["a", "image 1", "a", "image 3"]
    assert "2 of 4 images have no patient: each counts as a patient of its own" in caplog.text
    assert patient_names(rows(12, None, 12), "patient") == ["12", "image 1", "12"]


@pytest.mark.parametrize("missing", ["", "  ", "nan", "NaN", "None", "null", "<NA>", "N/A", None, float("nan")])
def test_missing_values_as_programs_write_them_are_no_patient(missing):
    assert patient_names(rows(missing, missing), "patient") == ["image 0", "image 1"]


def test_a_patient_has_one_name_whatever_the_columns_type():
    """A gap makes a column of whole numbers one of floats."""
    assert patient_names(rows(12.0, float("nan"), 7.0), "patient") == ["12", "image 1", "7"]
    assert patient_names(rows(12, 7), "patient") == ["12", "7"]
    assert patient_names(rows(" 12", "7 "), "patient") == ["12", "7"]


def splits():
    """Patient 1 is in train and test, 2 in train and validation, 3 in validation and test; 9 images of nobody."""
    return {
        "train": rows(1, 2, 5, 6, None),
        "validation": rows(2.0, 3.0, 7.0, None),
        "test": rows("1", "3", "8", None),
    }


def test_splits_that_share_patients_are_refused():
    with pytest.raises(SourceError, match=r"are 1 of validation \(3\), 2 of train \(1, 2\) as well; .*drop"):
        patients_apart(splits(), "patient")


def test_shared_patients_are_dropped_from_the_split_that_learns(caplog):
    kept = patients_apart(splits(), "patient", "drop")
    assert {split: own["source_id"][:] for split, own in kept.items()} == {
        "train": ["2", "3", "4"],
        "validation": ["0", "2", "3"],
        "test": ["0", "1", "2", "3"],
    }
    assert "2 images of train left out: their patients are in another split" in caplog.text


def test_splits_apart_stay_as_they_are():
    given = {"train": rows(1, 2, None), "test": rows(3, None)}
    kept = patients_apart(given, "patient")
    assert {split: own["source_id"][:] for split, own in kept.items()} == {
        "train": ["0", "1", "2"],
        "test": ["0", "1"],
    }


def test_nothing_left_of_a_split():
    with pytest.raises(SourceError, match="all patients of train are in another split"):
        patients_apart({"train": rows(1), "test": rows(1)}, "patient", "drop")
    with pytest.raises(SourceError, match="got 'ward'; they have source_id, patient"):
        patients_apart({"train": rows(1)}, "ward")
