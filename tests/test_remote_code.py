"""A saved folder loads in a fresh process: with the package imported, and without it as remote code."""

import json
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from eden_hf import (
    EdenBackbone,
    EdenForImageClassification,
    EdenForKeypointMatching,
    EdenForPreTraining,
    EdenForSemanticSegmentation,
    EdenImageProcessor,
    EdenModel,
)

from .launching import ENVIRONMENT, REPOSITORY, python
from .tiny import tiny_config

#: Files of the models, which travel together.
MODELING = {file.name for file in (REPOSITORY / "eden_hf").glob("modeling_eden*.py")}

PROGRAM = """
import sys
package, folder, output = sys.argv[1] == "with", sys.argv[2], sys.argv[3]
if package:
    import eden_hf
    trust = {}
else:
    sys.modules["eden_hf"] = None  # importing it fails, wherever it is installed
    trust = {"trust_remote_code": True}
import builtins
import torch
from PIL import Image
from safetensors.torch import save_file
builtins.input = lambda *_: sys.exit("asked whether remote code may run")  # where it may, or is not needed
from transformers import (
    AutoBackbone, AutoConfig, AutoModel, AutoModelForImageClassification, AutoModelForKeypointMatching,
    AutoModelForPreTraining, AutoModelForSemanticSegmentation, pipeline,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor
image = Image.linear_gradient("L").resize((90, 70))
config = AutoConfig.from_pretrained(folder, **trust)
pixel_values = AutoImageProcessor.from_pretrained(folder, **trust)(image, return_tensors="pt")["pixel_values"]
model = AutoModel.from_pretrained(folder, **trust)
pretraining = AutoModelForPreTraining.from_pretrained(folder, **trust).eval()
extractor = pipeline("image-feature-extraction", model=folder, **trust)
matching = AutoModelForKeypointMatching.from_pretrained(folder, **trust)
matches = matching(torch.cat([pixel_values, pixel_values.flip(3)]))
matcher = pipeline("keypoint-matching", model=folder, **trust)
other = image.resize((40, 120))
results = {
    "pixel_values": pixel_values,
    "pooler_output": model(pixel_values).pooler_output,
    "query_embeddings": pretraining(pixel_values, pixel_values).query_embeddings,
    "memory_bank": pretraining.memory_bank,
    "pipeline": extractor(image, return_tensors=True),
    "pooled_pipeline": extractor(image, return_tensors=True, pool=True),
    "keypoints": matches.keypoints,
    "matching_scores": matches.matching_scores,
    "matches_of_pipeline": torch.tensor(
        [[*m["keypoint_image_0"].values(), *m["keypoint_image_1"].values()] for m in matcher([image, other])]
    ),
}
for head in (AutoModelForImageClassification, AutoModelForSemanticSegmentation):
    torch.manual_seed(0)  # of what the folder lacks
    results[head.__name__] = head.from_pretrained(folder, num_labels=3, **trust)(pixel_values).logits
if package:
    backbone = AutoBackbone.from_pretrained(folder, out_features=["stage2", "stage4"])
else:  # transformers' AutoBackbone asks the Hub even for a folder; its class is in the folder all the same
    from transformers.dynamic_module_utils import get_class_from_dynamic_module
    backbone = get_class_from_dynamic_module(config.auto_map["AutoBackbone"], folder).from_pretrained(
        folder, out_features=["stage2", "stage4"]
    )
maps = backbone(pixel_values).feature_maps
results |= {"stage2": maps[0], "stage4": maps[1]}
loaded = [name for name in sys.modules if name.split(".")[0] == "eden_hf" and sys.modules[name] is not None]
assert bool(loaded) == package, loaded
save_file({name: tensor.detach().contiguous() for name, tensor in results.items()}, output)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pretraining folder whose student, teacher and bank have moved."""
    torch.manual_seed(0)
    model = EdenForPreTraining(tiny_config(dense_dim=8)).train()
    model(torch.rand(5, 3, 32, 32), torch.rand(5, 3, 32, 32))
    path = tmp_path_factory.mktemp("saved")
    model.save_pretrained(path)
    EdenImageProcessor(size={"height": 48, "width": 48}, intensity="per_image").save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def results(folder, tmp_path_factory):
    """What two fresh processes got from the folder, one with the package and one without."""
    work = tmp_path_factory.mktemp("work")
    environment = {**ENVIRONMENT, "HF_HOME": str(work / "home")}
    for kind in ("with", "without"):
        python("-c", PROGRAM, kind, str(folder), str(work / kind), env=environment, cwd=work)
    return {kind: load_file(work / kind) for kind in ("with", "without")}


