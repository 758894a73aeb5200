"""Whatever is changed in a card, or added to it, is found with its line."""

import re
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from eden_hf.hub.cards import check_card, write_card

from .test_cards import declare, write_finetuned, write_pretrained, write_results

TABLE = "| auroc | 0.914 (0.864, 0.964) | 0.721 (0.671, 0.771) |"


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


def edit(folder, old: str, new: str) -> int:
    """Replace the one `old` in the card; returns the number of its line."""
    file = folder / "README.md"
    text = file.read_text()
    assert text.count(old) == 1, text.count(old)
    file.write_text(text.replace(old, new))
    return text[: text.index(old)].count("\n") + 1


def add(folder, sentence: str, section: str = "## Limits") -> int:
    """Put a sentence under a section's heading; returns the number of its line."""
    return edit(folder, f"{section}\n", f"{section}\n\n{sentence}\n") + 2


# numbers that are changed


@pytest.mark.parametrize(
    ("old", "new", "number", "held"),
    [
        ("| auroc | 0.914 (", "| auroc | 0.915 (", "0.915", "0.914"),
        ("(0.864, 0.964)", "(0.894, 0.964)", "0.894", "0.864"),
        ("(0.671, 0.771) |", "(0.671, 0.721) |", "0.721", "0.771"),
        ("All 3 values", "All 37 values", "37", "3"),
        ("112,120 frontal", "112,121 frontal", "112,121", "112,120"),
        ("| 3 | 4 | 200 | 0.8 |", "| 3 | 4 | 300 | 0.8 |", "300", "200"),
        ("batch | 256 images", "batch | 512 images", "512", "256"),
        ("100 optimiser steps", "1000 optimiser steps", "1000", "100"),
        ("level 4 for 200 epochs", "level 2 for 200 epochs", "2", "4"),
        ("12,639,932", "12,639,933", "12,639,933", "12,639,932"),
    ],
)
def test_a_number_that_is_changed_in_text_or_table_is_found(pretrained, old, new, number, held):
    line = edit(pretrained, old, new)
    told = f"README.md:{line}: no file of the folder holds {number} here; they hold {held}"
    assert check_card(pretrained) == [told]


@pytest.mark.parametrize("layout", ["pretrained", "finetuned"])
def test_any_number_that_is_changed_is_found(request, layout):
    folder = request.getfixturevalue(layout)
    text = (folder / "README.md").read_text()
    digits = [match.end() - 1 for match in re.finditer(r"\d+(?:\.\d+)?", text)]
    for place in digits[::9]:
        changed = text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :]
        (folder / "README.md").write_text(changed)
        assert check_card(folder), changed[max(0, place - 40) : place + 10]


def test_a_subgroups_value_that_is_changed_is_found(finetuned):
    line = edit(finetuned, "phantoms, dice | 0.915", "phantoms, dice | 0.925")
    assert check_card(finetuned) == [f"README.md:{line}: no file of the folder holds 0.925 here; they hold 0.915"]


def test_a_row_that_is_left_out_or_named_otherwise_is_found(pretrained):
    edit(pretrained, TABLE + "\n", "")
    told = f"README.md: 'Locality: scr, test' lacks, or has changed, the row {TABLE}"
    assert check_card(pretrained) == [told]
    add(pretrained, TABLE.replace("auroc", "silhouette"), "### Correspondence: scr, test")
    assert told in check_card(pretrained)


def test_two_rows_that_change_places_are_found(pretrained):
    first, second = "| 2 | 2 | 200 | 0.8 | 0.03 | 0.9 | 0.0001 |", "| 3 | 4 | 200 | 0.8 | 0.03 | 0.9 | 0.0001 |"
    edit(pretrained, f"{first}\n{second}", f"{second}\n{first}")
    assert len(check_card(pretrained)) == 4


def test_results_that_came_after_the_card_are_missed_in_it(pretrained):
    write_results(pretrained, "later", "compositionality", {"own": 0.512, "margin": 0.0333})
    problems = check_card(pretrained)
    assert "README.md: model-index lacks Compositionality: own on scr, which a file gives" in problems
    assert any(p.endswith("the row | margin | 0.033 (-0.017, 0.083) |") for p in problems)


