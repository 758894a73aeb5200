"""Trunks that others trained: student and teacher begin as them, and what they were is recorded."""

import json
import logging
import shutil
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoConfig, AutoModel, BertConfig, BertModel, BitImageProcessor, ViTModel

from eden_hf import EdenForPreTraining, EdenImageProcessor, EdenModel
from eden_hf.hub.repository import stage_model
from eden_hf.modeling_eden import EdenV2ForPreTraining
from eden_hf.training.arguments import ModelArguments, read_arguments
from eden_hf.training.finetune_arguments import StartArguments
from eden_hf.training.finetuning import load_start
from eden_hf.training.lineage import chain, license_of
from eden_hf.training.pretraining import Pretraining
from eden_hf.training.starts import as_started, started_model, trunks

from ..hub.conftest import write_card_yaml
from ..tiny import BACKBONES, tiny_config
from .test_pretraining import assert_equal_states, metrics, run_pretraining, settings_file

SMALL = {"projection_dim": 8, "memory_bank_size": 16}
SMALL_V2 = {"localizability_hidden_size": 8, "localizability_bottleneck_size": 4, "localizability_outputs": 6}


def stock_folder(folder, backbone="resnet", **settings):
    """A model of transformers' own, with weights as far from fresh as trained ones."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(**BACKBONES[backbone])
    config.id2label = {index: f"class {index}" for index in range(7)}
    stock = AutoModel.from_config(config)
    for weight in stock.parameters():
        torch.nn.init.kaiming_normal_(weight) if weight.ndim > 1 else torch.nn.init.uniform_(weight, 0.1, 2)
    stock.config.update(settings)
    stock.save_pretrained(folder)
    return stock.eval()


def started(folder, model_class=EdenForPreTraining, **settings):
    """The model of a run from `folder`, and its settings."""
    arguments = as_started(ModelArguments(start=str(folder), **SMALL, **SMALL_V2, **settings), model_class)
    return started_model(model_class, arguments).eval(), arguments


@pytest.mark.parametrize("model_class", [EdenForPreTraining, EdenV2ForPreTraining])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_student_and_teacher_begin_as_the_trunk_of_any_stock_model(backbone, model_class, tmp_path, caplog, capsys):
    stock = stock_folder(tmp_path, backbone)
    capsys.readouterr()
    caplog.clear()
    model, arguments = started(tmp_path, model_class)
    assert "MISSING" not in caplog.text + "".join(capsys.readouterr())
    student, teacher = trunks(model)
    assert_close(student.state_dict(), teacher.state_dict(), rtol=0, atol=0)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected, outputs = stock(images), student(images)
    if backbone in ("vit", "dinov2"):
        pooled = expected.last_hidden_state[:, 1:].mean(dim=1)
    else:
        pooled = expected.pooler_output.flatten(1)
    assert_close(outputs.pooler_output, pooled, rtol=1e-4, atol=1e-4)
    assert not {"id2label", "architectures", "out_features"} & arguments.backbone.keys()
    assert "num_channels" not in arguments.backbone or arguments.backbone["num_channels"] == 3


@pytest.mark.parametrize("backbone", ["vit", "dinov2"])
def test_a_vit_keeps_its_own_grid_of_positions_and_takes_views_of_other_sizes(backbone, tmp_path):
    stock = stock_folder(tmp_path, backbone)
    model, arguments = started(tmp_path)
    positions = model.eden.backbone.embeddings.position_embeddings
    assert arguments.backbone["image_size"] == 32
    assert torch.equal(positions, stock.embeddings.position_embeddings)  # 4 x 4 patches and the class token
    images = torch.rand(2, 3, 48, 24)
    with torch.no_grad():
        interpolated = {"interpolate_pos_encoding": True} if backbone == "vit" else {}
        expected = stock(images, **interpolated).last_hidden_state[:, 1:]
        assert_close(model.eden(images).last_hidden_state.flatten(2).mT, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["stock", "eden", "pretraining"])
def test_a_dense_decoder_and_the_norms_of_more_stages_begin_afresh_on_a_start_without(kind, tmp_path, caplog, capsys):
    """Swin normalises the map of each stage that it returns; one stage was returned, four feed the decoder."""
    if kind == "stock":
        stock_folder(tmp_path, "swin")
    else:
        {"eden": EdenModel, "pretraining": EdenForPreTraining}[kind](tiny_config("swin")).save_pretrained(tmp_path)
    capsys.readouterr()
    caplog.clear()
    model, _ = started(tmp_path, dense_dim=6)
    assert "MISSING" not in caplog.text + "".join(capsys.readouterr())
    student, teacher = trunks(model)
    assert_close(student.state_dict(), teacher.state_dict(), rtol=0, atol=0)
    assert student(torch.rand(1, 3, 32, 32)).dense_embeddings.shape == (1, 6, 8, 8)


def test_a_teacher_that_goes_on_is_not_taken_for_the_student(tmp_path):
    """Only what it lacks begins as the student's."""
    start = EdenForPreTraining(tiny_config())
    for parameter in start.teacher.eden.backbone.parameters():
        parameter.data += 1
    start.save_pretrained(tmp_path)
    model, _ = started(tmp_path, dense_dim=6)
    for name, tensor in start.teacher.eden.backbone.state_dict().items():
        assert torch.equal(model.teacher.eden.backbone.state_dict()[name], tensor), name
    assert_close(model.teacher.eden.dense_decoder.state_dict(), model.eden.dense_decoder.state_dict(), rtol=0, atol=0)


