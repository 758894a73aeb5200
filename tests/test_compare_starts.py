"""The comparison of starts runs from end to end on phantoms, and again without doing anything twice."""

import runpy
from argparse import ArgumentError

import pytest
import yaml

from eden_hf import EdenModel
from eden_hf.data.phantoms import phantom_dataset

from .launching import python
from .tiny import BACKBONES, tiny_config


@pytest.mark.slow
def test_a_comparison_is_written_and_not_done_twice(tmp_path):
    rows = phantom_dataset(18, size=64)
    for split, chosen in (("train", range(15)), ("test", range(15, 18))):
        rows.select(chosen).to_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    EdenModel(tiny_config()).save_pretrained(tmp_path / "trunk")
    recipe = {
        "source": str(tmp_path / "data"), "scr": str(tmp_path / "data"), "output": str(tmp_path / "starts"),
        "seeds": [0, 1], "images": 3, "shots": [2], "draws": 2, "size": 32,
        "arms": {
            "fresh": {},
            "start, frozen": {"model": {"start": str(tmp_path / "trunk")}, "stages": [{"frozen_trunk_epochs": 1}]},
        },
        "pretraining": {
            "model": {"backbone": BACKBONES["resnet"], "projection_dim": 8, "memory_bank_size": 16},
            "data": {"side": 64, "cache_dir": str(tmp_path / "cache")},
            "views": {"size": 32},
            "stages": [{"level": 0, "epochs": 2, "learning_rate": 0.01}],
            "training": {"batch_size": 4},
            "run": {"num_workers": 0},
        },
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command = ("scripts/compare_starts.py", "--config", str(tmp_path / "recipe.yaml"))
    python(*command)
    text = (tmp_path / "starts" / "starts.md").read_text()
    header, _, fresh, start, *_ = text.splitlines()
    assert header == "|  | error of landmarks in mm | heart, k = 2 | clavicles, k = 2 |"
    assert fresh.startswith("| fresh | ")
    assert start.startswith("| start, frozen | ")
    assert fresh.partition("fresh")[2] != start.partition("frozen")[2]
    assert "frozen_trunk_epochs: 1" in (tmp_path / "starts" / "runs" / "start, frozen-1" / "config.yaml").read_text()
    runs = {file: file.stat().st_mtime_ns for file in (tmp_path / "starts" / "runs").rglob("*.safetensors")}
    python(*command)
    assert (tmp_path / "starts" / "starts.md").read_text() == text
    assert {file: file.stat().st_mtime_ns for file in runs} == runs


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"models": {"alone": "nothing/there/at all"}}, OSError, "no image model at nothing/there/at all"),
        ({"arms": {"fresh": None, "start": {"training": {"layer_dacey": 0.5}}}}, ArgumentError, "layer_dacey"),
    ],
)
def test_a_mistake_is_told_before_the_first_arm_is_trained(changes, error, message, tmp_path, pytestconfig):
    compare = runpy.run_path(str(pytestconfig.rootpath / "scripts" / "compare_starts.py"))["compare_starts"]
    recipe = {"arms": {"fresh": {}}, "seeds": [0], "shots": [2], "output": str(tmp_path)}
    with pytest.raises(error, match=message):
        compare("phantoms:8", "phantoms:8", pretraining={"stages": [{"level": 0, "epochs": 1}]}, **recipe | changes)
    assert not list(tmp_path.rglob("config.yaml"))
