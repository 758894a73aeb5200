"""Checkpoints from elsewhere as Eden folders, and trunks under other libraries' names.

`convert_checkpoint` reads the authors' Adam files, MoCo-v2 and DINO ResNets, and torchvision, timm and
segmentation-models-pytorch state dicts (see `key_layouts`). Every key is mapped, dropped with a reason, or an error.
"""

import argparse
import difflib
import json
import pickle
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from transformers import PreTrainedModel

from eden_hf.configuration_eden import EdenConfig
from eden_hf.hub.cards import write_card
from eden_hf.hub.key_layouts import (
    BANK,
    CENTER,
    HEAD,
    NAMINGS,
    NON_COMMERCIAL,
    PART_WHOLE_HEADS,
    PROJECTOR,
    RECORDS,
    Branch,
    CheckpointError,
    Layout,
    Naming,
    branch_prefixes,
    find_layout,
    find_trunks,
)
from eden_hf.hub.repository import write_public_lineage
from eden_hf.image_processing_eden import EdenImageProcessor
from eden_hf.modeling_eden import EdenForPreTraining, EdenModel, EdenV2ForPreTraining
from eden_hf.training.checkpoints import replace_folder
from eden_hf.training.lineage import file_hash, write_lineage

REPORT_FILE = "conversion.json"
#: What torch and safetensors raise of text, of other archives and of files that end too early.
_UNREADABLE = (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, ValueError, LookupError, OSError)
_NUMPY_SCALAR = np.float64(0).__reduce__()[0]
#: What files of DINO (its arguments) and of Adam-v2 (rates of its optimiser) hold beside tensors; none runs code.
_HARMLESS: list[Any] = [
    argparse.Namespace,
    *((_NUMPY_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *(np.dtype, np.dtypes.Float64DType, np.dtypes.Float32DType, np.dtypes.Int64DType),
]
#: Prefix of an exported trunk's weights.
EXPORTS = {"torchvision": "", "timm": "", "smp": "encoder."}
_FITTING = {"torchvision": ("resnet",), "timm": tuple(NAMINGS), "smp": ("resnet",)}


@dataclass(frozen=True)
class Conversion:
    """What became of every key of a checkpoint.

    Attributes:
        source: Name of the file.
        sha256: Of the file.
        layout: Its kind, and `about` in words.
        about: What that kind is.
        licence: Licence of the source's weights as far as its kind tells.
        model: Class that the folder holds.
        mapped: The source's name of each weight by the name here.
        dropped: Reason of each key that was left out.
        initial: Weights here that the source has none for; they are as initialised.
        notes: What else differs.
    """

    source: str
    sha256: str
    layout: str
    about: str
    licence: str | None
    model: str
    mapped: dict[str, str]
    dropped: dict[str, str]
    initial: list[str]
    notes: list[str]

    def __str__(self) -> str:
        reasons: dict[str, list[str]] = {}
        for name, reason in self.dropped.items():
            reasons.setdefault(reason, []).append(name)
        lines = [f"{self.source} ({self.about}) -> {self.model}", f"{len(self.mapped):6} keys mapped"]
        lines += [f"{len(names):6} keys dropped: {reason} ({names[0]} ...)" for reason, names in reasons.items()]
        lines += [f"{len(self.initial):6} weights as initialised: {self.initial[0]} ..."] if self.initial else []
        return "\n".join([*lines, *self.notes, f"licence of the weights: {self.licence or 'that of the source'}"])


def convert_checkpoint(
    source: str,
    output: str,
    layout: str | None = None,
    branch: Branch | None = None,
    pretraining: bool = False,
    model_id: str | None = None,
    license: str | None = None,  # noqa: A002 (as in card.yaml)
) -> Conversion:
    """Convert a checkpoint file to an Eden folder, with its report and card.

    Args:
        source: `.pth`, `.pt` and the like, read with `weights_only=True`, or `.safetensors`.
        output: Folder to make: weights, configuration and processor (ImageNet's statistics, 224 pixels) with their
            code, `conversion.json`, `card.yaml` and the card.
        layout: Kind of the file (`adam_v1`, `moco_v2`, `adam_v2`, `dino`, `smp`, `timm`, `torchvision`) where the keys
            do not tell, or tell wrong; must be said of a bare ResNet with bottlenecks.
        branch: `student` or `teacher`; by default the one that is used downstream.
        pretraining: Make an `EdenForPreTraining` of student, teacher, projectors and memory bank; of Adam-v2's files
            an `EdenV2ForPreTraining` of student, teacher, heads and centre.
        model_id: Hub id of the converted model for its card.
        license: Licence of the source's weights as the Hub names it, where the kind of file does not tell.

    Raises:
        CheckpointError: the file is none that can be read or is of no known kind; a key is missing, unknown or of
            another shape or type; a weight is not finite; `license` is given of weights whose licence is known;
            `output` holds something.
    """
    file, folder = Path(source), Path(output)
    if folder.is_file() or (folder.exists() and any(folder.iterdir())):
        raise CheckpointError(f"{folder} is not empty: choose another output")
    tensors, records = read_checkpoint(file)
    try:
        mapper = _Mapper(tensors, records, layout)
        if license and mapper.layout.licence:
            raise CheckpointError(
                f"the licence of {mapper.layout.about} is known ({mapper.layout.licence}): leave out `license`, or "
                "name the `layout` if the file is another"
            )
        model, state, mapped = mapper.pretraining() if pretraining else mapper.trunk(branch)
        conversion = Conversion(
            source=file.name,
            sha256=file_hash(file),
            layout=mapper.layout.name,
            about=mapper.layout.about,
            licence=license or mapper.layout.licence,
            model=type(model).__name__,
            mapped=mapped,
            dropped=mapper.dropped(set(mapped.values())),
            initial=sorted(model.state_dict().keys() - state.keys()),
            notes=mapper.notes(set(mapped.values())),
        )
        mapper.check_stride()
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from None
    model.load_state_dict(state, strict=False)

    def write(temporary: Path) -> None:
        model.save_pretrained(temporary)
        EdenImageProcessor().save_pretrained(temporary)
        (temporary / REPORT_FILE).write_text(json.dumps(asdict(conversion), indent=1) + "\n")
        declared = _declared(conversion, model_id or f"converted/{folder.name}")
        (temporary / "card.yaml").write_text(yaml.safe_dump(declared, sort_keys=False))
        write_public_lineage(temporary, "convert", file)
        if not pretraining:  # cards are of what is published, and that is the trunk
            write_card(temporary)

    replace_folder(folder, write)
    return conversion


def read_checkpoint(file: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors of a file by their dotted names, without torch.compile's `_orig_mod.`, and names of what else it holds.

    Raises:
        CheckpointError: there is no such file, it cannot be read without running code in it, or it holds no tensors.
    """
    if not file.is_file():
        raise CheckpointError(f"{file} is missing")
    try:
        content = load_file(file) if file.suffix == ".safetensors" else _unpickled(file)
    except _UNREADABLE as error:
        # torch's own message advises to read the file with `weights_only=False`, which would run what is in it.
        if code := re.search(r"GLOBAL (\S+)", str(error)):
            raise CheckpointError(
                f"{file} holds more than weights ({code[1]}), which would run code of whoever wrote it: save its "
                "state dict alone, where you trust it"
            ) from error
        raise CheckpointError(f"{file} is no checkpoint, or is cut short ({type(error).__name__})") from error
    tensors: dict[str, Tensor] = {}
    records: list[str] = []
    for name, value in _flattened(content if isinstance(content, dict) else {}):
        if isinstance(value, Tensor):
            tensors[name.replace("_orig_mod.", "")] = value
        else:
            records.append(name)
    if not tensors:
        raise CheckpointError(f"{file} holds no named tensors, but {type(content).__name__}: save a state dict")
    return tensors, records


def _unpickled(file: Path) -> Any:
    with torch.serialization.safe_globals(_HARMLESS):
        return torch.load(file, map_location="cpu", weights_only=True)  # noqa: TID251 (the format of others)


def _flattened(content: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves by dotted names; states of the training loop stay whole."""
    for key, value in content.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping) and not any(re.fullmatch(pattern, name) for pattern in RECORDS):
            yield from _flattened(value, f"{name}.")
        else:
            yield name, value


class _Mapper:
    """The tensors of a file under the names of an Eden model."""

    def __init__(self, tensors: dict[str, Tensor], records: list[str], layout: str | None) -> None:
        self.tensors, self.records = tensors, records
        self.trunks = find_trunks(tensors)
        self.layout: Layout = find_layout([*tensors, *records], self.trunks, layout)
        self.guessed = self.layout.guessed and layout is None
        self.expected: set[str] = set()  # names of the trunk's weights, behind the prefix

    def trunk(self, branch: Branch | None) -> tuple[PreTrainedModel, dict[str, Tensor], dict[str, str]]:
        """Model, its weights, and the source's name of each, of a trunk."""
        branches: list[Branch] = [branch] if branch else list(self.layout.trunks)
        prefix = self._prefix(*branches)
        model = EdenModel(EdenConfig(backbone_config=self._architecture(prefix)))
        mapped = self._named(prefix, model.state_dict(), "backbone.")
        return model, self._state(model, mapped), mapped

    def pretraining(self) -> tuple[PreTrainedModel, dict[str, Tensor], dict[str, str]]:
        """The same of student and teacher with what else is needed to go on pretraining."""
        if self.layout.localizability:
            return self._second_generation()
        banks = {match[1] or "": name for name in self.tensors if (match := re.fullmatch(BANK, name))}
        if not self.layout.projector or "" not in banks:
            raise CheckpointError(
                f"a file of {self.layout.about} without memory bank gives a trunk, no pretraining model"
            )
        prefixes = {branch: self._prefix(branch) for branch in ("student", "teacher")}
        bank = self.tensors[banks[""]]
        if bank.ndim != 2:
            raise CheckpointError(f"{banks['']} has the shape {list(bank.shape)}, not [D, K]")
        config = EdenConfig(
            backbone_config=self._architecture(prefixes["student"]),
            projection_dim=bank.shape[0],
            memory_bank_size=bank.shape[1],
        )
        model = EdenForPreTraining(config)
        mapped = {"memory_bank": banks[""]} | ({"bank_ptr": banks["_ptr"]} if "_ptr" in banks else {})
        for branch, ours in (("student", ""), ("teacher", "teacher.")):
            prefix = prefixes[branch]
            mapped |= self._named(prefix, model.state_dict(), f"{ours}eden.backbone.")
            mapped |= {f"{ours}{name}": prefix + theirs for name, theirs in PROJECTOR.items()}
        return model, self._state(model, mapped), mapped

    def _second_generation(self) -> tuple[PreTrainedModel, dict[str, Tensor], dict[str, str]]:
        """Student and teacher with their heads, centre and, of its second stage, the part-whole heads."""
        prefixes = {branch: self._prefix(branch) for branch in ("student", "teacher")}
        above = {branch: prefix.removesuffix("backbone.") for branch, prefix in prefixes.items()}
        hidden, bottleneck, outputs = (
            self._rows(above["student"] + HEAD[f"head.{layer}.weight"]) for layer in ("mlp.0", "mlp.4", "last_layer")
        )
        config = EdenConfig(
            backbone_config=self._architecture(prefixes["student"]),
            localizability_hidden_size=hidden,
            localizability_bottleneck_size=bottleneck,
            localizability_outputs=outputs,
        )
        model = EdenV2ForPreTraining(config)
        mapped = {"center": CENTER}
        for branch, ours in (("student", "student."), ("teacher", "")):
            lengths = above[branch] + "head.last_layer.weight_g"
            if lengths in self.tensors and (self.tensors[lengths] != 1).any():
                raise CheckpointError(f"{lengths} is not 1 throughout: the last layer's rows are of length 1 here")
            mapped |= self._named(prefixes[branch], model.state_dict(), f"{ours}eden.backbone.")
            mapped |= {ours + name: above[branch] + theirs for name, theirs in HEAD.items()}
        for name in self.tensors:
            if match := re.match(PART_WHOLE_HEADS, name):
                mapped[f"{match[1]}.{name[match.end() :]}"] = name
        return model, self._state(model, mapped), mapped

    def _rows(self, name: str) -> int:
        if name not in self.tensors:
            raise CheckpointError(f"{name} is missing")
        return self.tensors[name].shape[0]

    def _prefix(self, *branches: Branch) -> str:
        """The prefix of the first of some branches that the file has."""
        for branch in branches:
            found = branch_prefixes(self.layout, branch, self.trunks)
            if len(found) > 1:
                raise CheckpointError(
                    f"several trunks may be the {branch}: {', '.join(found)}; save one of them alone"
                )
            if found:
                return found[0]
        known = ", ".join(b for b in self.layout.trunks if branch_prefixes(self.layout, b, self.trunks))
        raise CheckpointError(f"there is no {' or '.join(branches)} in this file of {self.layout.about}, but {known}")

    def _architecture(self, prefix: str) -> dict[str, Any]:
        shapes = {n.removeprefix(prefix): t.shape for n, t in self.tensors.items() if n.startswith(prefix)}
        return self.trunks[prefix].configuration(shapes)

    def _named(self, prefix: str, state: Mapping[str, Tensor], above: str) -> dict[str, str]:
        """The source's name of each weight of the trunk under `above`."""
        naming = self.trunks[prefix]
        own = [name.removeprefix(above) for name in state if name.startswith(above)]
        named = {}
        for name, theirs in naming.names(own).items():
            if prefix + theirs not in self.tensors:
                theirs = self._synonym(prefix, theirs)
            named[above + name] = prefix + theirs
            self.expected.add(theirs)
        return named

    def _synonym(self, prefix: str, theirs: str) -> str:
        """What the file calls `theirs`, if it has it under another name."""
        for start, other in self.trunks[prefix].synonyms.items():
            called = other + theirs.removeprefix(start)
            if theirs.startswith(start) and prefix + called in self.tensors:
                return called
        return theirs

    def _state(self, model: PreTrainedModel, mapped: dict[str, str]) -> dict[str, Tensor]:
        """The weights under the names here, checked; counts of batches, which old files lack, may be missing."""
        wanted = model.state_dict()
        for name in [
            n for n, theirs in mapped.items() if n.endswith("num_batches_tracked") and theirs not in self.tensors
        ]:
            del mapped[name]
        if missing := sorted(theirs for theirs in mapped.values() if theirs not in self.tensors):
            raise CheckpointError(f"{len(missing)} keys are missing: {_some(missing)}")
        state = {}
        for name, theirs in mapped.items():
            value = self.tensors[theirs].T if name == "memory_bank" else self.tensors[theirs]
            state[name] = _fitted(value, wanted[name], theirs)
        return state

    def check_stride(self) -> None:
        """Refuse bottlenecks of unknown origin: torchvision's stride is in their 3x3 convolution, Caffe's in the 1x1.

        Raises:
            CheckpointError: the trunk has bottlenecks, and neither its keys nor `layout` say whose they are.
        """
        if self.guessed and any(name.endswith("layer1.0.conv3.weight") for name in self.tensors):
            raise CheckpointError(
                "a ResNet with bottlenecks may have its stride in the 3x3 convolution, as torchvision, timm and DINO "
                "have, or in the 1x1, as Caffe has, which would be another function here; no weight tells which: if "
                f"it is the former, say so by `layout` ({self.layout.name})"
            )

    def dropped(self, used: set[str]) -> dict[str, str]:
        """Why each other key is left out.

        Raises:
            CheckpointError: there is no reason.
        """
        left = [name for name in (*self.tensors, *self.records) if name not in used]
        reasons = {name: self._reason(name, used) for name in left}
        if unknown := sorted(name for name, reason in reasons.items() if reason is None):
            near = difflib.get_close_matches(unknown[0], used, 1)
            hint = f" (the nearest known one is {near[0]})" if near else ""
            raise CheckpointError(
                f"{len(unknown)} keys are unknown in a file of {self.layout.about}: {_some(unknown)}{hint}"
            )
        return {name: reason for name, reason in reasons.items() if reason is not None}

    def _reason(self, name: str, used: set[str]) -> str | None:
        patterns = {**RECORDS, **self.layout.others}
        for pattern, reason in patterns.items():
            if re.fullmatch(pattern, name):
                return reason
        if re.fullmatch(BANK, name):
            return "memory bank, which a trunk has none of" if self.layout.projector else None
        for prefix in sorted(self.trunks, key=len, reverse=True):
            if name.startswith(prefix):
                return self._trunk_reason(name, prefix, used)
        return None

    def _trunk_reason(self, name: str, prefix: str, used: set[str]) -> str | None:
        rest = name.removeprefix(prefix)
        if self.layout.projector and rest in PROJECTOR.values():
            return "projector, which a trunk has none of"
        for pattern, reason in self.trunks[prefix].heads.items():
            if re.fullmatch(pattern, rest):
                return reason
        other_branch = not any(theirs.startswith(prefix) for theirs in used)
        return "trunk of the other branch" if other_branch and rest in self.expected else None

    def notes(self, used: set[str]) -> list[str]:
        """What differs although all keys fit."""
        if any(re.search(r"(^|\.)head\.norm\.", name) for name in used):
            return [
                "timm norms the pooled embedding by head.norm, the trunk here norms its last map before pooling: "
                "pooled embeddings differ a little, maps before the norm do not"
            ]
        return []


def _fitted(value: Tensor, wanted: Tensor, name: str) -> Tensor:
    """`value` in the shape and precision of `wanted`; shapes may differ by sides of one."""
    if [s for s in value.shape if s > 1] != [s for s in wanted.shape if s > 1]:
        raise CheckpointError(f"{name} has the shape {list(value.shape)}, not {list(wanted.shape)}")
    if value.is_floating_point() != wanted.is_floating_point() or value.is_complex():
        raise CheckpointError(f"{name} is of {value.dtype}, not of {wanted.dtype}")
    if not torch.isfinite(value).all():
        raise CheckpointError(f"{name} holds values that are not finite")
    return value.reshape(wanted.shape).to(wanted.dtype).contiguous()


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")


def _declared(conversion: Conversion, model_id: str) -> dict[str, Any]:
    """What a card can say of a converted checkpoint; the rest is for whoever publishes it."""
    own = conversion.licence is not None and conversion.licence != NON_COMMERCIAL
    named = "non-commercial, of the method's authors" if conversion.licence == NON_COMMERCIAL else "that of the source"
    terms = {"license": conversion.licence} if own else {
        "license": "other", "license_name": named, "license_link": "README.md#patents-and-licences",
    }  # fmt: skip
    limits = ["Converted from weights of others; whatever their publication says of their limits holds here."]
    if conversion.licence == NON_COMMERCIAL:
        limits.append("The weights are the authors', under their non-commercial licence: no commercial use.")
    return {
        "model_id": model_id,
        **terms,
        "intended_use": "Research, as far as the licence of the source weights allows it.",
        "training_data": [
            {
                "name": "the data of the source",
                "description": f"Not recorded in {conversion.source}; see the publication of the weights.",
                "license": "see there",
            }
        ],
        "limits": limits,
        "lineage": [f"Converted by eden convert from {conversion.about}, key by key (conversion.json)."],
    }


def export_trunk(model: str, output: str, layout: str = "torchvision") -> Path:
    """Write the trunk of an Eden folder under the names of another library, as safetensors.

    Args:
        model: Folder or Hub id of any Eden model; of a pretraining model the student's trunk is taken.
        output: File to write, `.safetensors`.
        layout: `torchvision` or `timm` (the names of their ResNets; timm's ConvNeXt as well, made there with
            `head_norm_first=True`), or `smp` (segmentation-models-pytorch, with the prefix `encoder.`).

    Returns:
        `output`.

    Raises:
        CheckpointError: the layout is unknown, `model` is no Eden model, the library has no such trunk (a family,
            widths or settings that it has none of), or `output` is there already or is no `.safetensors`.
    """
    if layout not in EXPORTS:
        raise CheckpointError(f"`layout` is one of {', '.join(EXPORTS)}, got {layout!r}")
    file = Path(output)
    if file.suffix != ".safetensors" or file.exists():
        raise CheckpointError(f"{file}: name a file that is not there yet, ending in .safetensors")
    trunk = _eden_trunk(model)
    backbone = trunk.config.backbone_config
    naming: Naming | None = NAMINGS.get(backbone.model_type) if backbone.model_type in _FITTING[layout] else None
    if naming is None:
        raise CheckpointError(f"{layout} has no {backbone.model_type}; it has {', '.join(_FITTING[layout])}")
    for name, value in naming.plain(backbone).items():
        if getattr(backbone, name) != value:
            raise CheckpointError(
                f"{layout} has no {backbone.model_type} with {name}={getattr(backbone, name)!r}, but {value!r}; ONNX "
                "and torch.export take any"
            )
    state = trunk.backbone.state_dict()
    weights = {}
    for name, theirs in naming.names(state).items():
        flat = re.fullmatch(naming.flat, theirs)
        weights[EXPORTS[layout] + theirs] = (state[name].flatten() if flat else state[name]).contiguous()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(save(weights, metadata={"format": "pt", "source": "eden_hf"}))  # `save_file` hides it from others
    write_lineage(file, "export", [model])
    return file


def _eden_trunk(model: str) -> EdenModel:
    try:
        settings, _ = EdenConfig.get_config_dict(model)
    except OSError as error:
        raise CheckpointError(f"{model} is no folder or Hub id of a model: it has no config.json") from error
    if settings.get("model_type") != EdenConfig.model_type:
        raise CheckpointError(
            f"{model} is a model of the type {settings.get('model_type')!r}, not {EdenConfig.model_type!r}"
        )
    loaded: Any = EdenModel.from_pretrained(model, output_loading_info=True)
    trunk, found = loaded
    if found["missing_keys"]:  # transformers would leave them random
        raise CheckpointError(f"{model} lacks weights of the trunk: {_some(sorted(found['missing_keys']))}")
    return trunk
