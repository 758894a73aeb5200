"""A published folder with ONNX: transformers.js gives of an image what transformers gives."""

import json
import shutil
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close
from transformers import AutoImageProcessor

from eden_hf import EdenImageProcessor, EdenModel
from eden_hf.hub.cards import check_card
from eden_hf.hub.export import ExportError
from eden_hf.hub.refusals import file_refusals, local_files
from eden_hf.hub.repository import stage_model
from eden_hf.training.lineage import changes

from ..launching import REPOSITORY
from ..tiny import tiny_config
from .conftest import write_card_yaml

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
PACKAGES = REPOSITORY / "tests" / "transformers_js"
needs_node = pytest.mark.skipif(
    not (shutil.which("node") and (PACKAGES / "node_modules").is_dir()),
    reason="needs Node, and transformers.js by: npm ci --prefix tests/transformers_js",
)


def save_model(folder, **settings):
    torch.manual_seed(0)
    EdenModel(tiny_config(dense_dim=6)).eval().save_pretrained(folder)
    EdenImageProcessor(size={"height": 64, "width": 96}, **settings).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The folder user/tiny, as the card has it."""
    folder = tmp_path_factory.mktemp("hub")
    model = save_model(folder / "model", intensity="per_image")
    return stage_model(model, folder / "user" / "tiny", write_card_yaml(folder), onnx=True)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Of odd sizes and every mode that transformers.js opens, bright and dark."""
    folder, noise = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    ramp = np.add.outer(np.arange(140), np.arange(231)).astype(np.uint8)
    pictures = {
        "grey.png": Image.fromarray(noise.integers(0, 256, (201, 117), np.uint8)),
        "dark.png": Image.fromarray(ramp // 4),
        "colour.png": Image.fromarray(noise.integers(0, 256, (37, 51, 3), np.uint8)),
        "palette.png": Image.fromarray(ramp).convert("P"),
        "one_bit.png": Image.fromarray(ramp > 99),
        "one_value.png": Image.fromarray(np.full((40, 60), 77, np.uint8)),
        "as_the_model.png": Image.fromarray(ramp[:64, :96]),
        "photograph.jpg": Image.fromarray(ramp),
    }
    for name, picture in pictures.items():
        picture.save(folder / name)
    return [folder / name for name in pictures]


def test_the_folder(published):
    names = local_files(published)
    assert {"onnx/model.onnx", "onnx/model_fp16.onnx", "processor_config.json", "preprocessor_config.json"} < {*names}
    assert list(file_refusals(published, names, "model")) == []
    assert check_card(published, model_id="user/tiny") == []
    assert changes(published) == []
    full, half = ((published / "onnx" / name).stat().st_size for name in ("model.onnx", "model_fp16.onnx"))
    assert half < full


def test_python_finds_the_models_own_processor(published):
    for kind in (EdenImageProcessor, AutoImageProcessor):
        processor = kind.from_pretrained(published, trust_remote_code=True)
        assert (type(processor).__name__, processor.intensity) == ("EdenImageProcessor", "per_image")
    assert EdenModel.from_pretrained(published).config.dense_dim == 6


def test_it_can_be_staged_again_without(published, tmp_path):
    folder = stage_model(published, tmp_path / "again", published / "card.yaml")
    assert json.loads((folder / "preprocessor_config.json").read_text())["intensity"] == "per_image"
    assert not (folder / "onnx").exists()
    assert "transformers.js" not in (folder / "README.md").read_text()


@needs_node
def test_javascript_gives_what_python_gives(published, images):
    card = (published / "README.md").read_text()
    snippet = card.partition("```js\n")[2].partition("```")[0]
    script = f"""
        import {{ env }} from "@huggingface/transformers";
        env.allowRemoteModels = false;
        env.localModelPath = {json.dumps(str(published.parents[1]))};
        {snippet.replace("image.png", str(images[0]))}
        const half = await AutoModel.from_pretrained("user/tiny", {{ dtype: "fp16" }});
        for (const file of {json.dumps(list(map(str, images)))}) {{
          const {{ pixel_values }} = await processor(await load_image(file));
          for (const of of [model, half]) {{
            const {{ pooler_output, dense_embeddings }} = await of({{ pixel_values }});
            console.log(JSON.stringify([pooler_output.tolist(), dense_embeddings.tolist()]));
          }}
        }}"""
    command = ["node", "--input-type=module", "--eval", script]
    done = subprocess.run(command, cwd=PACKAGES, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "Image processor type" not in done.stderr  # "... not found, assuming base ImageProcessor"
    _, *lines = (line for line in done.stdout.splitlines() if line.startswith("["))
    found = [[torch.tensor(output, dtype=torch.float32) for output in json.loads(line)] for line in lines]
    processor, model = EdenImageProcessor.from_pretrained(published), EdenModel.from_pretrained(published)
    for file, full, half in zip(images, found[::2], found[1::2], strict=True):
        with torch.inference_mode():
            outputs = model(**processor(Image.open(file), return_tensors="pt"))
        expected = [outputs.pooler_output, outputs.dense_embeddings]
        assert_close(full, expected, rtol=1e-4, atol=1e-5, msg=lambda told, file=file: f"{file.name}: {told}")
        assert_close(half, expected, rtol=1e-2, atol=1e-2, msg=lambda told, file=file: f"{file.name}: {told}")


def test_padding_is_not_exported(tmp_path):
    model = save_model(tmp_path / "model", aspect_ratio="pad")
    with pytest.raises(ExportError, match=r"model: `aspect_ratio` 'pad' is not exported: export 'normalize'"):
        stage_model(model, tmp_path / "staged", write_card_yaml(tmp_path), onnx=True)
    assert not (tmp_path / "staged").exists()
