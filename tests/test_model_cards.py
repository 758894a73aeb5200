"""The model that is given away loads offline as its card says, and its card holds what its files hold."""

import filecmp

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, pipeline
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # 5.17 hides it without torchvision

from eden_hf.data.phantoms import draw_phantom
from eden_hf.hub.cards import check_card
from eden_hf.hub.refusals import CODE, file_refusals, local_files

from .launching import REPOSITORY

FOLDERS = sorted(path.parent for path in (REPOSITORY / "model_cards").glob("*/config.json"))
GIVEN = REPOSITORY / "model_cards" / "eden-resnet18-half-cxr"
ANATOMY = REPOSITORY / "model_cards" / "eden-resnet18-half-cxr-anatomy"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_folder_could_be_published_as_it_is(folder):
    assert check_card(folder) == []
    assert list(file_refusals(folder, local_files(folder), "model")) == []
    for code in folder.glob("*.py"):
        assert filecmp.cmp(code, CODE[code.name], shallow=False), f"stage {folder.name} again"


def test_the_given_model_loads_in_float32_and_embeds():
    assert (GIVEN / "model.safetensors").stat().st_size <= 8_000_000
    model = AutoModel.from_pretrained(GIVEN, trust_remote_code=True)
    processor = AutoImageProcessor.from_pretrained(GIVEN, trust_remote_code=True)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert processor.intensity == "per_image"
    image = Image.open(REPOSITORY / "docs" / "phantoms.png").convert("L")
    images = [image, image.point(lambda value: value // 2 + 60), Image.linear_gradient("L")]
    with torch.inference_mode():
        same, brighter, other = model(**processor(images, return_tensors="pt")).pooler_output
        points = model(**processor(image, return_tensors="pt")).dense_embeddings
    assert same.shape == (256,)
    assert points.shape == (1, 64, 40, 40)
    cosine = torch.nn.functional.cosine_similarity
    assert cosine(same, brighter, dim=0) > 0.95  # the intensity policy takes brightness and contrast out
    assert cosine(same, other, dim=0) < cosine(same, brighter, dim=0) - 0.02


def test_the_given_anatomy_outlines_a_phantom_at_its_own_size():
    assert (ANATOMY / "model.safetensors").stat().st_size <= 8_000_000
    phantom = draw_phantom(seed=0, size=300)
    segment = pipeline("image-segmentation", model=str(ANATOMY), trust_remote_code=True)
    found = {mask["label"]: np.array(mask["mask"]) > 0 for mask in segment(Image.fromarray(phantom.image))}
    assert list(found) == ["heart", "left_lung", "right_lung", "left_clavicle", "right_clavicle"]
    for name in ("left_lung", "right_lung"):  # it never saw a phantom
        true = np.array(phantom.masks[name]) > 0
        assert found[name].shape == true.shape
        assert 2 * (found[name] & true).sum() / (found[name].sum() + true.sum()) > 0.8
