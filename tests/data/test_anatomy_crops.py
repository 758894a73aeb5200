import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value, load_dataset
from huggingface_hub import DatasetCard
from torch.utils.data import DataLoader

from eden_hf import __version__
from eden_hf.anatomy import child_indices, grid_shape, parent_index, part_boxes
from eden_hf.data import anatomy_crops, decoders
from eden_hf.data.anatomy_crops import AnatomyCrops, build_anatomy_crops
from eden_hf.data.errors import SourceError
from eden_hf.data.reading import read_image
from eden_hf.data.skips import TooManyUnreadable

from ..launching import terminated

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")


def picture(seed=0, size=(37, 23), mode="L"):
    rng = np.random.default_rng(seed)
    shape = size[::-1] if mode == "L" else (*size[::-1], 3)
    return PIL.Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))


PICTURES = {
    "a.png": picture(0),
    "b.png": picture(1, (64, 48)),
    "deep/c.png": picture(2, (31, 40), "RGB"),
    "deep/d.png": picture(3),
    "e.png": picture(4),
}
IN_ORDER = sorted(PICTURES)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    (root / "deep").mkdir(parents=True)
    for name, image in PICTURES.items():
        image.save(root / name)
    return root


def table(names=IN_ORDER):
    """The pictures as a data set with labels and masks."""
    features = {"image": Image(), "label": ClassLabel(names=["normal", "tuberculosis"]), "mask": Image()}
    features |= {"points": List(List(Value("float32"))), "age": Value("int32"), "name": Value("string")}
    return Dataset.from_dict(
        {
            "image": [PICTURES[name] for name in names],
            "label": [i % 2 for i in range(len(names))],
            "mask": [PICTURES[name].convert("L").point(lambda x: 255 * (x > 99)) for name in names],
            "points": [[[0.5, 0.25], [1.0, i]] for i in range(len(names))],
            "age": [None if i else 53 for i in range(len(names))],
            "name": list(names),
        },
        features=Features(features),
    )


def crops(source, name, split="train", num_proc=None, **options):
    builder = AnatomyCrops(source=source, name=name, **options)
    builder.download_and_prepare(num_proc=num_proc)
    return builder.as_dataset(split)


def plain(rows):
    """Rows with images as arrays of bytes, so that they can be compared."""

    def value(x):
        return (x.mode, x.size, x.tobytes()) if isinstance(x, PIL.Image.Image) else x

    return [{name: value(x) for name, x in row.items()} for row in rows]


# The rows


