"""The `eden` command: each sub-command is the function that the script of the same purpose calls.

eden pretrain --config configs/adam_resnet18_small.yaml                     scripts/pretrain.py
eden crops --source images/ --output crops/                                 scripts/build_anatomy_crops.py
eden gallery --model outputs/run/last --source images/                      scripts/gallery.py
eden evaluate --model outputs/run/last random:outputs/run/last --source scr  scripts/evaluate.py
eden one-shot --model outputs/run/last --source scr --protocol uod
eden audit --run outputs/run --source scr --split test                      scripts/audit_pruner.py
eden probe --model outputs/run/last --source cxr --label_column label       scripts/probe.py
eden few-shot --config configs/few_shot_scr.yaml --encoders a b --frozen    scripts/few_shot_table.py
eden finetune --config configs/finetune_scr_heart.yaml                      scripts/finetune.py
eden embed --model outputs/run/last --images images/ --output embeddings.parquet  scripts/embed.py
eden search --model outputs/run/last --query image.png --embeddings embeddings.parquet --output sheet.png
eden landmarks --model outputs/run/last --references refs/ --images xrays/ --output outputs/landmarks
eden match --model outputs/run/last a.png b.png --output outputs/match.png
eden masks --model outputs/run/last --references refs/ --images images/ --output masks/
eden stage --source outputs/run --card card.yaml --output repository/
eden card check repository/
eden push --source outputs/run --repo_id user/name --card card.yaml         scripts/push_to_hub.py
eden convert --source adam.pth --output adam/                               scripts/convert_checkpoint.py
eden export --model outputs/run/last --output model.onnx
"""

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, get_args

from jsonargparse import ActionConfigFile, ArgumentParser, auto_cli


def pretrain(arguments: list[str] | None = None) -> None:
    """Pretrain by a YAML file of settings and --dotted.key overrides."""
    from accelerate import PartialState

    from eden_hf.hub.push import check_push, push_run
    from eden_hf.training.arguments import parse_arguments
    from eden_hf.training.pretraining import Pretraining

    settings, resume = parse_arguments(arguments, prog="eden pretrain")
    with _refusals("eden pretrain"):
        check_push(settings.run)
        run = Pretraining(settings, resume)
        folder = run.train()
        if run.finished and PartialState().is_main_process:
            push_run(folder, settings.run)


def crops(arguments: list[str] | None = None) -> None:
    """Cut the images of a source into anatomy crops, written as Parquet with a data set card."""
    from eden_hf.data.anatomy_crops import build_anatomy_crops

    for config, splits in auto_cli(build_anatomy_crops, args=arguments, as_positional=False).items():
        print(config, ", ".join(f"{split}: {count} crops" for split, count in splits.items()))


def gallery(arguments: list[str] | None = None) -> None:
    """Draw what a model learned: parts, t-SNE, correspondence, neighbours, loss."""
    from eden_hf.evaluation.gallery import draw_gallery

    for file in auto_cli(draw_gallery, args=arguments, as_positional=False):
        print(file)


def evaluate(arguments: list[str] | None = None) -> None:
    """Measure what encoders know of anatomy: report cards, side by side."""
    from eden_hf.evaluation.report_card import evaluate

    for file in _call(
        evaluate, arguments, prog="eden evaluate", several=("model", "evaluations", "shots", "controls")
    ):
        print(file)


def one_shot(arguments: list[str] | None = None) -> None:
    """Find landmarks from one annotated image by a published protocol, beside its numbers."""
    from eden_hf.evaluation.one_shot import one_shot

    print(_call(one_shot, arguments, prog="eden one-shot", several=("model", "splits", "controls")))


def audit(arguments: list[str] | None = None) -> None:
    """Audit the pruner of a run: is what it drops the same anatomy?"""
    from eden_hf.evaluation.pruner_audit import audit_pruner

    print(_call(audit_pruner, arguments, prog="eden audit", several=("gammas",)))


def probe(arguments: list[str] | None = None) -> None:
    """Train linear and nearest-neighbour probes on frozen embeddings of labelled images."""
    from eden_hf.evaluation.probes import probe

    print(_call(probe, arguments, prog="eden probe", several=("model", "probes", "label_columns")))


def few_shot(arguments: list[str] | None = None) -> None:
    """Compare encoders on segmentation with few labelled images, fine-tuned or frozen."""
    from eden_hf.evaluation.few_shot import compare_encoders

    print(_call(compare_encoders, arguments, prog="eden few-shot", several=("encoders", "shots")))


