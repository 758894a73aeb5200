"""Image encoders of any kind behind one shape: an Eden folder, any transformers vision model, fresh weights."""

import copy
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from transformers import AutoModel, PreTrainedModel

from eden_hf.image_processing_eden import EdenImageProcessor
from eden_hf.model_names import FRESH, adapted_processor, find_model, load_pretrained, squares_of, weights_revision
from eden_hf.modeling_eden_trunk import as_map

__all__ = [
    "FRESH",
    "Encoder",
    "check_encoders",
    "embed",
    "gains_from_bfloat16",
    "load_encoder",
    "nearest_neighbours",
    "pooled",
    "processed",
    "with_norms_folded",
]

#: A token trunk has a state for each of many layers: this many, evenly spaced, are its "stages".
TOKEN_STAGES = 4


@dataclass(frozen=True)
class Encoder:
    """An image encoder and the processor that feeds it.

    Attributes:
        model: Any transformers vision model without a head, in evaluation mode on its device.
        processor: Its image processor: `processor(images=[...], return_tensors="pt")["pixel_values"]`.
        name: What results call it.
        revision: What tells its weights from others': a commit of the Hub, the start of the weights' sha256, or a
            seed.
    """

    model: PreTrainedModel
    processor: Any
    name: str = ""
    revision: str | None = None

    def __post_init__(self) -> None:
        self.model.eval()
        if gains_from_bfloat16(self.model.device):
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-arg]  # transformers wraps `to`

    @property
    def is_dense(self) -> bool:
        """Whether the model has embeddings of points: an `EdenModel` with a dense decoder."""
        return getattr(getattr(self.model, "config", None), "dense_dim", None) is not None

    @property
    def architecture(self) -> str:
        """What encoders share that differ in their weights alone: the trunk's class and a hash of its shapes."""
        trunk = getattr(self.model, "backbone", self.model)
        shapes = [(name, tuple(values.shape)) for name, values in trunk.state_dict().items()]
        return f"{type(trunk).__name__} {hashlib.sha256(repr(shapes).encode()).hexdigest()[:8]}"

    def pixel_values(self, images: Sequence[Image.Image | np.ndarray], size: int | None = None) -> Tensor:
        """`[B, 3, H, W]` of images, on the model's device in its dtype, at `size` or the processor's own."""
        return processed(self.processor, images, size).to(self.model.device, self.model.dtype)

    def feature_maps(self, pixel_values: Tensor) -> list[Tensor]:
        """The trunk's feature maps from its earliest stage to its last, `[B, C_stage, h_stage, w_stage]` each.

        Of a token trunk (ViT, DINOv2) they are the patch tokens after a quarter, half, three quarters and all of its
        layers. Run it under `torch.inference_mode()` unless gradients are wanted.

        Args:
            pixel_values: `[B, 3, H, W]`, from `pixel_values` or of any other size that the trunk takes.

        Raises:
            ValueError: the model gives no hidden states that are maps or rows of patch tokens.
        """
        return stage_maps(self.model, pixel_values)


def stage_maps(model: Any, pixel_values: Tensor) -> list[Tensor]:
    """`Encoder.feature_maps` of a model by itself, which stays as it is."""
    outputs = model(pixel_values=pixel_values, output_hidden_states=True)
    states = getattr(outputs, "reshaped_hidden_states", None) or outputs.hidden_states
    if not states:
        raise ValueError(f"{type(model).__name__} gives no hidden states to make feature maps of")
    if states[0].ndim == 4:
        return [state for state, after in pairwise([*states, None]) if after is None or _coarser(after, state)]
    chosen = np.linspace(0, len(states) - 1, TOKEN_STAGES + 1).round().astype(int)[1:]
    config = getattr(model.config, "backbone_config", model.config)
    return [as_map(states[index], pixel_values, config) for index in chosen]


def processed(processor: Any, images: Sequence[Image.Image | np.ndarray], size: int | None = None) -> Tensor:
    """`[B, 3, H, W]` float32 of images by any image processor, at `size` or its own."""
    if not isinstance(processor, EdenImageProcessor):  # stock processors misread grey images
        images = [image.convert("RGB") if isinstance(image, Image.Image) else image for image in images]
    sized = {} if size is None else squares_of(processor, size)
    return processor(images=images, return_tensors="pt", **sized)["pixel_values"]


