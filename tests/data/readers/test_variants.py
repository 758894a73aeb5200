"""The published layouts as they come to lie on disks: read as if nothing had happened to them, or refused by line."""

import csv
import re

import numpy as np
import pytest

from eden_hf.data.tasks import TASKS, TaskError, load_task

from . import layouts
from .layouts import masks_of

WRITERS = {name: getattr(layouts, name, layouts.scr) for name in TASKS}
TABLES = {
    "chestxray14": "Data_Entry_2017.csv",
    "vindr_cxr": "annotations/image_labels_train.csv",
    "siim_acr": "train-rle.csv",
}
TEXTS = (".csv", ".txt", ".json")


def content(name, folder):
    """All that a task says, ids in lower case."""
    splits = load_task(name, folder).splits
    told = {}
    for split, data in splits.items():
        for row in data:
            learned = masks_of(row).tolist() if "masks" in row else row["label"]
            told[split, row["source_id"].lower()] = learned
    return told


def texts(folder):
    return [file for file in sorted(folder.rglob("*")) if file.suffix in TEXTS]


def in_capitals(folder):
    """As file systems that know no lower case give it back."""
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rename(path.with_name(path.name.upper()))


def in_small_letters(folder):
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rename(path.with_name(path.name.lower()))


def moved(folder):
    """Unpacked into folders of folders."""
    inside = folder / "Downloads" / "new folder (1)"
    own = list(folder.iterdir())
    inside.mkdir(parents=True)
    for path in own:
        path.rename(inside / path.name)


def among_other_files(folder):
    """Of macOS and Windows."""
    for name in (".DS_Store", "Thumbs.db", "__MACOSX/images/._a.png", "readme.pdf"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"\0\1")


def with_mark(folder):
    for file in texts(folder):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())


def with_windows_newlines(folder):
    for file in texts(folder):
        file.write_bytes(re.sub(rb"\r?\n", rb"\r\n", file.read_bytes()) + b"\r\n\r\n")


def in_utf_16(folder):
    for file in texts(folder):
        file.write_bytes(file.read_text().encode("utf-16"))


def rewrite_tables(folder, change, **options):
    for file in folder.rglob("*.csv"):
        with file.open(newline="") as table:
            rows = [change(number, row) for number, row in enumerate(csv.reader(table))]
        with file.open("w", newline="") as table:
            csv.writer(table, **options).writerows(rows)


def with_semicolons(folder):
    rewrite_tables(folder, lambda number, row: row, delimiter=";", lineterminator="\r\n")


def with_tabs(folder):
    rewrite_tables(folder, lambda number, row: row, delimiter="\t")


def with_extra_columns(folder):
    rewrite_tables(folder, lambda number, row: ["reader", *row, "note"] if number == 0 else [7, *row, "a, b"])


def in_another_order(folder):
    rewrite_tables(folder, lambda number, row: row[::-1])


def with_another_header(folder):
    rewrite_tables(folder, lambda number, row: row if number else [cell.upper().replace(" ", "_") for cell in row])


def with_blank_lines(folder):
    rewrite_tables(folder, lambda number, row: row, lineterminator="\n,,\n\n")


ON_DISK = (in_capitals, in_small_letters, moved, among_other_files)
OF_TEXTS = (with_mark, with_windows_newlines, in_utf_16)
OF_TABLES = (with_semicolons, with_tabs, with_extra_columns, in_another_order, with_another_header, with_blank_lines)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """What each layout says as published."""
    return {}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        *((name, change) for name in ("scr_heart", "shenzhen", "drive", "chase") for change in ON_DISK),
        *((name, change) for name in ("chestx_det", "vindr_rib") for change in ON_DISK + OF_TEXTS),
        *((name, change) for name in TABLES for change in ON_DISK + OF_TEXTS + OF_TABLES),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_variants_read_as_the_published_layout(tmp_path, plain, name, change):
    if name not in plain:
        plain[name] = content(name, WRITERS[name](tmp_path / "published"))
    folder = WRITERS[name](tmp_path / "variant")
    change(folder)
    assert content(name, folder) == plain[name]


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[2].clear() or rows[2].append("x"), r"line 3 has too few values"),
        (lambda rows: rows[2].insert(0, "left over"), r"line 3 has too many values|line 3: image left over"),
        (lambda rows: rows[2].extend(["", "", ""]), None),
        (lambda rows: rows[0].extend([rows[0][0], rows[0][0]]), r"line 1: there are two columns"),
        (lambda rows: rows[0].__setitem__(0, "what"), r"has no column .*; it has what"),
        (lambda rows: rows[3].__setitem__(0, 'a "quoted" name\0'), "holds null characters"),
        (lambda rows: rows[3].__setitem__(0, "x" * 200_000), r"line 4: field larger than field limit"),
    ],
)
def test_lines_that_do_not_fit_are_named(tmp_path, name, change, message):
    folder = WRITERS[name](tmp_path)
    file = folder / TABLES[name]
    with file.open(newline="") as table:
        rows = list(csv.reader(table))
    change(rows)
    with file.open("w", newline="") as table:
        csv.writer(table).writerows(rows)
    if message is None:
        assert content(name, folder)
        return
    with pytest.raises(TaskError, match=message) as caught:
        load_task(name, folder)
    assert file.name in str(caught.value)


