"""Two images in, matches out: the model, the pixels of each image, transformers' pipeline."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForKeypointMatching, pipeline

from eden_hf import (
    EdenForImageClassification,
    EdenForKeypointMatching,
    EdenForPreTraining,
    EdenImageProcessor,
    EdenModel,
)
from eden_hf.data.phantoms import draw_phantom
from eden_hf.modeling_eden_matching import match_points

from .tiny import BACKBONES, tiny_config

SIDE = {"height": 64, "width": 64}


@pytest.fixture(scope="module")
def model():
    """Tiny and random: of one and the same image it finds every point."""
    torch.manual_seed(0)
    return EdenForKeypointMatching(tiny_config(dense_dim=16)).eval()


@pytest.fixture(scope="module")
def phantom():
    return Image.fromarray(draw_phantom(3, 128).image)


@pytest.fixture(scope="module")
def pair(phantom):
    """One picture twice, stretched to 90 x 140 and 200 x 70 pixels (width x height)."""
    return [phantom.resize((90, 140)), phantom.resize((200, 70))]


@pytest.fixture(scope="module")
def processor():
    return EdenImageProcessor(size=SIDE, intensity="per_image")


def pixels(number=4, seed=0):
    return torch.rand(number, 3, 64, 48, generator=torch.Generator().manual_seed(seed))


def test_output_is_that_of_transformers_matchers(model):
    output = model(pixels().view(2, 2, 3, 64, 48))
    keypoints = 16 * 12
    assert output.loss is None
    assert output.matches.shape == output.matching_scores.shape == (2, 2, keypoints)
    assert output.keypoints.shape == (2, 2, keypoints, 2)
    assert ((output.keypoints >= 0) & (output.keypoints <= 1)).all()
    assert ((output.matching_scores >= 0) & (output.matching_scores <= 1)).all()
    assert torch.equal(output.matches >= 0, output.matching_scores > 0)
    for matches in output.matches.flatten(0, 1):  # the same index in both images
        assert torch.equal(matches[matches >= 0], torch.arange(keypoints)[matches >= 0])


def test_batch_equals_single_and_both_shapes_are_the_same(model):
    whole = model(pixels(6))
    nested = model(pixels(6).view(3, 2, 3, 64, 48))
    for number in range(3):
        alone = model(pixels(6)[2 * number : 2 * number + 2])
        for name in ("matches", "matching_scores", "keypoints"):
            torch.testing.assert_close(alone[name][0], whole[name][number], rtol=1e-4, atol=1e-4)
            assert torch.equal(nested[name], whole[name])


def test_tuple_equals_dict(model):
    sizes = torch.tensor([[1, 2], [3, 4]])
    output = model(pixels(2), original_sizes=sizes)
    as_tuple = model(pixels(2), original_sizes=sizes, return_dict=False)
    assert isinstance(as_tuple, tuple)
    for one, other in zip(output.to_tuple(), as_tuple, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("saved", [EdenModel, EdenForPreTraining, EdenForKeypointMatching])
def test_any_saved_dense_model_loads(saved, tmp_path):
    torch.manual_seed(0)
    original = saved(tiny_config(dense_dim=16)).eval()
    original.save_pretrained(tmp_path)
    loaded, info = AutoModelForKeypointMatching.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    trunk = original if saved is EdenModel else original.eden
    dense = trunk(pixels(2)).dense_embeddings
    keypoints, scores = match_points(dense[:1], dense[1:])
    output = loaded(pixels(2))
    assert torch.equal(output.keypoints, keypoints)
    assert torch.equal(output.matching_scores[:, 0], scores)


def test_what_is_no_pair_is_refused(model):
    with pytest.raises(ValueError, match=r"pairs of images.*got \(3, 3, 64, 48\)"):
        model(pixels(3))
    with pytest.raises(ValueError, match=r"got \(2, 3, 3, 64, 48\)"):
        model(pixels(6).view(2, 3, 3, 64, 48))
    with pytest.raises(ValueError, match="no `dense_dim`"):
        EdenForKeypointMatching(tiny_config())


def test_points_of_a_shifted_picture_are_found_between_the_nodes(model):
    """The second image is the first moved by 1.5 nodes: matches say so, to a fraction of a node."""
    wide = torch.nn.functional.interpolate(pixels(1, seed=5)[..., :24, :18], size=(64, 96), mode="bicubic")
    moved = torch.cat([wide[..., 8:72], wide[..., 14:78]])
    output = model(moved)
    shift = (output.keypoints[0, 0] - output.keypoints[0, 1])[output.matches[0, 0] >= 0]
    assert len(shift) > 100
    assert shift.median(dim=0).values.tolist() == pytest.approx([6 / 64, 0], abs=0.3 * 4 / 64)


def test_large_maps_are_matched_at_fewer_points(model):
    dense = torch.nn.functional.normalize(torch.randn(1, 32, 101, 60), dim=1)
    keypoints, scores = match_points(dense, dense)
    assert keypoints.shape == (1, 2, 51 * 30, 2)
    assert (scores > 0).all()  # every point of a picture is found in itself


def matched(model, processor, images, **options):
    outputs = model(**processor(images, return_tensors="pt"))
    return processor.post_process_keypoint_matching(outputs, **options)


def test_coordinates_are_each_images_own_whichever_way_round_sizes_are_told(model, processor, pair):
    expected = matched(model, processor, pair)[0]
    assert len(expected["keypoints0"]) == len(expected["keypoints1"]) == len(expected["matching_scores"]) > 150
    shares = (expected["keypoints0"] + 0.5) / torch.tensor([90, 140])
    there = (expected["keypoints1"] + 0.5) / torch.tensor([200, 70])
    assert (shares.amin(dim=0) < 0.1).all()
    assert (shares.amax(dim=0) > 0.9).all()
    assert (shares - there).norm(dim=1).median() < 0.02
    documented, piped = [[(140, 90), (70, 200)]], [[image.size for image in pair]]
    for sizes in (documented, piped, torch.tensor(documented)):
        found = matched(model, processor, pair, target_sizes=sizes)[0]
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_sizes_of_another_frame_are_taken_as_documented(model, processor, pair):
    expected = matched(model, processor, pair)[0]
    twice = matched(model, processor, pair, target_sizes=[[(280, 180), (140, 400)]])[0]
    for name in ("keypoints0", "keypoints1"):
        torch.testing.assert_close(twice[name] + 0.5, 2 * (expected[name] + 0.5))
    outputs = model(processor(pair, return_tensors="pt")["pixel_values"])  # whose own sizes nobody told
    untold = processor.post_process_keypoint_matching(outputs, [[(140, 90), (70, 200)]])[0]
    assert all(torch.equal(untold[name], expected[name]) for name in expected)
    with pytest.raises(ValueError, match="give `target_sizes`"):
        processor.post_process_keypoint_matching(outputs)
    with pytest.raises(ValueError, match=r"\[1, 2, 2\], got \[2, 2\]"):
        processor.post_process_keypoint_matching(outputs, [(140, 90), (70, 200)])


def test_pairs_keep_their_own_sizes_in_a_batch(model, processor, pair):
    batch = matched(model, processor, [pair, pair[::-1]])
    for number, images in enumerate((pair, pair[::-1])):
        alone = matched(model, processor, images)[0]
        for name, values in alone.items():
            torch.testing.assert_close(batch[number][name], values, rtol=1e-3, atol=1e-3)


def test_padding_is_taken_off_and_holds_no_matches(model, phantom):
    processor = EdenImageProcessor(size=SIDE, intensity="per_image", aspect_ratio="pad")
    tall, wide = phantom.crop((30, 0, 75, 128)), phantom.crop((0, 40, 128, 101))
    for image in (tall, wide):
        for sizes in (None, [[image.size[::-1]] * 2], [[image.size] * 2]):
            found = matched(model, processor, [image, image], target_sizes=sizes)[0]
            assert len(found["keypoints0"]) > 40
            for name in ("keypoints0", "keypoints1"):
                last = torch.tensor(image.size) - 0.5
                assert ((found[name] >= -0.5) & (found[name] <= last)).all()
                assert found[name].amax(dim=0).tolist() == pytest.approx(last.tolist(), abs=8)
            assert (found["keypoints0"] - found["keypoints1"]).norm(dim=1).median() < 2


def test_weak_matches_are_left_out(model, processor, phantom):
    other = Image.fromarray(draw_phantom(8, 128).image)
    every = matched(model, processor, [phantom, other])[0]["matching_scores"]
    half = every.median().item()
    strong = matched(model, processor, [phantom, other], threshold=half)[0]["matching_scores"]
    assert torch.equal(strong, every[every > half])


def test_the_pipeline_gives_pixels_of_images_that_are_not_square(model, processor, pair, tmp_path):
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    matcher = pipeline("keypoint-matching", model=str(tmp_path))
    expected = matched(model, processor, [image.convert("RGB") for image in pair])[0]
    found = matcher(pair)
    order = expected["matching_scores"].argsort(descending=True, stable=True)
    assert [match["score"] for match in found] == pytest.approx(expected["matching_scores"][order].tolist())
    for image in (0, 1):
        places = [[match[f"keypoint_image_{image}"][axis] for axis in "xy"] for match in found]
        torch.testing.assert_close(torch.tensor(places), expected[f"keypoints{image}"][order])
    assert [len(matches) for matches in matcher([pair, pair], threshold=0.5)] == [len(found)] * 2


def test_the_processor_tells_the_sizes_of_any_images(processor):
    pictures = [Image.new("L", (40, 30)), np.zeros((3, 20, 50), np.uint8), torch.rand(7, 9)]
    assert processor(pictures, return_tensors="pt")["original_sizes"].tolist() == [[30, 40], [20, 50], [7, 9]]
    assert processor(pictures)["original_sizes"] == [(30, 40), (20, 50), (7, 9)]


@pytest.mark.parametrize("trunk", BACKBONES)
@pytest.mark.parametrize("kind", [EdenModel, EdenForImageClassification])
def test_other_models_ignore_sizes(kind, trunk, processor, phantom):
    model = kind(tiny_config(trunk)).eval()
    inputs = processor(phantom, return_tensors="pt")
    assert torch.equal(model(**inputs)[0], model(inputs["pixel_values"])[0])
