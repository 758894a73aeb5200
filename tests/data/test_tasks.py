import io
import json
import math

import datasets
import numpy as np
import PIL.Image
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value
from PIL import ImageFilter

from eden_hf.data.phantoms import phantom_dataset
from eden_hf.data.readers import chestx_det, chestxray14, retina, scr, shenzhen, siim_acr, vindr_cxr, vindr_rib
from eden_hf.data.reading import ImageReadError
from eden_hf.data.sources import SourceError, read_cell
from eden_hf.data.tasks import TASKS, TaskError, load_source_task, load_task

from .readers import layouts
from .readers.layouts import masks_of, pixels, save

WRITERS = {
    "chestxray14": layouts.chestxray14,
    "vindr_cxr": layouts.vindr_cxr,
    "shenzhen": layouts.shenzhen,
    "scr_heart": layouts.scr,
    "scr_clavicle": layouts.scr,
    "scr_anatomy": layouts.scr,
    "chestx_det": layouts.chestx_det,
    "siim_acr": layouts.siim_acr,
    "vindr_rib": layouts.vindr_rib,
    "drive": layouts.drive,
    "chase": layouts.chase,
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Arrow copies and drawn masks go to a folder of the test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf_cache"))


def table(count=4, **columns):
    images = [PIL.Image.fromarray(pixels(seed)) for seed in range(count)]
    return Dataset.from_dict({"image": images, **columns}).cast_column("image", Image())


# Named tasks


@pytest.mark.parametrize("name", TASKS)
def test_a_task_by_name_has_one_shape(tmp_path, name):
    task = load_task(name, WRITERS[name](tmp_path))
    assert task.name == name
    assert {"train", "test"} <= set(task.splits)
    learned = "masks" if task.kind == "segmentation" else "label"
    for split, data in task.splits.items():
        assert data.features["image"] == Image(decode=False)
        assert data.features["source_id"] == Value("string")
        assert str(data.split) == split
        for row in data:
            image = read_cell(row["image"], row["source_id"])
            if task.kind == "segmentation":
                assert masks_of(row).shape == (len(task.labels), *image.size[::-1])
                assert {PIL.Image.open(io.BytesIO(cell["bytes"])).mode for cell in row[learned]} == {"1"}
            elif task.kind == "multi_label":
                assert len(row[learned]) == len(task.labels)
            else:
                assert 0 <= row[learned] < len(task.labels)


@pytest.mark.parametrize("name", TASKS)
def test_an_empty_folder_is_refused_with_the_layout(tmp_path, name):
    with pytest.raises(TaskError, match=r"there (is no file|are no) .*\nExpected in .*, at any depth:\n"):
        load_task(name, tmp_path)
    with pytest.raises(TaskError, match=r"there is no folder .*nowhere"):
        load_task(name, tmp_path / "nowhere")


def test_an_unknown_task_names_the_nearest():
    with pytest.raises(TaskError, match=r"no task 'scr_hart'; did you mean scr_heart\?"):
        load_task("scr_hart", ".")


def test_the_documentation_shows_the_layouts(request):
    text = (request.config.rootpath / "docs" / "tasks.md").read_text()
    for module in (chestxray14, vindr_cxr, shenzhen, scr, chestx_det, siim_acr, vindr_rib):
        assert module.LAYOUT in text
    assert retina.DRIVE_LAYOUT in text
    assert retina.CHASE_LAYOUT in text
    assert all(f"`{name}`" in text for name in TASKS)


def test_scr_and_chase_may_be_parquet(tmp_path):
    phantoms = phantom_dataset(3, size=32)
    for split in ("train", "test"):
        phantoms.to_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
    task = load_task("scr_clavicle", tmp_path)
    assert (task.name, task.labels) == ("scr_clavicle", ("clavicles",))
    assert list(task.splits["test"]["source_id"]) == list(phantoms["image_id"])
    left, right = (np.asarray(phantoms[1][f"{side}_clavicle"]) > 0 for side in ("left", "right"))
    assert np.array_equal(masks_of(task.splits["train"][1])[0], left | right)


# Any source: classes


def test_classes_of_a_column_with_names():
    features = Features({"image": Image(), "label": ClassLabel(names=["normal", "sick", "never"])})
    data = table(label=[1, 0, 0, 1]).cast(features)
    task = load_source_task(data, "single_label", label_column="label")
    assert (task.labels, task.metric) == (("normal", "sick", "never"), "accuracy")
    assert list(task.splits["train"]["label"]) == [1, 0, 0, 1]
    assert task.splits["train"].features["label"] == ClassLabel(names=["normal", "sick", "never"])


def test_classes_of_plain_values_are_sorted_over_all_splits():
    data = DatasetDict(train=table(label=["b", "b", "c", "b"]), test=table(label=["a", "b", "a", "a"]))
    task = load_source_task(data, "single_label", label_column="label", metric="auc")
    assert (task.labels, task.metric) == (("a", "b", "c"), "auc")
    assert list(task.splits["test"]["label"]) == [0, 1, 0, 0]
    numbers = load_source_task(table(label=[10, 9, 9, 10]), "single_label", label_column="label")
    assert load_source_task(table(label=[10, 9, 9, 10]), "single_label").labels == numbers.labels
    assert numbers.labels == ("9", "10")


def test_folders_name_classes_in_every_split(tmp_path):
    for split in ("train", "test"):
        for name in ("normal", "sick"):
            save(tmp_path / split / name / "a.png", pixels(0))
    task = load_source_task(tmp_path, "single_label")
    assert task.labels == ("normal", "sick")
    assert {split: list(data["label"]) for split, data in task.splits.items()} == {"train": [0, 1], "test": [0, 1]}
    assert list(task.splits["test"]["source_id"]) == ["test/normal/a.png", "test/sick/a.png"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": [1, 1, 1, 1]}, "one class only, '1': name a `label_column`"),
        ({"label": [1, None, 0, None]}, "2 images of split 'train' of .* have no label: 1, 3"),
        ({"other": [1, 0, 1, 0]}, "has no column label; it has image, source_id, other"),
    ],
)
def test_classes_that_cannot_be_told_are_refused(columns, message):
    with pytest.raises(TaskError, match=message):
        load_source_task(table(**columns), "single_label", label_column="label")


