"""What the name of a model stands for: an Eden folder, any transformers vision model, or fresh weights of either."""

import hashlib
import os
from pathlib import Path
from typing import Any, Literal, NamedTuple

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # 5.17 hides it without torchvision

from eden_hf.configuration_eden import BACKBONE_PRESETS, EdenConfig
from eden_hf.image_processing_eden import EdenImageProcessor

FRESH = "random:"
#: Columns that stand beside encoders in tables and are no models: plain pixels, and what looks at no image.
PIXELS, MAJORITY = CONTROLS = ("pixels", "majority")


class NamedModel(NamedTuple):
    """What is known of a model before its weights are loaded.

    Attributes:
        origin: Folder, Hub id or preset.
        fresh: Whether its weights are to be drawn anew.
        config: Its configuration; of a model with two towers, such as CLIP, that of the vision tower.
        processor: Its image processor.
    """

    origin: str
    fresh: bool
    config: PreTrainedConfig
    processor: Any


def find_model(name: str, *, trust_remote_code: bool = False) -> NamedModel:
    """Configuration and image processor of a model.

    Args:
        name: An Eden folder, a folder or Hub id of any transformers vision model, or `random:` and such a name or a
            preset (`random:resnet18-half`).
        trust_remote_code: Whether code that comes with a Hub model may run.

    Raises:
        OSError: there is no such model.
        ValueError: it has no image processor, or is a preset without `random:`.
    """
    origin, fresh = os.path.expanduser(name.removeprefix(FRESH)), name.startswith(FRESH)  # noqa: PTH111 (a Hub id too)
    if origin in BACKBONE_PRESETS and not Path(origin).exists():
        if not fresh:
            raise ValueError(f"{name} is an architecture, not a model; {FRESH}{name} gives it fresh weights")
        return NamedModel(origin, fresh, EdenConfig(backbone_config=origin), EdenImageProcessor())
    try:
        config = AutoConfig.from_pretrained(origin, trust_remote_code=trust_remote_code)
        processor = AutoImageProcessor.from_pretrained(origin, trust_remote_code=trust_remote_code)
    except Exception as error:  # a configuration that somebody else wrote may raise anything
        raise OSError(
            f"no image model at {origin}: give a folder with config.json and preprocessor_config.json, or a Hub id "
            f"({first_line(error)})"
        ) from error
    return NamedModel(origin, fresh, getattr(config, "vision_config", config), processor)


def load_pretrained(kind: Any, origin: str | Path, **options: Any) -> Any:
    """`kind.from_pretrained(origin, **options)`, with errors that name the model.

    Raises:
        OSError: there is no such model, or its weights are damaged or do not fit its configuration.
    """
    try:
        return kind.from_pretrained(origin, **options)
    except Exception as error:  # of safetensors, of torch about shapes, of configurations about anything
        raise OSError(
            f"the model at {origin} cannot be loaded ({first_line(error)}); restore it from where it came from"
        ) from error


def first_line(error: Exception) -> str:
    """What an error of a library says first; of a configuration's, not which check of its failed, but why."""
    cause = error.__cause__ if isinstance(error, StrictDataclassError) else None
    return next(filter(None, str(cause or error).splitlines()), type(error).__name__)


def own_intensity(processor: Any) -> Literal["fixed", "per_image"]:
    """How a processor normalises intensities; all but `EdenImageProcessor` by a fixed mean and standard deviation."""
    return getattr(processor, "intensity", "fixed")


def adapted_processor(
    processor: Any, size: int | None = None, intensity: Literal["fixed", "per_image"] | None = None
) -> Any:
    """The processor with another size or way of intensities, where asked.

    An `EdenImageProcessor` takes the place of another model's when `intensity` is given, with that one's scale, mean
    and standard deviation; one that does not normalise stays so, unless intensities are asked to be `"per_image"`.
    """
    if intensity is not None and not isinstance(processor, EdenImageProcessor):
        cut = getattr(processor, "crop_size", None) if getattr(processor, "do_center_crop", False) else None
        own = cut or processor.size
        side = own.get("height") or own.get("shortest_edge") or 224
        names = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
        kept = {name: value for name in names if (value := getattr(processor, name, None)) is not None}
        if intensity == "per_image":
            kept["do_normalize"] = True
        processor = EdenImageProcessor(size={"height": side, "width": side}, **kept)
    if intensity is not None:
        processor.intensity = intensity
    if size is not None:
        for name, sides in squares_of(processor, size).items():
            setattr(processor, name, type(processor.size)(**sides))
    return processor


def squares_of(processor: Any, side: int) -> dict[str, dict[str, int]]:
    """The settings by which a processor's images become squares of `side` pixels."""
    square = {"height": side, "width": side}
    size = {"shortest_edge": side} if hasattr(processor, "crop_pct") else square  # ConvNeXt's takes one edge alone
    cut = [name for name in ("crop_size", "pad_size") if getattr(processor, name, None) is not None]
    return {"size": size, **dict.fromkeys(cut, square)}  # stock processors resize first, then cut to another size


def weights_revision(origin: str, model: PreTrainedModel | None = None) -> str | None:
    """The first 12 digits of the sha256 of a folder's weights, or the Hub's commit of a model that is no folder's."""
    files = sorted(Path(origin).glob("*.safetensors"))
    if not files:
        return getattr(model.config, "_commit_hash", None) if model else None
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            hashlib.file_digest(content, lambda: digest)
    return f"sha256 {digest.hexdigest()[:12]}"