def test_findings_in_other_spellings(tmp_path):
    folder = layouts.chestxray14(tmp_path / "a")
    table = folder / TABLES["chestxray14"]
    text = table.read_text()
    for old, new in (("Pleural_Thickening", "pleural thickening"), ("No Finding", "NO FINDING"), ("|", " | ")):
        assert old in text
        text = text.replace(old, new)
    table.write_text(text)
    assert content("chestxray14", folder) == content("chestxray14", layouts.chestxray14(tmp_path / "b"))


def test_lists_may_name_images_by_folders_of_either_slash_and_other_suffixes(tmp_path):
    folder = layouts.chestxray14(tmp_path / "a")
    names = (folder / "train_val_list.txt").read_text().split()
    others = [f"images/{names[0]}", f"images\\{names[1]}", names[2], f"{names[3][:-4]}.PNG"]
    (folder / "train_val_list.txt").write_text("\n".join(others))
    labels = {key[1].replace("\\", "/").split("/")[-1]: value for key, value in content("chestxray14", folder).items()}
    expected = content("chestxray14", layouts.chestxray14(tmp_path / "b"))
    assert labels == {key[1]: value for key, value in expected.items()}
    rib = layouts.vindr_rib(tmp_path / "rib")
    file = next(rib.rglob("*train_mask.json"))
    file.write_text(file.read_text().replace("data/train/img/", r"data\\train\\img\\"))
    assert content("vindr_rib", rib) == content("vindr_rib", layouts.vindr_rib(tmp_path / "rib2"))


def test_one_image_in_two_spellings_is_two_files(tmp_path):
    folder = layouts.chestxray14(tmp_path)
    layouts.save(folder / "more" / "00000001_000.PNG", np.zeros((6, 8), np.uint8))
    with pytest.raises(TaskError, match=r"several files for image 00000001_000\.png"):
        load_task("chestxray14", folder)


@pytest.mark.parametrize("outline", [None, 3, "abc", [[1, 2], [3]], [{"x": 1}], [[1, "a"], [2, 3]], [[10**400, 1]]])
def test_outlines_of_any_other_shape_are_refused_with_image_and_list(tmp_path, outline):
    folder = layouts.chestx_det(tmp_path)
    entry = {"file_name": "36204.png", "syms": ["mass"], "boxes": [], "polygons": [outline]}
    layouts.write_json(folder / "ChestX_Det_train.json", [entry])
    with pytest.raises(TaskError, match=r"image 36204\.png of ChestX_Det_train\.json: an outline must be a list"):
        load_task("chestx_det", folder)


@pytest.mark.parametrize(
    "entry",
    [
        3,
        {},
        {"file_name": ["a"], "syms": [], "polygons": []},
        {"file_name": "a", "syms": None, "polygons": []},
        {"file_name": "a", "syms": [[1]], "polygons": [[]]},
        {"file_name": "a", "syms": {"Mass": 1}, "polygons": [[]]},
    ],
)
def test_entries_of_any_other_shape_are_refused_by_number(tmp_path, entry):
    folder = layouts.chestx_det(tmp_path)
    layouts.write_json(folder / "ChestX_Det_train.json", [{"file_name": "b", "syms": [], "polygons": []}, entry])
    with pytest.raises(TaskError, match=r"ChestX_Det_train\.json, entry 2: "):
        load_task("chestx_det", folder)


@pytest.mark.parametrize("text", ["9" * 30 + " 1", f"{2**62} {2**62} 1 1", "1 " + str(2**63 - 1)])
def test_run_lengths_beyond_all_numbers_are_refused(tmp_path, text):
    folder = layouts.siim_acr(tmp_path)
    table = folder / TABLES["siim_acr"]
    table.write_text(table.read_text().replace(" 11 4", text))
    with pytest.raises(TaskError, match=r"of train-rle\.csv: run lengths"):
        load_task("siim_acr", folder)


@pytest.mark.parametrize(
    ("name", "file", "old", "new"),
    [
        ("vindr_cxr", TABLES["vindr_cxr"], "aa,R2", "AA.dicom,R2"),
        ("siim_acr", TABLES["siim_acr"], "25808, 0 1", "25808.DCM, 0 1"),
        ("chestxray14", "train_val_list.txt", "00000001_001.png", "00000001_001.png\n00000001_001.PNG"),
        ("chestx_det", "ChestX_Det_train.json", "36205.png", "36204.PNG"),
        ("vindr_rib", "Data/train/Vindr_RibCXR_train_mask.json", "train_001.png", "TRAIN_000.png"),
    ],
)
def test_one_image_by_two_names_is_refused(tmp_path, name, file, old, new):
    folder = WRITERS[name](tmp_path)
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new))
    with pytest.raises(TaskError, match="has one image by two names"):
        load_task(name, folder)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("chase", "Image_01L.jpg", "Image_1L.jpg", "Image_1L is none of the images Image_01L to Image_14R"),
        ("chase", "Image_14R.jpg", "Image_15R.jpg", "Image_15R is none of the images"),
        (
            "shenzhen",
            "ChinaSet_AllFiles/CXR_png/CHNCXR_0001_1.png",
            "CHNCXR_0001_1.png.png",
            r"no label.*_0001_1\.png",
        ),
    ],
)
def test_images_by_other_names_are_refused_and_not_left_out(tmp_path, name, old, new, message):
    folder = WRITERS[name](tmp_path)
    (folder / old).rename(folder / new)
    with pytest.raises(TaskError, match=message):
        load_task(name, folder)
