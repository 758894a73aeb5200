"""Every image encoder of transformers behind one shape, and those that cannot be a trunk refused by name."""

import re

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModel

from eden_hf import EdenBackbone, EdenConfig, EdenForSemanticSegmentation, EdenModel
from eden_hf.modeling_eden_trunk import as_map

from .launching import REPOSITORY
from .tiny import ENCODERS, STAGED_ENCODERS, TOKENS

#: Types of transformers that give no map of an image, and why.
REFUSED = {
    "vit_mae": "no grid",  # leaves out three of four patches at random
    "siglip2": "spatial_shapes",  # takes patches, not images
    "videomae": "unpack",
    "bert": "unpack",
    "blip": "no such encoder alone",
    "align": "no such encoder alone",
}


def config_of(model_type, **settings):
    return CONFIG_MAPPING[model_type](**{**ENCODERS.get(model_type, {}), **settings})


@pytest.mark.parametrize("model_type", ENCODERS)
def test_every_encoder_is_a_trunk(model_type):
    torch.manual_seed(0)
    model = EdenModel(EdenConfig(backbone_config=config_of(model_type))).eval()
    with torch.inference_mode():
        outputs = model(torch.rand(2, 3, 64, 64), output_hidden_states=True)
    channels, height, width = outputs.last_hidden_state.shape[1:]
    assert outputs.pooler_output.shape == (2, channels) == (2, model.num_features)
    assert height == width
    assert outputs.hidden_states


@pytest.mark.parametrize("model_type", ENCODERS)
def test_stages_are_there_or_missed_by_name(model_type):
    config = EdenConfig(backbone_config=config_of(model_type), decoder_hidden_size=4)
    if model_type in STAGED_ENCODERS:
        with torch.inference_mode():
            assert EdenForSemanticSegmentation(config).eval()(torch.rand(1, 3, 64, 64)).logits.shape[-2:] == (64, 64)
        return
    for model_class in (EdenBackbone, EdenForSemanticSegmentation):
        with pytest.raises(ValueError, match=config.backbone_config.model_type):
            model_class(config)


@pytest.mark.parametrize(("model_type", "reason"), REFUSED.items())
def test_what_cannot_be_a_trunk_is_refused_by_name(model_type, reason):
    tower = TOKENS if model_type in ("vit_mae", "videomae") else {}
    with pytest.raises(ValueError, match=f"model_type '{model_type}.*cannot be a trunk.*{reason}"):
        EdenModel(EdenConfig(backbone_config=config_of(model_type, **tower)))


@pytest.mark.parametrize(
    ("model_type", "before"),
    [
        ("vit", 1),
        ("deit", 2),
        ("yolos", 1),
        ("ijepa", 0),
        ("dinov2_with_registers", 3),
        ("dinov3_vit", 3),
        ("siglip", 0),
    ],
)
def test_the_map_is_of_patches_alone(model_type, before):
    """Class and register tokens, detection tokens after the patches: none of them takes part."""
    config = config_of(model_type)
    model = EdenModel(EdenConfig(backbone_config=config)).eval()
    stock = AutoModel.from_config(getattr(config, "vision_config", config)).eval()
    assert stock.load_state_dict(model.backbone.state_dict(), strict=False).unexpected_keys == []
    images = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        tokens = stock(images).last_hidden_state[:, before : before + 16]
        outputs = model(images)
    torch.testing.assert_close(outputs.last_hidden_state.flatten(2).mT, tokens)
    torch.testing.assert_close(outputs.pooler_output, tokens.mean(dim=1))


@pytest.mark.parametrize(("attention", "layers"), [("eager", 2), ("sdpa", 0)])
def test_attentions_are_those_of_the_stock_encoder(attention, layers):
    model, stock = EdenModel(EdenConfig(backbone_config=config_of("vit"))), AutoModel.from_config(config_of("vit"))
    for either in (model, stock):
        either.set_attn_implementation(attention)
        assert len(either(torch.rand(1, 3, 32, 32), output_attentions=True).attentions) == layers


def test_a_model_with_two_towers_gives_the_one_that_sees():
    config = EdenConfig(backbone_config={"model_type": "clip", "vision_config": TOKENS})
    assert config.backbone_config.model_type == "clip_vision_model"
    assert EdenConfig.from_dict(config.to_dict()).backbone_config.to_dict() == config.backbone_config.to_dict()


def test_tokens_that_are_no_grid_are_refused():
    with pytest.raises(ValueError, match=r"5 tokens of an image of \(32, 32\) pixels are no grid"):
        as_map(torch.zeros(1, 5, 16), torch.zeros(1, 3, 32, 32), config_of("vit"))


@pytest.mark.parametrize("model_type", ["pvt", "levit", "sam_vision_model", "hiera", "aimv2_vision_model"])
def test_a_trunk_of_one_size_names_it(model_type):
    more = {
        "hiera": {"image_size": [64, 64], "embed_dim": 8, "depths": [1] * 4, "num_heads": [1] * 4},
        "aimv2_vision_model": {**TOKENS, "image_size": 64},
    }
    model = EdenModel(EdenConfig(backbone_config=config_of(model_type, **more.get(model_type, {})))).eval()
    with torch.inference_mode():
        assert model(torch.rand(1, 3, 64, 64)).pooler_output.isfinite().all()
        with pytest.raises(ValueError, match=rf"'{model_type}', is made for images of 64 x 64 .* cannot take 96 x 96"):
            model(torch.rand(1, 3, 96, 96))


def test_other_errors_of_a_trunk_are_its_own():
    """An image of another size than `image_size` is not blamed for its channels."""
    model = EdenModel(EdenConfig(backbone_config=config_of("convnextv2"))).eval()
    with pytest.raises(ValueError, match=r"channel dimension of the pixel values match"):
        model(torch.rand(1, 1, 64, 64))


def test_a_default_focalnet_is_a_trunk():
    with torch.device("meta"):
        assert EdenModel(EdenConfig(backbone_config=CONFIG_MAPPING["focalnet"]())).num_features == 768


def test_the_table_of_the_documentation_has_every_type_in_its_row():
    rows = [
        line.split("|") for line in (REPOSITORY / "docs" / "trunks.md").read_text().splitlines() if "| yes" in line
    ]
    stages = {name: row[3].strip() == "yes" for row in rows for name in re.findall("`([^`]+)`", row[1])}
    assert stages == {name: name in STAGED_ENCODERS for name in ENCODERS}