def test_a_class_outside_the_names_is_refused():
    features = Features({"image": Image(), "label": ClassLabel(names=["normal", "sick"])})
    data = table(label=[1, 0, -1, 1]).cast(features)
    with pytest.raises(TaskError, match=r"split 'train' of .* has the labels -1, not of \('normal', 'sick'\)"):
        load_source_task(data, "single_label", label_column="label")
    other = Features({"image": Image(), "label": ClassLabel(names=["sick", "normal"])})
    data = DatasetDict(train=table(label=[0, 0, 0, 1]).cast(features), test=table(label=[0, 0, 0, 1]).cast(other))
    with pytest.raises(TaskError, match=r"the splits test of .* name other classes"):
        load_source_task(data, "single_label", label_column="label")


# Any source: numbers


def test_several_labels_may_be_unknown():
    data = table(effusion=[1, 0, None, 1], mass=[0.0, float("nan"), 1.0, 1.0])
    task = load_source_task(data, "multi_label", label_columns=["mass", "effusion"])
    assert (task.labels, task.metric) == (("mass", "effusion"), "auc")
    first, second, third, _ = task.splits["train"]["label"]
    assert first == [0, 1]
    assert math.isnan(second[0])
    assert math.isnan(third[1])
    assert task.splits["train"].features["label"] == List(Value("float32"), length=2)


