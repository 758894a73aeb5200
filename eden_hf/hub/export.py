"""Trunk and head models as ONNX and as `torch.export` programs, for any batch and image size."""

import json
import logging
import re
import tempfile
import warnings
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from eden_hf.hub.export_pixels import PixelPreprocessing, Preprocessing, preprocessed
from eden_hf.hub.published import PUBLISHED, architecture_of
from eden_hf.image_processing_eden import EdenImageProcessor
from eden_hf.model_names import load_pretrained
from eden_hf.training.lineage import write_lineage

logger = logging.getLogger(__name__)

ENDINGS = {"onnx": ".onnx", "program": ".pt2"}
#: A batch to trace: its sides differ, since a trace of equal ones asks for equal ones for ever after.
TRACED = (2, 128, 192)
#: Batches to check: other numbers and sizes than were traced.
CHECKED = ((1, 224, 224), (3, 96, 160))
ANY_SIZE = ({0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO},)
#: What hands on pixels as they are, by a processor that transformers.js knows.
STOCK_PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_convert_rgb": True,
    "do_normalize": False,
    "do_rescale": False,
    "do_resize": False,
}
#: Difference that is accepted, as a share of the largest value, with weights of 32 bits and of 16.
TOLERANCE, HALF_TOLERANCE = 1e-4, 1e-2
#: From how many numbers on a tensor of weights is stored with 16 bits.
_LARGE = 256


class ExportError(ValueError):
    """A model that cannot be exported; the message says why."""


class _Tensors(nn.Module):
    """A model that gives a tuple of tensors, of pixel values or of what `preprocessing` makes them of."""

    def __init__(self, model: PreTrainedModel, preprocessing: Callable, outputs: Sequence[str]) -> None:
        super().__init__()
        trunk = type(model).__name__ == "EdenModel"
        points = ("dense_embeddings",) if model.config.dense_dim is not None else ()
        there = ("last_hidden_state", "pooler_output", *points) if trunk else ("logits",)
        if unknown := [name for name in outputs if name not in there]:
            raise ExportError(f"a model of this kind gives {', '.join(there)}, not {', '.join(unknown)}")
        self.model, self.preprocessing, self.names = model, preprocessing, tuple(outputs) or there

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        output = self.model(self.preprocessing(pixel_values))
        return tuple(output[name] for name in self.names)


def export_model(
    model: str,
    output: str,
    format: Literal["onnx", "program"] = "onnx",  # noqa: A002
    preprocessing: Preprocessing = "none",
    outputs: Sequence[str] = (),
    half: bool = False,
    tolerance: float = TOLERANCE,
) -> Path:
    """Export a model, and check that it gives PyTorch's numbers at other batches and sizes than it was traced with.

    With `preprocessing` those are the numbers of the image processor and the model, for images of 8 bits.

    Args:
        model: Folder of an Eden trunk or head model; of a pretraining model the student's trunk is taken.
        output: File to write, `.onnx` or `.pt2`. Its input is `pixel_values` [B, C, H, W], float32, of any size;
            its outputs are `last_hidden_state` [B, C, h, w] and `pooler_output` [B, C] of a trunk, with a dense
            decoder also `dense_embeddings` [B, D, H / 4, W / 4], unit vectors, and `logits` of a head model.
        format: `onnx` (needs the extra `export`), or `program` for `torch.export.load`.
        preprocessing: How much of the image processor's work lies in the exported model. `none`: its input is as the
            processor gives it. `normalize`: its input are pixels from 0 to 255, of the size that the model shall see.
            `resize`: pixels from 0 to 255, of any size, which the model brings to the processor's size by itself.
        outputs: Names of the outputs wanted, in this order; none means all.
        half: Store weights with 16 bits, in half the bytes; they are computed with as float32 (`onnx` only).
        tolerance: Difference that is accepted, as a share of the largest value; with `half` at least 1e-2.

    Returns:
        `output`.

    Raises:
        ExportError: there is no Eden model in `model`, `output` is there already or has another ending, the model has
            no such output, the processor cannot be exported (padding; filters but the bilinear one), the trunk
            cannot be exported for any size (Swin), or the exported model gives other numbers; nothing is written then.
        ImportError: `format` is `onnx` and the extra is not installed.
    """
    file = Path(output)
    if file.suffix != ENDINGS[format]:
        raise ExportError(f"{file} must end in {ENDINGS[format]}, being of the format {format}")
    if file.exists():
        raise ExportError(f"{file} is there already: choose another output")
    if half and format != "onnx":
        raise ExportError(f"weights of 16 bits are for the format onnx, not {format}")
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:  # a wrong model never stands under the name
        full = Path(folder) / file.name
        halved = full.with_suffix(".half") if half else None
        _write(Path(model), full, format, preprocessing, outputs, tolerance, halved)
        (halved or full).rename(file)
    write_lineage(file, "export", [model])
    return file