@pytest.mark.parametrize(
    ("old", "new", "wrong"),
    [
        ("      value: 0.914\n", "      value: 0.941\n", "0.941 for Locality: auroc on scr; they hold 0.914"),
        (
            "      value: 23.5\n",
            "      value: 3.5\n",
            "3.5 for Correspondence: mean radial error mm on scr; they hold 23.5",
        ),
        ("      value: 0.914\n", "      value: true\n", "True for Locality: auroc on scr; they hold 0.914"),
    ],
)
def test_a_value_that_is_changed_in_the_model_index_is_found(pretrained, old, new, wrong):
    line = edit(pretrained, old, new)
    assert check_card(pretrained) == [f"README.md:{line}: model-index: no file holds {wrong}"]


def test_values_that_change_places_in_the_model_index_are_found(pretrained):
    edit(pretrained, "value: 0.914", "value: 0.000")
    edit(pretrained, "value: 0.812", "value: 0.914")
    edit(pretrained, "value: 0.000", "value: 0.812")
    assert [problem.partition("index: ")[2] for problem in check_card(pretrained)] == [
        "no file holds 0.914 for Locality: retrieval at 1 on scr; they hold 0.812",
        "no file holds 0.812 for Locality: auroc on scr; they hold 0.914",
    ]


def test_a_result_that_no_file_gives_is_found_in_the_model_index(pretrained):
    card = ModelCard.load(pretrained / "README.md")
    card.data.eval_results[0].metric_name = "Another"
    card.save(pretrained / "README.md")
    problems = check_card(pretrained)
    assert len(problems) == 2
    assert re.fullmatch(r"README.md:\d+: model-index: no file holds .* for Another on scr", problems[0])
    assert problems[1].endswith("on scr, which a file gives")


# numbers that are added


@pytest.mark.parametrize(
    ("sentence", "numbers"),
    [
        ("It reaches an AUROC of 0.99.", ["0.99"]),
        ("It reaches an AUROC of .99, better than 0.72.", [".99"]),
        ("It is right in 97 % of cases.", ["97 %"]),
        ("It is right in 97 percent of cases.", ["97 percent"]),
        ("Dice is 0.914.", ["0.914"]),  # an AUROC
        ("Accuracy is 0.2.", ["0.2"]),  # a temperature
        ("AUROC 0.9.", ["0.9"]),  # one digit is near to many
        ("The retrieval error is -0.81.", ["-0.81"]),
        ("It saw 1,234,567 images.", ["1,234,567"]),
        ("It was trained for 13 days and 5 nights.", ["13", "5"]),
        ("| auroc of others | 0.55 |", ["0.55"]),
        ("### Better than 42 others", ["42"]),
    ],
)
def test_a_number_that_no_file_holds_is_found(pretrained, sentence, numbers):
    line = add(pretrained, sentence)
    assert check_card(pretrained) == [f"README.md:{line}: no file of the folder holds {text}" for text in numbers]


@pytest.mark.parametrize(
    "sentence",
    [
        "Nothing is counted here.",
        "It tells patches apart: AUROC 0.914 (0.864, 0.964), or 0.91.",
        "AUROC was measured on 37 patients with seed 3.",
        "In other words 91 % of pairs.",
        "The mean radial error is 23.5 mm.",
        "The bank holds 65,536 keys; 900 images; 112,120 radiographs; weight decay 1e-4; rotations of 30 degrees.",
        "Our ResNet-50 of 2D images (16-bit, the 2nd try of eden_hf 0.1.0) is at https://example.org/1234.",
        "95 % confidence intervals are from arXiv 2309.15358.",
    ],
)
def test_what_files_hold_may_be_said(pretrained, sentence):
    add(pretrained, sentence)
    assert check_card(pretrained) == []


def test_numbers_in_other_metadata_are_found(pretrained):
    line = edit(pretrained, "library_name:", "dice: 0.97\nlanguage: en\nlibrary_name:")
    assert check_card(pretrained) == [f"README.md:{line}: metadata: no file holds 0.97 of `dice`"]


