"""The handler of Inference Endpoints, imported from the published folder as their toolkit does it."""

import base64
import importlib.util
import io

import numpy as np
import pytest
import torch

from eden_hf import EdenImageProcessor, EdenModel
from eden_hf.data.phantoms import phantom_dataset
from eden_hf.data.reading import decode_image
from eden_hf.hub.repository import stage_model
from eden_hf.matching import AnatomyMatcher, Reference

from ..data.test_dicom import RAMP, dicom, saved
from ..tiny import tiny_config
from .conftest import write_card_yaml


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("endpoint")
    EdenModel(tiny_config(dense_dim=8)).eval().save_pretrained(root / "model")
    EdenImageProcessor(size={"height": 32, "width": 32}).save_pretrained(root / "model")
    return stage_model(root / "model", root / "staged", write_card_yaml(root))


@pytest.fixture(scope="module")
def handler(folder):
    spec = importlib.util.spec_from_file_location("handler", folder / "handler.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.EndpointHandler(path=str(folder))


@pytest.fixture(scope="module")
def picture():
    return phantom_dataset(1, size=64)[0]["image"]


def png(image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_the_folder_says_what_it_needs(folder):
    assert (folder / "requirements.txt").read_text() == "eden_hf[dicom]\n"


def test_embeddings_are_the_models_whatever_the_form(folder, handler, picture):
    model, processor = EdenModel.from_pretrained(folder), EdenImageProcessor.from_pretrained(folder)
    with torch.inference_mode():
        expected = model(**processor(picture, return_tensors="pt")).pooler_output[0]
    encoded = base64.b64encode(png(picture)).decode()
    for inputs in (picture, png(picture), encoded, f"data:image/png;base64,{encoded}"):
        (embedding,) = handler({"inputs": inputs}).values()
        np.testing.assert_allclose(embedding, expected, atol=1e-4)


def test_dicom_is_shown_as_a_viewer_does(handler):
    assert handler({"inputs": saved(dicom(RAMP))}) == handler({"inputs": decode_image(saved(dicom(RAMP)), "x.dcm")})


def test_landmarks_from_one_example(handler, picture):
    asked = {"reference": base64.b64encode(png(picture)).decode(), "points": {"apex": [20, 30], "base": [40.5, 50]}}
    found = handler({"inputs": picture, "parameters": asked})["landmarks"]
    assert found.keys() == {"apex", "base"}
    reference = Reference(picture, points={"apex": (20, 30), "base": (40.5, 50)})
    expected = AnatomyMatcher(handler.encoder, [reference]).find(picture)
    assert found == {name: pytest.approx(point._asdict()) for name, point in expected.items()}
    assert 0 <= found["apex"]["confidence"] <= 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "`inputs` must be an image: the bytes of a file, or those as base64, got NoneType"),
        ({"inputs": 3}, "got int"),
        ({"inputs": "no base64!"}, "`inputs` is no image as base64"),
        ({"inputs": b"no image"}, "inputs: "),
        ({"inputs": "picture", "parameters": {"points": {"a": [1, 2]}}}, "`reference` must be an image"),
        (
            {"inputs": "picture", "parameters": {"points": {"a": 3}, "reference": "picture"}},
            "must be pairs of numbers",
        ),
        ({"inputs": "picture", "parameters": {"reference": "picture"}}, "`points` must be pixels of the reference"),
    ],
)
def test_what_is_no_request(data, message, handler, picture):
    encoded = base64.b64encode(png(picture)).decode()
    data = {name: encoded if value == "picture" else value for name, value in data.items()}
    if data.get("parameters", {}).get("reference") == "picture":
        data["parameters"] = data["parameters"] | {"reference": encoded}
    with pytest.raises(ValueError, match=message):
        handler(data)
