"""Adam-v2 against the numbers recorded from the published implementation (tests/golden/README.md)."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from eden_hf.modeling_eden_v2 import composability, cross_view_entropy, decomposability
from eden_hf.training.arguments import PretrainArguments, Stage
from eden_hf.training.curriculum import half_cosine, learning_rate, teacher_temperature, weight_decay
from eden_hf.training.objectives import objective_of
from eden_hf.training.optimizers import clip_each, make_optimizer

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


def stage_of(objective: str, **settings) -> Stage:
    """A stage with the published schedules."""
    published = {
        "learning_rate": 1e-3, "final_learning_rate": 1e-6, "warmup_epochs": 10, "weight_decay": 0.04,
        "final_weight_decay": 0.4, "frozen_epochs": 1, "optimizer": "adamw",
    }  # fmt: skip
    return Stage(objective=objective, **{**published, **settings})


@pytest.mark.parametrize(("name", "epochs"), [("L", [200, 200, 100]), ("LCD", [10, 90, 165])])
def test_schedules(name, epochs):
    """One each for the whole stage, whatever its granularities."""
    expected, stage = NUMBERS["schedules"][name], stage_of("localize", epochs=epochs)
    length = expected["length"]
    assert stage.total_epochs == expected["epochs"]
    for row, step in enumerate(expected["iteration"]):
        made = {
            "lr": learning_rate(stage, step, length),
            "weight_decay": weight_decay(stage, step, length),
            "momentum": half_cosine(0.996, 1.0, step, length),
        }
        assert made == pytest.approx({schedule: expected[schedule][row] for schedule in made}, abs=1e-12)
    granularities = [stage.granularity(epoch) for epoch in range(stage.total_epochs)]
    assert granularities == [g for g, count in enumerate(epochs) for _ in range(count)]


def test_temperatures():
    stage = stage_of("localize", epochs=20, first_teacher_temperature=0.04, teacher_temperature_epochs=5)
    made = [teacher_temperature(stage, epoch, final=0.07) for epoch in range(20)]
    assert made == pytest.approx(NUMBERS["dino"]["L"]["temperatures"], abs=1e-12)
    assert teacher_temperature(stage_of("localize"), 0, final=0.04) == 0.04


TOY = {"epochs": 4, "warmup_epochs": 1}


def take_steps(model, objective: str, batches: list, first_step: int):
    """Steps as the loop takes them, three an epoch: losses, centre and rates after each."""
    stage = stage_of(objective, **TOY)
    method = objective_of(PretrainArguments(stages=[stage]))
    model.config.teacher_momentum = 0.996
    optimizer = make_optimizer(model, "adamw")
    for step, inputs in enumerate(batches, first_step):
        rates = learning_rate(stage, step, 12), weight_decay(stage, step, 12)
        for group in optimizer.param_groups:
            group.update(lr=rates[0], weight_decay=rates[1] if group["decayed"] else 0.0)
        output = model(**inputs, **method.settings(stage, step // 3, first_piece=True))
        output.loss.backward()
        clip_each((p for p in model.parameters() if p.requires_grad), 3.0)
        method.before_step(model, stage, step // 3)
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(model, step, 12)
        yield step, output, rates


def assert_moved_alike(model, prefix: str, atol: float):
    """Weights after steps. AdamW makes a full step of a gradient near zero, whatever its sign."""
    sides = {side: v2_tensors_by_official_name(model, side) for side in ("student", "teacher")}
    for key in (key for key in TENSORS if key.startswith(prefix) and "weight_g" not in key and "center" not in key):
        name = key.removeprefix(prefix).removesuffix("[:128]")
        side = "teacher" if name.startswith("teacher.") else "student"
        tensor = sides[side][name.removeprefix(f"{side}.")]
        difference = (tensor.flatten()[:128] - TENSORS[key]).abs()
        assert difference.median() < atol / 20, key
        assert difference.max() < atol, key


def test_six_steps_of_the_second_stage(model):
    numbers = NUMBERS["steps_LCD"]
    batches = [v2_crops(tag) for tag in ("s0", "s1", "s2")] * 2
    last = v2_tensors_by_official_name(model, "student")["head.last_layer.weight_v"]
    start = last.clone()
    for step, output, rates in take_steps(model, "part_whole", batches, first_step=0):
        assert rates == pytest.approx(numbers["lr_and_wd_of_both_groups"][step][0], abs=1e-12)
        assert_close(output.loss, numbers["total"][step], rtol=1e-4)
        for name in ("composability", "decomposability"):
            assert_close(output[f"{name}_loss"], numbers[name][step], rtol=1e-3)
        assert_close(model.center[0], TENSORS["steps.center"][step], rtol=1e-3)
        assert torch.equal(last, start) == (step < 3)
        if step in (0, 2, 5):
            assert_moved_alike(model, f"steps.{step}.", atol=2e-3 if step else 1e-6)


def test_three_steps_of_the_first_stage(model):
    batches = [v2_crops_of_the_first_stage(tag) for tag in ("s0", "s1", "s2")]
    for step, output, _ in take_steps(model, "localize", batches, first_step=3):
        assert_close(output.loss, NUMBERS["steps_L"]["total"][step - 3], rtol=1e-4)
    assert_close(model.center, TENSORS["steps_L.center"], rtol=1e-3)
    assert_moved_alike(model, "steps_L.", atol=2e-3)


@pytest.mark.parametrize("limit", [3.0, 0.05])
def test_each_gradient_is_clipped_by_itself(limit, model):
    model(**v2_crops("f")).loss.backward()
    clip_each((p for p in model.parameters() if p.requires_grad), limit)
    gradients = v2_gradients(model)
    for name, norm in NUMBERS["clip_grad"][str(limit)]["after"].items():
        assert_close(gradients[name].norm(), norm, rtol=2e-3)
