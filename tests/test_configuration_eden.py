import inspect
from pathlib import Path

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, ResNetConfig

from eden_hf import EdenConfig, configuration_eden
from eden_hf.configuration_eden import BACKBONE_PRESETS

from .tiny import BACKBONES, tiny_config

OWN_FIELDS = set(EdenConfig.__annotations__) - {"model_type", "sub_configs"}


def test_defaults_are_the_papers():
    config = EdenConfig()
    assert config.backbone_config.hidden_sizes == [256, 512, 1024, 2048]
    settings = (
        config.projection_dim,
        config.memory_bank_size,
        config.contrastive_temperature,
        config.teacher_momentum,
    )
    assert settings == (128, 65536, 0.2, 0.999)
    assert config.prune_threshold is None


@pytest.mark.parametrize("preset", BACKBONE_PRESETS)
def test_presets_are_not_shared(preset):
    config = EdenConfig(backbone_config=preset)
    config.backbone_config.depths[0] = 99
    assert EdenConfig(backbone_config=preset).backbone_config.depths[0] != 99


@pytest.mark.parametrize("backbone", BACKBONES)
def test_json_round_trip(backbone, tmp_path):
    config = tiny_config(backbone, prune_threshold=0.8, memory_bank_init="empty")
    config.save_pretrained(tmp_path)
    for loaded in (EdenConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is EdenConfig
        assert loaded.to_dict() | {"_name_or_path": ""} == config.to_dict() | {"_name_or_path": ""}
        assert type(loaded.backbone_config) is type(config.backbone_config)


def test_a_backbone_may_be_an_object_a_dict_or_a_name():
    as_object = EdenConfig(backbone_config=ResNetConfig(depths=[2, 2, 2, 2], layer_type="basic"))
    as_dict = EdenConfig(backbone_config={"model_type": "resnet", "depths": [2, 2, 2, 2], "layer_type": "basic"})
    assert as_object.backbone_config.to_dict() == as_dict.backbone_config.to_dict()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"backbone_config": "resnet19"}, "resnet19.*resnet18"),
        ({"backbone_config": {"depths": [1]}}, "model_type"),
        ({"projection_dim": 0}, "projection_dim.*at least 1.*0"),
        ({"memory_bank_size": -1}, "memory_bank_size"),
        ({"memory_bank_init": "zeros"}, "memory_bank_init.*zeros"),
        ({"contrastive_temperature": 0.0}, "contrastive_temperature.*above 0"),
        ({"teacher_momentum": 1.5}, "teacher_momentum.*1.5"),
        ({"prune_threshold": 80}, "prune_threshold.*-1 and 1.*80"),
    ],
)
def test_nonsense_is_refused_by_name(settings, words):
    with pytest.raises((ValueError, StrictDataclassError), match=f"(?s){words}"):
        EdenConfig(**settings)


def test_every_field_is_read():
    """A field that no code reads is a promise nobody keeps."""
    code = inspect.getsource(configuration_eden._resolve_backbone)
    code += "".join(file.read_text() for file in Path(configuration_eden.__file__).parent.glob("modeling_eden*.py"))
    unread = [name for name in OWN_FIELDS if f"config.{name}" not in code]
    assert OWN_FIELDS
    assert unread == []


def test_stages_live_in_the_backbone_configuration(tmp_path):
    config = tiny_config(out_features=["stage1", "stage4"])
    assert config.backbone_config.out_features == ["stage1", "stage4"]
    config.save_pretrained(tmp_path)
    assert EdenConfig.from_pretrained(tmp_path).out_indices == [1, 4]


def test_a_trunks_configuration_is_copied():
    trunk = ResNetConfig()
    one, other = EdenConfig(backbone_config=trunk), EdenConfig(backbone_config=trunk)
    one.out_features = ["stage1", "stage4"]
    assert other.out_features == trunk.out_features == ["stage4"]


def test_stages_that_contradict_each_other_are_refused_as_those_of_a_resnet_are():
    for make in (tiny_config, ResNetConfig):
        with pytest.raises(Exception, match="out_features and out_indices"):
            make(out_features=["stage1"], out_indices=[4])
    assert tiny_config(out_features=["stage1"], out_indices=[1]).out_indices == [1]
