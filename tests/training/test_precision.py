import json

import pytest
import torch

from eden_hf import EdenForImageClassification
from eden_hf.training.precision import check_precision, held_dtypes, in_float32, precision_used

from ..tiny import tiny_config


def test_fp16_is_refused_on_a_cpu(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"training.mixed_precision. fp16 needs a GPU"):
        check_precision("fp16")
    for name in ("no", "bf16"):
        check_precision(name)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    check_precision("fp16")


def test_a_model_is_made_in_float32_whatever_its_file_holds():
    config = tiny_config()
    config.dtype = config.backbone_config.dtype = torch.bfloat16
    in_float32(config)
    model = EdenForImageClassification(config)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_the_files_own_dtypes_are_told(tmp_path):
    EdenForImageClassification(tiny_config()).half().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))  # as `eden stage --half` has it
    assert held_dtypes(str(tmp_path)) == ["F16"]
    assert held_dtypes("") == held_dtypes("random:resnet18-half") == held_dtypes("a/model-not-in-the-cache") == []


@pytest.mark.parametrize("gains", [True, False])
def test_auto_is_bf16_where_the_device_gains(monkeypatch, gains):
    monkeypatch.setattr("eden_hf.training.precision.gains_from_bfloat16", lambda device: gains)
    cpu = torch.device("cpu")
    assert precision_used("auto", cpu) == ("bf16" if gains else "no")
    assert [precision_used(name, cpu) for name in ("no", "bf16", "fp16")] == ["no", "bf16", "fp16"]
