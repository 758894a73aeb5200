"""Classification and segmentation heads: losses, shapes, loading, pipelines with and without the package."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    Trainer,
    TrainingArguments,
    pipeline,
)

from eden_hf import (
    EdenForImageClassification,
    EdenForPreTraining,
    EdenForSemanticSegmentation,
    EdenImageProcessor,
)

from .launching import ENVIRONMENT
from .tiny import BACKBONES, tiny_config

LABELS = {0: "heart", 1: "left lung", 2: "clavicles"}
STAGED = [name for name in BACKBONES if name != "vit"]


def labelled(backbone="resnet", **settings):
    return tiny_config(backbone, id2label=LABELS, label2id={name: i for i, name in LABELS.items()}, **settings)


def reached_by_none(name):
    """Parameters of transformers' trunks that no feature map depends on."""
    return "mask_token" in name or "swin.layernorm" in name


@pytest.fixture
def pixel_values():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


# classification


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_trunk_classifies(backbone, pixel_values):
    model = EdenForImageClassification(labelled(backbone)).eval()
    output = model(pixel_values, labels=torch.tensor([0, 2]))
    assert output.logits.shape == (2, 3)
    assert torch.allclose(output.loss, F.cross_entropy(output.logits, torch.tensor([0, 2])))
    assert torch.equal(model(pixel_values, return_dict=False)[0], output.logits)


@pytest.mark.parametrize(
    ("outputs", "labels", "problem"),
    [
        (3, torch.tensor([0, 2]), "single_label_classification"),
        (3, torch.ones(2, 3), "multi_label_classification"),
        (1, torch.tensor([0.5, 2.0]), "regression"),
        (1, torch.tensor([[0.5], [2.0]]), "regression"),
    ],
)
def test_the_first_labels_settle_the_problem(outputs, labels, problem, pixel_values):
    model = EdenForImageClassification(tiny_config(num_labels=outputs))
    assert model(pixel_values, labels=labels).loss.ndim == 0
    assert model.config.problem_type == problem


def test_a_regression_of_several_values_is_asked_for(pixel_values):
    model = EdenForImageClassification(labelled(problem_type="regression")).eval()
    output = model(pixel_values, labels=torch.zeros(2, 3))
    assert torch.allclose(output.loss, output.logits.square().mean())


def test_unknown_labels_do_not_count(pixel_values):
    model = EdenForImageClassification(labelled()).eval()
    labels = torch.tensor([[1.0, float("nan"), 0.0], [float("nan")] * 3])
    output = model(pixel_values, labels=labels)
    known = output.logits[0, [0, 2]]
    assert torch.allclose(output.loss, F.binary_cross_entropy_with_logits(known, torch.tensor([1.0, 0.0])))
    nothing = model(pixel_values, labels=torch.full((2, 3), float("nan"))).loss
    assert nothing == 0


def test_labels_of_another_shape_are_refused(pixel_values):
    model = EdenForImageClassification(labelled(problem_type="multi_label_classification"))
    with pytest.raises(ValueError, match=r"shape \(2, 3\), got \(2,\)"):
        model(pixel_values, labels=torch.ones(2))


def test_class_indices_may_be_of_any_integer_type(pixel_values):
    model = EdenForImageClassification(labelled()).eval()
    narrow, wide = (model(pixel_values, labels=torch.tensor([0, 2], dtype=t)).loss for t in (torch.int32, torch.int64))
    assert torch.equal(narrow, wide)


def test_an_unknown_problem_is_refused():
    with pytest.raises(Exception, match=r"problem_type(.|\n)*multi_label_classification"):
        labelled(problem_type="multilabel")


@pytest.mark.parametrize("head", [EdenForImageClassification, EdenForSemanticSegmentation])
def test_one_image_is_no_batch(head, pixel_values):
    with pytest.raises(ValueError, match=r"\(batch_size, num_channels, height, width\), got \(3, 64, 64\)"):
        head(labelled())(pixel_values[0])


@pytest.mark.parametrize("head", [EdenForImageClassification, EdenForSemanticSegmentation])
@pytest.mark.parametrize("backbone", ["swin", "dinov2"])
def test_checkpointed_activations_change_no_gradient(head, backbone, pixel_values):
    model = head(labelled(backbone)).train()
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        torch.manual_seed(0)  # Swin drops paths
        model(pixel_values).logits.square().mean().backward()
        gradients.append(next(p.grad for name, p in model.named_parameters() if "proj" in name))
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(*gradients)


# segmentation


