import json
import os
import shutil

import pytest
import torch
from accelerate import Accelerator
from safetensors import SafetensorError

from eden_hf import EdenForPreTraining, EdenModel
from eden_hf.training.checkpoints import damage, load_last_checkpoint, replace_folder, save_checkpoint, seal
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
    assert load_last_checkpoint(accelerator, tmp_path, keep=9) == Progress(step=3, epoch=1)
    assert (model.weight == 3).all()


def test_a_half_written_checkpoint_is_not_one(accelerator, tmp_path, monkeypatch):
    accelerator.prepare(torch.nn.Linear(2, 2))
    save_checkpoint(accelerator, tmp_path, Progress(step=1), keep=2)
    monkeypatch.setattr(accelerator, "save_state", lambda folder: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(accelerator, tmp_path, Progress(step=2), keep=2)
    assert load_last_checkpoint(accelerator, tmp_path, keep=9).step == 1


def test_a_run_without_a_checkpoint_starts_over_and_says_so(accelerator, tmp_path, caplog):
    assert load_last_checkpoint(accelerator, tmp_path / "none", keep=9) == Progress()
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
    with pytest.raises(ValueError, match="another version"):
        load_last_checkpoint(accelerator, tmp_path, keep=9)


def three_checkpoints(accelerator, folder):
    """Of steps 1 to 3, each with a weight that is its step; the model."""
    model = accelerator.prepare(torch.nn.Linear(2, 2))
    accelerator.prepare(torch.optim.SGD(model.parameters(), momentum=0.9))
    for step in (1, 2, 3):
        torch.nn.init.constant_(model.weight, step)
        save_checkpoint(accelerator, folder, Progress(step=step), keep=3)
    torch.nn.init.zeros_(model.weight)
    return model


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *((name, "cut") for name in ("model.safetensors", "optimizer.bin", "random_states_0.pkl", "progress.json")),
        ("optimizer.bin", "flipped"), ("model.safetensors", "flipped"), ("optimizer.bin", "gone"),
    ],
)  # fmt: skip
def test_a_damaged_checkpoint_gives_way_to_the_one_before(name, damage, accelerator, tmp_path, caplog):
    model = three_checkpoints(accelerator, tmp_path)
    file = tmp_path / "step-00000003" / name
    content = bytearray(file.read_bytes())
    if damage == "gone":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(content[:-1])
    else:
        content[len(content) // 2] ^= 4
        file.write_bytes(content)
    assert load_last_checkpoint(accelerator, tmp_path, keep=9).step == 2
    assert (model.weight == 2).all()
    assert "step-00000003 is damaged" in caplog.text
    assert name in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "damaged-step-00000003", "step-00000001", "step-00000002",
    ]  # fmt: skip
    save_checkpoint(accelerator, tmp_path, Progress(step=4), keep=1)
    assert load_last_checkpoint(accelerator, tmp_path, keep=9).step == 4


def test_checkpoints_that_are_all_damaged_do_not_start_a_run_over(accelerator, tmp_path):
    three_checkpoints(accelerator, tmp_path)
    for sums in tmp_path.glob("step-*/checksums.json"):
        sums.write_text(sums.read_text()[:-5])
    with pytest.raises(ValueError, match=r"step-00000003 is damaged .*step-00000001 is damaged .*start another run"):
        load_last_checkpoint(accelerator, tmp_path, keep=9)


def test_a_checkpoint_without_checksums_is_taken_as_it_is(accelerator, tmp_path):
    """Older versions wrote none."""
    three_checkpoints(accelerator, tmp_path)
    (tmp_path / "step-00000003" / "checksums.json").unlink()
    assert load_last_checkpoint(accelerator, tmp_path, keep=9).step == 3


