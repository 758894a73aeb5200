from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from eden_hf.data.landmarks import landmark_pixels, load_landmarked
from eden_hf.data.phantoms import draw_phantom
from eden_hf.evaluation.registration import Registered, register


def test_a_known_affine_map_is_found():
    """Of a picture and the same scaled, shifted and of another exposure and size."""
    phantom = Image.fromarray(draw_phantom(2, 256).image)
    scale, shift = 1.12, np.array([-14.0, 9.0])
    centre = 128 - shift
    inverse = (1 / scale, 0, centre[0] - 128 / scale, 0, 1 / scale, centre[1] - 128 / scale)
    moved = phantom.transform((256, 256), Image.Transform.AFFINE, inverse, Image.Resampling.BILINEAR)
    moved = moved.point([int(255 * (value / 255) ** 1.5) for value in range(256)]).resize((512, 512))
    points = torch.tensor([[80.0, 90.0], [128.0, 128.0], [170.0, 150.0]])
    true = 2 * (((points + 0.5) - torch.tensor(centre)) * scale + 128) - 0.5
    found = register(Registered(phantom), Registered(moved), points)
    assert (found - true).norm(dim=1).max() < 5  # of 512


@pytest.mark.real_data
def test_as_good_as_on_all_pairs(shared_data):
    """The first pairs of 120 on which it errs by 12.3 mm."""
    images = sorted(
        load_landmarked(shared_data / "scr", "train", id_column="image_id"), key=lambda item: item.source_id
    )
    names = list(images[0].landmarks)
    errors = []
    for one, other in pairwise(images[:7]):
        found = register(Registered(one.image), Registered(other.image), landmark_pixels(one, names))
        errors.append((found - landmark_pixels(other, names)).norm(dim=1).mean() * 0.7)
    assert np.mean(errors) < 15
