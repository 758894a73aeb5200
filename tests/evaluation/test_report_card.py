import json

import pytest
import torch

from eden_hf import EdenImageProcessor, EdenModel, cli
from eden_hf.data.phantoms import phantom_dataset
from eden_hf.evaluation.report_card import EVALUATIONS, _folders, evaluate
from eden_hf.evaluation.results import Results
from tests.launching import python
from tests.tiny import tiny_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    EdenModel(tiny_config()).save_pretrained(path)
    EdenImageProcessor(size={"height": 32, "width": 32}, intensity="per_image").save_pretrained(path)
    return str(path)


def test_one_command_writes_cards_side_by_side(folder, tmp_path):
    """By the script, with two encoders; fewer windows are searched than usual by a small image."""
    finished = python(
        "scripts/evaluate.py", "--model", folder, f"random:{folder}", "--source", "phantoms:3",
        "--output", str(tmp_path), "--evaluations", "locality", "compositionality", "relations",
    )  # fmt: skip
    pages = finished.stdout.split()
    assert len(pages) == 3
    card, random, comparison = ((tmp_path / page).read_text() for page in pages)
    for name in ("locality", "compositionality", "relations"):
        assert f"![{name}]({name}/figure.png)" in card
        own = tmp_path / folder.rsplit("/", 1)[-1] / name
        results = Results.load(own / "results.json")
        assert results.revision.startswith("sha256")
        assert (own / "figure.png").stat().st_size > 5000
        first = next(iter(results.values.values()))
        assert str(first) in card
        assert str(first) in comparison
    assert "Chance 1 / L" in card  # what the numbers mean
    assert "seed 0" in random
    assert "report.md" in comparison


def test_correspondence_is_on_the_card_too(folder, tmp_path):
    chosen = ["correspondence", "correspondence_windows"]
    (page,) = evaluate([folder], "phantoms:2", str(tmp_path), evaluations=chosen)
    assert "| correspondence | gain over pixels mm |" in page.read_text()
    results = json.loads((page.parent / "correspondence" / "results.json").read_text())
    assert results["values"]["mean_radial_error_mm"]["n"] == 2
    assert results["settings"]["control_pairs"] == {"pixels": [2]}
    assert results["source"] == "phantoms:2 (train, 2 images)"
    assert (page.parent / "correspondence_windows" / "results.json").is_file()


def test_unknown_evaluations_are_refused_with_the_known_ones(folder, tmp_path):
    with pytest.raises(ValueError, match=f"localty.*{', '.join(EVALUATIONS)}"):
        evaluate([folder], "phantoms:2", str(tmp_path), evaluations=["localty"])


def test_the_same_encoder_twice_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="must differ"):
        evaluate([folder, folder], "phantoms:2", str(tmp_path))


@pytest.mark.parametrize(
    ("names", "folders"),
    [
        (["runs/x/last/"], ["last"]),
        (["runs/x/last/", "random:runs/x/last/"], ["last", "random-last"]),
        (["runs/x/last", "runs/y/last/"], ["x-last", "y-last"]),
        (["random:resnet18", "org/model"], ["random-resnet18", "model"]),
    ],
)
def test_folders_are_named_by_the_end_of_the_encoders_name(names, folders):
    assert list(_folders(names).values()) == folders


def test_a_card_of_some_patients_alone(folder, tmp_path, capsys):
    rows = phantom_dataset(6, size=64).add_column("sex", ["F", "M", "F", "M", "F", "M"])
    rows.to_parquet(tmp_path / "data" / "train.parquet")
    named = ["--model", folder, "--source", str(tmp_path / "data"), "--output", str(tmp_path / "out")]
    cli.evaluate([*named, "--evaluations", "locality", "--subgroup.sex", "F"])
    results = Results.load(next(tmp_path.glob("out/*/locality/results.json")))
    assert results.settings["subgroup"] == {"sex": "F"}
    assert results.source.endswith("(train, 3 images)")
    with pytest.raises(SystemExit, match=r"^2$"):
        cli.evaluate([*named, "--subgroup.sex", "X"])
    assert "eden evaluate: " in (said := capsys.readouterr().err)
    assert "nobody has sex 'X'" in said