def test_values_of_a_regression():
    task = load_source_task(table(age=[12, 80.5, None, 3]), "regression", label_columns=["age"])
    assert (task.labels, task.metric) == (("age",), "mae")
    assert task.splits["train"][1]["label"] == [80.5]
    assert math.isnan(task.splits["train"][2]["label"][0])


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("multi_label", [0, 1, 2, 1], r"image 2 has the labels \[2\]; multi_label takes 0, 1 and missing"),
        ("multi_label", ["0", "yes", "1", "1"], r"image 1 has the labels \['yes'\], which are no numbers"),
        ("regression", ["old", "3", "4", "5"], r"image 0 has the labels \['old'\]"),
    ],
)
def test_labels_that_are_no_numbers_are_refused(kind, values, message):
    with pytest.raises(TaskError, match=message):
        load_source_task(table(x=values), kind, label_columns=["x"])


# Any source: masks


def test_masks_of_columns_and_unions_of_them():
    phantoms = phantom_dataset(3, size=32)
    columns = {"heart": ["heart"], "lungs": ["left_lung", "right_lung"]}
    task = load_source_task(phantoms, "segmentation", mask_columns=columns)
    assert (task.labels, task.metric) == (("heart", "lungs"), "dice")
    for row, phantom in zip(task.splits["train"], phantoms, strict=True):
        masks = {name: np.asarray(phantom[name]) > 0 for name in ("heart", "left_lung", "right_lung")}
        expected = [masks["heart"], masks["left_lung"] | masks["right_lung"]]
        assert np.array_equal(masks_of(row), np.stack(expected))


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return {"bytes": buffer.getvalue(), "path": None}


