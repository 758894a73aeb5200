"""The battery for every class on every tiny trunk, then what each class alone promises."""

import copy
import math
import pickle

import pytest
import torch
from accelerate import init_empty_weights
from transformers import AutoBackbone, AutoModel, AutoModelForPreTraining
from transformers.utils import ModelOutput

from eden_hf import (
    EdenBackbone,
    EdenForImageClassification,
    EdenForKeypointMatching,
    EdenForPreTraining,
    EdenForSemanticSegmentation,
    EdenModel,
)
from eden_hf.modeling_eden import pruned_info_nce
from eden_hf.modeling_eden_dense import sample_embeddings

from .tiny import BACKBONES, tiny_config

CLASSES = {"model": EdenModel, "pretraining": EdenForPreTraining, "backbone": EdenBackbone}
AUTO = {"model": AutoModel, "pretraining": AutoModelForPreTraining, "backbone": AutoBackbone}
PAIRS = [(kind, trunk) for kind in CLASSES for trunk in BACKBONES if (kind, trunk) != ("backbone", "vit")]


def images(batch=4, seed=0, size=(32, 48)):
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(seed))


def make(kind, trunk="resnet", **settings):
    torch.manual_seed(0)
    return CLASSES[kind](tiny_config(trunk, **settings)).eval()


def inputs(kind, batch=4):
    views = {"query_pixel_values": images(batch), "key_pixel_values": images(batch, seed=1)}
    return views if kind == "pretraining" else {"pixel_values": images(batch)}


def tensors(output):
    """All tensors of an output, nested tuples laid flat."""
    values = output.to_tuple() if hasattr(output, "to_tuple") else output
    flat = []
    for value in values:
        flat += tensors(value) if isinstance(value, (tuple, list)) else [value]
    return flat


def assert_same(first, second, **tolerance):
    first, second = tensors(first), tensors(second)
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, **(tolerance or {"rtol": 0, "atol": 0}))


battery = pytest.mark.parametrize(("kind", "trunk"), PAIRS)


@battery
def test_round_trip(kind, trunk, tmp_path):
    model = make(kind, trunk)
    model.save_pretrained(tmp_path)
    for loader in (CLASSES[kind], AUTO[kind]):
        loaded, info = loader.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info.values()), info
        assert type(loaded) is CLASSES[kind]
        state = model.state_dict()
        assert state.keys() == loaded.state_dict().keys()
        assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
        assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in model.parameters()]
        assert_same(loaded.eval()(**inputs(kind)), model(**inputs(kind)))


