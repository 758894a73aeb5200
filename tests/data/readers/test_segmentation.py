"""Readers of SCR, ChestX-Det, SIIM-ACR, VinDr-RibCXR, DRIVE and CHASE_DB1 on small files in their layouts."""

import json

import numpy as np
import pytest

from eden_hf.data.readers import chestx_det, retina, scr, siim_acr, vindr_rib
from eden_hf.data.readers.task import TaskError
from eden_hf.data.reading import ImageReadError
from eden_hf.data.sources import read_cell

from . import layouts
from .layouts import masks_of, pixels, row_of, save, save_dicom, save_mask


def ids(task):
    return {split: list(data["source_id"]) for split, data in task.splits.items()}


def rewrite(path, change):
    content = json.loads(path.read_text())
    path.write_text(json.dumps(change(content) or content))


# SCR


def heart(name):
    inside = np.zeros((8, 8), bool)
    inside[int(name[-3:]) % 3 : 5, 1:5] = True
    return inside.repeat(2, axis=0).repeat(2, axis=1)


def clavicles(name):
    inside = np.zeros((8, 8), bool)
    inside[int(name[-3:]) % 3 : 5, 4:8] = inside[int(name[-3:]) % 3 : 5, 0:3] = True
    return inside.repeat(2, axis=0).repeat(2, axis=1)


@pytest.mark.parametrize(
    ("read", "label", "truth"), [(scr.read_heart, "heart", heart), (scr.read_clavicles, "clavicles", clavicles)]
)
def test_scr_trains_on_fold_1_and_tests_on_fold_2(tmp_path, read, label, truth):
    task = read(layouts.scr(tmp_path))
    assert (task.kind, task.metric, task.labels) == ("segmentation", "dice", (label,))
    assert ids(task) == {"train": ["JPCLN001", "JPCNN093"], "test": ["JPCLN002"]}
    for data in task.splits.values():
        for row in data:
            image = read_cell(row["image"], row["source_id"])
            assert masks_of(row).shape == (1, *image.size[::-1])
            assert np.array_equal(masks_of(row)[0], truth(row["source_id"]))


def test_scr_has_five_structures_each_its_own(tmp_path):
    task = scr.read_anatomy(layouts.scr(tmp_path))
    assert task.labels == ("heart", "left_lung", "right_lung", "left_clavicle", "right_clavicle")
    assert ids(task) == {"train": ["JPCLN001", "JPCNN093"], "test": ["JPCLN002"]}
    masks = masks_of(task.splits["test"][0])
    for label, mask in zip(task.labels, masks, strict=True):
        columns = [2 * column for column in layouts.SCR_MASKS[label.replace("_", " ")]]
        assert np.flatnonzero(mask.any(axis=0)).tolist() == list(range(*columns))


def test_raw_radiographs_of_scr_have_air_dark(tmp_path):
    task = scr.read_heart(layouts.scr(tmp_path))
    density = np.random.default_rng(1).integers(0, 4096, (16, 16), dtype=np.uint16)
    image = np.asarray(read_cell(task.splits["train"][0]["image"], ""))
    assert image[np.unravel_index(density.argmax(), density.shape)] == 0  # dense film: air
    assert image[np.unravel_index(density.argmin(), density.shape)] == 255
    brightness = (int(density.max()) - density) / (int(density.max()) - int(density.min()))
    assert np.abs(image - 255 * brightness).max() <= 0.5


def test_scr_takes_png_where_there_is_nothing_raw(tmp_path):
    def png(path, density):
        save(path.with_suffix(".png"), (density >> 4).astype(np.uint8))

    task = scr.read_heart(layouts.scr(tmp_path, side=8, image=png))
    assert np.array_equal(masks_of(task.splits["test"][0])[0], np.pad(np.ones((4, 6), bool), ((4, 0), (2, 0))))


