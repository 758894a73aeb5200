import gc
import os
import sys

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, IterableDataset, Value

from eden_hf.data.folders import list_files
from eden_hf.data.reading import ImageReadError
from eden_hf.data.sources import SourceError, find_source, load_source, read_cell
from eden_hf.data.splits import SPLIT_NAMES


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Arrow copies of Parquet sources go to the test's folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")


def picture(seed=0, size=(12, 10), mode="L"):
    rng = np.random.default_rng(seed)
    shape = size[::-1] if mode == "L" else (*size[::-1], 3)
    return PIL.Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8), mode)


def write_pictures(folder, *names):
    for seed, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(seed).save(path)
    return folder


def table(count, first=0, **columns):
    """A data set of `count` pictures with labels."""
    features = {"image": Image(), "label": ClassLabel(names=["normal", "tuberculosis"]), "mask": Image()}
    return Dataset.from_dict(
        {
            "image": [picture(first + i) for i in range(count)],
            "label": [i % 2 for i in range(count)],
            "mask": [picture(first + i).point(lambda x: 255 * (x > 99)) for i in range(count)],
            **columns,
        },
        features=Features({**features, **{name: Value("string") for name in columns}}),
    )


def ids(data):
    return [row["source_id"] for row in data]


# Folders of images


def test_a_folder_is_searched_to_any_depth_in_sorted_order(tmp_path):
    write_pictures(tmp_path, "b.png", "a/z.jpg", "a/deep/er/x.TIF", "c.webp", "d.bmp", "e.gif", "f.jpeg")
    data = load_source(tmp_path)
    assert ids(data) == ["a/deep/er/x.TIF", "a/z.jpg", "b.png", "c.webp", "d.bmp", "e.gif", "f.jpeg"]
    assert data.features == {"image": Image(decode=False), "source_id": Value("string")}
    assert data[2]["image"] == {"bytes": None, "path": str(tmp_path / "b.png")}
    assert np.array_equal(read_cell(data[2]["image"], "b"), picture(0))


def test_a_folder_is_listed_without_reading_its_files(tmp_path):
    (tmp_path / "torn.png").write_bytes(b"no picture")
    assert ids(load_source(tmp_path)) == ["torn.png"]


def test_dicom_is_known_by_its_mark_where_the_name_does_not_tell(tmp_path):
    write_pictures(tmp_path, "a.png")
    for name in ("IM0001", "1.2.840.10008.1", "x.dcm"):
        (tmp_path / name).write_bytes(bytes(128) + b"DICM")
    (tmp_path / "LICENSE").write_bytes(b"words")
    assert ids(load_source(tmp_path)) == ["1.2.840.10008.1", "IM0001", "a.png", "x.dcm"]


def test_files_left_out_are_counted_and_reported(tmp_path, caplog):
    write_pictures(tmp_path, "a.png", ".hidden.png", ".cache/b.png")
    (tmp_path / "notes.txt").write_text("x")
    assert ids(load_source(tmp_path)) == ["a.png"]
    assert "1 files that are no images ['notes.txt'] and 2 hidden ones" in caplog.text


def test_links_within_a_folder_are_followed_and_loops_end(tmp_path):
    write_pictures(tmp_path / "images" / "sub", "a.png")
    (tmp_path / "images/sub/back").symlink_to(tmp_path / "images")
    (tmp_path / "images/b.png").symlink_to("sub/a.png")
    (tmp_path / "images/broken.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "linked").symlink_to(tmp_path / "images")
    for folder in ("images", "linked"):  # what is named itself is asked for
        assert ids(load_source(tmp_path / folder)) == ["b.png", "broken.png", "sub/a.png"]


@pytest.mark.parametrize("link", ["images/folder", "images/deep/c.png"])
def test_links_out_of_a_folder_are_followed_only_if_asked(tmp_path, monkeypatch, link):
    write_pictures(tmp_path / "elsewhere", "a.png")
    write_pictures(tmp_path / "images" / "deep", "b.png")
    target = tmp_path / "elsewhere"
    (tmp_path / link).symlink_to(target / "a.png" if link.endswith("png") else target)
    told = rf"lead out of it: .*{link}; set EDEN_FOLLOW_LINKS=1 .* or EDEN_FOLLOW_LINKS=0"
    with pytest.raises(SourceError, match=told):
        load_source(tmp_path / "images")
    monkeypatch.setenv("EDEN_FOLLOW_LINKS", "0")
    assert ids(load_source(tmp_path / "images")) == ["deep/b.png"]
    monkeypatch.setenv("EDEN_FOLLOW_LINKS", "1")
    linked = "deep/c.png" if "deep" in link else "folder/a.png"
    assert ids(load_source(tmp_path / "images")) == ["deep/b.png", linked]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["struct", "string"])
