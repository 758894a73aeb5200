import json
import platform
import subprocess
import sys

import pytest
import torch
from filelock import FileLock

from eden_hf.training.arguments import PretrainArguments, Stage, TrainingArguments
from eden_hf.training.lineage import changes
from eden_hf.training.run_folder import (
    check_folder,
    check_images,
    keeps_output,
    only_writer,
    record_changes,
    record_run,
)

from ..launching import ENVIRONMENT, torchrun

HOLD = """
import sys, time
from pathlib import Path
from eden_hf.training.run_folder import only_writer
with only_writer(Path(sys.argv[1]), "--output"):
    print("held", flush=True)
    time.sleep(120)
"""


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr("eden_hf.training.run_folder.PATIENCE", 0)


def test_a_folder_has_one_writer_until_its_program_ends(impatient, tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        refused = pytest.raises(FileExistsError, match=r"another program writes to .*run.*another --run.output_dir")
        with refused, only_writer(tmp_path / "run", "--run.output_dir"):
            pass
        other.kill()
    with only_writer(tmp_path / "run", "--run.output_dir"):
        pass


def test_a_folder_that_goes_with_the_other_program_was_taken(tmp_path, monkeypatch):
    def gone(lock):
        raise FileNotFoundError(lock.lock_file)

    monkeypatch.setattr(FileLock, "acquire", gone)
    with pytest.raises(FileExistsError, match="another program writes to"), only_writer(tmp_path, "--output"):
        pass


def test_a_start_that_failed_gives_the_folder_back(impatient, tmp_path):
    for _ in range(2):
        with pytest.raises(ValueError, match="wrong"), only_writer(tmp_path, "--output"):
            raise ValueError("wrong")


def test_what_writes_to_an_output_does_so_alone(impatient, tmp_path):
    @keeps_output
    def write(source, output="outputs/somewhere"):
        with pytest.raises(FileExistsError, match="--output"), only_writer(tmp_path / "out", "--output"):
            pass
        return source

    assert write("x", str(tmp_path / "out")) == write(source="x", output=str(tmp_path / "out")) == "x"


@pytest.mark.slow
def test_every_process_of_a_launch_is_told_that_a_folder_is_taken(impatient, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\nfrom pathlib import Path\nfrom accelerate import PartialState\n"
        "from eden_hf.training import run_folder\nrun_folder.PATIENCE = 0\nstate = PartialState(cpu=True)\n"
        "for folder in map(Path, sys.argv[1:]):\n"
        "    told = 'free'\n"
        "    try:\n        with run_folder.only_writer(folder, '--output', state):\n            pass\n"
        "    except FileExistsError:\n        told = 'taken'\n"
        "    (folder / f'{state.process_index}.txt').write_text(told)\nstate.destroy_process_group()\n"
    )
    free, taken = tmp_path / "free", tmp_path / "taken"
    with only_writer(taken, "--output"):
        free.mkdir()
        torchrun(2, str(program), str(free), str(taken))
    for folder in (free, taken):
        assert [(folder / f"{rank}.txt").read_text() for rank in (0, 1)] == [folder.name] * 2


def settings(rate=0.03, batch_size=8):
    return PretrainArguments(stages=[Stage(learning_rate=rate)], training=TrainingArguments(batch_size=batch_size))


def test_the_device_is_named_where_the_system_does_not_name_its_processor(tmp_path, monkeypatch):
    monkeypatch.setattr(platform, "processor", lambda: "")
    record_run(tmp_path, settings(), torch.device("cpu"))
    assert json.loads((tmp_path / "environment.json").read_text())["device"] == "CPU"


def test_a_run_without_a_step_does_not_count(tmp_path, caplog):
    with pytest.raises(FileNotFoundError, match=r"nothing to resume"):
        check_folder(tmp_path, settings(), resume=True)
    record_run(tmp_path, settings(), torch.device("cpu"))
    (tmp_path / "metrics.jsonl").touch()
    assert not check_folder(tmp_path, settings(batch_size=4), resume=False)
    assert not check_folder(tmp_path, settings(batch_size=4), resume=True)
    assert "starting at step 0" in caplog.text
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(FileExistsError, match="--resume it"):
        check_folder(tmp_path, settings(), resume=False)
    with pytest.raises(ValueError, match=r"may not change on resuming:\n  training.batch_size: 8 -> 4"):
        check_folder(tmp_path, settings(batch_size=4), resume=True)
    assert check_folder(tmp_path, settings(), resume=True)


def test_what_helps_against_a_loss_that_is_not_finite_may_change_and_is_recorded(tmp_path):
    record_run(tmp_path, settings(), torch.device("cpu"))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    lower = settings(rate=0.01)
    lower.training.max_grad_norm = 1.0
    assert check_folder(tmp_path, lower, resume=True)
    record_changes(tmp_path, lower, step=7)
    record_changes(tmp_path, lower, step=9)  # nothing new
    changes = {"stages.0.learning_rate": "0.03 -> 0.01", "training.max_grad_norm": "None -> 1.0"}
    assert json.loads((tmp_path / "environment.json").read_text())["changes"] == [{"step": 7, **changes}]
    assert (tmp_path / "config.yaml").read_text() == lower.to_yaml()


@pytest.mark.parametrize("written", [0, 1, 2])
@pytest.mark.parametrize("given_up", [True, False])
def test_a_kill_while_changes_are_recorded_is_made_good(written, given_up, tmp_path, monkeypatch):
    record_run(tmp_path, settings(), torch.device("cpu"))
    files, replace = iter(range(9)), type(tmp_path).replace

    def killed(path, target):
        if next(files) == written:
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(type(tmp_path), "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        record_changes(tmp_path, settings(rate=0.01), step=7)
    monkeypatch.undo()
    record_changes(tmp_path, settings(rate=0.03 if given_up else 0.01), step=7)
    assert changes(tmp_path) == []
    rates = [change["stages.0.learning_rate"] for change in environment(tmp_path).get("changes", [])]
    if not given_up:
        assert rates == ["0.03 -> 0.01"]


def environment(folder):
    return json.loads((folder / "environment.json").read_text())


def test_a_record_that_was_edited_is_named_on_resuming(tmp_path, caplog):
    record_run(tmp_path, settings(), torch.device("cpu"))
    record_changes(tmp_path, settings(), step=7)
    assert caplog.text == ""
    (tmp_path / "environment.json").write_text("{}")
    record_changes(tmp_path, settings(), step=7)
    assert "environment.json changed since it was recorded, and is recorded anew" in caplog.text


def test_other_images_than_recorded_are_refused(tmp_path):
    lists = {"images": 3, "image_list_hash": "abc", "image_list_hashes": {"train": "abc"}}
    record_run(tmp_path, PretrainArguments(), torch.device("cpu"), **lists)
    check_images(tmp_path, **lists)
    check_images(tmp_path, another_hash="not recorded by older versions")
    message = r"had other images: .*\(images 3 -> 2, image_list_hash abc -> abd\); bring the source back"
    with pytest.raises(ValueError, match=message):
        check_images(tmp_path, images=2, image_list_hash="abd")
    with pytest.raises(ValueError, match="image_list_hashes"):
        check_images(tmp_path, image_list_hashes={"train": "abc", "test": "abc"})
