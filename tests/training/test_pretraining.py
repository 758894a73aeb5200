"""The loop as users run it: launched, killed, resumed, on one process and on two."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from argparse import ArgumentError
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModel

from eden_hf import EdenForPreTraining, EdenModel
from eden_hf.data.chunks import prepare_in_chunks
from eden_hf.data.errors import SourceError
from eden_hf.data.phantoms import draw_phantom, phantom_dataset
from eden_hf.data.phi import PhiError
from eden_hf.training import pretraining
from eden_hf.training.arguments import PretrainArguments, read_arguments
from eden_hf.training.checkpoints import damage
from eden_hf.training.monitors import LossGuard, Monitor, NonFiniteLossError
from eden_hf.training.pretraining import Pretraining, _loader, pretrain

from ..data.shards import png, write_shards
from ..launching import ENVIRONMENT, REPOSITORY, python, torchrun
from ..tiny import BACKBONES, tiny_config

SETTINGS = {
    "model": {"backbone": BACKBONES["resnet"], "projection_dim": 8, "memory_bank_size": 20},
    "data": {"source": "phantoms:20", "side": 64, "holdout_share": 0.2},
    "views": {"size": 32},
    "stages": [
        {"level": 0, "epochs": 2, "learning_rate": 0.05},
        {"level": 2, "epochs": 2, "learning_rate": 0.05, "prune_threshold": 0.8},
    ],
    "training": {"batch_size": 4, "validate_every": 1},
    "run": {"checkpoint_every": 3, "log_every": 1, "num_workers": 0, "keep_checkpoints": 2},
}


def settings_file(folder: Path, name: str = "run", **sections) -> Path:
    """YAML of a tiny run in `folder/name`; `sections` are merged into `SETTINGS`."""
    settings = {key: dict(value) if isinstance(value, dict) else value for key, value in SETTINGS.items()}
    for section, values in sections.items():
        settings[section] = {**settings.get(section, {}), **values} if isinstance(values, dict) else values
    settings["run"] = {**settings["run"], "output_dir": str(folder / name)}
    settings["data"] = {**settings["data"], "cache_dir": str(folder / "cache")}
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


def run_pretraining(folder: Path, name: str = "run", resume: bool = False, **sections) -> Path:
    """Pretrain in this process."""
    return pretrain(read_arguments(settings_file(folder, name, **sections)), resume)


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_equal_runs(first: Path, second: Path):
    """Everything that was learned is equal to the last bit, and so is what was said of it."""
    one, two = (load_file(run / "last" / "model.safetensors") for run in (first, second))
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []
    drop = {"images_per_second"}
    lines = [[{k: v for k, v in line.items() if k not in drop} for line in metrics(run)] for run in (first, second)]
    assert lines[0] == lines[1]


def assert_equal_states(first: Path, second: Path):
    """The last checkpoints hold the same position, optimiser and random states."""
    one, two = (max((run / "checkpoints").glob("step-*")) for run in (first, second))
    assert (one / "progress.json").read_text() == (two / "progress.json").read_text()
    for name in ("optimizer.bin", "random_states_0.pkl"):
        states = [torch.load(folder / name, weights_only=False) for folder in (one, two)]  # noqa: TID251 (our own)
        assert_close(*(flat(state) for state in states), rtol=0, atol=0)


def flat(state) -> list[torch.Tensor]:
    """All numbers of a nested state, in order."""
    if isinstance(state, dict):
        state = list(state.values())
    if isinstance(state, (list, tuple)):
        return [tensor for item in state for tensor in flat(item)]
    return [torch.as_tensor(state)] if isinstance(state, (int, float, np.ndarray, torch.Tensor)) else []


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A whole run of 16 steps, in a process of its own."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    python("scripts/pretrain.py", f"--config={settings_file(folder)}")
    return folder / "run"


def test_images_that_may_tell_of_patients_are_refused_before_the_start_if_asked(tmp_path):
    (tmp_path / "images").mkdir()
    for index in range(6):
        image = draw_phantom(index, 64).image
        Image.fromarray(np.asarray(image)).save(tmp_path / "images" / f"{index}.jpg", comment=b"Jane Doe")
    settings = {"data": {"source": str(tmp_path / "images")}, "stages": [{"epochs": 1}]}
    with pytest.raises(PhiError, match=r"6 tag\n  train row 0: tag image(.|\n)*phi\.csv.*--run\.accepted_phi"):
        run_pretraining(tmp_path, **settings, run={"check_phi": True})
    found = (tmp_path / "run" / "phi.csv").rename(tmp_path / "accepted.csv")
    run = run_pretraining(tmp_path, **settings, run={"check_phi": True, "accepted_phi": str(found)})
    assert (run / "last" / "model.safetensors").exists()
    assert not (run / "phi.csv").exists()


def test_the_images_of_a_patient_are_held_out_together(tmp_path, caplog):
    rows = phantom_dataset(12).map(lambda row, index: {"patient": index // 4}, with_indices=True)
    rows.save_to_disk(tmp_path / "rows")
    data = {**SETTINGS["data"], "source": str(tmp_path / "rows"), "id_column": "image_id", "holdout_share": 0.3}
    folder = tmp_path / "prepared"
    prepare_in_chunks(data["source"], str(folder), id_column="image_id", side=64, num_proc=0, columns=["patient"])
    prepared = {"source": str(folder), "patient_column": "patient"}
    caplog.set_level("INFO")
    held = []
    for name, of_run in ("images", {}), ("patients", {"patient_column": "patient"}), ("prepared", prepared):
        run = Pretraining(read_arguments(settings_file(tmp_path, name, data=data | of_run)))
        held.append({index // 4 for index in run.holdout_indices.tolist()})
        assert ("each of 12 images counts as a patient: give --data.patient_column" in caplog.text) == (not of_run)
        caplog.clear()
    assert held[1] == held[2]
    assert len(held[1]) == 1 < len(held[0])
    data |= {**prepared, "patient_column": "name"}
    with pytest.raises(SourceError, match=r"keeps no column 'name' but patient: .*eden prepare --columns name"):
        Pretraining(read_arguments(settings_file(tmp_path, "other", data=data)))


def test_a_run_leaves_what_it_promises(uninterrupted):
    assert {path.name for path in uninterrupted.iterdir()} == {
        ".lock", "best", "checkpoints", "config.yaml", "environment.json", "last", "lineage.json",
        "metrics.jsonl",
    }  # fmt: skip
    assert read_arguments(uninterrupted / "config.yaml").stages[1].level == 2
    environment = json.loads((uninterrupted / "environment.json").read_text())
    assert torch.__version__.startswith(environment["packages"]["torch"])
    assert environment["images"] == 20
    checkpoints = sorted(path.name for path in (uninterrupted / "checkpoints").iterdir())
    assert checkpoints == ["step-00000015", "step-00000016"]
    model, info = AutoModel.from_pretrained(uninterrupted / "last", output_loading_info=True)
    assert not any(info.values())
    assert model.config.prune_threshold == 0.8


def test_metric_lines_follow_the_curriculum(uninterrupted):
    lines = metrics(uninterrupted)
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 17))
    assert [line["level"] for line in steps] == [0] * 8 + [2] * 8
    assert [line["learning_rate"] for line in steps[:8]] == [line["learning_rate"] for line in steps[8:]]
    assert all(0 <= line["pruned_share"] <= 1 and line["images_per_second"] > 0 for line in steps)
    assert all(line["pruned_share"] == 0 for line in steps[:8])
    validations = [line for line in lines if "validation_loss" in line]
    assert [(line["step"], line["epoch"]) for line in validations] == [(4, 0), (8, 1), (12, 2), (16, 3)]
    best = load_file(uninterrupted / "best" / "model.safetensors")
    last = load_file(uninterrupted / "last" / "model.safetensors")
    improved_last = validations[3]["validation_loss"] < validations[2]["validation_loss"]
    assert all(torch.equal(best[name], last[name]) for name in best) == improved_last


def start_and_signal(file: Path, run: Path, number: int, after_line: int, whole_group: bool = False) -> int:
    """Start a run, send it a signal once `metrics.jsonl` has `after_line` lines, and give its exit status."""
    command = [sys.executable, "scripts/pretrain.py", f"--config={file}"]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() or len(metrics_lines(run)) < after_line:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, "the run wrote no metrics"
        time.sleep(0.002)
    if whole_group:  # as `timeout` does it: to the program, and to all of its group
        process.send_signal(number)
        time.sleep(0.05)
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    process.communicate(timeout=120)
    return process.returncode


def metrics_lines(run: Path) -> list[str]:
    return (run / "metrics.jsonl").read_text().splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda n: n.name)
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(number, uninterrupted, tmp_path):
    file = settings_file(tmp_path)
    status = start_and_signal(file, tmp_path / "run", number, after_line=5)
    assert status == (-signal.SIGKILL if number == signal.SIGKILL else 0)
    stopped_at = len([line for line in metrics(tmp_path / "run") if "loss" in line])
    assert stopped_at < 16, "the run was over before the signal came"
    run_pretraining(tmp_path, resume=True)
    assert_equal_runs(tmp_path / "run", uninterrupted)
    assert_equal_states(tmp_path / "run", uninterrupted)


@pytest.mark.slow
def test_a_signal_to_workers_too_ends_in_a_checkpoint(uninterrupted, tmp_path):
    """As Ctrl-C sends it."""
    file = settings_file(tmp_path, run={"num_workers": 2})
    assert start_and_signal(file, tmp_path / "run", signal.SIGINT, after_line=3, whole_group=True) == 0
    steps = [line["step"] for line in metrics(tmp_path / "run") if "loss" in line]
    assert steps[-1] < 16, "the run was over before the signal came"
    assert (tmp_path / "run" / "checkpoints" / f"step-{steps[-1]:08}").exists()
    python("scripts/pretrain.py", f"--config={file}", "--resume")
    assert_equal_runs(tmp_path / "run", uninterrupted)


def test_resuming_with_workers_is_the_same(uninterrupted, tmp_path):
    run_pretraining(tmp_path, run={"num_workers": 2})
    assert_equal_runs(tmp_path / "run", uninterrupted)


def test_no_process_reads_beside_a_cpu_unless_asked_for(tmp_path, monkeypatch):
    loaders, whole = [], pretraining._loader
    monkeypatch.setattr(pretraining, "_loader", lambda *made: loaders.append(made) or whole(*made))
    for run in ({"num_workers": None}, {"num_workers": 1}):
        run_pretraining(tmp_path, str(len(loaders)), run=run, stages=[{"epochs": 1}])
    assert [workers for _, _, workers, _ in loaders] == [0, 1]


def test_a_worker_that_dies_ends_the_run_with_the_reason(uninterrupted, tmp_path, monkeypatch):
    step, steps = Pretraining._optimizer_step, iter(range(99))

    def killing(run, pieces, stage):
        step(run, pieces, stage)
        if next(steps) == 4:
            multiprocessing.active_children()[0].kill()
            time.sleep(60)  # which ends when torch notices

    monkeypatch.setattr(Pretraining, "_optimizer_step", killing)
    with pytest.raises(ChildProcessError, match=r"DataLoader worker .* killed .*run\.num_workers.*--resume"):
        run_pretraining(tmp_path, run={"num_workers": 1})
    monkeypatch.undo()
    run_pretraining(tmp_path, resume=True)
    assert_equal_runs(tmp_path / "run", uninterrupted)


def test_a_stop_while_the_run_validates_ends_in_a_checkpoint(uninterrupted, tmp_path, monkeypatch):
    validate = Pretraining.validation_loss

    def stopped(run, stage):
        os.kill(os.getpid(), signal.SIGTERM)
        return validate(run, stage)

    monkeypatch.setattr(Pretraining, "validation_loss", stopped)
    run_pretraining(tmp_path)
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())[-1] == "step-00000004"
    monkeypatch.undo()
    run_pretraining(tmp_path, resume=True)
    assert_equal_runs(tmp_path / "run", uninterrupted)


def test_a_stop_while_the_run_saves_ends_in_the_whole_checkpoint(tmp_path, monkeypatch):
    save, saves = Pretraining._save_model, iter(range(99))

    def stopped(run, name, weights):
        if next(saves) == 0:  # once: another would end the process
            os.kill(os.getpid(), signal.SIGTERM)
        save(run, name, weights)

    monkeypatch.setattr(Pretraining, "_save_model", stopped)
    run = run_pretraining(tmp_path)
    kept = sorted((run / "checkpoints").iterdir())
    assert [(path.name, damage(path)) for path in kept] == [("step-00000003", None), ("step-00000004", None)]


@pytest.fixture
def streaming(tmp_path):
    """Settings of a run that streams twenty phantoms in row groups of three, four of them of patients held out."""
    images = [png(np.asarray(draw_phantom(index, 64).image)) for index in range(20)]
    source = write_shards(
        tmp_path / "shards", images, [[3] * 4, [3, 3, 2]], patient_name=[f"p{i // 2}" for i in range(20)]
    )
    data = {"source": str(source), "streaming": True, "shuffle_window": 6, "patient_column": "patient_name"}
    return {"data": {**SETTINGS["data"], **data}}


def test_a_streaming_run_resumes_to_the_last_bit(streaming, tmp_path, monkeypatch):
    """Stopped in the middle of an epoch, with a process that reads ahead of it, where the whole run has none."""
    settings = {**streaming, "run": {"num_workers": 2, "checkpoint_every": 9}, "stages": [{"epochs": 2}]}
    whole = run_pretraining(tmp_path, "whole", **{**settings, "run": {"checkpoint_every": 9}})
    step, steps = Pretraining._optimizer_step, iter(range(99))

    def stopped(run, pieces, stage):
        if next(steps) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        step(run, pieces, stage)

    monkeypatch.setattr(Pretraining, "_optimizer_step", stopped)
    run = run_pretraining(tmp_path, **settings)
    assert metrics(run)[-1]["step"] == 6
    monkeypatch.undo()
    run_pretraining(tmp_path, resume=True, **settings)
    assert_equal_runs(run, whole)
    assert_equal_states(run, whole)
    assert not (tmp_path / "cache").exists()
    shutil.move(tmp_path / "shards" / "train-00001.parquet", tmp_path / "shards" / "train-00002.parquet")
    with pytest.raises(ValueError, match=r"had other images: .*parquet_hash"):
        run_pretraining(tmp_path, resume=True, **settings)


def test_a_resumed_stream_keeps_the_list_of_what_was_skipped(streaming, tmp_path):
    """As a run of prepared images does; a run that starts anew begins it anew."""
    settings = {**streaming, "stages": [{"epochs": 1}]}
    skipped = tmp_path / "run" / "skipped.jsonl"
    for resume, kept in (False, False), (True, True):
        run = Pretraining(read_arguments(settings_file(tmp_path, **settings)), resume)
        assert skipped.exists() == kept
        run.train()
        skipped.write_text('{"source_id": "x", "reason": "torn"}\n')
    assert run.images._skips.count == 1


def test_what_a_streaming_run_cannot_read_ends_it_with_the_file(streaming, tmp_path):
    run = Pretraining(read_arguments(settings_file(tmp_path, **streaming, run={"num_workers": 1})))
    file = tmp_path / "shards" / "train-00001.parquet"
    file.write_bytes(b"\xff" * 500 + file.read_bytes()[500:])
    with pytest.raises(SourceError, match=r"^/.*train-00001\.parquet, row group 1 cannot be read"):
        run.train()


def test_patients_of_a_stream_are_looked_at_and_held_out_together(streaming, tmp_path):
    run = Pretraining(read_arguments(settings_file(tmp_path, **streaming)))
    assert len({index // 2 for index in run.holdout_indices.tolist()}) == 2 == len(run.holdout_indices) / 2
    assert sorted(run.validated.tolist()) == run.holdout_indices.tolist()
    some = pretraining._some(torch.arange(20), 3, run.images, run.arguments.data)
    assert len({index // 3 for index in some.tolist()}) == 1, "more row groups are read than are needed"
    with pytest.raises(PhiError, match=r"1 name\n  train: name column"):
        run_pretraining(tmp_path, "checked", **streaming, run={"check_phi": True})


def test_a_tracker_that_is_not_installed_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pretraining, "get_available_trackers", lambda: ["tensorboard"])
    with pytest.raises(ValueError, match=r"`run\.trackers`: wandb is not installed"):
        run_pretraining(tmp_path, run={"trackers": ["tensorboard", "wandb"]})


def test_a_finished_run_resumes_to_itself(uninterrupted, capsys):
    before = metrics(uninterrupted)
    pretrain(read_arguments(uninterrupted / "config.yaml"), resume=True)
    assert metrics(uninterrupted) == before
    assert "finished" in capsys.readouterr().out


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(streaming, tmp_path):
    """A LayerNorm trunk, launched by torchrun, whose images are streamed."""
    common = {**streaming, "model": {"backbone": BACKBONES["vit"]}, "training": {"batch_size": 8}}
    stages = [{"level": 0, "epochs": 1, "learning_rate": 0.05}, {"level": 2, "epochs": 1, "prune_threshold": 0.8}]
    run_pretraining(tmp_path, "one", **common, stages=stages)
    file = settings_file(tmp_path, "two", **common, stages=stages)
    torchrun(2, "scripts/pretrain.py", f"--config={file}")
    assert json.loads((tmp_path / "two" / "environment.json").read_text())["processes"] == 2
    one, two = (load_file(tmp_path / name / "last" / "model.safetensors") for name in ("one", "two"))
    for name in one:
        assert_close(two[name], one[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    for left, right in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert left["step"] == right["step"]
        assert left.keys() == right.keys()
        for key in left.keys() & {"loss", "validation_loss", "pruned_share", "positive_similarity"}:
            assert right[key] == pytest.approx(left[key], rel=1e-4, abs=1e-6)


def test_processes_make_the_key_views_of_one_another(tmp_path):
    """Put back in order, the keys of two processes' pieces are those that one process makes."""
    training = {"batch_size": 8, "gradient_accumulation_steps": 2}
    run = Pretraining(read_arguments(settings_file(tmp_path, training=training)))
    stage, run.progress.stage, run.progress.epoch, run.progress.seen_epochs = run.arguments.stages[1], 1, 1, 3

    def views(processes, rank):
        run.accelerator = SimpleNamespace(num_processes=processes, process_index=rank)
        run.progress.batch = 0
        pieces = list(_loader(run.images, run._batches(1), 0, run.device))
        assert len(pieces) == 4
        made = []
        for run.progress.batch, piece in ((0, 0), (0, 1), (1, 0), (1, 1)):
            indices, inputs = run._piece(*pieces[len(made)], stage, piece)
            assert len(indices) == len(inputs["key_pixel_values"]) == 4 // processes
            made.append(inputs)
        return made

    for alone, *both in zip(views(1, 0), views(2, 0), views(2, 1), strict=True):
        queries, keys = (torch.cat([v[f"{name}_pixel_values"] for v in both]) for name in ("query", "key"))
        order = both[0]["key_order"]
        assert_close(queries, alone["query_pixel_values"])
        assert_close(keys, alone["key_pixel_values"][order])
        assert "key_order" not in alone