@pytest.mark.parametrize(
    "file", ["{0}/secret.png", "../secret.png", "http://192.0.2.1/a.png", "file://{0}/secret.png"]
)
def test_parquet_names_no_file_outside_its_folder(tmp_path, monkeypatch, file, kind, streaming):
    """Whoever made it would have images of this machine read, or others asked for."""
    write_pictures(tmp_path, "secret.png")
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path / "data")
    file = file.format(tmp_path)
    cells = [{"bytes": None, "path": file}] if kind == "struct" else [file]
    pq.write_table(pa.table({"image": cells}), "train.parquet")
    with pytest.raises(SourceError, match=r"column 'image' of split 'train' .* names the file .*, which lies outside"):
        list(load_source(tmp_path / "data", streaming=streaming))


def test_parquet_and_saved_data_may_name_files_beside_them(tmp_path):
    write_pictures(tmp_path, "data/a.png")
    cells = [{"bytes": None, "path": str(tmp_path / "data" / "a.png")}]
    pq.write_table(pa.table({"image": cells}), tmp_path / "data" / "train.parquet")
    (row,) = load_source(tmp_path / "data")
    assert read_cell(row["image"], "a").size == picture(0).size
    features = Features({"image": Image(decode=False)})
    outside = Dataset.from_dict({"image": cells}, features=features)
    assert len(load_source(outside)) == 1  # made by whoever calls
    outside.save_to_disk(tmp_path / "saved")
    (row,) = load_source(tmp_path / "saved")
    assert row["image"]["bytes"]


def test_damaged_data_sets_are_named(tmp_path):
    write_pictures(tmp_path, "a.png")
    table(3).to_parquet(tmp_path / "torn" / "train.parquet")
    data = (tmp_path / "torn" / "train.parquet").read_bytes()
    (tmp_path / "torn" / "train.parquet").write_bytes(data[:8] + bytes(len(data) - 16) + data[-8:])
    table(3).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / "state.json").write_text("{")
    for name in ("torn", "saved"):
        with pytest.raises(SourceError, match=rf"{name} cannot be read \(|cannot open .*{name}"):
            load_source(tmp_path / name)


def test_sub_folders_named_as_splits_are_splits(tmp_path, caplog):
    write_pictures(tmp_path, "train/a.png", "train/x/b.png", "val/c.png", "extra/d.png", "stray.png")
    assert find_source(tmp_path).splits == ("train", "validation", "extra")
    assert ids(load_source(tmp_path)) == ["train/a.png", "train/x/b.png"]
    assert ids(load_source(tmp_path, split="validation")) == ["val/c.png"]
    assert "1 images outside the split folders" in caplog.text
    assert "folders beside train, validation and test are splits of their own: {'extra': 1}" in caplog.text
    with pytest.raises(SourceError, match="no split 'test'; it has train, validation, extra"):
        load_source(tmp_path, split="test")


