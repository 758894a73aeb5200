"""The per-pixel classifier on phantoms, whose masks are exact."""

import numpy as np
import pytest
import torch
from PIL import Image

from eden_hf import EdenImageProcessor, EdenModel
from eden_hf.data.phantoms import draw_phantom
from eden_hf.encoders import Encoder
from eden_hf.matching import PixelClassifier, Reference
from eden_hf.matching.pixel_classifier import ClassifierArguments, _loss, grey_patches
from tests.tiny import tiny_config

QUICK = ClassifierArguments(copies=3, steps=120, pixels=1200)


def dense_encoder(**settings) -> Encoder:
    torch.manual_seed(0)
    model = EdenModel(tiny_config(dense_dim=16)).eval()
    return Encoder(model, EdenImageProcessor(size={"height": 64, "width": 64}, intensity="per_image", **settings))


def reference(seed: int = 1, size: int = 128, names=("right_lung", "left_lung")) -> Reference:
    phantom = draw_phantom(seed, size)
    masks = {name: phantom.masks[name] for name in names}
    return Reference(Image.fromarray(phantom.image), f"phantom-{seed}", masks=masks)


def dice(found, true) -> float:
    return 2 * (found & true).sum() / (found.sum() + true.sum())


@pytest.fixture(scope="module")
def fitted():
    return PixelClassifier(dense_encoder(), QUICK).fit([reference()])


def test_structures_of_another_patient_are_found(fitted):
    other = reference(seed=2, size=160)
    found = fitted.predict(other.image)
    assert list(found) == ["right_lung", "left_lung"]
    for name, mask in found.items():
        assert mask.shape == (160, 160)
        assert mask.dtype == bool
        assert dice(mask, other.masks[name]) > 0.6  # by random weights


def test_probabilities_are_what_masks_are_made_of(fitted):
    image = reference(seed=2).image
    probabilities, masks = fitted.probabilities(image), fitted.predict(image)
    for name, probability in probabilities.items():
        assert probability.dtype == np.float32
        assert 0 <= probability.min() < probability.max() <= 1
        np.testing.assert_array_equal(masks[name], probability > 0.5)


def test_the_same_seed_gives_the_same_masks_and_leaves_global_draws_alone(fitted):
    image = reference(seed=2).image
    state = torch.random.get_rng_state()
    again = PixelClassifier(dense_encoder(), QUICK).fit([reference()])
    torch.manual_seed(0)
    np.testing.assert_array_equal(again.probabilities(image)["left_lung"], fitted.probabilities(image)["left_lung"])
    del state


@pytest.mark.parametrize("aspect_ratio", ["resize", "pad"])
def test_masks_lie_on_the_image_whatever_its_shape(aspect_ratio):
    example = reference()
    wide = Image.new("L", (200, 128))
    wide.paste(example.image, (36, 0))
    masks = {name: np.pad(mask, ((0, 0), (36, 36))) for name, mask in example.masks.items()}
    encoder = dense_encoder(aspect_ratio=aspect_ratio)
    found = PixelClassifier(encoder, QUICK).fit([Reference(wide, masks=masks)]).predict(wide)
    for name, mask in found.items():
        assert mask.shape == (128, 200)
        assert dice(mask, masks[name]) > 0.8


def test_a_mask_that_is_missing_is_unknown_not_empty():
    both = [reference(1, names=["right_lung"]), reference(3, names=["left_lung"])]
    found = PixelClassifier(dense_encoder(), QUICK).fit(both).predict(both[0].image)
    assert list(found) == ["right_lung", "left_lung"]
    true = draw_phantom(1, 128).masks["left_lung"]
    assert dice(found["left_lung"], true) > 0.5  # though the image it is found in was a reference without it


def test_patches_hold_the_neighbours_of_a_pixel():
    ramp = Image.fromarray(np.arange(64 * 40, dtype=np.float32).reshape(64, 40) // 20).convert("L")
    patches = grey_patches(ramp, 64)
    assert patches.shape == (52, 64, 40)
    centre, right, below = patches[12], patches[13], patches[17]
    torch.testing.assert_close(right[5:-5, 5:-5], centre[5:-5, 6:-4])
    torch.testing.assert_close(below[5:-5, 5:-5], centre[6:-4, 5:-5])
    brighter = Image.fromarray(np.asarray(ramp) // 2 + 60)
    torch.testing.assert_close(grey_patches(brighter, 64), patches, atol=0.1, rtol=0)  # exposure does not count
    assert grey_patches(Image.new("L", (30, 20), 7), 64).abs().max() == 0


def test_the_loss_passes_over_what_is_unknown():
    logits = torch.tensor([[0.3, -1.0], [2.0, 0.5], [-0.7, 1.5]])
    inside = torch.tensor([[1.0, 0.0], [1.0, torch.nan], [0.0, 1.0]])
    changed = logits.clone()
    changed[1, 1] = -9.0
    assert torch.isfinite(_loss(logits, inside))
    assert _loss(logits, inside) == _loss(changed, inside)


def test_any_encoder_will_do(encoder):
    example = reference(names=["right_lung"])
    found = PixelClassifier(encoder, QUICK).fit([example]).predict(example.image)
    assert dice(found["right_lung"], example.masks["right_lung"]) > 0.5


def test_without_masks_there_is_nothing_to_learn(fitted):
    with pytest.raises(ValueError, match="none of the 1 references has a mask"):
        PixelClassifier(dense_encoder()).fit([Reference(reference().image, points={"a": (1.0, 1.0)})])
    with pytest.raises(RuntimeError, match="call `fit`"):
        PixelClassifier(dense_encoder()).predict(reference().image)