MASKS = {
    "grey": encoded,
    "ones": lambda grey: encoded(grey.point(lambda value: value // 255)),
    "RGB": lambda grey: encoded(grey.convert("RGB")),
    "RGBA": lambda grey: encoded(grey.convert("RGBA")),
    "palette": lambda grey: encoded(grey.convert("P")),
    "16 bits": lambda grey: encoded(PIL.Image.fromarray(np.asarray(grey, np.uint16))),
    "red": lambda grey: encoded(PIL.Image.merge("RGB", (grey, *[grey.point(lambda value: 0)] * 2))),
    "JPEG": lambda grey: encoded(grey, "JPEG"),
    "RGB JPEG": lambda grey: encoded(grey.convert("RGB"), "JPEG"),
    "soft": lambda grey: encoded(grey.filter(ImageFilter.GaussianBlur(1))),
}


@pytest.mark.parametrize("kind", MASKS)
def test_masks_of_every_kind_give_the_grey_files(kind):
    """To the last pixel, but for JPEG and soft edges: these may be off along the border."""
    phantoms = phantom_dataset(3, size=128)
    names = ("heart", "left_lung", "right_lung")
    truth = [[np.asarray(row[name]) > 0 for name in names] for row in phantoms]
    columns = {name: [MASKS[kind](row[name].convert("L")) for row in phantoms] for name in names}
    features = Features({name: Image() for name in ("image", *names)})
    data = Dataset.from_dict({"image": phantoms["image"][:], **columns}, features)
    structures = {"heart": ["heart"], "lungs": ["left_lung", "right_lung"]}
    task = load_source_task(data, "segmentation", mask_columns=structures)
    for row, (heart, left, right) in zip(task.splits["train"], truth, strict=True):
        for found, expected in zip(masks_of(row), (heart, left | right), strict=True):
            overlap = (found & expected).sum() / (found | expected).sum()
            assert overlap > 0.97 if kind in ("JPEG", "RGB JPEG", "soft") else np.array_equal(found, expected)


@pytest.mark.parametrize("shades", [(1, 2), (80, 160, 255), ((255, 0, 0), (0, 255, 0))])
def test_a_map_of_several_structures_is_no_mask(shades):
    canvas = np.zeros((40, 40, *np.shape(shades[0])), np.uint8)
    for index, shade in enumerate(shades):
        canvas[5:30, 10 * index : 10 * index + 8] = shade
    data = table(1, x=[PIL.Image.fromarray(canvas)]).cast_column("x", Image())
    with pytest.raises(TaskError, match=r"mask of image 0 holds areas of .* beside .*: it is a map of several struct"):
        load_source_task(data, "segmentation", mask_columns=["x"])


def test_images_and_masks_that_cannot_be_read_stay_for_whoever_reads_them(tmp_path):
    """Training counts and lists them."""
    rows = [{"file_name": f"{i}.png", "heart_file_name": f"heart-{i}.png"} for i in range(3)]
    for seed, row in enumerate(rows):
        save(tmp_path / row["file_name"], pixels(seed))
        save(tmp_path / row["heart_file_name"], (pixels(seed) > 99).astype(np.uint8))
    (tmp_path / "0.png").write_bytes(b"torn")
    (tmp_path / "heart-1.png").unlink()
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = load_source_task(tmp_path, "segmentation", mask_columns=["heart"]).splits["train"]
    for row, torn in zip(data, ("0.png", "heart-1.png", None), strict=True):
        if torn is None:
            assert np.array_equal(masks_of(row)[0], pixels(2) > 99)
            continue
        with pytest.raises(ImageReadError, match=torn):
            masks_of(row)
    save(tmp_path / "heart-1.png", (pixels(1) > 99).astype(np.uint8))
    data = load_source_task(tmp_path, "segmentation", mask_columns=["heart"]).splits["train"]
    assert np.array_equal(masks_of(data[1])[0], pixels(1) > 99)


def test_a_mask_of_an_image_on_its_side_fits_what_is_shown(tmp_path):
    """As photographs of a fundus: EXIF turns them."""
    upright = PIL.Image.fromarray(pixels(0, 16, 8))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    data = {"image": [encoded(upright, "JPEG", exif=exif)], "x": [encoded(PIL.Image.fromarray(pixels(1, 8, 16) > 9))]}
    data = Dataset.from_dict(data, Features({"image": Image(), "x": Image()}))
    (row,) = load_source_task(data, "segmentation", mask_columns=["x"]).splits["train"]
    assert masks_of(row).shape == (1, *read_cell(row["image"], "").size[::-1]) == (1, 16, 8)


def test_masks_of_oblong_pixels_become_square_with_their_image():
    inside = layouts.pixels(0) > 128
    image, mask = encoded(PIL.Image.fromarray(layouts.pixels(1)), dpi=(100, 50)), encoded(PIL.Image.fromarray(inside))
    data = Dataset.from_dict({"image": [image], "x": [mask]}, features=Features({"image": Image(), "x": Image()}))
    (row,) = load_source_task(data, "segmentation", mask_columns=["x"]).splits["train"]
    assert read_cell(row["image"], "image").size == (8, 12)
    np.testing.assert_array_equal(np.asarray(read_cell(row["masks"][0], "mask")) > 0, inside.repeat(2, axis=0))


def test_masks_that_do_not_fit_are_refused():
    data = table(2, mask=[PIL.Image.fromarray(pixels(0) > 99), PIL.Image.fromarray(pixels(0, 9, 6) > 99)])
    with pytest.raises(TaskError, match=r"mask of image 1 has 9 x 6 pixels, its image 8 x 6"):
        load_source_task(data.cast_column("mask", Image()), "segmentation", mask_columns=["mask"])
    data = table(2, mask=[PIL.Image.fromarray(pixels(0) > 99), None]).cast_column("mask", Image())
    with pytest.raises(TaskError, match="image 1 has no mask in one of the columns"):
        load_source_task(data, "segmentation", mask_columns=["mask"])
    with pytest.raises(TaskError, match=r"column 'x' of .* holds no masks"):
        load_source_task(table(2, x=[1.5, 2.5]), "segmentation", mask_columns=["x"])


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_folder_with_metadata_has_its_columns(tmp_path, suffix):
    for split in ("train", "test"):
        rows = [{"file_name": f"{i}.png", "heart_file_name": f"heart-{i}.png", "sick": i} for i in range(2)]
        for seed, row in enumerate(rows):
            save(tmp_path / split / row["file_name"], pixels(seed))
            save(tmp_path / split / row["heart_file_name"], (pixels(seed) > 99).astype(np.uint8) * 255)
        if suffix == "csv":
            layouts.write_table(tmp_path / split / "metadata.csv", rows[0], *(row.values() for row in rows))
        else:
            (tmp_path / split / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = load_source_task(tmp_path, "segmentation", mask_columns=["heart"])
    assert {split: len(data) for split, data in task.splits.items()} == {"train": 2, "test": 2}
    assert np.array_equal(masks_of(task.splits["test"][1])[0], pixels(1) > 99)
    task = load_source_task(tmp_path, "multi_label", label_columns=["sick"])
    assert task.splits["train"]["label"][:] == [[0], [1]]


def test_columns_of_metadata_that_names_no_images_are_refused(tmp_path):
    save(tmp_path / "a.png", pixels(0))
    (tmp_path / "metadata.jsonl").write_text('{"name": "a.png", "sick": 1}')
    message = r"metadata.jsonl has no column file_name, .*; it has name, sick: rename the column .* to file_name"
    with pytest.raises(TaskError, match=message):
        load_source_task(tmp_path, "single_label", label_column="sick")


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ('{"file_names": ["a.png", "b.png"], "age": 1}', "file_names"),
        ('{"file_name": ["a.png", "b.png"], "age": 1}', "file_name"),
        ('{"file_name": "a.png", "age": 1, "heart_file_names": ["b.png"]}', "heart_file_names"),
        ('{"file_name": "a.png", "age": 1, "heart_file_name": ["b.png"]}', "heart_file_name"),
    ],
)
def test_several_files_in_a_cell_are_refused(row, column, tmp_path):
    for name in "ab":
        save(tmp_path / f"{name}.png", pixels(0))
    (tmp_path / "metadata.jsonl").write_text(row)
    with pytest.raises(TaskError, match=f"metadata.jsonl: row 1 names several files in {column}; .*`mask_columns`"):
        load_source_task(tmp_path, "regression", label_columns=["age"])


@pytest.mark.parametrize("column", ["file_name", "heart_file_name"])
@pytest.mark.parametrize(
    "name", ["../a.png", "/etc/a.png", "sub/../../a.png", "..\\a.png", "C:\\a.png", "http://x/a.png"]
)
def test_metadata_names_no_file_outside_its_folder(tmp_path, name, column):
    save(tmp_path / "data" / "b.png", pixels(1))
    row = {"file_name": "b.png", "heart_file_name": "b.png", "age": 3, column: name}
    (tmp_path / "data" / "metadata.jsonl").write_text(json.dumps(row))
    with pytest.raises(TaskError, match=r"metadata\.jsonl: row 1 names '.*', which lies outside"):
        load_source_task(tmp_path / "data", "regression", label_columns=["age"])


def test_numbers_beyond_all_columns_and_images_named_twice_are_refused(tmp_path):
    save(tmp_path / "b.png", pixels(1))
    for ages, message in (([10**30], "values of unlike kinds"), ([1, 2], r"name images more than once: b\.png")):
        rows = [json.dumps({"file_name": "b.png", "age": age}) for age in ages]
        (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
        with pytest.raises(TaskError, match=message):
            load_source_task(tmp_path, "regression", label_columns=["age"])


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("metadata.csv", "file_name,label\na.png,x\nb.png\n", "Row #3: Expected 2 columns, got 1"),
        ("metadata.csv", "file_name,label,label \na.png,x,y\n", "there are two columns label; remove one"),
        ("metadata.jsonl", '{"file_name": "a.png", "label": 1}\n{"file_name": ', "line 2: "),
        ("metadata.jsonl", '{"file_name": "a.png", "label": 1}\n\n[3]', r"line 3: must be a mapping, got '\[3\]'"),
        ("metadata.jsonl", '{"file_name": "a.png", "label": [1]}', r"label of split 'train' of .* holds \[1\]"),
    ],
)
def test_rows_of_metadata_that_do_not_fit_are_named(tmp_path, file, text, message):
    for name in "ab":
        layouts.save(tmp_path / f"{name}.png", layouts.pixels(0))
    (tmp_path / file).write_text(text)
    with pytest.raises(TaskError, match=message):
        load_source_task(tmp_path, "single_label", label_column="label")