@pytest.mark.parametrize("schema", ["older", "newer", "weights"])
def test_a_checkpoint_of_another_version_is_refused_with_the_reason(schema, accelerator, tmp_path):
    three_checkpoints(accelerator, tmp_path)
    newest = tmp_path / "step-00000003"
    (newest / "checksums.json").unlink()
    position = json.loads((newest / "progress.json").read_text())
    if schema == "older":
        position.pop("seen_epochs")
    elif schema == "newer":
        position["unheard_of"] = 1
    (newest / "progress.json").write_text(json.dumps(position))
    if schema == "weights":
        accelerator._models[0] = torch.nn.Linear(2, 2, bias=False)
    message = {"older": "seen_epochs", "newer": "unheard_of", "weights": "state_dict for Linear"}[schema]
    with pytest.raises(ValueError, match=rf"step-00000003 was written by another version .*{message}.*git_revision"):
        load_last_checkpoint(accelerator, tmp_path, keep=9)


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:603] . unexpected pos 64 vs 0"),
    ],
    ids=["python", "safetensors", "torch"],
)
def test_what_could_not_be_written_is_named_and_its_room_given_back(error, accelerator, tmp_path, monkeypatch):
    three_checkpoints(accelerator, tmp_path)

    def fail(folder):
        (tmp_path / ".step-00000004.new").mkdir()
        raise error

    monkeypatch.setattr(accelerator, "save_state", fail)
    with pytest.raises(OSError, match=rf"{tmp_path} could not be written to \(.*MB are free.*--resume"):
        save_checkpoint(accelerator, tmp_path, Progress(step=4), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-0000000{step}" for step in (1, 2, 3)]


def test_an_error_that_is_none_of_writing_stays_what_it_is(tmp_path):
    with pytest.raises(RuntimeError, match=r"^CUDA"):
        replace_folder(tmp_path / "best", lambda new: (_ for _ in ()).throw(RuntimeError("CUDA error")))


@pytest.mark.parametrize("killed", [True, False])
def test_a_model_folder_comes_back_that_was_moved_for_the_next(killed, tmp_path, monkeypatch):
    best = tmp_path / "best"
    replace_folder(best, lambda new: (new / "weights").write_text("first") and None)
    if killed:  # between the two renames, and then before the next is whole
        best.rename(tmp_path / ".best.old")
    else:  # the second of them is refused
        rename = type(best).rename
        monkeypatch.setattr(
            type(best), "rename", lambda old, new: rename(old, new) if old.name != ".best.new" else 1 / 0
        )

    def write(new):
        if killed:
            raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, ZeroDivisionError)):
        replace_folder(best, write)
    assert (best / "weights").read_text() == "first"
    assert os.listdir(tmp_path) == ["best"]  # noqa: PTH208


def test_a_kill_while_an_old_checkpoint_is_removed_leaves_no_part_of_one(accelerator, tmp_path, monkeypatch):
    three_checkpoints(accelerator, tmp_path)

    def killed(folder, *given, **options):
        (folder / "optimizer.bin").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(accelerator, tmp_path, Progress(step=4), keep=3)
    monkeypatch.undo()
    assert load_last_checkpoint(accelerator, tmp_path, keep=9).step == 4  # perhaps the last that the run writes
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-0000000{step}" for step in (2, 3, 4)]


def test_a_checkpoint_too_many_goes_when_the_run_goes_on(accelerator, tmp_path):
    """Of a run that was killed after its last checkpoint, before it removed the oldest."""
    for step in (2, 3, 4):
        save_checkpoint(accelerator, tmp_path, Progress(step=step), keep=3)
    assert load_last_checkpoint(accelerator, tmp_path, keep=2).step == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]


def test_a_checkpoint_that_is_sealed_again_is_whole(tmp_path):
    for content in ("first", "second"):
        (tmp_path / "weights").write_text(content)
        seal(tmp_path)
        assert damage(tmp_path) is None
    (tmp_path / "weights").write_text("third")
    assert damage(tmp_path) == "weights changed since it was written"
