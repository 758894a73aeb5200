"""Trunk and head models as ONNX and as `torch.export` programs, for any batch and image size."""

import json
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from eden_hf.hub.export_pixels import PixelPreprocessing, Preprocessing, preprocessed
from eden_hf.hub.repository import PUBLISHED
from eden_hf.image_processing_eden import EdenImageProcessor
from eden_hf.model_names import load_pretrained
from eden_hf.training.lineage import write_lineage

ENDINGS = {"onnx": ".onnx", "program": ".pt2"}
#: A batch to trace: its sides differ, since a trace of equal ones asks for equal ones for ever after.
TRACED = (2, 128, 192)
#: Batches to check: other numbers and sizes than were traced.
CHECKED = ((1, 224, 224), (3, 96, 160))
ANY_SIZE = ({0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO},)
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
    tolerance: float | None = None,
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
        tolerance: Difference that is accepted, as a share of the largest value: 1e-4, or 1e-2 with `half`, unless
            given.

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
    eden = _load(Path(model)).eval()
    inside, beside = _preprocessing(model, preprocessing)
    wrapped, reference = _Tensors(eden, inside, outputs).eval(), _Tensors(eden, beside, outputs)
    accepted = tolerance if tolerance is not None else HALF_TOLERANCE if half else TOLERANCE
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:  # a wrong model never stands under the name
        written = Path(folder) / file.name
        traced, *checked = (_example(eden, preprocessing, *shape) for shape in (TRACED, *CHECKED))
        try:
            run = _onnx(wrapped, traced, written, half) if format == "onnx" else _program(wrapped, traced, written)
            for pixels in checked:
                _check(reference, run, pixels, accepted, file)
        except (RuntimeError, AssertionError) as error:  # the latter of a program that is bound to the traced sizes
            said = re.sub(r"\x1b\[\d*m", "", str(error).strip().splitlines()[0])[:200]
            raise ExportError(
                f"{model}: {type(eden).__name__} on {eden.config.backbone_config.model_type}: {said}"
            ) from error
        written.rename(file)
    write_lineage(file, "export", [model])
    return file


def _load(folder: Path) -> PreTrainedModel:
    if not (folder / "config.json").is_file():
        raise ExportError(f"{folder} is no model folder: it has no config.json")
    architecture = (json.loads((folder / "config.json").read_text()).get("architectures") or [None])[0]
    if architecture not in PUBLISHED:
        raise ExportError(f"{folder} is of {architecture}; exported are {', '.join(PUBLISHED)}")
    return load_pretrained(PUBLISHED[architecture], folder)


def _preprocessing(folder: str, preprocessing: Preprocessing) -> tuple[Callable, Callable]:
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


def _onnx(model: _Tensors, pixels: Tensor, file: Path, half: bool) -> Callable[[Tensor], list[Tensor]]:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 (what torch writes ONNX with)
    except ImportError as error:
        raise ImportError("ONNX needs an extra: pip install 'eden_hf[export]'") from error
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
    if half:
        _store_half(program.model.graph)
    program.save(file, external_data=False)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda pixels: [torch.from_numpy(o) for o in session.run(None, {"pixel_values": pixels.numpy()})]


def _store_half(graph: Any) -> None:
    """Store large weights of an `onnx_ir.Graph` with 16 bits, and cast them before they are used."""
    import onnx_ir

    for weights in list(graph.initializers.values()):
        tensor = weights.const_value
        if tensor.dtype != onnx_ir.DataType.FLOAT or tensor.size < _LARGE:
            continue
        stored = onnx_ir.tensor(tensor.numpy().astype("float16"), name=f"{weights.name}_half")
        value = onnx_ir.Value(name=stored.name, shape=weights.shape, type=onnx_ir.TensorType(stored.dtype))
        value.const_value = stored
        cast = onnx_ir.node("Cast", [value], {"to": onnx_ir.DataType.FLOAT})
        weights.replace_all_uses_with(cast.outputs[0])
        cast.outputs[0].shape, cast.outputs[0].type = weights.shape, weights.type
        graph.register_initializer(value)
        del graph.initializers[weights.name]
        graph.insert_before(graph[0], cast)


def _program(model: _Tensors, pixels: Tensor, file: Path) -> Callable[[Tensor], tuple[Tensor, ...]]:
    torch.export.save(torch.export.export(model, (pixels,), dynamic_shapes=ANY_SIZE), file)
    return torch.export.load(file).module()


@torch.inference_mode()
def _check(model: _Tensors, run: Callable, pixels: Tensor, tolerance: float, file: Path) -> None:
    for name, expected, actual in zip(model.names, model(pixels), run(pixels), strict=True):
        off = float((expected - actual).abs().max() / expected.abs().max())
        if not off <= tolerance:
            raise ExportError(
                f"{file}: {name} of {list(pixels.shape)} images is off by {off:.1e} of the largest value"
            )
