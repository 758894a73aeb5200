import json
import pickle
import signal

import datasets
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from eden_hf.data import decoders, prepared
from eden_hf.data.errors import SourceError
from eden_hf.data.prepared import PreparedImages, prepare_images, split_holdout
from eden_hf.data.reading import ImageReadError
from eden_hf.data.skips import TooManyUnreadable, skipped_entries

from ..launching import terminated


def picture(seed, size=(40, 30), mode="L"):
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


@pytest.fixture
def folder(tmp_path):
    """Five grey PNG files of two sizes."""
    source = tmp_path / "images"
    source.mkdir()
    for index in range(5):
        picture(index, (40, 30 + 10 * (index % 2))).save(source / f"{index}.png")
    return source


def prepare(source, tmp_path, **settings):
    return prepare_images(source, **{"side": 16, "cache_dir": tmp_path / "cache", "num_proc": 0, **settings})


def test_pixels_are_the_resized_images(folder, tmp_path):
    images = prepare(folder, tmp_path)
    assert (len(images), images.side, images.channels, images.skipped) == (5, 16, 1, 0)
    assert images.ids == [f"{index}.png" for index in range(5)]
    batch = images.get([3, 0])
    assert (batch.shape, batch.dtype) == ((2, 1, 16, 16), torch.uint8)
    expected = Image.open(folder / "3.png").resize((16, 16), Image.Resampling.BILINEAR)
    assert np.array_equal(batch[0, 0], np.asarray(expected))


def test_padding_keeps_the_ratio_on_black(folder, tmp_path):
    pixels = prepare(folder, tmp_path, aspect_ratio="pad").get([0])[0, 0].numpy()
    expected = ImageOps.pad(Image.open(folder / "0.png"), (16, 16), Image.Resampling.BILINEAR)
    assert np.array_equal(pixels, np.asarray(expected))
    assert not pixels[:2].any()
    assert pixels[4:12].any()


def test_colour_has_three_channels_and_turns_grey_if_asked(tmp_path):
    colour = picture(0, mode="RGB")
    data = datasets.Dataset.from_dict({"image": [colour]}, datasets.Features({"image": datasets.Image()}))
    rgb = prepare(data, tmp_path, channels=3, side=30).get([0])[0]
    assert np.array_equal(rgb.permute(1, 2, 0), np.asarray(colour.resize((30, 30), Image.Resampling.BILINEAR)))
    grey = prepare(data, tmp_path, channels=1, side=30).get([0])[0, 0]
    assert np.array_equal(grey, np.asarray(colour.convert("L").resize((30, 30), Image.Resampling.BILINEAR)))


def test_a_second_call_decodes_nothing(folder, tmp_path, monkeypatch):
    first = prepare(folder, tmp_path)
    monkeypatch.setattr(prepared, "read_cell", lambda *_: pytest.fail("decoded again"))
    second = prepare(folder, tmp_path)
    assert torch.equal(first.get(range(5)), second.get(range(5)))
    assert first.list_hash == second.list_hash


def test_what_could_not_be_read_is_read_once_its_decoder_is_there(folder, tmp_path, monkeypatch):
    read = prepared.read_cell

    def without_decoder(cell, name):
        if name == "3.png":
            raise ImageReadError(f"{name}: no decoder is installed")
        return read(cell, name)

    monkeypatch.setattr(prepared, "read_cell", without_decoder)
    assert prepare(folder, tmp_path, max_skipped_share=0.5).skipped == 1
    monkeypatch.setattr(prepared, "read_cell", read)
    monkeypatch.setattr(decoders, "_version", lambda package: "9.9")
    assert prepare(folder, tmp_path, max_skipped_share=0.5).skipped == 0


def test_another_version_of_the_package_prepares_anew(folder, tmp_path, monkeypatch):
    first = prepare(folder, tmp_path)
    assert prepare(folder, tmp_path).folder == first.folder
    monkeypatch.setattr(decoders, "__version__", "0.0.1")
    assert prepare(folder, tmp_path).folder != first.folder


