import errno
import json
import shutil
import subprocess
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from eden_hf.cli import COMMANDS
from eden_hf.data import prepared
from eden_hf.data.chunks import prepare_in_chunks
from eden_hf.data.errors import SourceError
from eden_hf.data.prepared import PreparedImages, prepare_images
from eden_hf.data.skips import SkipLog, TooManyUnreadable
from eden_hf.data.sources import load_source

from ..launching import REPOSITORY


@pytest.fixture
def images(tmp_path):
    """Eight PNG files, of which the fifth is none; in chunks of two it is one of two chunks that are not whole."""
    source = tmp_path / "images"
    source.mkdir()
    for index in range(8):
        pixels = np.random.default_rng(index).integers(0, 256, (20, 24), dtype=np.uint8)
        Image.fromarray(pixels).save(source / f"{index}.png")
    (source / "4.png").write_bytes(b"no image")
    return source


def prepare(images, **settings):
    folder = images.with_name("prepared")
    given = {"side": 8, "chunk_size": 2, "num_proc": 0, "max_skipped_share": 0.2, **settings}
    return prepare_in_chunks(str(images), str(folder), **given)


def as_source(folder, **settings):
    return prepare_images(folder, side=8, **settings)


def test_what_machines_made_together_is_what_one_makes(images, tmp_path, monkeypatch):
    for shard in ("2/3", "1/3"):
        folder = prepare(images, shard=shard)
    assert sorted(path.name for path in folder.glob("chunk-*")) == ["chunk-00000", "chunk-00001", "chunk-00003"]
    with pytest.raises(SourceError, match=r"prepared is not finished: .* without --shard"):
        as_source(folder)
    prepare(images, shard="3/3")
    monkeypatch.setattr(prepared, "read_cell", lambda *_: pytest.fail("decoded again"))
    prepare(images)
    monkeypatch.undo()
    both = as_source(folder), prepare_images(images, side=8, max_skipped_share=0.2, cache_dir=tmp_path / "cache")
    together, alone = both
    assert together.ids == alone.ids == [f"{index}.png" for index in (0, 1, 2, 3, 5, 6, 7)]
    order = [6, 0, 3, 4, 4, 5]
    assert torch.equal(together.get(order), alone.get(order))
    assert (together.list_hash, together.skipped, together.side) == (alone.list_hash, 1, 8)
    assert together.skipped_file.read_text() == alone.skipped_file.read_text()
    assert torch.equal(together.get(torch.tensor(order)), alone.get(order))
    with pytest.raises(IndexError):
        together[7]


def test_who_was_stopped_goes_on(images, monkeypatch):
    """Loaders decode sixteen images at a time: two chunks of seven are there, and the rest is lost."""
    for index in range(10, 24):
        shutil.copy(images / "0.png", images / f"{index}.png")
    read, names = prepared.read_cell, []

    def stopped(cell, name):
        names.append(name)
        if len(names) == 20:
            raise KeyboardInterrupt
        return read(cell, name)

    monkeypatch.setattr(prepared, "read_cell", stopped)
    with pytest.raises(KeyboardInterrupt):
        prepare(images, chunk_size=7)
    folder = images.with_name("prepared")
    assert sorted(path.name for path in folder.iterdir()) == ["chunk-00000", "chunk-00001", "plan.json"]
    first, names[:] = names[:14], []
    monkeypatch.setattr(prepared, "read_cell", lambda cell, name: (names.append(name), read(cell, name))[1])
    held = as_source(prepare(images, chunk_size=7))
    assert len(held) == 21
    assert len(names) == 8
    assert sorted(first + names) == sorted([*held.ids, "4.png"])


@pytest.mark.parametrize("damage", ["bytes", "size", "names"])
def test_a_chunk_that_is_not_what_it_was_is_named(damage, images):
    folder = prepare(images)
    chunk = folder / "chunk-00001"
    pixels = bytearray((chunk / "pixels.bin").read_bytes())
    if damage == "bytes":
        pixels[70] ^= 1
        (chunk / "pixels.bin").write_bytes(pixels)
    elif damage == "size":
        (chunk / "pixels.bin").write_bytes(pixels[:-8])
    else:
        shutil.rmtree(chunk)
        shutil.copytree(folder / "chunk-00000", chunk)
    with pytest.raises(SourceError, match=r"chunk-00001: its (bytes|names) .*remove that folder and call again"):
        prepare(images)
    with pytest.raises(SourceError, match="not finished"):
        as_source(folder)
    shutil.rmtree(chunk)
    assert len(as_source(prepare(images))) == 7


@pytest.mark.parametrize("name", ["images.json", "pixels.bin", "plan.json"])
def test_what_is_torn_is_named_with_the_mend(name, images):
    folder = prepare(images)
    if name == "plan.json":
        (folder / name).write_text("{")
    else:
        (folder / "chunk-00002" / name).unlink()
    with pytest.raises(SourceError, match=r"(plan.json|chunk-00002) is torn.*remove"):
        prepare(images)