def test_blanks_around_values_of_metadata_do_not_count(tmp_path):
    for name in "abc":
        layouts.save(tmp_path / f"{name}.png", layouts.pixels(0))
    (tmp_path / "metadata.csv").write_text("file_name, label\na.png ,sick\nb.png, sick \nc.png,well\n")
    task = load_source_task(tmp_path, "single_label", label_column="label")
    assert task.labels == ("sick", "well")
    assert task.splits["train"]["source_id"] == ["a.png", "b.png", "c.png"]


def test_folders_name_classes_beside_metadata_of_another_kind(tmp_path, caplog):
    for name in ("normal", "sick"):
        save(tmp_path / name / "a.png", pixels(0))
    (tmp_path / "metadata.csv").write_text("scanner;kVp\nA;120\n")
    task = load_source_task(tmp_path, "single_label")
    assert task.labels == ("normal", "sick")
    assert "metadata.csv has no column file_name" in caplog.text
    assert "it has scanner, kVp: it is not read" in caplog.text


def test_images_of_metadata_are_called_by_their_files(tmp_path):
    """So that hashes of lists tell them apart."""
    for name in ("one", "two"):
        save(tmp_path / name / "train" / f"{name}.png", pixels(0))
        (tmp_path / name / "train" / "metadata.jsonl").write_text(json.dumps({"file_name": f"./{name}.png", "age": 3}))
    tasks = [load_source_task(tmp_path / name, "regression", label_columns=["age"]) for name in ("one", "two")]
    assert [task.splits["train"]["source_id"][:] for task in tasks] == [["train/one.png"], ["train/two.png"]]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_metadata_of_any_spreadsheet_program(tmp_path, encoding, separator):
    rows = [["file_name", "Größe", "code"], ["Müller.png", "1.5", "007x"], ["b.png", "", "NA"]]
    for seed, name in enumerate(("Müller.png", "b.png", "unnamed.png")):
        save(tmp_path / name, pixels(seed))
    (tmp_path / "metadata.csv").write_text("\r\n".join(map(separator.join, rows)), encoding=encoding)
    task = load_source_task(tmp_path, "regression", label_columns=["Größe"])
    assert task.splits["train"]["source_id"][:] == ["Müller.png", "b.png"]
    assert np.allclose(task.splits["train"]["label"][:], [[1.5], [np.nan]], equal_nan=True)
    task = load_source_task(tmp_path, "single_label", label_column="code")
    assert task.labels == ("007x", "NA")


