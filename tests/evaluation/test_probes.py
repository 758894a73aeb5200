import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from eden_hf import EdenImageProcessor, EdenModel, cli
from eden_hf.data.tasks import load_source_task
from eden_hf.evaluation import results, statistics
from eden_hf.evaluation.probes import PROBES, STEPS, linear_probe, predict_by_probe, probe, probe_scores
from tests.launching import python
from tests.tiny import tiny_config


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 50)


def blobs(count, kind):
    """Three clouds in 8 dimensions, and what is to be learned of them."""
    rng = np.random.default_rng(count)
    classes = rng.integers(3, size=count)
    x = 3 * np.eye(3, 8)[classes] + 0.3 * rng.normal(size=(count, 8))
    y = {"single_label": classes, "multi_label": np.eye(3)[classes], "regression": classes[:, None] * 2.0 - 1}[kind]
    return x.astype(np.float32), y


@pytest.mark.parametrize("name", PROBES)
@pytest.mark.parametrize("kind", ["single_label", "multi_label", "regression"])
def test_clouds_are_told_apart(name, kind):
    (train_x, train_y), (test_x, test_y) = blobs(90, kind), blobs(40, kind)
    labels = 1 if kind == "regression" else 3
    predicted = predict_by_probe(PROBES[name], kind, labels, train_x, train_y, test_x)
    assert predicted.shape == (40, labels)
    if kind == "regression":
        assert np.abs(predicted - test_y).mean() < 0.4
    else:
        truth = test_y if kind == "single_label" else test_y.argmax(axis=1)
        assert (predicted.argmax(axis=1) == truth).mean() > 0.95


def test_unknown_labels_are_left_out():
    x, y = blobs(60, "multi_label")
    y[:20, 1] = np.nan
    predicted = predict_by_probe(PROBES["linear"], "multi_label", 3, x, y, x)
    known = predict_by_probe(PROBES["linear"], "multi_label", 3, x[20:], y[20:], x)
    assert np.array_equal(predicted[:, 1], known[:, 1])
    assert not np.array_equal(predicted[:, 0], known[:, 0])


def test_a_class_without_training_images_has_no_probability():
    x, y = blobs(60, "single_label")
    predicted = predict_by_probe(PROBES["linear"], "single_label", 4, x[y != 1], y[y != 1], x)
    assert (predicted[:, [1, 3]] == 0).all()
    assert np.allclose(predicted.sum(axis=1), 1)


@pytest.mark.parametrize("name", PROBES)
def test_a_label_of_one_value_is_constant(name):
    x, y = blobs(60, "multi_label")
    y[:, 1], y[:, 2] = 0, 1
    predicted = predict_by_probe(PROBES[name], "multi_label", 3, x, y, x)
    assert (predicted[:, 1] == 0).all()
    assert (predicted[:, 2] == 1).all()
    assert predicted[:, 0].std() > 0.1


def grey(count):
    """Dark and bright images, told by their name."""
    rng = np.random.default_rng(count)
    rows = []
    for number in range(count):
        level = number % 2
        pixels = rng.integers(60, size=(32, 32)) + 150 * level
        rows.append({"image": Image.fromarray(pixels.astype(np.uint8)), "label": level, "bright": float(level)})
    data = Dataset.from_list(rows)
    return data.cast_column("label", ClassLabel(names=["dark", "bright"]))


@pytest.fixture(scope="module")
def splits():
    return DatasetDict(train=grey(40), test=grey(20))


def test_an_encoder_is_probed(encoder, splits):
    task = load_source_task(splits, "single_label", label_column="label")
    found = probe_scores(encoder, task)
    assert set(found) == {"linear", "knn"}
    for metrics in found.values():
        assert metrics["accuracy"].value > 0.9
        assert metrics["auc"].value > 0.95
        assert metrics["accuracy"].n == 20


def test_balanced_accuracy_weighs_classes_alike(encoder):
    """All 30 of one class and none of 10 of the other: the images are alike, and the first class the commoner."""
    rows = [{"image": Image.new("L", (16, 16), 90), "label": number % 4 == 3} for number in range(40)]
    data = Dataset.from_list([row | {"label": int(row["label"])} for row in rows])
    same = data.cast_column("label", ClassLabel(names=["common", "rare"]))
    task = load_source_task(DatasetDict(train=same, test=same), "single_label", label_column="label")
    metrics = probe_scores(encoder, task, ["knn"])["knn"]
    assert metrics["accuracy"].value == 0.75
    assert metrics["balanced_accuracy"].value == 0.5


