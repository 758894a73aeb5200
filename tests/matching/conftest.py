import pytest
import torch

from eden_hf import EdenImageProcessor, EdenModel
from tests.tiny import tiny_config


@pytest.fixture(scope="session")
def dense_folder(tmp_path_factory):
    """A tiny random model with a dense decoder: of one and the same image it finds every point."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("dense")
    EdenModel(tiny_config(dense_dim=16)).save_pretrained(folder)
    EdenImageProcessor(size={"height": 64, "width": 64}, intensity="per_image").save_pretrained(folder)
    return str(folder)