# metadata, sections, snippets, links


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("license: cc-by-nc-4.0\n", "license: mit\n", "`license` is 'mit', but the files give 'cc-by-nc-4.0'"),
        ("license: cc-by-nc-4.0\n", "", "`license` is None, but the files give 'cc-by-nc-4.0'"),
        ("pipeline_tag: image-feature-extraction\n", "pipeline_tag: 3\n", "`pipeline_tag` is 3, but the files give"),
        ("- user/chests\n", "- user/other\n", "`datasets` must be a list with user/chests, got ['user/other']"),
        ("datasets:\n- user/chests\n", "datasets: chests\n", "must be a list with user/chests, got 'chests'"),
        ("      type: scr\n      split: test\n      revision: ba9876543210\n    metrics:\n    - type: mean",
         "      split: test\n      revision: ba9876543210\n    metrics:\n    - type: mean",
         "`model-index` is not as the Hub wants it: KeyError 'type'"),
        ("model-index:\n", "model-index: 3\nother:\n", "`model-index` is not as the Hub wants it: TypeError"),
    ],
)  # fmt: skip
def test_metadata_that_differs_is_found(pretrained, old, new, told):
    text = (pretrained / "README.md").read_text()
    (pretrained / "README.md").write_text(text.replace(old, new, 1))
    assert old in text
    assert any(told in problem for problem in check_card(pretrained)), check_card(pretrained)


def test_metadata_may_hold_more(pretrained):
    edit(pretrained, "tags:\n", "tags:\n- lungs\n")
    assert check_card(pretrained) == []


@pytest.mark.parametrize("name", ["Intended use", "Limits", "Patents and licences", "Citation"])
def test_sections_that_are_missing_or_empty_are_found(pretrained, name):
    file = pretrained / "README.md"
    text = file.read_text()
    told = f"README.md: the section `## {name}` is missing or empty"
    file.write_text(text.replace(f"## {name}\n", ""))
    assert told in check_card(pretrained)
    file.write_text(re.sub(rf"(## {name}\n).*?(?=^## |\Z)", r"\1\n", text, flags=re.MULTILINE | re.DOTALL))
    assert told in check_card(pretrained)


def test_snippets_of_another_model_are_found(pretrained):
    edit(pretrained, 'EdenModel.from_pretrained("user/tiny-chests")', 'EdenModel.from_pretrained("user/other")')
    assert check_card(pretrained) == [
        "README.md: the snippet that starts with `from eden_hf import EdenImageProcessor, EdenModel` is changed or "
        "missing: run eden card write"
    ]


def test_figures_and_files_that_are_missing_are_found(pretrained):
    line = add(pretrained, "See [more](evaluation/more.md#part), [elsewhere](https://example.org), [above](#input).")
    assert check_card(pretrained) == [f"README.md:{line}: evaluation/more.md#part is missing from the folder"]
    (pretrained / "training" / "loss.png").unlink()
    assert any("training/loss.png is missing from the folder" in problem for problem in check_card(pretrained))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "README.md is missing: run eden card write"),
        ("# A card", "README.md has no metadata between --- lines: run eden card write"),
        ("---\na: [\n---\n", "README.md: the metadata is no YAML"),
        ("---\n- a\n---\n", "README.md: the metadata must be a mapping, got ['a']"),
    ],
)
def test_a_card_that_is_none(pretrained, text, told):
    file = pretrained / "README.md"
    file.unlink() if text is None else file.write_text(text)
    problems = check_card(pretrained)
    assert len(problems) == 1
    assert told in problems[0]


def test_a_card_of_another_repository_is_found(pretrained):
    assert check_card(pretrained, model_id="user/other") == [
        "card.yaml: `model_id` is 'user/tiny-chests', but it is to be published as 'user/other'"
    ]


def test_what_is_declared_anew_is_missed_in_the_card(pretrained):
    declare(pretrained, license="mit")
    assert check_card(pretrained) == [
        "README.md: metadata: `license` is 'cc-by-nc-4.0', but the files give 'mit'",
    ]
    (pretrained / "card.yaml").write_text(yaml.safe_dump({"model_id": "user/tiny-chests"}))
    assert re.search(r"card.yaml: .*required: license", check_card(pretrained)[0])


def test_the_hub_is_asked_where_wanted(pretrained, monkeypatch):
    def refuse(card):
        raise ValueError(f"no such licence: {card.data.license}")

    monkeypatch.setattr(ModelCard, "validate", refuse)
    assert check_card(pretrained) == []
    assert check_card(pretrained, online=True) == [
        "README.md: the Hub refuses the metadata: no such licence: cc-by-nc-4.0"
    ]
