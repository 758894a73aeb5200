"""Cards are made of files alone: what they say, what they run, and what they refuse."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from eden_hf import EdenForImageClassification, EdenForSemanticSegmentation, EdenImageProcessor, EdenModel
from eden_hf.evaluation.few_shot import Score
from eden_hf.evaluation.results import Estimate, Results
from eden_hf.hub.cards import CardError, EdenModelCardData, check_card, render_card, write_card
from eden_hf.model_names import weights_revision
from eden_hf.training.arguments import PretrainArguments
from eden_hf.training.finetune_arguments import FinetuneArguments

from ..launching import ENVIRONMENT, python, takes_auto_image_processor
from ..tiny import tiny_config

DECLARED = {
    "model_id": "user/tiny-chests",
    "license": "cc-by-nc-4.0",
    "intended_use": "Research on embeddings of 16-bit radiographs.",
    "training_data": [
        {
            "name": "Chests",
            "description": "112,120 frontal radiographs of 30,805 patients.",
            "license": "CC0",
            "url": "https://example.org/chests",
            "hub_id": "user/chests",
        }
    ],
}
LABELS = {"id2label": {0: "heart", 1: "lung"}, "label2id": {"heart": 0, "lung": 1}}
RECORDED = {"device": "A device", "processes": 2, "packages": {"eden_hf": "0.1.0", "torch": "2.13.0"}}
MODELS = {
    "trunk": lambda: EdenModel(tiny_config()),
    "single": lambda: EdenForImageClassification(tiny_config(**LABELS)),
    "multi": lambda: EdenForImageClassification(tiny_config(problem_type="multi_label_classification")),
    "regression": lambda: EdenForImageClassification(tiny_config(problem_type="regression", **LABELS)),
    "overlapping": lambda: EdenForSemanticSegmentation(tiny_config(decoder_hidden_size=8, **LABELS)),
    "exclusive": lambda: EdenForSemanticSegmentation(
        tiny_config(decoder_hidden_size=8, segmentation_type="exclusive", **LABELS)
    ),
}


def write_model(folder: Path, kind: str = "trunk", **declared) -> Path:
    """A model folder with its `card.yaml`, as a converted checkpoint has it."""
    model = MODELS[kind]()
    model.save_pretrained(folder)
    way = model.config.segmentation_type
    EdenImageProcessor(size={"height": 32, "width": 48}, segmentation_type=way).save_pretrained(folder)
    (folder / "card.yaml").write_text(yaml.safe_dump(DECLARED | declared))
    return folder


def write_training(folder: Path, recipe: str, metrics: list[dict], data: dict) -> None:
    """What a run leaves."""
    training = folder / "training"
    training.mkdir()
    (training / "config.yaml").write_text(recipe)
    (training / "metrics.json").write_text(json.dumps(metrics))
    (training / "environment.json").write_text(json.dumps(RECORDED))
    (training / "data.json").write_text(json.dumps(data))
    Image.new("L", (4, 4)).save(training / "loss.png")


def write_results(folder: Path, name: str, evaluation: str, values: dict[str, float], **changes) -> Results:
    """A result file; intervals are 0.05 to both sides."""
    estimates = {of: Estimate(value, value - 0.05, value + 0.05, 37) for of, value in values.items()}
    results = Results(
        evaluation, "/home/me/run/last", weights_revision(str(folder)), "/home/me/scr (test, 37 images)",
        "ba9876543210", 3, estimates, {"window": 0.25},
    )  # fmt: skip
    vars(results).update(changes)
    results.save(folder / "evaluation" / name)
    return results


def write_pretrained(folder: Path, **declared) -> Path:
    """A pretrained trunk with two evaluations and a control of random weights."""
    write_model(folder, **declared)
    metrics = [
        {"step": 50, "stage": 0, "loss": 5.5, "images_per_second": 64.0},
        {"step": 100, "stage": 1, "loss": 4.5, "images_per_second": 128.0},
    ]
    data = {"source": "chests", "images": 900, "images_skipped": 2, "list_hash": "feedbeef" * 8}
    write_training(folder, PretrainArguments().to_yaml(), metrics, data)
    locality = {"retrieval_at_1": 0.8125, "auroc": 0.9137, "silhouette": 0.3333}
    write_results(folder, "locality", "locality", locality)
    Image.new("L", (4, 4)).save(folder / "evaluation" / "locality" / "figure.png")
    write_results(folder, "control", "locality", {"retrieval_at_1": 0.6214}, encoder="random:resnet18")
    write_results(folder, "correspondence", "correspondence", {"mean_radial_error_mm": 23.47, "within_5_mm": 0.0831})
    return folder


def write_scores(file: Path, scores: list[Score]) -> None:
    file.write_text("".join(json.dumps(score._asdict()) + "\n" for score in scores))


def write_finetuned(folder: Path) -> Path:
    """A fine-tuned head with its results, also of women and men."""
    write_model(folder, "overlapping", base_model="user/trunk")
    metrics = [{"step": 60, "loss": 0.5}, {"step": 60, "train_runtime": 90.0}]
    write_training(folder, FinetuneArguments().to_yaml(), metrics, {"images": {"train": 20, "test": 37}})
    shared = {"encoder": FinetuneArguments().model.name, "source": "phantoms:64"}
    values = {"dice": 0.9021, "dice_heart": 0.8765, "iou": 0.8111}
    write_results(folder, "all", "finetuned phantoms", values, settings={"metric": "dice"}, **shared)
    for sex, value in {"female": 0.9152, "male": 0.8899}.items():
        settings = {"metric": "dice", "subgroup": {"sex": sex}}
        write_results(folder, sex, "finetuned phantoms", {"dice": value}, settings=settings, **shared)
    return folder


LAYOUTS = {
    "pretrained": write_pretrained,
    "finetuned": write_finetuned,
    "converted": lambda folder: write_model(folder, lineage=["Converted from a checkpoint of somebody else."]),
    "classifier": lambda folder: write_model(folder, "single"),
}


@pytest.fixture(scope="session")
def layouts(tmp_path_factory) -> dict[str, Path]:
    folders = {name: write(tmp_path_factory.mktemp(name) / "model") for name, write in LAYOUTS.items()}
    for folder in folders.values():
        write_card(folder)
    return folders


@pytest.fixture
def pretrained(layouts, tmp_path) -> Path:
    return Path(shutil.copytree(layouts["pretrained"], tmp_path / "pretrained"))


@pytest.fixture
def finetuned(layouts, tmp_path) -> Path:
    return Path(shutil.copytree(layouts["finetuned"], tmp_path / "finetuned"))


def section(text: str, name: str) -> str:
    return re.search(rf"^## {name}\n+(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)[1].strip()


def declare(folder: Path, **declared) -> None:
    (folder / "card.yaml").write_text(yaml.safe_dump(DECLARED | declared))


# what a card says


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_card_that_was_just_written_has_no_problems(layouts, name):
    assert check_card(layouts[name], model_id="user/tiny-chests") == []


def test_a_card_can_be_made_again(pretrained):
    first = (pretrained / "README.md").read_text()
    assert write_card(pretrained) == pretrained / "README.md"
    assert (pretrained / "README.md").read_text() == first == render_card(pretrained)


def test_the_model_index_holds_what_the_hub_means_by_it(layouts, finetuned):
    """Hub metrics of the model itself on data sets of the Hub; no baseline, no local set, no metric of ours."""
    assert "model-index" not in render_card(layouts["pretrained"])
    assert "model-index" not in render_card(finetuned)
    values, name = {"iou": 0.8, "dice": 0.9, "all_empty_dice": 0.1}, FinetuneArguments().model.name
    write_results(finetuned, "hub", "finetuned user/chests", values, source="user/chests", encoder=name)
    (result,) = ModelCard(render_card(finetuned)).data.eval_results
    assert (result.dataset_type, result.dataset_split, result.dataset_revision) == ("user/chests", "test", None)
    assert (result.task_type, result.metric_type, result.metric_value) == ("image-segmentation", "mean_iou", 0.8)


def top(text: str) -> list[str]:
    """The sentences under the title."""
    return re.search(r"^# .*\n\n((?:.+\n)+)", text, re.MULTILINE)[1].splitlines()


def test_three_sentences_say_what_it_is_good_for_and_where_it_is_no_better(layouts, pretrained, finetuned):
    declare(pretrained, summary="Finds landmarks.")
    assert top(render_card(pretrained)) == [
        "Finds landmarks.",
        "It is better than an untrained trunk in all of the 1 measures below.",
        "It was not measured beside copying coordinates.",
    ]
    write_results(pretrained, "control", "locality", {"retrieval_at_1": 0.8}, encoder="random:resnet18")
    values = {"mean_radial_error_mm": 23.47, "same_place_mm": 26.5}
    write_results(pretrained, "correspondence", "correspondence", values)
    assert top(render_card(pretrained))[1:] == [
        "It is not better than an untrained trunk in 1 of the 1 measures below: retrieval at 1 (locality).",
        "Landmarks of one example are found in others 23.5 mm off on the mean; copying its coordinates gives 26.5 mm.",
    ]
    for copied, verdict in ((23.45, ", which is not worse"), (20.0, ", which is better")):
        write_results(pretrained, "correspondence", "correspondence", values | {"same_place_mm": copied})
        assert top(render_card(pretrained))[2].endswith(f" mm{verdict}.")
    shutil.rmtree(pretrained / "evaluation")
    assert top(render_card(pretrained))[1] == "No untrained trunk was measured beside it."
    mean = {"encoder": "mean mask of training images", "revision": None, "source": "phantoms:64"}
    write_results(finetuned, "mean", "finetuned phantoms", {"dice": 0.4}, settings={"metric": "dice"}, **mean)
    declare(finetuned, evaluated_as=FinetuneArguments().model.name)
    said = "On phantoms:64 its dice is 0.902; the mean mask of the training images has 0.400."
    assert top(render_card(finetuned))[2] == said


def test_evaluations_stand_beside_their_controls_and_link_to_their_files(layouts):
    text = section(render_card(layouts["pretrained"]), "Evaluation")
    assert "|  | this model | random weights (resnet18) |" in text
    assert "| **[Locality](evaluation/locality/results.md)**: scr, test, n = 37 |  |  |" in text
    assert "| retrieval at 1 ↑ | 0.812 (0.762, 0.863) | 0.621 (0.571, 0.671) |" in text
    assert "| mean radial error mm ↓ | 23.5 (23.4, 23.5) | - |" in text
    assert "silhouette" not in text
    assert "/home/me" not in render_card(layouts["pretrained"])


def test_baselines_are_no_results_of_the_model(pretrained):
    values = {"mean_radial_error_mm": 23.47, "same_place_mm": 26.5, "pixels_mm": 24.0}
    write_results(pretrained, "correspondence", "correspondence", values)
    text = section(render_card(pretrained), "Evaluation")
    assert "| copying the example's coordinates | 26.5 (" in text
    assert "| matching pixels | 24.0 (" in text


def test_an_arrow_stands_only_where_the_better_side_is_known(pretrained):
    write_results(pretrained, "frame", "disturbances", {"framed ratio": 1.4})
    write_results(pretrained, "frame-0", "disturbances", {"framed ratio": 1.2}, encoder="random:resnet18")
    text = render_card(pretrained)
    assert "| framed ratio | 1.400 (" in text
    assert top(text)[1].endswith("in all of the 1 measures below.")  # of locality alone


def test_probes_have_columns_of_their_controls(pretrained):
    for encoder, value in {"/home/me/run/last": 0.9, "random:resnet18": 0.85, "pixels": 0.8, "majority": 0.5}.items():
        name = encoder.replace("/", "").replace(":", "-")
        write_results(pretrained, name, "probe", {"linear accuracy": value}, encoder=encoder, source="chests")
    text = section(render_card(pretrained), "Evaluation")
    assert "|  | this model | random weights (resnet18) | majority | pixels |" in text
    assert "| linear accuracy ↑ | 0.900 (0.850, 0.950) | 0.850 (0.800, 0.900) | 0.500 (" in text


def test_pretraining_tells_data_recipe_compute_and_lineage(layouts):
    facts = section(render_card(layouts["pretrained"]), "Facts")
    assert "| training images | 900 (2 unreadable ones skipped)" in facts
    assert "| recipe | [settings](training/config.yaml), [losses](training/loss.png) |" in facts
    # 50 steps of 256 images at 64 a second and 50 at 128
    assert "| compute | A device, 2 processes, 100 optimiser steps, 5.0 minutes; eden_hf 0.1.0" in facts
    assert "| made | Random weights. Stages: parts at level 0, no pruning, 200 epochs; parts at level 2" in facts


def test_finetuning_tells_patients_recipe_and_where_it_grew_from(layouts):
    text = render_card(layouts["finetuned"])
    evaluation = section(text, "Evaluation")
    assert "|  | sex female (n = 37) | sex male (n = 37) |" in evaluation
    assert "| Fine-tuned on phantoms, dice | 0.915 (0.865, 0.965) | 0.890 (0.840, 0.940) |" in evaluation
    assert "**[Fine-tuned on phantoms](evaluation/all/results.md)**: phantoms:64, test, n = 37" in evaluation
    assert "| dice heart ↑ |" in evaluation
    assert "no result tells them apart by sex" not in text
    facts = section(text, "Facts")
    assert "20 for train, 37 for test" in facts
    assert "1.5 minutes" in facts
    assert (
        "| made | The checkpoint [user/trunk](https://huggingface.co/user/trunk). Random weights of resnet18-half."
        in facts
    )


def test_what_was_not_recorded_is_not_told(layouts):
    text = render_card(layouts["converted"])
    facts = section(text, "Facts")
    assert "| training images | not recorded |" in facts
    assert "| made | Converted from a checkpoint of somebody else. |" in facts
    assert not re.search(r"^\| (recipe|compute) \|", facts, re.MULTILINE)
    assert section(text, "Evaluation") == "Not measured."
    assert "no result tells them apart by sex or age" in section(text, "Limits")
    assert ModelCard(text).data.eval_results is None


def test_a_card_is_short(layouts):
    text = render_card(layouts["pretrained"])
    assert len(text.splitlines()) < 130
    assert text.index("\n---\n") < 700


def test_the_input_is_the_processors(pretrained):
    text = section(render_card(pretrained), "Facts")
    assert "48 x 32 pixels (others are stretched" in text
    assert "by mean 0.485, 0.456, 0.406 and standard deviation" in text
    assert "turned them by up to 30 degrees" in text
    EdenImageProcessor(aspect_ratio="pad", intensity="per_image").save_pretrained(pretrained)
    text = section(render_card(pretrained), "Facts")
    assert "224 x 224 pixels (others are fitted in" in text
    assert "each by its own mean" in text


def test_what_is_declared_is_told(pretrained):
    declare(
        pretrained, license="other", license_name="Research only", license_link="https://example.org/terms",
        summary="A summary.", limits=["No children below 5."], out_of_scope=["Veterinary images."], tags=["chest"],
        citation="@misc{me}",
    )  # fmt: skip
    text = render_card(pretrained)
    assert top(text)[0] == "A summary."
    assert "- No children below 5." in section(text, "Limits").splitlines()
    assert "- Veterinary images." in section(text, "Use").splitlines()
    assert "**Weights**: [Research only](https://example.org/terms)." in text
    assert "- **[Chests](https://example.org/chests)**. 112,120 frontal" in section(text, "Training data")
    assert section(text, "Citation").startswith("```bibtex\n@misc{me}\n\n@inproceedings{")
    assert {"chest", "radiology"} <= set(ModelCard(text).data.tags)


def test_the_hubs_own_metadata_and_a_doi_go_along(pretrained):
    hub = {
        "extra_gated_prompt": "For research alone.",
        "extra_gated_fields": {"Institution": "text"},
        "new_version": "user/better",
        "co2_eq_emissions": {"emissions": 12.5, "source": "codecarbon"},
    }
    declare(pretrained, hub=hub, doi="10.57967/hf/1234")
    card = ModelCard(render_card(pretrained))
    assert hub.items() <= card.data.to_dict().items()
    assert "[10.57967/hf/1234](https://doi.org/10.57967/hf/1234)" in card.text


def test_pixels_and_the_majority_are_no_models(pretrained):
    """They stand in result files beside the model, which needs no `evaluated_as` for that."""
    for name in ("pixels", "majority"):
        write_results(pretrained, name, "probe", {"knn accuracy": 0.5012}, encoder=name, revision=None)
    text = render_card(pretrained)
    assert "majority" in text
    assert "pixels" in section(text, "Evaluation")


def test_other_models_stand_beside_this_one_where_it_is_named(pretrained):
    write_results(pretrained, "other", "locality", {"auroc": 0.6543}, encoder="/home/me/other/best")
    with pytest.raises(CardError, match=r"results of .*last, .*other/best.*: say in card.yaml by `evaluated_as`"):
        write_card(pretrained)
    declare(pretrained, evaluated_as="/home/me/run/last")
    assert "|  | this model | random weights (resnet18) | other/best |" in render_card(pretrained)
    declare(pretrained, evaluated_as="/home/me/run/best")
    with pytest.raises(CardError, match=r"`evaluated_as` is '/home/me/run/best', but evaluation/ is of"):
        write_card(pretrained)


def test_margins_of_another_architecture_do_not_stand_beside_this_one(pretrained):
    """Random weights of one architecture have margins that another's do not reach when trained."""
    for evaluation in ("compositionality", "locality"):
        for name, encoder in {"own": "/home/me/run/last", "random-convnext": "random:convnext"}.items():
            settings = {"architecture": name}
            values = {"margin": 0.459, "auroc": 0.87}
            write_results(pretrained, f"{evaluation}-{name}", evaluation, values, encoder=encoder, settings=settings)
    (pretrained / "evaluation" / "locality" / "results.json").unlink()
    text = section(render_card(pretrained), "Evaluation")
    assert "random weights (convnext)" in text
    assert text.count("| margin ↑ | 0.459 (0.409, 0.509) | - | - |") == 1
    assert text.count("| margin ↑ | 0.459 (0.409, 0.509) | - | 0.459 (0.409, 0.509) |") == 1


