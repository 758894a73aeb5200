import pytest
import torch

from eden_hf import EdenImageProcessor, EdenModel
from tests.tiny import tiny_config
from tests.training.conftest import _fresh_accelerate  # noqa: F401 (adapting trains)


@pytest.fixture(scope="session")
def dense_folder(tmp_path_factory):
    """A tiny random model with a dense decoder: of one and the same image it finds every point."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("dense")
    EdenModel(tiny_config(dense_dim=16)).save_pretrained(folder)
    EdenImageProcessor(size={"height": 64, "width": 64}, intensity="per_image").save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def _sure(monkeypatch):
    """A random model is never sure of a point: what is done with points is tested as if it were."""
    monkeypatch.setattr("eden_hf.matching.matcher.CONFIDENCE", (0.0, 0.0, 3.0))
