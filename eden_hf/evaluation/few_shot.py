"""Few-shot segmentation (arXiv 2309.15358): k labelled images, several draws of them, the whole test split.

Two ways of scoring an encoder share the draws. *Frozen*: a ridge classifier on each pixel's features from all stages
of the trunk, seconds an encoder, so that it can steer choices. *Fine-tuned*: the whole segmentation model, minutes
each. Whatever is chosen (the recipe) is one for all encoders, and comes from the training split only.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset, DatasetDict
from PIL import Image
from sklearn.linear_model import Ridge
from torch import Tensor
from tqdm.auto import tqdm

from eden_hf.data.references import Reference
from eden_hf.data.text_files import read_lines
from eden_hf.encoders import Encoder, check_encoders, check_whole_images, load_encoder
from eden_hf.evaluation.results import data_hash
from eden_hf.matching.pixel_classifier import PixelClassifier
from eden_hf.model_names import find_model, own_intensity
from eden_hf.plots import plot_few_shot
from eden_hf.training.downstream_data import row_image, row_masks, with_holdouts
from eden_hf.training.downstream_metrics import dice, known_mean
from eden_hf.training.finetune_arguments import FinetuneTrainingArguments, Recipe, TaskArguments
from eden_hf.training.finetuning import finetune_few_shot
from eden_hf.training.run_folder import keeps_output

SHOTS = (3, 6, 12, 24)
#: The paper's few-shot structures, by the columns of SCR and of phantoms.
HEART_AND_CLAVICLES = TaskArguments(
    mask_columns={"heart": ["heart"], "clavicles": ["left_clavicle", "right_clavicle"]}, validation_share=0.2
)
SHORT_RECIPE = Recipe(training=FinetuneTrainingArguments(steps=200, batch_size=8, evaluations=4))


@dataclass(frozen=True)
class Segmented:
    """Images and the masks of their structures, which may overlap.

    Attributes:
        images: N images of any size.
        masks: For each image bool `[labels, H, W]`, of its size.
        labels: Names of the structures.
    """

    images: Sequence[Image.Image]
    masks: Sequence[np.ndarray]
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    @classmethod
    def from_rows(cls, rows: Dataset, labels: tuple[str, ...]) -> "Segmented":
        """The rows of a segmentation task's split, decoded."""
        return cls([row_image(row) for row in rows], [row_masks(row) for row in rows], labels)


#: Scores of one draw: from indices of training images, and the draw's number, to Dice `[test images, labels]`.
Scorer: TypeAlias = Callable[[np.ndarray, int], np.ndarray]


class Score(NamedTuple):
    """One draw of one encoder.

    Attributes:
        encoder: Its name.
        revision: What tells its weights.
        shots: k, the number of labelled images learned from.
        draw: Number of the draw.
        dice: Mean over the test images that have it, for each structure.
        validation: Labelled images beyond k by which the checkpoint was chosen; `None` where that was not recorded.
        seed: Which pretraining, where there are several of one encoder.
    """

    encoder: str
    revision: str | None
    shots: int
    draw: int
    dice: dict[str, float]
    validation: int | None = None
    seed: int = 0


class Cell(NamedTuple):
    """What a table and a figure show of an encoder's draws: means and standard deviations in percent of Dice.

    Attributes:
        label: The structure.
        encoder: Its name.
        seed: As in `Score`.
        shots: k.
        mean: Over the draws.
        deviation: Sample standard deviation over the draws; NaN of one.
        difference: Mean of what it has more than the first encoder of the same seed, over the draws that both have;
            `None` for the first encoder, and where they share no draw.
        difference_deviation: As `deviation`, of the differences.
    """

    label: str
    encoder: str
    seed: int
    shots: int
    mean: float
    deviation: float
    difference: float | None
    difference_deviation: float


