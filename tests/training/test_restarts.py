"""A worker that is killed is started again by torchrun and goes on, and other numbers of processes take over."""

import json
import shutil

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from eden_hf.training.arguments import read_arguments
from eden_hf.training.pretraining import pretrain
from eden_hf.training.restarts import goes_on

from ..launching import ENVIRONMENT, python
from ..tiny import BACKBONES
from .test_pretraining import metrics, run_pretraining, settings_file


def test_only_a_run_that_torchrun_starts_again_goes_on_unasked(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    (tmp_path / "config.yaml").touch()
    assert not goes_on(tmp_path, asked=False)
    assert goes_on(tmp_path, asked=True)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    assert not caplog.text
    assert goes_on(tmp_path, asked=False)
    assert "going on from the last checkpoint" in caplog.text
    assert not goes_on(tmp_path / "empty", asked=False)  # killed before there was anything


@pytest.mark.slow
def test_a_killed_worker_goes_on_and_one_process_takes_over(tmp_path):
    """With a LayerNorm trunk both equal one process that was never interrupted."""
    sections = {
        "model": {"backbone": BACKBONES["vit"]}, "training": {"batch_size": 8},
        "stages": [{"level": 0, "epochs": 2, "learning_rate": 0.05}, {"level": 2, "epochs": 2, "learning_rate": 0.01}],
    }  # fmt: skip
    run_pretraining(tmp_path, "one", **sections)
    file = settings_file(tmp_path, "two", **sections)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=1"]
    environment = {**ENVIRONMENT, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # as docs/multi-node.md says
    launched = python(*launcher, "-m", "tests.training.killed_program", str(file), env=environment)
    assert "exitcode: -9" in launched.stderr
    assert launched.stderr.count("going on from the last checkpoint") == 2
    assert_nearly_equal_runs(tmp_path / "one", tmp_path / "two")
    checkpoints = sorted((tmp_path / "two" / "checkpoints").iterdir())
    shutil.rmtree(checkpoints[-1])
    assert json.loads((checkpoints[-2] / "progress.json").read_text())["step"] < len(steps(tmp_path / "one"))
    pretrain(read_arguments(file), resume=True)
    assert_nearly_equal_runs(tmp_path / "one", tmp_path / "two")


def steps(run):
    return [line for line in metrics(run) if "loss" in line]


def assert_nearly_equal_runs(first, second):
    """Steps and weights, but for sums taken in another order."""
    one, two = (load_file(run / "last" / "model.safetensors") for run in (first, second))
    for name in one:
        assert_close(two[name], one[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert [line["step"] for line in steps(first)] == [line["step"] for line in steps(second)]
    for left, right in zip(steps(first), steps(second), strict=True):
        assert right["loss"] == pytest.approx(left["loss"], rel=1e-4)
