"""The probe tells what a model knows, and takes no part in what it learns."""

import json
import math

import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset, Image

from eden_hf import EdenImageProcessor, EdenModel
from eden_hf.data.errors import SourceError
from eden_hf.data.phantoms import phantom_dataset
from eden_hf.training.arguments import RunArguments, read_arguments
from eden_hf.training.pretraining import Pretraining
from eden_hf.training.probing import Probe, effective_rank, joined_stages, landmark_error, neighbour_accuracy

from ..tiny import tiny_config
from .test_pretraining import POINTS, assert_equal_runs, assert_equal_states, metrics, run_pretraining, settings_file

PROCESSOR = EdenImageProcessor(size={"height": 32, "width": 32})


def without_probe(run):
    """The same run's folder with the probe's lines taken out of its metrics."""
    lines = [line for line in metrics(run) if "probe_effective_rank" not in line]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def test_a_run_with_a_probe_is_the_run_without_bit_for_bit(tmp_path):
    plain = run_pretraining(tmp_path, "plain")
    probed = run_pretraining(tmp_path, "probed", run={"probe": "phantoms:6"})
    told = [line for line in metrics(probed) if "probe_effective_rank" in line]
    assert [line["step"] for line in told] == [0, 4, 8, 12, 16]
    assert all(0 < line["probe_landmark_error"] < 1 for line in told)
    assert len({line["probe_effective_rank"] for line in told}) == 5  # the model that is trained is the one measured
    assert_equal_runs(plain, without_probe(probed))
    assert_equal_states(plain, probed)


@pytest.mark.parametrize(("every", "steps"), [(3, [0, 8, 12, 16]), (9, [0, 8, 16])])
def test_it_is_measured_as_often_as_asked_and_at_each_stages_end(every, steps, tmp_path):
    run = run_pretraining(tmp_path, run={"probe": "phantoms:4", "probe_every": every})
    assert [line["step"] for line in metrics(run) if "probe_effective_rank" in line] == steps


def test_the_dense_stage_is_probed_by_its_dense_embeddings(tmp_path):
    settings = {"model": {"dense_dim": 6}, "points": {"size": 32, "count": 8}, "stages": POINTS[:1]}
    run = Pretraining(read_arguments(settings_file(tmp_path, **settings, run={"probe": "phantoms:4"})))
    seen = []
    run.eden.eden.dense_decoder.register_forward_hook(lambda module, inputs, output: seen.append(output))
    by_points, by_stages = (run.probe.measure(run.eden.eden, dense=dense) for dense in (True, False))
    assert by_points["probe_landmark_error"] == landmark_error(seen[0], run.probe.landmarks)
    assert by_points["probe_landmark_error"] != by_stages["probe_landmark_error"]


def test_a_run_that_failed_in_its_first_step_does_not_block_the_folder(tmp_path):
    run = {"probe": "phantoms:4"}
    with pytest.raises(ValueError, match=r"`training.batch_size`"):
        run_pretraining(tmp_path, run=run, training={"batch_size": 1})
    folder = run_pretraining(tmp_path, run=run)
    assert [line["step"] for line in metrics(folder) if "probe_effective_rank" in line] == [0, 4, 8, 12, 16]


def test_landmarks_that_have_an_embedding_of_their_own_are_found_where_they_are():
    torch.manual_seed(0)
    side, centre = 8, (torch.arange(8) + 0.5) / 8
    places = torch.stack([torch.randperm(side)[:3] for _ in range(5)]), torch.stack([torch.arange(3) * 3] * 5)
    landmarks = torch.stack([centre[places[0]], centre[places[1].clamp(max=7)]], dim=2)
    maps = torch.zeros(5, 4, side, side)
    maps[:, 3] = 1
    for image in range(5):
        for landmark in range(3):
            x, y = (landmarks[image, landmark] * side).long().tolist()
            maps[image, :, y, x] = F.one_hot(torch.tensor(landmark), 4).float()
    assert landmark_error(maps, landmarks) == pytest.approx(0, abs=1e-6)
    shifted = landmarks.clone()
    shifted[..., 0] += 1e-3  # between nodes it is found at the node
    assert landmark_error(maps, shifted) == pytest.approx(1e-3, rel=1e-3)
    assert landmark_error(maps.flip(3), landmarks) > 0.1


def test_the_effective_rank_counts_directions():
    assert effective_rank(torch.eye(7)) == pytest.approx(7)
    assert effective_rank(torch.ones(9, 4)) == pytest.approx(1)
    assert effective_rank(torch.zeros(3, 4)) == 0
    two = torch.diag(torch.tensor([3.0, 1.0]))
    assert effective_rank(two) == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))


def test_neighbours_vote_for_a_label_and_an_image_has_no_vote_of_its_own():
    vectors = torch.tensor([[1.0, 0], [1, 0.1], [1, 0.2], [0, 1], [0.1, 1], [0.2, 1]])
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    assert neighbour_accuracy(vectors[:3], labels[:3]) == 1
    assert neighbour_accuracy(torch.eye(4), torch.arange(4)) == 0
    assert neighbour_accuracy(vectors.repeat(3, 1), labels.repeat(3)) == 1
    assert neighbour_accuracy(vectors.repeat(3, 1), torch.arange(18)) == 0