def test_long_results_show_what_is_not_of_single_labels(pretrained):
    values = {"linear auc": 0.75} | {f"linear auc_label{chr(97 + i)}": 0.7 + i / 100 for i in range(12)}
    write_results(pretrained, "probe", "probe", values, source="chests")
    text = section(render_card(pretrained), "Evaluation")
    assert "| linear auc ↑ | 0.750" in text
    assert "labela" not in text


def test_few_shot_scores_give_a_table_of_this_model(pretrained):
    folder = pretrained / "evaluation" / "few-shot"
    folder.mkdir()
    scores = [
        Score(encoder, weights_revision(str(pretrained)), k, draw, {"heart": dice + draw / 50}, 25)
        for encoder, dice in (("/home/me/run/last", 0.7), ("/home/me/other/last", 0.6))
        for k in (3, 6)
        for draw in (0, 1)
    ]
    write_scores(folder / "few_shot-frozen.jsonl", scores)
    (folder / "few_shot-frozen.md").write_text("# Few-shot segmentation, frozen: /home/me/scr\n\nA page.\n")
    text = section(write_card(pretrained).read_text(), "Evaluation")
    assert "**[Few-shot segmentation, frozen: scr](evaluation/few-shot/few_shot-frozen.md)**. Dice" in text
    assert "over 2 draws of them. The checkpoint was chosen on 25 more labelled images.\n" in text
    assert "| k = 3 + 25 | k = 6 + 25 |" in text
    assert "| heart | this model | 71.0 ± 1.4 | 71.0 ± 1.4 |" in text
    assert "other/last" not in text
    assert check_card(pretrained) == []

    write_scores(folder / "few_shot-frozen.jsonl", scores[4:])
    with pytest.raises(CardError, match=r"few_shot-frozen.md has no scores of .*run/last, only of .*other/last"):
        write_card(pretrained)
    (folder / "few_shot-frozen.jsonl").write_text('{"encoder": 3}\n')
    with pytest.raises(CardError, match=r"few_shot-frozen.jsonl holds no scores of .*few_shot"):
        write_card(pretrained)
    (folder / "few_shot-frozen.jsonl").rename(folder / "scores-01234567.jsonl")  # of another recipe, for all one knows
    with pytest.raises(CardError, match=r"few_shot-frozen.md must have .* beside it, in few_shot-frozen.jsonl"):
        write_card(pretrained)