@battery
def test_eval_is_deterministic_and_tuples_equal_outputs(kind, trunk):
    model = make(kind, trunk)
    output = model(**inputs(kind))
    assert_same(output, model(**inputs(kind)))
    as_tuple = model(**inputs(kind), return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert_same(output, as_tuple)
    model.config.return_dict = False
    assert isinstance(model(**inputs(kind)), tuple)


@battery
def test_a_row_alone_is_the_row_in_a_batch(kind, trunk):
    model = make(kind, trunk)
    whole = model(**inputs(kind))
    alone = model(**{name: tensor[2:3] for name, tensor in inputs(kind).items()})
    if kind == "pretraining":
        whole, alone = ([o.query_embeddings, o.key_embeddings, o.kept_negatives] for o in (whole, alone))
    for a, b in zip(tensors(whole), tensors(alone), strict=True):
        torch.testing.assert_close(a[2:3], b, rtol=1e-5, atol=1e-6)


@battery
def test_outputs_pickle(kind, trunk):
    output = make(kind, trunk)(**inputs(kind))
    again = pickle.loads(pickle.dumps(output))
    assert type(again) is type(output)
    assert_same(again, output)


@battery
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(kind, trunk, dtype, tmp_path):
    model = make(kind, trunk)
    model.save_pretrained(tmp_path)
    for half in (copy.deepcopy(model).to(dtype), CLASSES[kind].from_pretrained(tmp_path, dtype=dtype).eval()):
        assert half.dtype == dtype
        for actual, expected in zip(tensors(half(**inputs(kind))), tensors(model(**inputs(kind))), strict=True):
            assert actual.isfinite().all()
            if expected.is_floating_point():
                torch.testing.assert_close(actual.float(), expected, rtol=0.1, atol=0.1)


@battery
def test_backward_reaches_the_trunk(kind, trunk):
    model = make(kind, trunk).train()
    output = model(**inputs(kind))
    target = {"pretraining": lambda: output.loss, "model": lambda: output.pooler_output.square().sum()}
    target.get(kind, lambda: output.feature_maps[-1].square().sum())().backward()
    reached = [name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert any("backbone" in name for name in reached)
    assert not any(name.startswith("teacher.") for name in reached)


@pytest.mark.parametrize("trunk", ["swin", "vit", "dinov2"])
@pytest.mark.parametrize("kind", ["model", "pretraining"])
def test_gradient_checkpointing_changes_no_gradient(kind, trunk):
    gradients = []
    for checkpointed in (False, True):
        model = make(kind, trunk).train()
        if checkpointed:
            model.gradient_checkpointing_enable()
        output = model(**inputs(kind))
        (output.loss if kind == "pretraining" else output.pooler_output.square().sum()).backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert_same(*gradients, rtol=1e-5, atol=1e-6)


def test_gradient_checkpointing_is_refused_where_the_trunk_has_none():
    with pytest.raises(ValueError, match="EdenModel does not support"):
        make("model").gradient_checkpointing_enable()


@pytest.mark.parametrize("trunk", BACKBONES)
def test_shapes_of_the_trunk(trunk):
    model = make("model", trunk)
    output = model(images(), output_hidden_states=True)
    batch, channels, height, width = output.last_hidden_state.shape
    assert (batch, channels) == (4, model.num_features)
    assert width >= height
    assert output.pooler_output.shape == (4, channels)
    torch.testing.assert_close(output.pooler_output, output.last_hidden_state.mean(dim=(2, 3)))
    assert len(output.hidden_states) >= 3
    assert model(images()).hidden_states is None


@pytest.mark.parametrize("trunk", ["vit", "dinov2"])
def test_token_grids_keep_their_place(trunk):
    """A change in one corner of the image moves the features of that corner most."""
    model = make("model", trunk)
    plain, marked = images(1), images(1)
    marked[..., :8, 40:] = 1 - marked[..., :8, 40:]
    moved = (model(marked).last_hidden_state - model(plain).last_hidden_state).abs().sum(dim=1)[0]
    assert moved.shape == (4, 6)
    assert moved.flatten().argmax() == 5  # the top right token


def test_attentions_on_request():
    model = make(
        "model",
        "vit",
    )
    model.set_attn_implementation("eager")
    attentions = model(images(), output_attentions=True).attentions
    assert attentions[0].shape == (4, 2, 25, 25)


@pytest.mark.parametrize("trunk", ["resnet", "vit"])
def test_compile_and_export(trunk):
    model = make("model", trunk)
    expected = model(images()).pooler_output
    exported = torch.export.export(model, (images(),)).module()
    torch.testing.assert_close(exported(images()).pooler_output, expected)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(images()).pooler_output, expected)


def test_a_wrong_shape_is_named():
    with pytest.raises(ValueError, match=r"\(batch_size, num_channels, height, width\), got \(3, 32, 48\)"):
        make("model")(images()[0])


@pytest.mark.parametrize("trunk", BACKBONES)
def test_the_trunk_of_a_pretraining_folder(trunk, tmp_path):
    pretraining = make("pretraining", trunk)
    pretraining.save_pretrained(tmp_path)
    trunk_model, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert_same(trunk_model.eval()(images()), pretraining.eden(images()))


def test_pretraining_from_a_trunk_starts_the_teacher_at_the_student(tmp_path):
    trunk = make("model")
    trunk.save_pretrained(tmp_path)
    torch.manual_seed(1)
    model, info = EdenForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert {name.split(".")[0] for name in info["missing_keys"]} == {"projector", "teacher", "memory_bank", "bank_ptr"}
    assert_same(model.eden.eval()(images()), trunk(images()))
    assert_same(*model.teacher_and_student_tensors(buffers=True))
    torch.testing.assert_close(model.memory_bank.norm(dim=1), torch.ones(20))
    assert model.bank_ptr.item() == 0
    for layer in (model.projector.dense, model.projector.out_proj):  # torch's default initialisation
        assert 0 < layer.weight.abs().max() <= 1 / math.sqrt(layer.in_features) + 1e-6


@pytest.mark.parametrize("trunk", ["resnet", "swin", "dinov2"])
def test_backbone_gives_the_stages_asked_for(trunk, tmp_path):
    pretraining = make("pretraining", trunk)
    pretraining.save_pretrained(tmp_path)
    stages = pretraining.config.stage_names[1:]
    backbone = AutoBackbone.from_pretrained(tmp_path, out_features=stages).eval()
    maps = backbone(images()).feature_maps
    assert backbone.out_features == stages
    assert [m.shape[1] for m in maps] == backbone.channels
    torch.testing.assert_close(maps[-1], pretraining.eden(images()).last_hidden_state)
    assert [m.shape[-1] for m in maps] == sorted((m.shape[-1] for m in maps), reverse=True)


def test_errors_that_say_what_to_do_instead():
    with pytest.raises(ValueError, match="EdenBackbone"):
        EdenModel(tiny_config(out_features=["stage1"]))
    with pytest.raises(ValueError, match=r"'vit'.*EdenModel"):
        EdenBackbone(tiny_config("vit"))
    with pytest.raises(ValueError, match="4 query and 3 key"):
        make("pretraining")(images(4), images(3))


# --- the objective -------------------------------------------------------------------------------------------------


def unit(*shape, seed=0):
    return torch.nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.mark.parametrize("gamma", [None, 0.9, 0.3, 0.0, -0.5])
@pytest.mark.parametrize("batch", [1, 5])
def test_the_loss_is_the_papers_double_loop(gamma, batch):
    queries, keys, bank, temperature = unit(batch, 6), unit(batch, 6, seed=1), unit(17, 6, seed=2), 0.2
    total, kept = 0.0, []
    for query, key in zip(queries.tolist(), keys.tolist(), strict=True):
        dot = lambda a, b: sum(x * y for x, y in zip(a, b, strict=True))  # noqa: E731
        negatives = [dot(query, row) for row in bank.tolist()]
        negatives = [s for s in negatives if gamma is None or s < gamma]
        positive = math.exp(dot(query, key) / temperature)
        total -= math.log(positive / (positive + sum(math.exp(s / temperature) for s in negatives)))
        kept.append(len(negatives))
    output = pruned_info_nce(queries, keys, bank, temperature, gamma)
    assert output.loss.item() == pytest.approx(total / batch, rel=1e-5)
    assert output.kept_negatives.tolist() == kept
    assert output.pruned_share.item() == pytest.approx(1 - sum(kept) / (17 * batch), abs=1e-6)


def test_identical_embeddings_have_the_closed_form():
    rows = unit(1, 6).expand(9, 6)
    assert pruned_info_nce(rows[:4], rows[:4], rows, 0.2).loss.item() == pytest.approx(math.log(10), rel=1e-5)


def test_a_similarity_equal_to_the_threshold_is_pruned():
    queries, bank = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, math.sqrt(0.75)], [0.25, math.sqrt(0.9375)]])
    output = pruned_info_nce(queries, queries, bank, 1.0, prune_threshold=0.5)
    assert output.kept_negatives.tolist() == [1]
    assert output.loss.item() == pytest.approx(0.38687101006507874, rel=1e-6)  # golden.json, edges


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_everything_pruned_gives_zero_and_no_nan(dtype):
    queries = unit(4, 6).to(dtype).requires_grad_()
    output = pruned_info_nce(queries, unit(4, 6, seed=1).to(dtype), unit(9, 6, seed=2).to(dtype), 0.2, -1.0)
    output.loss.backward()
    assert output.loss.item() == 0.0
    assert output.pruned_share.item() == 1.0
    assert torch.equal(queries.grad, torch.zeros_like(queries))