def test_a_split_goes_by_any_of_its_names(tmp_path):
    picture = Image.fromarray(np.zeros((9, 9), np.uint8))
    for name in ("train", "val"):
        (tmp_path / "images" / name).mkdir(parents=True)
        picture.save(tmp_path / "images" / name / "0.png")
    for name in ("val", "validation"):
        folder = prepare(tmp_path / "images", split=name)
    for name in ("val", "validation", "Dev"):
        assert as_source(folder, split=name).ids == ["val/0.png"]
    with pytest.raises(ValueError, match="prepared with split 'validation', not 'train'"):
        as_source(folder)


@pytest.mark.parametrize("name", ["images.json", "pixels.bin"])
def test_a_finished_folder_that_lost_something_is_refused_before_the_run(name, images):
    folder = prepare(images)
    file = folder / "chunk-00002" / name
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(SourceError, match=r"chunk-00002.* is torn.*remove that folder, and prepare the images again"):
        as_source(folder)
    file.unlink()
    with pytest.raises(SourceError, match=r"chunk-00002 is torn.*prepare the images again"):
        as_source(folder)


def test_others_are_not_mixed_in(images):
    folder = prepare(images, shard="1/2")
    with pytest.raises(ValueError, match=r"prepared was begun with others: side 8 -> 16; .*another --output"):
        prepare(images, side=16)
    shutil.copy(images / "0.png", images / "9.png")
    with pytest.raises(ValueError, match=r"fingerprint .*images 8 -> 9"):
        prepare(images)
    assert not (folder / "prepared.json").exists()
    with pytest.raises(FileExistsError, match=r"images holds something else \(0.png\): choose another --output"):
        prepare_in_chunks(str(images), str(images))


def test_unreadable_images_stop_the_end_not_the_work(images):
    with pytest.raises(TooManyUnreadable, match=r"1 of 8 images .*4.png.*skipped.jsonl"):
        prepare(images, max_skipped_share=0.0)
    assert len(list(images.with_name("prepared").glob("chunk-*"))) == 4
    assert len(as_source(prepare(images, max_skipped_share=0.125))) == 7


def test_a_chunk_without_a_readable_image(images):
    folder = prepare(images, chunk_size=1)
    assert (folder / "chunk-00004" / "pixels.bin").stat().st_size == 0
    assert as_source(folder).get([3, 4]).shape == (2, 1, 8, 8)


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "1/0", "-1/2", "a/b"])
def test_a_shard_that_there_is_not(shard, images):
    with pytest.raises(ValueError, match=rf"--shard must be i/n .*'{shard}'"):
        prepare(images, shard=shard)


def test_other_settings_do_not_fit_the_folder(images):
    folder = prepare(images)
    with pytest.raises(ValueError, match=r"prepared with side 8, not 16, split 'train', not 'test': set data"):
        prepare_images(folder, side=16, split="test")
    with pytest.raises(ValueError, match="list_file"):
        as_source(folder, list_file="list.txt")
    with pytest.raises(SourceError, match="give the source they were prepared from"):
        load_source(str(folder))
    with pytest.raises(ValueError, match="at least 1, got 0"):
        prepare(images, chunk_size=0)
    with pytest.raises(ValueError, match="channels=2"):
        prepare(images, channels=2)
    with pytest.raises(ValueError, match=r"--num-proc must be at least 0, .* got -1"):
        prepare(images, num_proc=-1)
    with pytest.raises(ValueError, match=r"share of the images in \[0, 1\], got 2"):
        prepare(images, max_skipped_share=2)
    about = folder / "chunk-00001" / "images.json"  # of one who began at the same moment
    about.write_text(about.read_text().replace('"resize"', '"pad"'))
    with pytest.raises(SourceError, match="chunk-00001: its aspect_ratio is not that of the folder; remove"):
        prepare(images)


def test_a_disk_without_room_is_named_and_nothing_torn_is_left(images, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match=r"prepared could not be written to .*make room"):
        prepare(images)
    monkeypatch.undo()
    assert not list(images.with_name("prepared").iterdir())
    monkeypatch.setattr(SkipLog, "add", full)
    with pytest.raises(OSError, match=r"prepared could not be written to .*make room"):
        prepare(images)
    monkeypatch.undo()
    assert len(as_source(prepare(images))) == 7


def test_parquet_and_colour_by_the_command(tmp_path, capsys):
    colours = np.random.default_rng(0).integers(0, 256, (5, 9, 9, 3), dtype=np.uint8)
    features = datasets.Features({"image": datasets.Image(), "name": datasets.Value("string")})
    rows = {"image": [Image.fromarray(pixels) for pixels in colours], "name": list("edcba")}
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "train.parquet")
    options = ["--id-column=name", "--side=9", "--channels=3", "--chunk-size=2"]
    COMMANDS["prepare"]([f"{tmp_path}/train.parquet", f"{tmp_path}/prepared", *options])
    assert capsys.readouterr().out == f"{tmp_path}/prepared\n"
    held = PreparedImages(tmp_path / "prepared")
    assert held.ids == list("edcba")
    assert np.array_equal(held.get(range(5)).permute(0, 2, 3, 1), colours)