def test_few_shot_scores_alone_name_the_model(layouts, tmp_path):
    folder = Path(shutil.copytree(layouts["converted"], tmp_path / "model")) / "evaluation"
    folder.mkdir()
    write_scores(folder / "few_shot-frozen.jsonl", [Score("me", None, 3, 0, {"heart": 0.7123})])
    (folder / "few_shot-frozen.md").write_text("# Few-shot segmentation, frozen: scr\n")
    Image.new("L", (4, 4)).save(folder / "few_shot-frozen.png")
    text = section(render_card(folder.parent), "Evaluation")
    assert text.startswith("**[Few-shot")
    assert "| heart | this model | 71.2 |" in text


# what a card runs


def snippets(folder: Path) -> list[str]:
    """The snippet of a folder's card, with the folder in the place of the model's id."""
    found = re.findall(r"```python\n(.*?)```", render_card(folder), re.DOTALL)
    assert [snippet.count('"user/tiny-chests"') for snippet in found] == [2]
    return [snippet.replace("user/tiny-chests", str(folder)) for snippet in found]


@takes_auto_image_processor
@pytest.mark.parametrize("kind", MODELS)
def test_the_snippet_runs_and_prints_the_shapes_that_it_says(kind, tmp_path, monkeypatch, capsys):
    folder = write_model(tmp_path / "model", kind)
    Image.linear_gradient("L").resize((90, 70)).save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    (snippet,) = snippets(folder)
    names: dict = {}
    exec(snippet, names)
    printed = capsys.readouterr().out.splitlines()
    if kind == "trunk":
        said = re.findall(r"\.shape\)  # (\[.*?\])", snippet)
        assert printed == [f"torch.Size({shape})" for shape in said] == ["torch.Size([1, 20])", printed[1]]
    elif kind in ("overlapping", "exclusive"):
        shape = "[2, H, W]" if kind == "overlapping" else "[H, W]"
        assert snippet.splitlines()[-1].endswith(f".shape)  # {shape}")
        assert printed == [f"torch.Size({shape})".replace("H", "70").replace("W", "90")]
    else:
        assert list(names["scores"]) == list(names["model"].config.id2label.values())
        total = sum(names["scores"].values())
        assert (kind == "single") == (abs(total - 1) < 1e-5)
        assert printed == [str(names["scores"])]


