"""Cards are made of files alone: what they say, what they run, and what they refuse."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from eden_hf import EdenForImageClassification, EdenForSemanticSegmentation, EdenImageProcessor, EdenModel
from eden_hf.evaluation.few_shot import Score
from eden_hf.evaluation.results import Estimate, Results
from eden_hf.hub.cards import CardError, EdenModelCardData, check_card, render_card, write_card
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
        evaluation, "/home/me/run/last", "sha256 0123456789ab", "/home/me/scr (test, 37 images)", "ba9876543210", 3,
        estimates, {"window": 0.25},
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
    write_results(folder, "control", "locality", {"auroc": 0.7214}, encoder="random:resnet18")
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


def test_the_model_index_is_what_huggingface_hub_reads(layouts):
    data = ModelCard.load(layouts["pretrained"] / "README.md").data
    assert data.license == "cc-by-nc-4.0"
    assert data.pipeline_tag == "image-feature-extraction"
    assert data.datasets == ["user/chests"]
    found = {result.metric_type: result for result in data.eval_results}
    assert {name: result.metric_value for name, result in found.items()} == {
        "retrieval_at_1": 0.812, "auroc": 0.914, "mean_radial_error_mm": 23.5, "within_5_mm": 0.083,
    }  # fmt: skip
    auroc = found["auroc"]
    assert (auroc.dataset_name, auroc.dataset_split, auroc.dataset_revision) == ("scr", "test", "ba9876543210")
    assert auroc.metric_args == {"weights": "sha256 0123456789ab", "seed": 3}


def test_evaluations_stand_beside_their_control_and_link_to_their_files(layouts):
    text = section(render_card(layouts["pretrained"]), "Evaluation")
    assert "### Locality: scr, test" in text
    assert "|  | this model | random weights (resnet18) |" in text
    assert "| auroc | 0.914 (0.864, 0.964) | 0.721 (0.671, 0.771) |" in text
    assert "| retrieval at 1 | 0.812 (0.762, 0.863) | - |" in text
    assert "silhouette" not in text
    assert "All 3 values: [this model](evaluation/locality/results.json)" in text
    assert '<img src="evaluation/locality/figure.png"' in text
    assert "/home/me" not in render_card(layouts["pretrained"])


def test_pretraining_tells_data_recipe_compute_and_lineage(layouts):
    text = render_card(layouts["pretrained"])
    data = section(text, "Training data")
    assert "**[Chests](https://example.org/chests)**. 112,120 frontal radiographs" in data
    assert (
        f"Images that the run read: 900 (2 unreadable ones skipped); sha256 of their list `{'feedbeef' * 8}`" in data
    )
    recipe = section(text, "Recipe")
    assert "| 2 | 2 | 200 | 0.8 | 0.03 | 0.9 | 0.0001 |" in recipe
    assert '<img src="training/loss.png"' in recipe
    # 50 steps of 256 images at 64 a second and 50 at 128
    assert section(text, "Compute").startswith("A device, 2 processes, 100 optimiser steps, 5.0 minutes")
    assert section(text, "Lineage").splitlines() == [
        "1. Random weights.",
        "2. Pretrained at level 0 for 200 epochs, no pruning.",
        "3. Pretrained at level 2 for 200 epochs, negatives pruned from a similarity of 0.8, "
        "from the last student, teacher and memory bank.",
        "4. Pretrained at level 4 for 200 epochs, negatives pruned from a similarity of 0.8, "
        "from the last student, teacher and memory bank.",
    ]
    assert "random weights was measured" not in section(text, "Limits")


def test_finetuning_tells_subgroups_recipe_and_where_it_grew_from(layouts):
    text = render_card(layouts["finetuned"])
    told = section(text, "Subgroups")
    assert "|  | sex female (n = 37) | sex male (n = 37) |" in told
    assert "| Fine-tuned on phantoms, dice | 0.915 (0.865, 0.965) | 0.890 (0.840, 0.940) |" in told
    evaluation = section(text, "Evaluation")
    assert "### Fine-tuned on phantoms: phantoms:64, test" in evaluation
    assert "| dice heart |" in evaluation
    assert "0.915" not in evaluation
    assert "| trained | trunk and head |" in section(text, "Recipe")
    assert "20 for train, 37 for test" in section(text, "Training data")
    assert "1.5 minutes" in section(text, "Compute")
    assert "No trunk of random weights" not in section(text, "Limits")
    lineage = section(text, "Lineage").splitlines()
    assert lineage[0].startswith("1. The checkpoint [user/trunk]")
    assert lineage[1:] == ["2. Random weights of resnet18-half.", "3. Fine-tuned on phantoms:64."]
    tasks = {result.task_type for result in ModelCard(text).data.eval_results}
    assert tasks == {"image-segmentation"}


def test_what_was_not_recorded_is_not_told(layouts):
    text = render_card(layouts["converted"])
    for name in ("Recipe", "Compute"):
        assert section(text, name) == "Not recorded."
    assert section(text, "Evaluation") == "Not measured."
    assert section(text, "Subgroups").startswith("Not measured")
    assert "was not recorded" in section(text, "Training data")
    assert section(text, "Lineage") == "1. Converted from a checkpoint of somebody else."
    assert section(render_card(layouts["classifier"]), "Lineage") == "Not recorded."
    assert ModelCard(text).data.eval_results is None


def test_the_input_table_is_the_processors(pretrained):
    text = section(render_card(pretrained), "Input")
    assert "48 x 32 pixels; images of another size are stretched" in text
    assert "mean 0.485, 0.456, 0.406 and standard deviation" in text
    assert "turned images by up to 30 degrees" in text
    EdenImageProcessor(aspect_ratio="pad", intensity="per_image").save_pretrained(pretrained)
    text = section(render_card(pretrained), "Input")
    assert "224 x 224 pixels; images of another size are fitted in" in text
    assert "each image by its own mean" in text


def test_what_is_declared_is_told(pretrained):
    declare(
        pretrained, license="other", license_name="Research only", license_link="https://example.org/terms",
        summary="A summary.", limits=["No children."], out_of_scope=["Veterinary images."], tags=["chest"],
        citation="@misc{me}",
    )  # fmt: skip
    text = render_card(pretrained)
    assert "# tiny-chests\n\nA summary.\n" in text
    assert "- No children." in section(text, "Limits").splitlines()
    assert "- Veterinary images." in section(text, "Out-of-scope use").splitlines()
    assert "**These weights**: [Research only](https://example.org/terms)." in text
    assert "- **Training data**, Chests: CC0." in section(text, "Patents and licences").splitlines()
    assert section(text, "Citation").startswith("```bibtex\n@misc{me}\n\n@inproceedings{")
    assert "chest" in ModelCard(text).data.tags
    assert "No trunk of random weights" not in text
    shutil.rmtree(pretrained / "evaluation" / "control")
    assert "- No trunk of random weights" in section(render_card(pretrained), "Limits")


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


def test_long_results_show_what_is_not_of_single_labels(pretrained):
    values = {"linear auc": 0.75} | {f"linear auc_label{chr(97 + i)}": 0.7 + i / 100 for i in range(12)}
    write_results(pretrained, "probe", "probe", values, source="chests")
    text = section(render_card(pretrained), "Evaluation")
    assert "| linear auc | 0.750" in text
    assert "label" not in text.partition("### Probe: chests, test")[2].partition("###")[0].partition("|")[2]


def test_few_shot_scores_give_a_table_of_this_model(pretrained):
    folder = pretrained / "evaluation" / "few-shot"
    folder.mkdir()
    scores = [
        Score(encoder, "sha256 0123456789ab", k, draw, {"heart": dice + draw / 50}, 25)
        for encoder, dice in (("/home/me/run/last", 0.7), ("/home/me/other/last", 0.6))
        for k in (3, 6)
        for draw in (0, 1)
    ]
    write_scores(folder / "few_shot-frozen.jsonl", scores)
    (folder / "few_shot-frozen.md").write_text("# Few-shot segmentation, frozen: /home/me/scr\n\nA page.\n")
    text = section(write_card(pretrained).read_text(), "Evaluation")
    assert "### Few-shot segmentation, frozen: scr" in text
    assert "over 2 draws of them. The checkpoint was chosen on 25 more labelled images. [Settings](eval" in text
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
    assert text.startswith("### Few-shot")
    assert "| heart | this model | 71.2 |" in text
    assert '<img src="evaluation/few_shot-frozen.png"' in text


# what a card runs


def snippets(folder: Path) -> list[str]:
    """The two snippets of a folder's card, with the folder in the place of the model's id."""
    found = re.findall(r"```python\n(.*?)```", render_card(folder), re.DOTALL)
    assert [snippet.count('"user/tiny-chests"') for snippet in found] == [2, 2]
    return [snippet.replace("user/tiny-chests", str(folder)) for snippet in found]


@takes_auto_image_processor
@pytest.mark.parametrize("kind", MODELS)
def test_the_snippets_run(kind, tmp_path, monkeypatch):
    folder = write_model(tmp_path / "model", kind)
    Image.linear_gradient("L").resize((90, 70)).save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    outputs: list[dict] = []
    for snippet in snippets(folder):
        names: dict = {}
        exec(snippet, names)
        outputs.append(names)
    assert len(outputs) == 2
    for names in outputs:
        if kind == "trunk":
            assert names["outputs"].pooler_output.shape == (1, 20)
        elif kind == "overlapping":
            assert names["masks"].shape == (2, 70, 90)
        elif kind == "exclusive":
            assert names["labels"].shape == (70, 90)
        else:
            assert list(names["scores"]) == list(names["model"].config.id2label.values())
            total = sum(names["scores"].values())
            assert (kind == "single") == (abs(total - 1) < 1e-5)
    first, second = (names["outputs"].to_tuple()[0] for names in outputs)
    assert torch.equal(first, second)


@takes_auto_image_processor
@pytest.mark.slow
def test_the_first_snippet_needs_no_package(layouts, tmp_path):
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
        ({"limits": ["Right in 95 % of cases."]}, r"`limits` holds the number 95 %: results come from result files"),
        ({"summary": "An AUROC of 0.99."}, r"`summary` holds the number 0.99"),
        ({"lineage": ["Grew for 20 epochs."]}, r"`lineage` holds the number 20"),
        ({"citation": "Me, 2026"}, r"`citation` must be BibTeX, which starts with @, got 'Me, 2026'"),
        ({"intended_for": "all"}, r"'intended_for' is not accepted; its keys are model_id, license,"),
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
        ({"description": "Images. Dice is 0.97 on them."}, r"looks like a result, 'Dice is 0.97 on them.'"),
        ({"licence": "CC0"}, r"'licence' is not accepted"),
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
        ("config.json", write_json("{"), r"config.json cannot be read"),
        ("training/metrics.json", write_json({}), r"metrics.json must hold a list, got '\{\}'"),
        ("training/config.yaml", write_json("a: ["), r"config.yaml cannot be read"),
        ("training/config.yaml", write_json("stages: []\n"), r"the setting 'training' is missing"),
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
    with pytest.raises(ImportError, match=r"results.json is of an evaluation.*pip install 'eden_hf\[evaluation\]'"):
        write_card(pretrained)
    assert check_card(layouts["converted"]) == []