def test_metadata_for_all_splits(tmp_path):
    for split in ("Training", "Testing"):
        for index in range(2):
            save(tmp_path / split / f"{index}.png", pixels(index))
    rows = [{"file_name": f"{split}/{i}.png", "age": i} for split in ("Testing", "Training") for i in (1, 0)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = load_source_task(tmp_path, "regression", label_columns=["age"], id_column="source_id")
    expected = {"train": ["Training/1.png", "Training/0.png"], "test": ["Testing/1.png", "Testing/0.png"]}
    assert {split: data["source_id"][:] for split, data in task.splits.items()} == expected
    assert task.splits["train"]["label"][:] == [[1], [0]]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metadata.jsonl", '{"file_name": "a.png"', r"metadata.jsonl cannot be read: line 1: Expecting"),
        ("metadata.jsonl", '["a.png"]', r"metadata.jsonl cannot be read: line 1: must be a mapping"),
        ("metadata.csv", "file_name,x\na.png\n", r"metadata.csv cannot be read: .*Expected 2 columns, got 1"),
        ("metadata.csv", "file_name,x\n,1\n", r"metadata.csv: row 1 has no file_name"),
        ("metadata.csv", "file_name,image,x\na.png,1,1\n", "rename the columns image of the tables in"),
        ("metadata.csv", "file_name,x,x_file_name\na.png,1,a.png\n", "rename the columns x of the tables in"),
        ("metadata.jsonl", '{"file_name": "a.png", "x": 1}\n{"file_name": "b.png", "x": "u"}', "of unlike kinds"),
    ],
)
def test_metadata_that_cannot_be_read_is_named(tmp_path, name, text, message):
    save(tmp_path / "a.png", pixels(0))
    (tmp_path / name).write_text(text)
    with pytest.raises(TaskError, match=message):
        load_source_task(tmp_path, "regression", label_columns=["x"])


