"""The rows of `eden bench`: what users wait for, each beside a plain way of doing it."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from PIL import Image
from pyarrow.parquet import write_table
from torch import Tensor

from eden_hf.benchmarks import references
from eden_hf.benchmarks.measuring import Sides, row
from eden_hf.configuration_eden import EdenConfig
from eden_hf.data.phantoms import phantom_dataset
from eden_hf.data.point_views import make_point_views
from eden_hf.data.streamed import StreamedImages
from eden_hf.data.view_arguments import PointArguments, ViewArguments
from eden_hf.data.views import draw_views, make_views
from eden_hf.encoders import Encoder, load_encoder
from eden_hf.image_processing_eden import EdenImageProcessor
from eden_hf.modeling_eden import EdenForPreTraining, EdenForSemanticSegmentation, EdenModel, pruned_info_nce
from eden_hf.modeling_eden_dense import PointTargets
from eden_hf.training.arguments import (
    DataArguments,
    ModelArguments,
    PretrainArguments,
    RunArguments,
    Stage,
    TrainingArguments,
)
from eden_hf.training.curriculum import epoch_order
from eden_hf.training.monitors import read_metrics


def _step(backbone: str, size: int, batch: int) -> Iterator[Sides]:
    """A pretraining step of the package beside a plain one, on views that are there."""
    config = EdenConfig(backbone_config=backbone)
    views = torch.randn(2, batch, 3, size, size)
    plain = references.PlainMoCo(config.backbone_config)
    yield Sides(_bare_step(config, views), _optimised(plain, lambda: plain(*views)), batch)


def _bare_step(config: EdenConfig, views: Tensor) -> Callable[[], None]:
    """A step in bfloat16 and channels last."""
    model: Any = EdenForPreTraining(config)
    model.to(memory_format=torch.channels_last)
    query, key = (view.contiguous(memory_format=torch.channels_last) for view in views)

    def loss() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(query, key).loss

    return _optimised(model.train(), loss)


def _optimised(model: torch.nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01, momentum=0.9)

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


@row(
    "pretraining step: ResNet-50, 224 pixels, batch 16, bfloat16 and channels last", reference="MoCo-v2 in float32",
    unit="pairs", goal=3.5, slow=True,
)  # fmt: skip
def step_r50() -> Iterator[Sides]:
    """The paper's trunk and size."""
    yield from _step("resnet50", 224, 16)


@row(
    "pretraining step: ResNet-18, 96 pixels, batch 64, bfloat16 and channels last", reference="MoCo-v2 in float32",
    unit="pairs", goal=3.2,
)  # fmt: skip
def step_r18() -> Iterator[Sides]:
    """A trunk and size for two cores."""
    yield from _step("resnet18", 96, 64)


@row(
    "objective: 256 queries, 65,536 rows, forward and backward", reference="a loop over the queries", unit="queries",
    goal=2.7, clock="processor",
)  # fmt: skip
def objective() -> Iterator[Sides]:
    """The loss alone."""
    generator = torch.Generator().manual_seed(0)
    queries, keys, bank = (
        F.normalize(torch.randn(rows, 128, generator=generator), dim=1) for rows in (256, 256, 65536)
    )
    queries.requires_grad_()
    yield Sides(
        lambda: pruned_info_nce(queries, keys, bank, 0.2, 0.8).loss.backward(),
        lambda: references.pruned_loss_by_sample(queries, keys, bank, 0.2, 0.8).backward(),
        256,
    )