def test_splits_are_asked_for_by_any_of_their_words(tmp_path):
    write_pictures(tmp_path, "Training/a.png", "Testing/b.png")
    assert ids(load_source(tmp_path)) == ["Training/a.png"]
    assert ids(load_source(tmp_path, split="TEST")) == ["Testing/b.png"]
    data = DatasetDict({"training": table(3), "val": table(1)})
    assert find_source(data).splits == ("train", "validation")
    assert [len(load_source(data, split=split)) for split in ("train", "val", "validation")] == [3, 1, 1]
    assert find_source(DatasetDict({"val": table(1), "validation": table(2)})).splits == ("validation", "val")
    data.save_to_disk(tmp_path / "saved")
    assert len(load_source(tmp_path / "saved", split="validation")) == 1


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_can_be_streamed(tmp_path, streaming):
    write_pictures(tmp_path, "a.png", "b.png")
    data = load_source(str(tmp_path), streaming=streaming)
    assert isinstance(data, IterableDataset) == streaming
    assert ids(data) == ["a.png", "b.png"]
    assert [row["image"]["path"] for row in data] == [str(tmp_path / name) for name in ("a.png", "b.png")]


def test_fingerprints_follow_the_content_of_a_folder(tmp_path):
    write_pictures(tmp_path, "a.png", "b.png")
    first = find_source(tmp_path).fingerprint
    loaded = load_source(tmp_path)._fingerprint
    assert find_source(str(tmp_path)).fingerprint == first
    assert load_source(tmp_path)._fingerprint == loaded
    os.utime(tmp_path / "b.png", (1, 1))
    touched = find_source(tmp_path).fingerprint
    (tmp_path / "b.png").rename(tmp_path / "c.png")
    assert len({first, touched, find_source(tmp_path).fingerprint}) == 3
    assert load_source(tmp_path)._fingerprint != loaded


# Official lists


def listed(tmp_path, *lines):
    file = tmp_path / "list.txt"
    file.write_text("\n".join(lines) + "\n\n")
    return file


def test_a_list_file_picks_by_path_or_name(tmp_path):
    images = write_pictures(tmp_path / "images", "images_001/1.png", "images_001/2.png", "images_002/3.png")
    data = load_source(images, list_file=listed(tmp_path, "3.png", "images_001/1.png"))
    assert ids(data) == ["images_001/1.png", "images_002/3.png"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
def test_a_list_file_may_come_from_any_editor_and_lie_at_home(tmp_path, encoding, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    images = write_pictures(tmp_path / "images", "Müller.png", "b.png")
    (tmp_path / "list.txt").write_text("Müller.png\r\n", encoding=encoding)
    assert ids(load_source("~/images", list_file="~/list.txt")) == ["Müller.png"]
    assert ids(load_source(images, list_file=tmp_path / "list.txt")) == ["Müller.png"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["1.png", "8.png", "9.png"], r"2 of the 3 images .*list.txt are not in .*: 8.png, 9.png"),
        (["twin.png"], "in several folders: twin.png"),
        (["1.png", "1.png"], "1 ids come more than once in .*list.txt: a/1.png"),
        ([], "names no image"),
    ],
)
def test_a_list_file_that_does_not_fit_is_refused(tmp_path, lines, message):
    images = write_pictures(tmp_path / "images", "a/1.png", "a/twin.png", "b/twin.png")
    with pytest.raises(SourceError, match=message):
        load_source(images, list_file=listed(tmp_path, *lines))


def test_a_list_file_needs_a_folder(tmp_path):
    with pytest.raises(SourceError, match="no list file at"):
        load_source(write_pictures(tmp_path / "images", "a.png"), list_file=tmp_path / "absent.txt")
    with pytest.raises(SourceError, match="list_file picks the files of a folder"):
        load_source(table(2), list_file=tmp_path / "absent.txt")
    table(1).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(SourceError, match="list_file picks the files of a folder"):
        load_source(tmp_path / "x.parquet", list_file=tmp_path / "absent.txt")


# Parquet, saved and hosted data sets


