import torch
import torch.nn.functional as F

from eden_hf.matching.dense_maps import DenseMap
from eden_hf.matching.prototypes import make_prototypes


def test_one_sighting_of_each_point_leaves_plain_cosines():
    rows = F.normalize(torch.randn(1, 4, 6), dim=2)
    prototypes = make_prototypes(rows)
    assert torch.equal(prototypes.metric, torch.eye(6))
    assert torch.allclose(prototypes.embeddings, rows[0])
    dense = DenseMap(rows[0].mT.reshape(6, 2, 2), (8, 8))
    assert torch.allclose(prototypes.similarities(dense, 2).flatten(1).diagonal(), torch.ones(4), atol=1e-6)


def test_directions_in_which_sightings_differ_count_less():
    """The first dimension differs between patients, the second tells the points apart."""
    points = torch.tensor([[0.0, 0.4, 1.0], [0.0, -0.4, 1.0]])
    patients = torch.tensor([1.0, -1.0, 0.6, -0.6])[:, None, None] * torch.tensor([1.0, 0.0, 0.0])
    prototypes = make_prototypes(F.normalize(points + patients, dim=2))
    another = F.normalize(points + torch.tensor([1.5, 0.0, 0.0]), dim=1)
    plain = F.normalize(points, dim=1) @ another.mT
    compared = prototypes.embeddings @ F.normalize(another @ prototypes.metric, dim=1).mT
    margins = [(cosines.diagonal() - cosines.flip(1).diagonal()).min() for cosines in (plain, compared)]
    assert margins[1] > 1.5 * margins[0] > 0


def test_what_an_image_does_not_show_does_not_count():
    rows = F.normalize(torch.randn(3, 2, 5), dim=2)
    rows[1, 0] = torch.nan
    rows[2, 0] = torch.nan
    prototypes = make_prototypes(rows)
    expected = F.normalize(F.normalize(rows[0, 0], dim=0) @ prototypes.metric, dim=0)
    assert torch.allclose(prototypes.embeddings[0], expected, atol=1e-6)
    assert prototypes.metric.isfinite().all()
