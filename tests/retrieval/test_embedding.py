"""A folder in, a Parquet file of embeddings out: values, unreadable files, points, several processes."""

import json
from importlib import import_module
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import List, Value, load_dataset
from PIL import Image

from eden_hf import EdenImageProcessor, EdenModel
from eden_hf.data.errors import SourceError
from eden_hf.data.phantoms import draw_phantom
from eden_hf.data.reading import ImageReadError
from eden_hf.data.skips import TooManyUnreadable
from eden_hf.data.sources import load_source, read_cell
from eden_hf.encoders import embed, load_encoder
from eden_hf.matching import dense_maps
from eden_hf.retrieval import embed_images, embedding, embedding_rows
from tests.data.test_dicom import dicom, saved
from tests.launching import torchrun
from tests.tiny import tiny_config

SIZES = {"a.png": (40, 60), "b.png": (64, 64), "deep/c.png": (90, 30), "z.png": (50, 50)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four phantoms of different shapes, one as DICOM, and a file that is no picture."""
    path = tmp_path_factory.mktemp("images")
    (path / "deep").mkdir()
    for seed, (name, size) in enumerate(SIZES.items()):
        Image.fromarray(draw_phantom(seed, 64).image).resize(size).save(path / name)
    (path / "scan.dcm").write_bytes(saved(dicom(draw_phantom(9, 64).image)))
    (path / "torn.png").write_bytes((path / "a.png").read_bytes()[:200])
    return path


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory):
    """The folder of a tiny model with a dense decoder."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model")
    EdenModel(tiny_config(dense_dim=8)).eval().save_pretrained(path)
    processor = EdenImageProcessor(size={"height": 32, "width": 32}, intensity="per_image", aspect_ratio="pad")
    processor.save_pretrained(path)
    return str(path)


@pytest.fixture
def exact(monkeypatch):
    """Float32 throughout."""
    for module in ("retrieval.embedding", "matching.dense_maps"):
        monkeypatch.setattr(import_module(f"eden_hf.{module}"), "gains_from_bfloat16", lambda device: False)


READABLE = ["a.png", "b.png", "deep/c.png", "scan.dcm", "z.png"]


def pictures(folder):
    rows = {row["source_id"]: row["image"] for row in load_source(str(folder))}
    return [read_cell(rows[name], name) for name in READABLE]


@pytest.mark.usefixtures("exact")
def test_a_folder_is_embedded_and_what_cannot_be_read_is_named(folder, saved_model, tmp_path):
    made = embed_images(saved_model, str(folder), str(tmp_path / "new" / "e.parquet"), batch_size=2)
    assert (made.images, made.skipped) == (5, 1)
    (entry,) = [json.loads(line) for line in made.skipped_file.read_text().splitlines()]
    assert entry["source_id"] == "torn.png"
    assert "torn.png" in entry["reason"]
    assert {path.name for path in made.file.parent.iterdir()} == {"e.parquet", "e-skipped.jsonl"}
    data = load_dataset("parquet", data_files=str(made.file), split="train", cache_dir=str(tmp_path / "cache"))
    assert data.features == {"image": Value("string"), "embedding": List(Value("float32"), length=20)}
    assert data["image"][:] == READABLE
    vectors = torch.tensor(data["embedding"][:])
    torch.testing.assert_close(vectors, embed(load_encoder(saved_model), pictures(folder)), rtol=1e-5, atol=1e-5)
    about = json.loads(pq.read_schema(made.file).metadata[b"eden_hf"])
    assert about["model"] == saved_model
    assert about["weights_revision"] == load_encoder(saved_model).revision
    assert (about["dense"], about["images"], about["split"]) == (False, str(folder), "train")


def test_low_precision_hardly_moves_embeddings(folder, saved_model):
    vectors = {}
    for gains in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("eden_hf.retrieval.embedding.gains_from_bfloat16", lambda device, gains=gains: gains)
            (batch,) = embedding_rows(load_encoder(saved_model), load_source(str(folder)), unreadable=[])
        vectors[gains] = np.stack(batch["embedding"].to_numpy(zero_copy_only=False))
        assert np.linalg.norm(vectors[gains], axis=1) == pytest.approx(1, abs=1e-5)
    assert (vectors[False] * vectors[True]).sum(axis=1).min() > 0.999


@pytest.mark.usefixtures("exact")
def test_points_lie_where_the_dense_map_has_them(folder, saved_model, tmp_path):
    table = pq.read_table(embed_images(saved_model, str(folder), str(tmp_path / "e.parquet"), dense=True).file)
    assert table.column_names == ["image", "row", "column", "x", "y", "embedding"]
    for name, picture in zip(READABLE, pictures(folder), strict=True):
        rows = table.filter([value == name for value in table["image"].to_pylist()])
        (expected,) = dense_maps(load_encoder(saved_model), [picture])
        points = torch.tensor(np.stack([rows["x"].to_numpy(), rows["y"].to_numpy()], axis=1))
        vectors = torch.tensor(np.stack(rows["embedding"].to_numpy()))
        nodes = torch.tensor(np.stack([rows["column"].to_numpy(), rows["row"].to_numpy()], axis=1))
        torch.testing.assert_close(expected.places(points), (nodes + 0.5) / 8)
        torch.testing.assert_close(vectors, expected.at(expected.places(points)), rtol=1e-4, atol=1e-4)
        width, height = picture.size  # nodes in the padding are left out, all others are there
        assert len(points) == 8 * round(8 * min(width, height) / max(width, height) / 2) * 2
        assert ((points >= -0.5) & (points <= torch.tensor([width, height]) - 0.5)).all()


