"""What is trained with: float32 weights, whatever a start's file holds, and mixed precision where there is any."""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from safetensors import safe_open
from transformers.utils import SAFE_WEIGHTS_NAME

from eden_hf.configuration_eden import EdenConfig
from eden_hf.encoders import gains_from_bfloat16


def check_precision(mixed_precision: str) -> None:
    """Refuse what would be recorded without being done.

    Raises:
        ValueError: fp16 is asked for on a CPU, which would train in float32.
    """
    if mixed_precision == "fp16" and not torch.accelerator.is_available():
        raise ValueError("`training.mixed_precision` fp16 needs a GPU, and there is none: choose bf16 or no")


def precision_used(mixed_precision: str, device: torch.device) -> str:
    """What `auto` stands for on a device: bf16 where it has instructions for it, else no; others as they are."""
    if mixed_precision != "auto":
        return mixed_precision
    return "bf16" if gains_from_bfloat16(device) else "no"


def in_float32(config: EdenConfig) -> None:
    """Let models of `config` be made in float32. Steps as small as training's vanish in half precision."""
    trunk: Any = config.backbone_config
    config.dtype = trunk.dtype = torch.float32


def held_dtypes(origin: str) -> list[str]:
    """Such as `["F16"]`, by safetensors' names: of the floating-point weights in the files of a folder.

    Of a Hub id those of the loaded file; none where there is no such file, as of fresh weights.
    """
    files: list[Any] = sorted(Path(origin).glob("*.safetensors"))
    if not files and isinstance(cached := _in_cache(origin), str):
        files = [cached]
    found = set()
    for file in files:
        with safe_open(file, "pt") as held:
            found |= {held.get_slice(name).get_dtype() for name in held.keys()}  # noqa: SIM118 (no dict)
    return sorted(name for name in found if name.startswith(("F", "BF")))


def _in_cache(origin: str) -> Any:
    try:
        return try_to_load_from_cache(origin, SAFE_WEIGHTS_NAME)
    except HFValidationError:  # no id, so a folder or a preset
        return None
