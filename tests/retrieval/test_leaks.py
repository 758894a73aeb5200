"""Copies that two sources share are found, however they were changed; different images are not."""

import csv

import numpy as np
import pytest
from PIL import Image

from eden_hf import cli
from eden_hf.data.errors import SourceError
from eden_hf.data.phantoms import draw_phantom
from eden_hf.retrieval.leaks import find_leaks
from eden_hf.retrieval.looks import SIDE, alike, small_picture


def phantom(seed: int) -> Image.Image:
    """A phantom with noise of its own, as radiographs have."""
    noise = np.random.default_rng(seed).normal(0, 10, (32, 32))
    image = draw_phantom(seed, 128).image + np.asarray(Image.fromarray(noise).resize((128, 128), Image.BICUBIC))
    return Image.fromarray(image.clip(0, 255).astype(np.uint8))


CHANGES = {
    "scaled.png": lambda image: image.resize((90, 60)),
    "mirrored.png": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "cropped.png": lambda image: image.crop((4, 2, 126, 124)),
    "brighter.png": lambda image: image.point(lambda value: 255 * (value / 255) ** 0.7),
    "compressed.jpg": lambda image: image,
}


@pytest.fixture
def sources(tmp_path):
    """Ten images for pretraining; for the test copies of five of them and three images of its own."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    for seed in range(10):
        phantom(seed).save(tmp_path / "a" / f"{seed}.png")
    for seed, (name, change) in enumerate(CHANGES.items()):
        change(phantom(seed)).save(tmp_path / "b" / name)
    for seed in range(20, 23):
        phantom(seed).save(tmp_path / "b" / f"{seed}.png")
    return tmp_path


def shared(folder, **options):
    report = find_leaks(str(folder / "a"), str(folder / "b"), str(folder / "leaks.csv"), num_workers=0, **options)
    return {(leak.a, leak.b): leak for leak in report.leaks}, report


@pytest.mark.parametrize("turned_round", [False, True])
def test_changed_copies_are_found_and_nothing_else(sources, turned_round):
    if turned_round:  # the whole picture is in the test set, the cut one was pretrained on
        (sources / "a").rename(sources / "c")
        (sources / "b").rename(sources / "a")
        (sources / "c").rename(sources / "b")
    found, report = shared(sources)
    wanted = {(f"{seed}.png", name)[:: -1 if turned_round else 1] for seed, name in enumerate(CHANGES)}
    assert set(found) == wanted
    assert {leak.found_by for leak in found.values()} == {"looks"}
    assert report.images == ((8, 10) if turned_round else (10, 8))
    with report.file.open(newline="") as file:
        assert {(row["a"], row["b"]) for row in csv.DictReader(file)} == wanted


def test_the_same_pixels_and_the_same_id_are_told_apart(sources):
    Image.open(sources / "a" / "9.png").convert("RGB").save(sources / "b" / "copy.bmp")
    phantom(30).save(sources / "b" / "8.BMP")
    found, _ = shared(sources)
    assert found["9.png", "copy.bmp"].found_by == "pixels+looks"
    assert found["8.png", "8.BMP"] == ("8.png", "8.BMP", "id", 0.0)


def test_row_numbers_are_no_ids(tmp_path):
    from datasets import Dataset

    for name, seeds in (("a", range(3)), ("b", range(10, 13))):
        Dataset.from_dict({"image": [phantom(seed) for seed in seeds], "code": ["x", "y", f"{name}"]}).save_to_disk(
            tmp_path / name
        )
    assert shared(tmp_path)[0] == {}
    assert len(shared(tmp_path, id_column_a="code", id_column_b="code")[0]) == 2


def test_another_image_of_a_patient_is_found_where_columns_tell_patients(tmp_path):
    from datasets import Dataset

    for name, seeds, whose in (("a", (0, 1, 2), (7.0, None, 8.0)), ("b", (10, 11, 12), ("8", "", "9"))):
        data = {"image": [phantom(seed) for seed in seeds], "patient": whose}
        Dataset.from_dict(data).save_to_disk(tmp_path / name)
    assert shared(tmp_path)[0] == {}
    found, _ = shared(tmp_path, patient_column_a="patient", patient_column_b="patient")
    assert list(found.values()) == [("2", "0", "patient", 0.0)]
    with pytest.raises(ValueError, match="--patient-column-a and --patient-column-b, or neither"):
        shared(tmp_path, patient_column_a="patient")


def test_an_image_that_cannot_be_read_is_named_and_no_clean_result(sources, capsys):
    for name in CHANGES:
        (sources / "b" / name).unlink()
    arguments = [str(sources / "a"), str(sources / "b"), "--output", str(sources / "leaks.csv"), "--num_workers", "0"]
    cli.leaks(arguments)
    (sources / "b" / "torn.png").write_bytes((sources / "a" / "1.png").read_bytes()[:200])
    with pytest.raises(SystemExit, match=r"^1$"):
        cli.leaks(arguments)
    assert "torn.png" in (sources / "leaks-skipped.jsonl").read_text()
    assert "leaks-skipped.jsonl" in capsys.readouterr().err
    (sources / "b" / "torn.png").unlink()
    phantom(3).resize((100, 100)).save(sources / "b" / "copy.png")
    with pytest.raises(SystemExit, match=r"^1$"):
        cli.leaks(arguments)
    assert "3.png\tcopy.png\tlooks\t" in capsys.readouterr().out


def test_a_split_that_is_not_there_is_refused(sources):
    with pytest.raises(SourceError, match="has no split 'test'"):
        shared(sources, split_b="test")


def test_pictures_of_one_value_are_like_nothing():
    blank = np.full((2, SIDE, SIDE), 128, np.float32)
    assert list(alike(blank, np.stack([small_picture(phantom(0)), blank[0]]))) == []


@pytest.mark.real_data
def test_scr_shares_no_image_with_the_pretraining_set(shared_data, tmp_path):
    ids = {"id_column_a": "image_id", "id_column_b": "image_id"}
    report = find_leaks(
        str(shared_data / "cxr-pretrain"), str(shared_data / "scr"), str(tmp_path / "leaks.csv"), **ids
    )
    assert (report.leaks, report.images, report.unreadable) == ([], (13789, 247), 0)