def test_a_run_from_a_stock_model_records_start_and_licence_in_lineage_and_card(tmp_path, caplog):
    stock = stock_folder(tmp_path / "stock")
    (tmp_path / "stock" / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# Stock\n")
    BitImageProcessor(image_mean=[0.5] * 3, image_std=[0.2] * 3).save_pretrained(tmp_path / "stock")
    run = run_pretraining(
        tmp_path, model={"start": str(tmp_path / "stock"), "teacher_momentum": 1.0}, stages=[{"level": 0, "epochs": 1}]
    )
    assert (
        "normalised by mean [0.5, 0.5, 0.5] and standard deviation [0.2, 0.2, 0.2], those of this run" in caplog.text
    )
    teacher = EdenForPreTraining.from_pretrained(run / "last").teacher.eden
    for name, tensor in stock.named_parameters():
        assert torch.equal(tensor, teacher.backbone.get_parameter(name)), name  # of momentum 1, it stands still
    assert json.loads((run / "environment.json").read_text())["start_license"] == "cc-by-nc-4.0"
    (line,) = [line for line in chain(run / "last") if "stock: no record" in line]
    assert line.endswith("licence cc-by-nc-4.0")
    (parent,) = json.loads((run / "last" / "lineage.json").read_text())["parents"]
    assert parent["license"] == "cc-by-nc-4.0"
    resumed = read_arguments(run / "config.yaml").model
    assert (resumed.start, resumed.backbone["hidden_sizes"]) == (str(tmp_path / "stock"), [8, 12, 16, 20])
    repository = stage_model(run, tmp_path / "repository", write_card_yaml(tmp_path))
    card = (repository / "README.md").read_text()
    assert "Started from stock, which is under the licence cc-by-nc-4.0." in card.replace("\n", " ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        ("# No metadata", None),
        ("---\nlicense: [\n---\n", None),
        ("---\ntags: [a]\n---\n", None),
        ("---\nlicense: mit\n---\n", "mit"),
        ("---\nlicense: [mit, apache-2.0]\n---\n", "mit, apache-2.0"),
        ("---\nlicense: other\nlicense_name: dinov3-license\n---\n", "other (dinov3-license)"),
    ],
)
def test_the_licence_is_that_of_the_card(text, expected, tmp_path):
    if text is not None:
        (tmp_path / "README.md").write_text(text)
    assert license_of(str(tmp_path)) == expected
    assert license_of("random:resnet18") is None


def test_a_start_with_the_intensities_of_the_run_is_not_warned_of(tmp_path, caplog):
    stock_folder(tmp_path / "stock")
    EdenImageProcessor(size={"height": 99, "width": 99}).save_pretrained(tmp_path / "stock")
    Pretraining(read_arguments(settings_file(tmp_path, model={"start": str(tmp_path / "stock")})))
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda folder: None, OSError, r"`model\.start`: there is no model at .* its `last` or `best`.*eden convert"),
        (
            lambda folder: (folder / "config.json").write_text("{}"),
            OSError,
            r"`model\.start`: there is no model at",
        ),
        (
            lambda folder: BertModel(
                BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
            ).save_pretrained(folder),
            ValueError,
            "model_type 'bert' cannot be a trunk",
        ),
        (lambda folder: stock_folder(folder).config.save_pretrained(folder / "bare"), OSError, "bare"),
        (
            lambda folder: ViTModel(AutoConfig.for_model(**BACKBONES["vit"], num_channels=1)).save_pretrained(folder),
            ValueError,
            r"`num_channels` must be 3 in a trunk to pretrain.*got 1",
        ),
    ],
)
def test_what_is_no_start_is_refused(make, error, message, tmp_path):
    make(tmp_path)
    bare = tmp_path / "bare"
    with pytest.raises(error, match=message):
        started(bare if bare.exists() else tmp_path)


def test_weights_that_are_missing_are_named(tmp_path):
    stock_folder(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if "stages.2" not in k}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(ValueError, match=r"lacks weights of its trunk: encoder\.stages\.2\..*in all\)"):
        started(tmp_path)


def spoil(folder, how):
    """Weights as they come from a wrong edit, a broken download or a run that failed."""
    file = folder / "model.safetensors"
    if how == "shape":
        config = json.loads((folder / "config.json").read_text())
        trunk = config.get("backbone_config", config)
        trunk["hidden_sizes"] = [8, 12, 16, 24]
        (folder / "config.json").write_text(json.dumps(config))
    elif how == "truncated":
        file.write_bytes(file.read_bytes()[:2000])
    else:
        weights = load_file(file)
        weights[next(name for name in weights if name.endswith("convolution.weight"))][:] = torch.nan
        save_file(weights, file, {"format": "pt"})