def test_pruning_is_decided_in_float32_under_autocast():
    queries, bank = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.7999, math.sqrt(1 - 0.7999**2)]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = pruned_info_nce(queries, queries, bank, 0.2, prune_threshold=0.8)
    assert output.kept_negatives.tolist() == [1]
    assert output.loss.dtype == torch.float32


# --- bank and teacher ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batches", [[20], [7, 7, 7], [1] * 23, [13, 20, 5], [50], [19, 45, 3]])
def test_the_bank_is_a_ring_for_any_batch_size(batches):
    model = make("pretraining")
    expected, pointer = model.memory_bank.clone(), 0
    for seed, size in enumerate(batches):
        keys = unit(size, 8, seed=seed)
        for key in keys:  # one by one, as the definition says
            expected[pointer] = key
            pointer = (pointer + 1) % 20
        model.enqueue(keys)
        assert torch.equal(model.memory_bank, expected)
        assert model.bank_ptr.tolist() == [pointer]


def test_an_empty_bank_counts_only_filled_rows():
    model = make("pretraining", memory_bank_init="empty").train()
    assert not model.memory_bank.any()
    first = model(images(4), images(4, seed=1))
    assert (first.loss.item(), first.kept_negatives.tolist(), first.pruned_share.item()) == (0.0, [0] * 4, 0.0)
    second = model(images(4, seed=2), images(4, seed=3))
    assert second.kept_negatives.tolist() == [4] * 4
    assert second.loss.item() > 0


