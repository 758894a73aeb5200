import numpy as np
import pytest
from accelerate.state import AcceleratorState
from PIL import Image

from eden_hf import EdenImageProcessor, EdenModel
from eden_hf.data.phantoms import draw_phantom
from eden_hf.encoders import load_encoder
from eden_hf.matching import Reference
from eden_hf.matching.adaptation import adapt, there_and_back
from tests.tiny import tiny_config


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tiny dense model, one without, and nine phantoms."""
    root = tmp_path_factory.mktemp("adaptation")
    for name, dim in (("dense", 8), ("plain", None)):
        EdenModel(tiny_config(dense_dim=dim)).save_pretrained(root / name)
        EdenImageProcessor(size={"height": 32, "width": 32}, intensity="per_image").save_pretrained(root / name)
    (root / "images").mkdir()
    for seed in range(9):
        Image.fromarray(draw_phantom(seed, 64).image).save(root / "images" / f"{seed}.png")
    return root


@pytest.fixture(scope="module")
def reference():
    return Reference(Image.fromarray(draw_phantom(20, 64).image), points={"a": (20.0, 30.0), "b": (44.0, 30.0)})


def test_adapting_trains_and_measures(folders, reference, tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)  # an earlier test's is of another precision
    adapted = adapt(str(folders / "dense"), [reference], str(folders / "images"), tmp_path / "run", steps=3)
    assert load_encoder(str(adapted.folder)).is_dense
    assert np.isfinite([adapted.before, adapted.after]).all()
    assert adapted.helped == (adapted.after < adapted.before)


def test_there_and_back_of_the_image_itself_is_exact(folders, reference):
    assert there_and_back(load_encoder(str(folders / "dense")), [reference], [reference.image]) < 8


def test_what_cannot_be_adapted_is_refused(folders, reference, tmp_path):
    with pytest.raises(ValueError, match="has no dense decoder to adapt"):
        adapt(str(folders / "plain"), [reference], str(folders / "images"), tmp_path / "run")
    Image.new("L", (8, 8)).save(tmp_path / "one.png")
    with pytest.raises(ValueError, match=r"at least 8 images, .* has 1"):
        adapt(str(folders / "dense"), [reference], str(tmp_path), tmp_path / "run")