@pytest.fixture
def parquet(tmp_path):
    folder = tmp_path / "parquet"
    folder.mkdir()
    table(3).to_parquet(folder / "train-00000-of-00002.parquet")
    table(2, first=3).to_parquet(folder / "train-00001-of-00002.parquet")
    table(2, first=5).to_parquet(folder / "test-00000-of-00001.parquet")
    return folder


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("form", ["{}", "{}/*.parquet", "{}/t*-0000?-of-*.parquet"])
def test_parquet_has_the_splits_of_its_file_names(parquet, form, streaming):
    source = form.format(parquet)
    assert find_source(source).splits == ("train", "test")
    data = load_source(source, streaming=streaming)
    assert list(data.features) == ["image", "source_id", "label", "mask"]
    assert data.features["label"].names == ["normal", "tuberculosis"]
    rows = list(data)
    assert [row["source_id"] for row in rows] == list("01234")
    assert [row["label"] for row in rows] == [0, 1, 0, 0, 1]
    assert all(np.array_equal(read_cell(row["image"], "x"), picture(i)) for i, row in enumerate(rows))
    assert isinstance(rows[0]["mask"], PIL.Image.Image)
    assert ids(load_source(source, split="test", streaming=streaming)) == ["0", "1"]


def test_one_parquet_file_of_any_name(parquet, tmp_path):
    assert len(load_source(parquet / "test-00000-of-00001.parquet", split="test")) == 2
    with pytest.raises(SourceError, match="no split 'train'; it has test"):
        load_source(parquet / "test-00000-of-00001.parquet")
    for name in ("trainable.parquet", "2024.parquet"):
        table(1).to_parquet(tmp_path / name)
        assert len(load_source(tmp_path / name)) == 1
    for name in ("val_1.parquet", "cohort_test.parquet"):
        table(1).to_parquet(tmp_path / name)
    splits = {split: len(load_source(f"{tmp_path}/*.parquet", split=split)) for split in SPLIT_NAMES}
    assert splits == {"train": 2, "validation": 1, "test": 1}


def test_streaming_passes_encoded_images_on_untouched(parquet):
    stored = Dataset.from_parquet(str(parquet / "test-00000-of-00001.parquet")).cast_column(
        "mask", Image(decode=False)
    )
    streamed = load_source(parquet, split="test", streaming=True).cast_column("mask", Image(decode=False))
    assert [row["mask"]["bytes"] for row in streamed] == [row["mask"]["bytes"] for row in stored]


def test_configs_of_a_folder_of_parquet(tmp_path):
    for config, count in (("small", 1), ("large", 3)):
        (tmp_path / config).mkdir()
        table(count).to_parquet(tmp_path / config / "train-00000-of-00001.parquet")
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n"
        "- config_name: small\n  data_files:\n  - split: train\n    path: small/train-*\n"
        "- config_name: large\n  data_files:\n  - split: train\n    path: large/train-*\n---\n"
    )
    assert len(load_source(f"{tmp_path}:large")) == 3
    assert len(load_source(f"{tmp_path}:small")) == 1
    with pytest.raises(SourceError, match="small"):
        load_source(tmp_path)
    with pytest.raises(SourceError, match="huge"):
        load_source(f"{tmp_path}:huge")


def test_fingerprints_follow_the_content_of_parquet(parquet):
    first = find_source(parquet).fingerprint
    assert find_source(parquet).fingerprint == first
    assert len(load_source(parquet, split="test")) == 2
    table(4, first=20).to_parquet(parquet / "test-00000-of-00001.parquet")
    assert find_source(parquet).fingerprint != first
    assert len(load_source(parquet, split="test")) == 4


def test_saved_data_sets(tmp_path):
    table(2).save_to_disk(tmp_path / "one")
    DatasetDict({"train": table(2), "validation": table(1)}).save_to_disk(tmp_path / "two")
    assert len(load_source(tmp_path / "one")) == 2
    assert find_source(tmp_path / "two").splits == ("train", "validation")
    assert len(load_source(tmp_path / "two", split="validation")) == 1


