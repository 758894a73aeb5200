from pathlib import Path

import pytest
import torch

from eden_hf import EdenForPreTraining
from eden_hf.training.optimizers import decayed_names, make_optimizer, of_this_version

from ..tiny import BACKBONES, tiny_config


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


def test_a_state_of_other_groups_is_refused_with_the_reason():
    model = torch.nn.Linear(2, 2)
    old = torch.optim.AdamW(model.parameters())
    refused = pytest.raises(ValueError, match=r"step-1 was written by another version .*parameter group.*git_revision")
    with refused, of_this_version(Path("step-1")):
        make_optimizer(model, "adamw").load_state_dict(old.state_dict())
    with pytest.raises(ValueError, match=r"^else$"), of_this_version(Path("step-1")):
        raise ValueError("else")
