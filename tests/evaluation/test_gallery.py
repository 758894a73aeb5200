import json

import pytest
from PIL import Image

from eden_hf import EdenImageProcessor, EdenModel
from eden_hf.evaluation.gallery import draw_gallery

from ..tiny import tiny_config


@pytest.fixture
def model_folder(tmp_path):
    """A run's folder with a tiny model and three lines of metrics."""
    folder = tmp_path / "run" / "last"
    EdenModel(tiny_config()).save_pretrained(folder)
    EdenImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    lines = [{"step": n, "stage": 0, "epoch": 0, "level": 0, "loss": 5.0 - n, "pruned_share": 0.1} for n in range(3)]
    (folder.parent / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_the_gallery_of_a_run(model_folder, tmp_path):
    files = draw_gallery(
        str(model_folder), "phantoms:3", str(tmp_path / "out"), images=3, side=64, level=2, id_column="image_id"
    )
    assert [file.name for file in files] == [
        "levels.png", "tsne.png", "correspondence.png", "neighbours.png", "history.png",
    ]  # fmt: skip
    for file in files:
        with Image.open(file) as picture:
            assert min(picture.size) > 200
            assert len(set(picture.convert("L").resize((50, 50)).tobytes())) > 5  # something is drawn


def test_a_model_without_a_run_has_no_curves(model_folder, tmp_path):
    (model_folder.parent / "metrics.jsonl").unlink()
    files = draw_gallery(str(model_folder), "phantoms:3", str(tmp_path / "out"), images=3, side=64, level=2)
    assert "history.png" not in {file.name for file in files}


def test_asking_for_more_images_than_there_are_names_both_numbers(model_folder, tmp_path):
    with pytest.raises(ValueError, match=r"3 images.*4"):
        draw_gallery(str(model_folder), "phantoms:3", str(tmp_path / "out"), images=4)


def test_a_dense_model_shows_the_matcher(model_folder, tmp_path):
    EdenModel(tiny_config(dense_dim=8)).save_pretrained(model_folder)
    picture = tmp_path / "out" / "correspondence.png"
    draw_gallery(str(model_folder), "phantoms:3", str(tmp_path / "out"), images=3, side=64, level=2)
    with Image.open(picture) as drawn:
        assert drawn.height > 0.8 * drawn.width  # similarity maps below