# Any source: the rest


@pytest.mark.parametrize("streaming", [False, True])
def test_a_task_of_parquet_and_none_of_a_stream(tmp_path, streaming):
    data = table(label=[0, 1, 0, 1], name=list("abcd"))
    data.to_parquet(tmp_path / "train-00000-of-00001.parquet")
    if streaming:
        with pytest.raises(TaskError, match="is a stream"):
            load_source_task(data.to_iterable_dataset(), "single_label", label_column="label")
        return
    task = load_source_task(str(tmp_path), "single_label", label_column="label", id_column="name")
    assert task.name == str(tmp_path)
    assert list(task.splits["train"]["source_id"]) == list("abcd")
    assert np.array_equal(np.asarray(read_cell(task.splits["train"][2]["image"], "")), pixels(2))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("segmentation", "a segmentation task needs `mask_columns`"),
        ("regression", "a regression task needs `label_columns`"),
        ("classification", "one of the kinds single_label, multi_label, regression, segmentation, got 'classificat"),
    ],
)
def test_a_kind_needs_its_columns(kind, message):
    with pytest.raises(TaskError, match=message):
        load_source_task(table(), kind)


def test_a_source_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(SourceError, match="nothing at"):
        load_source_task(str(tmp_path / "absent"), "single_label")


# Real data


@pytest.mark.real_data
def test_scr_and_chase_of_the_shared_data(shared_data):
    heart, clavicles = (load_task(name, shared_data / "scr") for name in ("scr_heart", "scr_clavicle"))
    assert {split: len(data) for split, data in heart.splits.items()} == {"train": 124, "test": 123}
    assert 0.08 < masks_of(heart.splits["train"][0]).mean() < 0.15
    assert 0.005 < masks_of(clavicles.splits["train"][0]).mean() < 0.03
    chase = load_task("chase", shared_data / "chase")
    assert {split: len(data) for split, data in chase.splits.items()} == {"train": 20, "test": 8}
    assert masks_of(chase.splits["test"][0]).shape == (1, 960, 999)
    task = load_source_task(shared_data / "chase", "segmentation", mask_columns=["vessels"], id_column="image_id")
    assert list(task.splits["test"]["source_id"]) == list(chase.splits["test"]["source_id"])


@pytest.mark.real_data
def test_classes_of_the_shared_data(shared_data):
    task = load_source_task(shared_data / "cxr-pretrain", "single_label", label_column="label", id_column="image_id")
    assert task.labels == ("normal", "covid", "tuberculosis", "viral_pneumonia")
    assert {split: len(data) for split, data in task.splits.items()} == {
        "train": 9640,
        "validation": 2070,
        "test": 2079,
    }
    assert sum(label == 1 for label in task.splits["test"]["label"]) == 503
