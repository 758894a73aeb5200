import json

import pytest
import torch

from eden_hf import EdenImageProcessor, EdenModel, cli
from eden_hf.data.phantoms import phantom_dataset
from eden_hf.evaluation.report_card import EVALUATIONS, _folders, evaluate
from eden_hf.evaluation.results import Results, differences
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
    assert len(pages) == 4  # with pixels
    card, random, _, comparison = ((tmp_path / page).read_text() for page in pages)
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
    (page,) = evaluate([folder], "phantoms:2", str(tmp_path), evaluations=chosen, untrained=0)
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


def test_subgroups_are_slices_of_all(folder, tmp_path, capsys):
    """Half of the patients are women: all is the mean of both, since each is compared with all others."""
    rows = phantom_dataset(6, size=64).add_column("sex", ["F", "M", "F", "M", "F", "M"])
    rows.to_parquet(tmp_path / "data" / "train.parquet")
    named = ["--model", folder, "--source", str(tmp_path / "data"), "--output", str(tmp_path / "out")]
    named += ["--untrained", "0"]
    cli.evaluate([*named, "--evaluations", "locality", "relations", "--subgroup.sex", "[F, M]"])
    own = tmp_path / "out" / folder.rsplit("/", 1)[-1]
    for chosen, measure in (("locality", "auroc"), ("relations", "scale margin")):
        files = [own / chosen / part / "results.json" for part in ("", "sex-F", "sex-M")]
        everyone, women, men = map(Results.load, files)
        assert women.settings["subgroup"] == {"sex": "F"}
        assert (everyone.values[measure].n, women.values[measure].n) == (6, 3)
        mean = (women.values[measure].value + men.values[measure].value) / 2
        assert everyone.values[measure].value == pytest.approx(mean)
    with pytest.raises(SystemExit, match=r"^2$"):
        cli.evaluate([*named, "--subgroup.sex", "X"])
    assert "eden evaluate: " in (said := capsys.readouterr().err)
    assert "nobody has sex 'X'" in said


def test_images_are_not_taken_for_patients(folder, tmp_path):
    """Two copies of each phantom: what is said of 3 patients is what one image of each says."""
    once = phantom_dataset(3, size=64)
    copies = once.select([0, 0, 1, 1, 2, 2]).add_column("patient", [f"p{index // 2}" for index in range(6)])
    values = []
    for name, rows, column in (("once", once, None), ("copies", copies.remove_columns("image_id"), "patient")):
        rows.to_parquet(tmp_path / name / "train.parquet")
        (page,) = evaluate(
            [folder], str(tmp_path / name), str(tmp_path / f"out-{name}"), patient_column=column,
            evaluations=["locality", "correspondence"], shots=[1], controls=[], untrained=0,
        )  # fmt: skip
        for chosen in ("locality", "correspondence"):
            found = Results.load(page.parent / chosen / "results.json").values
            values.append({measure: found[measure] for measure in found if measure != "knn_accuracy"})
    for one, two in zip(values[:2], values[2:], strict=True):
        for measure, found in one.items():
            assert two[measure].value == pytest.approx(found.value, abs=1e-4), measure
            assert two[measure].low == pytest.approx(found.low, abs=1e-4), measure
            assert two[measure].n == 3


def test_controls_have_columns_of_their_own(folder, tmp_path):
    """Untrained trunks of two seeds as one, and pixels; the differences from the model below."""
    pages = evaluate([folder], "phantoms:4", str(tmp_path), evaluations=["locality", "nuisances"], untrained=2)
    own, random, pixels = (page.parent for page in pages[:3])
    assert (random.name, pixels.name) == (f"random-{own.name}", "pixels")
    fresh = Results.load(random / "nuisances" / "results.json")
    assert fresh.revision == "seed 0, seed 1"
    assert fresh.settings["deviation_over_seeds"].keys() == fresh.values.keys()
    comparison = pages[3].read_text()
    assert f"| {own.name} | {random.name} | pixels |" in comparison
    difference = differences(*(Results.load(of / "locality" / "results.json") for of in (own, pixels)))["auroc"]
    assert str(difference) in comparison.partition("Differences")[2]


def test_cosines_of_other_architectures_are_not_set_beside(tmp_path):
    """Random weights of five architectures have margins of their own: no table says that one composes better."""
    models = []
    for name in ("resnet", "convnextv2", "swin", "vit", "dinov2"):
        torch.manual_seed(0)
        EdenModel(tiny_config(name)).save_pretrained(tmp_path / name)
        EdenImageProcessor(size={"height": 32, "width": 32}, intensity="per_image").save_pretrained(tmp_path / name)
        models.append(str(tmp_path / name))
    first, *others = models
    named = [first, f"random:{first}", *others]
    options = {"evaluations": ["locality", "compositionality"], "untrained": 0, "controls": []}
    *_, comparison = evaluate(named, "phantoms:3", str(tmp_path / "out"), **options)
    tables = comparison.read_text().partition("Differences")
    for text, compared in ((tables[0], 2), (tables[2], 1)):
        cells = next(line for line in text.splitlines() if line.startswith("| compositionality | margin |"))
        assert len([cell for cell in cells.split("|") if "(" in cell]) == compared
        cells = next(line for line in text.splitlines() if line.startswith("| locality | auroc |"))
        assert len([cell for cell in cells.split("|") if "(" in cell]) == compared + len(others)
    assert "`convnextv2`, `swin`, `vit`, `dinov2` are on pages of their own" in tables[0]