def test_scr_refuses_radiographs_that_are_no_multiple_of_the_masks(tmp_path):
    def png(path, density):
        save(path.with_suffix(".png"), np.zeros((10, 10), np.uint8) + 7)

    with pytest.raises(TaskError, match=r"image JPCLN001: mask .*JPCLN001.gif has 8 x 8 pixels, its image 10 x 10"):
        scr.read_heart(layouts.scr(tmp_path, image=png))


def test_scr_sees_swapped_folds(tmp_path):
    scratch = layouts.scr(tmp_path) / "scratch"
    for old, new in (("fold1", "x"), ("fold2", "fold1"), ("x", "fold2")):
        (scratch / old).rename(scratch / new)
    with pytest.raises(TaskError, match=r"fold1 has even numbers \(JPCLN002\), fold2 odd ones: are the folds swapped"):
        scr.read_heart(tmp_path)


def test_scr_refuses_a_radiograph_in_both_folds(tmp_path):
    masks = layouts.scr(tmp_path) / "scratch" / "fold2" / "masks"
    save_mask(masks / "heart" / "JPCLN001.gif", np.ones((8, 8), bool))
    with pytest.raises(TaskError, match="1 radiographs are in both folds: JPCLN001"):
        scr.read_heart(tmp_path)


def test_scr_names_what_is_missing(tmp_path, caplog):
    folder = layouts.scr(tmp_path)
    (folder / "All247images" / "JPCLN001.IMG").unlink()
    with pytest.raises(TaskError, match=r"1 of the 2 images of fold1/masks have no file .*: JPCLN001"):
        scr.read_heart(folder)
    assert ids(scr.read_heart(folder, 0.5))["train"] == ["JPCNN093"]
    (folder / "scratch" / "fold1" / "masks" / "left clavicle" / "JPCNN093.gif").unlink()
    with pytest.raises(TaskError, match=r"have no file fold1/masks/left clavicle/\*: JPCNN093"):
        scr.read_clavicles(folder, 0.5)
    (folder / "scratch" / "fold2").rename(folder / "fold 2")
    with pytest.raises(TaskError, match="no masks in fold2/masks/heart"):
        scr.read_heart(folder, 0.5)


def test_scr_leaves_a_radiograph_out_that_lacks_one_of_its_masks(tmp_path):
    folder = layouts.scr(tmp_path)
    (folder / "scratch" / "fold1" / "masks" / "right clavicle" / "JPCNN093.gif").unlink()
    assert ids(scr.read_clavicles(folder, 0.5)) == {"train": ["JPCLN001"], "test": ["JPCLN002"]}


# ChestX-Det


@pytest.mark.parametrize("suffix", ["", "_data", "_data/split"])
def test_chestx_det_draws_the_polygons_of_each_disease(tmp_path, suffix):
    folder = layouts.chestx_det(tmp_path, "" if "/" in suffix else suffix)
    if "/" in suffix:
        for split in ("train", "test"):
            (folder / f"{split}_data").mkdir()
            (folder / split).rename(folder / f"{split}_data" / split)
    task = chestx_det.read(folder)
    assert len(task.labels) == 13
    assert ids(task) == {"train": ["36204.png", "36205.png"], "test": ["36199.png"]}
    square, line = np.zeros((2, 6, 8), bool)
    square[1:4, 1:5] = True
    line[0:6, 6:8] = True
    expected = {
        "36204.png": {"Mass": square | line, "Nodule": line},
        "36205.png": {},
        "36199.png": {"Diffuse Nodule": square},
    }
    for data in task.splits.values():
        for row in data:
            for label, mask in zip(task.labels, masks_of(row), strict=True):
                assert np.array_equal(mask, expected[row["source_id"]].get(label, np.zeros((6, 8), bool)))


