"""What the two generations of the method do differently in the one loop: their model, its inputs, and the teacher."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from eden_hf.data.anchor_views import AnchorViews
from eden_hf.data.point_views import make_point_views, plain_views
from eden_hf.data.views import TwoViews
from eden_hf.modeling_eden import EdenForPreTraining, EdenV2ForPreTraining
from eden_hf.modeling_eden_v2 import PARTS
from eden_hf.training.arguments import PretrainArguments, Stage
from eden_hf.training.curriculum import half_cosine, teacher_temperature
from eden_hf.training.settings import require


class Objective:
    """The part of a run that knows the method; `objective_of` chooses it by the stages.

    Args:
        arguments: Of the run.
    """

    model_class: ClassVar[Any]

    def __init__(self, arguments: PretrainArguments) -> None:
        self.arguments = arguments

    def reached(self, model: Any) -> list[Tensor]:
        """Outputs of a dry run on the CPU that hang on every parameter that some stage trains, and on no other."""
        raise NotImplementedError

    def _dry(self, trunk: Any, size: int) -> Any:
        """A trunk's outputs of a black image: each size of a run is tried before its images are prepared."""
        return trunk(torch.zeros(1, 3, size, size))

    def begin_stage(self, model: Any, stage: Stage) -> None:
        """Set what holds for a whole stage."""

    def shuffles_keys(self, stage: Stage) -> bool:
        """Whether processes encode the keys of one another's images (see `EdenForPreTraining`)."""
        return False

    def inputs(self, images: Tensor, indices: Tensor, stage: Stage, granularity: int, **draw: Any) -> dict[str, Any]:
        """What the model takes of source images.

        Args:
            images: `[B, C, side, side]` uint8, on the device.
            indices: `[B]` int64 on the CPU, the images' numbers in their data set.
            stage: The stage.
            granularity: Of Adam-v2's anchors.
            draw: `seed` and `epoch` of what is drawn; where keys are shuffled, `keys` besides, the images and indices
                that they are made of.
        """
        raise NotImplementedError

    def settings(self, stage: Stage, epoch: int, first_piece: bool) -> dict[str, Any]:
        """Further arguments of the model in an epoch of a stage, for the first accumulated batch or a later one."""
        raise NotImplementedError

    def before_step(self, model: Any, stage: Stage, epoch: int) -> None:
        """Last changes to the gradients."""

    def after_step(self, model: Any, step_of_stage: int, stage_steps: int) -> None:
        """What follows the optimiser's step."""


class PrunedContrast(Objective):
    """Adam: two views of a part against a memory bank, and the dense stage. The model moves its teacher itself."""

    model_class = EdenForPreTraining

    def __init__(self, arguments: PretrainArguments) -> None:
        super().__init__(arguments)
        self.views = TwoViews(arguments.views)

    def reached(self, model: EdenForPreTraining) -> list[Tensor]:
        """The projector's output and the dense embeddings, as far as stages train them."""
        objectives = {stage.objective for stage in self.arguments.stages}
        reached = []
        if "parts" in objectives:
            reached.append(model.projector(self._dry(model.eden, self.arguments.views.size).pooler_output))
        if "points" in objectives:
            mend = "given (64, say) for a stage of objective points, as the start has no embeddings of points"
            require(self.arguments.model.dense_dim is not None, "model.dense_dim", None, mend)
            reached.append(self._dry(model.eden, self.arguments.points.size).dense_embeddings)
        return reached

    def begin_stage(self, model: EdenForPreTraining, stage: Stage) -> None:
        """Set the pruner's threshold."""
        model.config.prune_threshold = stage.prune_threshold

    def shuffles_keys(self, stage: Stage) -> bool:
        """Keys against a bank are; points have none."""
        return stage.objective == "parts"

    def inputs(self, images: Tensor, indices: Tensor, stage: Stage, granularity: int, **draw: Any) -> dict[str, Any]:
        """Query and key views `[B, 3, size, size]`; in the dense stage their points and, if asked, partners too."""
        if stage.objective == "parts":
            query, key = self.views(images, indices, level=stage.level, **draw)
            return {"query_pixel_values": query, "key_pixel_values": key}
        recipe = self.arguments.points
        query, key, points = make_point_views(images, indices, recipe, **draw)
        inputs = {"query_pixel_values": query, "key_pixel_values": key, "points": points}
        if stage.partner_weight:
            partners = plain_views(images, recipe.size)
            inputs |= {"partner_pixel_values": partners, "partner_weight": stage.partner_weight}
        return inputs

    def settings(self, stage: Stage, epoch: int, first_piece: bool) -> dict[str, Any]:
        """The teacher moves once a step."""
        return {"update_teacher": first_piece}


class PartsAndWholes(Objective):
    """Adam-v2: crops of an anchor agree, its parts compose it, and it decomposes into them."""

    model_class = EdenV2ForPreTraining

    def __init__(self, arguments: PretrainArguments) -> None:
        super().__init__(arguments)
        self.views = AnchorViews(arguments.views, arguments.anchors)

    def reached(self, model: EdenV2ForPreTraining) -> list[Tensor]:
        """The student's logits, and the outputs of the part-whole heads that stages train."""
        sizes = self.arguments.views.size, self.arguments.anchors.local_size
        features, small = (self._dry(model.student.eden, size).pooler_output for size in sizes)
        outputs = [model.student.head(features), model.student.head(small)]
        relating = [stage for stage in self.arguments.stages if stage.objective == "part_whole"]
        if any(stage.composability_weight for stage in relating):
            outputs.append(model.compose(torch.cat([features] * PARTS, dim=1)))
        if any(stage.decomposability_weight for stage in relating):
            outputs.append(model.decompose(features))
        return outputs

    def inputs(self, images: Tensor, indices: Tensor, stage: Stage, granularity: int, **draw: Any) -> dict[str, Any]:
        """Views of an anchor of each image, see `AnchorViews`."""
        make = self.views.localizing if stage.objective == "localize" else self.views.part_whole
        return dict(make(images, indices, granularity=granularity, **draw))

    def settings(self, stage: Stage, epoch: int, first_piece: bool) -> dict[str, Any]:
        """The teacher's temperature, and the weights of the losses."""
        weights = {name: getattr(stage, name) for name in ("composability_weight", "decomposability_weight")}
        final = self.arguments.model.teacher_temperature
        return {"teacher_temperature": teacher_temperature(stage, epoch, final), **weights}

    def before_step(self, model: EdenV2ForPreTraining, stage: Stage, epoch: int) -> None:
        """Hold the last layer still in the first epochs: without a gradient it does not decay either."""
        if epoch < stage.frozen_epochs:
            model.student.head.last_layer.weight.grad = None

    def after_step(self, model: EdenV2ForPreTraining, step_of_stage: int, stage_steps: int) -> None:
        """Move teacher and centre."""
        model.update_teacher(half_cosine(model.config.teacher_momentum, 1.0, step_of_stage, stage_steps))


def objective_of(arguments: PretrainArguments) -> Objective:
    """The objective of a run's stages."""
    return (PartsAndWholes if arguments.is_second_generation else PrunedContrast)(arguments)


def freeze_unreached(model: nn.Module, reached: list[Tensor]) -> None:
    """Take out parameters that no output depends on (Swin's last norm, DINOv2's mask token).

    They would get no gradient, for which processes that share gradients would wait.
    """
    torch.stack([tensor.sum() for tensor in reached]).sum().backward()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.grad is not None)
    model.zero_grad()
