import re
from itertools import islice

import numpy as np
import pytest

from eden_hf import EdenModel
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
