import numpy as np
import pytest
from accelerate.state import AcceleratorState
from datasets import Dataset

from eden_hf import EdenImageProcessor, EdenModel, cli
from eden_hf.data.errors import SourceError
from eden_hf.data.phantoms import phantom_dataset
from eden_hf.evaluation.one_shot import PROTOCOLS, _last, one_shot, protocol_images
from eden_hf.evaluation.results import Results
from tests.tiny import tiny_config
from tests.training.conftest import _fresh_accelerate  # noqa: F401 (adapting trains)

UOD = PROTOCOLS["uod"]


def published(folder, names, columns=tuple(UOD.points)):
    """Phantoms in SCR's columns; point i of an outline lies at (0.3, i / 100) in the image of that name."""
    rows = []
    for row, name in zip(phantom_dataset(len(names), size=64), names, strict=True):
        outline = [[0.3, i / 100] for i in range(44)]
        rows.append({"image": row["image"], "image_id": name, **dict.fromkeys(columns, outline)})
    (folder / "scr").mkdir()
    for split in ("train", "test"):
        own = [row for row in rows if (int(row["image_id"][-1]) % 2 == 1) == (split == "train")]
        Dataset.from_list(own, features=_features(columns)).to_parquet(folder / "scr" / f"{split}.parquet")
    return str(folder / "scr")


def _features(columns):
    from datasets import Features, Image, List, Value

    outline = List(List(Value("float32"), length=2))
    return Features({"image": Image(), "image_id": Value("string"), **dict.fromkeys(columns, outline)})


IDS = [*(f"JPCLN{n:03}" for n in range(35, 70)), *(f"JPCNN{n:03}" for n in range(1, 21))]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return published(tmp_path_factory.mktemp("uod"), IDS)


def test_the_protocols_images_and_points(source):
    template, images = protocol_images(source, UOD, ("train", "test"), "image_id")
    assert template.source_id == "JPCLN035"
    assert [item.source_id for item in images] == [*IDS[3:35], *IDS[-18:]]
    assert template.names[:3] == ["right_lung_0", "right_lung_21", "right_lung_29"]
    assert template.points[2].tolist() == pytest.approx([0.3 * 64 - 0.5, 0.29 * 64 - 0.5])


def test_one_command_prints_the_table(source, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    EdenModel(tiny_config(dense_dim=16)).save_pretrained("model")
    EdenImageProcessor(size={"height": 32, "width": 32}, intensity="per_image").save_pretrained("model")
    cli.one_shot(["--model", "model", "--source", source, "--protocol", "uod", "--output", "out"])
    page = (tmp_path / capsys.readouterr().out.strip()).read_text()
    assert "| method | mean radial error in mm | within 3 mm | within 6 mm | within 9 mm |" in page
    assert "| same place | 0.000 (0.000, 0.000) | 1.000" in page  # all outlines are the same here
    assert "| published: UOD (arXiv 2306.07615) | 8.49 | - | - | - |" in page
    assert "50 images" in page
    results = Results.load(tmp_path / "out" / "method-0" / "results.json")
    assert results.evaluation == "one_shot uod"
    assert results.values["mean_radial_error_mm"].n == 50
    each = [value.value for name, value in results.values.items() if "lung" in name]
    assert np.mean(each) == pytest.approx(results.values["mean_radial_error_mm"].value)


def test_adapting_takes_the_images_that_are_not_searched(tmp_path):
    source = published(tmp_path, [*(f"JPCLN{n:03}" for n in range(30, 35)), *IDS])
    model, out = str(tmp_path / "model"), tmp_path / "out"
    EdenModel(tiny_config(dense_dim=16)).save_pretrained(model)
    EdenImageProcessor(size={"height": 32, "width": 32}, intensity="per_image").save_pretrained(model)
    AcceleratorState._reset_state(reset_partial_state=True)  # an earlier test's is of another precision
    page = one_shot([model], source, output=str(out), controls=(), adapt=True, adapt_steps=1)
    taken = {file.stem for file in (out / "unlabelled").iterdir()}
    assert taken == {*(f"JPCLN{n:03}" for n in range(30, 38)), *IDS[-20:-18]}
    assert f"| {model}, adapted | " in page.read_text()


def test_images_that_are_missing_are_named(tmp_path):
    source = published(tmp_path, IDS[1:40])
    with pytest.raises(SourceError, match=r"0 of 1 template \(JPCLN035\) and 37 of 50 test images"):
        one_shot(["random:resnet18-half"], source, output=str(tmp_path / "out"))


def test_the_last_by_name():
    assert _last(["JPCLN001", "JPCLN002", "JPCNN001"], "JPCLN", 1) == ["JPCLN002"]
