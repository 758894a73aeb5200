import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from torch import nn
from transformers import BitImageProcessorPil, ConvNextImageProcessorPil

from eden_hf import EdenImageProcessor
from eden_hf.data.phantoms import draw_phantom, phantom_dataset
from eden_hf.encoders import Encoder, load_encoder
from eden_hf.evaluation.few_shot import (
    HEART_AND_CLAVICLES,
    SHORT_RECIPE,
    FrozenSegmentation,
    Score,
    Segmented,
    _resized_pixels,
    compare_encoders,
    draw_shots,
    few_shot,
    few_shot_cells,
    few_shot_table,
    read_scores,
)
from eden_hf.plots import plot_few_shot
from eden_hf.training.downstream_metrics import dice
from eden_hf.training.finetune_arguments import FinetuneTrainingArguments, Recipe, TaskArguments
from tests.launching import python

LABELS = ("heart", "left_lung")


def segmented(seeds):
    phantoms = [draw_phantom(seed, 64) for seed in seeds]
    masks = [np.stack([phantom.masks[name] for name in LABELS]) for phantom in phantoms]
    return Segmented([Image.fromarray(phantom.image) for phantom in phantoms], masks, LABELS)


def test_frozen_segmentation_learns_from_few_phantoms(encoder):
    score = FrozenSegmentation(encoder, segmented(range(8)), segmented(range(100, 106)), grid=32)
    few, many = score(draw_shots(8, 2, 0)), score(draw_shots(8, 8, 0))
    assert few.shape == many.shape == (6, 2)
    assert many.mean() > max(0.6, few.mean() - 0.05)


def test_frozen_segmentation_of_features_that_hold_the_answer_is_perfect():
    """An encoder whose first stage is the mask itself (painted into the image)."""

    class Painted(nn.Module):
        def forward(self, pixel_values, output_hidden_states):
            return SimpleNamespace(hidden_states=(pixel_values, pixel_values[:, :1, ::2, ::2]))

        device, dtype = torch.device("cpu"), torch.float32

    def process(images, return_tensors):
        return {"pixel_values": torch.stack([torch.from_numpy(np.array(i)).moveaxis(-1, 0).float() for i in images])}

    data = segmented(range(6))
    planes = (np.moveaxis(np.concatenate([m, m[:1]]), 0, -1) for m in data.masks)
    painted = [Image.fromarray(255 * inside.astype(np.uint8)) for inside in planes]
    known = Segmented(painted, data.masks, LABELS)
    score = FrozenSegmentation(Encoder(Painted(), process), known, known, grid=64)
    assert score(np.arange(3)).min() > 0.99


def test_a_projected_map_equals_the_projection_of_resized_features(encoder):
    data = segmented(range(2))
    score = FrozenSegmentation(encoder, data, data, grid=16)
    channels = sum(len(stage) for stage in score.test_maps[0])
    weights, bias = torch.randn(3, channels), torch.randn(3)
    plain = _resized_pixels(score.test_maps[0], 16) @ weights.T + bias
    predicted = score._predict(score.test_maps[0], weights, bias)
    assert torch.allclose(predicted.flatten(1).T, plain, atol=1e-3)


@given(arrays(bool, (2, 5, 4)), arrays(bool, (2, 5, 4)))
def test_dice_is_symmetric_and_one_for_equal_masks(a, b):
    both = a.any(axis=(1, 2)) & b.any(axis=(1, 2))
    assert np.array_equal(dice(a, b)[both], dice(b, a)[both])
    assert (dice(a, a)[a.any(axis=(1, 2))] == 1).all()
    assert np.isnan(dice(a, b)[~b.any(axis=(1, 2))]).all()


def test_dice_of_a_half_overlap():
    a, b = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    a[:, :2], b[:, 1:3] = True, True
    assert dice(a, b) == 0.5


@given(st.integers(1, 30), st.integers(0, 5), st.integers(0, 5))
def test_smaller_draws_are_in_larger_ones(shots, draw, seed):
    large = draw_shots(30, 30, draw, seed)
    assert sorted(large) == list(range(30))
    assert list(draw_shots(30, shots, draw, seed)) == list(large[:shots])


