"""How others name the weights of a trunk, both ways, and where their checkpoint files keep it.

A `Naming` knows one family of trunks under the names of another library: torchvision's ResNets, which timm and
segmentation-models-pytorch share, and timm's ConvNeXt and ConvNeXt V2. A `Layout` knows one kind of file: the prefix
before those names and what else is in it. Names and shapes are facts of the published files; no code of others is
here.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedConfig

Branch = Literal["student", "teacher"]
Shapes = Mapping[str, Sequence[int]]


class CheckpointError(ValueError):
    """A checkpoint that cannot be converted; the message names the file, the keys and the mend."""


@dataclass(frozen=True)
class Naming:
    """How another library names the weights of one family of trunks.

    Attributes:
        model_type: The family in transformers.
        landmarks: Two names that every trunk of the family has, and no other family.
        theirs: Their name of a transformers name; `None` of a weight that they have none for.
        configuration: Settings of the transformers configuration, read off their names and shapes.
        heads: Patterns of their names beside the trunk, and what those are.
        synonyms: Starts of their names, and what the same weights may be called instead.
        plain: Settings that their model has, of a transformers configuration; with others they have no such model.
        flat: Pattern of their names of weights that they keep without transformers' sides of one.
    """

    model_type: str
    landmarks: tuple[str, str]
    theirs: Callable[[str], str | None]
    configuration: Callable[[Shapes], dict[str, Any]]
    heads: Mapping[str, str]
    plain: Callable[[PreTrainedConfig], dict[str, Any]]
    synonyms: Mapping[str, str]
    flat: str = r"(?!)"

    def names(self, trunk: Collection[str]) -> dict[str, str]:
        """Their name of each name of `trunk` (a transformers state dict) that they know."""
        return {name: their for name in trunk if (their := self.theirs(name)) is not None}


_RESNET_LEAVES = {"convolution": "conv", "normalization": "bn"}


def _torchvision_name(name: str) -> str:
    if match := re.fullmatch(r"embedder\.embedder\.(\w+)\.(\w+)", name):
        return f"{_RESNET_LEAVES[match[1]]}1.{match[2]}"
    if match := re.fullmatch(r"encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.(\d)\.(\w+)\.(\w+)", name):
        return f"layer{int(match[1]) + 1}.{match[2]}.{_RESNET_LEAVES[match[4]]}{int(match[3]) + 1}.{match[5]}"
    match = re.fullmatch(r"encoder\.stages\.(\d+)\.layers\.(\d+)\.shortcut\.(\w+)\.(\w+)", name)
    assert match, name
    return f"layer{int(match[1]) + 1}.{match[2]}.downsample.{int(match[3] == 'normalization')}.{match[4]}"


_CONVNEXT_STEM = {"patch_embeddings": "stem.0", "layernorm": "stem.1"}
_CONVNEXT_LEAVES = {
    "layer_scale_parameter": "gamma",
    "dwconv": "conv_dw",
    "layernorm": "norm",
    "pwconv1": "mlp.fc1",
    "grn": "mlp.grn",
    "pwconv2": "mlp.fc2",
}


def _timm_convnext_name(name: str, last_stage: str = "stage4") -> str | None:
    if match := re.fullmatch(r"embeddings\.(\w+)\.(\w+)", name):
        return f"{_CONVNEXT_STEM[match[1]]}.{match[2]}"
    if match := re.fullmatch(r"encoder\.stages\.(\d+)\.downsampling_layer\.(\d)\.(\w+)", name):
        return f"stages.{match[1]}.downsample.{match[2]}.{match[3]}"
    if match := re.fullmatch(r"encoder\.stages\.(\d+)\.layers\.(\d+)\.(\w+)(\.\w+)?", name):
        return f"stages.{match[1]}.blocks.{match[2]}.{_CONVNEXT_LEAVES[match[3]]}{match[4] or ''}"
    # transformers norms the last map before it is pooled, as timm's models with `head_norm_first=True` do.
    return name.replace(f"hidden_states_norms.{last_stage}", "norm_pre") if f".{last_stage}." in name else None


def _depths(shapes: Shapes, block: str, first: int) -> list[int]:
    """Blocks of each stage; `block` is a pattern of the stage's and the block's number, stages count from `first`.

    A stage or block that is left out is counted, so that its keys are found missing.
    """
    found = {(int(m[1]), int(m[2])) for name in shapes if (m := re.match(block, name))}
    stages = max(stage for stage, _ in found) - first + 1
    return [1 + max((b for stage, b in found if stage == s + first), default=0) for s in range(stages)]


def _size(shapes: Shapes, name: str, axis: int) -> int:
    """Size of an axis of the weight `name`, from which the architecture is read."""
    if name not in shapes or len(shapes[name]) <= axis:
        found = f"has the shape {list(shapes[name])}" if name in shapes else "is missing"
        raise CheckpointError(f"the architecture cannot be read off the weights: {name} {found}")
    return shapes[name][axis]


def _resnet_configuration(shapes: Shapes) -> dict[str, Any]:
    bottleneck = any(re.match(r"layer\d+\.\d+\.(conv|bn)3\.", name) for name in shapes)
    depths = _depths(shapes, r"layer(\d+)\.(\d+)\.", first=1)
    last = "conv3" if bottleneck else "conv2"
    return {
        "model_type": "resnet",
        "layer_type": "bottleneck" if bottleneck else "basic",
        "num_channels": _size(shapes, "conv1.weight", 1),
        "embedding_size": _size(shapes, "conv1.weight", 0),
        "hidden_sizes": [_size(shapes, f"layer{s + 1}.0.{last}.weight", 0) for s in range(len(depths))],
        "depths": depths,
    }


def _convnext_configuration(shapes: Shapes) -> dict[str, Any]:
    depths = _depths(shapes, r"stages\.(\d+)\.blocks\.(\d+)\.", first=0)
    second = "stages.0.blocks.0.mlp.grn.weight" in shapes
    settings = {
        "model_type": "convnextv2" if second else "convnext",
        "num_channels": _size(shapes, "stem.0.weight", 1),
        "patch_size": _size(shapes, "stem.0.weight", 2),
        "num_stages": len(depths),
        "hidden_sizes": [_size(shapes, f"stages.{s}.blocks.0.conv_dw.weight", 0) for s in range(len(depths))],
        "depths": depths,
    }
    if not second and "stages.0.blocks.0.gamma" not in shapes:
        settings["layer_scale_init_value"] = 0
    return settings


def _resnet_plain(config: PreTrainedConfig) -> dict[str, Any]:
    expansion = 4 if config.layer_type == "bottleneck" else 1
    return {
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
        "embedding_size": 64,
        "hidden_sizes": [width * expansion for width in (64, 128, 256, 512)],
    }


_CLASSIFIER = "classifier of the source, which a trunk has none of"

RESNET = Naming(
    model_type="resnet",
    landmarks=("conv1.weight", "layer1.0.conv1.weight"),
    theirs=_torchvision_name,
    configuration=_resnet_configuration,
    heads={r"fc\.(\d+\.)?(weight|bias)": _CLASSIFIER},
    plain=_resnet_plain,
    synonyms={},
)
CONVNEXT = Naming(
    model_type="convnext",
    landmarks=("stem.0.weight", "stages.0.blocks.0.conv_dw.weight"),
    theirs=_timm_convnext_name,
    configuration=_convnext_configuration,
    heads={r"head\.fc\.(weight|bias)": _CLASSIFIER},
    plain=lambda _: {"hidden_act": "gelu", "num_stages": 4},
    synonyms={"norm_pre.": "head.norm."},
    flat=r".*\.mlp\.grn\.(weight|bias)",
)
#: By the trunk's type in transformers.
NAMINGS = {"resnet": RESNET, "convnext": CONVNEXT, "convnextv2": CONVNEXT}


def find_trunks(names: Collection[str]) -> dict[str, Naming]:
    """Every trunk among `names`: the prefix before its weights' names, and how they are named."""
    known, trunks = set(names), {}
    for naming in (RESNET, CONVNEXT):
        first, second = naming.landmarks
        for name in names:
            prefix = name.removesuffix(first)
            if prefix != name and prefix[-1:] in ("", ".") and prefix + second in known:
                trunks[prefix] = naming
    return trunks


