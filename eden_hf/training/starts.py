"""What training starts from: an Eden model with all it has, or the trunk alone of any vision model of transformers."""

import dataclasses
import inspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # 5.17 hides it without torchvision
from transformers.utils import logging as transformers_logging

from eden_hf.configuration_eden import EdenConfig
from eden_hf.image_processing_eden import EdenImageProcessor
from eden_hf.model_names import first_line, load_pretrained, own_intensity
from eden_hf.modeling_eden import EdenForPreTraining, EdenModel, EdenV2ForPreTraining
from eden_hf.modeling_eden_trunk import FINAL_NORMS, final_norm, with_final_norm
from eden_hf.training.arguments import ModelArguments
from eden_hf.training.precision import in_float32
from eden_hf.training.settings import require

logger = logging.getLogger(__name__)

#: What a pretraining model that is started from keeps of its own.
_OWN = {
    EdenForPreTraining: ("projection_dim", "memory_bank_size", "memory_bank_init"),
    EdenV2ForPreTraining: ("localizability_hidden_size", "localizability_bottleneck_size", "localizability_outputs"),
}
_DENSE = ("dense_dim", "dense_hidden_size")
#: Of a trunk's configuration, what says nothing of its shape: whose it was, and the maps that others asked of it.
_PASSING = (
    *("transformers_version", "dtype", "out_features", "out_indices", "stage_names"),
    *("architectures", "id2label", "label2id"),
)
#: Weights that a start may lack: the dense decoder, and norms of stages that it never returned. They begin afresh.
OPTIONAL = ("dense_decoder.", "hidden_states_norms.")


def as_recorded(arguments: ModelArguments, recorded: ModelArguments, model_class: Any) -> ModelArguments:
    """As `as_started`, of a run that goes on: its checkpoint holds all, so that nothing is read of `start`."""
    sizes = (*_OWN[model_class], *_DENSE)
    return dataclasses.replace(arguments, backbone=recorded.backbone, **{n: getattr(recorded, n) for n in sizes})


def as_started(arguments: ModelArguments, model_class: Any) -> ModelArguments:
    """The settings with trunk and sizes of `start`, so that what is recorded of a run is what ran.

    Raises:
        OSError: there is no model at `start` that transformers knows.
        ValueError: its type is no trunk.
    """
    if arguments.start is None:
        return arguments
    config = _config(arguments.start)
    is_eden = isinstance(config, EdenConfig)
    backbone = (config if is_eden else EdenConfig(backbone_config=config)).backbone_config.to_diff_dict()
    for passing in _PASSING:
        backbone.pop(passing, None)
    own: dict[str, Any] = {}
    if is_eden:
        kept = _OWN[model_class] if _pretraining_at(arguments.start, model_class) is not None else ()
        own = {name: getattr(config, name) for name in (*kept, *(_DENSE if config.dense_dim else ()))}
    return dataclasses.replace(arguments, backbone=backbone, **own)


def _config(start: str) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(start)
    except Exception as error:  # of libraries that are not installed, too
        raise OSError(
            f"`model.start`: there is no model at {start} that transformers can read: give a folder with config.json "
            "(of a run, its `last` or `best`) or a Hub id; `eden convert` makes such a folder of a checkpoint's file "
            f"({first_line(error)})"
        ) from error


def _pretraining_at(start: str, model_class: Any) -> dict[str, Any] | None:
    """Where in a folder or repository a pretraining model of a class is, as options of `from_pretrained`, if it is."""
    places: list[dict[str, Any]] = [{}, {"subfolder": "pretraining"}]
    for inner in places:
        try:
            config = EdenConfig.from_pretrained(start, **inner)
        except OSError:  # what is published of a run may be its trunk alone
            continue
        if model_class.__name__ in (config.architectures or []):
            return inner
    return None


def started_model(model_class: Any, arguments: ModelArguments, loads: bool = True) -> Any:
    """A new model, or the one of `start` with the other settings of `arguments`, from `as_started`.

    Of a pretraining model of the same class, all goes on; of any other, student and teacher begin as its trunk.

    Args:
        model_class: Of what is trained.
        arguments: Its settings.
        loads: `False` leaves the weights of `start` where they are: those of a checkpoint follow.

    Raises:
        ValueError: `start` holds no trunk, or the trunk takes images of other than three channels.
    """
    config = arguments.to_config()
    channels = getattr(config.backbone_config, "num_channels", 3)
    require(channels == 3, "num_channels", channels, "3 in a trunk to pretrain: views of grey images have three too")
    in_float32(config)
    if arguments.start is None or not loads:
        return model_class(config)
    is_eden = isinstance(_config(arguments.start), EdenConfig)
    inner = _pretraining_at(arguments.start, model_class) if is_eden else None
    if inner is None:
        return _from_trunk(model_class, arguments.start, config, is_eden)
    model, fresh = load_whole(model_class, arguments.start, config=config, **inner)
    if any("dense_decoder." in key for key in fresh):  # the teacher's begins as the student's
        model.teacher.eden.dense_decoder.load_state_dict(model.eden.dense_decoder.state_dict())
    return model