@keeps_output
def compare_encoders(
    encoders: list[str],
    task: TaskArguments = HEART_AND_CLAVICLES,
    recipe: Recipe = SHORT_RECIPE,
    frozen: bool = False,
    classifier: Literal["ridge", "pixels"] = "ridge",
    checkpoint: Literal["last", "best"] = "last",
    shots: Sequence[int] = SHOTS,
    draws: int = 3,
    seed: int = 0,
    output: str = "outputs/few_shot",
) -> Path:
    """Score encoders on few labelled images, and write a table, a figure and their scores (`few_shot-MODE.jsonl`).

    Images to validate by are held out of `train` first (`task.validation_share`); draws come from the rest, the same
    for all encoders and both checkpoints. Scores are of the whole test split, at the images' own resolution. Frozen,
    each encoder sees whole images, as in fine-tuning: an `EdenImageProcessor` takes the place of one that cuts.

    Args:
        encoders: As for `load_encoder`; the first is the one that the others are compared with.
        task: A segmentation task; the heart and the clavicles of phantoms or of `task.source` by default.
        recipe: Of fine-tuning; frozen scores take `model.size` and `model.intensity` from it.
        frozen: Train a classifier of pixels on frozen features instead.
        classifier: Which: `ridge` on the maps of all stages (`FrozenSegmentation`), or `pixels`, a small network on
            embeddings of points at several sizes (`PixelClassifier`; the size is the encoder's own).
        checkpoint: Of fine-tuning: the `last` after its steps, so that no labelled image beyond k is used; or the
            `best` of `recipe.training.evaluations` by the validation images, which are labelled as well.
        shots: Numbers of training images.
        draws: Draws of each.
        seed: Of the draws; `task.split_seed` is that of held-out images.
        output: Folder. Scores already there (`scores-*.jsonl`), of the same images, task and recipe, are not computed
            again.

    Returns:
        The page written.

    Raises:
        ValueError: the task is no segmentation, has fewer training images than shots, or a structure that no test
            image has.
    """
    loaded = task.load()
    if loaded.kind != "segmentation":
        raise ValueError(f"few-shot segmentation needs a segmentation task, {loaded.name} is {loaded.kind}")
    splits = with_holdouts(loaded, task)
    _check_shown(splits["test"], loaded.labels)
    pixels = frozen and classifier == "pixels"
    mode = {"last": "fine-tuned", "best": "fine-tuned-best"}[checkpoint]
    if frozen:
        mode = "frozen-pixels" if pixels else "frozen"
    validation = None if frozen or checkpoint == "last" else splits.get("validation")
    beyond = 0 if validation is None else len(validation)
    learning = {section: values for section, values in asdict(recipe).items() if section != "run"}
    images = _images_hash(splits)
    settings = json.dumps(
        {"task": asdict(task), "images": images, "recipe": learning, "mode": mode, "seed": seed}, sort_keys=True
    )
    file = Path(output) / f"scores-{hashlib.sha256(settings.encode()).hexdigest()[:8]}.jsonl"
    decoded = [Segmented.from_rows(splits[name], loaded.labels) for name in ("train", "test")] if frozen else []
    scores = []
    size = None if pixels else recipe.model.size
    check_encoders(encoders, size=size, intensity=recipe.model.intensity)
    for name in encoders:
        intensity = recipe.model.intensity or (own_intensity(find_model(name).processor) if frozen else None)
        encoder = load_encoder(name, size=size, intensity=intensity, seed=seed)
        scorer: Scorer
        if pixels:
            scorer = partial(_by_pixel_classifier, encoder, decoded[0], decoded[1])
        elif frozen:
            encoder.processor.aspect_ratio = "resize"  # maps then lie over the whole image
            scorer = FrozenSegmentation(encoder, *decoded)
        else:
            scorer = partial(_finetuned, name, splits, validation, loaded.labels, recipe)
        scores += few_shot(
            encoder, scorer, len(splits["train"]), loaded.labels, file,
            shots=shots, draws=draws, seed=seed, validation=beyond,
        )  # fmt: skip
    page = Path(output) / f"few_shot-{mode}.md"
    page.with_suffix(".jsonl").write_text("".join(map(_line, scores)), encoding="utf-8")
    plot_few_shot([cell._asdict() for cell in few_shot_cells(scores)]).savefig(page.with_suffix(".png"), dpi=110)
    counts = ", ".join(f"{name} {len(rows)}" for name, rows in splits.items())
    page.write_text(
        f"# Few-shot segmentation, {mode}: {loaded.name}\n\n{few_shot_legend(draws)} Images: {counts}. "
        f"{labelled_images(beyond)}\n\n"
        f"{few_shot_table(scores)}\nSettings: `{settings}`\n",
        encoding="utf-8",
    )
    return page