def test_a_slurm_array_shares_the_work_and_a_job_of_one_finishes_it(tmp_path):
    """The script says of which machine of how many a job is; `--array=1` is all of them."""
    python = tmp_path / "python"
    python.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"')
    python.chmod(0o755)
    for job, told in ({"ID": "3", "COUNT": "16"}, "3/16"), ({"ID": "1", "COUNT": "1"}, "1/1"):
        environment = {f"SLURM_ARRAY_TASK_{name}": value for name, value in job.items()} | {"PYTHON": str(python)}
        command = ["bash", "configs/slurm_prepare.sh", "with a blank", "out"]
        done = subprocess.run(
            command, cwd=REPOSITORY, env={"PATH": "/usr/bin:/bin", **environment}, capture_output=True, text=True,
            check=True, timeout=60,
        )  # fmt: skip
        assert done.stdout.splitlines() == ["scripts/prepare_images.py", "--shard", told, "with a blank", "out"]


@pytest.mark.parametrize(("storage", "loss"), [("png", 0), ("jpeg", 40)])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_may_be_kept_as_files(storage, loss, channels, images, tmp_path):
    settings = {"side": 20, "channels": channels}
    kept = prepare_images(prepare(images, storage=storage, **settings), **settings)
    raw = prepare_images(images, max_skipped_share=0.2, cache_dir=tmp_path / "cache", **settings)
    assert kept.ids == raw.ids
    order = [6, 0, 3, 4, 2]
    assert kept.get(order).shape == raw.get(order).shape
    difference = (kept.get(order).int() - raw.get(order).int()).abs()
    assert difference.float().mean() <= loss / 10
    assert difference.max() <= loss
    assert (difference.max() > 0) == (storage == "jpeg")
    sizes = [len(json.loads(file.read_text())["sizes"]) for file in sorted(kept.folder.glob("chunk-*/images.json"))]
    assert sizes == [2, 2, 1, 2]
    chunk = kept.folder / "chunk-00003" / "pixels.bin"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    with pytest.raises(SourceError, match="chunk-00003: its bytes"):
        prepare(images, storage=storage, **settings)


def test_the_manifest_tells_the_sums(images):
    manifest = json.loads((prepare(images) / "prepared.json").read_text())
    assert [chunk["images"] for chunk in manifest["chunks"]] == [2, 2, 1, 2]
    assert len({chunk["sha256"] for chunk in manifest["chunks"]}) == 4
    assert (manifest["images"], manifest["skipped"], manifest["side"]) == (8, 1, 8)


def test_columns_that_are_asked_for_are_kept_with_the_images_that_are(tmp_path):
    """Texts, numbers and what is not told, of the images that could be read; a call with other columns is refused."""
    pictures = [Image.fromarray(np.full((9, 9), index, np.uint8)) for index in range(4)]
    told = {"patient": ["a", None, "b", "b"], "age": [1.5, float("nan"), 3.0, 4.0], "label": [0, 1, 1, 0]}
    features = {"image": datasets.Image(decode=False), "patient": datasets.Value("string"),
                "age": datasets.Value("float32"), "label": datasets.ClassLabel(names=["no", "yes"]),
                "boxes": datasets.List(datasets.Value("int8"))}  # fmt: skip
    cells = [datasets.Image().encode_example(picture) for picture in pictures]
    cells[2]["bytes"] = b"no image"
    rows = {"image": cells, **told, "boxes": [[1]] * 4}
    datasets.Dataset.from_dict(rows, datasets.Features(features)).to_parquet(tmp_path / "train.parquet")
    settings = {"chunk_size": 3, "columns": ["patient", "age", "label", "age"], "max_skipped_share": 0.5}
    for _ in range(2):  # a second call finds them as they are
        kept = PreparedImages(prepare(tmp_path / "train.parquet", **settings))
    assert kept.ids == ["0", "1", "3"]
    assert (kept.columns["patient"], kept.columns["label"]) == (["a", None, "b"], [0, 1, 0])
    assert np.array_equal(kept.columns["age"], [1.5, np.nan, 4.0], equal_nan=True)
    with pytest.raises(ValueError, match=r"begun with others: columns \['patient', 'age', 'label'\] -> None"):
        prepare(tmp_path / "train.parquet", **{**settings, "columns": None})
    for column, told in ("image", "no column"), ("name", "it has patient, age"), ("boxes", "neither texts nor"):
        with pytest.raises(SourceError, match=rf"column '{column}'.*{told}|{told}.*'{column}'"):
            prepare(tmp_path / "train.parquet", columns=[column])
    about = kept.folder / "chunk-00000" / "images.json"
    about.write_text(about.read_text().replace('"a"', '"z"'))
    with pytest.raises(SourceError, match="chunk-00000: its columns are not those of the source"):
        prepare(tmp_path / "train.parquet", **settings)
