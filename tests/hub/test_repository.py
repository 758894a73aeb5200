"""The folder that is made of a run: everything that the layout promises, and nothing else."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForSemanticSegmentation

from eden_hf import EdenForPreTraining, EdenImageProcessor, EdenModel, EdenV2ForPreTraining
from eden_hf.evaluation.pruner_audit import audit_pruner
from eden_hf.evaluation.results import Estimate, Results
from eden_hf.evaluation.statistics import by_patient
from eden_hf.hub.cards import CardError, check_card
from eden_hf.hub.refusals import PICKLES
from eden_hf.hub.repository import StagingError, _without_folders, stage_model
from eden_hf.training.finetuning import finetune

from ..launching import REPOSITORY
from ..tiny import tiny_config
from ..training.test_finetuning import phantoms, settings
from ..training.test_pretraining import run_pretraining
from ..training.test_pretraining_v2 import sections
from .conftest import write_card_yaml

CODE = {path.name for path in (REPOSITORY / "eden_hf").glob("*_eden*.py")}
ENDPOINT = {"handler.py", "requirements.txt"}
MODEL = {"config.json", "model.safetensors", "preprocessor_config.json", *CODE, *ENDPOINT}
TRAINING = {
    f"training/{name}" for name in ("config.yaml", "data.json", "environment.json", "loss.png", "metrics.json")
}


def names(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def test_it_holds_what_the_layout_promises(run, staged):
    results = {f"evaluation/{of}/results.{kind}" for of in ("locality", "correspondence") for kind in ("json", "md")}
    others = {"README.md", "card.yaml", "lineage.json", "SHA256SUMS", "evaluation/weights.json"}
    assert names(staged) == {*others, *MODEL, *TRAINING, *results}
    assert check_card(staged, model_id="user/tiny") == []
    assert not [name for name in names(staged) if name.endswith(PICKLES)]
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert json.loads((staged / "training" / "metrics.json").read_text()) == metrics
    recipe, own = (yaml.safe_load((folder / "config.yaml").read_text()) for folder in (staged / "training", run))
    own["run"]["output_dir"] = run.name
    own["data"]["cache_dir"] = Path(own["data"]["cache_dir"]).name
    assert recipe == own
    environment = json.loads((run / "environment.json").read_text())
    data = {"source": "phantoms:20", "split": "train", "images": 20, "images_skipped": 0}
    listed = {"list_hash": environment["image_list_hash"]}
    assert json.loads((staged / "training" / "data.json").read_text()) == data | listed
    with Image.open(staged / "training" / "loss.png") as figure:
        assert figure.width > 400


def test_the_main_file_is_the_students_trunk_alone(run, staged):
    pretrained = EdenForPreTraining.from_pretrained(run / "last")
    published = load_file(staged / "model.safetensors")
    trunk = pretrained.eden.state_dict()
    assert published.keys() == trunk.keys()
    assert all(torch.equal(published[name], tensor) for name, tensor in trunk.items())
    config = json.loads((staged / "config.json").read_text())
    assert config["architectures"] == ["EdenModel"]
    assert config["auto_map"]["AutoModel"] == "modeling_eden.EdenModel"


def test_what_goes_on_pretraining_comes_along_if_asked(run, tmp_path):
    folder = stage_model(run / "last", tmp_path / "staged", write_card_yaml(tmp_path), pretraining=True)
    assert {name for name in names(folder) if name.startswith("pretraining/")} == {
        f"pretraining/{file}" for file in MODEL - ENDPOINT
    }
    ours = EdenForPreTraining.from_pretrained(folder / "pretraining").state_dict()
    theirs = EdenForPreTraining.from_pretrained(run / "last").state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    assert {"memory_bank", "projector.dense.weight"} <= ours.keys()


def test_a_run_of_adam_v2(tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)  # of another precision
    run = run_pretraining(tmp_path, **sections())
    AcceleratorState._reset_state(reset_partial_state=True)
    folder = stage_model(run / "last", tmp_path / "staged", write_card_yaml(tmp_path), pretraining=True)
    assert check_card(folder, model_id="user/tiny") == []
    pretrained = EdenV2ForPreTraining.from_pretrained(folder / "pretraining")
    trunk = load_file(folder / "model.safetensors")
    assert trunk.keys() == pretrained.eden.state_dict().keys()
    assert all(torch.equal(tensor, pretrained.eden.state_dict()[name]) for name, tensor in trunk.items())
    card = (folder / "README.md").read_text()
    for said in (
        "Stages: localize, 2 epochs; part_whole, 2 epochs.",
        "arXiv:2404.15672",
    ):
        assert said in card


def test_staging_again_gives_the_same_bytes_and_forgets_what_is_gone(run, report, staged, tmp_path):
    card = write_card_yaml(tmp_path)
    folder = stage_model(run / "last", tmp_path / "staged", card, [report], pretraining=True)
    stage_model(run / "last", folder, card, [report])
    assert names(folder) == names(staged)
    assert [name for name in names(folder) if (folder / name).read_bytes() != (staged / name).read_bytes()] == []


def test_a_staged_folder_is_staged_again_with_its_records(staged, tmp_path, caplog):
    """Alone, as somebody has it who got it from the Hub; results stay those of the weights that were measured."""
    published = shutil.copytree(staged, tmp_path / "published")
    half = stage_model(published, tmp_path / "half", half=True)
    (half / "NOTICE").write_text("later")
    assert "not as it was staged" not in caplog.text
    again = stage_model(half, tmp_path / "again")
    assert f"{half} is not as it was staged: SHA256SUMS: NOTICE came later" in caplog.text
    (half / "NOTICE").unlink()
    assert names(again) == names(half) == names(published)
    assert (again / "README.md").read_text() == (published / "README.md").read_text()
    assert check_card(again) == []
    told = [json.loads((folder / "evaluation" / "weights.json").read_text()) for folder in (published, half)]
    assert told[0]["staged"] == told[1]["staged"]
    assert told[0]["published"] != told[1]["published"]


def test_of_a_run_the_best_model_is_taken(run, tmp_path):
    card = write_card_yaml(tmp_path)
    whole = stage_model(run, tmp_path / "whole", card)
    best = stage_model(run / "best", tmp_path / "best", card)
    assert TRAINING <= names(whole) == names(best)
    assert (whole / "model.safetensors").read_bytes() == (best / "model.safetensors").read_bytes()


def test_a_model_folder_without_a_run(tmp_path):
    EdenModel(tiny_config()).save_pretrained(tmp_path / "model")
    EdenImageProcessor().save_pretrained(tmp_path / "model")
    folder = stage_model(tmp_path / "model", tmp_path / "staged", write_card_yaml(tmp_path))
    assert names(folder) == {"README.md", "card.yaml", "lineage.json", "SHA256SUMS", *MODEL}


def test_a_fine_tuning_run(tmp_path):
    run = finetune(settings(tmp_path / "run", phantoms(), steps=3, start="random:resnet18-half"))
    AcceleratorState._reset_state(reset_partial_state=True)
    folder = stage_model(run, tmp_path / "staged", write_card_yaml(tmp_path))
    assert names(folder) == {"README.md", "card.yaml", "lineage.json", "SHA256SUMS", *MODEL, *TRAINING}
    published = AutoModelForSemanticSegmentation.from_pretrained(folder)
    assert published.config.id2label == {0: "heart", 1: "left_lung"}
    data = json.loads((folder / "training" / "data.json").read_text())
    assert data["source"] == "phantoms:20"
    assert data["images"].keys() == {"train", "validation", "test"}


def test_figures_of_patients_stay_behind(run, report, tmp_path, caplog):
    measured = shutil.copytree(report, tmp_path / "report")
    for folder in measured.iterdir():
        Image.new("RGB", (8, 8)).save(folder / "figure.png")
    file = measured / "correspondence" / "results.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"source": "scr (test, 4 images)"}))
    card = write_card_yaml(tmp_path)
    with caplog.at_level(logging.WARNING):
        folder = stage_model(run / "last", tmp_path / "staged", card, [measured])
    assert "correspondence/figure.png stays behind: it shows images of scr" in caplog.text
    assert {name for name in names(folder) if name.endswith("figure.png")} == {"evaluation/locality/figure.png"}
    folder = stage_model(run / "last", tmp_path / "staged", card, [measured], images=True)
    assert "evaluation/correspondence/figure.png" in names(folder)


def test_several_folders_of_results_are_told_apart(run, report, tmp_path):
    control = tmp_path / "random-last"
    values = {"auroc": Estimate(0.5, 0.4, 0.6, 4)}
    Results("locality", "random:run/last", None, "phantoms:4", "0123456789ab", 0, values).save(control / "locality")
    card = write_card_yaml(tmp_path)
    folder = stage_model(run / "last", tmp_path / "staged", card, [report, control])
    assert {path.name for path in (folder / "evaluation").glob("*/")} == {
        "report-locality", "report-correspondence", "random-last-locality",
    }  # fmt: skip
    single = stage_model(run / "last", tmp_path / "staged", card, [report / "locality"])
    assert [path.name for path in (single / "evaluation").glob("*/")] == ["locality"]
    with pytest.raises(StagingError, match=r"would go to one folder, report-.*: rename one of theirs"):
        stage_model(run / "last", tmp_path / "staged", card, [report, shutil.copytree(report, tmp_path / "report")])


def test_values_of_patients_stay_behind(run, report, tmp_path):
    measured = {"auroc": by_patient(np.array([0.5, 0.7]), ["Doe, Jane", "Roe, Richard"])}
    file = next(report.glob("**/results.json"))
    replace(Results.load(file), measured=measured).save(file.parent)
    assert (file.parent / "values.parquet").exists()
    folder = stage_model(run / "last", tmp_path / "staged", write_card_yaml(tmp_path), [report])
    assert not [name for name in names(folder) if name.endswith(".parquet")]
    (file.parent / "values.parquet").unlink()


def test_results_of_other_weights_are_refused(run, report, tmp_path):
    for part in (EdenModel(tiny_config()), EdenImageProcessor()):
        part.save_pretrained(tmp_path / "model")
    with pytest.raises(StagingError, match=r"results are of other weights \(sha256 .*evaluate the very folder"):
        stage_model(tmp_path / "model", tmp_path / "staged", write_card_yaml(tmp_path), [report])
    mixed = shutil.copytree(report, tmp_path / "mixed")
    file = mixed / "locality" / "results.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"revision": "sha256 ba9876543210"}))
    with pytest.raises(StagingError, match=r"locality/results\.json: the results are of other weights \(sha256 ba98"):
        stage_model(run / "last", tmp_path / "staged", write_card_yaml(tmp_path), [mixed])
    with pytest.raises(StagingError, match=r"holds no results\.json"):
        stage_model(run, tmp_path / "staged", write_card_yaml(tmp_path), [tmp_path / "model"])
    assert not (tmp_path / "staged").exists()


def test_an_audit_goes_along_with_a_model_of_its_run_alone(run, tmp_path):
    audit_pruner(str(run), "phantoms:3", str(tmp_path / "audit"), images=3, level=2, gammas=[0.5])
    card = write_card_yaml(tmp_path)
    folder = stage_model(run / "last", tmp_path / "staged", card, [tmp_path / "audit"])
    assert check_card(folder) == []
    (result, *_) = sorted(folder.glob("evaluation/*/results.md"))
    assert f"**[Pruner audit]({result.relative_to(folder).as_posix()})**" in (folder / "README.md").read_text()
    assert " " not in result.parent.name  # which a link cannot have
    for part in (EdenModel(tiny_config()), EdenImageProcessor()):
        part.save_pretrained(tmp_path / "other")
    with pytest.raises(StagingError, match=r"results\.json: the results are of other weights"):
        stage_model(tmp_path / "other", tmp_path / "again", card, [tmp_path / "audit"])


def test_no_folder_of_the_machine_is_told(run, report, tmp_path):
    shutil.copytree(report, tmp_path / "report")
    for file in tmp_path.glob("report/*/results.json"):
        results = replace(
            Results.load(file), encoder=str(run / "last"), source=f"{tmp_path}/my x-rays (test, 4 images)"
        )
        replace(results, evaluation=f"finetuned {tmp_path}/scr").save(file.parent)
    staged = stage_model(run / "last", tmp_path / "staged", write_card_yaml(tmp_path), [tmp_path / "report"])
    told = [file for file in staged.rglob("*") if file.suffix in (".json", ".md", ".yaml") and file.is_file()]
    assert [
        file for file in told if str(tmp_path.parent) in file.read_text() or str(run.parent) in file.read_text()
    ] == []
    results = Results.load(staged / "evaluation" / "locality" / "results.json")
    named = (results.encoder, results.source, results.evaluation)
    assert named == (f"{run.name}/last", "my x-rays (test, 4 images)", "finetuned scr")


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        ("/a/b/scr", "scr"),
        ("random:/a/run/best", "random:run/best"),
        ("--data.source=/a/my images/", "--data.source=my images"),
        ("https://huggingface.co/user/name", "https://huggingface.co/user/name"),
        ("user/name", "user/name"),
        ("../pacs/Doe, Jane", "Doe, Jane"),
        ("../pacs/Jane Doe/chests", "chests"),
        ("/pacs/Doe, Jane (f)/chests (test, 4 images)", "chests (test, 4 images)"),
        ("./pacs/last", "pacs/last"),
        ("~/pacs/Jane/chests", "chests"),
        ("~jane/chests", "chests"),
        ("pacs/Jane/chests", "chests"),
        (r"C:\Users\Jane Doe\chests", "chests"),
        ("C:/Users/Jane/chests", "chests"),
        (r"\\server\pacs\chests", "chests"),
        ("finetuned ../pacs/scr", "finetuned scr"),
        ("random:outputs/jane/run/best", "random:run/best"),
        ("--data.source=~/pacs/chests", "--data.source=chests"),
        ("hf://datasets/user/name/data", "hf://datasets/user/name/data"),
        ("https://example.org/a/b/c.zip", "https://example.org/a/b/c.zip"),
        ("D / 4, and/or 1.0", "D / 4, and/or 1.0"),
        ("file:///home/Jane Doe/chests", "chests"),
        ("random:file:/home/jane/run/last", "random:run/last"),
        ("outputs/Jane Doe/chests", "chests"),
        ("pacs//jane//chests", "chests"),
        (r"Jane\chests (test, 4 images)", "chests (test, 4 images)"),
        ("Jane Doe/scans/x", "x"),
        ("Doe, Jane/scans/x (test, 4 images)", "x (test, 4 images)"),
        ("finetuned Jane Doe/scans/x", "finetuned x"),
        ("random:Jane Doe/run/last", "random:run/last"),
        ("--data.source=Jane Doe/scans/x", "--data.source=x"),
        (r"Jane Doe\scans\x", "x"),
        ("Jane/scans/", "scans"),
        ("finetuned user/name", "finetuned user/name"),
        ("user/name (test, 4 images)", "user/name (test, 4 images)"),
        ("heart and/or lungs", "heart and/or lungs"),
    ],
)
def test_paths_lose_their_folders(told, kept):
    assert _without_folders({"settings": [told, 1, None]}) == {"settings": [kept, 1, None]}


def test_a_folder_of_two_parts_is_no_hub_id(tmp_path, monkeypatch):
    """Whether `data/scr` is a folder can be told where it lies; `model-index` would call it a data set of the Hub."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "scr").mkdir(parents=True)
    (tmp_path / "run" / "last").mkdir(parents=True)
    (tmp_path / "Jane Doe" / "my scans").mkdir(parents=True)
    told = ["data/scr", "finetuned data/scr", "random:run/last", "data/scr (test, 4 images)", "user/scr"]
    kept = ["scr", "finetuned scr", "random:run/last", "scr (test, 4 images)", "user/scr"]
    assert _without_folders(told) == kept
    assert _without_folders("Jane Doe/my scans (test, 4 images)") == "my scans (test, 4 images)"
    assert _without_folders({"data/scr": "user/scr"}) == {"scr": "user/scr"}


