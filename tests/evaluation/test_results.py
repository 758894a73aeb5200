import dataclasses

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from eden_hf.evaluation.results import VALUES, Results, data_hash, difference_table, differences, table
from eden_hf.evaluation.statistics import Estimate, by_patient, estimate, estimates


def results(encoder="a", **values):
    return Results("locality", encoder, "sha256 0", "phantoms:8", "abc", 0, values, {"window": 32})


def test_results_come_back_from_their_file(tmp_path):
    saved = results(retrieval=Estimate(0.5, 0.4, 0.6, 12))
    assert Results.load(saved.save(tmp_path / "new")) == saved
    assert "0.500 (0.400, 0.600)" in (tmp_path / "new" / "results.md").read_text()


def test_a_table_sets_encoders_side_by_side():
    one, two = results("a", knn_accuracy=Estimate(0.5, 0.4, 0.6, 12)), results("b", margin=Estimate(12.25, 11, 13, 12))
    lines = table([one, two]).splitlines()
    assert lines[0] == "|  |  | a | b |"
    assert lines[2] == "| locality | knn accuracy | 0.500 (0.400, 0.600) | - |"
    assert lines[3] == "| locality | margin | - | 12.2 (11.0, 13.0) |"


def test_the_hash_tells_ids_pixels_and_order():
    images = [Image.new("L", (2, 2), value) for value in (0, 1)]
    hashes = {
        data_hash(ids, pixels)
        for ids, pixels in [(["a", "b"], images), (["a", "c"], images), (["a", "b"], images[::-1])]
    }
    assert len(hashes) == 3
    with pytest.raises(ValueError, match="zip"):
        data_hash(["a"], images)


def measured_results(encoder, values, patients):
    measured = {"hit": by_patient(np.array(values, float), patients)}
    return Results("locality", encoder, None, "x", "abc", 0, estimates(measured), {}, measured)


def test_encoders_are_compared_in_the_same_patients():
    """Patients differ much more than encoders: the difference's interval is far narrower than either's own."""
    own = np.random.default_rng(0).normal(0, 1, 40)
    patients = [f"p{i}" for i in range(40)]
    one, two = measured_results("a", own + 0.1, patients), measured_results("b", own[::-1], patients[::-1])
    found = differences(one, two)["hit"]
    assert found.value == pytest.approx(0.1)
    assert found.high - found.low < 0.01 < one.values["hit"].high - one.values["hit"].low
    assert "| locality | hit | 0.100 (0.100, 0.100) |" in difference_table([one, two])
    assert "- b" in difference_table([one, two])


def test_measures_that_are_of_pairs_in_one_run_alone_are_named():
    one = measured_results("a", [1, 2, 3], list("xyz"))
    pairs = by_patient(np.ones((3, 3)), list("xyz"), list("xyz"))
    with pytest.raises(ValueError, match="locality of a and of b: a value of each patient"):
        differences(one, Results("locality", "b", None, "x", "abc", 0, {}, {}, {"hit": pairs}))


def test_tables_of_few_patients_say_so(tmp_path):
    few, many = (results(retrieval=Estimate(0.5, 0.4, 0.6, n)) for n in (12, 15))
    assert "Of fewer than 15 patients" in table([many, few])
    few.save(tmp_path)
    assert "Of fewer than 15 patients" in (tmp_path / "results.md").read_text()
    assert "fewer than" not in table([many])


def test_subgroups_are_slices_of_one_run(tmp_path):
    saved = measured_results("a", [1, 2, 3, 4], list("wxyz"))
    folder = tmp_path / "of" / "a"
    saved.save(folder)
    assert pq.read_table(folder / VALUES)["encoder"].to_pylist() == ["a"] * 4
    part = Results.load(folder / "results.json").of({"w", "z"}, subgroup={"sex": "F"})
    assert part.values["hit"].value == 2.5
    assert part.values["hit"].n == 2
    assert part.settings == {"subgroup": {"sex": "F"}}
    assert part.measured["hit"].patients == ["w", "z"]
    other = dataclasses.replace(measured_results("a", range(9), list("abcdefghi")), seed=1)
    assert other.of(set("abcdefgh")).values["hit"] == estimate(np.arange(8.0), 1) != estimate(np.arange(8.0), 0)
