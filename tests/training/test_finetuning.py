import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset, Features, Image, Value
from safetensors.torch import load_file
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    BitImageProcessor,
    Dinov2Model,
    ResNetForImageClassification,
    TrainerState,
    pipeline,
)

from eden_hf import EdenForPreTraining, EdenImageProcessor
from eden_hf.data.errors import SourceError
from eden_hf.data.phantoms import phantom_dataset
from eden_hf.data.skips import TooManyUnreadable, skipped_entries
from eden_hf.data.tasks import Task, TaskError, load_source_task
from eden_hf.evaluation import statistics
from eden_hf.evaluation.downstream import evaluate_finetuned, evaluate_mean_mask, intervals
from eden_hf.modeling_eden_trunk import FINAL_NORMS
from eden_hf.training import finetuning
from eden_hf.training.checkpoints import seal
from eden_hf.training.downstream_data import TaskImages, augment, label_scale, row_masks, with_holdouts
from eden_hf.training.downstream_metrics import measure, overlaps, unmeasured_labels
from eden_hf.training.finetune_arguments import (
    AugmentationArguments,
    FinetuneArguments,
    FinetuneRunArguments,
    FinetuneTrainingArguments,
    Recipe,
    StartArguments,
    TaskArguments,
)
from eden_hf.training.finetuning import (
    SealedCheckpoints,
    TaskTrainer,
    _last_checkpoint,
    finetune,
    finetune_few_shot,
    load_start,
)
from eden_hf.training.settings import parse_settings, read_settings

from ..launching import ENVIRONMENT, torchrun
from ..tiny import BACKBONES, ENCODERS, tiny_config

STRUCTURES = ("heart", "left_lung")
STILL = AugmentationArguments(rotation_degrees=0, scale=0, shift=0, contrast=0, brightness=0)


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 60)


