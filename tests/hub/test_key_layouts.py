"""Names of others are those that their files have, and files are told by their keys."""

import json
from pathlib import Path

import pytest

from eden_hf import EdenModel
from eden_hf.hub.key_layouts import NAMINGS, find_layout, find_trunks

from ..tiny import tiny_config

GOLDEN = Path(__file__).parents[1] / "golden"

#: Of a timm ConvNeXt with a block in each stage; V2 has `grn` in place of `gamma`.
BLOCK = ["conv_dw.weight", "conv_dw.bias", "norm.weight", "norm.bias"]
MLP = ["mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias", "mlp.grn.weight", "mlp.grn.bias"]
AROUND = ["stem.0.weight", "stem.0.bias", "stem.1.weight", "stem.1.bias", "norm_pre.weight", "norm_pre.bias"]
DOWNSAMPLE = ["downsample.0.weight", "downsample.0.bias", "downsample.1.weight", "downsample.1.bias"]


def test_names_of_a_resnet50_are_the_recorded_ones():
    keys = json.loads((GOLDEN / "checkpoint_keys_resnet50.json").read_text())["resnet50"]
    recorded = {n.removeprefix("encoder_q."): s for n, s in keys.items() if n.startswith("encoder_q.")}
    trunk = {name: shape for name, shape in recorded.items() if not name.startswith("fc.")}
    naming = NAMINGS["resnet"]
    model = EdenModel.config_class(backbone_config=naming.configuration(trunk))
    state = EdenModel(model).backbone.state_dict()
    assert {theirs: list(state[name].shape) for name, theirs in naming.names(state).items()} == trunk


def test_names_of_a_convnextv2_are_timms():
    state = EdenModel(tiny_config("convnextv2")).backbone.state_dict()
    expected = {*AROUND, *(f"stages.{s}.blocks.0.{name}" for s in range(4) for name in BLOCK + MLP)}
    expected |= {f"stages.{s}.{name}" for s in (1, 2, 3) for name in DOWNSAMPLE}
    assert set(NAMINGS["convnextv2"].names(state).values()) == expected


TRUNK = ("conv1.weight", "layer1.0.conv1.weight")


@pytest.mark.parametrize(
    ("prefixes", "others", "layout"),
    [
        (("state_dict.module.encoder_q.", "state_dict.module.encoder_k."), ("best_loss",), "adam_v1"),
        (("module.encoder_q.",), ("epoch",), "moco_v2"),
        (("",), ("fc.0.weight",), "adam_v1"),
        (("state_dict.",), ("best_loss",), "torchvision"),
        (("",), ("fc.weight",), "torchvision"),
        (("student.backbone.", "teacher.backbone."), ("localizability_loss.center",), "adam_v2"),
        (("student.module.backbone.", "teacher.module.backbone."), ("dino_loss.center",), "dino"),
        (("encoder.",), ("decoder.blocks.0.weight",), "smp"),
    ],
)
def test_a_file_is_told_by_its_keys(prefixes, others, layout):
    names = [prefix + name for prefix in prefixes for name in TRUNK]
    trunks = find_trunks(names)
    assert set(trunks) == set(prefixes)
    assert find_layout([*names, *others], trunks).name == layout