@pytest.mark.parametrize("level", [0, 1, 2, 3, 4, 7])
def test_the_rows_of_a_level(folder, level):
    rows = list(crops(folder, f"level-{level}"))
    assert len(rows) == len(PICTURES) * 2**level
    columns = grid_shape(level)[1]
    for number, row in enumerate(rows):
        index = number % 2**level
        image = PICTURES[row["source_id"]]
        assert row["source_id"] == IN_ORDER[number // 2**level]
        assert (row["level"], row["index"]) == (level, index)
        assert row["row"] * columns + row["column"] == index
        assert row["box"] == list(part_boxes(*image.size, level)[index])
        assert row["parent"] == parent_index(level, index)
        assert row["children"] == list(child_indices(level, index))
        assert row["image"].mode == image.mode
        assert np.array_equal(row["image"], image.crop(row["box"]))


def test_the_columns(folder):
    data = crops(folder, "level-2")
    assert data.features == anatomy_crops.CROP_FEATURES
    assert ",".join(data.features) == "image,source_id,level,index,row,column,box,parent,children"
    stored = data.cast_column("image", Image(decode=False))[0]["image"]["bytes"]
    assert PIL.Image.open(io.BytesIO(stored)).format == "PNG"


def test_crops_are_the_pixels_of_the_file_and_nothing_else(tmp_path):
    picture().save(tmp_path / "a.jpg", quality=20, icc_profile=b"profile" * 1000, comment=b"a name")
    stored = crops(tmp_path, "level-1").cast_column("image", Image(decode=False))
    for row in stored:
        crop = PIL.Image.open(io.BytesIO(row["image"]["bytes"]))
        assert crop.format == "PNG"
        assert np.array_equal(crop, PIL.Image.open(tmp_path / "a.jpg").crop(row["box"]))
        assert crop.info == {}


def test_dicom_without_a_suffix_is_cut(tmp_path):
    pydicom_data = pytest.importorskip("pydicom.data")
    (tmp_path / "IM0001").write_bytes(Path(pydicom_data.get_testdata_file("CT_small.dcm")).read_bytes())
    rows = list(crops(tmp_path, "level-2"))
    whole = read_image(tmp_path / "IM0001")
    assert [row["source_id"] for row in rows] == ["IM0001"] * 4
    assert all(np.array_equal(row["image"], whole.crop(row["box"])) for row in rows)
    assert np.ptp(np.asarray(whole)) > 100


def test_the_hierarchy_can_be_walked(folder):
    rows = list(crops(folder, "hierarchy", max_level=3))
    keys = [(row["source_id"], row["level"], row["index"]) for row in rows]
    assert keys == [(name, level, index) for name in IN_ORDER for level in range(4) for index in range(2**level)]
    by_key = dict(zip(keys, rows, strict=True))
    for (source_id, level, index), row in by_key.items():
        if level < 3:
            halves = [by_key[source_id, level + 1, child] for child in row["children"]]
            assert [half["parent"] for half in halves] == [index, index]
            axis = level % 2  # x is halved first
            joined = np.concatenate([np.asarray(half["image"]) for half in halves], axis=1 - axis)
            assert np.array_equal(row["image"], joined)
    assert all(by_key[name, 0, 0]["parent"] is None for name in IN_ORDER)


def test_the_hierarchy_has_five_levels_by_default(folder):
    assert len(crops(folder, "hierarchy")) == len(PICTURES) * 31
    assert AnatomyCrops(source=str(folder)).config.name == "hierarchy"


def test_parts_of_the_finest_level_have_no_children():
    rows = list(crops(Dataset.from_dict({"image": [picture(0, (4, 4))]}, Features({"image": Image()})), "level-4"))
    assert all(row["children"] == [] and row["image"].size == (1, 1) for row in rows)


def test_the_columns_of_the_source_are_kept():
    data = crops(table(), "level-2", id_column="name")
    assert data.features["label"] == ClassLabel(names=["normal", "tuberculosis"])
    assert list(data.features)[-5:] == ["label", "mask", "points", "age", "name"]
    for number, row in enumerate(data):
        name = IN_ORDER[number // 4]
        assert row["source_id"] == row["name"] == name
        assert (row["label"], row["age"]) == (number // 4 % 2, None if number // 4 else 53)
        assert row["points"] == [[0.5, 0.25], [1.0, number // 4]]
        assert np.array_equal(row["mask"], PICTURES[name].convert("L").point(lambda x: 255 * (x > 99)))


def test_all_splits_or_the_one_asked():
    splits = DatasetDict({"train": table(IN_ORDER[:3]), "test": table(IN_ORDER[3:])})
    builder = AnatomyCrops(source=splits, name="level-1")
    builder.download_and_prepare()
    assert {split: len(data) for split, data in builder.as_dataset().items()} == {"train": 6, "test": 4}
    builder = AnatomyCrops(source=splits, name="level-1", split="test")
    builder.download_and_prepare()
    assert {split: len(data) for split, data in builder.as_dataset().items()} == {"test": 4}


# Sources, streams and processes


def sources(kind, folder, tmp_path):
    if kind == "folder":
        return folder
    if kind == "memory":
        return table()
    if kind == "stream":
        return table().to_iterable_dataset()
    if kind == "saved":
        table().save_to_disk(tmp_path / "saved")
        return tmp_path / "saved"
    (tmp_path / "parquet").mkdir()
    table(IN_ORDER[:3]).to_parquet(tmp_path / "parquet/train-00000-of-00002.parquet")
    table(IN_ORDER[3:]).to_parquet(tmp_path / "parquet/train-00001-of-00002.parquet")
    return tmp_path / "parquet"


KINDS = ["folder", "memory", "stream", "saved", "parquet"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_equals_the_prepared_data(kind, folder, tmp_path):
    builder = AnatomyCrops(source=sources(kind, folder, tmp_path), name="hierarchy", max_level=2)
    stream = builder.as_streaming_dataset("train")
    streamed = plain(stream)
    assert not Path(builder.cache_dir).exists()
    builder.download_and_prepare()
    prepared = builder.as_dataset("train")
    assert streamed == plain(prepared)
    assert stream.features == prepared.features
    assert len(streamed) == len(PICTURES) * 7


@pytest.mark.parametrize("kind", ["folder", "memory", "parquet"])
def test_two_processes_give_the_same_rows_in_the_same_order(kind, folder, tmp_path):
    source = sources(kind, folder, tmp_path)
    one = crops(source, "level-2", cache_dir=tmp_path / "one")
    two = crops(source, "level-2", cache_dir=tmp_path / "two", num_proc=2)
    assert len(one.cache_files) == 1
    assert len(two.cache_files) == 2  # each process writes its own
    assert plain(one) == plain(two)


def test_rows_keep_their_order_where_a_piece_has_several(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(anatomy_crops, "MAX_SHARDS", 2)
    assert crops(folder, "level-0", num_proc=2)["source_id"][:] == IN_ORDER


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_loader_workers_lose_and_repeat_nothing(kind, folder, tmp_path):
    stream = AnatomyCrops(source=sources(kind, folder, tmp_path), name="level-1").as_streaming_dataset("train")
    stream = stream.select_columns(["source_id", "index"])
    rows = list(torch.utils.data.DataLoader(stream, batch_size=None, num_workers=2))
    names = IN_ORDER if kind == "folder" else list("01234")
    assert sorted((row["source_id"], row["index"]) for row in rows) == sorted((n, i) for n in names for i in (0, 1))


# The cache


@pytest.fixture
def decoded(monkeypatch):
    """Names of the images decoded so far."""
    names = []
    read_cell = anatomy_crops.read_cell
    monkeypatch.setattr(anatomy_crops, "read_cell", lambda cell, name: names.append(name) or read_cell(cell, name))
    return names


def test_the_same_input_is_cut_once(folder, decoded):
    first = crops(folder, "level-2")
    assert decoded == IN_ORDER
    again = crops(str(folder), "level-2")
    assert decoded == IN_ORDER
    assert plain(again) == plain(first)
    assert again._fingerprint == first._fingerprint


def test_another_input_is_cut_anew(folder, tmp_path):
    places = set()

    def place(name="level-2", **options):
        places.add(AnatomyCrops(source=folder, name=name, **options).cache_dir)
        return len(places)

    assert place() == 1
    assert place() == 1
    assert place("level-3") == 2
    assert place("hierarchy") == 3
    assert place("hierarchy", max_level=3) == 4
    assert place(max_skipped_share=0.5) == 5
    (tmp_path / "list.txt").write_text("a.png\nb.png\n")
    assert place(list_file=tmp_path / "list.txt") == 6
    os.utime(folder / "a.png", (1, 1))
    assert place() == 7
    (folder / "f.png").write_bytes((folder / "a.png").read_bytes())
    assert place() == 8
    assert place(split="train") == 9
    assert place() == 9


def test_parquet_that_changed_is_cut_anew(tmp_path):
    for names in (IN_ORDER[:2], IN_ORDER[2:]):
        table(names).to_parquet(tmp_path / "train-0.parquet")
        assert crops(tmp_path / "train-0.parquet", "level-0", id_column="name")["source_id"][:] == names


# Images that cannot be used


def test_another_decoder_cuts_anew(folder, monkeypatch):
    first = AnatomyCrops(source=folder, name="level-1").cache_dir
    assert AnatomyCrops(source=folder, name="level-1").cache_dir == first
    monkeypatch.setattr(decoders, "_version", lambda package: "9.9")
    assert AnatomyCrops(source=folder, name="level-1").cache_dir != first


def test_unreadable_images_are_listed_and_left_out(folder, caplog):
    (folder / "torn.png").write_bytes(b"no picture")
    builder = AnatomyCrops(source=folder, name="level-1", max_skipped_share=0.2)
    builder.download_and_prepare()
    assert sorted(set(builder.as_dataset("train")["source_id"])) == IN_ORDER
    entries = [json.loads(line) for line in builder.skipped_path.read_text().splitlines()]
    assert [(entry["source_id"], entry["split"]) for entry in entries] == [("torn.png", "train")]
    assert "torn.png" in entries[0]["reason"]
    assert builder.skipped == entries
    assert "1 images left out as unreadable, see " in caplog.text


def test_files_that_hold_no_image_do_not_count(folder, report, caplog):
    for name in ("DICOMDIR", "report.dcm"):
        (folder / name).write_bytes(report)
    builder = AnatomyCrops(source=folder, name="level-1")
    builder.download_and_prepare()
    assert sorted(set(builder.as_dataset("train")["source_id"])) == IN_ORDER
    assert sorted(entry["source_id"] for entry in builder.skipped) == ["DICOMDIR", "report.dcm"]
    assert "2 files left out that hold no image, see " in caplog.text


@pytest.mark.parametrize("num_proc", [None, 2])
def test_too_many_unreadable_images_stop_the_run(folder, num_proc):
    for name in ("torn.png", "x.png"):
        (folder / name).write_bytes(b"no picture")
    builder = AnatomyCrops(source=folder, name="level-1", max_skipped_share=0.2)
    with pytest.raises(
        TooManyUnreadable, match=r"2 of 7 images .* limit of 20.00% forbids \((torn|x).png: .*skipped.jsonl"
    ):
        builder.download_and_prepare(num_proc=num_proc)
    assert not Path(builder.cache_dir).exists()
    assert len(builder.skipped) == 2


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_streams_leave_out_unreadable_images_too(kind, folder, tmp_path, caplog):
    (folder / "torn.png").write_bytes(b"no picture")
    source = folder
    if kind == "parquet":
        cells = [{"bytes": path.read_bytes(), "path": path.name} for path in sorted(folder.rglob("*.png"))]
        source = tmp_path / "x.parquet"
        Dataset.from_dict({"image": cells}, Features({"image": Image()})).to_parquet(source)
    stream = AnatomyCrops(source=source, name="level-1", max_skipped_share=0.2).as_streaming_dataset("train")
    assert len(list(stream)) == 2 * len(PICTURES)
    assert "torn.png" in caplog.text
    with pytest.raises(TooManyUnreadable, match="1 of 6 images"):
        list(AnatomyCrops(source=source, name="level-1").as_streaming_dataset("train"))


@pytest.mark.parametrize("workers", [0, 2])
def test_epochs_and_workers_of_a_stream_share_one_count(folder, workers):
    for index in range(15):
        picture(index).save(folder / f"more-{index:02}.png")
    (folder / "more-00.png").write_bytes(b"no picture")

    def stream():
        crops = AnatomyCrops(source=folder, name="level-0", max_skipped_share=0.05).as_streaming_dataset("train")
        return DataLoader(crops, num_workers=workers, batch_size=None)

    loader = stream()
    assert [len(list(loader)) for epoch in range(3)] == [19, 19, 19]  # the one is no more than 1 of 20
    (folder / "more-14.png").write_bytes(b"no picture")  # far from the other: of another worker
    with pytest.raises(TooManyUnreadable, match="2 of 20 images"):
        list(stream())


def test_images_too_small_for_the_level(folder):
    picture(9, (8, 300)).save(folder / "small.png")
    builder = AnatomyCrops(source=folder, name="level-7", max_skipped_share=0.2)
    builder.download_and_prepare()
    assert len(builder.as_dataset("train")) == len(PICTURES) * 2**7
    (entry,) = builder.skipped
    assert entry["source_id"] == "small.png"
    assert entry["reason"].endswith("the finest possible level is 6")
    with pytest.raises(TooManyUnreadable, match="8 x 300 pixels of the image; the finest possible level is 6"):
        AnatomyCrops(source=folder, name="level-7").download_and_prepare()


def test_another_failure_is_not_taken_for_skipped_images(folder, monkeypatch):
    (folder / "0_torn.png").write_bytes(b"no picture")
    monkeypatch.setattr(anatomy_crops, "parent_index", lambda level, index: 1 / 0)
    with pytest.raises(datasets.exceptions.DatasetGenerationError):
        AnatomyCrops(source=folder, name="level-1", max_skipped_share=0.2).download_and_prepare()


# Errors


@pytest.mark.parametrize("name", ["level2", "level-", "level--1", "level-01", "level-1.5", "default", "Hierarchy"])
def test_an_unknown_config_is_refused(name):
    with pytest.raises(ValueError, match=rf"no config '{name}': use 'hierarchy' or 'level-0'"):
        AnatomyCrops(source=table(), name=name)


def test_options_that_do_not_fit_are_refused(folder):
    with pytest.raises(SourceError, match="takes its images from source="):
        AnatomyCrops(name="level-2")
    with pytest.raises(ValueError, match="level must be an integer >= 0, got -1"):
        AnatomyCrops(source=table(), max_level=-1)
    with pytest.raises(TypeError, match="levle"):
        AnatomyCrops(source=table(), name="level-2", levle=2)
    with pytest.raises(SourceError, match="no split 'test'; it has train"):
        AnatomyCrops(source=folder, name="level-2", split="test")
    with pytest.raises(SourceError, match="nothing at"):
        AnatomyCrops(source=folder / "absent", name="level-2")


def test_crops_are_not_written_into_their_source(folder, tmp_path):
    with pytest.raises(SourceError, match="would be another source then: choose another --output"):
        build_anatomy_crops(str(folder), folder / "crops", levels=(0,), max_level=None)
    assert not (folder / "crops").exists()
    with pytest.raises(ValueError, match=r"--num-proc must be at least 0, .* got -1"):
        build_anatomy_crops(str(folder), tmp_path / "crops", num_proc=-1)
    counts = build_anatomy_crops("phantoms:2", tmp_path / "crops", levels=(0,), max_level=None, num_proc=0)
    assert counts == {"level-0": {"train": 2}}


def test_columns_that_would_be_overwritten_are_refused():
    source = table().rename_columns({"label": "level", "age": "row"})
    with pytest.raises(SourceError, match=r"columns \['level', 'row'\] of the source would be overwritten"):
        crops(source, "level-2")


def test_splits_of_other_columns_are_refused():
    splits = DatasetDict({"train": table(), "test": table().remove_columns("label")})
    with pytest.raises(SourceError, match="splits 'train' and 'test' have different columns"):
        crops(splits, "level-2")
    AnatomyCrops(source=splits, name="level-0", split="test").download_and_prepare()


# Parquet for plain load_dataset


def run_script(tmp_path, *arguments):
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "HF_DATASETS_CACHE": str(tmp_path / "script_cache"),
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, str(ROOT / "scripts/build_anatomy_crops.py"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, timeout=300)


def test_the_script_writes_what_load_dataset_reads(folder, tmp_path):
    arguments = "--source images --output out/crops --levels [0,2] --max_level 2 --num_proc 2 --licence cc-by-4.0"
    result = run_script(tmp_path, *arguments.split())
    assert result.returncode == 0, result.stdout + result.stderr
    output = tmp_path / "out/crops"
    assert result.stdout.splitlines()[-3:] == [
        "level-0 train: 5 crops",
        "level-2 train: 20 crops",
        "hierarchy train: 35 crops",
    ]
    assert sorted(path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()) == [
        "README.md",
        *(f"{name}/train-0000{i}-of-00002.parquet" for name in ("hierarchy", "level-0", "level-2") for i in (0, 1)),
    ]
    assert [path.name for path in output.parent.iterdir()] == ["crops"]
    for name, options in {"level-0": {}, "level-2": {}, "hierarchy": {"max_level": 2}}.items():
        assert plain(load_dataset(str(output), name, split="train")) == plain(crops(folder, name, **options))


def test_the_script_refuses_unknown_options(tmp_path):
    result = run_script(tmp_path, *["--source", "images", "--output", "crops", "--licens", "mit"])
    assert result.returncode != 0
    assert "licens" in result.stderr
    assert not (tmp_path / "crops").exists()


def test_built_crops_keep_splits_and_columns(tmp_path):
    (tmp_path / "source").mkdir()
    table(IN_ORDER[:3]).to_parquet(tmp_path / "source/train-0.parquet")
    table(IN_ORDER[3:]).to_parquet(tmp_path / "source/test-0.parquet")
    rows = build_anatomy_crops(str(tmp_path / "source"), tmp_path / "out", levels=(1,), max_level=None)
    assert rows == {"level-1": {"train": 6, "test": 4}}
    loaded = load_dataset(str(tmp_path / "out"), "level-1")
    made = AnatomyCrops(source=tmp_path / "source", name="level-1")
    made.download_and_prepare()
    assert loaded["test"].features == made.info.features
    for split in ("train", "test"):
        assert plain(loaded[split]) == plain(made.as_dataset(split))
    assert plain(load_dataset(str(tmp_path / "out"), "level-1", split="test", streaming=True)) == plain(loaded["test"])


def test_the_card(folder, tmp_path):
    (folder / "torn.png").write_bytes(b"no picture")
    build_anatomy_crops(str(folder), tmp_path / "out", levels=(2,), max_level=1, max_skipped_share=0.5, licence="mit")
    card = DatasetCard.load(tmp_path / "out/README.md")
    assert card.data.license == "mit"
    assert [config["config_name"] for config in card.data.configs] == ["level-2", "hierarchy"]
    infos = {info["config_name"]: info for info in card.data.dataset_info}
    assert infos["level-2"]["splits"][0]["num_examples"] == 20
    assert "box" in [feature["name"] for feature in infos["level-2"]["features"]]
    assert str(tmp_path) not in card.content
    assert f"From `images` by `eden_hf` {__version__}" in card.text
    assert "| `level-2` | train | 20 | 1 |" in card.text
    assert "| `hierarchy` | train | 15 | 1 |" in card.text
    assert "the terms of the source apply" in card.text
    assert not re.search(r"[{}]", card.text)
    for name in ("level-2", "hierarchy"):
        entry = json.loads((tmp_path / "out" / name / "skipped.jsonl").read_text())
        assert entry["source_id"] == "torn.png"
        assert entry["reason"].startswith("torn.png: damaged")
        assert str(tmp_path) not in json.dumps(entry)  # it is published with the crops
    assert len(load_dataset(str(tmp_path / "out"), "hierarchy", split="train")) == 15


def test_output_is_replaced_only_when_told(folder, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    build_anatomy_crops(str(folder), output, levels=(0, 2), max_level=None)
    (output / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="out is not empty"):
        build_anatomy_crops(str(folder), output, levels=(1,))
    build_anatomy_crops(str(folder), output, levels=(1,), max_level=None, overwrite=True)
    assert sorted(path.name for path in output.iterdir()) == ["README.md", "level-1", "notes.txt"]
    assert len(load_dataset(str(output), "level-1", split="train")) == 10


@pytest.mark.parametrize("group", [False, True], ids=["program", "group"])
def test_a_build_that_is_stopped_leaves_nothing_behind(group, folder, tmp_path):
    program = (
        "import sys, time; from pathlib import Path; from eden_hf.data import anatomy_crops\n"
        "real = anatomy_crops.read_cell\n"
        f"last = {IN_ORDER[-1]!r}\n"  # the other worker has nothing left to do, and waits in a lock
        "anatomy_crops.read_cell = lambda cell, name: time.sleep(60 * (name == last)) or real(cell, name)\n"
        "anatomy_crops.build_anatomy_crops(sys.argv[1], Path(sys.argv[2]), num_proc=2)\n"
    )
    made = tmp_path / "made"
    status = terminated(program, folder, made / "out", once=lambda: list(made.glob(".out-*/level-0*")), group=group)
    assert status == 128 + signal.SIGTERM
    assert list(made.iterdir()) == []


def test_a_failed_build_leaves_nothing_behind(folder, tmp_path):
    (folder / "torn.png").write_bytes(b"no picture")
    with pytest.raises(TooManyUnreadable):
        build_anatomy_crops(str(folder), tmp_path / "made/out")
    assert list((tmp_path / "made").iterdir()) == []
    with pytest.raises(ValueError, match="nothing to build"):
        build_anatomy_crops(str(folder), tmp_path / "out", levels=(), max_level=None)


# Real radiographs


@pytest.mark.real_data
def test_real_radiographs_keep_their_masks_and_landmarks(shared_data):
    source = load_dataset("parquet", data_files=str(shared_data / "scr/test-*.parquet"), split="train").select(
        range(6)
    )
    data = crops(source, "level-4", id_column="image_id", num_proc=2)
    assert len(data) == 6 * 16
    first = data[:16]
    whole = np.asarray(source[0]["image"])
    for box, image, heart in zip(first["box"], first["image"], first["heart"], strict=True):
        x0, y0, x1, y1 = box
        assert np.array_equal(image, whole[y0:y1, x0:x1])
        assert np.array_equal(heart, source[0]["heart"])
    assert first["landmarks_heart"][3] == source[0]["landmarks_heart"]


@pytest.mark.real_data
def test_real_parquet_is_cut_in_place_by_streaming(shared_data, tmp_path):
    file = str(shared_data / "scr/train-*.parquet")
    stream = AnatomyCrops(source=file, name="level-2", id_column="image_id").as_streaming_dataset("train")
    ids = [row["source_id"] for row in stream.select_columns(["source_id"])]
    assert len(ids) == 4 * 124
    assert not (tmp_path / "hf_cache/parquet").exists()
