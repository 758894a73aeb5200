"""Adam-v2 against the numbers recorded from the published implementation (tests/golden/README.md)."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from eden_hf.modeling_eden_v2 import composability, cross_view_entropy, decomposability

from .golden import recipe
from .golden.reference import (
    golden_v2_model,
    v2_crops,
    v2_crops_of_the_first_stage,
    v2_tensors_by_official_name,
)
from .test_objective_golden import assert_close

GOLDEN = Path(__file__).parent / "golden"
NUMBERS = json.loads((GOLDEN / "golden_v2.json").read_text())
TENSORS = load_file(GOLDEN / "golden_v2.safetensors")
#: Crops of the student and rows of the teacher's logits, by stage.
STAGES = {"L": (10, 2), "LCD": (9, 1)}


def normal(name: str, *shape: int) -> torch.Tensor:
    return torch.from_numpy(recipe.normal(name, shape))


@pytest.fixture
def model():
    return copy.deepcopy(golden_v2_model())


def outputs_of(module) -> list[torch.Tensor]:
    """What a module gives from now on, call by call."""
    given: list[torch.Tensor] = []
    module.register_forward_hook(lambda _, __, output: given.append(getattr(output, "pooler_output", output).detach()))
    return given


@pytest.mark.parametrize("stage", STAGES)
def test_localizability(stage):
    crops, targets = STAGES[stage]
    student = 0.3 * normal("dino.student", crops * 4, 256).view(crops, 4, 256).requires_grad_()
    student.retain_grad()
    teacher = 0.3 * normal("dino.teacher", targets * 4, 256).view(targets, 4, 256)
    centers = {"zero": torch.zeros(1, 256), "recipe": 0.1 * normal("dino.center", 1, 256)}
    numbers = NUMBERS["dino"][stage]
    for case, expected in numbers["loss"].items():
        epoch, center = int(case.split(",")[0].split()[1]), centers[case.split()[-1]]
        loss = cross_view_entropy(student, teacher, center, 0.1, numbers["temperatures"][epoch])
        assert_close(loss, expected)
    cross_view_entropy(student, teacher, centers["recipe"], 0.1, numbers["temperatures"][0]).backward()
    gradient = student.grad.flatten(0, 1)
    assert_close(gradient.norm(), numbers["grad_student_norm (epoch 0, centre recipe)"])
    assert_close(gradient[:2], TENSORS[f"dino.{stage}.grad_student[:2]"])


def test_losses_of_given_embeddings(model):
    given = [normal(f"given.{crop}", 4, 512).abs() for crop in range(14)]
    parts, numbers = torch.stack(given[10:]), NUMBERS["given_embeddings"]
    composed, decomposed = model.compose(torch.cat(given[10:], dim=1)), model.decompose(given[0])
    assert_close(torch.nn.functional.normalize(composed, dim=1), TENSORS["given.student_compose"])
    assert_close(torch.nn.functional.normalize(decomposed, dim=1), TENSORS["given.student_decompose"])
    assert_close(composability(composed, given[0]), numbers["composability"])
    assert_close(decomposability(decomposed, parts), numbers["decomposability"])
    apart = numbers["if_each_part_were_normalised_apart_decomposability_would_be"]
    assert_close(decomposability(decomposed, parts, norm="part"), apart)
    perfect = torch.nn.functional.normalize(parts, dim=2).transpose(0, 1).flatten(1)
    least = numbers["perfect_prediction_decomposability (slices = targets / 2)"]
    assert_close(decomposability(perfect, parts), least, rtol=1e-4)
    assert decomposability(perfect, parts, norm="part") < 1e-12


def test_forward_of_the_second_stage(model):
    """The reference embeds wholes twice with the teacher, which moves its running statistics twice."""
    crops = v2_crops("f")
    model.eden(crops["whole_pixel_values"])
    encoders = {"student": model.student, "teacher": model}
    given = {f"{s}.{name}": outputs_of(getattr(encoders[s], name)) for s in encoders for name in ("eden", "head")}
    given |= {name: outputs_of(getattr(model, name)) for name in ("compose", "decompose")}
    model(**crops)
    passes = given["student.eden"]
    assert [len(rows) for rows in passes] == [4, 32, 4, 4, 4, 4, 4]
    assert_close(passes[0], TENSORS["forward.features.student.global"])
    assert_close(passes[1][:8], TENSORS["forward.features.student.locals[:8]"])
    assert_close(torch.stack(passes[2:6]), TENSORS["forward.features.student.parts"])
    assert_close(passes[6], TENSORS["forward.features.student.whole"])
    assert_close(given["teacher.eden"][0], TENSORS["forward.features.teacher.whole"])
    assert_close(torch.stack(given["teacher.eden"][1:]), TENSORS["forward.features.teacher.parts"])
    assert_close(given["student.head"][0], TENSORS["forward.student_locality"])
    assert_close(given["teacher.head"][0], TENSORS["forward.teacher_locality"])
    for name in ("compose", "decompose"):
        unit = torch.nn.functional.normalize(given[name][0], dim=1)
        assert_close(unit, TENSORS[f"forward.student_{name}"])
    for side in ("student", "teacher"):
        tensors, prefix = v2_tensors_by_official_name(model, side), f"forward.{side}_buffers."
        names = [key.removeprefix(prefix) for key in TENSORS if key.startswith(prefix)]
        assert len(names) == 6
        for name in names:
            assert_close(tensors[name], TENSORS[prefix + name])
        assert tensors["backbone.bn1.num_batches_tracked"] == {"student": 7, "teacher": 6}[side]


def test_forward_of_the_first_stage(model):
    student, teacher = outputs_of(model.student.head), outputs_of(model.head)
    output = model(**v2_crops_of_the_first_stage("f"))
    assert_close(student[0], TENSORS["forward_L.student"])
    assert_close(teacher[0], TENSORS["forward_L.teacher"])
    assert output.composability_loss is output.decomposability_loss is None


def test_evaluation(model):
    images = v2_crops("f")["whole_pixel_values"]
    for side, encoder in (("student", model.eval().student), ("teacher", model)):
        features = encoder.eden(images).pooler_output
        assert_close(features, TENSORS[f"eval.{side}.features"])
        assert_close(encoder.head(features), TENSORS[f"eval.{side}.head"])


WEIGHTED = NUMBERS["loss_and_gradients (weights localizability,composability,decomposability)"]


@pytest.mark.parametrize("weights", WEIGHTED)
def test_losses_and_gradients(weights, model):
    numbers = WEIGHTED[weights]
    of_localizability, of_composability, of_decomposability = map(float, weights.split(","))
    output = model(
        **v2_crops("f"),
        composability_weight=of_composability or 1e-30,
        decomposability_weight=of_decomposability or 1e-30,
    )
    for name in ("localizability", "composability", "decomposability"):
        assert_close(output[f"{name}_loss"], numbers[name])
    loss = output.loss - (1 - of_localizability) * output.localizability_loss
    assert_close(loss, numbers["total"], rtol=1e-4)
    loss.backward()
    named = v2_gradients(model)
    for name, norm in numbers["grad_norm"].items():
        assert_close(named[name].norm(), norm, rtol=2e-3)
    if weights == "1,1,1":
        for key in (key for key in TENSORS if key.startswith("grad.")):
            gradient = named[key.removeprefix("grad.").removesuffix("[:256]")]
            assert_close(gradient.flatten()[:256], TENSORS[key], rtol=2e-3)


def v2_gradients(model) -> dict[str, torch.Tensor]:
    """Gradients of the student and the part-whole heads under the official names."""
    by_place = {parameter.data_ptr(): parameter.grad for parameter in model.parameters()}
    gradients = {}
    for name, tensor in v2_tensors_by_official_name(model, "student").items():
        prefix = "" if name.startswith(("compose", "decompose")) else "student."
        if by_place.get(tensor.data_ptr()) is not None:
            gradients[prefix + name] = by_place[tensor.data_ptr()]
    return gradients


@pytest.mark.parametrize("stage", STAGES)
def test_center(stage, model):
    """It moves by `update_teacher` alone, by the mean of all rows since the last."""
    rows = STAGES[stage][1]
    for step in range(3):
        logits = 0.3 * normal(f"dino.teacher.{step}", rows * 4, 256).view(rows, 4, 256)
        global_crops = local_crops = torch.zeros(1, 4, 3, 32, 32)
        model._localizability(global_crops, local_crops, logits, None)
        model.update_teacher()
    assert_close(model.center, TENSORS[f"dino.{stage}.center_after_3"])
