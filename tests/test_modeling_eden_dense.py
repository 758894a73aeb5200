"""The dense decoder, its loss against a naive one, smooth maps, and the dense step of pretraining."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from eden_hf import EdenForImageClassification, EdenForPreTraining, EdenForSemanticSegmentation, EdenModel
from eden_hf.data.point_views import make_point_views, plain_views
from eden_hf.data.view_arguments import PointArguments
from eden_hf.modeling_eden_dense import (
    SmoothMap,
    expected_places,
    fit_smooth_map,
    match_smoothly,
    node_places,
    point_contrast,
    sample_embeddings,
    smooth_support,
)
from tests.tiny import tiny_config


@pytest.mark.parametrize("backbone", ["resnet", "bottleneck", "convnextv2", "swin", "dinov2"])
@pytest.mark.parametrize("size", [(32, 32), (62, 45)])
def test_dense_embeddings_are_unit_vectors_at_a_quarter_of_the_side(backbone, size):
    model = EdenModel(tiny_config(backbone, dense_dim=6)).eval()
    if backbone in ("swin", "dinov2"):
        size = (32, 48)  # token trunks take sizes that their patches divide
    outputs = model(torch.rand(2, 3, *size))
    height, width = (math.ceil(side / 4) for side in size)
    assert outputs.dense_embeddings.shape == (2, 6, height, width)
    assert torch.allclose(outputs.dense_embeddings.norm(dim=1), torch.ones(2, height, width), atol=1e-5)
    assert outputs.pooler_output.shape == (2, model.num_features)


def test_a_caller_can_spare_the_decoder():
    model = EdenModel(tiny_config(dense_dim=6)).eval()
    pixels = torch.rand(1, 3, 32, 32)
    spared = model(pixels, output_dense_embeddings=False)
    assert spared.dense_embeddings is None
    assert torch.equal(spared.pooler_output, model(pixels).pooler_output)
    assert EdenModel(tiny_config()).eval()(pixels).dense_embeddings is None


def test_a_trunk_without_maps_is_refused():
    with pytest.raises(ValueError, match=r"`dense_dim` needs a trunk with feature maps, .* 'vit'"):
        EdenModel(tiny_config("vit", dense_dim=6))


def test_round_trip_and_heads(tmp_path):
    model = EdenModel(tiny_config(dense_dim=6)).eval()
    model.save_pretrained(tmp_path)
    pixels = torch.rand(1, 3, 32, 32)
    assert_close(EdenModel.from_pretrained(tmp_path)(pixels).dense_embeddings, model(pixels).dense_embeddings)
    for kind in (EdenForImageClassification, EdenForSemanticSegmentation):
        head, loaded = kind.from_pretrained(tmp_path, num_labels=2, output_loading_info=True)
        assert head.eden.dense_decoder is None
        assert not loaded["unexpected_keys"]
        assert not [key for key in loaded["missing_keys"] if key.startswith("eden.")]


def test_the_loss_equals_a_naive_loop():
    torch.manual_seed(1)
    embeddings, candidates = F.normalize(torch.randn(2, 5, 4), dim=2), F.normalize(torch.randn(2, 4, 3, 3), dim=1)
    places, nodes = torch.rand(2, 5, 2), torch.rand(2, 9, 2)
    places[0, 0] = torch.nan
    places[1, 1] = 7.0  # beyond all nodes
    tolerance, temperature, losses = 0.4, 0.1, []
    for image in range(2):
        for point in range(5):
            distances = (nodes[image] - places[image, point]).norm(dim=1)
            if not distances.min() < tolerance:
                continue
            target = torch.exp(-(distances**2) / (2 * tolerance**2))
            logits = candidates[image].flatten(1).T @ embeddings[image, point] / temperature
            losses.append(-(target / target.sum() * F.log_softmax(logits, dim=0)).sum())
    loss, error = point_contrast(embeddings, places, candidates, nodes, temperature, tolerance)
    assert len(losses) == 8
    assert loss.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)
    assert 0 < error < 1.5


def test_nothing_to_look_for_gives_zero_and_not_nan():
    embeddings = F.normalize(torch.randn(1, 3, 4), dim=2).requires_grad_()
    candidates = F.normalize(torch.randn(1, 4, 2, 2), dim=1)
    loss, error = point_contrast(
        embeddings, torch.full((1, 3, 2), torch.nan), candidates, torch.rand(1, 4, 2), 0.1, 0.1
    )
    loss.backward()
    assert loss == error == 0
    assert embeddings.grad.isfinite().all()


def test_sampling_at_the_nodes_gives_the_nodes():
    dense = F.normalize(torch.randn(1, 5, 3, 4), dim=1)
    sampled = sample_embeddings(dense, 2 * node_places(3, 4)[None] - 1)
    assert torch.allclose(sampled, dense.flatten(2).mT, atol=1e-5)


def affine(places):
    return places @ torch.tensor([[0.9, 0.05], [-0.04, 1.05]]) + torch.tensor([0.03, -0.02])


def test_a_smooth_map_is_found_through_outliers():
    places = torch.rand(1, 300, 2)
    targets = affine(places)
    targets[:, ::5] = torch.rand(1, 60, 2)
    smooth_map, trusted = fit_smooth_map(places, targets, torch.ones(1, 300), stiffness=1.0)
    inner = 0.1 + 0.8 * torch.rand(1, 100, 2)
    assert (smooth_map(inner) - affine(inner)).norm(dim=2).max() < 0.02
    assert trusted[:, ::5].median() < 0.1 < trusted[:, 1::5].median()


def position_code(places, dim=64):
    """Unit vectors that are alike where places are near."""
    torch.manual_seed(0)
    frequencies = torch.randn(2, dim // 2) * 8
    phases = places @ frequencies
    return F.normalize(torch.cat([phases.sin(), phases.cos()], dim=-1), dim=-1)


def test_matches_of_a_deformed_image_give_its_deformation():
    nodes = node_places(24, 24)
    dense = position_code(nodes).T.reshape(1, -1, 24, 24)
    other = position_code(affine(nodes)).T.reshape(
        1, -1, 24, 24
    )  # its node at x shows what the first has at affine(x)
    for step in (1, 2):
        smooth_map, trusted = match_smoothly(other, dense, step=step)
        support = smooth_support(other, trusted, step=step)
        inner = 0.2 + 0.6 * torch.rand(1, 50, 2)
        assert (smooth_map(inner) - affine(inner)).norm(dim=2).mean() < 0.012
        assert support.shape == (1, 1, 24, 24)
        assert support[..., 8:16, 8:16].min() > 0.3


def test_the_identity_is_a_smooth_map():
    smooth_map = SmoothMap(torch.zeros(1, 3 + 25, 2), 5)
    places = torch.rand(1, 7, 2)
    assert torch.equal(smooth_map(places), places)


def test_expected_places_are_sharper_than_the_grid():
    nodes = node_places(16, 16)
    dense = position_code(nodes).T.reshape(1, -1, 16, 16)
    true = 0.3 + 0.4 * torch.rand(1, 20, 2)
    found = expected_places(position_code(true), dense, true + 0.03, temperature=0.05, spread=0.1)
    assert (found - true).norm(dim=2).mean() < 0.4 / 16


@pytest.fixture
def step():
    """A tiny pretraining model, and the inputs of a dense step on noise."""
    images = torch.randint(0, 255, (3, 1, 48, 48), dtype=torch.uint8)
    query, key, points = make_point_views(images, torch.arange(3), PointArguments(size=32, count=6), seed=0, epoch=0)
    inputs = {"query_pixel_values": query, "key_pixel_values": key, "points": points}
    return EdenForPreTraining(tiny_config(dense_dim=6)), inputs, plain_views(images, 32)


def test_the_dense_step_moves_the_teacher_and_not_the_bank(step):
    model, inputs, _ = step
    bank, teacher = model.memory_bank.clone(), model.teacher.eden.dense_decoder.embedding[1].weight.clone()
    with torch.no_grad():
        model.eden.dense_decoder.embedding[1].weight += 1
    output = model.train()(**inputs)
    output.loss.backward()
    assert output.partner_error is None
    assert torch.equal(model.memory_bank, bank)
    assert not torch.equal(model.teacher.eden.dense_decoder.embedding[1].weight, teacher)
    assert model.eden.dense_decoder.embedding[1].weight.grad.abs().sum() > 0
    assert model.projector.dense.weight.grad is None


def test_evaluation_of_the_dense_step_moves_nothing(step):
    model, inputs, partners = step
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.eval()(**inputs, partner_pixel_values=partners)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_partner_that_is_the_image_itself_gives_its_own_places(step):
    """The next of the batch is a copy: the teacher finds every point where it is."""
    model, inputs, partners = step
    same = partners[:1].expand(3, -1, -1, -1)
    places = inputs["points"].query_places
    found = model.eval()._places_in_partners(same, places)
    known = found.isfinite().all(dim=2)
    assert known.float().mean() > 0.5
    assert (found - places)[known].norm(dim=1).median() < 0.05


def test_points_without_a_decoder_are_refused(step):
    _, inputs, _ = step
    with pytest.raises(ValueError, match="set `dense_dim`"):
        EdenForPreTraining(tiny_config())(**inputs)