def findings(labels):
    rows = [{"image": Image.new("L", (16, 16), 8 * n), "a": float(n % 2), "b": b} for n, b in enumerate(labels)]
    return Dataset.from_list(rows, features=Features(image=ImageFeature(), a=Value("float32"), b=Value("float32")))


def test_what_test_images_do_not_define_is_left_out_and_logged(encoder, caplog):
    splits = DatasetDict(train=findings([0.0, 0.0, 1.0, 1.0] * 4), test=findings([0.0] * 8))
    task = load_source_task(splits, "multi_label", label_columns=["a", "b"])
    metrics = probe_scores(encoder, task, ["knn"])["knn"]
    assert set(metrics) == {"auc", "auc_a"}
    assert "auc_b" in caplog.text


def test_labels_that_are_not_there_are_named(encoder):
    splits = DatasetDict(train=findings([None] * 8), test=findings([0.0, 1.0] * 4))
    task = load_source_task(splits, "multi_label", label_columns=["a", "b"])
    with pytest.raises(ValueError, match="has b: leave"):
        probe_scores(encoder, task)
    task = load_source_task(splits, "regression", label_columns=["a", "b"])
    with pytest.raises(ValueError, match=r"8 numbers .* are missing"):
        probe_scores(encoder, task)


def test_fewer_training_images_may_be_used(splits, tmp_path):
    """The first alone, a dark one: every column knows no other class; all test images are scored."""
    _, found = of_folder(splits, tmp_path, probes=["knn"], images=1)
    for results_ in found.values():
        assert (results_.measured["knn probability of dark"].values == 1).all(), results_.encoder
        assert results_.values["knn accuracy"].n == 20


def test_impossible_probes_are_refused(encoder, splits):
    task = load_source_task(splits, "single_label", label_column="label")
    with pytest.raises(ValueError, match=r"unknown probes \['tree'\].*linear, knn"):
        probe_scores(encoder, task, ["tree"])
    with pytest.raises(ValueError, match="`images` must be at least 1, or left out for all, got 0"):
        probe_scores(encoder, task, images=0)
    masks = load_source_task("phantoms:2", "segmentation", mask_columns=["heart"])
    with pytest.raises(ValueError, match="is segmentation with the splits train"):
        probe_scores(encoder, masks)