@pytest.mark.parametrize("shots", [0, 31])
def test_impossible_shots_are_refused(shots):
    with pytest.raises(ValueError, match="between 1 and the 30"):
        draw_shots(30, shots, 0)


def test_an_interrupted_table_goes_on(encoder, tmp_path):
    calls = []

    def scorer(indices, draw):
        calls.append((len(indices), draw))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return np.full((5, 2), 0.01 * len(indices) + draw)

    file, arguments = tmp_path / "new" / "scores.jsonl", {"shots": (3, 6), "draws": 2}
    with pytest.raises(KeyboardInterrupt):
        few_shot(encoder, scorer, 10, LABELS, file, **arguments)
    scores = few_shot(encoder, scorer, 10, LABELS, file, **arguments)
    assert calls == [(3, 0), (3, 1), (6, 0), (6, 0), (6, 1)]
    assert scores == read_scores(file)
    assert [score.dice["heart"] for score in scores] == pytest.approx([0.03, 1.03, 0.06, 1.06])
    assert few_shot(encoder, None, 10, LABELS, file, **arguments) == scores


def test_the_table_pairs_draws_by_their_number():
    ours, theirs = {0: 0.80, 1: 0.83, 2: 0.85}, {3: 0.99, 2: 0.74, 1: 0.76}
    scores = [Score("ours", None, 3, draw, {"heart": value}) for draw, value in ours.items()]
    scores += [Score("theirs", None, 3, draw, {"heart": value}) for draw, value in theirs.items()]
    scores += [Score("theirs", None, 6, 0, {"heart": 0.5})]
    lines = few_shot_table(scores).splitlines()
    assert lines[0] == "| structure | encoder | k = 3 | k = 6 |"
    assert lines[2] == "| heart | ours | 82.7 ± 2.5 | - |"
    assert lines[3] == "| heart | theirs | 83.0 ± 13.9 (-9.0 ± 2.8) | 50.0 |"  # draws 1 and 2


def test_seeds_of_pretraining_are_not_pooled():
    """Two pretrainings, one of them better at every draw: each is compared with the same seed's."""
    scores = [
        Score(name, None, 3, draw, {"heart": 0.7 + gain * (seed == 1) + draw / 100}, 25, seed)
        for name, gain in (("ours", 0), ("theirs", 0.1))
        for seed in (0, 1)
        for draw in (0, 1)
    ]
    lines = few_shot_table(scores).splitlines()
    assert lines[0] == "| structure | encoder | seed | k = 3 + 25 |"
    assert lines[4] == "| heart | theirs | 0 | 70.5 ± 0.7 (+0.0 ± 0.0) |"
    assert lines[5] == "| heart | theirs | 1 | 80.5 ± 0.7 (+10.0 ± 0.0) |"


def test_the_figure_has_the_deviations_of_the_table():
    scores = [Score("ours", None, 3, draw, {"heart": dice}) for draw, dice in enumerate((0.80, 0.83, 0.85))]
    (cell,) = few_shot_cells(scores)
    assert (cell.mean, cell.deviation) == pytest.approx((82.667, np.std([80, 83, 85], ddof=1)), abs=1e-3)
    (bars,) = plot_few_shot([cell._asdict()]).axes[0].containers[0].lines[2]
    low, high = bars.get_segments()[0][:, 1]
    assert high - low == pytest.approx(2 * cell.deviation)


@pytest.mark.parametrize(("checkpoint", "validated"), [("last", None), ("best", 2)])
def test_k_alone_uses_no_other_labelled_image(checkpoint, validated, tmp_path, monkeypatch):
    seen = []

    def finetune(name, train, validation, test, labels, recipe, seed):
        seen.append((len(train), validation and len(validation)))
        return np.full((len(test), len(labels)), 0.5)

    monkeypatch.setattr("eden_hf.evaluation.few_shot.finetune_few_shot", finetune)
    task = dataclasses.replace(HEART_AND_CLAVICLES, source="phantoms:12")
    page = compare_encoders(
        ["random:resnet18-half"], task, checkpoint=checkpoint, shots=(2,), draws=2, output=str(tmp_path)
    )
    assert seen == [(2, validated)] * 2
    more = f"chosen on {validated} more labelled images" if validated else "No labelled image beyond k"
    assert more in page.read_text()
    assert (f"| k = 2 + {validated} |" if validated else "| k = 2 |") in page.read_text()