@takes_auto_image_processor
@pytest.mark.slow
def test_the_snippet_needs_no_package(layouts, tmp_path):
    Image.linear_gradient("L").resize((90, 70)).save(tmp_path / "image.png")
    program = tmp_path / "program.py"
    parts = [snippets(layouts[name])[0] for name in ("pretrained", "classifier", "finetuned")]
    program.write_text("\n".join(["import sys", 'sys.modules["eden_hf"] = None', *parts, "print(masks.shape)"]))
    modules = {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    said = python(str(program), cwd=tmp_path, env=ENVIRONMENT | modules).stdout
    assert said.splitlines()[-1] == "torch.Size([2, 70, 90])"


# what is refused


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"model_id": "tiny"}, r"`model_id` must be a Hub id with its owner, user/name, got 'tiny'"),
        ({"model_id": "user/ti ny"}, r"`model_id` must be a Hub id such as user/name, got 'user/ti ny'"),
        ({"base_model": "a/b/c"}, r"`base_model` must be a Hub id"),
        (
            {"license": "apache-2"},
            r"`license` must be one of the Hub's licences \(perhaps apache-2.0\), got 'apache-2'",
        ),
        ({"license": "xyzzy"}, r"one of the Hub's licences, or `other` with its name and link, got 'xyzzy'"),
        ({"license": "other"}, r"`license_name` must be given, since the license is `other`, got None"),
        ({"license": "other", "license_name": "mine"}, r"`license_link` must be given"),
        ({"license": None}, r"required: license"),
        ({"intended_use": " "}, r"`intended_use` must be said, got ' '"),
        ({"intended_use": None}, r"required: intended_use"),
        ({"training_data": []}, r"`training_data` must be a list of at least one set of images, got \[\]"),
        ({"limits": "children"}, r"limits"),
        ({"citation": "Me, 2026"}, r"`citation` must be BibTeX, which starts with @, got 'Me, 2026'"),
        ({"doi": "https://doi.org/10.1/x"}, r"`doi` must be a DOI, 10.NNNN/... without an address before it"),
        ({"hub": {"gated": True}}, r"`hub` must be of \['co2_eq_emissions', .*got \['gated'\]"),
        ({"hub": {"new_version": "x y"}}, r"`hub.new_version` must be a Hub id"),
        ({"hub": {"co2_eq_emissions": 3}}, r"a table of `emissions`, in grams, and their `source`, got 3"),
        ({"intended_for": "all"}, r"'intended_for' is not accepted; its keys are model_id, license,"),
        ({"intended_for": {}}, r"'intended_for' is not accepted; its keys are model_id, license,"),
    ],
)
def test_card_yaml_names_what_is_wrong_with_it(tmp_path, declared, message):
    file = tmp_path / "card.yaml"
    file.write_text(yaml.safe_dump({k: v for k, v in (DECLARED | declared).items() if v is not None}))
    with pytest.raises(CardError, match=f"(?s)card.yaml: .*{message}"):
        EdenModelCardData.load(file)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"license": " "}, r"`training_data.license` must be given, got ' '"),
        ({"url": "example.org"}, r"`training_data.url` must be a link \(https://...\), got 'example.org'"),
        ({"hub_id": "not an id"}, r"`training_data.hub_id` must be a Hub id"),
        ({"licence": "CC0"}, r"'licence' is not accepted"),
        ({"licence": {}}, r"'licence' is not accepted"),
    ],
)
def test_training_data_names_what_is_wrong_with_it(tmp_path, entry, message):
    file = tmp_path / "card.yaml"
    file.write_text(yaml.safe_dump(DECLARED | {"training_data": [DECLARED["training_data"][0] | entry]}))
    with pytest.raises(CardError, match=f"(?s)card.yaml: .*{message}"):
        EdenModelCardData.load(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"is missing: write one; its keys are model_id, license, intended_use, training_data"),
        ("a: [", r"cannot be read as YAML"),
        (b"\xff\xfe\xfa", r"cannot be read as YAML"),
        ("- a", r"must be a mapping with the keys model_id, license, .*, got \['a'\]"),
    ],
)
def test_a_card_yaml_that_is_none(tmp_path, text, message):
    file = tmp_path / "card.yaml"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CardError, match=f"card.yaml {message}"):
        EdenModelCardData.load(file)


