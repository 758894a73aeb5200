import re
from pathlib import Path

import pytest
import torch

from eden_hf import EdenConfig, EdenForPreTraining, EdenModel
from eden_hf.training.optimizers import decayed_names, layer_scales, make_optimizer, of_this_version

from ..tiny import BACKBONES, ENCODERS, tiny_config


@pytest.mark.parametrize("backbone", BACKBONES)
def test_maps_alone_are_decayed(backbone):
    """Of every trunk: no bias, no norm, no scale of a layer, no token and no position."""
    model = EdenForPreTraining(tiny_config(backbone))
    parameters, decayed = dict(model.named_parameters()), decayed_names(model)
    assert set(decayed) <= parameters.keys()
    words = ("bias", "norm", "token", "position", "layer_scale", "lambda", "grn")
    assert [name for name in decayed if any(word in name for word in words)] == []
    left_alone = parameters.keys() - set(decayed)
    maps = [name for name in left_alone if parameters[name].ndim > 1]
    allowed = ("token", "position", "grn")
    assert [name for name in maps if not any(word in name for word in allowed)] == []


def test_adamw_has_two_groups_and_sgd_one_as_published():
    model = EdenForPreTraining(tiny_config("vit"))
    maps, others = make_optimizer(model, "adamw").param_groups
    assert (maps["decayed"], others["decayed"], others["weight_decay"]) == (True, False, 0)
    assert {id(p) for p in maps["params"]} == {id(model.get_parameter(n)) for n in decayed_names(model)} & {
        id(p) for p in model.parameters() if p.requires_grad
    }
    rates = [
        (group["lr"], group["weight_decay"])
        for group in make_optimizer(model, "adamw", lr=0.1, weight_decay=0.2).param_groups
    ]
    assert rates == [(0.1, 0.2), (0.1, 0.0)]
    (published,) = make_optimizer(model, "sgd").param_groups
    count = sum(parameter.requires_grad for parameter in model.parameters())
    assert len(published["params"]) == len(maps["params"]) + len(others["params"]) == count


@pytest.mark.parametrize(
    ("backbone", "stem", "first", "last"),
    [
        ("resnet", "embedder.", "encoder.stages.0.", "encoder.stages.3."),
        ("convnextv2", "embeddings.", "encoder.stages.0.", "encoder.stages.3."),
        ("swin", "embeddings.", "encoder.layers.0.", "encoder.layers.2."),
        ("vit", "embeddings.", "layers.0.", "layers.1."),
        ("dinov2", "embeddings.", "encoder.layer.0.", "encoder.layer.1."),
    ],
)
def test_the_rate_falls_layer_by_layer_towards_the_stem(backbone, stem, first, last):
    model = EdenForPreTraining(tiny_config(backbone))
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    scales = layer_scales(names, 0.5)
    layers = {"vit": 2, "dinov2": 2, "swin": 3}.get(backbone, 4)
    for start, power in ((stem, layers + 1), (first, layers), (last, 1)):
        own = {scales[name] for name in names if re.match(rf"eden\.backbone\.(\w+\.)?{start}", name)}
        assert own == {0.5**power}, start
    assert scales["projector.dense.weight"] == 1
    assert set(layer_scales(names, 1.0).values()) == {1}


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_groups_of_layers_hold_every_parameter_once(name):
    model = EdenForPreTraining(tiny_config("swin"))
    groups = make_optimizer(model, name, layer_decay=0.5).param_groups
    held = [id(parameter) for group in groups for parameter in group["params"]]
    trained = [id(parameter) for parameter in model.parameters() if parameter.requires_grad]
    assert sorted(held) == sorted(trained)
    assert {group["scale"] for group in groups} == {1, 0.5, 0.25, 0.125, 0.0625}


def test_a_state_of_other_groups_is_refused_with_the_reason():
    model = torch.nn.Linear(2, 2)
    old = torch.optim.AdamW(model.parameters())
    refused = pytest.raises(ValueError, match=r"step-1 was written by another version .*parameter group.*git_revision")
    with refused, of_this_version(Path("step-1")):
        make_optimizer(model, "adamw").load_state_dict(old.state_dict())
    with pytest.raises(ValueError, match=r"^else$"), of_this_version(Path("step-1")):
        raise ValueError("else")


def test_a_numbered_stem_is_not_taken_for_the_first_stages():
    """SwiftFormer's: 0, 1, 3, 4 are convolutions and norms of the stem, and 0 to 6 the network's parts."""
    trunk = EdenModel(EdenConfig(backbone_config={"model_type": "swiftformer", **ENCODERS["swiftformer"]}))
    scales = layer_scales([name for name, _ in trunk.named_parameters()], 0.5)
    assert {value for name, value in scales.items() if "patch_embed" in name} == {0.5**8}
    for layer in range(7):
        own = {value for name, value in scales.items() if f".network.{layer}." in name}
        assert own == {0.5 ** (7 - layer)}, layer