def export_for_web(model: Path, folder: Path) -> None:
    """Add a model as ONNX to the folder that is published of it, so that transformers.js runs it and gives the same.

    `onnx/model.onnx` and `onnx/model_fp16.onnx` (weights of 16 bits) take pixels from 0 to 255 and do the image
    processor's work by themselves. transformers.js reads `preprocessor_config.json`, where it now finds a processor of
    its own that hands on pixels as they are; transformers for Python reads `processor_config.json` before it, where
    the model's own is kept. Without a `dtype` transformers.js takes the exact file.

    Args:
        model: Folder of the model (see `export_model`).
        folder: Its published folder, with configuration and processor.

    Raises:
        ExportError, ImportError: as of `export_model`.
    """
    files = folder / "onnx"
    files.mkdir()
    _write(model, files / "model.onnx", "onnx", "resize", (), TOLERANCE, files / "model_fp16.onnx")
    stock, config = folder / "preprocessor_config.json", folder / "config.json"
    _write_json(folder / "processor_config.json", {"image_processor": json.loads(stock.read_text())})
    _write_json(stock, STOCK_PROCESSOR)
    _write_json(config, json.loads(config.read_text()) | {"transformers.js_config": {"dtype": "fp32"}})


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def _write(
    folder: Path,
    file: Path,
    format: str,  # noqa: A002
    preprocessing: Preprocessing,
    outputs: Sequence[str],
    tolerance: float,
    halved: Path | None,
) -> None:
    """Write the model, and once more with weights of 16 bits to `halved`, each checked."""
    model = _load(folder).eval()
    inside, beside = _preprocessing(folder, preprocessing)
    exported, reference = _Tensors(model, inside, outputs).eval(), _Tensors(model, beside, outputs)
    pixels, *checked = (_example(model, preprocessing, *shape) for shape in (TRACED, *CHECKED))
    try:
        run = (_onnx if format == "onnx" else _program)(exported, pixels, file)
        off = _check(reference, run, checked, tolerance)
        if halved is not None:
            _store_half(file, halved)
            off = _check(reference, _session(halved), checked, max(tolerance, HALF_TOLERANCE))
        logger.info(
            "%s: off by at most %.1e of the largest value", "weights of 16 bits" if halved else "exported", off
        )
    except (RuntimeError, AssertionError) as error:  # the latter of a program that is bound to the traced sizes
        said = re.sub(r"\x1b\[\d*m", "", str(error).strip().splitlines()[0])[:200]
        kind = f"{type(model).__name__} on {model.config.backbone_config.model_type}"
        raise ExportError(f"{folder}: {kind}: {said}") from error


def _load(folder: Path) -> PreTrainedModel:
    if not (folder / "config.json").is_file():
        raise ExportError(f"{folder} is no model folder: it has no config.json")
    architecture = architecture_of(folder)
    if architecture not in PUBLISHED:
        raise ExportError(f"{folder} is of {architecture}; exported are {', '.join(PUBLISHED)}")
    return load_pretrained(PUBLISHED[architecture], folder)


