import pytest
import torch
from PIL import Image

from eden_hf.data.phantoms import draw_phantom
from eden_hf.evaluation.pixels import pixel_encoder
from eden_hf.matching import AnatomyMatcher, Reference, dense_maps


def test_a_node_is_the_patch_round_its_place():
    """Nodes of one and the same picture at two places, shifted by whole nodes, are the same."""
    phantom = draw_phantom(0, 160).image
    shifted = phantom.copy()
    shifted[:, 8:] = phantom[:, :-8]
    one, other = dense_maps(pixel_encoder(), [Image.fromarray(phantom), Image.fromarray(shifted)])
    assert one.vectors.shape == (64, 40, 40)
    assert torch.allclose(one.vectors.norm(dim=0), torch.ones(40, 40), atol=1e-4)
    same = (one.vectors[:, 10:30, 10:28] * other.vectors[:, 10:30, 12:30]).sum(dim=0)
    assert same.mean() > 0.99


def test_the_matcher_runs_on_pixels():
    phantom = Image.fromarray(draw_phantom(1, 160).image)
    points = {"a": (60.0, 50.0), "b": (100.0, 90.0)}
    found = AnatomyMatcher(pixel_encoder(), [Reference(phantom, points=points)]).find(phantom)
    for name, point in points.items():
        assert found[name][:2] == pytest.approx(point, abs=2)