def test_half_the_bytes_that_load_as_float32(run, tmp_path):
    card = write_card_yaml(tmp_path)
    whole, half = (stage_model(run / "last", tmp_path / str(h), card, half=h) for h in (False, True))
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (whole, half)]
    assert sizes[1] < 0.6 * sizes[0]
    models = [EdenModel.from_pretrained(folder).eval() for folder in (whole, half)]
    assert {weight.dtype for weight in models[1].parameters()} == {torch.float32}
    pixels = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(*(model(pixels).pooler_output for model in models), rtol=0.01, atol=0.01)
    again = stage_model(half, tmp_path / "again", card, half=True)
    assert (again / "model.safetensors").read_bytes() == (half / "model.safetensors").read_bytes()


def test_sources_that_are_no_model(run, tmp_path):
    card = write_card_yaml(tmp_path)
    with pytest.raises(StagingError, match="neither a model folder"):
        stage_model(tmp_path / "absent", tmp_path / "staged", card)
    (tmp_path / "config.json").write_text('{"architectures": ["ResNetModel"]}')
    with pytest.raises(StagingError, match="has no weights as safetensors"):
        stage_model(tmp_path, tmp_path / "staged", card)
    shutil.copy(run / "last" / "model.safetensors", tmp_path)
    with pytest.raises(StagingError, match=r"config\.json is of ResNetModel; published are EdenForPreTraining"):
        stage_model(tmp_path, tmp_path / "staged", card)
    EdenModel(tiny_config()).save_pretrained(tmp_path / "trunk")
    with pytest.raises(StagingError, match="holds no teacher beside a student"):
        stage_model(tmp_path / "trunk", tmp_path / "staged", card, pretraining=True)


