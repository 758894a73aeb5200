"""Adam-v2 in the loop that `test_pretraining.py` tests."""

import json
import shutil
from argparse import ArgumentError
from itertools import pairwise

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModel

from eden_hf import EdenForPreTraining, EdenModel, EdenV2ForPreTraining
from eden_hf.training.arguments import Stage, read_arguments
from eden_hf.training.pretraining import Pretraining, pretrain

from ..launching import python, torchrun
from ..tiny import BACKBONES, tiny_config, tiny_v2_config
from .test_pretraining import (
    assert_equal_runs,
    assert_equal_states,
    assert_nothing_waits,
    metrics,
    run_pretraining,
    settings_file,
)

MODEL = {
    "backbone": BACKBONES["resnet"], "localizability_hidden_size": 16, "localizability_bottleneck_size": 8,
    "localizability_outputs": 12, "teacher_momentum": 0.9,
}  # fmt: skip
SCHEDULES = {"learning_rate": 0.01, "warmup_epochs": 1, "final_weight_decay": 0.4, "frozen_epochs": 1}
STAGES = [
    {"objective": "localize", "epochs": [1, 1], **SCHEDULES},
    {"objective": "part_whole", "epochs": [1, 0, 1], **SCHEDULES},
]
TRAINING = {
    "batch_size": 4, "optimizer": "adamw", "max_grad_norm": 3.0, "clip_each_tensor": True, "validate_every": 1,
}  # fmt: skip


def sections(**changes) -> dict:
    """Settings of a tiny run of 16 steps."""
    made = {
        "model": MODEL, "stages": STAGES, "training": TRAINING,
        "views": {"size": 32, "crop_scale": [0.8, 1.0]}, "anchors": {"local_size": 32, "local_count": 2},
    }  # fmt: skip
    return {**made, **{k: {**made[k], **v} if isinstance(v, dict) and k in made else v for k, v in changes.items()}}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return run_pretraining(tmp_path_factory.mktemp("v2"), **sections())


def test_a_run_goes_through_both_stages_and_their_granularities(run):
    lines = [line for line in metrics(run) if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, 17))
    levels = ["localize 0", "localize 1", "part_whole 0", "part_whole 2"]
    assert [line["level"] for line in lines] == [level for level in levels for _ in range(4)]
    assert lines[0]["learning_rate"] == 0
    for line in lines:
        given = {name for name in line if name.endswith("_loss")}
        parts = {"composability_loss", "decomposability_loss"} if line["stage"] else set()
        assert given == {"localizability_loss"} | parts
        assert line["loss"] == pytest.approx(sum(line[name] for name in given), rel=1e-5)
        assert line["embedding_std"] > 0
    assert len([line for line in metrics(run) if "validation_loss" in line]) == 4


def test_what_it_leaves_is_the_teachers_trunk(run):
    model, info = EdenV2ForPreTraining.from_pretrained(run / "last", output_loading_info=True)
    assert not any(info.values())
    assert model.center.abs().max() > 0
    trunk, info = AutoModel.from_pretrained(run / "last", output_loading_info=True)
    assert not any(info.values())
    assert isinstance(trunk, EdenModel)
    assert_close(trunk.state_dict(), model.eden.state_dict())
    student = model.student.eden.state_dict()
    assert any(not torch.equal(tensor, student[name]) for name, tensor in trunk.named_parameters())


def test_nothing_in_a_step_waits_for_the_device(tmp_path, monkeypatch):
    assert_nothing_waits(tmp_path, monkeypatch, **sections())


def test_a_resumed_run_equals_an_uninterrupted_one(run, tmp_path):
    """From within an epoch of the second stage."""
    stopped = run_pretraining(tmp_path, **sections(run={"checkpoint_every": 1, "keep_checkpoints": 99}))
    for later in sorted((stopped / "checkpoints").iterdir())[11:]:
        shutil.rmtree(later)
    assert pretrain(read_arguments(stopped / "config.yaml"), resume=True) == stopped
    assert_equal_runs(stopped, run)
    assert_equal_states(stopped, run)