def assert_nothing_waits(folder: Path, monkeypatch, **sections):
    """Take a step of each stage on torch's `meta` device, where reading a tensor is an error.

    What decides on the CPU, as what is drawn, may be read.
    """
    meta, make = torch.device("meta"), pretraining._accelerator

    def on_meta(arguments):
        accelerator = make(arguments)
        accelerator.state.device = meta
        return accelerator

    monkeypatch.setattr(pretraining, "_accelerator", on_meta)
    monkeypatch.setattr(torch, "autocast", lambda *given, **settings: nullcontext())  # which does not know meta
    training = {"max_grad_norm": 1.0, "gradient_accumulation_steps": 2, **sections.pop("training", {})}
    run = Pretraining(read_arguments(settings_file(folder, **sections, training=training)))
    run.guard, run.monitor = LossGuard(folder, 0), Monitor(run.accelerator, folder, 4, run.progress)
    for index, stage in enumerate(run.arguments.stages):
        run.progress.stage = index
        run.objective.begin_stage(run.eden, stage)
        run._optimizer_step(iter(_loader(run.images, run._batches(index), 0, meta)), stage)
        run.objective.after_step(run.eden, 0, 4)
    assert {tensor.device for tensor in run.eden.state_dict().values()} == {meta}
    with pytest.raises(NotImplementedError, match="meta"):  # the losses that were kept
        run.guard.check()