def test_all_encoders_learn_from_the_same_draws(tmp_path, monkeypatch):
    seen = {}

    def finetune(name, train, validation, test, labels, recipe, seed):
        seen.setdefault(name, []).append((seed, train["source_id"][:]))
        return np.full((len(test), len(labels)), 0.5)

    monkeypatch.setattr("eden_hf.evaluation.few_shot.finetune_few_shot", finetune)
    task = dataclasses.replace(HEART_AND_CLAVICLES, source="phantoms:12")
    names = ["random:resnet18-half", "random:resnet18"]
    compare_encoders(names, task, shots=(2, 3), draws=2, output=str(tmp_path))
    first, second = seen.values()
    assert first == second
    assert len({tuple(sorted(images)) for _, images in first}) == 4


def test_scores_of_other_structures_than_the_labels_are_an_error(encoder, tmp_path):
    with pytest.raises(ValueError, match="zip"):
        few_shot(encoder, lambda *_: np.ones((2, 3)), 10, LABELS, tmp_path / "s.jsonl", shots=(3,), draws=1)


@pytest.fixture
def half(monkeypatch):
    """Fine-tuning that scores 0.5 at once; the calls so far."""
    calls = []

    def finetune(name, train, validation, test, labels, recipe, seed):
        calls.append(seed)
        return np.full((len(test), len(labels)), 0.5)

    monkeypatch.setattr("eden_hf.evaluation.few_shot.finetune_few_shot", finetune)
    return calls


def phantom_task(tmp_path, name, seed=0, empty=False):
    """Phantoms as a data set of one name, whatever they are; `empty` takes the heart out of all masks."""
    rows = phantom_dataset(12, size=64, seed=seed)
    if empty:
        rows = rows.map(lambda row: {"heart": Image.new("L", (64, 64))}, features=rows.features)
    rows.to_parquet(tmp_path / name / "train-00000-of-00001.parquet")
    return TaskArguments(source=str(tmp_path / name), mask_columns={"heart": ["heart"]}, id_column="image_id")


def test_scores_of_other_images_or_another_recipe_are_not_taken(half, tmp_path):
    """The page's own scores lie beside it, and are those alone that it shows."""
    options = {"shots": (2,), "draws": 2, "output": str(tmp_path / "out")}
    names, long = ["random:resnet18-half"], Recipe(training=FinetuneTrainingArguments(steps=20))
    task = phantom_task(tmp_path, "data")
    for recipe, calls in ((SHORT_RECIPE, 2), (SHORT_RECIPE, 2), (long, 4)):
        page = compare_encoders(names, task, recipe, **options)
        assert len(half) == calls
        assert len(read_scores(page.with_suffix(".jsonl"))) == 2
    assert len(list(page.parent.glob("scores-*.jsonl"))) == 2
    compare_encoders(names, phantom_task(tmp_path, "data", seed=1), long, **options)
    assert len(half) == 6
    compare_encoders(["random:resnet18-half", "random:resnet18"], task, long, **options)
    page = compare_encoders(["random:resnet18"], task, long, **options)
    assert {score.encoder for score in read_scores(page.with_suffix(".jsonl"))} == {"random:resnet18"}


def test_a_structure_that_no_test_image_has_is_refused(half, tmp_path):
    task = phantom_task(tmp_path, "data", empty=True)
    with pytest.raises(ValueError, match=r"none of the . test images has heart; leave it out"):
        compare_encoders(["random:resnet18-half"], task, shots=(2,), draws=1, output=str(tmp_path / "out"))
    assert half == []


