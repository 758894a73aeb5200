import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_model

from eden_hf import EdenForPreTraining, EdenImageProcessor, EdenModel, EdenV2ForPreTraining
from eden_hf.data.phantoms import draw_phantom
from eden_hf.encoders import Encoder
from eden_hf.evaluation.pruner_audit import audit_pruner, pruner_scores, queries_and_keys
from eden_hf.evaluation.results import Results
from eden_hf.model_names import weights_revision
from tests.tiny import tiny_config, tiny_v2_config


def test_parts_that_are_known_are_pruned_and_nothing_else():
    parts = torch.eye(4).expand(3, 4, 4)
    scores = pruner_scores(parts, parts, [0.5, 1.1])
    assert (scores["precision"][:, 0] == 1).all()
    assert (scores["recall"][:, 0] == 1).all()
    assert (scores["pruned share"][:, 0] == 1 / 4).all()
    assert np.isnan(scores["precision"][:, 1]).all()
    assert (scores["recall"][:, 1] == 0).all()


def test_a_collapsed_encoder_prunes_all_at_the_base_rate():
    same = F.normalize(torch.ones(3, 8, 4), dim=2)
    scores = pruner_scores(same, same, [0.8])
    assert scores["precision"].mean() == pytest.approx(1 / 8)
    assert (scores["recall"] == 1).all()
    assert (scores["pruned share"] == 1).all()


def test_scores_are_those_of_a_plain_loop():
    torch.manual_seed(0)
    queries, keys = (F.normalize(torch.randn(3, 4, 3), dim=2) for _ in range(2))
    pruned = hit = 0
    for part in range(4):
        for q in (1, 2):
            for k in range(4):
                above = float(queries[0, part] @ keys[q, k]) >= 0.3
                pruned, hit = pruned + above, hit + (above and k == part)
    scores = pruner_scores(queries, keys, [0.3])
    assert scores["precision"][0, 0] == pytest.approx(hit / pruned)
    assert scores["recall"][0, 0] == pytest.approx(hit / 8)
    assert scores["pruned share"][0, 0] == pytest.approx(pruned / 32)


def test_images_of_one_patient_are_no_negatives():
    """Copies of each patient's parts change nothing but how many images there are."""
    torch.manual_seed(0)
    queries, keys = (F.normalize(torch.randn(3, 4, 3), dim=2) for _ in range(2))
    alone = pruner_scores(queries, keys, [0.3])
    copies = pruner_scores(
        queries.repeat_interleave(2, dim=0), keys.repeat_interleave(2, dim=0), [0.3], list("aabbcc")
    )
    for name, values in alone.items():
        assert np.allclose(copies[name], values.repeat(2, axis=0)), name
    with pytest.raises(ValueError, match="all 3 images are of one"):
        pruner_scores(queries, keys, [0.3], list("aaa"))


def test_a_model_is_audited_with_its_own_processor(tmp_path):
    torch.manual_seed(0)
    EdenForPreTraining(tiny_config()).save_pretrained(tmp_path / "run" / "last")
    EdenImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "run" / "last")
    page = audit_pruner(
        str(tmp_path / "run"), "phantoms:3", str(tmp_path / "out"), images=3, level=2, gammas=[0.0, 0.9]
    )
    text = page.read_text()
    assert "25.0%" in text
    assert "recall, gamma 0.9" in text
    assert (page.parent / "figure.png").stat().st_size > 5000
    assert Results.load(page.parent / "last" / "results.json").settings["level"] == 2


def test_every_saved_step_is_audited_with_its_own_weights(tmp_path):
    run, models = tmp_path / "run", []
    for seed, where in ((0, "early"), (1, "run/last")):
        torch.manual_seed(seed)
        models.append(EdenForPreTraining(tiny_config()))
        models[-1].save_pretrained(tmp_path / where)
        EdenImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / where)
    for step, model in zip(("step-0002", "step-0010"), models, strict=True):
        (run / "checkpoints" / step).mkdir(parents=True)
        save_model(model, str(run / "checkpoints" / step / "model.safetensors"))
    options = {"source": "phantoms:3", "images": 3, "level": 2, "gammas": [0.5, 0.9]}
    audit_pruner(str(run), output=str(tmp_path / "out"), **options)
    audit_pruner(str(tmp_path / "early"), output=str(tmp_path / "out"), **options)
    early, late, alone = (
        Results.load(tmp_path / "out" / name / "results.json") for name in ("step 2", "step 10", "early")
    )
    assert early.values == alone.values != late.values
    assert early.revision == weights_revision(str(run / "checkpoints" / "step-0002")) != late.revision
    assert early.settings["models"] == late.settings["models"] == [weights_revision(str(run / "last"))]
    assert alone.settings["models"] == [alone.revision] == [weights_revision(str(tmp_path / "early"))]


def test_queries_are_the_students_and_keys_the_teachers():
    torch.manual_seed(0)
    model = EdenForPreTraining(tiny_config())
    encoder = Encoder(model, EdenImageProcessor(size={"height": 32, "width": 32}))
    pictures = [Image.fromarray(draw_phantom(seed, 64).image) for seed in range(2)]
    queries, keys = queries_and_keys(encoder, pictures, 2)
    for parameter in model.teacher.parameters():
        torch.nn.init.normal_(parameter)
    same, others = queries_and_keys(encoder, pictures, 2)
    assert torch.equal(same, queries)
    assert not torch.allclose(others, keys)
    for parameter in model.projector.parameters():
        torch.nn.init.normal_(parameter)
    changed, still = queries_and_keys(encoder, pictures, 2)
    assert not torch.allclose(changed, queries)
    assert torch.equal(still, others)


@pytest.mark.parametrize("kind", [EdenModel, EdenV2ForPreTraining])
def test_a_model_without_a_pruner_is_refused(kind, tmp_path):
    kind(tiny_v2_config()).save_pretrained(tmp_path / "run" / "last")
    EdenImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "run" / "last")
    with pytest.raises(ValueError, match=rf"holds {kind.__name__}, which has no pruner"):
        audit_pruner(str(tmp_path / "run"), "phantoms:3", str(tmp_path / "out"), images=3)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model in"):
        audit_pruner(str(tmp_path), "phantoms:3", str(tmp_path / "out"), images=3)
