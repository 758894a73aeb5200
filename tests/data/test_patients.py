import pytest
from datasets import Dataset

from eden_hf.data.errors import SourceError
from eden_hf.data.patients import of_subgroup

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
