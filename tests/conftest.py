"""Tests run offline (connections are refused, but to this machine), seeded, and with one thread a process."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")  # before numpy is: scikit-learn's threads spin

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import ResNetConfig, ResNetModel

from eden_hf.encoders import Encoder

from .offline import sitecustomize  # noqa: F401 (refuses connections from here on)

SHARED_DATA = Path(__file__).parents[1].parent / "shared" / "data"


def pytest_configure(config):
    """Know the markers of transformers' mixins (tests/test_mixins.py)."""
    tests = ("accelerate_tests", "flash_attn_test", "flash_attn_3_test", "flash_attn_4_test", "torch_compile_test")
    for name in (*tests, "order"):
        config.addinivalue_line("markers", f"{name}: of transformers' mixins")


@pytest.fixture(autouse=True)
def _seeded():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images (developers and CI only)."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the real images of ../shared/data are not here")
    return SHARED_DATA


@pytest.fixture(scope="session")
def model():
    """A tiny ResNet with random weights, 20 channels out."""
    torch.manual_seed(0)
    config = ResNetConfig(layer_type="basic", hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1], embedding_size=8)
    return ResNetModel(config)


@pytest.fixture(scope="session")
def processor():
    """Stands in for an image processor: 32 x 32, three channels, roughly standardised."""

    def process(images, return_tensors):
        small = [np.asarray(image.resize((32, 32)).convert("L"), dtype=np.float32) / 64 - 2 for image in images]
        return {"pixel_values": torch.tensor(np.stack(small))[:, None].expand(-1, 3, -1, -1)}

    return process


@pytest.fixture(scope="session")
def encoder(model, processor):
    return Encoder(model, processor, "tiny")