def test_chestx_det_sees_swapped_folders(tmp_path):
    folder = layouts.chestx_det(tmp_path)
    for old, new in (("train", "x"), ("test", "train"), ("x", "test")):
        (folder / old).rename(folder / new)
    with pytest.raises(TaskError, match="are the two swapped"):
        chestx_det.read(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entries: {"images": entries}, "holds a dict where a list was expected"),
        (lambda entries: entries[0].pop("polygons") and None, "an entry lacks polygons"),
        (lambda entries: entries[0]["syms"].pop() and None, "36204.png has 2 syms and 3 polygons"),
        (lambda entries: entries[0]["syms"].__setitem__(0, "Masses"), "unknown syms Masses; known are Atelectasis"),
        (
            lambda entries: entries[0]["polygons"].__setitem__(0, [[1, 1], [90, 1], [9, 9]]),
            "image 36204.png of .*resized",
        ),
        (lambda entries: entries[0].__setitem__("file_name", "36205.png"), "come more than once"),
        (lambda entries: entries[0].__setitem__("file_name", "1.png"), r"1 of the 2 images .* have no file .*: 1.png"),
    ],
)
def test_chestx_det_refuses_other_annotations(tmp_path, change, message):
    folder = layouts.chestx_det(tmp_path)
    rewrite(folder / "ChestX_Det_train.json", change)
    with pytest.raises(TaskError, match=message):
        chestx_det.read(folder)


def test_a_torn_json_is_named(tmp_path):
    folder = layouts.chestx_det(tmp_path)
    (folder / "ChestX_Det_test.json").write_text("[{")
    with pytest.raises(TaskError, match=r"ChestX_Det_test.json is no JSON"):
        chestx_det.read(folder)


def test_torn_files_stay_for_whoever_reads_them(tmp_path):
    """Training counts and lists them."""
    folder = layouts.chestx_det(tmp_path / "det")
    (folder / "train" / "36205.png").write_bytes(b"torn")
    good, torn = chestx_det.read(folder).splits["train"]
    assert masks_of(good).any()
    with pytest.raises(ImageReadError, match=r"36205.png: damaged"):
        masks_of(torn)
    folder = layouts.drive(tmp_path / "drive")
    (folder / "training" / "1st_manual" / "22_manual1.gif").write_bytes(b"torn")
    good, torn = retina.read_drive(folder).splits["train"]
    assert masks_of(good).any()
    with pytest.raises(ImageReadError, match=r"22_manual1.gif: damaged"):
        masks_of(torn)
    assert torn["field_of_view"] is None


def test_masks_are_drawn_anew_when_a_list_or_an_image_changes(tmp_path):
    folder = layouts.chestx_det(tmp_path)
    before = masks_of(chestx_det.read(folder).splits["test"][0])
    assert np.array_equal(masks_of(chestx_det.read(folder).splits["test"][0]), before)
    rewrite(folder / "ChestX_Det_test.json", lambda entries: entries[0]["syms"].__setitem__(0, "Mass"))
    assert not np.array_equal(masks_of(chestx_det.read(folder).splits["test"][0]), before)
    save(folder / "test" / "36199.png", pixels(0, 20, 12))
    assert masks_of(chestx_det.read(folder).splits["test"][0]).shape == (13, 12, 20)


# SIIM-ACR


@pytest.mark.parametrize("stage", [1, 2])
def test_siim_acr_unites_the_runs_of_an_image(tmp_path, stage):
    folder = layouts.siim_acr(tmp_path)
    if stage == 2:
        table = folder / "stage_2_train.csv"
        (folder / "train-rle.csv").rename(table)
        table.write_text(table.read_text().replace(" EncodedPixels", "EncodedPixels"))
    task = siim_acr.read(folder)
    assert (task.labels, task.metric) == (("pneumothorax",), "dice")
    assert {split: len(data) for split, data in task.splits.items()} == {"train": 8, "test": 2}
    for data in task.splits.values():
        assert sum(masks_of(row).any() for row in data) == len(data) / 2
        for row in data:
            index = int(row["source_id"].split(".")[-3])
            expected = np.zeros((1, 8, 8), bool)
            if index % 2 == 0:
                expected[0, 3:7, 1] = True
            expected[0, 0, 0] = index == 0
            assert np.array_equal(masks_of(row), expected)
            assert np.asarray(read_cell(row["image"], "")).shape == (8, 8)


