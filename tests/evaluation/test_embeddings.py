import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import ViTConfig, ViTModel

from eden_hf.data.phantoms import phantom_dataset
from eden_hf.encoders import Encoder, embed, nearest_neighbours, pooled
from eden_hf.evaluation.embeddings import part_embeddings, tsne


@pytest.fixture(scope="module")
def images():
    return phantom_dataset(5, size=64)["image"][:]


def test_embeddings_are_unit_rows_whatever_the_batch_size(encoder, images):
    encoder.model.train()  # as in the middle of training: BatchNorm must not mix the images of a batch
    together = embed(encoder, images, batch_size=5)
    apart = embed(encoder, iter(images), batch_size=2)
    assert together.shape == (5, 20)
    assert torch.allclose(together.norm(dim=1), torch.ones(5))
    assert torch.allclose(together, apart, atol=1e-5)
    assert not encoder.model.training


def test_a_probe_can_be_trained_on_embeddings(encoder, images):
    probe = torch.nn.Linear(20, 2)
    probe(embed(encoder, images)).sum().backward()
    assert probe.weight.grad.abs().sum() > 0


def test_half_precision_models_get_and_give_what_they_should(processor, images):
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, image_size=32, patch_size=8
    )
    vit = ViTModel(config, add_pooling_layer=False).bfloat16()
    embeddings = embed(Encoder(vit, processor), images)
    assert embeddings.dtype == torch.float32
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(5))
    # without a pooler the tokens of patches are averaged, and that of the class is left out
    with torch.no_grad():
        pixel_values = processor(images, "pt")["pixel_values"].bfloat16()
        tokens = vit(pixel_values).last_hidden_state[:, 1:].mean(dim=1).float()
    assert torch.cosine_similarity(embeddings, tokens).min() > 0.9999


@pytest.mark.parametrize("shape", [(2, 4), (2, 4, 1, 1)])
def test_pooled_takes_both_shapes_of_pooler_output(shape):
    assert pooled(SimpleNamespace(pooler_output=torch.zeros(shape)), torch.zeros(2, 3, 32, 32), None).shape == (2, 4)


def test_pooled_falls_back_to_feature_maps_and_refuses_other_outputs():
    features = torch.randn(2, 4, 3, 3)
    output = SimpleNamespace(pooler_output=None, last_hidden_state=features)
    assert torch.allclose(pooled(output, torch.zeros(2, 3, 32, 32), None), features.mean(dim=(2, 3)))
    with pytest.raises(ValueError, match="SimpleNamespace has neither"):
        pooled(SimpleNamespace(logits=features), torch.zeros(2, 3, 32, 32), None)


def test_parts_are_embedded_row_by_row(encoder, images):
    parts = part_embeddings(encoder, images, level=3, batch_size=7)
    assert parts.shape == (5, 8, 20)
    # level 3 of 64 x 64 is 2 rows of 4: part 6 starts at x = 32, y = 32
    corner = embed(encoder, [images[2].crop((32, 32, 48, 64))])
    assert torch.allclose(parts[2, 6], corner[0], atol=1e-5)
    assert torch.allclose(part_embeddings(encoder, images, level=0)[:, 0], embed(encoder, images), atol=1e-5)


def test_no_images_is_an_error(encoder):
    with pytest.raises(ValueError, match="no images"):
        part_embeddings(encoder, [], level=2)


def test_an_identical_crop_is_its_own_first_neighbour(encoder, images):
    parts = part_embeddings(encoder, images, level=4).flatten(0, 1)
    similarities, indices = nearest_neighbours(parts[[3, 40]], parts, k=4)
    assert indices[:, 0].tolist() == [3, 40]
    assert torch.allclose(similarities[:, 0], torch.ones(2), atol=1e-5)
    assert (similarities.diff(dim=1) <= 0).all()


def test_neighbours_are_ranked_by_cosine_not_by_length():
    gallery = torch.tensor([[10.0, 9.0], [0.1, 0.0], [0.0, 5.0]])
    similarities, indices = nearest_neighbours(torch.tensor([[2.0, 0.0]]), gallery, k=3)
    assert indices.tolist() == [[1, 0, 2]]
    assert similarities[0].tolist() == pytest.approx([1, 10 / 181**0.5, 0], abs=1e-6)


@pytest.mark.parametrize("k", [0, 4])
def test_neighbours_refuse_impossible_counts(k):
    with pytest.raises(ValueError, match=f"3 rows of the gallery, got k={k}"):
        nearest_neighbours(torch.eye(3), torch.eye(3), k=k)


def test_tsne_keeps_planted_groups_apart_and_repeats():
    generator = torch.Generator().manual_seed(0)
    groups = torch.eye(8)[[0, 1, 2]].repeat_interleave(12, dim=0) + 0.01 * torch.randn(36, 8, generator=generator)
    points = tsne(groups, seed=1)
    assert points.shape == (36, 2)
    assert np.array_equal(points, tsne(groups, seed=1))
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (distances.argmin(axis=1) // 12 == np.arange(36) // 12).all()


def test_tsne_of_a_handful_and_of_too_few():
    assert tsne(torch.eye(4)).shape == (4, 2)
    with pytest.raises(ValueError, match="at least 3 embeddings, got 2"):
        tsne(torch.eye(2))


@pytest.mark.parametrize(
    ("missing", "use", "extra"),
    [
        ("sklearn", "from eden_hf.evaluation.embeddings import tsne", "'eden_hf[evaluation]'"),
        ("matplotlib", "import eden_hf.plots", "eden_hf[plots]"),
    ],
)
def test_a_missing_extra_is_named(missing, use, extra):
    blocked = "".join(
        f"sys.modules[{name!r}] = None; " for name in (missing, f"{missing}.manifold", f"{missing}.axes")
    )
    result = subprocess.run([sys.executable, "-c", f"import sys; {blocked}{use}"], capture_output=True, text=True)
    assert result.returncode == 1
    assert "ImportError" in result.stderr
    assert f"pip install {extra}" in result.stderr
