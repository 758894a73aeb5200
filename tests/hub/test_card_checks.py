"""A card is right exactly when it equals what its folder gives, and its results are of the folder's weights."""

import json
import re
import shutil
from pathlib import Path

import pytest
from huggingface_hub import HfApi, ModelCard

from eden_hf.hub.cards import check_card, write_card
from eden_hf.model_names import weights_revision

from .test_cards import declare, write_finetuned, write_pretrained, write_results


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    for write in (write_pretrained, write_finetuned):
        write_card(write(folder / write.__name__))
    return folder


@pytest.fixture
def pretrained(written, tmp_path) -> Path:
    return Path(shutil.copytree(written / "write_pretrained", tmp_path / "pretrained"))


@pytest.fixture
def finetuned(written, tmp_path) -> Path:
    return Path(shutil.copytree(written / "write_finetuned", tmp_path / "finetuned"))


def edit(folder, old: str, new: str) -> None:
    """Replace the one `old` in the card."""
    file = folder / "README.md"
    text = file.read_text()
    assert text.count(old) == 1, text.count(old)
    file.write_text(text.replace(old, new))


@pytest.mark.parametrize("layout", ["pretrained", "finetuned"])
def test_any_line_that_is_changed_left_out_or_added_is_found(request, layout):
    folder = request.getfixturevalue(layout)
    lines = (folder / "README.md").read_text().splitlines(keepends=True)
    for place in range(0, len(lines), 5):
        for changed in (["Invented, in 46 minutes.\n", lines[place]], ["Other words.\n"], []):
            (folder / "README.md").write_text("".join(lines[:place] + changed + lines[place + 1 :]))
            assert check_card(folder), (place, changed)


def test_what_differs_is_shown_with_the_mend(pretrained):
    edit(pretrained, "retrieval at 1 ↑ | 0.812", "retrieval at 1 ↑ | 0.821")
    (problem,) = check_card(pretrained)
    assert "run eden card write, and put words of your own in `notes` of card.yaml" in problem
    assert re.search(r"^-\|.*0\.821.*\n\+\|.*0\.812", problem, re.MULTILINE)


def test_words_of_ones_own_are_notes(pretrained):
    declare(pretrained, notes="We read it on 46 films: an AUROC of 0.99.")
    write_card(pretrained)
    assert "## Notes\n\nWe read it on 46 films: an AUROC of 0.99.\n" in (pretrained / "README.md").read_text()
    assert check_card(pretrained) == []


@pytest.mark.parametrize(
    ("start", "own", "refused"),
    [
        ("cc-by-nc-4.0", "apache-2.0", True),
        ("fair-noncommercial-research-license", "mit", True),
        ("other (non-commercial, of the method's authors)", "mit", True),
        ("cc-by-nc-4.0", "cc-by-nc-sa-4.0", False),
        ("other (dinov3-license)", "apache-2.0", False),
        ("apache-2.0", "mit", False),
        (None, "mit", False),
    ],
)
def test_a_licence_does_not_give_what_that_of_the_start_forbids(pretrained, start, own, refused):
    file = pretrained / "training" / "environment.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"start_license": start}))
    recipe = pretrained / "training" / "config.yaml"
    recipe.write_text(recipe.read_text().replace("  start: null", "  start: user/start"))
    declare(pretrained, license=own)
    text = write_card(pretrained).read_text()
    assert (f"Started from user/start, which is under the licence {start}." in text) == (start is not None)
    problems = check_card(pretrained)
    assert len(problems) == refused
    assert all(f"`license` is {own}, but the run started from a model under {start}" in told for told in problems)


def test_results_that_came_after_the_card_are_missed_in_it(pretrained):
    write_results(pretrained, "later", "compositionality", {"margin": 0.0333})
    (problem,) = check_card(pretrained)
    assert "+| margin ↑ | 0.033 (-0.017, 0.083) | - |" in problem


def test_files_that_are_missing_are_found(pretrained):
    (pretrained / "evaluation" / "locality" / "results.md").unlink()
    assert check_card(pretrained) == ["README.md: evaluation/locality/results.md is missing from the folder"]


def test_every_result_of_this_model_must_be_of_its_weights(pretrained):
    """One file that matches proves nothing of the others; what stands beside the model may be of any weights."""
    write_results(pretrained, "control", "locality", {"auroc": 0.7}, encoder="random:resnet18", revision="seed 5")
    write_results(pretrained, "other", "compositionality", {"margin": 0.2}, revision="sha256 ba9876543210")
    write_card(pretrained)
    (problem,) = check_card(pretrained)
    assert "evaluation/other/results.json: the results are of other weights (sha256 ba9876543210)" in problem
    assert problem.endswith("evaluate the very folder that is published")


def test_an_audit_is_of_the_run_whose_model_is_published(pretrained):
    """Its encoders are steps, of other weights each; the run's models are what ties it to this one."""
    own = weights_revision(str(pretrained))
    settings = {"level": 4, "models": ["sha256 ba9876543210", own]}
    write_results(pretrained, "audit", "pruner audit", {"recall": 0.3}, encoder="step 10", settings=settings)
    write_card(pretrained)
    assert check_card(pretrained) == []
    for models in ({"models": ["sha256 ba9876543210"]}, {}):
        write_results(pretrained, "audit", "pruner audit", {"recall": 0.3}, encoder="step 10", settings=models)
        write_card(pretrained)
        assert "evaluation/audit/results.json: the results are of other weights" in check_card(pretrained)[0]


def test_results_of_the_staged_weights_count_while_the_published_are_these(pretrained):
    told = {"staged": "sha256 ba9876543210", "published": weights_revision(str(pretrained))}
    write_results(pretrained, "locality", "locality", {"auroc": 0.7}, revision=told["staged"])
    (pretrained / "evaluation" / "weights.json").write_text(json.dumps(told))
    write_card(pretrained)
    assert check_card(pretrained) == []
    (pretrained / "evaluation" / "weights.json").write_text(json.dumps(told | {"published": "sha256 0"}))
    assert "evaluation/locality/results.json: the results are of other weights" in check_card(pretrained)[0]


def test_a_card_that_is_none(pretrained):
    (pretrained / "README.md").unlink()
    assert check_card(pretrained) == [f"{pretrained / 'README.md'} is missing: run eden card write {pretrained}"]


def test_a_card_of_another_repository_is_found(pretrained):
    assert check_card(pretrained, model_id="user/other") == [
        "card.yaml: `model_id` is 'user/tiny-chests', but it is to be published as 'user/other'"
    ]


def test_the_hub_is_asked_where_wanted(pretrained, monkeypatch):
    def refuse(card):
        raise ValueError(f"no such licence: {card.data.license}")

    declare(pretrained, base_model="user/trunk")
    write_card(pretrained)
    there = [("user/trunk", "model")]
    monkeypatch.setattr(ModelCard, "validate", lambda card: None)
    monkeypatch.setattr(HfApi, "repo_exists", lambda api, name, repo_type: (name, repo_type) in there)
    assert check_card(pretrained) == []
    assert check_card(pretrained, online=True) == [
        "card.yaml: `training_data.hub_id`: the Hub has no dataset user/chests that this token may see"
    ]
    there[:] = [("user/chests", "dataset")]
    assert check_card(pretrained, online=True) == [
        "card.yaml: `base_model`: the Hub has no model user/trunk that this token may see"
    ]
    there += [("user/trunk", "model")]
    monkeypatch.setattr(ModelCard, "validate", refuse)
    assert check_card(pretrained, online=True) == [
        "README.md: the Hub refuses the metadata: no such licence: cc-by-nc-4.0"
    ]