@pytest.mark.parametrize("backbone", STAGED)
@pytest.mark.parametrize("size", [(64, 64), (65, 50)])
def test_every_staged_trunk_segments_any_size(backbone, size):
    model = EdenForSemanticSegmentation(labelled(backbone))
    output = model(torch.randn(2, 3, *size), labels=torch.rand(2, 3, *size).round())
    assert output.logits.shape == (2, 3, *size)
    output.loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None and not reached_by_none(name)]
    assert not without


@pytest.mark.parametrize("backbone", STAGED)
def test_a_branch_over_the_pixels_joins_the_decoder(backbone):
    """Pixels reach the logits without the trunk; folders made before it was there load as they were."""
    model = EdenForSemanticSegmentation(labelled(backbone, decoder_detail_size=4))
    images = torch.randn(2, 3, 65, 50)
    model(images).logits.sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in model.decoder.detail.parameters())
    assert model.decoder.detail(images).shape == (2, 4, 33, 25)
    plain = EdenForSemanticSegmentation(labelled(backbone))
    assert plain.decoder.detail is None
    assert not any("detail" in name for name in plain.state_dict())


def test_a_trunk_without_maps_is_refused():
    with pytest.raises(ValueError, match=r"'vit'.*'resnet'"):
        EdenForSemanticSegmentation(labelled("vit"))


def test_the_configuration_that_was_given_is_left_alone():
    config = labelled()
    before = list(config.out_features)
    EdenForSemanticSegmentation(config)
    assert config.out_features == before


def test_overlapping_masks_are_scored_by_dice_and_cross_entropy(pixel_values):
    model = EdenForSemanticSegmentation(labelled()).eval()
    masks = torch.zeros(2, 3, 64, 64)
    masks[:, :2, 10:30, 10:40] = 1  # two structures on the same pixels, and one that is not there
    output = model(pixel_values, labels=masks)
    p = output.logits.sigmoid()
    dice = 1 - (2 * (p * masks).sum((2, 3)) + 1) / (p.sum((2, 3)) + masks.sum((2, 3)) + 1)
    expected = dice.mean() + F.binary_cross_entropy_with_logits(output.logits, masks)
    assert torch.allclose(output.loss, expected, atol=1e-5)


def test_exclusive_classes_are_scored_by_cross_entropy_without_ignored_pixels(pixel_values):
    model = EdenForSemanticSegmentation(labelled(segmentation_type="exclusive")).eval()
    classes = torch.randint(3, (2, 64, 64))
    classes[:, :20] = 255
    output = model(pixel_values, labels=classes)
    expected = F.cross_entropy(output.logits[:, :, 20:], classes[:, 20:])
    assert torch.allclose(output.loss, expected, atol=1e-5)


@pytest.mark.parametrize(("settings", "label"), [({"semantic_loss_ignore_index": -100}, 255), ({}, 3), ({}, -1)])
def test_a_label_that_is_no_class_is_refused_with_the_mend(settings, label, pixel_values):
    config = labelled(segmentation_type="exclusive", **settings)
    ignored = config.semantic_loss_ignore_index
    classes = torch.zeros(2, 64, 64, dtype=torch.int64)
    classes[0, 0, :2] = torch.tensor([label, ignored])
    message = rf"from 0 to 2 .* or {ignored} .* got \[{label}\]: set `config.semantic_loss_ignore_index`"
    with pytest.raises(ValueError, match=message):
        EdenForSemanticSegmentation(config)(pixel_values, labels=classes)


def test_a_class_beyond_the_model_is_refused_and_the_ignored_one_left_out(pixel_values):
    model = EdenForImageClassification(labelled(problem_type="single_label_classification")).eval()
    with pytest.raises(ValueError, match=r"classes from 0 to 2 .* got \[3\]"):
        model(pixel_values, labels=torch.tensor([0, 3]))
    output = model(pixel_values, labels=torch.tensor([1, -100]))
    assert torch.allclose(output.loss, F.cross_entropy(output.logits[:1], torch.tensor([1])))


def test_a_batch_of_ignored_pixels_alone_costs_nothing(pixel_values):
    model = EdenForSemanticSegmentation(labelled(segmentation_type="exclusive"))
    loss = model(pixel_values, labels=torch.full((2, 64, 64), 255)).loss
    loss.backward()
    assert loss == 0
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(("kind", "shape"), [("overlapping", (2, 64, 64)), ("exclusive", (2, 3, 64, 64))])
def test_masks_of_the_other_kind_are_refused(kind, shape, pixel_values):
    model = EdenForSemanticSegmentation(labelled(segmentation_type=kind))
    with pytest.raises(ValueError, match="segmentation_type"):
        model(pixel_values, labels=torch.ones(shape))