def _preprocessing(folder: Path, preprocessing: Preprocessing) -> tuple[Callable, Callable]:
    """What comes before the model in the exported one, and the image processor that must give the same."""
    if preprocessing == "none":
        return nn.Identity(), nn.Identity()
    processor = EdenImageProcessor.from_pretrained(folder)
    resize = preprocessing == "resize"
    try:
        return PixelPreprocessing(processor, resize), preprocessed(processor, resize)
    except ValueError as error:
        raise ExportError(f"{folder}: {error}") from error


def _example(model: PreTrainedModel, preprocessing: Preprocessing, batch: int, height: int, width: int) -> Tensor:
    """Images of noise, from 0 to 1, or of whole numbers to 255 where the exported model takes pixels."""
    shape = (batch, model.config.backbone_config.num_channels, height, width)
    return torch.rand(shape) if preprocessing == "none" else torch.randint(256, shape).float()


def _onnx(model: _Tensors, pixels: Tensor, file: Path) -> Callable[[Tensor], list[Tensor]]:
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401 (what torch writes ONNX with)
    except ImportError as error:
        raise ImportError("ONNX needs an extra: pip install 'eden_hf[export]'") from error
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)  # misses torchvision
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)  # torch of torch
        program = torch.onnx.export(
            model,
            (pixels,),
            dynamic_shapes=ANY_SIZE,
            dynamo=True,
            verbose=False,
            input_names=["pixel_values"],
            output_names=list(model.names),
        )
    assert program is not None
    functions = (function.all_nodes() for function in program.model.functions.values())
    for node in chain(program.model.graph.all_nodes(), *functions):
        node.metadata_props.clear()  # the lines of code that it is of, by paths of this machine
    program.save(str(file), external_data=False)
    return _session(file)


def _session(file: Path) -> Callable[[Tensor], list[Tensor]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda pixels: [torch.from_numpy(o) for o in session.run(None, {"pixel_values": pixels.numpy()})]


def _store_half(file: Path, output: Path) -> None:
    """Write an ONNX file again with its large weights in 16 bits, which are cast before they are used."""
    import onnx_ir

    model = onnx_ir.load(file)
    for weights in list(model.graph.initializers.values()):
        tensor = weights.const_value
        if tensor is None or tensor.dtype != onnx_ir.DataType.FLOAT or tensor.size < _LARGE:
            continue
        stored = onnx_ir.tensor(tensor.numpy().astype("float16"), name=f"{weights.name}_half")
        value = onnx_ir.Value(name=stored.name, shape=weights.shape, type=onnx_ir.TensorType(stored.dtype))
        value.const_value = stored
        cast = onnx_ir.node("Cast", [value], {"to": onnx_ir.DataType.FLOAT})
        cast.outputs[0].shape, cast.outputs[0].type = weights.shape, weights.type
        weights.replace_all_uses_with(cast.outputs[0])
        model.graph.register_initializer(value)
        del model.graph.initializers[str(weights.name)]
        model.graph.insert_before(model.graph[0], cast)
    onnx_ir.save(model, output)


def _program(model: _Tensors, pixels: Tensor, file: Path) -> Callable[[Tensor], tuple[Tensor, ...]]:
    program = torch.export.export(model, (pixels,), dynamic_shapes=ANY_SIZE)
    for node in program.graph.nodes:  # by paths of this machine
        node.meta.pop("stack_trace", None)
    torch.export.save(program, file)
    return torch.export.load(file).module()


@torch.inference_mode()
def _check(model: _Tensors, run: Callable, images: Sequence[Tensor], tolerance: float) -> float:
    """The largest difference, as a share of the largest value.

    Raises:
        ExportError: it is above `tolerance`.
    """
    shares = []
    for pixels in images:
        for name, expected, actual in zip(model.names, model(pixels), run(pixels), strict=True):
            off = float((expected - actual).abs().max() / expected.abs().max())
            if not off <= tolerance:
                raise ExportError(
                    f"the exported {name} of {list(pixels.shape)} images is off by {off:.1e} of the largest value"
                )
            shares.append(off)
    return max(shares)