def test_nothing_in_a_step_waits_for_the_device(tmp_path, monkeypatch):
    assert_nothing_waits(tmp_path, monkeypatch, data={**SETTINGS["data"], "channels": 3})


def test_nothing_in_a_dense_step_waits_for_the_device(tmp_path, monkeypatch):
    settings = {"model": {"dense_dim": 6}, "points": {"size": 32, "count": 8}, "stages": POINTS}
    assert_nothing_waits(tmp_path, monkeypatch, **settings)


def test_accumulated_batches_make_one_step(tmp_path):
    """Without negatives that change between the pieces, two pieces give the gradient of the whole batch."""
    sections = {
        "model": {"backbone": BACKBONES["vit"], "memory_bank_size": 4000},
        "stages": [{"level": 0, "epochs": 1, "learning_rate": 0.05}],
    }
    run_pretraining(tmp_path, "whole", **sections, training={"batch_size": 16})
    run_pretraining(tmp_path, "pieces", **sections, training={"batch_size": 16, "gradient_accumulation_steps": 2})
    whole, pieces = (load_file(tmp_path / name / "last" / "model.safetensors") for name in ("whole", "pieces"))
    name = "eden.backbone.embeddings.patch_embeddings.projection.bias"  # starts at 0, so it is the step itself
    assert whole[name].norm() > 0.01
    assert (pieces[name] - whole[name]).norm() < 0.1 * whole[name].norm()
    assert metrics(tmp_path / "whole")[-1]["step"] == metrics(tmp_path / "pieces")[-1]["step"] == 1