SPOILT = {
    "shape": (ValueError, r"weights of other shapes than its config\.json says: .*stages\.3.* \(20.*not \(24"),
    "truncated": (OSError, "cannot be loaded .*deserializing header"),
    "nan": (ValueError, "has weights that are NaN or infinite: .*convolution.weight"),
}


@pytest.mark.parametrize("how", SPOILT)
@pytest.mark.parametrize("kind", ["stock", "eden", "pretraining", "finetuning"])
def test_weights_that_cannot_be_taken_are_named_with_the_start(kind, how, tmp_path):
    if kind == "stock":
        stock_folder(tmp_path)
    else:
        (EdenForPreTraining if kind == "pretraining" else EdenModel)(tiny_config()).save_pretrained(tmp_path)
    EdenImageProcessor().save_pretrained(tmp_path)
    spoil(tmp_path, how)
    error, message = SPOILT[how]
    tuned = partial(load_start, StartArguments(name=str(tmp_path)), "single_label", ("a", "b"), seed=0)
    with pytest.raises(error, match=rf"{tmp_path.name}.*{message}"):
        tuned() if kind == "finetuning" else started(tmp_path)


def test_a_configuration_of_timm_says_what_to_do(tmp_path):
    (tmp_path / "config.json").write_text('{"architecture": "resnet18", "pretrained_cfg": {}}')
    with pytest.raises(OSError, match=r"`model\.start`: there is no model at .*eden convert.*timm"):
        started(tmp_path)


def test_a_dense_stage_on_a_start_without_points_asks_for_their_dimension(tmp_path):
    EdenModel(tiny_config()).save_pretrained(tmp_path / "start")
    settings = {"model": {"start": str(tmp_path / "start")}, "stages": [{"objective": "points", "epochs": 1}]}
    with pytest.raises(ValueError, match=r"`model\.dense_dim` must be given .*the start has no embeddings of points"):
        run_pretraining(tmp_path, **settings)


@pytest.mark.parametrize("kind", ["stock", "pretraining"])
def test_a_run_goes_on_bit_for_bit_when_its_start_is_gone(kind, tmp_path, monkeypatch):
    start = tmp_path / "start"
    stock_folder(start) if kind == "stock" else EdenForPreTraining(tiny_config()).save_pretrained(start)
    settings = {"model": {"start": str(start)}, "stages": [{"level": 0, "epochs": 2, "learning_rate": 0.05}]}
    whole = run_pretraining(tmp_path, "whole", **settings)
    with monkeypatch.context() as stopped:
        stopped.setattr(Pretraining, "_stops", lambda run: run.progress.step == 5)
        run_pretraining(tmp_path, "run", **settings)
    shutil.rmtree(start)
    resumed = run_pretraining(tmp_path, "run", resume=True, **settings)
    assert_equal_states(whole, resumed)
    with pytest.raises(OSError, match="there is no model at"):
        run_pretraining(tmp_path, "new", **settings)


def test_the_trunk_stands_still_in_its_frozen_epochs_and_moves_after(tmp_path):
    stock = stock_folder(tmp_path / "stock")
    stages = [{"level": 0, "epochs": 2, "learning_rate": 0.05, "frozen_trunk_epochs": 1, "optimizer": "adamw"}]
    run = Pretraining(read_arguments(settings_file(tmp_path, model={"start": str(tmp_path / "stock")}, stages=stages)))
    seen = []
    write = run._end_epoch

    def watch(stage):
        moved = [n for n, p in stock.named_parameters() if not torch.equal(p, run.eden.eden.backbone.get_parameter(n))]
        seen.append((len(moved), run.eden.projector.dense.weight.clone()))
        write(stage)

    before = run.eden.projector.dense.weight.clone()
    run._end_epoch = watch
    folder = run.train()
    assert seen[0][0] == 0
    assert not torch.equal(seen[0][1], before)
    assert seen[1][0] > 20
    assert len([line for line in metrics(folder) if "loss" in line]) == 8


def test_layers_near_the_stem_move_less_with_layer_decay(tmp_path):
    """The first step of SGD without weight decay is the gradient times the rate."""
    steps = {}
    for decay in (1.0, 0.5):
        stages = [{"level": 0, "epochs": 1, "learning_rate": 0.05, "weight_decay": 0.0}]
        training = {"batch_size": 16, "layer_decay": decay}
        run = Pretraining(read_arguments(settings_file(tmp_path, f"run-{decay}", stages=stages, training=training)))
        before = {name: parameter.clone() for name, parameter in run.eden.named_parameters()}
        run.train()
        steps[decay] = {name: parameter - before[name] for name, parameter in run.eden.named_parameters()}
    for name, share in {
        "projector.dense.weight": 1,
        "eden.backbone.encoder.stages.3.layers.0.shortcut.convolution.weight": 0.5,
        "eden.backbone.encoder.stages.0.layers.0.layer.0.convolution.weight": 0.0625,
        "eden.backbone.embedder.embedder.convolution.weight": 0.03125,
    }.items():
        assert_close(steps[0.5][name], share * steps[1.0][name], rtol=1e-3, atol=1e-7)
