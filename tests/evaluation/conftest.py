from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from eden_hf.data.landmarks import LandmarkedImage
from eden_hf.encoders import Encoder


class Places(torch.nn.Module):
    """An encoder that knows where it is, on `charts`: bumps over the plane, as the mean colours tell x and y."""

    device, dtype = torch.device("cpu"), torch.float32

    def forward(self, pixel_values):
        place = pixel_values.mean(dim=(2, 3))[:, :2, None]  # [B, 2, 1]
        bumps = torch.exp(-((place - torch.linspace(0, 1, 12)) ** 2) / 0.01)
        return SimpleNamespace(pooler_output=bumps.flatten(1))


class Collapsed(Places):
    """An encoder to which all images are nearly alike."""

    def forward(self, pixel_values):
        own = pixel_values.mean(dim=(1, 2, 3))[:, None]
        return SimpleNamespace(pooler_output=torch.cat([torch.ones(len(own), 3), 1e-4 * own], dim=1))


class Colours(Places):
    """An encoder whose embedding of a whole is exactly the mean of its parts', up to length."""

    def forward(self, pixel_values):
        return SimpleNamespace(pooler_output=pixel_values.mean(dim=(2, 3)))


class Noise(Places):
    """An encoder that has nothing to do with the image."""

    def forward(self, pixel_values):
        return SimpleNamespace(pooler_output=torch.randn(len(pixel_values), 64))


def _as_it_is(images, return_tensors):
    pixels = [np.asarray(image.resize((8, 8), Image.Resampling.BOX), dtype=np.float32) / 255 for image in images]
    return {"pixel_values": torch.tensor(np.stack(pixels)).movedim(-1, 1)}


@pytest.fixture(scope="session")
def places():
    return Encoder(Places(), _as_it_is, "places")


@pytest.fixture(scope="session")
def collapsed():
    return Encoder(Collapsed(), _as_it_is, "collapsed")


@pytest.fixture(scope="session")
def noise():
    return Encoder(Noise(), _as_it_is, "noise")


@pytest.fixture(scope="session")
def colours():
    return Encoder(Colours(), _as_it_is, "colours")


@pytest.fixture(scope="session")
def charts():
    """Six "patients": x and y as red and green, a little shifted, with landmarks on both sides and in the middle."""
    rng = np.random.default_rng(0)
    points = {
        "left_a": (0.8, 0.3),
        "right_a": (0.2, 0.3),
        "left_b": (0.75, 0.7),
        "right_b": (0.25, 0.7),
        "c": (0.5, 0.5),
    }
    images = []
    for number in range(6):
        shift = rng.uniform(-0.02, 0.02, 2)
        y, x = np.mgrid[:96, :96] / 96
        colours = np.stack([x - shift[0], y - shift[1], np.full_like(x, 0.5)], axis=-1).clip(0, 1)
        landmarks = {name: tuple((np.array(point) + shift).tolist()) for name, point in points.items()}
        images.append(LandmarkedImage(Image.fromarray((255 * colours).astype(np.uint8)), f"chart-{number}", landmarks))
    return images
