"""`eden masks`: files in, files out."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from eden_hf import EdenImageProcessor, EdenModel, cli
from eden_hf.data.errors import SourceError
from eden_hf.data.phantoms import draw_phantom
from eden_hf.data.skips import TooManyUnreadable, skipped_entries
from eden_hf.encoders import load_encoder
from eden_hf.matching import Reference
from eden_hf.matching.masks import contact_sheet, tile, write_masks
from tests.tiny import tiny_config

NAMES = ("heart", "left_lung")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a tiny dense model."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    EdenModel(tiny_config(dense_dim=16)).save_pretrained(folder)
    EdenImageProcessor(size={"height": 64, "width": 64}, intensity="per_image").save_pretrained(folder)
    return folder


@pytest.fixture
def references():
    phantom = draw_phantom(1, 96)
    return [Reference(Image.fromarray(phantom.image), "a", masks={name: phantom.masks[name] for name in NAMES})]


@pytest.fixture
def images(tmp_path):
    """Two images, one of them below, one that cannot be read, and one DICOM."""
    folder = tmp_path / "images"
    (folder / "test").mkdir(parents=True)
    Image.fromarray(draw_phantom(2, 96).image).save(folder / "a.png")
    Image.fromarray(draw_phantom(3, 96).image).resize((120, 80)).save(folder / "test" / "b.v1.png")
    (folder / "torn.png").write_bytes(b"\x89PNG\r\n")
    return folder


def add_dicom(folder):
    """A radiograph in DICOM, with which its masks are filed."""
    dicom_files = pytest.importorskip("tests.data.test_dicom")
    from tests.data.test_dicom_seg import RADIOGRAPH

    pixels = draw_phantom(4, 96).image.astype(np.uint16) * 16
    (folder / "c.dcm").write_bytes(dicom_files.saved(dicom_files.dicom(pixels, BitsStored=12, **RADIOGRAPH)))


@pytest.mark.parametrize("method", ["classifier", "carry"])
def test_each_structure_of_each_image_has_a_file(method, model, references, images, tmp_path):
    written = write_masks(load_encoder(str(model)), references, [str(images)], tmp_path / "out", method=method)
    assert written.images == ["a.png", "test/b.v1.png"]
    assert (written.names, written.skipped) == (list(NAMES), 1)
    assert [entry["source_id"] for entry in skipped_entries(tmp_path / "out" / "skipped.jsonl")] == ["torn.png"]
    for name in NAMES:
        for image, size in (("a.png", (96, 96)), ("test/b.v1.png", (120, 80))):
            mask = Image.open(tmp_path / "out" / name / image)
            assert (mask.mode, mask.size) == ("L", size)
            assert set(np.unique(mask)) <= {0, 255}
    assert np.asarray(Image.open(tmp_path / "out" / "left_lung" / "a.png")).any()
    assert Image.open(tmp_path / "out" / "contact_sheet.png").width == 2 * tile(references[0].image, {}, "").width


def test_dicom_gets_a_segmentation_equal_to_the_png(model, references, images, tmp_path):
    pydicom = pytest.importorskip("pydicom")
    pytest.importorskip("highdicom")
    add_dicom(images)
    write_masks(load_encoder(str(model)), references, [str(images)], tmp_path / "out", method="carry", dicom_seg=True)
    (file,) = (tmp_path / "out" / "dicom-seg").rglob("*.dcm")
    assert file.name == "c.dcm"
    seg = pydicom.dcmread(file)
    source = pydicom.dcmread(images / "c.dcm")
    assert (seg.Rows, seg.Columns) == (source.Rows, source.Columns)
    for segment, frame in zip(seg.SegmentSequence, seg.pixel_array, strict=True):
        png = np.asarray(Image.open(tmp_path / "out" / segment.SegmentLabel / "c.png"))
        np.testing.assert_array_equal(frame * 255, png)
        assert model.name in str(segment.SegmentationAlgorithmIdentificationSequence[0].AlgorithmParameters)
        assert str(model.parent) not in str(seg)  # no folders of this machine


def test_what_cannot_be_done_is_refused_before_anything_is_written(model, references, images, tmp_path):
    encoder, output = load_encoder(str(model)), tmp_path / "out"
    with pytest.raises(SourceError, match=r"none of the 3 images of .* is a DICOM file"):
        write_masks(encoder, references, [str(images)], output, dicom_seg=True)
    with pytest.raises(SourceError, match="none of the 1 references has a mask"):
        write_masks(encoder, [Reference(references[0].image, points={"a": (1, 1)})], [str(images)], output)
    wrong = Reference(references[0].image, masks={"../heart": references[0].masks["heart"]})
    with pytest.raises(SourceError, match=r"\['\.\./heart'\]; call them otherwise"):
        write_masks(encoder, [wrong], [str(images)], output)
    Image.fromarray(draw_phantom(2, 96).image).save(images / "a.jpg")
    with pytest.raises(SourceError, match=r"a\.jpg and a\.png would be the same files"):
        write_masks(encoder, references, [str(images)], output)
    assert not output.exists()


def test_images_that_all_cannot_be_read_end_it(model, references, images, tmp_path):
    with pytest.raises(TooManyUnreadable, match=r"torn\.png"):
        write_masks(load_encoder(str(model)), references, [str(images / "torn.png")], tmp_path / "out", method="carry")


def test_the_sheet_shows_outlines_in_the_colours_of_its_legend():
    mask = np.zeros((64, 64), bool)
    mask[16:48, 16:48] = True
    made = tile(Image.new("L", (64, 64)), {"a": mask, "b": ~mask}, "name")
    middle = {made.getpixel((x, made.width // 2)) for x in range(made.width)}
    assert middle == {(255, 255, 255), (0, 0, 0), (0x56, 0xB4, 0xE9), (0xE6, 0x9F, 0x00)}
    sheet = contact_sheet([Image.new("RGB", (40, 50))] * 7, ["a", "b"])
    assert sheet.size == (200, 2 * 50 + 2 * 14 + 6)


def test_the_command(model, images, tmp_path, monkeypatch, capsys):
    phantom = draw_phantom(1, 96)
    refs = tmp_path / "refs"
    for name in NAMES:
        (refs / "masks" / name).mkdir(parents=True)
        Image.fromarray(phantom.masks[name]).save(refs / "masks" / name / "first.png")
    Image.fromarray(phantom.image).save(refs / "first.png")
    options = f"--model {model} --references {refs} --images {images} --output {tmp_path / 'out'} --method carry"
    monkeypatch.setattr(sys, "argv", ["eden", "masks", *options.split()])
    with pytest.raises(SystemExit, match=r"^1$"):  # one image is torn
        cli.main()
    told = capsys.readouterr()
    assert told.out == f"heart, left_lung of 2 images: {tmp_path / 'out'}\n"
    assert told.err.endswith("images that cannot be read, see skipped.jsonl there: 1\n")
    with pytest.raises(SystemExit, match=r"^2$"):
        cli.masks([*options.split(), "--dicom-seg"])
    assert "eden masks: none of the 3 images" in capsys.readouterr().err