def test_siim_acr_of_another_shape_goes_down_the_columns(tmp_path):
    task = siim_acr.read(layouts.siim_acr(tmp_path, width=5, height=9))
    drawn = [masks_of(row)[0] for row in task.splits["test"] if masks_of(row).any()]
    assert np.argwhere(drawn[0][:, 1]).ravel().tolist() == [3, 4, 5, 6]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (" 11 4", " 11 4 3", "run lengths must be pairs"),
        (" 11 4", " 60 9", "reach pixel 69 of an image of 8 x 8"),
        (" 0 1", " -1", r"image 1\.2\.276.*\.0\..* has a mask and is said to have none"),
        (" 0 1", "", "run lengths must be pairs"),
        (" EncodedPixels", "Pixels", "no column EncodedPixels; it has ImageId, Pixels"),
    ],
)
def test_siim_acr_refuses_other_run_lengths(tmp_path, old, new, message):
    folder = layouts.siim_acr(tmp_path)
    table = folder / "train-rle.csv"
    assert old in table.read_text()
    table.write_text(table.read_text().replace(old, new))
    with pytest.raises(TaskError, match=message):
        siim_acr.read(folder)


def test_siim_acr_reports_the_test_images(tmp_path, caplog):
    folder = layouts.siim_acr(tmp_path)
    save_dicom(folder / "dicom-images-test" / "1" / "2" / "1.2.9.dcm", pixels(0))
    siim_acr.read(folder)
    assert "1 images *.dcm or *.dicom are not in train-rle.csv: 1.2.9" in caplog.text


# VinDr-RibCXR


def test_vindr_rib_draws_twenty_ribs(tmp_path):
    task = vindr_rib.read(layouts.vindr_rib(tmp_path))
    assert task.labels[:2] + task.labels[-1:] == ("R1", "R2", "L10")
    assert ids(task) == {
        "train": ["VinDr_RibCXR_train_000.png", "VinDr_RibCXR_train_001.png"],
        "test": ["VinDr_RibCXR_val_196.png"],
    }
    expected = np.zeros((20, 24, 10), bool)
    for number in range(20):
        expected[number, number : number + 2, 0:6] = True  # from x 0.4 to 5.9, y n + 0.7 to n + 1.2
    assert np.array_equal(masks_of(task.splits["train"][1]), expected)
    expected[19] = False  # "None"
    assert np.array_equal(masks_of(task.splits["train"][0]), expected)
    assert np.array_equal(masks_of(task.splits["test"][0]), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("R3") and None, "has no R3 by image; it has img, R1, R2, R4"),
        (lambda content: content.pop("img") and None, "has no img by image"),
        (lambda content: content["R1"].pop("0") and None, 'R1 of image 0 is missing; .* "None"'),
        (lambda content: content["R1"].__setitem__("0", [[1, 2]]), "R1 of image 0 is no list of points"),
        (
            lambda content: content["img"].__setitem__("0", "data/x.png"),
            r"1 of the 2 images .* have no file .*: x.png",
        ),
        (lambda content: content["img"].__setitem__("0", content["img"]["1"]), "names 2 images by 1 file names only"),
    ],
)
def test_vindr_rib_refuses_other_annotations(tmp_path, change, message):
    folder = layouts.vindr_rib(tmp_path)
    rewrite(folder / "Data" / "train" / "Vindr_RibCXR_train_mask.json", change)
    with pytest.raises(TaskError, match=message):
        vindr_rib.read(folder)


# DRIVE


