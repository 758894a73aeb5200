import os

import pytest
import torch
from accelerate import Accelerator

from eden_hf import EdenForPreTraining, EdenModel
from eden_hf.training.checkpoints import load_last_checkpoint, replace_folder, save_checkpoint
from eden_hf.training.curriculum import Progress
from eden_hf.training.optimizers import make_optimizer

from ..tiny import tiny_config


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


def test_checkpoints_restore_and_old_ones_go(accelerator, tmp_path):
    model = accelerator.prepare(torch.nn.Linear(2, 2))
    for step in (1, 2, 3):
        torch.nn.init.constant_(model.weight, step)
        save_checkpoint(accelerator, tmp_path, Progress(step=step, epoch=1), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]
    torch.nn.init.zeros_(model.weight)
    assert load_last_checkpoint(accelerator, tmp_path) == Progress(step=3, epoch=1)
    assert (model.weight == 3).all()


def test_a_half_written_checkpoint_is_not_one(accelerator, tmp_path, monkeypatch):
    accelerator.prepare(torch.nn.Linear(2, 2))
    save_checkpoint(accelerator, tmp_path, Progress(step=1), keep=2)
    monkeypatch.setattr(accelerator, "save_state", lambda folder: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(accelerator, tmp_path, Progress(step=2), keep=2)
    assert load_last_checkpoint(accelerator, tmp_path).step == 1


def test_a_run_without_a_checkpoint_starts_over_and_says_so(accelerator, tmp_path, caplog):
    assert load_last_checkpoint(accelerator, tmp_path / "none") == Progress()
    assert "starting at step 0" in caplog.text


def test_replace_folder_never_leaves_a_part(tmp_path):
    folder = tmp_path / "best"
    replace_folder(folder, lambda new: (new / "weights").write_text("first") and None)

    def fail(new):
        (new / "weights").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replace_folder(folder, fail)
    assert (folder / "weights").read_text() == "first"
    replace_folder(folder, lambda new: (new / "weights").write_text("second") and None)
    assert (folder / "weights").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_weights_are_readable_like_what_lies_beside_them(accelerator, tmp_path):
    """For all that `umask` allows: safetensors would leave them to their owner."""
    model = accelerator.prepare(EdenModel(tiny_config()))
    before = os.umask(0o022)
    try:
        save_checkpoint(accelerator, tmp_path / "checkpoints", Progress(step=1), keep=1)
        model.save_pretrained(tmp_path / "model")
    finally:
        os.umask(before)
    files = [*(tmp_path / "checkpoints" / "step-00000001").iterdir(), *(tmp_path / "model").iterdir()]
    assert sum(file.suffix == ".safetensors" for file in files) == 2
    assert {oct(file.stat().st_mode & 0o777) for file in files} == {"0o644"}


def test_a_checkpoint_whose_optimiser_decayed_more_is_refused(accelerator, tmp_path):
    model = accelerator.prepare(EdenForPreTraining(tiny_config()))
    old = accelerator.prepare(torch.optim.AdamW(model.parameters()))
    save_checkpoint(accelerator, tmp_path, Progress(step=1), keep=1)
    accelerator._optimizers.remove(old)
    accelerator.prepare(make_optimizer(model, "adamw"))
    with pytest.raises(ValueError, match="older version"):
        load_last_checkpoint(accelerator, tmp_path)