def test_images_with_a_class_are_voted_on(tmp_path):
    rows = phantom_dataset(8)
    rows = Dataset.from_dict({"image": rows["image"], "label": ["a", "b"] * 4}).cast_column("image", Image())
    rows.to_parquet(tmp_path / "train.parquet")
    probe = Probe(RunArguments(probe=str(tmp_path / "train.parquet"), probe_images=6), PROCESSOR)
    measured = probe.measure(EdenModel(tiny_config()))
    assert probe.labels.tolist() == [0, 1] * 3
    assert sorted(measured) == ["probe_effective_rank", "probe_neighbour_accuracy"]
    rows.remove_columns("label").to_parquet(tmp_path / "bare.parquet")
    with pytest.raises(SourceError, match=r"`run.probe`: .*bare\.parquet has neither landmarks nor a column `label`"):
        Probe(RunArguments(probe=str(tmp_path / "bare.parquet")), PROCESSOR)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a"] * 4, "first 4 images of .* have 1 different labels"),
        (["a", "b", "c", "d"], "have 4 different labels, where neighbours tell nothing"),
        (["a"], "first 1 images"),
        (["a", "b", None, "a"], "is None: it must be text or a whole number"),
        ([0.5, 1.5, 0.5, 1.5], r"is 0\.5: it must be"),
        ([[0], [1], [0], [1]], r"is \[0\]: it must be"),
    ],
)
def test_labels_that_neighbours_cannot_vote_for_are_refused(labels, message, tmp_path):
    images = phantom_dataset(len(labels))["image"]
    rows = Dataset.from_dict({"image": images, "label": labels}).cast_column("image", Image())
    rows.to_parquet(tmp_path / "train.parquet")
    with pytest.raises(SourceError, match=rf"`run\.probe`.*{message}"):
        Probe(RunArguments(probe=str(tmp_path / "train.parquet")), PROCESSOR)


@pytest.mark.parametrize(
    ("landmarks", "message"),
    [
        ([{"a": [0.1, 0.1], "b": [0.2, 0.2]}] * 2 + [None], None),
        ([{"a": [0.1, 0.1], "b": [0.2, 0.2]}, None], "at least 2 images are needed, got 1"),
        ([{"a": [0.1, 0.1], "b": [0.2, 0.2]}, {"a": None, "b": [0.1, 0.1]}], "at least 2 landmarks that all images"),
        ([{"a": [10.0, 0.1], "b": [0.2, 0.2]}] * 2, r"0: a lies at \(10.0"),
    ],
)
def test_messages_on_landmarks_name_the_probe(landmarks, message, tmp_path, caplog):
    images = phantom_dataset(len(landmarks))["image"]
    rows = Dataset.from_dict({"image": images, "landmarks": landmarks}).cast_column("image", Image())
    rows.to_parquet(tmp_path / "train.parquet")
    run = RunArguments(probe=str(tmp_path / "train.parquet"))
    if message is None:
        assert len(Probe(run, PROCESSOR).landmarks) == 2
        assert "train.parquet: 1 images have no landmarks" in caplog.text
    else:
        with pytest.raises(SourceError, match=rf"^`run\.probe`: .*train\.parquet: .*{message}"):
            Probe(run, PROCESSOR)
    assert "patient" not in caplog.text


def test_landmarks_of_padded_images_lie_where_the_model_sees_them(tmp_path):
    wide = [PIL.Image.new("L", (64, 32))] * 2
    rows = {"image": wide, "landmarks": [{"corner": [0.0, 0.0], "inside": [0.25, 0.5]}] * 2}
    Dataset.from_dict(rows).cast_column("image", Image()).to_parquet(tmp_path / "train.parquet")
    run = RunArguments(probe=str(tmp_path / "train.parquet"))
    plain, padded = (Probe(run, EdenImageProcessor(aspect_ratio=how)).landmarks for how in ("resize", "pad"))
    assert plain[0].tolist() == [[0, 0], [0.25, 0.5]]
    assert padded[0].tolist() == [[0, 0.25], [0.25, 0.5]]


@pytest.mark.parametrize("backbone", ["resnet", "swin", "vit"])
def test_stages_weigh_alike_at_the_finest_size(backbone):
    model = EdenModel(tiny_config(backbone)).eval()
    measured = Probe(RunArguments(probe="phantoms:3"), PROCESSOR).measure(model)
    assert 0 < measured["probe_landmark_error"] < 1
    maps = [torch.rand(2, 3, 4, 4), 100 * torch.rand(2, 5, 2, 2)]
    joined = joined_stages(maps)
    assert joined.shape == (2, 8, 4, 4)
    assert (joined[:, :3].square().sum(dim=1) / joined[:, 3:].square().sum(dim=1)).median() < 2