def _from_trunk(model_class: Any, start: str, config: EdenConfig, is_eden: bool) -> Any:
    """A new pretraining model whose student and teacher begin as the trunk of a folder or repository."""
    model = model_class(config)
    student, *others = trunks(model)
    if is_eden:
        student.load_state_dict(load_whole(EdenModel, start, config=model.config)[0].state_dict())
    else:
        load_stock_trunk(student.backbone, start)
    for other in others:
        other.load_state_dict(student.state_dict())
    return model


def trunks(model: nn.Module) -> list[EdenModel]:
    """The trunks of student and teacher."""
    return [module for module in model.modules() if isinstance(module, EdenModel)]


def load_stock_trunk(trunk: PreTrainedModel, origin: str) -> None:
    """Give a trunk the weights of transformers' own model at `origin`, with the norm after its last stage.

    Raises:
        OSError: there are no weights, or they cannot be read.
        ValueError: as of `load_whole`.
    """
    takes = inspect.signature(type(trunk)).parameters
    without_pooler: dict[str, Any] = {"add_pooling_layer": False} if "add_pooling_layer" in takes else {}
    stock, _ = load_whole(type(trunk), origin, config=trunk.config, **without_pooler)
    trunk.load_state_dict(with_final_norm(stock).state_dict())
    _take_final_norm(trunk, origin)


def _take_final_norm(trunk: Any, origin: str) -> None:
    """Give the last stage of a backbone the norm that transformers' own encoder has after it, if they have any."""
    norm = final_norm(trunk)
    if norm is None and hasattr(trunk, "hidden_states_norms"):
        norm = trunk.hidden_states_norms[trunk.stage_names[-1]]
    if norm is not None:
        name = FINAL_NORMS.get(trunk.config.model_type, "layernorm").rpartition(".")[2]
        with _without_report():
            own = getattr(AutoModel.from_pretrained(origin, config=trunk.config), name, None)
        if own is not None:
            norm.load_state_dict(own.state_dict())


@contextmanager
def _without_report() -> Iterator[None]:
    """Load without transformers' table of weights that are missing or too many: `load_whole` tells what matters."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def load_whole(kind: Any, start: str, fresh: Sequence[str] = OPTIONAL, **options: Any) -> tuple[Any, set[str]]:
    """`kind.from_pretrained(start, **options)` in float32, with all weights that it needs.

    Args:
        kind: A class of models.
        start: Folder or Hub id.
        fresh: Parts of the names of weights that begin afresh where the start lacks them, or has others' shapes.
        **options: Of `from_pretrained`.

    Returns:
        The model, and the names of the weights that begin afresh.

    Raises:
        OSError: there are no weights, or they cannot be read.
        ValueError: some are missing, of another shape than the configuration says, or not finite.
    """
    with _without_report():
        model, loaded = load_pretrained(
            kind, start, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    others = {name: f"{name} {tuple(held)}, not {tuple(own)}" for name, held, own in loaded["mismatched_keys"]}
    missing, misfits = loaded["missing_keys"], [told for name, told in others.items() if not _any_in(fresh, name)]
    if lacking := sorted(key for key in missing if key not in others and not _any_in(fresh, key)):
        raise ValueError(f"{start} lacks weights of its trunk: {', '.join(lacking[:3])} ({len(lacking)} in all)")
    if misfits:
        raise ValueError(
            f"{start} has weights of other shapes than its config.json says: {', '.join(sorted(misfits)[:3])} "
            f"({len(misfits)} in all)"
        )
    infinite = [name for name, weight in model.state_dict().items() if not weight.isfinite().all()]
    if infinite:
        raise ValueError(
            f"{start} has weights that are NaN or infinite: {', '.join(infinite[:3])}; take another start"
        )
    return model, {*missing, *others}


def _any_in(parts: Sequence[str], name: str) -> bool:
    return any(part in name for part in parts)


def warn_of_other_intensities(start: str, processor: EdenImageProcessor) -> None:
    """Warn if what a run trains on is normalised in another way than what its start was made for.

    Args:
        start: Folder or Hub id, with an image processor or without one.
        processor: That of the run's models.
    """
    try:
        theirs: Any = AutoImageProcessor.from_pretrained(start)
    except (OSError, ValueError):  # a trunk without one: nothing is known
        return
    told = [_told_intensities(one) for one in (theirs, processor)]
    if told[0] != told[1]:
        logger.warning(
            "`model.start`: images for %s are normalised %s, those of this run %s; the trunk meets other values than "
            "it knows. Set views.intensity, views.image_mean and views.image_std to its own unless you mean it",
            start, *told,
        )  # fmt: skip


def _told_intensities(processor: Any) -> str:
    if own_intensity(processor) == "per_image":
        return "each by itself"
    if not getattr(processor, "do_normalize", True):
        return "not at all"
    mean, std = (
        [round(float(value), 4) for value in getattr(processor, name)] for name in ("image_mean", "image_std")
    )
    return f"by mean {mean} and standard deviation {std}"