def test_train_mode_moves_teacher_and_bank_once_and_eval_mode_neither():
    model = make("pretraining", teacher_momentum=0.9)
    with torch.no_grad():
        for parameter in model.eden.parameters():
            parameter.add_(0.1)
    before = copy.deepcopy(model.state_dict())
    model(images(), images(seed=1))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    output = model.train()(images(), images(seed=1))
    torch.testing.assert_close(model.memory_bank[:4], output.key_embeddings)
    assert torch.equal(model.memory_bank[4:], before["memory_bank"][4:])
    for name, parameter in model.teacher.named_parameters():
        torch.testing.assert_close(parameter, 0.9 * before[f"teacher.{name}"] + 0.1 * before[name])


def test_accumulated_batches_average_the_teacher_once():
    model = make("pretraining", teacher_momentum=0.5).train()
    with torch.no_grad():
        model.projector.dense.weight.add_(1.0)
    teacher = model.teacher.projector.dense.weight.clone()
    model(images(), images(seed=1), update_teacher=False)
    assert torch.equal(model.teacher.projector.dense.weight, teacher)
    assert model.bank_ptr.item() == 4


def test_buffers_are_real_in_every_way_of_loading(tmp_path):
    model = make("pretraining").train()
    model(images(7), images(7, seed=1))
    model.save_pretrained(tmp_path)
    for options in ({}, {"low_cpu_mem_usage": True}, {"dtype": "auto"}, {"device_map": "cpu"}):
        loaded = EdenForPreTraining.from_pretrained(tmp_path, **options)
        assert torch.equal(loaded.memory_bank, model.memory_bank)
        assert loaded.bank_ptr.tolist() == [7]
        assert not any(p.requires_grad for p in loaded.teacher.parameters())


EVERY_CLASS = [
    EdenModel, EdenBackbone, EdenForPreTraining, EdenForImageClassification, EdenForSemanticSegmentation,
    EdenForKeypointMatching,
]  # fmt: skip


@pytest.mark.parametrize("model_class", EVERY_CLASS)
@pytest.mark.parametrize("backbone", ["resnet", "swin", "dinov2"])
def test_every_class_gives_what_is_asked_for_in_the_call_or_the_configuration(model_class, backbone):
    model = model_class(
        tiny_config(backbone, dense_dim=8),
    ).eval()
    model.set_attn_implementation("eager")
    images = (torch.rand(2, 3, 32, 32),) * (2 if model_class is EdenForPreTraining else 1)
    has_attentions = backbone != "resnet"
    plain = model(*images)
    assert (plain.hidden_states, plain.attentions) == (None, None)
    asked = model(*images, output_hidden_states=True, output_attentions=True)
    assert len(asked.hidden_states) > 1
    assert (asked.attentions is not None) == has_attentions
    assert len(model(*images, return_dict=False)) < len(model(*images, output_hidden_states=True, return_dict=False))
    model.config.output_hidden_states = True
    if has_attentions:
        model.config.output_attentions = True
    configured = model(*images)
    assert len(configured.hidden_states) == len(asked.hidden_states)
    assert (configured.attentions is not None) == has_attentions
    assert model(*images, output_hidden_states=False).hidden_states is None
    model.config.return_dict = False
    assert isinstance(model(*images), tuple)
    assert isinstance(model(*images, return_dict=True), ModelOutput)


@pytest.mark.parametrize("model_class", EVERY_CLASS)
def test_every_class_is_made_on_the_meta_device(model_class):
    with torch.device("meta"):
        model = model_class(tiny_config(dense_dim=8))
    assert all(tensor.is_meta for tensor in model.parameters())
    with init_empty_weights(include_buffers=True):
        model_class(tiny_config(dense_dim=8))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_checkpointing_is_promised_where_the_trunk_can(backbone):
    model = EdenModel(tiny_config(backbone))
    assert model.supports_gradient_checkpointing == (backbone in ("swin", "vit", "dinov2"))
    assert EdenModel.supports_gradient_checkpointing is False  # of a class without a trunk nothing is known
    if not model.supports_gradient_checkpointing:
        with pytest.raises(ValueError, match="does not support"):
            model.gradient_checkpointing_enable()


def test_rows_have_unit_length_under_autocast():
    model = EdenForPreTraining(tiny_config(dense_dim=8)).eval()
    images = torch.rand(8, 3, 32, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(images, images)
        points = sample_embeddings(model.eden(images).dense_embeddings.bfloat16(), torch.rand(8, 5, 2).bfloat16())
    for rows in (output.query_embeddings, output.key_embeddings, points.flatten(0, 1)):
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(rows)), atol=1e-6, rtol=0)
    bank = EdenForPreTraining(tiny_config()).to(torch.bfloat16)
    bank.reset_memory_bank()
    assert bank.memory_bank.dtype == torch.bfloat16