def test_a_cache_at_home(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert prepare(folder, tmp_path, cache_dir="~/kept").folder.parent == tmp_path / "kept"


def test_a_cache_that_cannot_be_written_is_named_with_the_mend(folder, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(SourceError, match=r"nothing can be kept in .*file/cache .*choose another by data.cache_dir"):
        prepare(folder, tmp_path, cache_dir=tmp_path / "file" / "cache")


def test_sigterm_while_preparing_leaves_nothing(folder, tmp_path):
    """Neither a hidden folder nor a decoding process."""
    for index in range(5, 100):
        picture(index).save(folder / f"{index}.png")
    program = (
        "import time, sys; from eden_hf.data import prepared\n"
        "read = prepared.read_cell\n"
        "prepared.read_cell = lambda *cell: time.sleep(0.2) or read(*cell)\n"
        "prepared.prepare_images(sys.argv[1], cache_dir=sys.argv[2], num_proc=2)\n"
    )
    status = terminated(
        program, folder, tmp_path / "cache", once=lambda: list((tmp_path / "cache").glob(".*/pixels.bin"))
    )
    assert status == 128 + signal.SIGTERM
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize("change", ["setting", "content"])
def test_another_setting_or_content_is_prepared_anew(change, folder, tmp_path):
    first = prepare(folder, tmp_path)
    if change == "content":
        picture(9).save(folder / "5.png")
    second = prepare(folder, tmp_path, side=16 if change == "content" else 8)
    assert second.folder != first.folder


def test_whoever_is_slower_takes_what_is_there(folder, tmp_path, monkeypatch):
    """Two processes that prepare the same at once: the second to end finds the place taken."""
    write = prepared.write_images

    def overtaken(*args, **settings):
        monkeypatch.setattr(prepared, "write_images", write)
        prepare(folder, tmp_path)
        return write(*args, **settings)

    monkeypatch.setattr(prepared, "write_images", overtaken)
    assert len(prepare(folder, tmp_path)) == 5
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_what_cannot_be_moved_into_place_is_an_error(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(prepared.Path, "rename", lambda *_: (_ for _ in ()).throw(PermissionError("read-only")))
    with pytest.raises(PermissionError, match="read-only"):
        prepare(folder, tmp_path)


def test_a_data_set_in_memory_is_taken_as_it_is_whatever_its_split(tmp_path):
    features = datasets.Features({"image": datasets.Image()})
    data = datasets.Dataset.from_dict({"image": [picture(0)]}, features, split="test")
    assert len(prepare(data, tmp_path)) == 1


def test_processes_keep_the_order(tmp_path):
    images = [picture(seed) for seed in range(70)]
    data = datasets.Dataset.from_dict({"image": images}, datasets.Features({"image": datasets.Image()}))
    alone, together = (prepare(data, tmp_path / str(n), num_proc=n) for n in (0, 2))
    assert torch.equal(alone.get(range(70)), together.get(range(70)))
    assert alone.ids == together.ids


def test_a_stream_is_prepared_too(folder, tmp_path):
    data = datasets.load_dataset("imagefolder", data_dir=str(folder), split="train", cache_dir=str(tmp_path / "hf"))
    stream = prepare(data.to_iterable_dataset(), tmp_path / "stream")
    assert torch.equal(stream.get(range(5)), prepare(folder, tmp_path).get(range(5)))


def test_unreadable_files_are_listed_and_left_out(folder, tmp_path, caplog):
    (folder / "broken.png").write_bytes(b"no image")
    images = prepare(folder, tmp_path, max_skipped_share=0.2)
    assert (len(images), images.skipped) == (5, 1)
    assert "1 images left out" in caplog.text
    (line,) = images.skipped_file.read_text().splitlines()
    assert json.loads(line)["source_id"] == "broken.png"
    assert json.loads(line)["reason"]


@pytest.mark.parametrize("num_proc", [0, 2])
def test_the_other_files_of_a_patients_disc_do_not_count(folder, report, tmp_path, caplog, num_proc):
    for index in range(70):
        picture(index).save(folder / f"IM{index}.png")
    for name in ("DICOMDIR", "report", "state.dcm"):
        (folder / name).write_bytes(report)
    images = prepare(folder, tmp_path, num_proc=num_proc)  # one in a hundred may be unreadable
    assert (len(images), images.skipped) == (75, 0)
    assert {entry["source_id"] for entry in skipped_entries(images.skipped_file) if entry["no_image"]} == {
        "DICOMDIR", "report", "state.dcm",
    }  # fmt: skip
    assert "3 files left out that hold no image, see " in caplog.text


def test_too_many_unreadable_files_stop_and_leave_the_list_of_all(folder, tmp_path):
    for index in (0, 2, 7, 8):
        (folder / f"{index}.png").write_bytes(b"no image")
    with pytest.raises(TooManyUnreadable, match=r"4 of 7 images") as stopped:
        prepare(folder, tmp_path)
    (left,) = (tmp_path / "cache").iterdir()
    assert f"All are listed in {left}" in str(stopped.value)
    assert [entry["source_id"] for entry in skipped_entries(left)] == ["0.png", "2.png", "7.png", "8.png"]
    for index in (0, 2, 7, 8):
        picture(index).save(folder / f"{index}.png")
    assert prepare(folder, tmp_path).skipped == 0


def test_an_interrupted_preparation_leaves_nothing(folder, tmp_path, monkeypatch):
    calls = iter(range(3))
    read = prepared.read_cell
    monkeypatch.setattr(prepared, "read_cell", lambda *cell: read(*cell) if next(calls) < 2 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare(folder, tmp_path)
    assert not list((tmp_path / "cache").iterdir())


def test_clear_errors(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="empty"):
        prepare(tmp_path / "empty", tmp_path)
    with pytest.raises(SourceError, match="picture"):
        prepare(datasets.Dataset.from_dict({"picture": [1]}), tmp_path)
    stream = datasets.IterableDataset.from_generator(
        lambda: iter(()), features=datasets.Features({"image": datasets.Image()})
    )
    with pytest.raises(SourceError, match="no images"):
        prepare(stream, tmp_path)


@pytest.mark.parametrize(("name", "value"), [("side", 0), ("channels", 2), ("aspect_ratio", "crop")])
def test_settings_that_do_not_exist_are_refused(name, value, folder, tmp_path):
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        prepare(folder, tmp_path, **{name: value})


def test_one_image_comes_with_its_index(folder, tmp_path):
    images = prepare(folder, tmp_path)
    index, pixels = images[3]
    assert index == 3
    assert torch.equal(pixels, images.get([3])[0])
    with pytest.raises(IndexError):
        images[5]


def test_batches_reach_loaders_with_their_indices(folder, tmp_path):
    images = pickle.loads(pickle.dumps(prepare(folder, tmp_path)))
    assert isinstance(images, PreparedImages)
    assert "_pixels" not in vars(pickle.loads(pickle.dumps(images)))
    loader = torch.utils.data.DataLoader(
        images, batch_sampler=[[4, 1], [2]], num_workers=1, collate_fn=lambda batch: batch
    )
    for (indices, pixels), expected in zip(loader, ([4, 1], [2]), strict=True):
        assert indices.tolist() == expected
        assert torch.equal(pixels, images.get(expected))


def test_holding_out_depends_on_names_and_hardly_moves():
    ids = [f"{n}.png" for n in range(200)]
    train, held = split_holdout(ids, 0.1, seed=0)
    assert (len(train), len(held)) == (180, 20)
    assert sorted([*train.tolist(), *held.tolist()]) == list(range(200))
    more = split_holdout([*ids, "new.png"], 0.1, seed=0)[1]
    assert len(set(more.tolist()) & set(held.tolist())) >= 19
    assert split_holdout(ids, 0.1, seed=1)[1].tolist() != held.tolist()
    assert len(split_holdout(ids, 0.0, seed=0)[1]) == 0
    assert len(split_holdout(ids[:4], 0.01, seed=0)[1]) == 1
    with pytest.raises(ValueError, match="too few"):
        split_holdout(ids[:1], 0.5, seed=0)


@pytest.mark.real_data
@pytest.mark.parametrize(("name", "channels"), [("cxr-pretrain", 1), ("chase", 3)])
def test_real_images(name, channels, shared_data, tmp_path):
    images = prepare(str(shared_data / name), tmp_path, split="test", id_column="image_id", channels=channels, side=64)
    assert images.skipped == 0
    assert len(images) == {"cxr-pretrain": 2079, "chase": 8}[name]
    batch = images.get(range(8)).float()
    assert (batch.std(dim=(1, 2, 3)) > 10).all()


def test_phantoms_prepared_before_are_not_drawn_again(tmp_path, monkeypatch):
    first = prepare_images("phantoms:3", side=16, cache_dir=tmp_path)
    monkeypatch.setattr("eden_hf.data.phantoms.draw_phantom", None)
    assert prepare_images("phantoms:3", side=16, cache_dir=tmp_path).folder == first.folder


def test_the_images_of_a_patient_are_held_out_together():
    patients = [f"patient {index // 3}" for index in range(60)]
    train, held = split_holdout(patients, 0.2, seed=0)
    sides = [{patients[index] for index in part.tolist()} for part in (train, held)]
    assert len(held) == 12
    assert sides[0].isdisjoint(sides[1])
    assert sorted([*train.tolist(), *held.tolist()]) == list(range(60))
    with pytest.raises(ValueError, match="1 images or patients are too few"):
        split_holdout(["one"] * 5, 0.5, seed=0)
