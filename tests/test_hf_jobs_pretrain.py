"""The script for Hugging Face Jobs, with folders in place of buckets."""

import fnmatch
import os
import runpy
import shutil
import signal
import time
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from huggingface_hub import HfApi

from .launching import REPOSITORY
from .training.test_pretraining import assert_equal_runs, metrics, run_pretraining

SCRIPT = runpy.run_path(str(REPOSITORY / "scripts" / "hf_jobs_pretrain.py"))


@pytest.fixture
def buckets(tmp_path, monkeypatch):
    """Buckets as folders, synchronised as the Hub does it."""
    root = tmp_path / "buckets"

    def here(place: str) -> Path:
        return root / place.removeprefix("hf://buckets/") if place.startswith("hf://") else Path(place)

    def sync(self, source, dest, delete=False, include=None, exclude=(), quiet=False):
        source, dest = here(source), here(dest)
        names = {file.relative_to(source).as_posix() for file in source.rglob("*") if file.is_file()}
        names = {name for name in names if not any(fnmatch.fnmatch(name, pattern) for pattern in exclude)}
        names = {name for name in names if include is None or any(fnmatch.fnmatch(name, p) for p in include)}
        for name in names:
            (dest / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / name, dest / name)
        for file in dest.rglob("*") if delete else ():
            if file.is_file() and file.relative_to(dest).as_posix() not in names:
                file.unlink()

    monkeypatch.setattr(HfApi, "create_bucket", lambda self, name, **options: None)
    monkeypatch.setattr(HfApi, "sync_bucket", sync)
    monkeypatch.chdir(tmp_path)
    return root


def run(*words: str) -> None:
    SCRIPT["main"](["--bucket", "user/adam", *words])
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.slow
def test_a_preempted_job_goes_on_from_the_bucket(buckets, tmp_path, monkeypatch):
    whole = run_pretraining(tmp_path, "whole")
    AcceleratorState._reset_state(reset_partial_state=True)
    (buckets / "user/adam/configs").mkdir(parents=True)
    shutil.copy(tmp_path / "whole.yaml", buckets / "user/adam/configs/tiny.yaml")
    sync, asked = HfApi.sync_bucket, []

    def preempted(self, *places, **options):
        if not asked and Path("run/metrics.jsonl").exists() and len(metrics(Path("run"))) > 4:
            asked.append(os.kill(os.getpid(), signal.SIGTERM))
        sync(self, *places, **options)

    monkeypatch.setattr(HfApi, "sync_bucket", preempted)
    run("--config", "tiny.yaml", "--minutes", "0.0002")
    assert len([line for line in metrics(Path("run")) if "loss" in line]) < 16, "it was over before the signal came"
    shutil.rmtree("run")  # as the job's disk is
    shutil.rmtree("configs")
    run("--config", "tiny.yaml")
    assert_equal_runs(whole, Path("run"))
    kept = buckets / "user/adam/run"
    assert (kept / "last/model.safetensors").read_bytes() == Path("run/last/model.safetensors").read_bytes()
    assert {file.relative_to(kept) for file in kept.glob("checkpoints/*/*")} == {
        file.relative_to("run") for file in Path("run").glob("checkpoints/*/*")
    }


def test_copies_go_on_beside_the_work_and_survive_a_failure(caplog):
    tries = []

    def copy() -> None:
        tries.append(time.monotonic())
        if len(tries) == 1:
            raise ConnectionError("lost")

    with SCRIPT["kept"](copy, 0.02):
        while len(tries) < 3:
            time.sleep(0.01)
    assert len(tries) >= 4  # once more at the end
    assert "the run was not copied: lost" in caplog.text


def test_nothing_is_deleted_before_all_is_there(tmp_path):
    calls = []

    class Api:
        def sync_bucket(self, *places, **options):
            calls.append(options["delete"])
            raise ConnectionError

    with pytest.raises(ConnectionError):
        SCRIPT["keep"](Api(), tmp_path, "hf://buckets/a/b")
    assert calls == [False]


def test_settings_that_are_nowhere(buckets):
    with pytest.raises(SystemExit, match=r"no settings absent.yaml: put them into the bucket"):
        run("--config", "absent.yaml")
