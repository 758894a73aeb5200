"""The study runs from end to end on phantoms, and again without doing anything twice."""

import json
import runpy

import pytest
import yaml
from datasets import ClassLabel

from eden_hf.data.phantoms import phantom_dataset
from eden_hf.hub.cards import check_card

from .launching import python

RECIPE = {
    "seeds": [0],
    "arms": {
        "random": {},
        "adam_v2": {
            "model": {"backbone": "resnet18-half", "localizability_hidden_size": 16, "localizability_outputs": 16},
            "anchors": {"local_size": 32, "local_count": 1},
            "stages": [{"objective": "localize", "epochs": 1}, {"objective": "part_whole", "epochs": 1}],
        },
    },
    "compared": ["adam_v2"],
    "measured": {"landmarks": 2, "probes": 31},
    "pretrain": {
        "model": {"backbone": "resnet18-half", "memory_bank_size": 16, "memory_bank_init": "empty"},
        "data": {"id_column": "image_id", "side": 64},
        "views": {"size": 32, "intensity": "per_image"},
        "training": {"batch_size": 8},
        "run": {"num_workers": 0},
    },
    "few_shot": {"model": {"size": 32}, "draws": 1},
}


@pytest.mark.slow
def test_a_study_is_written_and_not_done_twice(tmp_path):
    rows = phantom_dataset(34, size=64)
    rows = rows.add_column("label", [index % 2 for index in range(34)]).cast_column("label", ClassLabel(2))
    for split, chosen in (("train", range(31)), ("test", range(31, 34))):
        rows.select(chosen).to_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    data, output = str(tmp_path / "data"), tmp_path / "study"
    arguments = ["--cxr", data, "--scr", data, "--recipe", str(tmp_path / "study.yaml"), "--output", str(output)]
    python("scripts/study.py", *arguments, "--workers", "1")
    text = (output / "study.md").read_text()
    for row in ("| random, seed 0 |", "| pixels |", "| adam_v2 - random, seed 0 |", "| adam_v2 - pixels, seed 0 |"):
        assert row in text
    numbers = json.loads((output / "study.json").read_text())
    assert 0 <= numbers["locality: retrieval at 1"]["random"][0] <= 1
    for run in ("random-0", "adam_v2-0"):
        assert check_card(output / "models" / run) == []
    assert "| heart | random |" in text
    assert "No labelled image beyond k was used" in text
    scores = next((output / "few_shot").glob("scores-*.jsonl"))
    stale = scores.read_text().splitlines()[0].replace("adam_v2-0", "adam-0")
    scores.with_name("scores-stale.jsonl").write_text(stale.replace("random-0", "adam-0"))
    before = scores.read_text(), (output / "measures" / "adam_v2-0" / "probe.md").stat().st_mtime_ns
    python("scripts/study.py", *arguments, "--workers", "1")
    assert "adam |" not in (output / "study.md").read_text()
    assert (scores.read_text(), (output / "measures" / "adam_v2-0" / "probe.md").stat().st_mtime_ns) == before


def test_an_arm_to_compare_that_is_none_is_told_before_any_is_trained(tmp_path, pytestconfig):
    study = runpy.run_path(str(pytestconfig.rootpath / "scripts" / "study.py"))["study"]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(RECIPE | {"compared": ["adam_v2", "adam"]}))
    with pytest.raises(SystemExit, match=r"study\.yaml: `compared` names adam, which is no arm: there are .*adam_v2"):
        study("phantoms:8", "phantoms:8", recipe=str(tmp_path / "study.yaml"), output=str(tmp_path / "study"))
    assert not (tmp_path / "study").exists()