@pytest.mark.parametrize(
    "training",
    [
        {"mixed_precision": "bf16", "channels_last": True},
        {"optimizer": "adamw", "max_grad_norm": 0.1},
        {"gradient_accumulation_steps": 2},
    ],
)
def test_training_options_run(training, tmp_path):
    run = run_pretraining(tmp_path, training=training, stages=[{"level": 2, "epochs": 1, "learning_rate": 0.01}])
    assert all(line["loss"] > 0 for line in metrics(run) if "loss" in line)


def test_a_run_whose_loss_is_not_finite_stops_and_goes_on_as_advised(tmp_path):
    """Whatever was kept of it is finite, though it was to be kept after every step."""
    stages = [{"level": 0, "epochs": 2, "learning_rate": 1e38}]
    often = {"checkpoint_every": 1}
    with pytest.raises(NonFiniteLossError, match=r"max_grad_norm, which may change with --resume"):
        run_pretraining(tmp_path, stages=stages, run=often)
    assert not list((tmp_path / "run").glob("checkpoints/step-*"))
    lower, clipped = [{**stages[0], "learning_rate": 0.01}], {"max_grad_norm": 1.0}
    run = run_pretraining(tmp_path, resume=True, stages=lower, training=clipped, run=often)
    assert metrics(run)[-1]["step"] == 8
    assert read_arguments(run / "config.yaml").stages[0].learning_rate == 0.01