def test_the_folder_carries_its_code(folder):
    code = {path.name for path in (REPOSITORY / "eden_hf").glob("*_eden*.py")}
    assert {path.name for path in folder.iterdir()} == code | {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    assert_auto_map_is_whole(folder)
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    assert processor["auto_map"] == {"AutoImageProcessor": "image_processing_eden.EdenImageProcessor"}


def assert_auto_map_is_whole(folder):
    auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
    assert auto_map == {
        "AutoConfig": "configuration_eden.EdenConfig",
        "AutoModel": "modeling_eden.EdenModel",
        "AutoBackbone": "modeling_eden.EdenBackbone",
        "AutoModelForPreTraining": "modeling_eden.EdenForPreTraining",
        "AutoModelForImageClassification": "modeling_eden.EdenForImageClassification",
        "AutoModelForSemanticSegmentation": "modeling_eden.EdenForSemanticSegmentation",
        "AutoModelForKeypointMatching": "modeling_eden.EdenForKeypointMatching",
    }


@pytest.mark.parametrize(
    "model_class",
    [EdenModel, EdenBackbone, EdenForImageClassification, EdenForSemanticSegmentation, EdenForKeypointMatching],
)
def test_whichever_class_saves_a_folder_it_serves_all(model_class, tmp_path):
    model_class(tiny_config(dense_dim=8)).save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.glob("*.py")} == {*MODELING, "configuration_eden.py"}
    assert_auto_map_is_whole(tmp_path)


def test_with_and_without_the_package_the_outputs_are_equal(results):
    assert results["with"].keys() == results["without"].keys()
    for name, tensor in results["with"].items():
        assert torch.equal(tensor, results["without"][name]), name


def test_they_are_the_outputs_of_the_model_that_was_saved(folder, results):
    model = EdenForPreTraining.from_pretrained(folder).eval()
    processor = EdenImageProcessor.from_pretrained(folder)
    image = Image.linear_gradient("L").resize((90, 70))
    pixel_values = processor(image, return_tensors="pt")["pixel_values"]
    found = results["without"]
    assert pixel_values.shape == (1, 3, 48, 48)
    assert torch.equal(found["pixel_values"], pixel_values)
    torch.testing.assert_close(found["pooler_output"], model.eden(pixel_values).pooler_output)
    torch.testing.assert_close(found["pipeline"], model.eden(pixel_values).last_hidden_state)
    torch.testing.assert_close(found["pooled_pipeline"], found["pooler_output"])
    torch.testing.assert_close(found["stage4"], found["pipeline"])
    assert torch.equal(found["memory_bank"], model.memory_bank)
    output = EdenForKeypointMatching.from_pretrained(folder)(torch.cat([pixel_values, pixel_values.flip(3)]))
    torch.testing.assert_close(found["keypoints"], output.keypoints)
    torch.testing.assert_close(found["matching_scores"], output.matching_scores)
    furthest = found["matches_of_pipeline"].amax(dim=0)
    assert (furthest < torch.tensor([90, 70, 40, 120]) - 0.5).all()  # x and y in each image's own pixels
    assert (furthest > 0.75 * torch.tensor([90, 70, 40, 120])).all()
    assert found["AutoModelForImageClassification"].shape == (1, 3)
    assert found["AutoModelForSemanticSegmentation"].shape == (1, 3, 48, 48)


def test_a_model_loaded_as_remote_code_saves_a_folder_that_loads(folder, tmp_path):
    program = f"""
import sys; sys.modules["eden_hf"] = None
from transformers import AutoModel, AutoModelForKeypointMatching
AutoModel.from_pretrained({str(folder)!r}, trust_remote_code=True).save_pretrained({str(tmp_path)!r})
AutoModelForKeypointMatching.from_pretrained({str(tmp_path)!r}, trust_remote_code=True)
"""
    python("-c", program)
    names = {path.name for path in tmp_path.iterdir()}
    assert {*MODELING, "configuration_eden.py", "model.safetensors"} <= names
    assert_auto_map_is_whole(tmp_path)


@pytest.mark.parametrize("blocked", [["torchvision", "timm"], ["matplotlib", "sklearn", "pydicom", "tensorboard"]])
def test_the_package_imports_without_what_is_optional(blocked):
    modules = "eden_hf, eden_hf.cli, eden_hf.data, eden_hf.encoders, eden_hf.training.pretraining"
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked})); import {modules}; eden_hf.EdenImageProcessor()"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr


def test_weights_are_plain_safetensors(folder):
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors, folder.parent / "copy.safetensors")
    assert any(name.startswith("eden.backbone.") for name in tensors)
    assert not list(folder.glob("*.bin")) + list(folder.glob("*.pt"))