def test_dice_is_of_the_test_images_that_have_the_structure(encoder, tmp_path):
    dices = np.array([[0.8, 0.5], [np.nan, 0.7]])
    (score,) = few_shot(encoder, lambda *_: dices, 10, LABELS, tmp_path / "s.jsonl", shots=(3,), draws=1)
    assert score.dice == pytest.approx({"heart": 0.8, "left_lung": 0.6})


@pytest.mark.parametrize(
    "processor",
    [
        BitImageProcessorPil(size={"shortest_edge": 73}, crop_size={"height": 64, "width": 64}),
        ConvNextImageProcessorPil(size={"shortest_edge": 64}, crop_pct=0.875),
        EdenImageProcessor(size={"height": 64, "width": 64}, aspect_ratio="pad"),
    ],
    ids=["centre crop", "crop_pct", "pad"],
)
def test_frozen_features_lie_upon_the_images(processor, model, tmp_path):
    """A processor that cuts or pads is refused by the scorer, and replaced by the command that compares encoders."""
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    data = segmented(range(2))
    with pytest.raises(ValueError, match=r"cuts or pads images.*intensity"):
        FrozenSegmentation(load_encoder(str(folder)), data, data)
    task, output = dataclasses.replace(HEART_AND_CLAVICLES, source="phantoms:12"), str(tmp_path / "out")
    page = compare_encoders([str(folder)], task, Recipe(), frozen=True, shots=(2,), draws=1, output=output)
    assert "| heart |" in page.read_text()


def test_the_pixel_classifier_learns_from_k_alone(tmp_path, monkeypatch):
    """Its predictions are scored by name at the test images' own size."""
    seen = []

    class Classifier:
        def __init__(self, encoder, seed):
            assert encoder.processor.size["height"] == 224  # the encoder's own

        def fit(self, references):
            seen.append([sorted(reference.masks) for reference in references])
            self.masks = references[0].masks
            return self

        def predict(self, image):
            return self.masks

    monkeypatch.setattr("eden_hf.evaluation.few_shot.PixelClassifier", Classifier)
    task = dataclasses.replace(HEART_AND_CLAVICLES, source="phantoms:12")
    options = {"frozen": True, "classifier": "pixels", "shots": (2,), "draws": 1, "output": str(tmp_path)}
    page = compare_encoders(["random:resnet18-half"], task, **options)
    assert page.name == "few_shot-frozen-pixels.md"
    assert seen == [[["clavicles", "heart"]] * 2]
    (file,) = tmp_path.glob("scores-*.jsonl")
    assert 0.3 < read_scores(file)[0].dice["heart"] < 1


def test_a_score_is_one_line_of_json(tmp_path):
    file = tmp_path / "scores.jsonl"
    file.write_text(json.dumps(Score("a", "b", 3, 0, {"heart": 0.5})._asdict()) + "\n")
    assert read_scores(file) == [Score("a", "b", 3, 0, {"heart": 0.5})]


@pytest.mark.parametrize("mode", ["--frozen", None])
def test_one_command_compares_encoders(mode, tmp_path):
    options = [
        "--encoders", "random:resnet18-half", "--task.source", "phantoms:12",
        "--recipe.model.size", "32", "--recipe.training.steps", "2", "--recipe.training.batch_size", "2",
        "--recipe.training.evaluations", "1", "--shots", "2", "3", "--draws", "2", "--output", str(tmp_path),
    ]  # fmt: skip
    page = python("scripts/few_shot_table.py", *options, *([mode] if mode else [])).stdout.split()[-1]
    text = (tmp_path / page).read_text()
    assert "| structure | encoder | k = 2 | k = 3 |" in text
    assert "test 2" in text
    assert "| clavicles | random:resnet18-half |" in text
    assert len(list(tmp_path.glob("*.png"))) == 1
    assert "No labelled image beyond k was used" in text
    file = tmp_path / page.replace(".md", ".jsonl")
    assert {score.validation for score in read_scores(file)} == {0}
    assert len(read_scores(file)) == 4


def test_a_task_without_masks_is_refused(tmp_path):
    task = TaskArguments(source="phantoms:12", kind="regression", label_columns=["age"])
    with pytest.raises(ValueError, match="age"):
        compare_encoders(["random:resnet18-half"], task, output=str(tmp_path))