def test_another_folder_is_not_written_over(run, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("Long work.")
    with pytest.raises(StagingError, match="thesis holds something else than a staged repository"):
        stage_model(run, tmp_path / "thesis", write_card_yaml(tmp_path))
    assert (tmp_path / "thesis" / "chapter.txt").exists()


def test_a_licence_file_goes_along(run, tmp_path):
    terms = {"license": "other", "license_name": "mine", "license_link": "LICENSE"}
    card = write_card_yaml(tmp_path, **terms)
    with pytest.raises(StagingError, match=r"declared\.yaml: `license_link` is LICENSE, but there is no such"):
        stage_model(run, tmp_path / "staged", card)
    (tmp_path / "LICENSE").write_text("Ask me.\n")
    folder = stage_model(run, tmp_path / "staged", card)
    assert (folder / "LICENSE").read_text() == "Ask me.\n"
    assert check_card(folder) == []


def test_a_run_needs_a_card(run, tmp_path):
    with pytest.raises(StagingError, match=r"was not staged before.* give --card"):
        stage_model(run, tmp_path / "repository")


def test_a_bad_card_makes_no_folder(run, tmp_path):
    with pytest.raises(CardError, match=r"declared\.yaml: .*license"):
        stage_model(run, tmp_path / "staged", write_card_yaml(tmp_path, license=None))
    assert not (tmp_path / "staged").exists()


def test_figures_are_small_and_keep_their_tags(run, staged):
    with Image.open(staged / "training" / "loss.png") as figure:
        assert figure.mode == "P"
        assert figure.info["Software"].startswith("Matplotlib")
