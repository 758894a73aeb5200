"""`eden landmarks` on phantoms, whose landmarks are known."""

import csv
import json
import re

import numpy as np
import pyarrow.parquet
import pytest
from accelerate.state import AcceleratorState
from PIL import Image

from eden_hf.cli import landmarks
from eden_hf.data.annotations import load_references
from eden_hf.data.errors import SourceError
from eden_hf.data.phantoms import draw_phantom
from eden_hf.matching.landmarks import find_landmarks

SIDE = 128
NAMES = ("carina", "heart_apex", "left_hilum", "right_lung_apex")


@pytest.fixture(scope="module")
def phantom():
    return draw_phantom(3, SIDE)


@pytest.fixture
def refs(tmp_path, phantom):
    """A phantom with its landmarks in a table."""
    folder = tmp_path / "refs"
    folder.mkdir()
    Image.fromarray(phantom.image).save(folder / "one.png")
    points = {name: [share * SIDE - 0.5 for share in phantom.landmarks[name]] for name in NAMES}
    lines = [f"one.png,{name},{x},{y}" for name, (x, y) in points.items()]
    (folder / "landmarks.csv").write_text("\n".join(["image,name,x,y", *lines]))
    return folder


@pytest.fixture
def xrays(tmp_path, phantom):
    """The same phantom: as it is, twice as large, and stored with pixels twice as high as wide, of 0.1 x 0.2 mm."""
    folder = tmp_path / "xrays"
    (folder / "sub").mkdir(parents=True)
    image = Image.fromarray(phantom.image)
    image.save(folder / "same.png")
    image.resize((2 * SIDE, 2 * SIDE)).save(folder / "sub" / "large.png")
    flat = image.resize((SIDE, SIDE // 2), Image.Resampling.BOX)
    flat.save(folder / "flat.png", dpi=(25.4 / 0.1, 25.4 / 0.2))
    return folder


def lines_of(folder):
    with (folder / "landmarks.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_points_are_found_in_each_images_own_pixels(refs, xrays, tmp_path, dense_folder, phantom):
    done = find_landmarks(dense_folder, str(refs), [str(xrays)], str(tmp_path / "out"), overlays=True)
    assert (done.images, done.unreadable, done.points, done.not_found) == (3, 0, 12, 0)
    sizes = {"same.png": (128, 128), "sub/large.png": (256, 256), "flat.png": (128, 64)}
    lines = lines_of(tmp_path / "out")
    assert list(lines[0]) == ["image", "name", "x", "y", "confidence", "found", "x_mm", "y_mm"]
    for line in lines:
        true = np.multiply(phantom.landmarks[line["name"]], sizes[line["image"]]) - 0.5
        error = np.subtract((float(line["x"]), float(line["y"])), true) / sizes[line["image"]]
        assert np.linalg.norm(error) < 0.04
        if line["image"] == "flat.png":
            assert float(line["x_mm"]) == pytest.approx(0.1 * float(line["x"]), abs=0.02)
            assert float(line["y_mm"]) == pytest.approx(0.2 * float(line["y"]), abs=0.02)
        else:
            assert line["x_mm"] == line["y_mm"] == ""
    assert [file.exists() for file in done.files] == [True] * 3
    assert sorted(p.name for p in (tmp_path / "out").rglob("*.png")) == [
        "contact_sheet.png", "flat.png.png", "large.png.png", "same.png.png",
    ]  # fmt: skip


def test_the_parquet_holds_the_same(refs, xrays, tmp_path, dense_folder):
    find_landmarks(dense_folder, str(refs), [str(xrays / "same.png")], str(tmp_path / "out"))
    table = pyarrow.parquet.read_table(tmp_path / "out" / "landmarks.parquet")
    first, line = table.to_pylist()[0], lines_of(tmp_path / "out")[0]
    assert first["image"] == "same.png"
    assert first["x"] == float(line["x"])
    assert first["found"] is True
    assert first["x_mm"] is None
    assert table.schema.metadata[b"revision"].startswith(b"sha256 ")


def test_an_output_laid_beside_the_images_is_a_table_of_references(refs, xrays, tmp_path, dense_folder):
    find_landmarks(dense_folder, str(refs), [str(xrays)], str(tmp_path / "out"))
    (xrays / "landmarks.csv").write_bytes((tmp_path / "out" / "landmarks.csv").read_bytes())
    by_name = {reference.name: reference for reference in load_references(xrays)}
    assert by_name.keys() == {"same.png", "sub/large.png", "flat.png"}
    assert by_name["flat.png"].image.size == (128, 128)
    for x, y in zip(by_name["flat.png"].points.values(), by_name["same.png"].points.values(), strict=True):
        assert np.linalg.norm(np.subtract(x, y)) < 4


def test_unreadable_images_are_named_and_the_exit_code_says_so(refs, xrays, tmp_path, dense_folder, capsys):
    (xrays / "torn.png").write_bytes(b"no image")
    command = ["--model", dense_folder, "--references", str(refs), "--images", str(xrays)]
    with pytest.raises(SystemExit) as stopped:
        landmarks([*command, "--output", str(tmp_path / "out")])
    assert stopped.value.code == 1
    shown = capsys.readouterr()
    assert "3 images searched for 12 points: 0 not found" in shown.out
    assert "images that cannot be read, see skipped.jsonl there: 1" in shown.err
    listed = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert [entry["source_id"] for entry in listed] == ["torn.png"]


def test_results_that_are_there_are_not_written_over(refs, xrays, tmp_path, dense_folder):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "landmarks.csv").write_text("corrected by hand")
    with pytest.raises(SourceError, match=r"landmarks\.csv is there already"):
        find_landmarks(dense_folder, str(refs), [str(xrays)], str(tmp_path / "out"))
    assert (tmp_path / "out" / "landmarks.csv").read_text() == "corrected by hand"


def test_mistakes_end_in_one_line(refs, xrays, tmp_path, dense_folder, capsys):
    (refs / "landmarks.csv").write_text("image,name,x,y\none.png,apex,ten,3\n")
    command = ["--references", str(refs), "--images", str(xrays), "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stopped:
        landmarks(["--model", dense_folder, *command])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(SystemExit) as stopped:
        landmarks(["--model", str(tmp_path / "absent"), *command])
    assert stopped.value.code == 2


def test_where_no_image_can_be_read_nothing_is_written(refs, xrays, tmp_path, dense_folder):
    (xrays / "torn.png").write_bytes(b"no image")
    with pytest.raises(
        SourceError, match=r"no image can be searched: 1 images left out as unreadable; .*skipped.jsonl"
    ):
        find_landmarks(dense_folder, str(refs), [str(xrays / "torn.png")], str(tmp_path / "out"))
    assert not (tmp_path / "out" / "landmarks.csv").exists()


def test_masks_alone_are_no_references_of_points(refs, xrays, tmp_path, dense_folder):
    (refs / "landmarks.csv").unlink()
    (refs / "masks" / "heart").mkdir(parents=True)
    Image.fromarray(np.ones((SIDE, SIDE), bool)).save(refs / "masks" / "heart" / "one.png")
    with pytest.raises(SourceError, match="has masks but no points"):
        find_landmarks(dense_folder, str(refs), [str(xrays)], str(tmp_path / "out"))


def test_go_betweens_are_read_too(refs, xrays, tmp_path, dense_folder):
    (xrays / "torn.png").write_bytes(b"no image")
    done = find_landmarks(
        dense_folder, str(refs), [str(xrays / "same.png")], str(tmp_path / "out"), unlabelled=str(xrays)
    )
    assert (done.images, done.unreadable) == (1, 1)


def test_names_that_lead_out_of_the_output_are_refused(refs, tmp_path, dense_folder, phantom):
    from datasets import Dataset

    source = tmp_path / "data.parquet"
    Dataset.from_list([{"image": Image.fromarray(phantom.image), "id": "../../evil"}]).to_parquet(source)
    with pytest.raises(SourceError, match=r"'\.\./\.\./evil' names a place outside"):
        find_landmarks(
            dense_folder, str(refs), [str(source)], str(tmp_path / "out" / "deep"), overlays=True, id_column="id"
        )


def test_adapting_first_keeps_its_run_and_says_whether_it_helped(refs, tmp_path, dense_folder, caplog):
    for seed in range(9):
        file = tmp_path / "unlabelled" / f"{seed}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(draw_phantom(seed, SIDE).image).save(file)
    arguments = ["--model", str(dense_folder), "--references", str(refs), "--images", str(tmp_path / "unlabelled")]
    arguments += ["--adapt", str(tmp_path / "unlabelled"), "--adapt_steps", "1", "--output", str(tmp_path / "out")]
    AcceleratorState._reset_state(reset_partial_state=True)  # an earlier test's is of another precision
    with caplog.at_level("INFO"):
        landmarks(arguments)
    assert (tmp_path / "out" / "adapted" / "last" / "model.safetensors").exists()
    before, after = map(float, re.search(r"([\d.]+) % of the side before, ([\d.]+) % after", caplog.text).groups())
    metadata = pyarrow.parquet.read_schema(tmp_path / "out" / "landmarks.parquet").metadata
    searched = str(tmp_path / "out" / "adapted" / "last") if after < before else str(dense_folder)
    assert metadata[b"model"].decode() == searched
    assert ("adapting did not help" in caplog.text) == (after >= before)
