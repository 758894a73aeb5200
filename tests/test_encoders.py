import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import nn
from torch.testing import assert_close
from transformers import AutoConfig, AutoModel

from eden_hf import EdenConfig, EdenImageProcessor, EdenModel, encoders
from eden_hf.encoders import Encoder, check_encoders, embed, load_encoder, processed, with_norms_folded
from eden_hf.model_names import adapted_processor
from tests.tiny import BACKBONES, ENCODERS, tiny_config

GREY = Image.fromarray(np.arange(64 * 48, dtype=np.uint32).reshape(48, 64).astype(np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("eden")
    torch.manual_seed(0)
    EdenModel(tiny_config()).save_pretrained(path)
    EdenImageProcessor(size={"height": 32, "width": 32}, intensity="per_image").save_pretrained(path)
    return str(path)


def test_an_eden_folder_is_loaded_with_its_processor_and_a_revision_of_its_weights(folder):
    encoder = load_encoder(folder)
    assert encoder.name == folder
    assert encoder.revision.startswith("sha256 ")
    assert encoder.pixel_values([GREY, GREY]).shape == (2, 3, 32, 32)
    assert not encoder.model.training


def test_fresh_weights_keep_architecture_and_processor_and_follow_the_seed(folder):
    one, same, other = (load_encoder(f"random:{folder}", seed=seed) for seed in (1, 1, 2))
    assert one.processor.intensity == "per_image"
    assert torch.equal(embed(one, [GREY]), embed(same, [GREY]))
    assert not torch.allclose(embed(one, [GREY]), embed(other, [GREY]))
    assert not torch.allclose(embed(one, [GREY]), embed(load_encoder(folder), [GREY]))


def test_fresh_weights_leave_the_global_random_state_alone(folder):
    before = torch.random.get_rng_state()
    load_encoder(f"random:{folder}", seed=3)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_preset_gives_fresh_weights_only(folder):
    assert load_encoder("random:resnet18-half", size=32).pixel_values([GREY]).shape == (1, 3, 32, 32)
    with pytest.raises(ValueError, match="random:resnet18-half"):
        load_encoder("resnet18-half")


@pytest.mark.parametrize("kind", ["resnet", "regnet", "efficientnet", "mobilenet_v2", "dense"])
def test_folded_norms_change_nothing_but_the_time(kind):
    torch.manual_seed(0)
    if kind == "dense":
        model = EdenModel(tiny_config(dense_dim=8))
    else:
        model = AutoModel.from_config(AutoConfig.for_model(kind, **ENCODERS[kind]))
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    images = torch.randn(2, 3, 64, 64)
    folded = with_norms_folded(model.eval())
    with torch.inference_mode():
        assert_close(folded(images)[0], model(images)[0], rtol=1e-3, atol=1e-4)
    left = sum(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert left < len(norms) or folded is model
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def test_a_model_without_batchnorm_is_not_copied_to_fold_it():
    model = EdenModel(tiny_config("vit"))
    assert with_norms_folded(model) is model


def test_size_and_intensity_may_be_set_for_every_encoder(folder):
    encoder = load_encoder(folder, size=48, intensity="fixed")
    pixel_values = encoder.pixel_values([GREY])
    assert pixel_values.shape == (1, 3, 48, 48)
    assert encoder.processor.intensity == "fixed"


def test_stock_models_and_their_processors_are_taken(tmp_path):
    from transformers import BitImageProcessorPil, Dinov2Config

    config = Dinov2Config(**{k: v for k, v in BACKBONES["dinov2"].items() if k != "model_type"})
    AutoModel.from_config(config).save_pretrained(tmp_path)
    BitImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path))
    assert embed(encoder, [GREY]).shape == (1, 16)
    assert load_encoder(str(tmp_path), size=48).pixel_values([GREY]).shape == (1, 3, 48, 48)
    standardised = load_encoder(str(tmp_path), intensity="per_image").pixel_values([GREY])
    assert standardised.shape == (1, 3, 32, 32)
    assert standardised.mean().abs() < 1e-5


@pytest.mark.parametrize("name", BACKBONES)
def test_feature_maps_go_from_fine_to_coarse(name):
    encoder = Encoder(EdenModel(tiny_config(name)), EdenImageProcessor(size={"height": 32, "width": 32}))
    with torch.inference_mode():
        maps = encoder.feature_maps(torch.zeros(2, 3, 32, 32))
    sides = [features.shape[-1] for features in maps]
    assert len(maps) >= 2
    assert sides == sorted(sides, reverse=True)
    assert all(features.ndim == 4 and len(features) == 2 for features in maps)
    assert maps[-1].shape[1] == encoder.model.num_features


def test_feature_maps_of_a_resnet_are_one_a_stage(model, processor):
    with torch.inference_mode():
        maps = Encoder(model, processor).feature_maps(torch.zeros(1, 3, 64, 64))
    assert [features.shape[1] for features in maps] == [8, 12, 16, 20]


def test_token_maps_stand_in_their_places():
    """A bright patch at the top right shows at the top right of the map."""
    torch.manual_seed(0)
    encoder = Encoder(EdenModel(EdenConfig(backbone_config=BACKBONES["vit"])), EdenImageProcessor())
    dark, bright = torch.zeros(1, 3, 32, 48), torch.zeros(1, 3, 32, 48)
    bright[..., :8, 40:] = 3
    with torch.inference_mode():
        change = encoder.feature_maps(bright)[0] - encoder.feature_maps(dark)[0]
    assert change.shape[-2:] == (4, 6)
    assert divmod(int(change.norm(dim=1)[0].argmax()), 6) == (0, 5)


@pytest.mark.parametrize("stock", ["ConvNextImageProcessorPil", "CLIPImageProcessorPil", "ViTImageProcessorPil"])
def test_every_stock_processor_makes_squares_of_the_size_asked_for(stock):
    processor = getattr(transformers, stock)()
    assert processed(processor, [GREY], size=48).shape == (1, 3, 48, 48)
    assert processed(adapted_processor(processor, 64), [GREY]).shape == (1, 3, 64, 64)


def test_encoders_are_checked_before_the_first_is_measured(folder, tmp_path, monkeypatch):
    check_encoders([folder, f"random:{folder}"], size=48, intensity="fixed")
    with pytest.raises(OSError, match="no-such-folder"):
        check_encoders([folder, str(tmp_path / "no-such-folder")])
    monkeypatch.setattr(encoders, "adapted_processor", lambda processor, *_: processor)  # which ignores `size`
    with pytest.raises(ValueError, match=rf"{folder} makes images of .*32.* not of `size` 48"):
        check_encoders([folder], size=48)


def test_a_processor_that_does_not_normalise_stays_so():
    stock = transformers.ViTImageProcessorPil(size={"height": 32, "width": 32}, do_normalize=False)
    ours = adapted_processor(stock, intensity="fixed")
    assert isinstance(ours, EdenImageProcessor)
    torch.testing.assert_close(processed(ours, [GREY]), processed(stock, [GREY]), atol=0.01, rtol=0)
    assert processed(adapted_processor(stock, intensity="per_image"), [GREY]).mean().abs() < 1e-5