def test_the_last_layer_stands_still_at_first(tmp_path):
    """In the first epoch of a stage; with momentum 1 the teacher does throughout."""
    stages = [{"objective": "localize", "epochs": 2, "learning_rate": 0.01, "frozen_epochs": 1}]
    arguments = read_arguments(settings_file(tmp_path, **sections(stages=stages, model={"teacher_momentum": 1.0})))
    run = Pretraining(arguments)
    seen = []
    after_step = run.objective.after_step

    def record(model, step, steps):
        after_step(model, step, steps)
        seen.append((model.student.head.last_layer.weight.clone(), model.eden.state_dict(), model.center.clone()))

    run.objective.after_step = record
    start = run.eden.student.head.last_layer.weight.clone()
    teacher = {name: tensor.clone() for name, tensor in run.eden.eden.named_parameters()}
    run.train()
    assert [torch.equal(weight, start) for weight, *_ in seen] == [True] * 4 + [False] * 4
    assert all(torch.equal(seen[-1][1][name], tensor) for name, tensor in teacher.items())
    centers = [center for *_, center in seen]
    assert all(not torch.equal(one, two) for one, two in pairwise(centers))


def test_accumulated_batches_make_one_step(tmp_path):
    changes = {"model": {"backbone": BACKBONES["vit"]}, "stages": [{**STAGES[1], "epochs": 2, "warmup_epochs": 0}]}
    run_pretraining(tmp_path, "whole", **sections(**changes))
    run_pretraining(tmp_path, "pieces", **sections(**changes, training={"gradient_accumulation_steps": 2}))
    assert_alike(tmp_path / "pieces", tmp_path / "whole")


def assert_alike(one, two):
    """Runs that took the same steps but for the order of sums; AdamW magnifies it where a gradient is near zero."""
    for left, right in zip(metrics(one), metrics(two), strict=True):
        for key in left.keys() & {"loss", "validation_loss", "composability_loss", "decomposability_loss"}:
            assert left[key] == pytest.approx(right[key], rel=2e-3), (left["step"], key)
    made, expected = (load_file(run / "last" / "model.safetensors") for run in (one, two))
    assert_close(made["center"], expected["center"], rtol=1e-2, atol=1e-4)
    differences = torch.cat([(made[name] - expected[name]).abs().flatten() for name in made])
    assert differences.median() < 1e-5


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(tmp_path):
    """A LayerNorm trunk, launched by torchrun; branches that some stages leave out must not be waited for."""
    changes = {
        "model": {"backbone": BACKBONES["vit"]},
        "stages": [STAGES[0], {**STAGES[1], "epochs": 2, "decomposability_weight": 0.0}, {**STAGES[1], "epochs": 2}],
    }
    run_pretraining(tmp_path, "one", **sections(**changes))
    torchrun(2, "scripts/pretrain.py", f"--config={settings_file(tmp_path, 'two', **sections(**changes))}")
    assert json.loads((tmp_path / "two" / "environment.json").read_text())["processes"] == 2
    assert_alike(tmp_path / "two", tmp_path / "one")


@pytest.mark.parametrize(
    "changes",
    [
        {"training": {"mixed_precision": "bf16", "channels_last": True, "clip_each_tensor": False}},
        {"model": {"joined_parts": True, "decomposition_norm": "part"}},
        {"model": {"backbone": BACKBONES["swin"]}},
        {"views": {"resize_filter": "bicubic", "rotation_filter": "nearest", "blur_last": True}},
    ],
)
def test_options_run(changes, tmp_path):
    stages = [{**STAGES[1], "epochs": 2, "first_teacher_temperature": 0.06, "teacher_temperature_epochs": 1}]
    run = run_pretraining(tmp_path, **sections(**changes, stages=stages))
    assert all(line["loss"] > 0 for line in metrics(run) if "loss" in line)


def test_branches_left_out_are_not_trained(tmp_path):
    stages = [{**STAGES[1], "epochs": 2, "composability_weight": 0.0}]
    arguments = read_arguments(settings_file(tmp_path, **sections(stages=stages)))
    model = Pretraining(arguments).eden
    trained = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"student", "decompose"}


def test_the_second_stage_may_start_from_a_run_of_the_first(tmp_path):
    """Student, teacher and centre go on; sizes are those of the start."""
    torch.manual_seed(0)
    start = EdenV2ForPreTraining(tiny_v2_config())
    start.center.normal_()
    start.save_pretrained(tmp_path / "start")
    model = {"start": str(tmp_path / "start"), "localizability_outputs": 99, "student_temperature": 0.2}
    run = Pretraining(read_arguments(settings_file(tmp_path, **sections(model=model, stages=STAGES[1:]))))
    assert_close(run.eden.state_dict(), start.state_dict(), rtol=0, atol=0)
    assert run.eden.config.student_temperature == 0.2
    assert run.arguments.model.localizability_outputs == 12