def test_a_hub_id_is_opened_by_datasets(monkeypatch):
    asked = []

    def load_dataset_builder(path, config, revision):
        asked.append((path, config, revision))
        raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{path}' doesn't exist on the Hub")

    monkeypatch.setattr(datasets, "load_dataset_builder", load_dataset_builder)
    for name, *others in (
        ("a-user/chest_x-rays", None, None),
        ("a-user/chest_x-rays:frontal", "frontal", None),
        ("a-user/chest_x-rays@v1.0", None, "v1.0"),
        ("a-user/chest_x-rays@refs/pr/1:frontal", "frontal", "refs/pr/1"),
    ):
        for source in (name, f"hf://datasets/{name}"):
            with pytest.raises(SourceError, match=rf"cannot open {source}: .*doesn't exist on the Hub"):
                load_source(source)
            assert asked.pop() == ("a-user/chest_x-rays", *others)
    for source in ("hf://datasets/name", "hf://datasets/user/name/train.parquet", "hf://user/name", "user/name@"):
        with pytest.raises(SourceError, match=rf"nothing at {source}: .* form user/name, user/name@revision or hf://"):
            load_source(source)


def test_the_word_phantoms():
    data = load_source("phantoms:2")
    assert len(data) == 2
    assert read_cell(data[0]["image"], "phantom").mode == "L"
    assert find_source("phantoms:2").fingerprint == find_source("phantoms:2").fingerprint


# Objects in memory


def test_a_data_set_in_memory_keeps_its_columns(tmp_path):
    data = load_source(table(3))
    assert list(data.features) == ["image", "source_id", "label", "mask"]
    assert data.features["label"] == ClassLabel(names=["normal", "tuberculosis"])
    assert data["source_id"][:] == ["0", "1", "2"]
    assert np.array_equal(read_cell(data[1]["image"], "x"), picture(1))
    assert np.array_equal(data[1]["mask"], picture(1).point(lambda x: 255 * (x > 99)))


def test_loading_twice_changes_nothing():
    once = load_source(table(3, name=["x", "y", "z"]), id_column="name")
    twice = load_source(once)
    assert twice.features == once.features
    assert list(twice) == list(once)


def test_a_selection_keeps_its_order():
    data = load_source(table(4, name=list("wxyz")).select([3, 1]), id_column="name")
    assert ids(data) == ["z", "x"]
    assert np.array_equal(read_cell(data[0]["image"], "x"), picture(3))


def test_a_single_data_set_is_taken_as_it_is_and_a_dict_by_split():
    assert len(load_source(table(3), split="test")) == 3
    splits = DatasetDict({"train": table(3), "test": table(1)})
    assert len(load_source(splits, split="test")) == 1
    with pytest.raises(SourceError, match="no split 'validation'; it has train, test"):
        load_source(splits, split="validation")


def test_an_iterable_data_set_stays_one():
    stream = table(3, name=["x", "y", "z"]).to_iterable_dataset()
    data = load_source(stream, id_column="name")
    assert isinstance(data, IterableDataset)
    assert [(row["source_id"], row["name"], row["label"]) for row in data] == [
        ("x", "x", 0),
        ("y", "y", 1),
        ("z", "z", 0),
    ]
    assert ids(load_source(stream)) == ["0", "1", "2"]
    assert list(load_source(stream).features) == ["image", "source_id", "label", "mask", "name"]


def test_an_iterable_data_set_without_features_is_refused():
    with pytest.raises(SourceError, match="give the IterableDataset its features"):
        load_source(IterableDataset.from_generator(lambda: iter([{"image": picture()}])))