def test_a_loss_that_is_not_finite_lists_its_images(tmp_path, monkeypatch):
    monkeypatch.setattr(LossGuard, "check_weights", lambda *given: None)
    with pytest.raises(NonFiniteLossError, match=r"nonfinite.json"):
        run_pretraining(tmp_path, stages=[{"level": 0, "epochs": 2, "learning_rate": 1e38}])
    assert len(json.loads((tmp_path / "run" / "nonfinite.json").read_text())["ids"]) == 4


def test_a_start_that_failed_on_a_setting_does_not_block_the_folder(tmp_path):
    stages = [{"level": 0, "epochs": 1, "learning_rate": 0.05}]
    with pytest.raises(ValueError, match=r"fewer than one batch"):
        run_pretraining(tmp_path, stages=stages, training={"batch_size": 64})
    run = run_pretraining(tmp_path, stages=stages, training={"batch_size": 8})
    assert metrics(run)[-1]["step"] == 2
    with pytest.raises(FileExistsError, match="--resume"):
        run_pretraining(tmp_path, stages=stages, training={"batch_size": 8})


def test_folders_are_guarded(uninterrupted, tmp_path):
    arguments = read_arguments(uninterrupted / "config.yaml")
    with pytest.raises(FileExistsError, match=r"--resume"):
        pretrain(arguments)
    arguments.training.batch_size = 8
    with pytest.raises(ValueError, match=r"training.batch_size: 4 -> 8"):
        pretrain(arguments, resume=True)
    elsewhere = PretrainArguments()
    elsewhere.run.output_dir = str(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        pretrain(elsewhere, resume=True)


@pytest.mark.parametrize("change", ["fewer", "more", "renamed"])
def test_a_run_does_not_go_on_with_other_images(change, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for index, row in enumerate(phantom_dataset(12, size=64)):
        row["image"].save(images / f"{index:02}.png")
    sections = {"data": {"source": str(images)}, "stages": [{"level": 0, "epochs": 2, "learning_rate": 0.05}]}
    run = run_pretraining(tmp_path, **sections)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    if change == "fewer":
        (images / "03.png").unlink()
    elif change == "more":
        shutil.copy(images / "03.png", images / "99.png")
    else:
        (images / "03.png").rename(images / "3.png")
    with pytest.raises(ValueError, match=r"had other images: .*image_list_hash"):
        run_pretraining(tmp_path, resume=True, **sections)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_held_out_images_have_a_seed_of_their_own(tmp_path):
    def held(seed, split_seed):
        sections = {"training": {"seed": seed}, "data": {"split_seed": split_seed}}
        file = settings_file(tmp_path, f"{seed}-{split_seed}", **sections)
        return Pretraining(read_arguments(file)).holdout_indices.tolist()

    assert held(0, 0) == held(1, 0) != held(0, 1)


def test_a_tracker_gets_the_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    run_pretraining(tmp_path, run={"trackers": ["tensorboard"]}, stages=[{"level": 0, "epochs": 1}])
    assert os.listdir(tmp_path / "run" / "pretrain")  # noqa: PTH208


def test_pretraining_goes_on_from_a_model(tmp_path):
    first = run_pretraining(tmp_path, "first")
    model = {"start": str(first / "last"), "teacher_momentum": 1.0, "contrastive_temperature": 0.5}
    second = run_pretraining(tmp_path, "second", model=model)
    before, after = (EdenForPreTraining.from_pretrained(run / "last") for run in (first, second))
    for name, tensor in before.teacher.named_parameters():
        assert torch.equal(tensor, after.teacher.get_parameter(name)), name  # of momentum 1, it stands still
    assert not torch.equal(before.projector.dense.weight, after.projector.dense.weight)
    assert after.config.contrastive_temperature == 0.5
    assert after.config.memory_bank_size == before.config.memory_bank_size


def test_pretraining_starts_from_a_trunk(tmp_path):
    trunk = EdenModel(tiny_config())
    trunk.save_pretrained(tmp_path / "trunk")
    settings = {"model": {"start": str(tmp_path / "trunk"), "teacher_momentum": 1.0}}
    run = run_pretraining(tmp_path, stages=[{"level": 0, "epochs": 1}], **settings)
    teacher = EdenForPreTraining.from_pretrained(run / "last").teacher.eden
    for name, tensor in trunk.named_parameters():
        assert torch.equal(tensor, teacher.get_parameter(name)), name  # of momentum 1, it stands still


@pytest.mark.parametrize("kind", [EdenForPreTraining, EdenModel])
def test_a_start_in_half_precision_is_trained_in_float32(kind, tmp_path):
    """As from the same weights in float32; the file's dtype is recorded."""
    torch.manual_seed(0)
    start = kind(tiny_config()).bfloat16()
    start.save_pretrained(tmp_path / "half")
    start.float().save_pretrained(tmp_path / "float")
    moved = {}
    for name in ("half", "float"):
        sections = {"model": {"start": str(tmp_path / name)}, "stages": [{"epochs": 1, "learning_rate": 0.05}]}
        run = run_pretraining(tmp_path, f"run-{name}", **sections)
        moved[name] = load_file(run / "last" / "model.safetensors")
        held = {"half": ["BF16"], "float": ["F32"]}[name]
        assert json.loads((run / "environment.json").read_text())["start_dtypes"] == held
        assert "dtype" not in read_arguments(run / "config.yaml").model.backbone
    assert {tensor.dtype for tensor in moved["half"].values() if tensor.is_floating_point()} == {torch.float32}
    assert [name for name in moved["float"] if not torch.equal(moved["half"][name], moved["float"][name])] == []


def test_a_process_without_held_out_images_leaves_the_validation_to_the_others(tmp_path):
    run = Pretraining(read_arguments(settings_file(tmp_path, stages=[{"level": 0, "epochs": 1}])))
    stage = run.arguments.stages[0]
    whole = run.validation_loss(stage)
    run.validated = run.validated[:0]
    summed = {}
    run.accelerator.reduce = lambda total: summed.setdefault("of this process", total) + torch.tensor([3.0, 2.0])
    assert run.validation_loss(stage) == 1.5
    assert summed["of this process"].tolist() == [0, 0]
    assert whole > 0


def test_a_batch_too_small_for_batchnorm_names_the_settings(tmp_path):
    with pytest.raises(ValueError, match=r"`training.batch_size` .*`views.size`"):
        run_pretraining(tmp_path, training={"batch_size": 1})


POINTS = [
    {"objective": "points", "epochs": 1, "learning_rate": 0.002, "optimizer": "adamw"},
    {"objective": "points", "epochs": 1, "learning_rate": 0.002, "optimizer": "adamw", "partner_weight": 0.5},
]


def test_the_dense_stage_follows_the_parts(tmp_path):
    stages = [{"level": 1, "epochs": 1}, *POINTS]
    run = run_pretraining(tmp_path, model={"dense_dim": 6}, points={"size": 32, "count": 8}, stages=stages)
    model = AutoModel.from_pretrained(run / "last").eval()
    dense = model(torch.rand(1, 3, 30, 45)).dense_embeddings
    assert dense.shape == (1, 6, 8, 12)
    assert torch.allclose(dense.norm(dim=1), torch.ones(1, 8, 12), atol=1e-5)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {row["level"] for row in rows} == {1, "points"}
    assert {row["stage"] for row in rows if "point_error" in row} == {1, 2}
    assert {row["stage"] for row in rows if "partner_error" in row} == {2}
    processor = json.loads((run / "last" / "preprocessor_config.json").read_text())
    assert processor["intensity"] == "per_image"
    assert processor["size"] == {"height": 32, "width": 32}


def test_a_dense_stage_resumes_to_the_last_bit(tmp_path):
    settings = {"model": {"dense_dim": 6}, "points": {"size": 32, "count": 8}, "stages": POINTS}
    whole = run_pretraining(tmp_path, "whole", **settings)
    resumed = run_pretraining(tmp_path, "resumed", run={"checkpoint_every": 1, "keep_checkpoints": 9}, **settings)
    for later in sorted((resumed / "checkpoints").iterdir())[1:]:
        shutil.rmtree(later)
    arguments = read_arguments(resumed / "config.yaml")
    pretrain(arguments, resume=True)
    first, second = (load_file(run / "last" / "model.safetensors") for run in (whole, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_dense_stage_needs_a_decoder(tmp_path):
    with pytest.raises(ArgumentError, match=r"`model\.dense_dim` must be given"):
        run_pretraining(tmp_path, stages=POINTS)


def test_validations_are_as_many_as_cost_little_and_take_images_from_all_over(tmp_path):
    training = {"batch_size": 4, "validate_every": None, "validation_images": 2}
    stages = [{"level": 0, "epochs": 5, "learning_rate": 0.05}]
    settings = {"training": training, "stages": stages, "data": {"source": "phantoms:20", "holdout_share": 0.2}}
    run = Pretraining(read_arguments(settings_file(tmp_path, **settings)))
    assert len(run.holdout_indices) == 4
    assert run.validated.tolist() == run.holdout_indices[::2].tolist()
    assert run.validate_every == 4  # a validation of 2 costs as much as training on 1, of 16 a fiftieth is 0.32
    folder = run.train()
    assert [line["epoch"] for line in metrics(folder) if "validation_loss" in line] == [3, 4]