def few_shot_legend(draws: int) -> str:
    """What the cells of `few_shot_table` are."""
    return (
        f"Dice in percent, over the images that have the structure: mean ± standard deviation over {draws} draws of "
        "the labelled images; in brackets the difference from the first encoder at the same draws, mean ± standard "
        "deviation. All draws share test images and pretrained weights, so what their spread says is how much "
        "depends on the draw, not on other patients or another pretraining."
    )


def labelled_images(beyond: int | None) -> str:
    """A sentence on the labelled images that were used beside the k."""
    if beyond is None:
        return "Whether labelled images beyond k chose the checkpoint was not recorded."
    if beyond == 0:
        return "No labelled image beyond k was used, so no checkpoint was chosen."
    return f"The checkpoint was chosen on {beyond} more labelled images."


def _check_shown(test: Dataset, labels: Sequence[str]) -> None:
    """Raise if no test image has one of the structures: Dice is of those that have it."""
    shown = np.any([row_masks(row).any(axis=(1, 2)) for row in test], axis=0)
    if absent := [label for label, present in zip(labels, shown, strict=True) if not present]:
        raise ValueError(f"none of the {len(test)} test images has {', '.join(absent)}; leave it out of the task")


def _images_hash(splits: DatasetDict) -> str:
    """What tells the images, their masks and their splits from others."""
    names = (f"{split} {name} {part}" for split, rows in splits.items() for name in rows["source_id"] for part in "im")
    pixels = (array for rows in splits.values() for row in rows for array in (row_image(row), row_masks(row)))
    return data_hash(names, pixels)


def _finetuned(
    name: str,
    splits: DatasetDict,
    validation: Dataset | None,
    labels: tuple[str, ...],
    recipe: Recipe,
    shots: np.ndarray,
    draw: int,
) -> np.ndarray:
    """Dice `[test images, labels]` of a model fine-tuned on the training images at `shots`."""
    few = splits["train"].select(shots)
    return finetune_few_shot(name, few, validation, splits["test"], labels, recipe, seed=draw)


def _by_pixel_classifier(
    encoder: Encoder, train: Segmented, test: Segmented, shots: np.ndarray, draw: int
) -> np.ndarray:
    """Dice `[test images, labels]` of a `PixelClassifier` that learned from the training images at `shots`."""
    references = [
        Reference(train.images[index], masks=dict(zip(train.labels, train.masks[index], strict=True)))
        for index in shots
    ]
    learned = PixelClassifier(encoder, seed=draw).fit(references)
    scores = []
    for image, true in zip(test.images, test.masks, strict=True):
        found = learned.predict(image)
        scores.append(dice(np.stack([found[label] for label in test.labels]), true))
    return np.stack(scores)


def few_shot(
    encoder: Encoder,
    scorer: Scorer,
    train_count: int,
    labels: Sequence[str],
    file: Path,
    *,
    shots: Iterable[int] = SHOTS,
    draws: int = 3,
    seed: int = 0,
    validation: int | None = None,
) -> list[Score]:
    """Score one encoder at every number of shots and every draw; what `file` already holds is not done again.

    Args:
        encoder: Whose scores these are.
        scorer: Gives Dice `[test images, labels]` for the indices of training images and the draw's number.
        train_count: Number of training images to draw from.
        labels: Names of the structures scored.
        file: JSON lines, one a score, added to as scores come, so that an interrupted table goes on.
        shots: Numbers of training images.
        draws: Draws of each.
        seed: Of the draws.
        validation: Labelled images beyond k by which the scorer chooses its checkpoint.
    """
    known = {(s.encoder, s.revision, s.shots, s.draw): s for s in read_scores(file)}
    wanted = [(k, draw) for k in shots for draw in range(draws)]
    scores = []
    for k, draw in tqdm(wanted, desc=encoder.name, unit="draw"):
        key = (encoder.name, encoder.revision, k, draw)
        if key not in known:
            dices = known_mean(scorer(draw_shots(train_count, k, draw, seed), draw))
            dice_of = {label: float(value) for label, value in zip(labels, dices, strict=True)}
            known[key] = Score(*key, dice_of, validation)
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("a", encoding="utf-8") as lines:
                lines.write(_line(known[key]))
        scores.append(known[key])
    return scores


