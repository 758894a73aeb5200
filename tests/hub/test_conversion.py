"""Checkpoints of others become Eden folders, key by key, and trunks go back under the names of others."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoModel, ResNetConfig, ResNetModel

from eden_hf import EdenConfig, EdenForPreTraining, EdenImageProcessor, EdenModel, EdenV2ForPreTraining
from eden_hf.hub.cards import EdenModelCardData, check_card
from eden_hf.hub.conversion import _flattened, _Mapper, convert_checkpoint, export_trunk
from eden_hf.hub.key_layouts import CheckpointError

from ..golden import recipe
from ..golden.reference import (
    golden_model,
    golden_v2_model,
    images,
    tensors_by_torchvision_name,
    v2_crops,
    v2_tensors_by_official_name,
)
from ..tiny import BACKBONES, tiny_config

GOLDEN = Path(__file__).parents[1] / "golden"
PIXELS = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def tiny_model():
    torch.manual_seed(0)
    return EdenForPreTraining(tiny_config("bottleneck")).eval()


def adam_checkpoint(model: EdenForPreTraining) -> dict:
    """As the authors' training writes it: names with `module.`, the bank [D, K], records of the loop."""
    state = {f"module.encoder_q.{n}": t for n, t in tensors_by_torchvision_name(model, "student").items()}
    state |= {f"module.encoder_k.{n}": t for n, t in tensors_by_torchvision_name(model, "teacher").items()}
    state |= {"module.queue": model.memory_bank.T.contiguous(), "module.queue_ptr": torch.tensor([7])}
    optimizer = {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.03}]}
    return {"epoch": 3, "arch": "resnet50", "state_dict": state, "optimizer": optimizer, "best_loss": 1.5}


def bare(model: EdenForPreTraining, prefix: str = "", projector: bool = False) -> dict[str, torch.Tensor]:
    state = tensors_by_torchvision_name(model, "student")
    return {prefix + name: tensor for name, tensor in state.items() if projector or not name.startswith("fc.")}


def embedded(model, pixels=PIXELS):
    with torch.inference_mode():
        return model(pixels).pooler_output


# the authors' files


@pytest.mark.parametrize("form", ["checkpoint", "best_checkpoint"])
def test_golden_features_of_an_official_file(tmp_path, form):
    """ResNet-18 of the recording, in both forms that the authors publish."""
    bank = torch.from_numpy(recipe.unit_columns("queue", (128, 256))).T.contiguous()
    model = golden_model("resnet18", bank)
    content = adam_checkpoint(model) if form == "checkpoint" else bare(model, projector=True)
    torch.save(content, tmp_path / "adam.pth")
    conversion = convert_checkpoint(str(tmp_path / "adam.pth"), str(tmp_path / "adam"))
    assert conversion.layout == "adam_v1"
    assert len(conversion.mapped) + len(conversion.dropped) == len(_leaves(content))
    expected = load_file(GOLDEN / "moco_resnet18.safetensors")
    output = EdenModel.from_pretrained(tmp_path / "adam").eval()(images("im_q")[:2])
    for name, actual in (
        ("pooled", output.pooler_output),
        ("layer4_mean_over_channels", output.last_hidden_state.mean(1)),
    ):
        golden = expected[f"r18.{name}"]
        assert_close(actual.detach(), golden, rtol=0, atol=1e-5 * float(golden.abs().max()))