def _run_arguments(folder: str, backbone: str, size: int, batch: int, steps: int) -> PretrainArguments:
    images = 256
    return PretrainArguments(
        model=ModelArguments(backbone=backbone),
        data=DataArguments(source=f"phantoms:{images}", side=256, holdout_share=0),
        views=ViewArguments(size=size),
        stages=[Stage(level=2, epochs=max(1, steps * batch // images), prune_threshold=0.8, learning_rate=0.01)],
        training=TrainingArguments(batch_size=batch, mixed_precision="bf16", channels_last=True),
        run=RunArguments(output_dir=folder, log_every=1),
    )


def _loop(backbone: str, size: int, batch: int, steps: int) -> Iterator[Sides]:
    """Seconds a step of a whole run's loop, its first steps left out, beside steps on views that are there."""
    from eden_hf.training.pretraining import pretrain

    def ours() -> float:
        with tempfile.TemporaryDirectory() as folder:
            pretrain(_run_arguments(f"{folder}/run", backbone, size, batch, steps))
            return float(np.mean([batch / line["images_per_second"] for line in _metrics(f"{folder}/run")[2:]]))

    step = _bare_step(EdenConfig(backbone_config=backbone), torch.randn(2, batch, 3, size, size))

    def reference() -> float:
        step()
        start = time.perf_counter()
        for _ in range(steps):
            step()
        return (time.perf_counter() - start) / steps

    yield Sides(ours, reference, batch)


@row(
    "the loop of a run: ResNet-18, 96 pixels, batch 64", reference="its bare step", unit="pairs", goal=0.97, slow=True
)
def loop_r18() -> Iterator[Sides]:
    """What reading, views, metrics and guards cost."""
    yield from _loop("resnet18", 96, 64, 12)


@row("loop of a run: ResNet-50, 224 pixels, batch 16", reference="its bare step", unit="pairs", goal=0.97, slow=True)
def loop_r50() -> Iterator[Sides]:
    """The same with the paper's trunk."""
    yield from _loop("resnet50", 224, 16, 16)


@row(
    "loop of a run beside a foreign busy process: ResNet-18, 96 pixels, batch 64", reference="its bare step there",
    unit="pairs", goal=0.95, slow=True,
)  # fmt: skip
def loop_busy() -> Iterator[Sides]:
    """What threads that wait for one another lose. Its answer depends on GOMP_SPINCOUNT, which `eden` sets."""
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield from _loop("resnet18", 96, 64, 12)
    finally:
        busy.kill()
        busy.wait()


@row(
    "whole run over its steps: ResNet-18, 96 pixels, 10 % held out", reference="the steps alone", unit="steps",
    goal=0.98, slow=True,
)  # fmt: skip
def whole_run() -> Iterator[Sides]:
    """What validating and saving cost, from the first step to the last."""
    from eden_hf.training.pretraining import Pretraining

    with tempfile.TemporaryDirectory() as folder:
        arguments = _run_arguments(f"{folder}/0", "resnet18", 96, 64, 40)
        arguments.data.source, arguments.data.holdout_share = "phantoms:512", 0.1
        steps: list[float] = []
        turns = iter(range(1_000_000))

        def ours() -> float:
            arguments.run.output_dir = f"{folder}/{next(turns)}"
            run = Pretraining(arguments)
            start = time.perf_counter()
            run.train()
            whole = time.perf_counter() - start
            lines = _metrics(arguments.run.output_dir)
            steps.append(sum(64 / line["images_per_second"] for line in lines))
            return whole

        yield Sides(ours, lambda: steps[-1])


@row(
    "two processes, a thread each: ResNet-18, 64 pixels, batch 32 each", reference="one of them", unit="pairs",
    goal=1.85, slow=True,
)  # fmt: skip
def processes() -> Iterator[Sides]:
    """Images a second over all processes, as their metrics have it."""
    turns = iter(range(1_000_000))
    with tempfile.TemporaryDirectory() as folder:

        def launched(count: int) -> float:
            run = f"{folder}/{next(turns)}"
            settings = {
                "model.backbone": "resnet18", "data.source": "phantoms:256", "data.holdout_share": 0, "views.size": 64,
                "stages": '[{"level": 2, "epochs": 4, "prune_threshold": 0.8, "learning_rate": 0.01}]',
                "training.batch_size": 32 * count, "run.output_dir": run, "run.log_every": 1, "run.num_workers": 0,
            }  # fmt: skip
            launch = ["-m", "torch.distributed.run", f"--nproc_per_node={count}", "--standalone", "-m", "eden_hf.cli"]
            command = [*launch, "pretrain", *(f"--{name}={value}" for name, value in settings.items())]
            _started(*command, threads=1)()
            return float(np.mean([1 / line["images_per_second"] for line in _metrics(run)[2:]]))

        yield Sides(lambda: launched(2), lambda: launched(1))


def _metrics(folder: str | Path) -> list[dict[str, Any]]:
    """The lines of a run that tell its speed."""
    return [line for line in read_metrics(Path(folder) / "metrics.jsonl") if "images_per_second" in line]


@row(
    "dense stage, a step of 8 images of 160 pixels with its views, bfloat16 and channels last",
    reference="the step on views that are there", unit="images", goal=0.97, threads=1,
)  # fmt: skip
def dense_stage() -> Iterator[Sides]:
    """What the deformed views cost, as `configs/eve_resnet18_half.yaml` trains."""
    model: Any = EdenForPreTraining(EdenConfig(backbone_config="resnet18-half", dense_dim=64))
    model.to(memory_format=torch.channels_last).train()
    images, arguments = torch.randint(0, 256, (8, 1, 256, 256), dtype=torch.uint8), PointArguments()
    turns = iter(range(1_000_000))

    def views() -> tuple[Tensor, Tensor, PointTargets]:
        query, key, points = make_point_views(images, torch.arange(8), arguments, seed=0, epoch=next(turns))
        layout = torch.channels_last
        return query.contiguous(memory_format=layout), key.contiguous(memory_format=layout), points

    def loss(query: Tensor, key: Tensor, points: PointTargets) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(query, key, points=points).loss

    ready = views()
    yield Sides(_optimised(model, lambda: loss(*views())), _optimised(model, lambda: loss(*ready)), 8)


@contextmanager
def _phantom_files(count: int, size: int, kind: str, colour: bool = False) -> Iterator[list[str]]:
    """A folder's image files."""
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for index, phantom in enumerate(phantom_dataset(count, size=size)["image"]):
            file = Path(folder) / f"{index}.{kind}"
            (phantom.convert("RGB") if colour else phantom).save(file)
            files.append(str(file))
        yield files


def _views(channels: int) -> Iterator[Sides]:
    batch, arguments = 64, ViewArguments()
    phantoms = [np.asarray(image.convert("RGB")) for image in phantom_dataset(batch, size=256)["image"]]
    tint = np.array([1.0, 0.8, 0.6])
    coloured = [(phantom * tint).astype(np.uint8) for phantom in phantoms]
    pixels = torch.from_numpy(np.stack(coloured)).permute(0, 3, 1, 2)[:, :channels].contiguous()
    files = []
    for picture in coloured:
        file = BytesIO()
        Image.fromarray(picture).save(file, "JPEG")
        files.append(file.getvalue())
    turns = iter(range(1_000_000))

    def ours() -> None:
        draws = draw_views(torch.arange(batch), arguments, level=0, seed=0, epoch=next(turns), height=256, width=256)
        make_views(pixels, draws, arguments)

    yield Sides(ours, lambda: [references.pil_pair(file, 224) for file in files], batch)


@row(
    "two views of 224 pixels, grey", reference="PIL from 256-pixel JPEG", unit="pairs", goal=6, clock="processor",
    threads=1,
)  # fmt: skip
def views_grey() -> Iterator[Sides]:
    """The paper's augmentation."""
    yield from _views(1)


@row(
    "two views of 224 pixels, colour", reference="PIL from 256-pixel JPEG", unit="pairs", goal=2, clock="processor",
    threads=1,
)  # fmt: skip
def views_colour() -> Iterator[Sides]:
    """With saturation and hue, which the reference lacks the latter of."""
    yield from _views(3)


@row(
    "image processor: 2500 x 2000 pixels, 8 bits", reference="PIL resize and normalise", unit="images", goal=1,
    clock="processor", threads=1,
)  # fmt: skip
def processor() -> Iterator[Sides]:
    """A radiograph to 224 pixels."""
    image = phantom_dataset(1, size=2000)[0]["image"].convert("L").resize((2000, 2500))
    process = EdenImageProcessor()
    yield Sides(lambda: process(image, return_tensors="pt"), lambda: references.pil_processed(image, 224))


@row(
    "embed a folder: ResNet-50, 224 pixels", reference="a loop at batch 1", unit="images", goal=3, clock="processor",
    slow=True,
)  # fmt: skip
def embed() -> Iterator[Sides]:
    """`eden embed` on PNG files of 512 pixels, from loading the model to the file that is written."""
    from eden_hf.retrieval.embedding import embed_images

    encoder = load_encoder("random:resnet50")
    with _phantom_files(384, 512, "png") as files, tempfile.TemporaryDirectory() as folder:
        encoder.model.save_pretrained(f"{folder}/model")
        encoder.processor.save_pretrained(f"{folder}/model")
        source, output = str(Path(files[0]).parent), f"{folder}/embeddings.parquet"
        yield Sides(
            lambda: embed_images(f"{folder}/model", source, output),
            lambda: references.embedded_one_by_one(encoder, files[:24]),
            len(files),
            24,
        )


@row(
    "an epoch streamed from Parquet: 1,024 JPEG of 512 pixels to 256", reference="`datasets`, shuffled in a buffer",
    unit="images", goal=0.9, clock="processor", threads=1,
)  # fmt: skip
def stream() -> Iterator[Sides]:
    """The images of a run with `data.streaming`, in its order."""
    batch, window = 64, 256
    with tempfile.TemporaryDirectory() as folder:
        encoded = []
        for picture in phantom_dataset(64, size=512)["image"]:
            picture.save(file := BytesIO(), "JPEG", quality=92)
            encoded.append({"bytes": file.getvalue(), "path": None})
        table = pa.table({"image": encoded * 16})
        for number in range(4):
            write_table(table.slice(256 * number, 256), f"{folder}/train-{number}.parquet", row_group_size=32)
        images, epochs = StreamedImages(folder, window=window), iter(range(1_000_000))

        def ours() -> None:
            for indices in epoch_order(torch.arange(1024), 0, next(epochs), images.row_groups).split(batch):
                images.get(indices)

        yield Sides(ours, lambda: references.streamed(folder, 256, batch, window), 1024)


@row("dense map of windows: 1,024 of 64 pixels", reference="windows cut out by PIL", unit="maps", goal=1.6)
def windows() -> Iterator[Sides]:
    """An encoder without a dense decoder."""
    from eden_hf.matching.dense_maps import dense_maps

    encoder = load_encoder("random:resnet18-half", size=64)
    image = phantom_dataset(1)[0]["image"].convert("L")
    plain = load_encoder("random:resnet18-half", size=64)
    yield Sides(
        lambda: dense_maps(encoder, [image]), lambda: references.embedded_windows(plain, image, window=64, stride=8)
    )


@row(
    "segmentation step: ResNet-18, 256 pixels, batch 8", reference="float32", unit="images", goal=2, clock="processor"
)
def segmentation() -> Iterator[Sides]:
    """A step of fine-tuning as `eden finetune` does it."""
    config = EdenConfig(backbone_config="resnet18", id2label=dict(enumerate("abcde")))
    config.segmentation_type = "overlapping"
    pixel_values, labels = torch.randn(8, 3, 256, 256), torch.rand(8, 5, 256, 256).round()
    fast: Any = EdenForSemanticSegmentation(config)
    fast.to(memory_format=torch.channels_last)
    plain: Any = EdenForSemanticSegmentation(config)
    formatted = pixel_values.contiguous(memory_format=torch.channels_last)

    def loss() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return fast(formatted, labels=labels).loss

    yield Sides(
        _optimised(fast.train(), loss), _optimised(plain.train(), lambda: plain(pixel_values, labels=labels).loss), 8
    )


@row(
    "17 landmarks of an image from one example", reference="classical registration", unit="images", goal=10,
    clock="processor", slow=True,
)  # fmt: skip
def landmarks() -> Iterator[Sides]:
    """`eden landmarks` against `eden_hf.evaluation.registration`, pictures drawn and the model loaded once."""
    from eden_hf.data.references import Reference
    from eden_hf.evaluation.registration import Registered, register
    from eden_hf.matching.matcher import AnatomyMatcher

    rows = phantom_dataset(9)
    pictures = [image.convert("L") for image in rows["image"]]
    names = list(rows[0]["landmarks"])
    places = torch.tensor([rows[0]["landmarks"][name] for name in names]) * 256 - 0.5
    model = EdenModel(EdenConfig(backbone_config="resnet18-half", dense_dim=64))
    encoder = Encoder(model, EdenImageProcessor(size={"height": 160, "width": 160}, intensity="per_image"))
    points = {name: tuple(place) for name, place in zip(names, places.tolist(), strict=True)}
    matcher = AnatomyMatcher(encoder, [Reference(image=pictures[0], points=points)])
    fixed = Registered(pictures[0])
    yield Sides(
        lambda: [matcher.find(picture) for picture in pictures[1:]],
        lambda: [register(fixed, Registered(picture), places) for picture in pictures[1:3]],
        8,
        2,
    )


def _started(*command: str, threads: int | None = None) -> Callable[[], None]:
    """A process run to its end."""
    environment = {**os.environ, **({} if threads is None else {"OMP_NUM_THREADS": str(threads)})}

    def run() -> None:
        subprocess.run([sys.executable, *command], capture_output=True, check=True, env=environment)

    return run


@row("eden --help", reference="import torch", unit="starts", goal=4)
def help_eden() -> Iterator[Sides]:
    """The command line, before anything heavy."""
    yield Sides(_started("-m", "eden_hf", "--help"), _started("-c", "import torch"))


@row(
    "first step of a run whose images are prepared: phantoms:512", reference="the same, none prepared", unit="starts",
    goal=3, slow=True,
)  # fmt: skip
def first_step() -> Iterator[Sides]:
    """From the command to the end of the first step, imports and all."""
    with tempfile.TemporaryDirectory() as folder:
        turns = iter(range(1_000_000))

        def started(cache: str) -> None:
            settings = {
                "model.backbone": "resnet18-half", "data.source": "phantoms:512", "data.side": 128,
                "data.cache_dir": f"{folder}/{cache}", "views.size": 64, "training.batch_size": 448,
                "stages": '[{"epochs": 1, "learning_rate": 0.01}]', "run.output_dir": f"{folder}/run-{next(turns)}",
                "data.holdout_share": 0, "run.num_workers": 0,
            }  # fmt: skip
            _started("-m", "eden_hf", "pretrain", *(f"--{name}={value}" for name, value in settings.items()))()

        yield Sides(lambda: started("prepared"), lambda: started(f"none-{next(turns)}"))


@row("eden pretrain --help", reference="import torch", unit="starts", goal=0.8)
def help_pretrain() -> Iterator[Sides]:
    """All settings of a run."""
    yield Sides(_started("-m", "eden_hf", "pretrain", "--help"), _started("-c", "import torch"))