def _line(score: Score) -> str:
    return json.dumps(score._asdict()) + "\n"


def read_scores(file: Path) -> list[Score]:
    """The scores of a file of `few_shot` or `compare_encoders`, none where there is no such file."""
    return [Score(**line) for line in read_lines(file)] if file.exists() else []


def few_shot_table(scores: Sequence[Score]) -> str:
    """Markdown of `few_shot_cells`, such as `73.3 ± 3.1 (-9.3 ± 1.5)`: a row for each structure and encoder.

    With several seeds each has its own rows. The heading tells how many labelled images there were.
    """
    beyond = {score.validation for score in scores}
    more = "" if beyond <= {0, None} else f" + {' or '.join(map(str, sorted(b or 0 for b in beyond)))}"
    shots = list(dict.fromkeys(score.shots for score in scores))
    seeded = ["seed"] if len({score.seed for score in scores}) > 1 else []
    rows: dict[tuple[str, ...], dict[int, str]] = {}
    for cell in few_shot_cells(scores):
        row = rows.setdefault((cell.label, cell.encoder, *(str(cell.seed) for _ in seeded)), {})
        difference = "" if cell.difference is None else _spread(cell.difference, cell.difference_deviation, "+")
        row[cell.shots] = _spread(cell.mean, cell.deviation) + (f" ({difference})" if difference else "")
    header = ["structure", "encoder", *seeded, *(f"k = {k}{more}" for k in shots)]
    lines = [header, ["---"] * len(header), *([*row, *(of.get(k, "-") for k in shots)] for row, of in rows.items())]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def few_shot_cells(scores: Sequence[Score]) -> Iterator[Cell]:
    """Draws of each structure, encoder, seed and number of shots, beside those of the encoder named first.

    Draws are of the same images for all encoders, so differences are of equal draws.
    """
    draws: dict[tuple[str, int, int], dict[int, Score]] = {}
    for score in scores:
        draws.setdefault((score.encoder, score.seed, score.shots), {})[score.draw] = score
    first = scores[0].encoder
    for label in scores[0].dice:
        for (encoder, seed, shots), own in draws.items():
            reference = {} if encoder == first else draws.get((first, seed, shots), {})
            paired = [own[draw].dice[label] - reference[draw].dice[label] for draw in own if draw in reference]
            yield Cell(
                label, encoder, seed, shots, *_mean_and_deviation([score.dice[label] for score in own.values()]),
                *(_mean_and_deviation(paired) if paired else (None, np.nan)),
            )  # fmt: skip


def _mean_and_deviation(shares: Sequence[float]) -> tuple[float, float]:
    """In percent; the standard deviation of a sample, NaN of one."""
    percent = 100 * np.array(shares)
    return float(percent.mean()), float(percent.std(ddof=1)) if len(percent) > 1 else np.nan


def _spread(mean: float, deviation: float, sign: str = "") -> str:
    """Such as `84.4 ± 1.2`."""
    return f"{mean:{sign}.1f}" + ("" if np.isnan(deviation) else f" ± {deviation:.1f}")


def draw_shots(count: int, shots: int, draw: int, seed: int = 0) -> np.ndarray:
    """Indices `[shots]` of the training images of one draw, the same for every encoder; smaller draws are in larger.

    Raises:
        ValueError: there are fewer training images.
    """
    if not 1 <= shots <= count:
        raise ValueError(f"shots must be between 1 and the {count} training images, got {shots}")
    return np.random.default_rng([seed, draw]).permutation(count)[:shots]