#: What wraps a state dict: the entry of the file that holds it, and DistributedDataParallel.
_WRAPPED = r"(?:(?:state_dict|model)\.)?(?:module\.)?"
_TORCHVISION = rf"^{_WRAPPED}$"

#: Names of the memory bank [D, K] and its pointer, and of the projector beside a trunk, in MoCo's kind of files.
BANK = rf"{_WRAPPED}queue(_ptr)?"
PROJECTOR = {
    "projector.dense.weight": "fc.0.weight",
    "projector.dense.bias": "fc.0.bias",
    "projector.out_proj.weight": "fc.2.weight",
    "projector.out_proj.bias": "fc.2.bias",
}

NON_COMMERCIAL = "authors-non-commercial"


@dataclass(frozen=True)
class Layout:
    """One kind of checkpoint file.

    Attributes:
        name: What `--layout` calls it.
        about: What it is, for cards and errors.
        trunks: Pattern of the prefix of each branch's trunk; the first is the branch converted unless told.
        marks: Pattern of keys of which a file has one at least, beside a trunk; what tells it from others.
        others: Patterns of further keys, and what they are.
        projector: Whether the trunk's `fc.0` and `fc.2` are the projector, with a bank in `queue` and `queue_ptr`.
        licence: Licence of the published files, where the layout tells whose they are.
        guessed: Whether files of others, of another function, may have the very same keys.
        localizability: Whether a localizability head stands beside each trunk, under the names of `HEAD`.
    """

    name: str
    about: str
    trunks: Mapping[Branch, str]
    marks: str
    others: Mapping[str, str]
    projector: bool = False
    licence: str | None = None
    guessed: bool = False
    localizability: bool = False