def write_json(content):
    return lambda file: file.write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("config.json", Path.unlink, r"config.json is missing: a card is made of a whole model folder"),
        ("preprocessor_config.json", Path.unlink, r"preprocessor_config.json is missing"),
        ("preprocessor_config.json", write_json({}), r"the setting 'size' is missing from its files"),
        ("config.json", write_json({"architectures": ["EdenForPreTraining"]}),
         r"config.json: `architectures` names 'EdenForPreTraining'; cards are of EdenModel, Eden"),
        ("config.json", write_json({}), r"names None"),
        ("config.json", write_json("{"), r"config.json is damaged"),
        ("training/metrics.json", write_json({}), r"metrics.json must hold a list, got '\{\}'"),
        ("training/config.yaml", write_json("a: ["), r"config.yaml is damaged"),
        ("training/config.yaml", write_json("stages: []\n"), r"the setting 'model' is missing"),
        ("evaluation/locality/results.json", write_json({"values": {}}), r"results.json is no result file"),
        ("evaluation/locality/results.json", write_json("{"), r"results.json is no result file"),
    ],
)  # fmt: skip
def test_files_that_are_not_as_a_card_needs_them(pretrained, name, change, message):
    change(pretrained / name)
    with pytest.raises(CardError, match=message):
        write_card(pretrained)
    assert len(check_card(pretrained)) == 1
    assert re.search(message, check_card(pretrained)[0])


def test_a_value_that_is_no_number_is_no_result(pretrained):
    file = pretrained / "evaluation" / "locality" / "results.json"
    plain = json.loads(file.read_text())
    plain["values"]["auroc"]["low"] = None
    file.write_text(json.dumps(plain))
    with pytest.raises(CardError, match=r"is no result file of .*: 'auroc' is no number"):
        write_card(pretrained)


def test_results_need_their_extra_and_a_card_without_them_does_not(layouts, pretrained, monkeypatch):
    monkeypatch.setitem(sys.modules, "eden_hf.evaluation.results", None)
    with pytest.raises(ImportError, match=r"evaluation is of .* an extra: pip install 'eden_hf\[evaluation\]'"):
        write_card(pretrained)
    assert check_card(layouts["converted"]) == []