def test_a_tiny_model_learns_one_image():
    torch.manual_seed(0)
    model = EdenForSemanticSegmentation(tiny_config(num_labels=1, decoder_hidden_size=8))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    image = torch.randn(2, 3, 32, 32)
    masks = torch.zeros(2, 1, 32, 32)
    masks[0, 0, :16], masks[1, 0, :, 16:] = 1, 1
    for _ in range(60):
        loss = model(image, labels=masks).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.2
    assert ((model(image).logits > 0) == masks.bool()).float().mean() > 0.95


# loading


@pytest.mark.parametrize("head", [EdenForImageClassification, EdenForSemanticSegmentation])
def test_a_head_starts_from_the_students_trunk(head, tmp_path, pixel_values):
    pretraining = EdenForPreTraining(tiny_config()).eval()
    pretraining.save_pretrained(tmp_path)
    model, info = head.from_pretrained(tmp_path, num_labels=3, output_loading_info=True)
    assert {key.split(".")[0] for key in info["missing_keys"]} <= {"classifier", "decoder"}
    assert not info["unexpected_keys"]
    for (name, ours), theirs in zip(
        model.eden.state_dict().items(), pretraining.eden.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    assert model.eval()(pixel_values).logits.isfinite().all()


@pytest.mark.parametrize(
    ("head", "auto"),
    [
        (EdenForImageClassification, AutoModelForImageClassification),
        (EdenForSemanticSegmentation, AutoModelForSemanticSegmentation),
    ],
)
@pytest.mark.parametrize("backbone", ["resnet", "swin"])
def test_a_saved_head_comes_back_and_gives_its_trunk(head, auto, backbone, tmp_path, pixel_values):
    model = head(labelled(backbone)).eval()
    model.save_pretrained(tmp_path)
    again = auto.from_pretrained(tmp_path)
    assert type(again) is head
    assert torch.equal(again(pixel_values).logits, model(pixel_values).logits)
    trunk, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.equal(trunk(pixel_values).pooler_output, model.eden(pixel_values).pooler_output)


@pytest.mark.parametrize("head", [EdenForImageClassification, EdenForSemanticSegmentation])
def test_heads_run_in_bfloat16(head, pixel_values):
    assert head(labelled()).to(torch.bfloat16)(pixel_values).logits.dtype == torch.bfloat16


# LoRA


@pytest.mark.parametrize(
    ("head", "backbone"),
    [
        (EdenForImageClassification, "vit"),
        (EdenForSemanticSegmentation, "dinov2"),
        (EdenForSemanticSegmentation, "resnet"),
        (EdenForImageClassification, "convnextv2"),
    ],
)
def test_lora_trains_adapters_and_head_alone(head, backbone, tmp_path, pixel_values):
    peft = pytest.importorskip("peft")
    model = head(labelled(backbone))
    model.save_pretrained(tmp_path / "start")
    targets = [
        name
        for name, module in model.named_modules()
        if name.startswith("eden.") and isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
        and getattr(module, "groups", 1) == 1
    ]  # fmt: skip
    own = "classifier" if head is EdenForImageClassification else "decoder"
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=targets, modules_to_save=[own]))
    before = {name: tensor.clone() for name, tensor in adapted.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], 0.1)
    adapted.train()
    model.eden.eval()  # BatchNorm statistics of the trunk are no parameters
    for _ in range(2):
        optimizer.zero_grad()
        adapted(pixel_values=pixel_values).logits.square().mean().backward()
        optimizer.step()
    moved = {name for name, tensor in adapted.state_dict().items() if not torch.equal(tensor, before[name])}
    assert any("lora_B" in name for name in moved)
    assert any(f"{own}.modules_to_save" in name for name in moved)
    assert all("lora_" in name or f"{own}.modules_to_save" in name for name in moved)

    expected = adapted.eval()(pixel_values=pixel_values).logits
    adapted.save_pretrained(tmp_path / "adapters")
    loaded = peft.PeftModel.from_pretrained(head.from_pretrained(tmp_path / "start"), tmp_path / "adapters").eval()
    assert torch.equal(loaded(pixel_values=pixel_values).logits, expected)
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = head.from_pretrained(tmp_path / "merged")(pixel_values).logits
    assert (merged - expected).abs().max() < 1e-3 * expected.abs().max()


# pipelines