_MOCO_TRUNKS: dict[Branch, str] = {
    "student": rf"^{_WRAPPED}encoder_q\.$",
    "teacher": rf"^{_WRAPPED}encoder_k\.$",
}
_DINO_TRUNKS: dict[Branch, str] = {
    "teacher": r"^(?:teacher\.)?(?:module\.)?backbone\.$",
    "student": r"^student\.(?:module\.)?backbone\.$",
}
_DINO_HEAD = r"(?:(?:student|teacher)\.)?(?:module\.)?head\."
_DINO_HEADS = {rf"{_DINO_HEAD}.*": "projection head of another form than Eden's"}

#: Names of Adam-v2's centre, its part-whole heads, and the localizability head beside a trunk.
CENTER = "localizability_loss.center"
PART_WHOLE_HEADS = r"model\.(?:module\.)?(compose|decompose)_head\."
HEAD = {f"head.mlp.{layer}.{leaf}": f"head.mlp.{layer}.{leaf}" for layer in (0, 2, 4) for leaf in ("weight", "bias")}
HEAD |= {"head.last_layer.weight": "head.last_layer.weight_v"}

#: From the most telling to the least.
LAYOUTS: tuple[Layout, ...] = (
    Layout(
        "adam_v1",
        "the Adam authors' training checkpoint",
        _MOCO_TRUNKS,
        marks="best_loss",  # nothing else tells it from MoCo-v2's
        others={},
        projector=True,
        licence=NON_COMMERCIAL,
    ),
    Layout(
        "adam_v1",
        "the bare student of the Adam authors' best_checkpoint.pth",
        {"student": _TORCHVISION},
        marks=rf"{_WRAPPED}fc\.0\.weight",
        others={},
        projector=True,
        licence=NON_COMMERCIAL,
    ),
    Layout(
        "moco_v2",
        "MoCo-v2 (facebookresearch/moco)",
        _MOCO_TRUNKS,
        marks=rf"{_WRAPPED}encoder_q\..*",
        others={},
        projector=True,
    ),
    Layout(
        "adam_v2",
        "the authors' Adam-v2 checkpoint",
        _DINO_TRUNKS,
        marks=r"localizability_loss(\..*)?|(model\.)?(module\.)?(de)?compose_head\..*",
        others={
            rf"{_DINO_HEAD}last_layer\.weight_g": "lengths of the last layer's rows, which are 1",
            rf"{_DINO_HEAD}.*": "localizability head, which a trunk has none of",
            rf"{PART_WHOLE_HEADS}.*": "part-whole heads, which a trunk has none of",
            r"model\..*": "student and teacher once more",
            r"localizability_loss(\..*)?": "centre of the loss, which a trunk has none of",
        },
        licence=NON_COMMERCIAL,
        localizability=True,
    ),
    Layout(
        "dino",
        "DINO (facebookresearch/dino)",
        _DINO_TRUNKS,
        marks=r"(?:(?:student|teacher)\.)?(?:module\.)?backbone\..*",
        others={**_DINO_HEADS, r"dino_loss(\..*)?": "state of a loss that Eden has none of"},
    ),
    Layout(
        "smp",
        "segmentation-models-pytorch",
        {"student": rf"^{_WRAPPED}encoder\.$"},
        marks=rf"{_WRAPPED}encoder\..*",
        others={rf"{_WRAPPED}(decoder|segmentation_head|classification_head)\..*": "decoder or head of the source"},
    ),
    Layout("timm", "timm", {"student": _TORCHVISION}, marks=rf"{_WRAPPED}stem\..*", others={}),
    Layout(
        "torchvision", "torchvision, timm or a bare DINO backbone", {"student": _TORCHVISION}, r".*", {}, guessed=True
    ),
)

