"""transformers' own test mixins over every class on tiny trunks of five families (`make test-mixins` fetches them)."""

import copy
import sys
import unittest

import pytest
import torch

from eden_hf import (
    EdenBackbone,
    EdenConfig,
    EdenForImageClassification,
    EdenForKeypointMatching,
    EdenForPreTraining,
    EdenForSemanticSegmentation,
    EdenImageProcessor,
    EdenModel,
)

from .launching import REPOSITORY
from .tiny import tiny_config

MIXINS = REPOSITORY / ".mixins"
if not (MIXINS / "version.txt").is_file():
    pytest.skip("python scripts/fetch_mixins.py fetches transformers' mixins", allow_module_level=True)
sys.path.append(str(MIXINS))
from transformers_tests.test_backbone_common import BackboneTesterMixin  # noqa: E402
from transformers_tests.test_image_processing_common import (  # noqa: E402
    ImageProcessingTestMixin,
    prepare_image_inputs,
)
from transformers_tests.test_modeling_common import ModelTesterMixin  # noqa: E402

pytestmark = pytest.mark.mixins
SIDE, BATCH = 32, 4
_TOKENS = "asks for rows of tokens of one length; test_modeling_eden.py asks every class for its states instead"
_COLOUR = "the output always has three channels: `do_convert_rgb=False` is refused"
#: What fails, and why that is right.
EXPECTED = {
    "test_attention_outputs": _TOKENS,
    "test_hidden_states_output": _TOKENS,
    "test_init_weights_can_init_buffers": "the memory bank starts as random rows, as published",
    "test_model_get_set_embeddings": "an image has no input embeddings that could be exchanged",
    "TestSwin.test_retain_grad_hidden_states_attentions": "the states of transformers' SwinBackbone are copies, too",
    "test_config": "EdenConfig has no layers of its own; its stages are those of backbone_config",
    "test_call_numpy_4_channels": _COLOUR,
    "test_image_processor_from_dict_with_kwargs_has_attributes": _COLOUR,
    "test_new_models_require_torchvision_backend": "nothing may need torchvision",
    "test_post_process_test_mixin_inheritance": "`return_segmentation_scores` is younger than the oldest transformers",
}
#: Classes that a test says nothing of, by how its name starts.
LEFT_OUT = {
    "test_batching_equivalence": {EdenForKeypointMatching},  # takes pairs of images
    "test_training": {EdenModel, EdenBackbone, EdenForKeypointMatching},  # have no loss
    "test_eager_matches_sdpa": {EdenForPreTraining, EdenForKeypointMatching},  # given one input of 7 images
}


@pytest.fixture(autouse=True)
def _expected(request):
    name = request.node.name
    reason = EXPECTED.get(name) or EXPECTED.get(f"{request.cls.__name__}.{name}")
    if reason:
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))


class ModelTester:
    """What the mixins ask for: a configuration and its inputs."""

    batch_size, num_channels, image_size, is_training, seq_length = BATCH, 3, SIDE, True, 17

    def __init__(self, trunk: str) -> None:
        self.trunk = trunk

    def get_config(self):
        dense = {} if self.trunk == "vit" else {"dense_dim": 8}
        return tiny_config(self.trunk, decoder_hidden_size=8, num_labels=3, **dense)

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), {"pixel_values": torch.rand(BATCH, 3, SIDE, SIDE)}


class EveryClass(ModelTesterMixin):
    """The tests of models; a subclass has its `trunk`."""

    trunk: str
    test_resize_embeddings = False
    has_attentions = False
    all_model_classes = (
        EdenModel, EdenBackbone, EdenForPreTraining, EdenForImageClassification, EdenForSemanticSegmentation,
        EdenForKeypointMatching,
    )  # fmt: skip

    def setUp(self):
        self.model_tester = ModelTester(self.trunk)
        left_out = [out for name, out in LEFT_OUT.items() if self._testMethodName.startswith(name)]
        self.all_model_classes = tuple(c for c in self.all_model_classes if not any(c in out for out in left_out))

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = copy.deepcopy(inputs_dict)
        images = inputs.pop("pixel_values")
        if model_class is EdenForPreTraining:
            return {"query_pixel_values": images, "key_pixel_values": images.flip(3), **inputs}
        labels = {
            EdenForImageClassification: torch.zeros(len(images), dtype=torch.long),
            EdenForSemanticSegmentation: torch.ones(len(images), 3, *images.shape[2:]),
        }
        told = {"labels": labels[model_class]} if return_labels and model_class in labels else {}
        return {"pixel_values": images, **inputs, **told}


class TestResNet(EveryClass, unittest.TestCase):
    trunk = "resnet"


class TestConvNeXt(EveryClass, unittest.TestCase):
    trunk = "convnextv2"


class TestSwin(EveryClass, unittest.TestCase):
    trunk, has_attentions = "swin", True


class TestViT(EveryClass, unittest.TestCase):
    trunk, has_attentions = "vit", True
    all_model_classes = (EdenModel, EdenForPreTraining, EdenForImageClassification)


class TestDINOv2(EveryClass, unittest.TestCase):
    trunk, has_attentions = "dinov2", True


class EveryBackbone(BackboneTesterMixin):
    """The tests of backbones; a subclass has its `trunk`."""

    trunk: str
    all_model_classes, config_class, has_attentions = (EdenBackbone,), EdenConfig, False

    def setUp(self):
        self.model_tester = ModelTester(self.trunk)


class TestResNetBackbone(EveryBackbone, unittest.TestCase):
    trunk = "resnet"


class TestConvNeXtBackbone(EveryBackbone, unittest.TestCase):
    trunk = "convnextv2"


class TestSwinBackbone(EveryBackbone, unittest.TestCase):
    trunk, has_attentions = "swin", True


class TestDINOv2Backbone(EveryBackbone, unittest.TestCase):
    trunk, has_attentions = "dinov2", True


class ProcessorTester:
    """What the tests of image processors ask for."""

    batch_size, num_channels, min_resolution, max_resolution = 5, 3, 30, 60
    image_processing_classes = {"pil": EdenImageProcessor}  # noqa: RUF012

    def __init__(self, parent: unittest.TestCase) -> None:
        self.parent = parent

    def prepare_image_processor_dict(self):
        return {"size": {"height": 18, "width": 18}, "intensity": "per_image"}

    def expected_output_image_shape(self, images):
        return 3, 18, 18

    def prepare_image_inputs(self, equal_resolution=False, numpify=False, torchify=False):
        return prepare_image_inputs(
            self.batch_size, self.min_resolution, self.max_resolution, self.num_channels,
            equal_resolution=equal_resolution, numpify=numpify, torchify=torchify,
        )  # fmt: skip


class TestEdenImageProcessor(ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = ProcessorTester
