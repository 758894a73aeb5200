"""What is published loads in a fresh process with an empty cache, as a stranger loads it."""

import json

import pytest
import torch
from datasets import load_dataset
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close

from eden_hf import (
    EdenForImageClassification,
    EdenForPreTraining,
    EdenForSemanticSegmentation,
    EdenImageProcessor,
    EdenModel,
)
from eden_hf.data.anatomy_crops import build_anatomy_crops
from eden_hf.hub.push import push_to_hub

from ..hub_server import READ_TOKEN
from ..launching import ENVIRONMENT, python
from ..tiny import tiny_config
from .conftest import write_card_yaml, write_dataset_yaml

PROGRAM = """
import json, sys
sys.modules["eden_hf"] = None  # importing it fails, wherever it is installed
from datasets import load_dataset
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    AutoModel, AutoModelForImageClassification, AutoModelForPreTraining, AutoModelForSemanticSegmentation, pipeline
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor
trust = {"trust_remote_code": True, "revision": "v1.0"}
image = Image.linear_gradient("L").resize((90, 70))
results = {}
for name, auto in (
    ("trunk", AutoModel), ("classes", AutoModelForImageClassification), ("masks", AutoModelForSemanticSegmentation)
):
    processor = AutoImageProcessor.from_pretrained(f"user/{name}", **trust)
    model, info = auto.from_pretrained(f"user/{name}", output_loading_info=True, **trust)
    assert not any(info.values()), info
    output = model(processor(image, return_tensors="pt")["pixel_values"])
    results[name] = output.pooler_output if name == "trunk" else output.logits
results["pipeline"] = pipeline("image-feature-extraction", model="user/trunk", **trust)(image, return_tensors=True)
scores = pipeline("image-classification", model="user/classes", **trust)(image)
assert {score["label"] for score in scores} == {"a", "b"}, scores
pretraining = AutoModelForPreTraining.from_pretrained("user/trunk", subfolder="pretraining", **trust)
results["memory_bank"] = pretraining.memory_bank
save_file({name: tensor.detach().contiguous() for name, tensor in results.items()}, sys.argv[1])
crops = load_dataset("user/crops", "level-2", split="train")
streamed = len(list(load_dataset("user/crops", "level-0", split="train", streaming=True)))
first = [crops[0]["source_id"], crops[0]["box"], crops[0]["image"].size]
print(json.dumps({"rows": len(crops), "streamed": streamed, "first": first}))
"""


@pytest.mark.slow
def test_a_stranger_loads_what_was_published(hub, run, tmp_path):
    classes = EdenForImageClassification(tiny_config(id2label={0: "a", 1: "b"}, label2id={"a": 0, "b": 1}))
    masks = EdenForSemanticSegmentation(
        tiny_config(id2label={0: "lung"}, label2id={"lung": 0}, decoder_hidden_size=16)
    )
    processor = EdenImageProcessor(size={"height": 32, "width": 32})
    for name, model in {"classes": classes.eval(), "masks": masks.eval()}.items():
        for part in (model, processor):
            part.save_pretrained(tmp_path / name)
    for name, source in {"trunk": run / "last", "classes": tmp_path / "classes", "masks": tmp_path / "masks"}.items():
        card = write_card_yaml(tmp_path, model_id=f"user/{name}")
        push_to_hub(str(source), f"user/{name}", str(card), pretraining=name == "trunk", tags=["v1.0"])
    build_anatomy_crops("phantoms:2", tmp_path / "crops", levels=(0, 2), max_level=None)
    push_to_hub(str(tmp_path / "crops"), "user/crops", str(write_dataset_yaml(tmp_path)), repo_type="dataset")

    (tmp_path / "elsewhere").mkdir()
    environment = {
        **ENVIRONMENT, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": READ_TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    }  # fmt: skip
    output = tmp_path / "outputs.safetensors"
    hub.fault("cut", "GET /user/trunk/resolve/[^/]*/model.safetensors")
    finished = python("-c", PROGRAM, str(output), env=environment, cwd=tmp_path / "elsewhere")
    assert len(hub.asked("GET .*/model.safetensors$")) == 5  # of four files, one of which was cut off at first
    assert hub.asked(r"GET .*\.parquet bytes=\d+-\d+$")  # a streamed data set reads parts

    found = load_file(output)
    image = Image.linear_gradient("L").resize((90, 70))
    pixels = processor(image, return_tensors="pt")["pixel_values"]
    assert_close(found["classes"], classes(pixels).logits)
    assert_close(found["masks"], masks(pixels).logits)
    trunk = EdenModel.from_pretrained(run / "last")
    output = trunk(EdenImageProcessor.from_pretrained(run / "last")(image, return_tensors="pt")["pixel_values"])
    assert_close(found["trunk"], output.pooler_output)
    assert_close(found["pipeline"], output.last_hidden_state)
    assert torch.equal(found["memory_bank"], EdenForPreTraining.from_pretrained(run / "last").memory_bank)
    local = load_dataset(str(tmp_path / "crops"), "level-2", split="train", cache_dir=str(tmp_path / "cache"))
    said = json.loads(finished.stdout.splitlines()[-1])
    assert said == {
        "rows": 8,
        "streamed": 2,
        "first": [local[0]["source_id"], local[0]["box"], list(local[0]["image"].size)],
    }