def test_golden_features_of_a_resnet50_with_the_recorded_keys(tmp_path):
    keys = json.loads((GOLDEN / "checkpoint_keys_resnet50.json").read_text())["resnet50"]
    state = {}
    for name, shape in keys.items():
        branch, _, own = name.partition(".")
        if name == "queue":
            state[f"module.{name}"] = torch.nn.functional.normalize(torch.ones(shape), dim=0)
        elif name == "queue_ptr":
            state[f"module.{name}"] = torch.zeros(1, dtype=torch.int64)
        else:
            prefix = "k." if branch == "encoder_k" else ""
            state[f"module.{name}"] = torch.from_numpy(recipe.weight(own, tuple(shape), prefix=prefix))
    torch.save(
        {"epoch": 1, "arch": "resnet50", "state_dict": state, "optimizer": {}, "best_loss": 2.0}, tmp_path / "a.pth"
    )
    conversion = convert_checkpoint(str(tmp_path / "a.pth"), str(tmp_path / "adam"), pretraining=True)
    assert sorted(conversion.mapped.values()) == sorted(f"state_dict.{name}" for name in state)
    model = EdenForPreTraining.from_pretrained(tmp_path / "adam").eval()
    assert model.memory_bank.shape == (65536, 128)
    expected = load_file(GOLDEN / "moco_resnet18.safetensors")["r50.pooled"]
    pooled = EdenModel.from_pretrained(tmp_path / "adam").eval()(images("im_q")[:2]).pooler_output
    assert_close(pooled.detach(), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_everything_to_go_on_pretraining(tmp_path, tiny_model):
    torch.save(adam_checkpoint(tiny_model), tmp_path / "checkpoint.pth")
    conversion = convert_checkpoint(str(tmp_path / "checkpoint.pth"), str(tmp_path / "adam"), pretraining=True)
    loaded = EdenForPreTraining.from_pretrained(tmp_path / "adam")
    for name, tensor in tiny_model.state_dict().items():
        expected = torch.tensor([7]) if name == "bank_ptr" else tensor
        assert torch.equal(loaded.state_dict()[name].flatten(), expected.flatten()), name
    assert conversion.initial == []
    assert set(conversion.dropped) == {"epoch", "arch", "optimizer", "best_loss"}
    assert conversion.model == "EdenForPreTraining"


def test_the_card_of_an_official_file_says_its_licence(tmp_path, tiny_model):
    torch.save(adam_checkpoint(tiny_model), tmp_path / "checkpoint.pth")
    conversion = convert_checkpoint(str(tmp_path / "checkpoint.pth"), str(tmp_path / "adam"), model_id="user/adam")
    assert conversion.licence == "authors-non-commercial"
    declared = EdenModelCardData.load(tmp_path / "adam" / "card.yaml")
    assert (declared.license, declared.license_name) == ("other", "non-commercial, of the method's authors")
    assert check_card(tmp_path / "adam", model_id="user/adam") == []
    assert "no commercial use" in (tmp_path / "adam" / "README.md").read_text()
    report = json.loads((tmp_path / "adam" / "conversion.json").read_text())
    assert report["dropped"]["state_dict.module.queue"] == "memory bank, which a trunk has none of"
    assert report["dropped"]["state_dict.module.encoder_k.conv1.weight"] == "trunk of the other branch"
    assert f"{len(report['mapped'])} keys mapped" in str(conversion)
    EdenImageProcessor.from_pretrained(tmp_path / "adam")
    model = AutoModel.from_pretrained(tmp_path / "adam", trust_remote_code=True)
    assert torch.equal(embedded(model.eval()), embedded(tiny_model.eden))


# others' files


def dino(state):
    backbone = {f"module.backbone.{name}": tensor for name, tensor in state.items()}
    head = {"module.head.mlp.0.weight": torch.zeros(2, 2), "module.head.last_layer.weight_v": torch.zeros(2, 2)}
    other = {name: tensor * 0 for name, tensor in backbone.items()}
    return {"student": other | head, "teacher": backbone | head, "args": argparse.Namespace(lr=1.0), "epoch": 3}


def adam_v2(state):
    """As DINO's, with student, teacher and two heads a second time in `model`, and without `module.` elsewhere."""
    branches = {"teacher": state, "student": {name: tensor * 0 for name, tensor in state.items()}}
    content = {
        branch: {f"backbone.{name}": tensor for name, tensor in weights.items()}
        | {"head.mlp.0.weight": torch.zeros(2, 2), "head.last_layer.weight_g": torch.zeros(2, 1)}
        for branch, weights in branches.items()
    }
    model = {f"module.{branch}.{name}": t for branch, weights in content.items() for name, t in weights.items()}
    model |= {f"module.{head}.0.weight": torch.zeros(2, 2) for head in ("compose_head", "decompose_head")}
    other = {"localizability_loss": {"center": torch.zeros(1, 2)}, "optimizer": {}, "fp16_scaler": {}, "epoch": 3}
    return content | {"model": model} | other


def golden_v2_checkpoint(stage: str) -> dict:
    """As either of the authors' stages writes it, with the recording's weights and the records of its loop."""
    module = "module." if stage == "L" else ""
    content, weights = {}, golden_v2_model()
    for branch in ("student", "teacher"):
        state = v2_tensors_by_official_name(weights, branch)
        state["head.last_layer.weight_g"] = torch.ones(256, 1)
        content[branch] = {module + name: tensor for name, tensor in state.items() if "compose" not in name}
    if stage == "LCD":
        model = {f"module.{b}.{name}": tensor for b in content for name, tensor in content[b].items()}
        heads = {n: t for n, t in v2_tensors_by_official_name(weights, "student").items() if "compose" in n}
        content["model"] = model | {f"module.{name}": tensor for name, tensor in heads.items()}
    rates = [{"lr": np.float64(1e-3), "weight_decay": np.float32(0.04)}]
    content["optimizer"] = {"state": {}, "param_groups": rates}
    return content | {"localizability_loss": {"center": torch.full((1, 256), 0.5)}, "fp16_scaler": {}, "epoch": 3}


@pytest.mark.parametrize("stage", ["L", "LCD"])
def test_adam_v2_goes_on_as_it_was(tmp_path, stage):
    torch.save(golden_v2_checkpoint(stage), tmp_path / "checkpoint.pth")
    conversion = convert_checkpoint(str(tmp_path / "checkpoint.pth"), str(tmp_path / "out"), pretraining=True)
    assert (conversion.layout, conversion.model) == ("adam_v2", "EdenV2ForPreTraining")
    loaded = EdenV2ForPreTraining.from_pretrained(tmp_path / "out")
    assert torch.equal(loaded.center, torch.full((1, 256), 0.5))
    learned = loaded.state_dict()
    heads = {name for name in learned if name.startswith(("compose", "decompose"))}
    assert set(conversion.initial) == (heads if stage == "L" else set())
    for name, tensor in golden_v2_model().state_dict().items():
        if name != "center" and name not in conversion.initial:
            assert torch.equal(learned[name], tensor), name
    lengths = [name for name in conversion.dropped if name.endswith("weight_g") and not name.startswith("model.")]
    assert {conversion.dropped[name] for name in lengths} == {"lengths of the last layer's rows, which are 1"}
    convert_checkpoint(str(tmp_path / "checkpoint.pth"), str(tmp_path / "trunk"))
    images = v2_crops("f")["whole_pixel_values"]
    features = load_file(GOLDEN / "golden_v2.safetensors")["eval.teacher.features"]
    assert_close(embedded(EdenModel.from_pretrained(tmp_path / "trunk").eval(), images), features)


def test_the_recorded_keys_of_adam_v2_are_all_known(tmp_path):
    keys = json.loads((GOLDEN / "checkpoint_keys_adam_v2_resnet50.json").read_text())

    def filled(shapes, prefix=""):
        return {
            prefix + n: torch.ones(s).to(torch.int64 if "num_batches" in n else torch.float16)
            for n, s in shapes.items()
        }

    branches = {branch: filled(keys["student_and_teacher"]) for branch in ("student", "teacher")}
    model = {f"module.{b}.{name}": tensor for b, state in branches.items() for name, tensor in state.items()}
    for head in ("compose_head", "decompose_head"):
        model |= filled(keys[head], f"module.{head}.")
    assert len(model) == keys["model_key_count"]
    outputs = keys["student_and_teacher"]["head.last_layer.weight_v"][0]
    loss = {"center": torch.zeros(1, outputs)}
    mapper = _Mapper(dict(_flattened({**branches, "model": model, "localizability_loss": loss})), ["epoch"], None)
    made, state, mapped = mapper.pretraining()
    assert (mapper.layout.name, outputs) == ("adam_v2", 65536)
    assert made.state_dict().keys() == state.keys()
    assert made.config.backbone_config.depths == [3, 4, 6, 3]
    assert mapper.dropped(set(mapped.values()))


def test_rows_of_other_lengths_are_refused(tmp_path):
    content = golden_v2_checkpoint("L")
    content["teacher"]["module.head.last_layer.weight_g"] *= 2
    torch.save(content, tmp_path / "checkpoint.pth")
    with pytest.raises(CheckpointError, match=r"teacher.*weight_g is not 1 throughout"):
        convert_checkpoint(str(tmp_path / "checkpoint.pth"), str(tmp_path / "out"), pretraining=True)


OTHERS = {
    "torchvision": lambda state: state | {"fc.weight": torch.zeros(4, 20), "fc.bias": torch.zeros(4)},
    "moco_v2": lambda state: {
        "state_dict": {f"module.encoder_q.{name}": tensor for name, tensor in state.items()}
        | {"module.encoder_q.fc.0.weight": torch.zeros(2, 2), "module.encoder_q.fc.2.bias": torch.zeros(2)},
        "epoch": 200,
    },
    "dino": dino,
    "adam_v2": adam_v2,
    "smp": lambda state: (
        {f"encoder.{name}": tensor for name, tensor in state.items()}
        | {"decoder.blocks.0.conv1.0.weight": torch.zeros(2, 2)}
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("backbone", ["resnet", "bottleneck"])
def test_resnets_of_others(tmp_path, kind, backbone):
    torch.manual_seed(0)
    model = EdenForPreTraining(tiny_config(backbone)).eval()
    torch.save(OTHERS[kind](bare(model)), tmp_path / "file.pth")
    said = kind if kind == "torchvision" else None  # its weights alone do not tell where the stride is
    conversion = convert_checkpoint(str(tmp_path / "file.pth"), str(tmp_path / "out"), said)
    assert conversion.layout == kind
    assert conversion.initial == []
    assert (conversion.licence is not None) == (kind == "adam_v2")
    assert torch.equal(embedded(EdenModel.from_pretrained(tmp_path / "out").eval()), embedded(model.eden))


def test_bottlenecks_of_unknown_origin_are_refused_and_small_blocks_are_not(tmp_path, tiny_model):
    """With the stride in the 1x1 convolution, the same weights are another function."""
    settings = tiny_model.config.backbone_config.to_dict()
    both = ({"downsample_in_bottleneck": where} for where in (True, False))
    one, three = (ResNetModel(ResNetConfig(**settings | where)) for where in both)
    one.load_state_dict(three.state_dict())
    assert not torch.allclose(embedded(one.eval()), embedded(three.eval()), rtol=0.1)
    torch.save(bare(tiny_model), tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=r"3x3 convolution, .* or in the 1x1, .*by `layout` \(torchvision\)"):
        convert_checkpoint(str(tmp_path / "file.pth"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    torch.save(bare(EdenForPreTraining(tiny_config("resnet"))), tmp_path / "file.pth")
    convert_checkpoint(str(tmp_path / "file.pth"), str(tmp_path / "out"))


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module._orig_mod."])
def test_a_compiled_model_converts_as_the_one_that_was_compiled(tmp_path, tiny_model, prefix):
    torch.save({"state_dict": bare(tiny_model, prefix)}, tmp_path / "file.pth")
    conversion = convert_checkpoint(str(tmp_path / "file.pth"), str(tmp_path / "out"), "torchvision")
    assert conversion.initial == []
    assert torch.equal(embedded(EdenModel.from_pretrained(tmp_path / "out").eval()), embedded(tiny_model.eden))


def test_the_best_loss_of_others_does_not_make_a_file_the_authors(tmp_path, tiny_model):
    torch.save({"state_dict": bare(tiny_model), "best_loss": 0.5}, tmp_path / "file.pth")
    conversion = convert_checkpoint(str(tmp_path / "file.pth"), str(tmp_path / "out"), "torchvision", license="mit")
    assert (conversion.layout, conversion.licence) == ("torchvision", "mit")
    assert conversion.dropped == {"best_loss": "record of the training run"}


def test_a_head_like_the_authors_is_a_classifier_if_the_layout_says_so(tmp_path, tiny_model):
    torch.save(bare(tiny_model, projector=True), tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=r"best_checkpoint\.pth is known \(authors-non-commercial\): leave out"):
        convert_checkpoint(str(tmp_path / "file.pth"), str(tmp_path / "out"), license="mit")
    conversion = convert_checkpoint(
        str(tmp_path / "file.pth"), str(tmp_path / "out"), layout="torchvision", license="mit"
    )
    assert conversion.dropped.keys() == {"fc.0.weight", "fc.0.bias", "fc.2.weight", "fc.2.bias"}


def test_the_student_of_dino_if_asked(tmp_path, tiny_model):
    torch.save(dino(bare(tiny_model)), tmp_path / "file.pth")
    convert_checkpoint(str(tmp_path / "file.pth"), str(tmp_path / "out"), branch="student")
    assert not EdenModel.from_pretrained(tmp_path / "out").backbone.embedder.embedder.convolution.weight.any()


def test_files_without_counts_of_batches_and_in_half_precision(tmp_path, tiny_model):
    state = {n: t.half() for n, t in bare(tiny_model).items() if not n.endswith("num_batches_tracked")}
    save_file(state, tmp_path / "old.safetensors")
    convert_checkpoint(str(tmp_path / "old.safetensors"), str(tmp_path / "out"), "torchvision")
    loaded = EdenModel.from_pretrained(tmp_path / "out").eval()
    assert loaded.dtype == torch.float32
    assert_close(embedded(loaded), embedded(tiny_model.eden), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("family", ["convnext", "convnextv2"])
@pytest.mark.parametrize("norm", ["norm_pre", "head.norm"])
def test_convnext_of_timm_and_back(tmp_path, family, norm):
    torch.manual_seed(0)
    model = EdenModel(EdenConfig(backbone_config=BACKBONES["convnextv2"] | {"model_type": family})).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(tmp_path / "model")
    exported = load_file(export_trunk(str(tmp_path / "model"), str(tmp_path / "timm.safetensors"), "timm"))
    assert exported["stages.1.blocks.0.conv_dw.weight"].shape == (12, 1, 7, 7)
    renamed = {name.replace("norm_pre", norm): tensor for name, tensor in exported.items()}
    save_file(renamed | {"head.fc.weight": torch.zeros(3, 20)}, tmp_path / "file.safetensors")
    conversion = convert_checkpoint(str(tmp_path / "file.safetensors"), str(tmp_path / "out"))
    assert conversion.layout == "timm"
    assert bool(conversion.notes) == (norm == "head.norm")
    assert torch.equal(embedded(EdenModel.from_pretrained(tmp_path / "out").eval()), embedded(model))


@pytest.mark.parametrize(
    ("layout", "backbone"),
    [("torchvision", "resnet18"), ("timm", "resnet18"), ("smp", "resnet18"), ("timm", "resnet50")],
)
def test_a_trunk_goes_there_and_back_bit_for_bit(tmp_path, layout, backbone):
    torch.manual_seed(0)
    model = EdenForPreTraining(EdenConfig(backbone_config=backbone, memory_bank_size=8))
    model.save_pretrained(tmp_path / "model")
    file = export_trunk(str(tmp_path / "model"), str(tmp_path / "trunk.safetensors"), layout)
    expected = bare(model, prefix="encoder." if layout == "smp" else "")
    exported = load_file(file)
    assert exported.keys() == expected.keys()
    assert all(torch.equal(exported[name], tensor) for name, tensor in expected.items())
    convert_checkpoint(str(file), str(tmp_path / "again"), layout)
    state = EdenModel.from_pretrained(tmp_path / "again").state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.eden.state_dict().items())


# errors


class Code:
    def __reduce__(self):
        return print, ("never run",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Code(), r"file\.pth holds more than weights \(print\).*save its state dict alone"),
        ({"weights": torch.nn.ReLU()}, r"file\.pth holds more than weights \(torch\.nn\.modules\.activation\.ReLU\)"),
        ({"epoch": 3}, r"file\.pth holds no named tensors"),
        ([torch.zeros(2)], r"file\.pth holds no named tensors, but list"),
        ({"some.weight": torch.zeros(2)}, r"no trunk of a known layout among the keys some\.weight"),
    ],
)
def test_files_that_are_no_checkpoint(tmp_path, content, message, capsys):
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=message):
        convert_checkpoint(str(tmp_path / "file.pth"), str(tmp_path / "out"))
    assert "never run" not in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_files_that_cannot_be_read(tmp_path):
    torch.save({"weight": torch.zeros(5000)}, tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    contents = {"text.pth": b"no checkpoint", "hello.pth": b"hello", "text.safetensors": b"no checkpoint"}
    contents |= {"empty.pth": b"", "half.pth": whole[: len(whole) // 2], "tenth.pth": whole[: len(whole) // 10]}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"{name} is no checkpoint, or is cut short") as caught:
            convert_checkpoint(str(tmp_path / name), str(tmp_path / "out"))
        assert "weights_only" not in str(caught.value)  # torch's own message says to read it without
    with pytest.raises(CheckpointError, match=r"absent\.pth is missing"):
        convert_checkpoint(str(tmp_path / "absent.pth"), str(tmp_path / "out"))


def change(name, value):
    return lambda state: state | {name: value}


def without(name):
    return lambda state: {key: tensor for key, tensor in state.items() if key != name}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (without("layer2.0.bn1.bias"), r"1 keys are missing: layer2\.0\.bn1\.bias"),
        (
            change("layer2.0.bn1.bais", torch.zeros(3)),
            r"layer2\.0\.bn1\.bais \(the nearest known one is layer2\.0\.bn1\.bias",
        ),
        (change("layer2.0.bn1.bias", torch.zeros(5)), r"layer2\.0\.bn1\.bias has the shape \[5\], not \[3\]"),
        (
            change("conv1.weight", torch.full((8, 3, 7, 7), torch.nan)),
            r"conv1\.weight holds values that are not finite",
        ),
        (
            change("conv1.weight", torch.zeros((8, 3, 7, 7), dtype=torch.int8)),
            r"conv1\.weight is of torch\.int8, not of torch\.float32",
        ),
        (
            change("conv1.weight", torch.zeros((8, 3, 7, 7), dtype=torch.complex64)),
            r"conv1\.weight is of torch\.complex64, not of torch\.float32",
        ),
        (
            without("layer1.0.conv3.weight"),
            r"the architecture cannot be read off the weights: layer1\.0\.conv3\.weight is missing",
        ),
        (change("queue", torch.zeros(3)), "1 keys are unknown in a file of torchvision"),
    ],
)
def test_keys_that_do_not_fit(tmp_path, tiny_model, changed, message):
    torch.save(changed(bare(tiny_model)), tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=rf"file\.pth: .*{message}"):
        convert_checkpoint(str(tmp_path / "file.pth"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_what_the_file_does_not_hold(tmp_path, tiny_model):
    file, out = str(tmp_path / "file.pth"), str(tmp_path / "out")
    torch.save(bare(tiny_model), file)
    with pytest.raises(CheckpointError, match="without memory bank gives a trunk, no pretraining model"):
        convert_checkpoint(file, out, pretraining=True)
    with pytest.raises(CheckpointError, match=r"there is no teacher in this file of torchvision.*, but student"):
        convert_checkpoint(file, out, branch="teacher")
    with pytest.raises(CheckpointError, match="the keys are not those of the layout 'dino'"):
        convert_checkpoint(file, out, layout="dino")
    with pytest.raises(CheckpointError, match=r"`layout` is one of adam_v1, moco_v2, .*, got 'keras'"):
        convert_checkpoint(file, out, layout="keras")
    torch.save(bare(tiny_model) | bare(tiny_model, prefix="module."), file)
    with pytest.raises(CheckpointError, match=r"several trunks may be the student"):
        convert_checkpoint(file, out)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept").touch()
    for taken in (tmp_path / "out", tmp_path / "out" / "kept"):
        with pytest.raises(CheckpointError, match=f"{taken.name} is not empty: choose another output"):
            convert_checkpoint(file, str(taken))


def test_a_bank_that_is_none(tmp_path, tiny_model):
    content = adam_checkpoint(tiny_model)
    content["state_dict"]["module.queue"] = torch.zeros(5)
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=r"module\.queue has the shape \[5\], not \[D, K\]"):
        convert_checkpoint(str(tmp_path / "file.pth"), str(tmp_path / "out"), pretraining=True)
    del content["state_dict"]["module.queue"]  # its pointer stays
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match="without memory bank gives a trunk, no pretraining model"):
        convert_checkpoint(str(tmp_path / "file.pth"), str(tmp_path / "out"), pretraining=True)


def test_trunks_that_others_do_not_have(tmp_path):
    EdenModel(tiny_config("dinov2")).save_pretrained(tmp_path / "dinov2")
    EdenModel(tiny_config("convnextv2")).save_pretrained(tmp_path / "convnext")
    for name, settings in (
        ("gelu", {"hidden_act": "gelu"}),
        ("narrow", {"embedding_size": 64}),
        ("three", {"embedding_size": 64, "hidden_sizes": [64, 128, 256], "depths": [1, 1, 1]}),
    ):
        EdenModel(EdenConfig(backbone_config=BACKBONES["resnet"] | settings)).save_pretrained(tmp_path / name)
    output = str(tmp_path / "trunk.safetensors")
    for model, layout, message in (
        ("dinov2", "timm", "timm has no dinov2; it has resnet, convnext, convnextv2"),
        ("convnext", "torchvision", "torchvision has no convnextv2; it has resnet"),
        ("gelu", "torchvision", "torchvision has no resnet with hidden_act='gelu', but 'relu'; ONNX and torch.export"),
        ("narrow", "smp", r"smp has no resnet with hidden_sizes=\[8, 12, 16, 20\], but \[64, 128, 256, 512\]"),
        ("three", "timm", r"timm has no resnet with hidden_sizes=\[64, 128, 256\]"),
        ("gelu", "keras", "`layout` is one of torchvision, timm, smp, got 'keras'"),
    ):
        with pytest.raises(CheckpointError, match=message):
            export_trunk(str(tmp_path / model), output, layout)
    with pytest.raises(CheckpointError, match=r"name a file that is not there yet, ending in \.safetensors"):
        export_trunk(str(tmp_path / "gelu"), str(tmp_path / "trunk.pth"))


def test_folders_without_a_trunk_to_export(tmp_path):
    output = str(tmp_path / "trunk.safetensors")
    with pytest.raises(CheckpointError, match=r"absent is no folder or Hub id of a model: it has no config\.json"):
        export_trunk(str(tmp_path / "absent"), output)
    ResNetModel(ResNetConfig(**BACKBONES["resnet"])).save_pretrained(tmp_path / "resnet")
    with pytest.raises(CheckpointError, match="resnet is a model of the type 'resnet', not 'eden'"):
        export_trunk(str(tmp_path / "resnet"), output)
    EdenModel(tiny_config()).save_pretrained(tmp_path / "model")
    save_file({"other": torch.zeros(2)}, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model lacks weights of the trunk: backbone\."):
        export_trunk(str(tmp_path / "model"), output)


def _leaves(content: dict) -> list[str]:
    """Names that a report must tell of: of the optimiser the whole alone."""
    names = []
    for name, value in content.items():
        names += [f"{name}.{key}" for key in value] if name == "state_dict" else [name]
    return names