def test_drive_has_vessels_and_field_of_view(tmp_path):
    task = retina.read_drive(layouts.drive(tmp_path))
    assert (task.labels, task.metric) == (("vessels",), "dice")
    assert ids(task) == {"train": ["21", "22"], "test": ["01"]}
    for data in task.splits.values():
        for row in data:
            seed = int(row["source_id"])
            assert np.array_equal(np.asarray(read_cell(row["image"], "")), pixels(seed, colour=True))
            assert np.array_equal(masks_of(row)[0], pixels(seed) > 200)
            assert np.array_equal(np.asarray(read_cell(row["field_of_view"], "")) > 0, pixels(seed) > 20)


def test_drive_without_field_of_view_is_read_too(tmp_path):
    folder = layouts.drive(tmp_path)
    (folder / "test" / "mask" / "01_test_mask.gif").unlink()
    assert retina.read_drive(folder).splits["test"]["field_of_view"][:] == [None]


@pytest.mark.parametrize(("train", "test"), [("train", "testing"), ("Training", "TEST")])
def test_drive_takes_any_word_for_its_splits(tmp_path, train, test):
    folder = layouts.drive(tmp_path)
    (folder / "training").rename(folder / train)
    (folder / "test").rename(folder / test)
    assert ids(retina.read_drive(folder)) == {"train": ["21", "22"], "test": ["01"]}


def test_drive_tells_that_the_present_download_lacks_the_test_vessels(tmp_path):
    folder = layouts.drive(tmp_path)
    (folder / "test" / "1st_manual" / "01_manual1.gif").unlink()
    with pytest.raises(TaskError, match=r"no vessels in test/1st_manual \(the present download leaves them out"):
        retina.read_drive(folder)


def test_drive_sees_swapped_folders(tmp_path):
    folder = layouts.drive(tmp_path)
    for old, new in (("training", "x"), ("test", "training"), ("x", "test")):
        (folder / old).rename(folder / new)
    with pytest.raises(TaskError, match=r"training/images holds 01_test.tif: are the training and test folders swapp"):
        retina.read_drive(folder)


def test_drive_names_missing_and_mismatched_masks(tmp_path):
    folder = layouts.drive(tmp_path)
    (folder / "training" / "1st_manual" / "22_manual1.gif").unlink()
    with pytest.raises(TaskError, match=r"1 of the 2 images of training/images have no file .*1st_manual/\*: 22"):
        retina.read_drive(folder)
    save_mask(folder / "training" / "1st_manual" / "22_manual1.gif", np.ones((6, 9), bool))
    with pytest.raises(TaskError, match=r"image 22: mask .* has 9 x 6 pixels, its image 8 x 6"):
        retina.read_drive(folder)
    with pytest.raises(TaskError, match="no images in training/images"):
        retina.read_drive(folder / "test")


# CHASE_DB1


def test_chase_parts_the_children(tmp_path):
    task = retina.read_chase(layouts.chase(tmp_path))
    assert ids(task) == {
        "train": ["Image_01L", "Image_01R", "Image_10L", "Image_10R"],
        "test": ["Image_11L", "Image_11R", "Image_14L", "Image_14R"],
    }
    row = row_of(task.splits["test"], "Image_11R")
    assert np.array_equal(masks_of(row)[0], pixels(23) > 200)
    assert np.array_equal(np.asarray(read_cell(row["second_observer"], "")) > 0, pixels(23) > 180)
    assert read_cell(row["image"], "").size == (8, 6)


def test_chase_without_second_observer_or_vessels(tmp_path):
    folder = layouts.chase(tmp_path)
    for path in folder.glob("*_2ndHO.png"):
        path.unlink()
    assert set(retina.read_chase(folder).splits["test"]["second_observer"]) == {None}
    (folder / "Image_10L_1stHO.png").unlink()
    with pytest.raises(TaskError, match=r"1 of the 8 images of the folder have no file .*_1stHO.*: Image_10L"):
        retina.read_chase(folder)
    (folder / "empty").mkdir()
    with pytest.raises(TaskError, match=r"there are no images Image_01L.jpg"):
        retina.read_chase(folder / "empty")
