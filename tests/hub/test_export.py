"""Exported models give PyTorch's numbers at any batch and size."""

import re
import sys

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from eden_hf import EdenForImageClassification, EdenForPreTraining, EdenForSemanticSegmentation, EdenModel
from eden_hf.hub import export
from eden_hf.hub.export import ExportError, export_model
from eden_hf.image_processing_eden import EdenImageProcessor

from ..launching import REPOSITORY
from ..tiny import tiny_config

KINDS = {"trunk": EdenModel, "classes": EdenForImageClassification, "masks": EdenForSemanticSegmentation}
PIXELS = torch.rand(2, 3, 64, 160, generator=torch.Generator().manual_seed(0))
#: Code of this machine, as exporters write it beside what it gave.
PLACES = re.compile(rb"site-packages|stack_trace|" + re.escape(str(REPOSITORY).encode()))


@pytest.fixture
def save(tmp_path):
    def of(kind=EdenModel, backbone="resnet"):
        torch.manual_seed(0)
        model = kind(tiny_config(backbone)).eval()
        model.save_pretrained(tmp_path / "model")
        return model, str(tmp_path / "model")

    return of


def outputs(model) -> list[torch.Tensor]:
    with torch.inference_mode():
        found = model(PIXELS)
    return [found.logits] if hasattr(found, "logits") else [found.last_hidden_state, found.pooler_output]


@pytest.mark.parametrize(("kind", "backbone"), [("trunk", "convnextv2"), ("masks", "dinov2"), ("classes", "resnet")])
def test_a_program(tmp_path, save, kind, backbone):
    model, folder = save(KINDS[kind], backbone)
    file = export_model(folder, str(tmp_path / "model.pt2"), "program")
    assert_close(list(torch.export.load(file).module()(PIXELS)), outputs(model), rtol=1e-4, atol=1e-5)
    assert not PLACES.search(file.read_bytes())


@pytest.mark.parametrize(("kind", "backbone"), [("trunk", "resnet"), ("masks", "resnet"), ("classes", "dinov2")])
def test_onnx(tmp_path, save, kind, backbone):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, folder = save(KINDS[kind], backbone)
    file = export_model(folder, str(tmp_path / "model.onnx"))
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    assert names == (["last_hidden_state", "pooler_output"] if kind == "trunk" else ["logits"])
    found = [torch.from_numpy(o) for o in session.run(None, {"pixel_values": PIXELS.numpy()})]
    assert_close(found, outputs(model), rtol=1e-3, atol=1e-4)
    assert sorted(path.name for path in tmp_path.glob("model.onnx*")) == ["model.onnx", "model.onnx.lineage.json"]
    assert not PLACES.search(file.read_bytes())


def test_a_trunk_with_points(tmp_path):
    model = EdenModel(tiny_config(dense_dim=6)).eval()
    model.save_pretrained(tmp_path / "model")
    file = export_model(str(tmp_path / "model"), str(tmp_path / "model.pt2"), "program")
    dense = torch.export.load(file).module()(PIXELS)[2]
    assert_close(dense, model(PIXELS).dense_embeddings, rtol=1e-4, atol=1e-5)


def test_onnx_of_pixels_with_weights_of_16_bits(tmp_path):
    """Images as they are in, embeddings out: what the processor and the model give."""
    onnxruntime = pytest.importorskip("onnxruntime")
    onnx_ir = pytest.importorskip("onnx_ir")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    model = EdenModel(tiny_config(dense_dim=6)).eval()
    model.save_pretrained(tmp_path / "model")
    processor = EdenImageProcessor(size={"height": 64, "width": 96}, intensity="per_image")
    processor.save_pretrained(tmp_path / "model")
    wanted = {"preprocessing": "resize", "outputs": ["dense_embeddings", "pooler_output"], "half": True}
    file = export_model(str(tmp_path / "model"), str(tmp_path / "model.onnx"), **wanted)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    images = torch.randint(256, (2, 3, 150, 131), generator=torch.Generator().manual_seed(1))
    found = session.run(None, {"pixel_values": images.float().numpy()})
    with torch.inference_mode():
        expected = model(processor(images.byte(), return_tensors="pt").pixel_values)
    assert [output.name for output in session.get_outputs()] == ["dense_embeddings", "pooler_output"]
    assert found[0].shape == (2, 6, 16, 24)
    pairs = zip((expected.dense_embeddings, expected.pooler_output), found, strict=True)
    off = max(float((a - torch.from_numpy(b)).abs().max()) for a, b in pairs)
    assert 1e-6 < off < 1e-2
    assert np.dtype("float16") in {
        weights.const_value.dtype.numpy() for weights in onnx_ir.load(file).graph.initializers.values()
    }


def test_of_a_pretraining_model_the_students_trunk_is_taken(tmp_path, save):
    model, folder = save(EdenForPreTraining)
    file = export_model(folder, str(tmp_path / "out" / "model.pt2"), "program")
    assert_close(list(torch.export.load(file).module()(PIXELS)), outputs(model.eden), rtol=1e-4, atol=1e-5)


def test_trunks_that_are_bound_to_the_traced_size(tmp_path, save, monkeypatch):
    """As Swin, of which torch takes a minute to find it out."""
    _, folder = save()

    def guarded(pixels):
        raise AssertionError("Guard failed: pixel_values.size()[2] == 128")

    monkeypatch.setattr(export, "_program", lambda *_: guarded)
    with pytest.raises(ExportError, match=r"EdenModel on resnet: Guard failed: pixel_values\.size"):
        export_model(folder, str(tmp_path / "model.pt2"), "program")
    assert not (tmp_path / "model.pt2").exists()


def test_errors(tmp_path, save, monkeypatch):
    _, folder = save()
    with pytest.raises(ExportError, match=r"model\.pt must end in \.onnx, being of the format onnx"):
        export_model(folder, str(tmp_path / "model.pt"))
    with pytest.raises(ExportError, match=r"is no model folder: it has no config\.json"):
        export_model(str(tmp_path), str(tmp_path / "model.pt2"), "program")
    (tmp_path / "config.json").write_text('{"architectures": ["ResNetModel"]}')
    with pytest.raises(ExportError, match=r"is of ResNetModel; exported are EdenForPreTraining, .*EdenModel"):
        export_model(str(tmp_path), str(tmp_path / "model.pt2"), "program")
    with pytest.raises(ExportError, match=r"last_hidden_state of \[1, 3, 224, 224\] images is off by"):
        export_model(folder, str(tmp_path / "model.pt2"), "program", tolerance=-1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model"]  # no wrong model is left
    with pytest.raises(ExportError, match="gives last_hidden_state, pooler_output, not dense_embeddings"):
        export_model(folder, str(tmp_path / "model.pt2"), "program", outputs=["dense_embeddings"])
    with pytest.raises(ExportError, match="weights of 16 bits are for the format onnx, not program"):
        export_model(folder, str(tmp_path / "model.pt2"), "program", half=True)
    (tmp_path / "kept.pt2").touch()
    with pytest.raises(ExportError, match=r"kept\.pt2 is there already: choose another output"):
        export_model(folder, str(tmp_path / "kept.pt2"), "program")
    monkeypatch.setattr(
        export, "_program", lambda *_: (_ for _ in ()).throw(RuntimeError("\x1b[96mcannot\x1b[0m\nbe"))
    )
    with pytest.raises(ExportError, match=r"EdenModel on resnet: cannot$"):
        export_model(folder, str(tmp_path / "model.pt2"), "program")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"eden_hf\[export\]"):
        export_model(folder, str(tmp_path / "model.onnx"))
