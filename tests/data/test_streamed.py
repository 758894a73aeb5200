"""Images read from Parquet by their places."""

import pickle
from collections import Counter
from dataclasses import replace

import fsspec
import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow.parquet import read_table, write_table

from eden_hf.data import streamed
from eden_hf.data.errors import SourceError
from eden_hf.data.prepared import prepare_images
from eden_hf.data.skips import SkipLog, TooManyUnreadable
from eden_hf.data.streamed import StreamedImages
from eden_hf.training.curriculum import epoch_order

from .shards import png, write_shards

GROUPS = [[3, 1, 4], [2], [5, 5]]


@pytest.fixture
def shards(tmp_path):
    """Twenty images in three files of row groups of 3, 1 and 4, of 2, and of 5 and 5."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 9, 12), dtype=np.uint8)
    names = [f"image {index}" for index in range(20)]
    return write_shards(tmp_path / "shards", list(map(png, pixels)), GROUPS, name=names, patient=list("aabb") * 5)


def stream(source, **settings):
    return StreamedImages(str(source), **{"side": 8, **settings})


def rewrite(file, change, column="image"):
    """Put another column of images, or of what else it has, into a file."""
    table = read_table(file)
    write_table(table.set_column(table.column_names.index(column), column, change(table[column])), file)


def test_they_are_those_that_would_be_prepared(shards, tmp_path):
    images = stream(shards, id_column="name", threads=2)
    prepared = prepare_images(str(shards), id_column="name", side=8, cache_dir=tmp_path / "cache", num_proc=0)
    assert images.ids == prepared.ids
    assert images.list_hash == prepared.list_hash
    order = [19, 0, 7, 8, 8, 3, 12]
    assert torch.equal(images.get(order), prepared.get(order))
    assert torch.equal(images.get_lasting(torch.tensor(order)), prepared.get(order))
    assert torch.equal(images.get_lasting(range(20)), prepared.get(range(20)))
    index, pixels = images[4]
    assert index == 4
    assert torch.equal(pixels, prepared[4][1])
    assert stream(shards).ids == [str(index) for index in range(20)]
    assert images.told("patient")["patient"] == list("aabb") * 5
    with pytest.raises(SourceError, match="has no column 'who'; it has image, name, patient"):
        images.told("who")


@pytest.mark.parametrize("kind", ["binary", "string"])
def test_images_may_be_bytes_or_names_of_files_in_the_folder(kind, shards):
    def change(column):
        cells = [cell["bytes"] for cell in column.to_pylist()]
        if kind == "binary":
            return pa.array(cells)
        for index, cell in enumerate(cells):
            (shards / f"{index}.png").write_bytes(cell)
        return pa.array([str(shards / f"{index}.png") for index in range(len(cells))])

    whole = stream(shards).get(range(8))
    for file in shards.glob("train-0000[12]*"):
        file.unlink()
    rewrite(shards / "train-00000.parquet", change)
    source = shards / "train-00000.parquet"
    assert torch.equal(stream(source).get(range(8)), whole)
    if kind == "string":
        outside = (shards / "0.png").rename(shards.parent / "0.png")
        rewrite(source, lambda column: pa.array([str(outside)] * len(column)))
        with pytest.raises(SourceError, match=r"train-00000.parquet, row group 1 names the file .*0.png"):
            stream(source).get([0])


def test_an_epoch_reads_each_row_group_once_and_keeps_few(shards, monkeypatch):
    images, read = stream(shards, window=6), Counter()
    cells = images._cells

    def counted(number):
        read[number] += number not in images._kept
        return cells(number)

    monkeypatch.setattr(images, "_cells", counted)
    for epoch in range(5):
        images._kept.clear()
        for batch in epoch_order(torch.arange(20), 0, epoch, images.row_groups).split(3):
            images.get(batch)
            assert sum(images._groups[number].rows for number in images._kept) <= 6 + 5
    assert sum(read.values()) <= 5 * 6 * 1.2


def test_others_read_for_themselves(shards):
    images = stream(shards)
    images.get_lasting([3])
    other = pickle.loads(pickle.dumps(images))
    assert other._kept == other._lasting == {}
    assert torch.equal(other.get([3]), images.get([3]))
    assert images.workers(4) == 1
    assert images.workers(0) == 0


def test_what_tells_the_shards_changes_with_them(shards):
    hashes = [stream(shards).facts]
    (shards / "train-00001.parquet").rename(shards / "train-00009.parquet")
    hashes.append(stream(shards).facts)
    rewrite(shards / "train-00009.parquet", lambda column: column.take(pa.array([0, 0])))
    hashes.append(stream(shards).facts)
    assert len({told["parquet_hash"] for told in hashes}) == 3
    assert {told["images"] for told in hashes} == {20}


def test_an_image_that_cannot_be_read_gives_way_to_the_next_and_is_listed(shards, tmp_path):
    broken = {3: pa.scalar(b"no image"), 7: pa.scalar(None, pa.binary())}

    def change(column):
        cells = column.to_pylist()
        for index, data in broken.items():
            cells[index]["bytes"] = data.as_py()
        return pa.array(cells, column.type)

    whole = stream(shards)
    expected = whole.get([4, 0, 1])
    table = read_table(shards / "train-00000.parquet")
    write_table(table.set_column(0, "image", change(table["image"])), shards / "train-00000.parquet", row_group_size=8)
    images = stream(shards, skips=SkipLog(tmp_path / "skipped.jsonl", 0.1))
    for _ in range(2):
        assert torch.equal(images.get([3, 7, 1]), expected)
    assert [entry["source_id"] for entry in images._skips.entries] == ["3", "7"]
    with pytest.raises(TooManyUnreadable, match=r"1 of 20 images could not be used, .*0\.00%.*3: damaged"):
        stream(shards, skips=SkipLog(None, 0)).get([3])
    rewrite(shards / "train-00001.parquet", lambda column: pa.array([b"no image"] * 2))
    with pytest.raises(SourceError, match=r"train-00001.parquet, row group 1 has no readable image"):
        stream(shards, skips=SkipLog(None, 1)).get([8])


@pytest.mark.parametrize("workers", [0, 1])
def test_damage_is_named_by_file_and_row_group(shards, workers):
    """Also by a process that reads ahead, which hands the error over."""
    images = stream(shards)
    file = shards / "train-00002.parquet"
    data = bytearray(file.read_bytes())
    chunk = read_metadata(file, group=1)
    data[chunk.data_page_offset : chunk.data_page_offset + 8] = b"\xff" * 8
    file.write_bytes(data)
    assert images.get([10]).shape == (1, 1, 8, 8)
    loader = torch.utils.data.DataLoader(
        images, batch_sampler=[[1], [16]], num_workers=workers, collate_fn=lambda batch: batch
    )
    (indices, _), error = loader
    assert indices.tolist() == [1]
    assert isinstance(error, SourceError)
    assert f"{file}, row group 2 cannot be read" in str(error)
    file.write_bytes(data[:100])
    with pytest.raises(SourceError, match=r"train-00002.parquet cannot be read"):
        stream(shards)


def read_metadata(file, group):
    return streamed.ParquetFile(file).metadata.row_group(group).column(0)


def test_what_cannot_be_streamed_is_refused(shards, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "0.png").write_bytes(png(np.zeros((4, 4), np.uint8)))
    for source in (tmp_path / "images", "phantoms:4"):
        with pytest.raises(SourceError, match=r"is no Parquet, which data\.streaming reads"):
            stream(source)
    with pytest.raises(SourceError, match="has no split 'test'; it has train"):
        stream(shards, split="test")
    with pytest.raises(SourceError, match="has no column 'picture'"):
        stream(shards, image_column="picture")
    with pytest.raises(SourceError, match="ids come more than once"):
        stream(shards, id_column="patient")
    with pytest.raises(ValueError, match="side=0"):
        stream(shards, side=0)
    file = shards / "train-00001.parquet"
    write_table(read_table(file).drop_columns("patient"), file)
    with pytest.raises(
        SourceError, match=r"train-00001.parquet has the columns image, name, not image, name, patient"
    ):
        stream(shards)
    last = shards / "train-00002.parquet"
    file.unlink()
    rewrite(last, lambda cells: pa.array(range(len(cells))))
    with pytest.raises(SourceError, match=r"'image' of .*train-00002.parquet holds no images but Value\('int64'\)"):
        stream(shards)
    empty = tmp_path / "empty.parquet"
    write_table(read_table(shards / "train-00000.parquet").slice(0, 0), empty)
    with pytest.raises(SourceError, match="has no rows"):
        stream(empty)


def test_columns_are_of_the_type_of_the_first_file(shards):
    """Those who write texts choose between types; a shard that holds no value has none."""
    first, second, third = sorted(shards.iterdir())
    rewrite(second, lambda cells: pa.nulls(len(cells)), "patient")
    rewrite(third, lambda cells: cells.cast(pa.large_string()).dictionary_encode(), "patient")
    rewrite(third, lambda cells: pa.array(range(len(cells))), "name")
    told = stream(shards, id_column="name").told("patient")
    assert told["patient"][:] == [*"aabb" * 2, None, None, *"bbaabbaabb"]
    assert told["source_id"][9:12] == ["image 9", "0", "1"]
    write_table(pa.table({name: pa.nulls(0) for name in ("image", "name", "patient")}), shards / "train-00003.parquet")
    assert len(stream(shards, id_column="name").told("patient")) == 20
    rewrite(first, lambda cells: pa.array(range(len(cells))), "patient")
    with pytest.raises(SourceError, match=r"'patient' of .*train-00002.* holds .*string.*, and no int64 as the first"):
        stream(shards).told("patient")


def test_files_may_lie_elsewhere(shards, monkeypatch):
    """By URLs, as those of the Hub."""
    whole, found = stream(shards), streamed.find_source(str(shards))
    system = fsspec.filesystem("memory")
    for file in shards.iterdir():
        system.pipe(f"/elsewhere/{file.name}", file.read_bytes())
    urls = [f"memory://elsewhere/{file.name}" for file in sorted(shards.iterdir())]
    monkeypatch.setattr(streamed, "find_source", lambda _: replace(found, parquet={"train": urls}))
    images = stream("elsewhere")
    assert torch.equal(images.get([19, 0, 8]), whole.get([19, 0, 8]))
    assert images.facts == whole.facts
    system.rm("/elsewhere", recursive=True)
    with pytest.raises(SourceError, match=r"memory://elsewhere/train-00002\.parquet, row group 1 cannot be read"):
        images.get([12])