PROGRAM = """
import sys
if sys.argv[1] == "with":
    import eden_hf
    trust = {"trust_remote_code": False}  # else transformers, looking for a video processor too, asks at the terminal
else:
    sys.modules["eden_hf"] = None
    trust = {"trust_remote_code": True}
import json
import numpy as np
from PIL import Image
from transformers import pipeline
image = Image.linear_gradient("L").resize((90, 70))
classified = pipeline("image-classification", model=sys.argv[2], **trust)(image)
segmented = pipeline("image-segmentation", model=sys.argv[3], **trust)(image)
print(json.dumps({
    "classified": classified,
    "segmented": [[s["label"], s["score"], list(s["mask"].size), int(np.asarray(s["mask"]).sum())] for s in segmented],
}))
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    torch.manual_seed(0)
    made = []
    for head in (EdenForImageClassification, EdenForSemanticSegmentation):
        path = tmp_path_factory.mktemp(head.__name__)
        head(labelled()).save_pretrained(path)
        EdenImageProcessor(size={"height": 64, "width": 64}, aspect_ratio="pad").save_pretrained(path)
        made.append(path)
    return made


@pytest.mark.slow
def test_pipelines_agree_with_and_without_the_package(folders):
    found = {}
    for package in ("with", "without"):
        command = [sys.executable, "-c", PROGRAM, package, *map(str, folders)]
        run = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
        assert run.returncode == 0, run.stderr
        found[package] = json.loads(run.stdout.splitlines()[-1])
    assert found["with"] == found["without"]
    assert [entry[0] for entry in found["with"]["segmented"]] == list(LABELS.values())
    assert all(entry[2] == [90, 70] for entry in found["with"]["segmented"])
    assert {entry["label"] for entry in found["with"]["classified"]} == set(LABELS.values())


def test_the_pipeline_gives_overlapping_masks(folders):
    image = Image.linear_gradient("L").resize((90, 70))
    model = EdenForSemanticSegmentation.from_pretrained(folders[1])
    with torch.no_grad():
        model.decoder.classifier.weight.zero_()
        model.decoder.classifier.bias.copy_(torch.tensor([3.0, 3.0, -3.0]))
    processor = EdenImageProcessor.from_pretrained(folders[1])
    heart, lung, clavicles = pipeline("image-segmentation", model=model, image_processor=processor)(image)
    assert np.asarray(heart["mask"]).all()
    assert np.asarray(lung["mask"]).all()
    assert not np.asarray(clavicles["mask"]).any()
    assert heart["score"] == pytest.approx(torch.tensor(3.0).sigmoid().item(), abs=1e-4)
    assert clavicles["score"] == 0


@pytest.mark.parametrize(("task", "folder"), [("image-classification", 0), ("image-segmentation", 1)])
def test_pipelines_do_not_call_a_model_unsupported_that_works(task, folder, folders, monkeypatch):
    complaints: list[str] = []
    monkeypatch.setattr(transformers.pipelines.base.logger, "error", complaints.append)
    pipeline(task, model=str(folders[folder]))
    assert not complaints


# transformers.Trainer as it comes


@pytest.mark.parametrize("problem", ["single_label_classification", "regression"])
def test_accumulated_gradients_are_those_of_one_batch(problem, tmp_path):
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    rows = [
        {"pixel_values": image, "labels": torch.tensor(i % 3) if "single" in problem else torch.full((3,), i / 8)}
        for i, image in enumerate(images)
    ]
    weights, losses = [], []
    for accumulated in (1, 4):
        torch.manual_seed(0)
        model = EdenForImageClassification(labelled("convnextv2", problem_type=problem))
        arguments = TrainingArguments(
            output_dir=str(tmp_path), per_device_train_batch_size=8 // accumulated, max_steps=1, learning_rate=0.1,
            gradient_accumulation_steps=accumulated, max_grad_norm=0, optim="sgd", lr_scheduler_type="constant",
            logging_steps=1, report_to="none", use_cpu=True, save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        trainer = Trainer(model=model, args=arguments, train_dataset=rows)
        trainer.train()
        weights.append(model.classifier.weight.detach().clone())
        losses.append(trainer.state.log_history[0]["loss"])
    torch.testing.assert_close(weights[0], weights[1])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize("model_class", [EdenForImageClassification, EdenForSemanticSegmentation, EdenForPreTraining])
def test_trainer_knows_that_losses_are_means(model_class, tmp_path):
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    assert Trainer(model=model_class(labelled()), args=arguments).model_accepts_loss_kwargs is False
