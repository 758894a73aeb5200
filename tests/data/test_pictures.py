import numpy as np
import pytest
from PIL import Image

from eden_hf.data.errors import SourceError
from eden_hf.data.phantoms import phantom_dataset
from eden_hf.data.pictures import Pictures
from eden_hf.data.skips import SkipLog


@pytest.fixture
def folder(tmp_path):
    for name in ("a.png", "train/b.png", "test/b.png"):
        file = tmp_path / "xrays" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(file)
    return tmp_path / "xrays"


def names(pictures):
    return [name for _, name, _ in pictures.read(SkipLog(None))]


def test_a_folder_gives_all_its_images_by_their_paths(folder):
    pictures = Pictures([str(folder)])
    assert len(pictures) == 3
    assert sorted(names(pictures)) == ["a.png", "test/b.png", "train/b.png"]
    assert names(Pictures([str(folder)], split="test")) == ["test/b.png"]


def test_files_go_by_their_names(folder):
    files = [str(folder / "test" / "b.png"), str(folder / "a.png")]
    assert names(Pictures(files)) == ["b.png", "a.png"]
    with pytest.raises(SourceError, match=r"b\.png"):
        Pictures([*files, str(folder / "train" / "b.png")])


def test_data_sets_give_theirs(tmp_path):
    phantom_dataset(2, size=32).to_parquet(tmp_path / "test.parquet")
    source = str(tmp_path / "test.parquet")
    assert names(Pictures([source], id_column="image_id")) == ["phantom-0-000000", "phantom-0-000001"]
    assert names(Pictures(["phantoms:2"])) == ["0", "1"]


def test_unreadable_images_are_listed_and_the_rest_is_read(folder):
    (folder / "a.png").write_bytes(b"torn")
    skips = SkipLog(None)
    read = list(Pictures([str(folder)]).read(skips, role="targets"))
    assert len(read) == 2
    assert [(entry["source_id"], entry["role"]) for entry in skips.entries] == [("a.png", "targets")]


def test_what_is_no_image_is_refused(folder):
    with pytest.raises(SourceError, match="give image files, or one folder or data set alone; no image files: absent"):
        Pictures([str(folder / "a.png"), "absent"])
    with pytest.raises(SourceError, match="nothing at absent"):
        Pictures(["absent"])
    with pytest.raises(SourceError, match="no images are given"):
        Pictures([])