class FrozenSegmentation:
    """A ridge classifier on the pixels' features from every stage of a frozen trunk.

    The maps of all stages are brought to `grid` x `grid`, put together and standardised over the training pixels.
    Ridge regression then tells 1 inside a structure from 0 outside; the threshold is the one of best Dice on the
    training images. A linear map commutes with bilinear resizing, so test images are never held at full depth.

    Args:
        encoder: As in `embed`; its processor shows whole images.
        train: Images to draw from.
        test: Images to score, at their own resolution.
        grid: Side of the map on which the classifier is trained.
        alpha: Ridge penalty for each training pixel, so that it does not depend on their number.

    Raises:
        ValueError: the processor cuts or pads images, so that maps and masks would not lie upon each other.
    """

    def __init__(
        self, encoder: Encoder, train: Segmented, test: Segmented, *, grid: int = 64, alpha: float = 0.1
    ) -> None:
        check_whole_images(encoder)
        self.train, self.test, self.grid, self.alpha = train, test, grid, alpha
        self.train_maps = _stage_maps(encoder, train.images)
        self.test_maps = _stage_maps(encoder, test.images)

    def __call__(self, shots: np.ndarray, seed: int = 0) -> np.ndarray:
        """Dice `[test images, labels]` of a classifier trained on the training images at `shots`; NaN as of `dice`."""
        features = torch.cat([_resized_pixels(self.train_maps[index], self.grid) for index in shots])
        targets = torch.cat([_mask_pixels(self.train.masks[index], self.grid) for index in shots])
        mean, std = features.mean(dim=0), features.std(dim=0).clamp(min=1e-6)
        ridge = Ridge(alpha=self.alpha * len(features), solver="cholesky").fit((features - mean) / std, targets)
        weights = torch.from_numpy(np.atleast_2d(ridge.coef_)).float() / std
        bias = torch.from_numpy(np.atleast_1d(ridge.intercept_)).float() - weights @ mean
        scores = [self._predict(self.train_maps[index], weights, bias) for index in shots]
        thresholds = _best_thresholds(scores, targets.unflatten(0, (-1, self.grid**2)))
        tested = zip(self.test_maps, self.test.masks, strict=True)
        return np.stack([dice(self._predict_mask(m, weights, bias, thresholds, t.shape[1:]), t) for m, t in tested])

    def _predict(self, maps: list[Tensor], weights: Tensor, bias: Tensor) -> Tensor:
        """Scores `[labels, grid, grid]`."""
        parts = weights.split([len(stage) for stage in maps], dim=1)
        resized = [
            _resized(torch.einsum("lc,chw->lhw", w, m.float()), self.grid) for w, m in zip(parts, maps, strict=True)
        ]
        return torch.stack(resized).sum(dim=0) + bias[:, None, None]

    def _predict_mask(
        self, maps: list[Tensor], weights: Tensor, bias: Tensor, thresholds: Tensor, size: tuple[int, ...]
    ) -> np.ndarray:
        """Masks `[labels, H, W]` at the image's own size."""
        scores = F.interpolate(self._predict(maps, weights, bias)[None], size=size, mode="bilinear")[0]
        return (scores > thresholds[:, None, None]).numpy()


def _stage_maps(encoder: Encoder, images: Sequence[Image.Image], batch_size: int = 16) -> list[list[Tensor]]:
    """For each image the maps of its stages, `[C_stage, h_stage, w_stage]` in half precision."""
    maps = []
    for start in range(0, len(images), batch_size):
        with torch.inference_mode():
            stages = encoder.feature_maps(encoder.pixel_values(images[start : start + batch_size]))
        maps += [list(stage) for stage in zip(*(stage.half().cpu() for stage in stages), strict=True)]
    return maps


def _resized(values: Tensor, side: int) -> Tensor:
    """`[C, side, side]` of `[C, h, w]`."""
    return F.interpolate(values[None].float(), size=(side, side), mode="bilinear")[0]


def _resized_pixels(maps: list[Tensor], side: int) -> Tensor:
    """Features of the pixels `[side * side, C]`, all stages' side by side."""
    return torch.cat([_resized(stage, side) for stage in maps]).flatten(1).T


def _mask_pixels(masks: np.ndarray, side: int) -> Tensor:
    """Share of each pixel that is inside, `[side * side, labels]`."""
    return F.adaptive_avg_pool2d(torch.from_numpy(masks).float(), side).flatten(1).T


def _best_thresholds(scores: list[Tensor], targets: Tensor) -> Tensor:
    """For each label the threshold of the highest mean Dice over `scores` `[labels, grid, grid]` of each image."""
    predicted = torch.stack([score.flatten(1) for score in scores])  # [k, labels, pixels]
    inside = targets.mT > 0.5
    candidates = torch.linspace(0.1, 0.9, 33)
    found = [
        known_mean(dice((predicted > c).numpy()[..., None], inside.numpy()[..., None])) for c in candidates.tolist()
    ]
    best = np.nan_to_num(np.stack(found)).argmax(axis=0)  # any, of a structure that none of the images has
    return candidates[torch.from_numpy(best)]
