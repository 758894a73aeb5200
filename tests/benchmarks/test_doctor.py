import re
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest

from eden_hf import EdenModel
from eden_hf.benchmarks import doctor
from eden_hf.benchmarks.doctor import StageCost, examine
from eden_hf.data.errors import SourceError
from eden_hf.data.view_arguments import PointArguments, ViewArguments
from eden_hf.training.arguments import (
    DataArguments,
    ModelArguments,
    PretrainArguments,
    RunArguments,
    Stage,
    TrainingArguments,
)

from ..data.shards import png, write_shards
from ..tiny import tiny_config


def settings(tmp_path, **data):
    return PretrainArguments(
        model=ModelArguments(backbone=tiny_config().backbone_config.to_dict(), memory_bank_size=64, dense_dim=8),
        data=DataArguments(**{"source": "phantoms:8", "side": 64, "cache_dir": str(tmp_path), **data}),
        views=ViewArguments(size=32),
        points=PointArguments(size=32, count=8),
        stages=[Stage(epochs=3), Stage(objective="points", epochs=2, batch_size=2, optimizer="adamw")],
        training=TrainingArguments(batch_size=4),
        run=RunArguments(output_dir=str(tmp_path / "run")),
    )


def test_a_run_is_told_before_it_starts(tmp_path):
    told = "\n".join(examine(settings(tmp_path, holdout_share=0.25)))
    assert "images: 8;" in told
    assert "stage parts level 0: 3 steps of" in told  # 6 of 8 images, 4 a step, 3 epochs
    assert "stage points: 6 steps of" in told  # 2 a step, 2 epochs
    assert "GB free" in told
    assert "what binds: " in told
    assert not list(tmp_path.iterdir())  # nothing is written


def test_a_run_of_adam_v2_is_told_too(tmp_path):
    run = settings(tmp_path)
    run.stages = [Stage(objective="localize", epochs=[2, 1]), Stage(objective="part_whole", epochs=[0, 1])]
    run.anchors.local_size, run.anchors.local_count = 16, 2
    run.model.localizability_hidden_size = run.model.localizability_outputs = 16
    told = "\n".join(examine(run))
    assert "stage localize: 3 steps of" in told  # 7 of 8 images, 4 a step, 3 epochs
    assert "stage part_whole: 1 steps of" in told


def test_a_stream_keeps_nothing_on_the_disk(tmp_path):
    shards = write_shards(tmp_path / "shards", [png(np.zeros((40, 40), np.uint8))] * 12, [[5, 5], [2]])
    told = list(islice(examine(settings(tmp_path, source=str(shards), streaming=True)), 5))
    assert re.fullmatch(r"images: 12; read and decoded in each epoch, \d+ a second and core", told[3])
    assert told[4].startswith("disk: 0.00 GB of prepared images, ")


def test_reading_counts_where_it_is_done_in_each_epoch(tmp_path, monkeypatch):
    shards = write_shards(tmp_path / "shards", [png(np.zeros((40, 40), np.uint8))] * 12, [[12]])
    monkeypatch.setattr(doctor, "_timed", lambda call, device: 0.001)
    monkeypatch.setattr(doctor, "processors", lambda: 2)
    monkeypatch.setattr(doctor.time, "process_time", iter(range(0, 99, 12)).__next__)  # a second an image
    run = settings(tmp_path, source=str(shards), streaming=True)
    monkeypatch.setattr(doctor.torch, "get_num_threads", lambda: 1)
    for workers, seconds in (None, 4), (1, 2):  # of a batch of 4, alone or beside the other core
        run.run.num_workers = workers
        told = "\n".join(examine(run))
        assert f" s of views and {seconds}.000 s of reading: " in told
        assert "what binds: reading images, 100% of the time\nchange: a larger --run.num_workers" in told


def test_a_disk_that_holds_all_has_room_for_all(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "_gigabytes", lambda arguments: (0.0, 2.0))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10e9))
    run = settings(tmp_path)  # of 3 steps and 6, so of two checkpoints, both kept
    kept, cache, _ = doctor._disk(run, 10**6, [3, 6])
    assert kept == "disk: 4.10 GB of prepared images, 4.00 GB of checkpoints and models, 4.00 GB while one is written"
    assert cache == f"  {tmp_path}: 10 GB free"
    run.run.checkpoint_every = 3
    kept, cache, _ = doctor._disk(run, 10**6, [3, 6])
    assert kept.endswith("4.00 GB of checkpoints and models, 6.00 GB while one is written")
    assert cache.endswith("10 GB free, TOO LITTLE for 10.1")
    (tmp_path / "file").touch()
    run.run.output_dir = str(tmp_path / "file" / "run")
    *_, output = doctor._disk(run, 0, [3, 6])
    assert output.endswith("file/run: 10 GB free, MAY NOT BE WRITTEN TO: choose another")


def test_what_a_run_would_refuse_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"there are 3 training images, fewer than one batch"):
        list(examine(settings(tmp_path, source="phantoms:4")))
    with pytest.raises(ValueError, match="too few to hold out"):
        list(examine(settings(tmp_path, source="phantoms:1")))


def test_a_source_that_is_not_there(tmp_path):
    with pytest.raises(SourceError, match="nothing at"):
        list(examine(settings(tmp_path, source="./no/where")))


def test_the_cost_of_a_stage():
    assert StageCost("x", steps=10, step_seconds=0.3, view_seconds=0.2).seconds == pytest.approx(5)


def test_a_run_from_a_start_is_of_its_trunk(tmp_path):
    EdenModel(tiny_config(dense_dim=8)).save_pretrained(tmp_path / "start")
    run = settings(tmp_path)
    run.model = ModelArguments(start=str(tmp_path / "start"), memory_bank_size=64)  # its own backbone is a ResNet-50
    kept = re.search(r"([\d.]+) GB of checkpoints", "\n".join(examine(run)))
    assert float(kept[1]) < 0.1
