"""Trunk and head models as ONNX and as `torch.export` programs, for any batch and image size."""

import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from eden_hf.hub.repository import PUBLISHED
from eden_hf.training.lineage import write_lineage

ENDINGS = {"onnx": ".onnx", "program": ".pt2"}
#: A batch to trace: its sides differ, since a trace of equal ones asks for equal ones for ever after.
TRACED = (2, 128, 192)
#: Batches to check: other numbers and sizes than were traced.
CHECKED = ((1, 224, 224), (3, 96, 160))


class ExportError(ValueError):
    """A model that cannot be exported; the message says why."""


class _Tensors(nn.Module):
    """A model that gives a tuple of tensors."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        trunk = type(model).__name__ == "EdenModel"
        points = ("dense_embeddings",) if model.config.dense_dim is not None else ()
        self.names = ("last_hidden_state", "pooler_output", *points) if trunk else ("logits",)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        output = self.model(pixel_values)
        return tuple(output[name] for name in self.names)


def export_model(
    model: str,
    output: str,
    format: Literal["onnx", "program"] = "onnx",  # noqa: A002
    tolerance: float = 1e-4,
) -> Path:
    """Export a model, and check that it gives PyTorch's numbers at other batches and sizes than it was traced with.

    Args:
        model: Folder of an Eden trunk or head model; of a pretraining model the student's trunk is taken.
        output: File to write, `.onnx` or `.pt2`. Its input is `pixel_values` [B, C, H, W], float32, as the image
            processor gives it; its outputs are `last_hidden_state` [B, C, h, w] and `pooler_output` [B, C] of a trunk,
            with a dense decoder also `dense_embeddings` [B, D, H / 4, W / 4], and `logits` of a head model.
        format: `onnx` (needs the extra `export`), or `program` for `torch.export.load`.
        tolerance: Difference that is accepted, as a share of the largest value.

    Returns:
        `output`.

    Raises:
        ExportError: there is no Eden model in `model`, `output` is there already or has another ending, the trunk
            cannot be exported for any size (Swin), or the exported model gives other numbers; nothing is written then.
        ImportError: `format` is `onnx` and the extra is not installed.
    """
    file = Path(output)
    if file.suffix != ENDINGS[format]:
        raise ExportError(f"{file} must end in {ENDINGS[format]}, being of the format {format}")
    if file.exists():
        raise ExportError(f"{file} is there already: choose another output")
    eden = _load(Path(model))
    wrapped = _Tensors(eden).eval()
    channels = eden.config.backbone_config.num_channels
    any_size = ({0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO},)
    traced, *checked = (torch.rand(number, channels, *sides) for number, *sides in (TRACED, *CHECKED))
    export = _onnx if format == "onnx" else _program
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:  # a wrong model never stands under the name
        written = Path(folder) / file.name
        try:
            run = export(wrapped, traced, any_size, written)
            for pixels in checked:
                _check(wrapped, run, pixels, tolerance, file)
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
    return PUBLISHED[architecture].from_pretrained(folder)


def _onnx(model: _Tensors, pixels: Tensor, sizes: tuple, file: Path) -> Callable[[Tensor], list[Tensor]]:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 (what torch writes ONNX with)
    except ImportError as error:
        raise ImportError("ONNX needs an extra: pip install 'eden_hf[export]'") from error
    torch.onnx.export(
        model,
        (pixels,),
        str(file),
        dynamic_shapes=sizes,
        dynamo=True,
        verbose=False,
        external_data=False,
        input_names=["pixel_values"],
        output_names=list(model.names),
    )
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda pixels: [torch.from_numpy(o) for o in session.run(None, {"pixel_values": pixels.numpy()})]


def _program(model: _Tensors, pixels: Tensor, sizes: tuple, file: Path) -> Callable[[Tensor], tuple[Tensor, ...]]:
    torch.export.save(torch.export.export(model, (pixels,), dynamic_shapes=sizes), file)
    return torch.export.load(file).module()


@torch.inference_mode()
def _check(model: _Tensors, run: Callable, pixels: Tensor, tolerance: float, file: Path) -> None:
    for name, expected, actual in zip(model.names, model(pixels), run(pixels), strict=True):
        off = float((expected - actual).abs().max() / expected.abs().max())
        if not off <= tolerance:
            raise ExportError(
                f"{file}: {name} of {list(pixels.shape)} images is off by {off:.1e} of the largest value"
            )