@pytest.mark.parametrize("kind", [EdenModel, EdenForPreTraining])
def test_it_may_start_from_a_trunk_and_give_one_to_the_first_generation(kind, tmp_path, run):
    torch.manual_seed(0)
    start = kind(tiny_config())
    start.save_pretrained(tmp_path / "start")
    model = {"start": str(tmp_path / "start")}
    made = Pretraining(read_arguments(settings_file(tmp_path, **sections(model=model)))).eden
    trunk = start if kind is EdenModel else start.eden
    for eden in (made.eden, made.student.eden):
        assert_close(eden.state_dict(), trunk.state_dict(), rtol=0, atol=0)
    assert made.config.localizability_outputs == 12
    first = Pretraining(read_arguments(settings_file(tmp_path, "first", model={"start": str(run / "last")}))).eden
    teacher = EdenModel.from_pretrained(run / "last").state_dict()
    for eden in (first.eden, first.teacher.eden):
        assert_close(eden.state_dict(), teacher, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ([{"objective": "localize"}, {"objective": "parts"}], r"stages.1.objective.*one generation"),
        ([{"objective": "localize"}, {"objective": "points"}], r"stages.1.objective.*one generation"),
        ([{"objective": "parts", "epochs": [1, 2]}], r"stages.0.epochs.*one number"),
        ([{"objective": "localize", "epochs": [0, 0]}], r"stages.0.epochs.*at least 1"),
        ([{"objective": "localize", "epochs": []}], r"stages.0.epochs.*at least 1"),
        ([{"objective": "localize", "epochs": [1] * 7}], r"granularities.*64 pixels"),
        (
            [{"objective": "localize", "epochs": 5, "warmup_epochs": 5}],
            r"stages.0.warmup_epochs.*fewer than.* 5 epochs",
        ),
        ([{"objective": "localize", "level": 2}], r"stages.0.level"),
        ([{"objective": "part_whole", "prune_threshold": 0.8}], r"stages.0.prune_threshold"),
        ([{"objective": "part_whole", "composability_weight": -1}], r"stages.0.composability_weight"),
        ([{"objective": "localize", "first_teacher_temperature": 0.07}], r"teacher_temperature_epochs"),
    ],
)
def test_stages_that_do_not_fit_are_refused(stages, words, tmp_path):
    with pytest.raises((ValueError, ArgumentError), match=words):
        read_arguments(settings_file(tmp_path, **sections(stages=stages)))


def test_the_size_of_local_crops_is_tried_before_images_are_prepared(tmp_path, monkeypatch):
    monkeypatch.setattr(Pretraining, "_images", lambda *_: pytest.fail("images were prepared"))
    trunk = {"model_type": "convnext", "hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1]}
    settings = sections(model={"backbone": trunk}, anchors={"local_size": 16})
    with pytest.raises(ValueError, match=r"'convnext'.* cannot take 16 x 16"):
        Pretraining(read_arguments(settings_file(tmp_path, **settings)))


def test_its_views_are_shown(tmp_path):
    """A row a stage: three images, each with two pairs of views."""
    options = ["--recipe", "configs/adam_v2_resnet18_small.yaml", "--source", "phantoms:3"]
    python("scripts/show_views.py", *options, "--output", str(tmp_path / "views.png"))
    with Image.open(tmp_path / "views.png") as sheet:
        assert sheet.size == (15 * 104, 2 * 104)


def test_the_published_recipe(pytestconfig):
    configs = pytestconfig.rootpath / "configs"
    published = read_arguments(configs / "adam_v2_resnet50_chestxray14.yaml")
    common = {
        "learning_rate": 1e-3, "final_learning_rate": 1e-6, "warmup_epochs": 10, "weight_decay": 0.04,
        "final_weight_decay": 0.4, "frozen_epochs": 1,
    }  # fmt: skip
    assert published.stages == [
        Stage(objective="localize", epochs=[200, 200, 100], **common),
        Stage(objective="part_whole", epochs=[10, 90, 165], **common),
    ]
    convnext = read_arguments(configs / "adam_v2_convnext_base.yaml")
    assert convnext.model.to_config().backbone_config.model_type == "convnext"
    differences = convnext.differences(published)
    assert {name for name in differences if "backbone" not in name} == {"training.sync_batchnorm"}