def test_folders_name_the_classes(tmp_path):
    for split, count in (("train", 12), ("test", 6)):
        for number in range(count):
            folder = tmp_path / "data" / split / ("dark", "bright")[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("L", (32, 32), 20 + number + 150 * (number % 2)).save(folder / f"{number}.png")
    options = [
        "--source",
        str(tmp_path / "data"),
        "--output",
        str(tmp_path / "out"),
        "--size",
        "32",
        "--probes",
        "knn",
    ]
    cli.probe(["--model", "random:resnet18-half", *options])
    found = results.Results.load(tmp_path / "out" / "encoder-0" / "results.json")
    assert found.values["knn accuracy"].n == 6


def of_folder(splits, folder, **options):
    """The page of a probe of a small random trunk, and its results by the folder's name."""
    for split, data in splits.items():
        data.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    options = {"size": 32, "probes": ["linear", "knn"], "label_column": "label", "untrained": 0} | options
    model = options.pop("model", ["random:resnet18-half"])
    page = probe(model, str(folder / "data"), str(folder / "out"), **options)
    files = sorted((folder / "out").glob("*/results.json"))
    return page.read_text(), {file.parent.name: results.Results.load(file) for file in files}


def test_controls_stand_beside_every_encoder(splits, tmp_path):
    """Bright and dark pictures: pixels less their mean tell nothing, and half is what the majority reaches."""
    text, found = of_folder(splits, tmp_path)
    assert list(found) == ["encoder-0", "encoder-1", "majority"]
    assert found["encoder-1"].encoder == "pixels"
    assert found["majority"].values["knn accuracy"].value == 0.5
    assert found["majority"].values["linear auc"].value == 0.5
    assert "20 test images of 20 patients. The commonest class, `dark`, has 10 of them (50.0%)." in text
    assert "| - pixels | - majority |" in text
    assert "auc" in text
    assert "auc dark" not in text  # of two classes the AUC comes once
    own, none = (found[name].measured["knn accuracy"] for name in ("encoder-0", "majority"))
    value = (own - none).estimate().value
    assert f"| {value:.3f} (" in text.partition("Differences")[2]


def test_untrained_trunks_are_a_column_of_several_seeds(splits, tmp_path):
    """Beside trained weights; their mean, patient by patient, and how much seeds differ."""
    torch.manual_seed(0)
    model = tmp_path / "model"
    EdenModel(tiny_config()).save_pretrained(model)
    EdenImageProcessor(size={"height": 32, "width": 32}).save_pretrained(model)
    text, found = of_folder(splits, tmp_path, model=[str(model)], untrained=2, probes=["knn"])
    fresh = found["encoder-1"]
    assert (fresh.encoder, fresh.revision) == (f"random:{model}", "seed 0, seed 1")
    assert set(fresh.measured["knn accuracy"].values) <= {0, 0.5, 1}
    assert fresh.settings["deviation_over_seeds"].keys() == fresh.values.keys()
    assert "standard deviation over seeds" in text


def test_images_of_a_patient_are_drawn_together(splits, tmp_path):
    """Four images a patient: 5 are drawn, and those of the training images may not be among them."""
    named = DatasetDict(
        {
            split: rows.add_column("who", [f"{split}-{n // 4}" for n in range(len(rows))])
            for split, rows in splits.items()
        }
    )
    text, found = of_folder(named, tmp_path, patient_column="who")
    assert found["encoder-0"].values["knn accuracy"].n == 5
    assert "20 test images of 5 patients" in text
    assert len(found["encoder-0"].measured["knn accuracy"].patients) == 5
    shared = DatasetDict({split: rows.add_column("one", ["p"] * len(rows)) for split, rows in splits.items()})
    with pytest.raises(ValueError, match="splits share patients by one"):
        of_folder(shared, tmp_path / "shared", patient_column="one")


def test_a_class_of_one_training_image_is_named(encoder):
    rows = [{"image": Image.new("L", (16, 16), 9 * n), "label": min(n, 1)} for n in range(9)]
    data = Dataset.from_list(rows).cast_column("label", ClassLabel(names=["lone", "common"]))
    task = load_source_task(DatasetDict(train=data, test=data), "single_label", label_column="label")
    with pytest.raises(ValueError, match=r"one training image alone .* lone, .* `knn` alone"):
        probe_scores(encoder, task)
    assert "accuracy" in probe_scores(encoder, task, ["knn"])["knn"]


def test_channels_that_go_together_take_many_steps_to_learn_from():
    """As of random weights; a warning that it did not converge would be an error here."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(1500, 64)) * np.linspace(1, 0.01, 64)
    x = rng.normal(size=(1500, 1)) + 0.01 * (hidden @ rng.normal(size=(64, 256)))
    y = (hidden @ rng.normal(size=(64, 8))).argmax(axis=1)
    learned = linear_probe("single_label", 3).fit(x, y)[-1]
    assert 300 < learned.n_iter_.max() < STEPS


def test_a_class_of_two_training_images_is_learned():
    x, y = blobs(60, "single_label")
    kept = np.flatnonzero(y != 2).tolist() + np.flatnonzero(y == 2)[:2].tolist()
    predicted = predict_by_probe(PROBES["linear"], "single_label", 3, x[kept], y[kept], x)
    assert (predicted.argmax(axis=1) == y).mean() > 0.9


@pytest.mark.slow
def test_the_command_sets_encoders_side_by_side(splits, tmp_path):
    for split, data in splits.items():
        data.to_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    finished = python(
        "scripts/probe.py", "--model", "random:resnet18-half", "--size", "32", "--source", str(tmp_path / "data"),
        "--output", str(tmp_path / "out"), "--probes", "knn",
    )  # fmt: skip
    page = finished.stdout.split()[-1]
    assert "knn accuracy" in (tmp_path / page).read_text()
    assert (tmp_path / "out" / "encoder-0" / "results.json").exists()
