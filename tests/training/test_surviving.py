"""Runs that are killed, stopped, starved and damaged go on as if nothing had been: docs/reliability.md."""

import importlib.util

import pytest

from ..launching import ENVIRONMENT, REPOSITORY, python

#: SIGTERM has tests of its own, in `test_pretraining.py`.
FAULTS = ["kill", "kill-write", "read-only", "no-room", "damage", "clock", "kill-one"]
#: A locale that knows no umlaut, and a time zone that is another day's.
ELSEWHERE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TZ": "Pacific/Kiritimati"}


@pytest.mark.slow
def test_broken_runs_lose_nothing(tmp_path):
    command = ["scripts/break_runs.py", *FAULTS, "--tries=1", f"--folder={tmp_path}"]
    python(*command, env={**ENVIRONMENT, **ELSEWHERE})


@pytest.fixture(scope="module")
def break_runs():
    spec = importlib.util.spec_from_file_location("break_runs", REPOSITORY / "scripts" / "break_runs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("lost", ["nothing", "a weight", "a metric", "a file"])
def test_a_run_that_lost_something_does_not_pass(lost, break_runs, tmp_path, monkeypatch):
    monkeypatch.setattr(break_runs, "changes", lambda run: [])
    lives = [break_runs.Life(tmp_path / name) for name in ("one", "two")]
    for life in lives:
        (life.run / "last").mkdir(parents=True)
        (life.run / "last" / "model.safetensors").write_bytes(b"weights")
        (life.run / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5, "images_per_second": 2}\n')
    if lost == "nothing":
        lives[0].compare(lives[1])
        return
    if lost == "a weight":
        (lives[0].run / "last" / "model.safetensors").write_bytes(b"weighty")
    elif lost == "a metric":
        (lives[0].run / "metrics.jsonl").write_text('{"step": 1, "loss": 0.25}\n')
    else:
        (lives[0].run / "last" / "model.safetensors").unlink()
    with pytest.raises(break_runs.LostError):
        lives[0].compare(lives[1])


def test_a_checkpoint_that_is_gone_is_lost(break_runs, tmp_path):
    life = break_runs.Life(tmp_path, kept={"checkpoint"})
    with pytest.raises(break_runs.LostError, match="no whole checkpoint"):
        life.check()