@pytest.fixture(scope="module")
def eden_folder(tmp_path_factory):
    """A pretraining folder on a tiny trunk."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("eden")
    EdenForPreTraining(tiny_config(decoder_hidden_size=16)).save_pretrained(folder)
    EdenImageProcessor(size={"height": 32, "width": 32}, intensity="per_image").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Parquet of dark and bright images, with labels of every kind that follow from the brightness."""
    rng = np.random.default_rng(0)
    rows = []
    for index in range(40):
        bright = index % 2
        pixels = rng.integers(120 * bright, 120 * bright + 100, (40, 32), np.uint8)
        known = float(bright) if index % 5 else None
        rows.append(
            {"image": _png(pixels), "source_id": f"image-{index}", "shade": ("dark", "bright")[bright]}
            | {"bright": known, "dark": 1.0 - bright, "never": 0.0, "age": 40.0 + 20 * bright, "patient": index // 4}
        )
    features = Features({"image": Image(), "source_id": Value("string"), "shade": Value("string")})
    features |= {name: Value("float32") for name in ("bright", "dark", "never", "age")} | {"patient": Value("int32")}
    folder = tmp_path_factory.mktemp("labelled")
    Dataset.from_list(rows, features=Features(features)).to_parquet(folder / "train-0.parquet")
    return folder


def _png(pixels):
    from PIL import Image as PILImage

    return PILImage.fromarray(pixels)


def settings(folder, task, steps=12, start="random:resnet18-half", run=None, **model):
    """Of a tiny run."""
    return FinetuneArguments(
        task=task,
        model=StartArguments(name=str(start), **{"size": 32, **model}),
        training=FinetuneTrainingArguments(steps=steps, batch_size=8, evaluations=3, learning_rate=3e-3),
        run=FinetuneRunArguments(output_dir=str(folder), num_workers=0, cache_images=True, log_every=1, **(run or {})),
    )


def phantoms(**changes):
    return TaskArguments(source="phantoms:20", mask_columns=list(STRUCTURES), id_column="image_id", **changes)


@pytest.fixture(scope="module")
def segmented(eden_folder, tmp_path_factory):
    """A finished segmentation run with all of its checkpoints."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("runs") / "segmented"
    finetune(settings(folder, phantoms(), start=eden_folder, run={"keep_checkpoints": 9}))
    return folder


def logged(folder, key):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if key in line]


def test_segmentation_learns_and_its_folder_serves_auto_classes_and_pipeline(segmented):
    losses = logged(segmented, "loss")
    assert np.mean(losses[-3:]) < 0.8 * losses[0]
    model = AutoModelForSemanticSegmentation.from_pretrained(segmented / "best")
    assert type(model).__name__ == "EdenForSemanticSegmentation"
    assert model.config.id2label == dict(enumerate(STRUCTURES))
    image = phantom_dataset(1)[0]["image"]
    found = pipeline("image-segmentation", model=str(segmented / "best"))(image)
    assert [(part["label"], part["mask"].size) for part in found] == [(name, image.size) for name in STRUCTURES]


def test_the_best_folder_is_the_checkpoint_of_the_best_validation(eden_folder, tmp_path, monkeypatch):
    scores = iter([0.3, 0.9, 0.1])
    monkeypatch.setattr(finetuning, "_validation_metrics", lambda *found: {"dice": next(scores)})
    folder = finetune(settings(tmp_path / "run", phantoms(), 3, start=eden_folder, run={"keep_checkpoints": 9}))
    assert logged(folder, "eval_dice") == [0.3, 0.9, 0.1]
    assert_same_weights(folder / "best", folder / "checkpoints" / "checkpoint-2")


def test_without_validation_all_images_train_and_the_last_weights_are_kept(eden_folder, tmp_path):
    task = phantoms(validation_share=0)
    sizes = {"decoder_hidden_size": 8, "decoder_detail_size": 4}
    run = settings(tmp_path / "run", task, 3, start=eden_folder, run={"keep_checkpoints": 9}, **sizes)
    run.training.channels_last = True
    folder = finetune(run)
    assert json.loads((folder / "environment.json").read_text())["images"] == {"train": 16, "test": 4}
    assert not logged(folder, "eval_dice")
    assert_same_weights(folder / "best", folder / "checkpoints" / "checkpoint-3")
    model = AutoModelForSemanticSegmentation.from_pretrained(folder / "best")
    assert model.config.decoder_hidden_size == 8
    assert model.decoder.detail[1][0].out_channels == 4
    assert evaluate_finetuned(folder).values["dice"].n == 4


def test_another_folder_of_the_same_model_may_be_scored_in_place_of_the_best(segmented, tmp_path):
    shutil.copytree(segmented / "best", tmp_path / "half")
    AutoModelForSemanticSegmentation.from_pretrained(segmented / "best", dtype="float16").save_pretrained(
        tmp_path / "half"
    )
    half, best = evaluate_finetuned(segmented, tmp_path / "half"), evaluate_finetuned(segmented)
    assert half.encoder == best.encoder
    assert half.revision != best.revision == evaluate_finetuned(segmented, segmented / "best").revision
    assert half.values["dice"].value == pytest.approx(best.values["dice"].value, abs=0.02)


def test_the_mean_mask_is_where_half_of_the_training_images_have_the_structure(segmented):
    results = evaluate_mean_mask(segmented)
    arguments = read_settings(FinetuneArguments, segmented / "config.yaml")
    splits = with_holdouts(arguments.task.load(), arguments.task)
    train, test = (np.stack([row_masks(row) for row in splits[name]]) for name in ("train", "test"))
    mean = train.mean(axis=0) >= 0.5  # the phantoms are of one size; the run's is smaller
    expected = 2 * (mean & test).sum((2, 3)) / (mean.sum((1, 2)) + test.sum((2, 3)))
    assert results.values["dice"].value == pytest.approx(expected.mean(), abs=0.02)
    assert results.values["dice"].n == len(test)
    assert results.settings["images_with"] == dict.fromkeys(results.settings["images_with"], len(test))
    assert results.data_hash == evaluate_finetuned(segmented).data_hash


def test_results_of_the_test_split_are_those_of_the_pipeline(segmented):
    results = evaluate_finetuned(segmented)
    arguments = read_settings(FinetuneArguments, segmented / "config.yaml")
    rows = with_holdouts(arguments.task.load(), arguments.task)["test"]
    assert results.values["dice"].n == len(rows) == results.settings["images"] == 4
    segmenter, dices = pipeline("image-segmentation", model=str(segmented / "best")), []
    for row in rows:
        image = next(p["image"] for p in phantom_dataset(20) if p["image_id"] == row["source_id"])
        predicted = np.stack([np.asarray(part["mask"]) > 0 for part in segmenter(image)])
        true = row_masks(row)
        dices.append(2 * (predicted & true).sum((1, 2)) / (predicted.sum((1, 2)) + true.sum((1, 2))))
    assert results.values["dice"].value == pytest.approx(np.mean(dices), abs=1e-3)
    assert results.values["dice_heart"].value == pytest.approx(np.mean(dices, axis=0)[0], abs=1e-3)
    assert results.values["dice"].low <= results.values["dice"].value <= results.values["dice"].high
    assert results.values["iou"].value < results.values["dice"].value
    assert results.save(segmented).name == "results.json"


def test_a_resumed_run_equals_an_uninterrupted_one(segmented, eden_folder, tmp_path):
    folder = tmp_path / "resumed"
    shutil.copytree(segmented, folder)
    for later in ("checkpoints/checkpoint-8", "checkpoints/checkpoint-12", "best"):
        shutil.rmtree(folder / later)
    state = folder / "checkpoints" / "checkpoint-4" / "trainer_state.json"
    state.write_text(state.read_text().replace(str(segmented), str(folder)))
    seal(state.parent)
    finetune(settings(folder, phantoms(), start=eden_folder, run={"keep_checkpoints": 9}), resume=True)
    for name in ("checkpoints/checkpoint-8", "checkpoints/checkpoint-12", "best"):
        assert_same_weights(segmented / name, folder / name)
    assert logged(folder, "loss") == logged(segmented, "loss")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_run_that_a_signal_stopped_resumes_to_the_uninterrupted_one(
    number, segmented, eden_folder, tmp_path, monkeypatch
):
    steps = iter(range(1, 100))
    training_step = TaskTrainer.training_step

    def signalled(*arguments, **options):
        if next(steps) == 6:  # no step of a scheduled checkpoint
            os.kill(os.getpid(), number)
        return training_step(*arguments, **options)

    monkeypatch.setattr(TaskTrainer, "training_step", signalled)
    recipe = settings(tmp_path / "run", phantoms(), start=eden_folder, run={"keep_checkpoints": 9})
    folder = finetune(recipe)
    assert (folder / "checkpoints" / "checkpoint-6" / "trainer_state.json").exists()
    assert not (folder / "best").exists()
    finetune(recipe, resume=True)
    assert_same_weights(segmented / "best", folder / "best")
    assert logged(folder, "loss") == logged(segmented, "loss")


def test_checkpoints_are_kept_by_their_steps_whatever_the_clock_says(tmp_path):
    for step in (4, 8, 12, 30, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "weights").write_text(str(step))
        os.utime(tmp_path / f"checkpoint-{step}", (1e9 - step, 1e9 - step))
        state = TrainerState(global_step=step, best_model_checkpoint=str(tmp_path / "checkpoint-8"))
        SealedCheckpoints(2).on_save(SimpleNamespace(output_dir=str(tmp_path)), state, None)
    kept = ["checkpoint-100", "checkpoint-30", "checkpoint-8"]
    assert sorted(path.name for path in tmp_path.iterdir()) == kept


def test_a_damaged_checkpoint_of_trainer_gives_way_to_the_one_before(tmp_path, caplog):
    for step in (4, 8, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
        if step < 12:
            seal(tmp_path / f"checkpoint-{step}")  # a kill came before the last was
    (tmp_path / "checkpoint-8" / "trainer_state.json").write_text("{")
    assert _last_checkpoint(tmp_path) == tmp_path / "checkpoint-4"
    assert "checkpoint-8 is damaged (trainer_state.json" in caplog.text


@pytest.mark.slow
def test_sigterm_to_workers_too_ends_in_a_checkpoint(eden_folder, tmp_path):
    file = tmp_path / "settings.yaml"
    run = {"output_dir": str(tmp_path / "run"), "num_workers": 2, "log_every": 1}
    training = {"steps": 500, "batch_size": 8, "evaluations": 1}
    file.write_text(
        yaml.safe_dump({
            "task": {"source": "phantoms:20", "mask_columns": ["heart"], "id_column": "image_id"},
            "model": {"name": str(eden_folder), "size": 32}, "training": training, "run": run,
        })
    )  # fmt: skip
    command = [sys.executable, "-m", "eden_hf", "finetune", f"--config={file}"]
    process = subprocess.Popen(
        command, env=ENVIRONMENT, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    said = []
    for line in process.stdout:
        said.append(line)
        if "'loss'" in line:  # a step of training is over
            os.killpg(process.pid, signal.SIGTERM)
            break
    said.append(process.stdout.read())
    assert process.wait(timeout=60) == 0, "".join(said)
    assert list((tmp_path / "run" / "checkpoints").glob("checkpoint-*/trainer_state.json")), "".join(said)


def test_a_run_is_not_written_over_nor_gone_on_with_by_other_settings(segmented, eden_folder, tmp_path):
    with pytest.raises(FileExistsError, match="--resume"):
        finetune(settings(segmented, phantoms(), start=eden_folder))
    with pytest.raises(ValueError, match=r"training.steps: 12 -> 13"):
        finetune(settings(segmented, phantoms(), steps=13, start=eden_folder), resume=True)
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        finetune(settings(tmp_path, phantoms()), resume=True)


def test_unreadable_images_are_found_before_the_first_step(labelled, eden_folder, tmp_path):
    """Counted, listed, and left out where that is allowed, on resuming and on evaluating too."""
    rows = Dataset.from_parquet(str(labelled / "train-0.parquet")).cast_column("image", Image(decode=False))
    torn = [row["source_id"] for row in rows][::13]

    def tear(row):
        return {"image": {"bytes": row["image"]["bytes"][:60], "path": None}} if row["source_id"] in torn else {}

    source = tmp_path / "source"
    source.mkdir()
    rows.map(tear, features=rows.features).to_parquet(source / "train-0.parquet")
    task = labelled_task(source, "regression", "age")
    arguments = settings(tmp_path / "run", task, 4, start=eden_folder)
    with pytest.raises(TooManyUnreadable, match=r"4 of 40 images .*run/skipped.jsonl"):
        finetune(arguments)
    assert sorted(entry["source_id"] for entry in skipped_entries(tmp_path / "run" / "skipped.jsonl")) == sorted(torn)
    task.max_skipped_share = 0.1
    folder = finetune(arguments)
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["images_skipped"] == 4
    assert sum(environment["images"].values()) == 36
    finetune(arguments, resume=True)
    assert evaluate_finetuned(folder).settings["images"] == environment["images"]["test"]
    rows.to_parquet(source / "train-0.parquet")  # mended
    with pytest.raises(ValueError, match="had other images"):
        finetune(arguments, resume=True)


def test_a_run_is_not_evaluated_on_images_it_learned_from(labelled, eden_folder, tmp_path):
    """As when images were added: those that are held out are others then."""
    source = tmp_path / "source"
    shutil.copytree(labelled, source)
    folder = finetune(settings(tmp_path / "run", labelled_task(source, "regression", "age"), 2, start=eden_folder))
    rows = Dataset.from_parquet(str(source / "train-0.parquet"))
    rows.select(range(35)).to_parquet(source / "train-0.parquet")
    with pytest.raises(ValueError, match="had other images"):
        evaluate_finetuned(folder)


def assert_same_weights(one, other):
    one, other = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def labelled_task(folder, kind, *columns):
    named = {"label_column": columns[0]} if kind == "single_label" else {"label_columns": list(columns)}
    shares = {"test_share": 0.3, "validation_share": 0.3}
    return TaskArguments(source=str(folder), kind=kind, id_column="source_id", **shares, **named)


def test_single_label_classification(labelled, eden_folder, tmp_path):
    # Shades are what tells the classes apart: the model's own per-image policy would hide them.
    task = labelled_task(labelled, "single_label", "shade")
    arguments = settings(tmp_path / "run", task, 40, start=eden_folder, intensity="fixed")
    folder = finetune(arguments)
    results = evaluate_finetuned(folder)
    assert set(results.values) == {"accuracy", "auc", "auc_bright", "auc_dark"}
    assert results.values["accuracy"].value > 0.7
    model = AutoModelForImageClassification.from_pretrained(folder / "best")
    assert model.config.problem_type == "single_label_classification"
    classifier = pipeline("image-classification", model=str(folder / "best"))
    rows = arguments.task.load().splits["train"].cast_column("image", Image())
    right = [classifier(row["image"])[0]["label"] == ("bright", "dark")[row["label"]] for row in rows]
    assert np.mean(right) > 0.8


def test_multi_label_classification_reports_labels_without_auc(labelled, eden_folder, tmp_path, caplog):
    task = labelled_task(labelled, "multi_label", "bright", "dark", "never")
    folder = finetune(settings(tmp_path / "run", task, 40, start=eden_folder, intensity="fixed"))
    results = evaluate_finetuned(folder)
    assert results.settings["unmeasured_labels"] == ["never"]
    assert "no AUC for never" in caplog.text
    assert set(results.values) == {"auc", "auc_bright", "auc_dark"}
    assert results.values["auc"].value > 0.9
    assert AutoConfig.from_pretrained(folder / "best").problem_type == "multi_label_classification"


def test_regression_predicts_in_the_labels_own_units(labelled, eden_folder, tmp_path):
    task = labelled_task(labelled, "regression", "age")
    folder = finetune(settings(tmp_path / "run", task, 60, start=eden_folder, intensity="fixed"))
    results = evaluate_finetuned(folder)
    assert results.settings["metric"] == "mae"
    assert results.values["mae"].value < 7  # of labels 40 and 60
    assert results.values["r2"].value > 0
    scores = logged(folder, "eval_mae")
    assert min(scores) < 10
    assert evaluate_finetuned(folder).values == results.values


def test_a_frozen_trunk_stays_as_it_is(eden_folder, tmp_path):
    folder = finetune(settings(tmp_path / "run", phantoms(), 4, start=eden_folder, freeze=True))
    before, after = load_file(eden_folder / "model.safetensors"), load_file(folder / "best" / "model.safetensors")
    trunk = [name for name in after if name.startswith("eden.")]
    assert any("running_mean" in name for name in trunk)
    assert [name for name in trunk if not torch.equal(before[name], after[name])] == []


def test_a_run_without_progress_stops(labelled, eden_folder, tmp_path):
    task = labelled_task(labelled, "single_label", "shade")
    arguments = settings(tmp_path / "run", task, start=eden_folder, freeze=True)  # a linear probe
    arguments.training.learning_rate, arguments.training.patience, arguments.run.num_workers = 1e-12, 1, 1
    folder = finetune(arguments)
    assert max(logged(folder, "step")) == 8  # of 12: validated at 4 and 8


def test_lora_trains_beside_the_trunk_and_leaves_a_plain_folder(eden_folder, tmp_path):
    pytest.importorskip("peft")
    folder = finetune(settings(tmp_path / "run", phantoms(), start=eden_folder, lora_rank=2))
    before, after = load_file(eden_folder / "model.safetensors"), load_file(folder / "best" / "model.safetensors")
    moved = [name for name in after if name.startswith("eden.") and not torch.equal(before[name], after[name])]
    assert moved
    assert all(name.endswith("weight") and before[name].ndim == 4 for name in moved)
    AutoModelForSemanticSegmentation.from_pretrained(folder / "best")
    saved = [name for name in (folder / "checkpoints" / "checkpoint-12").iterdir() if name.suffix == ".safetensors"]
    assert [file.name for file in saved] == ["adapter_model.safetensors"]
    assert evaluate_finetuned(folder).values["dice"].value == pytest.approx(max(logged(folder, "eval_dice")), abs=0.2)


def stock_folder(path, kind):
    torch.manual_seed(5)  # not the run's
    if kind == "resnet":
        config = AutoConfig.for_model(**BACKBONES["resnet"])
        config.num_labels = 7
        ResNetForImageClassification(config).save_pretrained(path)
    else:
        Dinov2Model(AutoConfig.for_model(**BACKBONES["dinov2"])).save_pretrained(path)
    BitImageProcessor(
        size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}, image_mean=[0.3] * 3, image_std=[0.2] * 3
    ).save_pretrained(path)
    return path


@pytest.mark.parametrize("kind", ["resnet", "dinov2"])
@pytest.mark.parametrize("task_kind", ["segmentation", "single_label"])
def test_a_stock_transformers_model_gives_its_weights_to_the_trunk(kind, task_kind, tmp_path):
    folder = stock_folder(tmp_path, kind)
    model, processor = load_start(StartArguments(str(folder)), task_kind, ("a", "b"), seed=0)
    stock = load_file(folder / "model.safetensors")
    taken = model.eden.backbone.state_dict()
    shared = [name for name in stock if name.removeprefix("resnet.") in taken]
    assert len(shared) > 20
    for name in shared:
        assert torch.equal(stock[name], taken[name.removeprefix("resnet.")]), name
    assert (processor.size["height"], processor.size["width"]) == (32, 32)  # what the stock one cuts images to
    assert (processor.intensity, list(processor.image_mean)) == ("fixed", [0.3] * 3)
    assert model(torch.rand(2, 3, 32, 32)).logits.shape[:2] == (2, 2)


def test_fresh_weights_are_those_of_the_seed(eden_folder):
    start = StartArguments(f"random:{eden_folder}")
    one, again, other = (load_start(start, "segmentation", ("a",), seed)[0] for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    weights = [next(p for p in model.eden.parameters() if p.ndim == 4) for model in (one, other)]
    assert not torch.equal(*weights)


@pytest.mark.parametrize("kind", ["eden", "stock", "random:"])
def test_a_start_in_half_precision_is_trained_in_float32(kind, eden_folder, tmp_path):
    if kind == "stock":
        model = AutoModel.from_pretrained(stock_folder(tmp_path / "stock", "resnet"))
    else:
        model = EdenForPreTraining.from_pretrained(eden_folder)
    model.bfloat16().save_pretrained(tmp_path / "half")
    EdenImageProcessor().save_pretrained(tmp_path / "half")
    name = f"random:{tmp_path / 'half'}" if kind == "random:" else str(tmp_path / "half")
    started, _ = load_start(StartArguments(name), "segmentation", ("a",), seed=0)
    assert {parameter.dtype for parameter in started.parameters()} == {torch.float32}
    started.save_pretrained(tmp_path / "best")
    again = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "best")
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}
    if kind == "eden":
        folder = finetune(settings(tmp_path / "run", phantoms(), 1, start=name))
        assert json.loads((folder / "environment.json").read_text())["start_dtypes"] == ["BF16"]


def trainer(monkeypatch, eden_folder, folder, **training):
    """The `TaskTrainer` of a run that is about to begin."""
    caught = []
    monkeypatch.setattr(TaskTrainer, "train", lambda self, **options: caught.append(self))
    arguments = settings(folder, phantoms(), start=eden_folder)
    arguments.training = dataclasses.replace(arguments.training, **training)
    finetune(arguments)
    return caught[0]


def test_the_last_batch_is_filled_by_other_images_each_epoch(monkeypatch, eden_folder, tmp_path):
    mine = trainer(monkeypatch, eden_folder, tmp_path / "run", batch_size=8)
    assert len(mine.train_dataset) == 14
    monkeypatch.setattr(TaskImages, "__getitem__", lambda self, index: {"labels": torch.tensor(index)})
    epochs = []
    for mine.state.global_step in (0, 2, 4, 6):  # two steps an epoch
        epochs.append(torch.cat([batch["labels"] for batch in mine.get_train_dataloader()]).tolist())
    assert all(len(epoch) == 16 and set(epoch) == set(range(14)) for epoch in epochs)
    assert len({tuple(epoch[14:]) for epoch in epochs}) > 1


def test_the_optimiser_of_fine_tuning_decays_maps_alone(monkeypatch, eden_folder, tmp_path):
    mine = trainer(monkeypatch, eden_folder, tmp_path / "run", weight_decay=0.3)
    maps, others = mine.create_optimizer().param_groups
    assert (maps["weight_decay"], others["weight_decay"]) == (0.3, 0)
    assert {parameter.ndim for parameter in maps["params"]} == {4}
    assert {parameter.ndim for parameter in others["params"]} == {1}


def test_what_cannot_be_trained_names_its_settings(monkeypatch, eden_folder, tmp_path):
    arguments = settings(tmp_path / "run", phantoms(), start=eden_folder)
    arguments.training.batch_size = 1
    with pytest.raises(ValueError, match=r"`training.batch_size` .*`model.size`"):
        finetune(arguments)
    arguments.training.batch_size = 8  # nothing is in the way of a better setting
    arguments.training.mixed_precision = "fp16"
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"fp16 needs a GPU"):
        finetune(arguments)
    arguments.training = dataclasses.replace(arguments.training, mixed_precision="no", steps=1)
    finetune(arguments)


def few_rows():
    task = load_source_task(phantom_dataset(8), "segmentation", mask_columns=STRUCTURES, id_column="image_id")
    rows = task.splits["train"]
    return rows.select(range(3)), rows.select(range(3, 5)), rows.select(range(5, 8))


def test_few_shots_are_scored_image_by_image_and_seeded(eden_folder):
    train, validation, test = few_rows()
    recipe = Recipe(
        model=StartArguments(size=32), training=FinetuneTrainingArguments(steps=10, batch_size=4, evaluations=2)
    )
    dices = finetune_few_shot(str(eden_folder), train, validation, test, STRUCTURES, recipe, seed=1)
    assert dices.shape == (3, 2)
    assert ((dices > 0) & (dices <= 1)).all()
    again = finetune_few_shot(str(eden_folder), train, validation, test, STRUCTURES, recipe, seed=1)
    other = finetune_few_shot(str(eden_folder), train, None, test, STRUCTURES, recipe, seed=2)
    assert np.array_equal(dices, again)
    assert not np.array_equal(dices, other)


def test_three_shots_are_learned_by_heart(eden_folder):
    train, _, _ = few_rows()
    recipe = Recipe(
        StartArguments(size=64, intensity="per_image"),
        STILL,
        FinetuneTrainingArguments(steps=60, batch_size=3, learning_rate=3e-3),
    )
    dices = finetune_few_shot(f"random:{eden_folder}", train, None, train, STRUCTURES, recipe, seed=0)
    assert dices.min() > 0.85


@pytest.mark.parametrize("elastic", [0, 0.03])
def test_masks_follow_their_images(elastic):
    torch.manual_seed(0)
    masks = (torch.rand(4, 2, 6, 8) > 0.5).float().repeat_interleave(8, 2).repeat_interleave(8, 3)
    images = torch.stack([masks[:, 0], masks[:, 1], masks[:, 0]], dim=1)
    affine = {"rotation_degrees": 30, "scale": 0.3, "shift": 0.1} if not elastic else {}
    settings = dataclasses.replace(STILL, elastic=elastic, **affine)
    moved, moved_masks = augment(images, masks, settings, seed=(3, 1))
    assert (moved_masks - masks).abs().mean() > (0.1 if not elastic else 0.03)
    assert ((moved_masks > 0.01) & (moved_masks < 0.99)).any()  # edges between pixels stay there
    inside = (moved_masks[:, :1] + moved_masks[:, 1:]) > 0  # beyond the edge images repeat it and masks are empty
    agree = ((moved[:, :2] > 0.5) == (moved_masks > 0.5))[inside.expand(-1, 2, -1, -1)].float().mean()
    assert agree > 0.97


def test_beyond_the_edge_masks_are_empty_and_images_repeat_it():
    ones = torch.ones(8, 3, 16, 16)
    moved, masks = augment(ones, ones[:, :1], dataclasses.replace(STILL, shift=0.4), seed=(0, 0))
    assert masks.mean() < 0.9
    assert torch.allclose(moved, ones)


def test_augmentation_follows_its_seed_and_can_be_off():
    images = torch.rand(3, 3, 16, 16)
    one, again, other = (augment(images, None, AugmentationArguments(), seed)[0] for seed in ((0, 1), (0, 1), (0, 2)))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.allclose(augment(images, None, STILL, (0, 1))[0], images, atol=1e-5)


def test_a_quarter_turn_of_an_oblong_image_keeps_its_proportions():
    image = torch.zeros(1, 3, 40, 20)
    image[..., 16:24, 8:12] = 1  # 8 high, 4 wide
    settings = dataclasses.replace(STILL, rotation_degrees=180)
    turned = [augment(image, None, settings, (seed,))[0] for seed in range(30)]
    areas = torch.stack([t[:, 0].sum() for t in turned])
    assert (areas - 32).abs().max() < 3
    assert max((t[0, 0] > 0.5).any(dim=0).sum() for t in turned) >= 7


@pytest.mark.parametrize(("kind", "column"), [("single_label", "shade"), ("multi_label", "dark")])
def test_patients_are_held_out_whole(kind, column, labelled):
    task = dataclasses.replace(labelled_task(labelled, kind, column), patient_column="patient")
    whole = task.load()
    splits = with_holdouts(whole, task)
    seen = [set(splits[name]["patient"]) for name in ("train", "validation", "test")]
    assert [len(patients) for patients in seen] == [5, 2, 3]
    assert len(set.union(*seen)) == 10
    assert list(with_holdouts(whole, task)["test"]["source_id"]) == list(splits["test"]["source_id"])
    with pytest.raises(SourceError, match=r"'ward'.*source_id"):
        with_holdouts(whole, dataclasses.replace(task, patient_column="ward"))
    with pytest.raises(TaskError, match=r"no column ward"):
        dataclasses.replace(task, patient_column="ward").load()


def test_intervals_resample_patients():
    task = Task("t", "regression", ("age",), "mae", {})
    errors = np.repeat([[0.0], [1.0]], 50, axis=0)
    images = intervals(task, errors, np.zeros((100, 1)))["mae"]
    patients = intervals(task, errors, np.zeros((100, 1)), np.repeat([0, 1], 50))["mae"]
    assert images.value == patients.value == 0.5
    assert (images.n, patients.n) == (100, 2)
    assert 0.35 < images.low < images.high < 0.65
    assert patients.low < 0 < 1 < patients.high  # two patients say hardly anything


def test_labels_become_tensors(labelled):
    processor = EdenImageProcessor(size={"height": 16, "width": 16})
    several = labelled_task(labelled, "multi_label", "bright", "dark").load().splits["train"]
    item = TaskImages(several, "multi_label", processor)[0]
    assert item["pixel_values"].shape == (3, 16, 16)
    assert item["labels"].isnan().tolist() == [True, False]
    ages = labelled_task(labelled, "regression", "age").load().splits["train"]
    scale = label_scale(ages)
    assert [float(value) for value in scale] == [50, 10]
    assert TaskImages(ages, "regression", processor, scale)[1]["labels"].tolist() == [1]
    unknown = labelled_task(labelled, "regression", "bright").load().splits["train"]
    with pytest.raises(TaskError, match=r"8 images .* image-0, image-5"):
        label_scale(unknown)


def test_metrics_by_hand():
    pixels, true = np.array([[[3, 4], [0, 0]]]), np.array([[5, 0]])
    dices, ious = overlaps(pixels, true)
    assert dices[0] == pytest.approx([6 / 9, np.nan], nan_ok=True)
    assert ious[0] == pytest.approx([3 / 6, np.nan], nan_ok=True)
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7]])
    found = measure("single_label", ("a", "b"), probabilities, np.array([0, 1, 1]))
    assert found == pytest.approx({"accuracy": 2 / 3, "auc": 1, "auc_a": 1, "auc_b": 1})
    truths = np.array([[1, np.nan], [0, 1], [np.nan, 1]])
    found = measure("multi_label", ("a", "b"), probabilities, truths)
    assert found["auc"] == found["auc_a"] == 1
    assert np.isnan(found["auc_b"])
    found = measure("regression", ("age",), np.array([[1.0], [2], [4]]), np.array([[1.0], [2], [3]]))
    assert found == pytest.approx({"mae": 1 / 3, "r2": 0.5})


def test_predicting_nothing_scores_nothing_on_a_rare_finding():
    """Dice is of the images that have the structure; two empty masks agree only in `all_images_dice`."""
    true = np.array([[10, 4], [0, 0], [0, 0], [0, 0]])
    nothing = np.zeros((4, 2, 2), int)
    found = measure("segmentation", ("nodule", "heart"), nothing, true)
    assert found["dice"] == found["iou"] == found["dice_nodule"] == 0
    assert found["all_images_dice"] == found["all_empty_dice"] == found["all_empty_dice_heart"] == 0.75
    learned = nothing.copy()
    learned[0, 0], learned[1, 0] = (5, 10), (0, 3)  # half of the nodule, and one more where there is none
    found = measure("segmentation", ("nodule",), learned[:, :1], true[:, :1])
    assert found == pytest.approx({"dice": 0.5, "iou": 1 / 3, "all_images_dice": 2.5 / 4, "all_empty_dice": 0.75})


def test_a_structure_that_no_image_has_is_not_measured_but_named(caplog):
    found = measure("segmentation", ("heart", "stone"), np.array([[[3, 4], [0, 0]]]), np.array([[5, 0]]))
    assert found["dice"] == found["dice_heart"] == pytest.approx(6 / 9)
    assert np.isnan(found["dice_stone"])
    assert unmeasured_labels(found, ("heart", "stone"), "test") == ["stone"]
    assert "no Dice for stone: the test images show none" in caplog.text
    alone = measure("segmentation", ("stone",), np.zeros((1, 1, 2)), np.zeros((1, 1)))
    assert unmeasured_labels(alone, ("stone",), "test") == ["stone"]


def test_validation_images_without_any_structure_are_an_error():
    found = SimpleNamespace(predictions=np.zeros((3, 1, 2)), label_ids=np.zeros((3, 1)))
    with pytest.raises(ValueError, match=r"dice of the 3 validation images .* none of them has a structure"):
        finetuning._validation_metrics(Task("rare", "segmentation", ("stone",), "dice", {}), "dice", found)


def test_a_validation_split_that_cannot_judge_is_an_error(labelled, tmp_path):
    task = labelled_task(labelled, "multi_label", "never")
    with pytest.raises(ValueError, match=r"auc of the .* validation images .*task.validation_share"):
        finetune(settings(tmp_path / "run", task, 3))


def test_a_metric_of_another_kind_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"dice or iou, got 'auc'"):
        finetune(settings(tmp_path / "run", phantoms(metric="auc")))


@pytest.mark.slow
def test_two_processes_share_a_run(eden_folder, tmp_path):
    (tmp_path / "config.yaml").write_text(settings(tmp_path / "run", phantoms(), 4, start=eden_folder).to_yaml())
    finished = torchrun(2, "scripts/finetune.py", f"--config={tmp_path / 'config.yaml'}")
    assert "| dice |" in finished.stdout
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["processes"] == 2
    assert json.loads((tmp_path / "run" / "results.json").read_text())["values"]["dice"]["n"] == 4
    AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "run" / "best")


@pytest.mark.slow
def test_two_processes_resumed_within_an_epoch_equal_an_uninterrupted_run(eden_folder, tmp_path):
    """The order of the epoch goes on where it was, and so does what fills its last batch."""
    arguments = settings(tmp_path / "run", phantoms(), 9, start=eden_folder, run={"keep_checkpoints": 9})
    (tmp_path / "config.yaml").write_text(arguments.to_yaml())
    torchrun(2, "scripts/finetune.py", f"--config={tmp_path / 'config.yaml'}")
    (tmp_path / "run").rename(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    for later in ("checkpoints/checkpoint-6", "checkpoints/checkpoint-9", "best"):
        shutil.rmtree(tmp_path / "run" / later)
    torchrun(2, "scripts/finetune.py", f"--config={tmp_path / 'config.yaml'}", "--resume")
    assert logged(tmp_path / "run", "loss") == logged(tmp_path / "whole", "loss")
    for name in ("checkpoints/checkpoint-6", "checkpoints/checkpoint-9", "best"):
        assert_same_weights(tmp_path / "run" / name, tmp_path / "whole" / name)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--training.learningrate=1", ["training.learning_rate"]),
        ("--training.learning_rate=0", ["training.learning_rate", "above 0"]),
        ("--model.frieze=true", ["model.freeze"]),
        ("--task.kind=segmentatoin", ["segmentation"]),
        ("--task.name=scr_heart", ["task.data_dir"]),
        ("--augmentation.scale=1.5", ["augmentation.scale", "[0, 1)"]),
        ("--task.validation_share=1", ["task.validation_share"]),
    ],
)
def test_a_wrong_setting_is_named_with_its_mend(option, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse_settings(FinetuneArguments, [option], prog="eden finetune")
    message = capsys.readouterr().err
    assert stopped.value.code == 2
    assert [word for word in words if word not in message] == [], message


def test_every_finetuning_config_reads_and_its_yaml_reads_back(tmp_path, pytestconfig):
    files = sorted((pytestconfig.rootpath / "configs").glob("finetune_*.yaml"))
    assert files
    for file in files:
        arguments = read_settings(FinetuneArguments, file)
        (tmp_path / "config.yaml").write_text(arguments.to_yaml())
        assert read_settings(FinetuneArguments, tmp_path / "config.yaml") == arguments
        assert f"scripts/finetune.py --config configs/{file.name}" in file.read_text()


def test_a_regression_goes_on_at_the_scale_of_its_labels(labelled, eden_folder, tmp_path):
    task = labelled_task(labelled, "regression", "age")
    best = finetune(settings(tmp_path / "run", task, 4, start=eden_folder)) / "best"
    again = finetune(settings(tmp_path / "again", task, 4, start=best))
    assert logged(again, "loss")[0] < 10  # of labels around 50, whose squares are thousands


def test_the_processor_pads_with_the_label_that_the_model_ignores(tmp_path):
    EdenForPreTraining(tiny_config(semantic_loss_ignore_index=-100)).save_pretrained(tmp_path)
    EdenImageProcessor().save_pretrained(tmp_path)
    _, processor = load_start(StartArguments(name=str(tmp_path)), "segmentation", STRUCTURES, seed=0)
    assert processor.semantic_loss_ignore_index == -100


@pytest.mark.parametrize("model_type", [*ENCODERS])
def test_every_stock_encoder_starts_as_it_was(model_type, tmp_path):
    """Its own average of the last map, with its own final norm."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING[model_type](**ENCODERS[model_type])
    stock = AutoModel.from_config(config).eval()
    for weight in stock.parameters():  # as far from fresh as trained ones, norms above all
        torch.nn.init.kaiming_normal_(weight) if weight.ndim > 1 else torch.nn.init.uniform_(weight, 0.1, 2)
    stock.save_pretrained(tmp_path)
    EdenImageProcessor().save_pretrained(tmp_path)
    model, _ = load_start(StartArguments(name=str(tmp_path)), "single_label", ("a", "b"), seed=0)
    side = getattr(getattr(config, "vision_config", config), "image_size", 64)
    images, stock = torch.rand(2, 3, *np.broadcast_to(side, 2)), getattr(stock, "vision_model", stock)
    with torch.inference_mode():
        outputs, ours = stock(images), model.eval().eden(images)
    last = outputs.last_hidden_state
    if last.ndim == 4 or model_type in FINAL_NORMS:
        expected = outputs.get("pooler_output")
        expected = last.mean(dim=(2, 3)) if expected is None else expected.flatten(1)
    else:
        before = last.shape[1] - ours.last_hidden_state[0, 0].numel() - getattr(config, "num_detection_tokens", 0)
        expected = last[:, before : before + ours.last_hidden_state[0, 0].numel()].mean(dim=1)
    cosine = torch.nn.functional.cosine_similarity(ours.pooler_output, expected)
    assert (cosine > 1 - 1e-5).all(), cosine
