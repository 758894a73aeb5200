import json

import pytest
import torch
from transformers import AutoModel, AutoModelForPreTraining

from eden_hf import EdenForPreTraining, EdenV2ForPreTraining

from .tiny import BACKBONES, tiny_v2_config


def make(backbone="resnet", **settings):
    torch.manual_seed(0)
    return EdenV2ForPreTraining(tiny_v2_config(backbone, **settings))


def crops(batch=3, parts=True, side=32):
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.rand(*shape, 3, side, side, generator=generator)

    first = {"global_pixel_values": draw(2, batch), "local_pixel_values": draw(3, batch)}
    return first | ({"whole_pixel_values": draw(batch), "part_pixel_values": draw(4, batch)} if parts else {})


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("parts", [False, True])
def test_the_student_learns_and_the_teacher_does_not(backbone, parts):
    model = make(backbone).train()
    output = model(**crops(parts=parts))
    output.loss.backward()
    reached = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert reached == {"student"} | ({"compose", "decompose"} if parts else set())
    given = [output.localizability_loss, output.composability_loss, output.decomposability_loss]
    assert torch.equal(output.loss, sum(loss for loss in given if loss is not None))
    assert next(iter(output)) == "loss"


@pytest.mark.parametrize(("composability", "decomposability"), [(0, 1), (1, 0), (0, 0), (0.5, 2)])
def test_weights_leave_branches_out(composability, decomposability):
    model = make().train()
    output = model(**crops(), composability_weight=composability, decomposability_weight=decomposability)
    output.loss.backward()
    heads = {"compose": composability, "decompose": decomposability}
    for name, weight in heads.items():
        assert all((p.grad is None) == (not weight) for p in getattr(model, name).parameters())
    expected = output.localizability_loss
    expected = expected + (composability * output.composability_loss if composability else 0)
    expected = expected + (decomposability * output.decomposability_loss if decomposability else 0)
    torch.testing.assert_close(output.loss, expected)


def test_the_teacher_starts_as_the_student_and_follows_it():
    model = make(teacher_momentum=0.9)
    teacher, student = model.teacher_and_student_tensors(buffers=True)
    assert all(torch.equal(t, s) for t, s in zip(teacher, student, strict=True))
    before = [t.clone() for t in model.teacher_and_student_tensors()[0]]
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter.add_(1.0)
    model.update_teacher()
    for old, now in zip(before, model.teacher_and_student_tensors()[0], strict=True):
        torch.testing.assert_close(now, old + 0.1)
    moved = [t.clone() for t in model.teacher_and_student_tensors()[0]]
    model.update_teacher(momentum=1.0)
    assert all(torch.equal(t, m) for t, m in zip(model.teacher_and_student_tensors()[0], moved, strict=True))


def test_the_head_starts_as_published():
    head = make(localizability_hidden_size=64, localizability_bottleneck_size=256, localizability_outputs=4096).head
    for layer in (head.mlp[0], head.mlp[2], head.mlp[4]):
        assert layer.bias.abs().max() == 0
        assert layer.weight.abs().max() < 0.2
    assert head.mlp[4].weight.std() == pytest.approx(0.02, rel=0.05)
    assert head.last_layer.weight.abs().max() <= 1 / 16
    assert head.last_layer.weight.std() == pytest.approx(0.0361, rel=0.01)
    logits = head(torch.randn(5, head.mlp[0].in_features))
    assert logits.abs().max() <= 1 + 1e-6


def test_accumulated_batches_move_the_center_as_one():
    whole, pieces = make("vit").train(), make("vit").train()
    inputs = crops(batch=4)
    whole(**inputs)
    for half in (slice(0, 1), slice(1, 4)):
        pieces(**{name: value[half] if name.startswith("whole") else value[:, half] for name, value in inputs.items()})
    for model in (whole, pieces):
        assert model.center.abs().max() == 0
        model.update_teacher()
    torch.testing.assert_close(pieces.center, whole.center)
    assert whole.center.abs().max() > 0


def test_evaluation_moves_nothing():
    model = make().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model(**crops())
    model.update_teacher(momentum=1.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_joined_parts_are_the_same_without_batchnorm():
    inputs = crops()
    losses = [make("vit", joined_parts=joined)(**inputs).loss for joined in (False, True)]
    torch.testing.assert_close(*losses)


def test_a_folder_gives_itself_and_the_teachers_trunk(tmp_path):
    model = make().train()
    model(**crops())
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter.add_(1.0)
    model.update_teacher()
    model.save_pretrained(tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert auto_map["AutoModelForPreTraining"] == "modeling_eden.EdenV2ForPreTraining"
    loaded, info = AutoModelForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(loaded, EdenV2ForPreTraining)
    assert not any(info.values())
    assert not any(p.requires_grad for module in (loaded.eden, loaded.head) for p in module.parameters())
    assert torch.equal(loaded.center, model.center)
    assert loaded._center_rows.item() == 0
    trunk, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    for name, tensor in model.eden.state_dict().items():
        assert torch.equal(trunk.state_dict()[name], tensor)
    EdenForPreTraining(tiny_v2_config()).save_pretrained(tmp_path / "first")
    assert isinstance(AutoModelForPreTraining.from_pretrained(tmp_path / "first"), EdenForPreTraining)


def test_parts_without_wholes_are_refused():
    inputs = crops()
    with pytest.raises(ValueError, match="come with their wholes"):
        make()(**{name: value for name, value in inputs.items() if name != "whole_pixel_values"})
    with pytest.raises(ValueError, match="got 2 parts"):
        make()(**inputs | {"part_pixel_values": inputs["part_pixel_values"][:2]})


@pytest.mark.parametrize(
    ("setting", "value"),
    [("localizability_outputs", 0), ("student_temperature", 0.0), ("teacher_temperature", -1), ("center_momentum", 2)],
)
def test_settings_out_of_range_are_named(setting, value):
    with pytest.raises(Exception, match=setting):
        tiny_v2_config(**{setting: value})