def _coarser(after: Tensor, state: Tensor) -> bool:
    """Whether a stage ends at `state`: what follows is smaller or wider (stems repeat the first stage's size)."""
    return after.shape[1:] != state.shape[1:]


def load_encoder(
    name: str,
    *,
    size: int | None = None,
    intensity: Literal["fixed", "per_image"] | None = None,
    seed: int = 0,
    trust_remote_code: bool = False,
) -> Encoder:
    """Load an image encoder by its name.

    Args:
        name: An Eden folder, a folder or Hub id of any transformers vision model, or `random:` and such a name or a
            preset (`random:resnet18-half`): the same architecture and processor with fresh weights.
        size: Pixels a side that images are brought to, instead of the processor's own.
        intensity: How intensities are normalised, instead of the processor's own way (see `EdenImageProcessor`,
            which then takes the place of another model's processor, with that one's mean and standard deviation).
        seed: Of fresh weights.
        trust_remote_code: Whether code that comes with a Hub model may run.

    Raises:
        OSError: there is no such model.
        ValueError: it has no image processor, or is none of the kinds above.
    """
    named = find_model(name, trust_remote_code=trust_remote_code)
    if named.fresh:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = AutoModel.from_config(named.config, trust_remote_code=trust_remote_code)
        revision: str | None = f"seed {seed}"
    else:
        model = load_pretrained(AutoModel, named.origin, config=named.config, trust_remote_code=trust_remote_code)
        revision = weights_revision(named.origin, model)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return Encoder(model.to(device or "cpu"), adapted_processor(named.processor, size, intensity), name, revision)


def check_encoders(
    names: Iterable[str],
    *,
    size: int | None = None,
    intensity: Literal["fixed", "per_image"] | None = None,
) -> None:
    """Raise what would be raised of any of several encoders, before the first of them is measured.

    Args:
        names: As for `load_encoder`, as are the others.
        size: See there.
        intensity: See there.

    Raises:
        OSError: there is no such model.
        ValueError: it has no image processor, or one that cannot make images of `size`.
    """
    for name in names:
        processor = adapted_processor(find_model(name).processor, size, intensity)
        try:
            made = processed(processor, [Image.new("L", (64, 48))])
        except Exception as error:  # whatever a processor that somebody else wrote may raise
            raise ValueError(f"the image processor of {name} fails on an image: {error}") from error
        if size is not None and made.shape[-2:] != (size, size):
            raise ValueError(f"the image processor of {name} makes images of {made.shape[-2:]}, not of `size` {size}")


def check_whole_images(encoder: Encoder) -> None:
    """Raise if a processor cuts or pads images: maps would then not lie upon the images that masks are of.

    Raises:
        ValueError: lines at a quarter and three quarters of an image are elsewhere in what the processor gives.
    """
    image = np.zeros((128, 256), np.uint8)
    for place in (1 / 4, 3 / 4):
        for axis, length in enumerate(image.shape):
            middle = round(place * length)
            image.swapaxes(0, axis)[middle - 3 : middle + 3] = 255
    given = processed(encoder.processor, [Image.fromarray(image)])[0, 0].float()
    for profile in (given.mean(dim=0), given.mean(dim=1)):
        bright = (profile > (profile.min() + profile.max()) / 2).nonzero() + 0.5
        halves = (bright[bright < len(profile) / 2], bright[bright > len(profile) / 2])
        found = torch.stack([half.mean() for half in halves]) / len(profile)
        if not torch.allclose(found, torch.tensor([1 / 4, 3 / 4]), rtol=0, atol=1 / len(profile)):
            raise ValueError(
                f"the image processor of {encoder.name} cuts or pads images, so that its feature maps do not lie upon "
                "them; load the encoder with `intensity`, which makes an EdenImageProcessor of it, with "
                '`aspect_ratio="resize"`'
            )