@pytest.mark.parametrize(
    "column",
    [
        pytest.param(lambda path: {"scan": [str(path)]}, id="path"),
        pytest.param(lambda path: {"scan": [path.read_bytes()]}, id="bytes"),
        pytest.param(lambda path: {"scan": [{"bytes": path.read_bytes(), "path": None}]}, id="struct"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_an_image_column_may_have_another_name_and_form(tmp_path, column, streaming):
    picture(7).save(tmp_path / "x.png")
    data = load_source(Dataset.from_dict(column(tmp_path / "x.png")), image_column="scan", streaming=streaming)
    assert data.features == {"image": Image(decode=False), "source_id": Value("string")}
    assert np.array_equal(read_cell(next(iter(data))["image"], "x"), picture(7))


# Errors


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_name_that_is_no_utf8_is_refused(tmp_path):
    picture().save(tmp_path / "\u00fcn\u00ef\n.png")
    assert ids(load_source(tmp_path)) == ["\u00fcn\u00ef\n.png"]
    picture().save(os.fsdecode(os.fsencode(tmp_path) + b"/x\xff.png"), "png")
    with pytest.raises(SourceError, match=r"names in .* are no UTF-8: b'x\\xff.png'; rename these 1 files"):
        load_source(tmp_path)


def test_nothing_there(tmp_path):
    for source in (tmp_path / "absent", "absent", "./absent/folder", tmp_path / "*.parquet", "phantoms:none"):
        with pytest.raises(SourceError, match=r"nothing at .*absent|nothing at .*parquet|nothing at phantoms:none"):
            load_source(source)


def test_empty_and_foreign_places(tmp_path):
    with pytest.raises(SourceError, match="no images in"):
        load_source(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(SourceError, match=r"no images in .* \(1 other files\)"):
        load_source(tmp_path)
    with pytest.raises(SourceError, match=r"is no Parquet: .*notes.txt"):
        load_source(tmp_path / "notes.txt")
    with pytest.raises(SourceError, match="has no rows"):
        load_source(table(0))
    with pytest.raises(SourceError, match="a source is a path, a Hub id"):
        load_source(42)


def test_columns_that_do_not_fit():
    with pytest.raises(SourceError, match="no column 'scan'; it has image, label, mask: name one as image_column"):
        load_source(table(2), image_column="scan")
    with pytest.raises(SourceError, match=r"'label' of .* holds no images but ClassLabel"):
        load_source(table(2), image_column="label")
    with pytest.raises(SourceError, match="has a column 'image' beside 'mask'"):
        load_source(table(2), image_column="mask")
    with pytest.raises(SourceError, match="no column 'name'; it has image, label, mask: name one as id_column"):
        load_source(table(2), id_column="name")


def test_ids_are_unique_and_there():
    with pytest.raises(SourceError, match=r"1 ids come more than once in .*: x; name a column of unique ids"):
        load_source(table(3, name=["x", "y", "x"]), id_column="name")
    with pytest.raises(SourceError, match="row 1 has no id"):
        load_source(table(2, name=["x", None]), id_column="name")


def test_cells_that_hold_nothing(tmp_path):
    for cell in (None, {"bytes": None, "path": None}):
        with pytest.raises(ImageReadError, match="row 7: the row holds no image"):
            read_cell(cell, "row 7")
    with pytest.raises(ImageReadError, match="memory://absent"):
        read_cell({"bytes": None, "path": "memory://absent.png"}, "row 7")
    picture(3).save(tmp_path / "x.png")
    assert np.array_equal(read_cell({"bytes": None, "path": f"file://{tmp_path}/x.png"}, "x"), picture(3))


# Real radiographs


@pytest.mark.real_data
def test_real_parquet_has_its_splits_and_ids(shared_data):
    source = shared_data / "cxr-pretrain"
    assert find_source(source).splits == ("train", "validation", "test")
    data = load_source(f"{source}/validation-*.parquet", split="validation", id_column="image_id")
    assert len(data) == 2070
    assert data.features["label"].names == ["normal", "covid", "tuberculosis", "viral_pneumonia"]
    assert data[0]["source_id"] == data[0]["image_id"]
    assert read_cell(data[0]["image"], "x").size == (256, 256)


@pytest.mark.real_data
def test_real_parquet_streams_as_it_loads(shared_data):
    loaded = load_source(shared_data / "scr", split="test", id_column="image_id")
    streamed = load_source(shared_data / "scr", split="test", id_column="image_id", streaming=True)
    assert streamed.features == loaded.features
    count = 0
    for a, b in zip(loaded, streamed, strict=True):  # to the end: a stream left open aborts the interpreter
        assert a["image"] == b["image"]
        assert a["source_id"] == b["source_id"]
        count += 1
    assert count == 123
    del streamed
    gc.collect()


def test_pipes_keep_nobody_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("pipe.png")
    (tmp_path / "broken.png").symlink_to("nothing.png")
    assert list_files(tmp_path) == (["broken.png"], 2)