def finetune(arguments: list[str] | None = None) -> None:
    """Fine-tune on a labelled task by a YAML file of settings and --dotted.key overrides, and measure it."""
    from accelerate import PartialState

    from eden_hf.evaluation.downstream import draw_masks, evaluate_finetuned, evaluate_mean_mask
    from eden_hf.evaluation.results import table
    from eden_hf.hub.push import check_push, push_run
    from eden_hf.training.arguments import parse_settings
    from eden_hf.training.finetune_arguments import FinetuneArguments
    from eden_hf.training.finetuning import finetune

    settings, resume = parse_settings(FinetuneArguments, arguments, prog="eden finetune")
    with _refusals("eden finetune"):
        check_push(settings.run)
        folder = finetune(settings, resume)
    if PartialState().is_main_process:
        results = [evaluate_finetuned(folder)]
        print(results[0].save(folder))
        if "dice" in results[0].values:
            results.append(evaluate_mean_mask(folder))
            print(results[1].save(folder / "mean-mask"), draw_masks(folder), sep="\n")
        print(table(results))
        with _refusals("eden finetune"):
            push_run(folder, settings.run, [str(folder)])


def embed(arguments: list[str] | None = None) -> None:
    """Embed every image of a source, or its points, into one Parquet file."""
    from accelerate import PartialState

    from eden_hf.retrieval.embedding import embed_images

    with _mistakes("eden embed"):
        made = _call(embed_images, arguments, prog="eden embed")
    state = PartialState()
    if state.is_main_process:
        skipped = f", {made.skipped} could not be read: {made.skipped_file}" if made.skipped else ""
        print(f"{made.file}: {made.images} images{skipped}")
    state.destroy_process_group()


def search(arguments: list[str] | None = None) -> None:
    """Find the images of a collection that are most alike to an image, or to a region of it."""
    from eden_hf.retrieval.searching import search

    with _mistakes("eden search"):
        hits = _call(search, arguments, prog="eden search")
    for rank, hit in enumerate(hits, start=1):
        print(rank, f"{hit.similarity:.4f}", hit.image, ",".join(map(str, hit.box or ())), sep="\t")


def landmarks(arguments: list[str] | None = None) -> None:
    """Find the points of annotated images in others: tables and pictures. Exits with 1 if images were unreadable."""
    from eden_hf.matching.landmarks import find_landmarks

    with _mistakes("eden landmarks"):
        done = _call(find_landmarks, arguments, prog="eden landmarks", several=("images",))
    print(*done.files, sep="\n")
    print(f"{done.images} images searched for {done.points} points: {done.not_found} not found")
    if done.unreadable:
        print(f"images that cannot be read, see skipped.jsonl there: {done.unreadable}", file=sys.stderr)
        sys.exit(1)


def match(arguments: list[str] | None = None) -> None:
    """Find points of one image in another, and draw them."""
    parser = ArgumentParser(prog="eden match", description=match.__doc__)
    parser.add_argument("images", nargs=2, help="the image of the points, and the one to search")
    parser.add_argument("--model", required=True, help="any image encoder; best one with a dense decoder")
    parser.add_argument("--points", nargs="+", help="x,y in pixels of the first; a grid over the body by default")
    parser.add_argument("--output", default="outputs/match.png", help="the picture to write")
    chosen = parser.parse_args(arguments)
    from eden_hf.matching.pairs import match_images

    with _mistakes("eden match"):
        found = match_images(chosen.model, chosen.images, chosen.points, chosen.output)
    for name, point in found.items():
        place = f"{point.x:.1f},{point.y:.1f}" if point.found else "not found"
        print(f"{name}: {place} (confidence {point.confidence:.2f})")
    print(chosen.output)


def masks(arguments: list[str] | None = None) -> None:
    """Find structures from annotated examples: masks as PNG, DICOM SEG. Exits with 1 if images were unreadable."""
    from eden_hf.matching.masks import find_masks

    with _mistakes("eden masks"):
        written = _call(find_masks, arguments, prog="eden masks", several=("images",))
    print(f"{', '.join(written.names)} of {len(written.images)} images: {written.output}")
    if written.skipped:
        print(f"images that cannot be read, see skipped.jsonl there: {written.skipped}", file=sys.stderr)
        sys.exit(1)


def stage(arguments: list[str] | None = None) -> None:
    """Make the folder that is published of a model, with its card."""
    from eden_hf.hub.repository import stage_model

    with _refusals("eden stage"):
        print(_call(stage_model, arguments, prog="eden stage", several=("results",)))


def card(arguments: list[str] | None = None) -> None:
    """Write the card of a model repository (`eden card write FOLDER`), or check it (`eden card check FOLDER`)."""
    parser = ArgumentParser(prog="eden card", description=(card.__doc__ or "").replace("`", ""))
    parser.add_argument("action", choices=["write", "check"])
    parser.add_argument("folder", help="of a model, with card.yaml")
    parser.add_argument("--model_id", help="Hub id that the card must be of")
    parser.add_argument("--online", action="store_true", help="ask the Hub about the metadata as well")
    chosen = parser.parse_args(arguments)
    from eden_hf.hub.cards import check_card, write_card

    if chosen.action == "write":
        with _refusals("eden card"):
            print(write_card(chosen.folder))
        return
    problems = check_card(chosen.folder, chosen.model_id, chosen.online)
    print("\n".join(problems) or f"{Path(chosen.folder) / 'README.md'} is good")
    sys.exit(bool(problems))