@pytest.mark.usefixtures("exact")
def test_workers_and_row_groups_change_nothing(folder, saved_model, tmp_path, monkeypatch):
    plain = pq.read_table(embed_images(saved_model, str(folder), str(tmp_path / "plain.parquet"), batch_size=2).file)
    monkeypatch.setattr("eden_hf.retrieval.embedding._ROW_GROUP_BYTES", 1)
    made = embed_images(saved_model, str(folder), str(tmp_path / "parts.parquet"), batch_size=2, num_workers=2)
    assert pq.ParquetFile(made.file).num_row_groups == 3
    assert pq.read_table(made.file).equals(plain)
    assert made.skipped == 1


def test_nothing_is_written_where_too_much_is_unreadable(folder, saved_model, tmp_path):
    output = tmp_path / "e.parquet"
    with pytest.raises(TooManyUnreadable, match=r"1 of 6 images.*torn\.png"):
        embed_images(saved_model, str(folder), str(output), max_skipped_share=0.1)
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "a.png").write_bytes(b"no picture")
    with pytest.raises(TooManyUnreadable, match="1 of 1 images"):
        embed_images(saved_model, str(tmp_path / "torn"), str(output))
    assert not list(tmp_path.glob("*.parquet"))
    assert embed_images(saved_model, str(folder), str(output)).images == 5  # another source: it starts over
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(ImageReadError, match=r"torn\.png"):
        list(embedding_rows(load_encoder(saved_model), load_source(str(folder))))


@pytest.mark.usefixtures("exact")
def test_a_call_that_was_stopped_goes_on(folder, saved_model, tmp_path, monkeypatch, caplog):
    """Where it is to make the same: what another model made is not kept. What cannot be read is listed as ever."""
    monkeypatch.setattr(embedding, "_PIECE", 2)
    plain, output = (str(tmp_path / name) for name in ("plain.parquet", "e.parquet"))
    expected = pq.read_table(embed_images(saved_model, str(folder), plain).file)
    made, rows = [], embedding.embedding_rows

    def stopped(encoder, images, **options):
        made.append(images["source_id"][:])
        if len(made) == 3:
            raise KeyboardInterrupt
        yield from rows(encoder, images, **options)

    def stop():
        made.clear()
        monkeypatch.setattr(embedding, "embedding_rows", stopped)
        with pytest.raises(KeyboardInterrupt):
            embed_images(saved_model, str(folder), output)
        monkeypatch.setattr(embedding, "embedding_rows", rows)

    stop()
    assert not Path(output).exists()
    made.append("one more")  # nobody is stopped any more
    monkeypatch.setattr(embedding, "embedding_rows", stopped)
    found = embed_images(saved_model, str(folder), output)
    assert made[4:] == [["torn.png", "z.png"]]
    assert "4 of 6 images were embedded by an earlier call" in caplog.text
    assert pq.read_table(output).equals(expected)
    assert (found.images, found.skipped) == (5, 1)
    assert [entry["source_id"] for entry in map(json.loads, found.skipped_file.open())] == ["torn.png"]
    stop()
    embed_images(saved_model, str(folder), output, size=64)
    assert "an earlier call that was stopped had other size, processor: starting over" in caplog.text
    assert not pq.read_table(output).equals(expected)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(("options", "message"), [
    ({"batch_size": 0}, "--batch-size must be at least 1, got 0"),
    ({"num_workers": -1}, "--num-workers must be at least 0, .* got -1"),
    ({"max_skipped_share": 2.0}, r"max_skipped_share is a share of the images in \[0, 1\], got 2.0"),
    ({"output": "{tmp}"}, "must be a file, and .* is a folder: name one in it"),
    ({"output": "{folder}/deep/e.parquet"}, "deep/e.parquet lies in .*, which would be another source then"),
])  # fmt: skip
def test_what_would_fail_after_the_work_is_refused_before_it(options, message, folder, saved_model, tmp_path):
    given = {"output": "{tmp}/e.parquet", **options}
    given["output"] = given["output"].format(tmp=tmp_path, folder=folder)
    with pytest.raises(ValueError, match=message):
        embed_images(saved_model, str(folder), **given)
    assert not list(tmp_path.iterdir())


def test_a_source_is_not_written_over(folder, saved_model, tmp_path):
    made = embed_images(saved_model, str(folder), str(tmp_path / "e.parquet")).file
    with pytest.raises(SourceError, match=r"e\.parquet lies in .*e\.parquet, which would be another source then"):
        embed_images(saved_model, str(made), str(made))


def test_points_need_a_dense_decoder(folder, encoder):
    with pytest.raises(SourceError, match="tiny has no embeddings of points"):
        next(embedding_rows(encoder, load_source(str(folder)), dense=True))


@pytest.mark.slow
def test_two_processes_write_what_one_writes(folder, saved_model, tmp_path):
    alone = pq.read_table(embed_images(saved_model, str(folder), str(tmp_path / "alone.parquet"), dense=True).file)
    options = ["--model", saved_model, "--images", str(folder), "--output", str(tmp_path / "two.parquet"), "--dense"]
    finished = torchrun(2, "scripts/embed.py", *options)
    assert finished.stdout.count("two.parquet: 5 images, 1 could not be read") == 1
    assert finished.stderr.count("skipped torn.png") == 1
    two = pq.read_table(tmp_path / "two.parquet")
    assert two.schema.metadata[b"eden_hf"] == alone.schema.metadata[b"eden_hf"]
    for name in ("image", "row", "column", "x", "y"):
        assert two[name].equals(alone[name])
    vectors, expected = (np.stack(table["embedding"].to_numpy()) for table in (two, alone))
    assert (vectors * expected).sum(axis=1).min() > 0.999
    assert {path.name for path in tmp_path.iterdir()} >= {"two.parquet", "two-skipped.jsonl"}
    assert not list(tmp_path.glob(".*"))