#: Entries of a training checkpoint that no trunk, teacher or bank is in, and what they are.
RECORDS = {
    r"(optimizer|lr_scheduler|scheduler|scaler|fp16_scaler|amp|amp_scaler)(\..*)?": "state of the training loop",
    r"(epoch|arch|args|best_loss|best_acc1|version|metric)": "record of the training run",
}


def find_layout(names: Collection[str], trunks: Mapping[str, Naming], forced: str | None = None) -> Layout:
    """The layout of a file with the keys `names` and `trunks` among them.

    Raises:
        CheckpointError: the keys fit no layout, or not the `forced` one, or there is none of that name.
    """
    if forced is not None and forced not in (known := list(dict.fromkeys(layout.name for layout in LAYOUTS))):
        raise CheckpointError(f"`layout` is one of {', '.join(known)}, got {forced!r}")
    fitting = [layout for layout in LAYOUTS if any(branch_prefixes(layout, b, trunks) for b in layout.trunks)]
    if forced is not None:
        chosen = [layout for layout in fitting if layout.name == forced]
    else:
        chosen = [layout for layout in fitting if any(re.fullmatch(layout.marks, name) for name in names)]
    if chosen:
        return chosen[0]
    seen = ", ".join(sorted(names)[:4])
    if forced is not None:
        may = ", ".join(layout.name for layout in fitting) or "none"
        raise CheckpointError(f"the keys are not those of the layout {forced!r} (of {may}, rather): {seen} ...")
    about = "; ".join(f"{layout.name}: {layout.about}" for layout in LAYOUTS)
    raise CheckpointError(f"no trunk of a known layout among the keys {seen} ... Known are {about}")


def branch_prefixes(layout: Layout, branch: Branch, trunks: Mapping[str, Naming]) -> list[str]:
    """Prefixes of `trunks` that are the `branch` of `layout`."""
    return [prefix for prefix in trunks if branch in layout.trunks and re.match(layout.trunks[branch], prefix)]