def push(arguments: list[str] | None = None) -> None:
    """Publish a model or a data set on the Hub: checked, in one commit."""
    from eden_hf.hub.push import push_to_hub

    with _refusals("eden push"):
        print(_call(push_to_hub, arguments, prog="eden push", several=("results", "tags", "allow")))


def convert(arguments: list[str] | None = None) -> None:
    """Convert a checkpoint from elsewhere to an Eden folder."""
    from eden_hf.hub.conversion import convert_checkpoint

    with _refusals("eden convert"):
        print(_call(convert_checkpoint, arguments, prog="eden convert"))


def export(arguments: list[str] | None = None) -> None:
    """Export a model: ONNX, torch.export, or the trunk's weights under another library's names."""
    from eden_hf.hub.conversion import EXPORTS, export_trunk
    from eden_hf.hub.export import export_model

    parser = ArgumentParser(prog="eden export", description=export.__doc__)
    parser.add_argument("--model", required=True, help="folder of an Eden model")
    parser.add_argument("--output", required=True, help="file to write: .onnx, .pt2 or .safetensors")
    parser.add_argument("--format", default="onnx", choices=["onnx", "program", *EXPORTS])
    chosen = parser.parse_args(arguments)
    function = export_trunk if chosen.format in EXPORTS else export_model
    with _refusals("eden export"):
        print(function(chosen.model, chosen.output, chosen.format))


@contextmanager
def _refusals(prog: str) -> Iterator[None]:
    """What the user has to mend ends the program with the message alone."""
    from eden_hf.data.errors import SourceError
    from eden_hf.data.skips import TooManyUnreadable
    from eden_hf.hub.cards import CardError
    from eden_hf.hub.export import ExportError
    from eden_hf.hub.key_layouts import CheckpointError
    from eden_hf.hub.publishing import PublishingError
    from eden_hf.hub.refusals import RefusedError
    from eden_hf.hub.repository import StagingError

    try:
        yield
    except (
        *(CardError, CheckpointError, ExportError, PublishingError, RefusedError, StagingError),
        *(SourceError, TooManyUnreadable),
    ) as error:
        sys.exit(f"{prog}: {error}")


@contextmanager
def _mistakes(prog: str) -> Iterator[None]:
    """What is wrong with given images, annotations or models ends the program with one message and status 2."""
    from eden_hf.data.errors import SourceError
    from eden_hf.data.reading import ImageReadError
    from eden_hf.data.skips import TooManyUnreadable

    try:
        yield
    except (SourceError, ImageReadError, TooManyUnreadable) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a model that is not there; a folder that cannot be written
        print(f"{prog}: {str(error).splitlines()[0]}", file=sys.stderr)
        sys.exit(2)


def _call(function: Callable, arguments: list[str] | None, prog: str, several: Sequence[str] = ()) -> Any:
    """Call `function` by a command line; the options of `several` take values one after the other: `--model a b`."""
    from eden_hf.training.arguments import ConfigParser, at_home

    parser = ConfigParser(prog=prog, description=(function.__doc__ or "").partition("\n")[0])
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file of options; later ones override it")
    parameters = signature(function).parameters
    for name in several:
        required = parameters[name].default is Parameter.empty
        kind = get_args(parameters[name].annotation)[0]
        parser.add_argument(f"--{name}", nargs="+", type=kind, required=required, help="one or more values")
    switches = [name for name, parameter in parameters.items() if parameter.default is False]
    for name in switches:
        parser.add_argument(*dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}")), action="store_true")
    parser.add_function_arguments(function, skip={*several, *switches}, as_group=False)
    chosen = parser.instantiate(parser.parse_args(arguments))
    given = {name: at_home(chosen[name]) for name in parameters if not (name in several and chosen[name] is None)}
    return function(**given)


COMMANDS: dict[str, Callable[[list[str] | None], None]] = {
    "pretrain": pretrain,
    "crops": crops,
    "gallery": gallery,
    "evaluate": evaluate,
    "one-shot": one_shot,
    "audit": audit,
    "probe": probe,
    "few-shot": few_shot,
    "finetune": finetune,
    "embed": embed,
    "search": search,
    "landmarks": landmarks,
    "match": match,
    "masks": masks,
    "stage": stage,
    "card": card,
    "push": push,
    "convert": convert,
    "export": export,
}


def main() -> None:
    """Run `eden COMMAND [options]`; exits with status 2 and the list of commands if there is none of that name."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("eden_hf").setLevel(logging.INFO)
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in COMMANDS:
        try:
            return COMMANDS[name](arguments)
        except ImportError as error:
            if error.name is not None:  # Python's own: nobody said what to install
                raise
            sys.exit(f"eden {name}: {error}")
    asked = name in ("-h", "--help")
    lines = [f"  {command:10} {function.__doc__}" for command, function in COMMANDS.items()]
    complaint = "" if asked else f"eden: unknown command {name!r}\n"
    usage = "\n".join(["usage: eden COMMAND [options]; eden COMMAND --help lists them", "", *lines])
    print(complaint + usage, file=sys.stdout if asked else sys.stderr)
    sys.exit(0 if asked else 2)


if __name__ == "__main__":
    main()