def embed(encoder: Encoder, images: Iterable[Image.Image | np.ndarray], batch_size: int = 64) -> Tensor:
    """One unit vector for each image.

    An embedding is the encoder's `pooler_output`, or where it has none the mean of the map or of the patches' tokens
    in `last_hidden_state`, scaled to length 1.

    Args:
        encoder: From `load_encoder`, or `Encoder(model, processor)`.
        images: What the processor takes; read `batch_size` at a time, so a generator may be longer than memory.
        batch_size: Images in one forward pass.

    Returns:
        `[N, C]` float32 on the CPU, unit rows.

    Raises:
        ValueError: there are no images, or the model's output has neither field.
    """
    encoder.model.eval()  # it may have gone back to training since
    waiting, embedded = iter(images), []
    sparing = {"output_dense_embeddings": False} if encoder.is_dense else {}
    while batch := list(islice(waiting, batch_size)):
        with torch.inference_mode():
            pixel_values = encoder.pixel_values(batch)
            outputs = encoder.model(pixel_values=pixel_values, **sparing)
            vectors = pooled(outputs, pixel_values, getattr(encoder.model, "config", None))
            embedded.append(F.normalize(vectors.float(), dim=1).cpu())
    if not embedded:
        raise ValueError("there are no images to embed: the sequence given is empty")
    return torch.cat(embedded)  # outside inference mode, so that a probe can be trained on the result


def pooled(outputs: Any, pixel_values: Tensor, config: Any) -> Tensor:
    """One vector an image, `[B, C]`, from the output of an image encoder.

    Tokens without a pooler are averaged over the patches, as in a trunk: class, register and detection tokens are left
    out.

    Args:
        outputs: What the encoder gave.
        pixel_values: What it was given, `[B, C, H, W]`.
        config: The encoder's, if it has one; controls of pixels have none.

    Raises:
        ValueError: it has neither `pooler_output` nor `last_hidden_state`, or tokens that are no grid.
    """
    if (vectors := getattr(outputs, "pooler_output", None)) is not None:
        return vectors.flatten(1)  # [B, C], or [B, C, 1, 1] of the ResNets in transformers
    if (features := getattr(outputs, "last_hidden_state", None)) is not None:
        return as_map(features, pixel_values, config).mean(dim=(2, 3))
    raise ValueError(
        f"{type(outputs).__name__} has neither pooler_output nor last_hidden_state; "
        "load an encoder without a head, for example with AutoModel.from_pretrained"
    )


def gains_from_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: Callable[[], Mapping[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)  # from torch 2.11 on
    return device.type == "cpu" and any(capabilities().get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def with_norms_folded(model: Any) -> Any:
    """A model for inference in which convolutions do their BatchNorms' work, for speed.

    Folded are those of transformers' convolution layers and of `nn.Sequential`, whose order is known.

    Args:
        model: In evaluation mode. It stays as it is, and is returned itself where there is nothing to fold.
    """
    foldable = [(name, *pair) for name, layer in model.named_modules() for pair in _convolutions_with_norms(layer)]
    if not foldable:
        return model
    folded = copy.deepcopy(model)
    for name, convolution, norm in foldable:
        layer = folded.get_submodule(name)
        fused = fuse_conv_bn_eval(getattr(layer, convolution), getattr(layer, norm))
        setattr(layer, convolution, fused)
        setattr(layer, norm, nn.Identity())
    return folded


def _convolutions_with_norms(layer: nn.Module) -> list[tuple[str, str]]:
    """Names of a layer's convolutions and of the BatchNorms right behind them."""
    names = [name for name, _ in layer.named_children()]
    ordered = isinstance(layer, nn.Sequential) or names[:2] == ["convolution", "normalization"]
    return [
        (first, second)
        for first, second in pairwise(names if ordered else ())
        if isinstance(getattr(layer, first), nn.Conv2d) and isinstance(getattr(layer, second), nn.BatchNorm2d)
    ]


def nearest_neighbours(queries: Tensor, gallery: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The `k` rows of `gallery` that are most alike to each query, by cosine similarity.

    Args:
        queries: `[Q, C]`.
        gallery: `[N, C]`. A query that is itself in the gallery finds itself first.
        k: How many, 1 to N.

    Returns:
        Similarities `[Q, k]`, falling, and row numbers `[Q, k]` int64.

    Raises:
        ValueError: `k` is below 1 or above N.
    """
    if not 1 <= k <= len(gallery):
        raise ValueError(f"k must be between 1 and the {len(gallery)} rows of the gallery, got k={k}")
    similarities, indices = (F.normalize(queries, dim=1) @ F.normalize(gallery, dim=1).T).topk(k)
    return similarities, indices
