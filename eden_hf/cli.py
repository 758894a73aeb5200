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
eden leaks pretraining/ test/
eden lineage outputs/run/last
eden landmarks --model outputs/run/last --references refs/ --images xrays/ --output outputs/landmarks
eden match --model outputs/run/last a.png b.png --output outputs/match.png
eden masks --model outputs/run/last --references refs/ --images images/ --output masks/
eden stage --source outputs/run --card card.yaml --output repository/
eden card check repository/
eden push --source outputs/run --repo_id user/name --card card.yaml         scripts/push_to_hub.py
eden convert --source adam.pth --output adam/                               scripts/convert_checkpoint.py
eden export --model outputs/run/last --output model.onnx
eden doctor --config configs/adam_resnet18_small.yaml
eden bench --quick                                                          scripts/benchmark.py
"""

import logging
import sys
from collections.abc import Callable, Sequence
from dis import opname
from functools import wraps
from importlib import import_module
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, get_args, get_origin

from jsonargparse import ActionConfigFile, ArgumentParser

from eden_hf.training.processor import spin_briefly

Command = Callable[[list[str] | None], None]
COMMANDS: dict[str, Command] = {}


def _command(function: Callable[[list[str] | None, str], None]) -> Command:
    """Make a function the sub-command of its name: what a user has to mend ends it with one message and status 2."""
    name = function.__name__.replace("_", "-")
    prog = f"eden {name}"

    @wraps(function)
    def run(arguments: list[str] | None = None) -> None:
        try:
            if not {"-h", "--help"}.intersection(arguments or ()):
                import_module("eden_hf.auto_classes")
            function(arguments, prog)
        except (OSError, ValueError, ImportError, RuntimeError) as error:
            if (message := _for_users(error)) is None:
                raise
            print(f"{prog}: {message}", file=sys.stderr)
            sys.exit(2)

    COMMANDS[name] = run
    return run


def _for_users(error: Exception) -> str | None:
    """What to tell of an error that the user has to mend; none of another, which is a fault of the program.

    The package's own `raise` statements say what to mend. Of libraries' errors, those of files and models that are not
    there do so in their first line.
    """
    traceback = error.__traceback__
    while traceback and traceback.tb_next:
        traceback = traceback.tb_next
    assert traceback is not None
    code = traceback.tb_frame.f_code.co_code
    raised = opname[code[traceback.tb_lasti]] == "RAISE_VARARGS"  # and not by C, called in that line
    ours = raised and traceback.tb_frame.f_globals["__name__"].startswith("eden_hf.")
    if ours and type(error) not in (RuntimeError, ModuleNotFoundError):  # which libraries and Python raise
        return str(error)
    return (str(error) or type(error).__name__).splitlines()[0] if isinstance(error, OSError) else None


@_command
def pretrain(arguments: list[str] | None, prog: str) -> None:
    """Pretrain by a YAML file of settings and --dotted.key overrides."""
    from eden_hf.training.arguments import parse_arguments

    settings, resume = parse_arguments(arguments, prog=prog)
    from accelerate import PartialState

    from eden_hf.hub.push import check_push, push_run
    from eden_hf.training.pretraining import Pretraining

    check_push(settings.run)
    run = Pretraining(settings, resume)
    folder = run.train()
    if run.finished and PartialState().is_main_process:
        push_run(folder, settings.run)


@_command
def crops(arguments: list[str] | None, prog: str) -> None:
    """Cut the images of a source into anatomy crops, written as Parquet with a data set card."""
    from eden_hf.data.anatomy_crops import build_anatomy_crops

    for config, splits in _call(build_anatomy_crops, arguments, prog).items():
        print(config, ", ".join(f"{split}: {count} crops" for split, count in splits.items()))


@_command
def gallery(arguments: list[str] | None, prog: str) -> None:
    """Draw what a model learned: parts, t-SNE, correspondence, neighbours, loss."""
    from eden_hf.evaluation.gallery import draw_gallery

    for file in _call(draw_gallery, arguments, prog):
        print(file)


@_command
def evaluate(arguments: list[str] | None, prog: str) -> None:
    """Measure what encoders know of anatomy: report cards, side by side."""
    from eden_hf.evaluation.report_card import evaluate

    for file in _call(evaluate, arguments, prog, several=("model", "evaluations", "shots", "controls")):
        print(file)


@_command
def one_shot(arguments: list[str] | None, prog: str) -> None:
    """Find landmarks from one annotated image by a published protocol, beside its numbers."""
    from eden_hf.evaluation.one_shot import one_shot

    print(_call(one_shot, arguments, prog, several=("model", "splits", "controls")))


@_command
def audit(arguments: list[str] | None, prog: str) -> None:
    """Audit the pruner of a run: is what it drops the same anatomy?"""
    from eden_hf.evaluation.pruner_audit import audit_pruner

    print(_call(audit_pruner, arguments, prog, several=("gammas",)))


@_command
def probe(arguments: list[str] | None, prog: str) -> None:
    """Train linear and nearest-neighbour probes on frozen embeddings of labelled images."""
    from eden_hf.evaluation.probes import probe

    print(_call(probe, arguments, prog, several=("model", "probes", "label_columns")))


@_command
def few_shot(arguments: list[str] | None, prog: str) -> None:
    """Compare encoders on segmentation with few labelled images, fine-tuned or frozen."""
    from eden_hf.evaluation.few_shot import compare_encoders

    print(_call(compare_encoders, arguments, prog, several=("encoders", "shots")))


@_command
def finetune(arguments: list[str] | None, prog: str) -> None:
    """Fine-tune on a labelled task by a YAML file of settings and --dotted.key overrides, and measure it."""
    from accelerate import PartialState

    from eden_hf.evaluation.downstream import draw_masks, evaluate_finetuned, evaluate_mean_mask
    from eden_hf.evaluation.results import table
    from eden_hf.hub.push import check_push, push_run
    from eden_hf.training.arguments import parse_settings
    from eden_hf.training.finetune_arguments import FinetuneArguments
    from eden_hf.training.finetuning import finetune

    settings, resume = parse_settings(FinetuneArguments, arguments, prog=prog)
    check_push(settings.run)
    folder = finetune(settings, resume)
    if (folder / "best").exists() and PartialState().is_main_process:  # a signal may have stopped it before
        results = [evaluate_finetuned(folder)]
        print(results[0].save(folder))
        if "dice" in results[0].values:
            results.append(evaluate_mean_mask(folder))
            print(results[1].save(folder / "mean-mask"), draw_masks(folder), sep="\n")
        print(table(results))
        push_run(folder, settings.run, [str(folder)])


@_command
def embed(arguments: list[str] | None, prog: str) -> None:
    """Embed every image of a source, or its points, into one Parquet file."""
    from accelerate import PartialState

    from eden_hf.retrieval.embedding import embed_images

    made = _call(embed_images, arguments, prog)
    state = PartialState()
    if state.is_main_process:
        skipped = f", {made.skipped} could not be read: {made.skipped_file}" if made.skipped else ""
        print(f"{made.file}: {made.images} images{skipped}")
    state.destroy_process_group()


@_command
def search(arguments: list[str] | None, prog: str) -> None:
    """Find the images of a collection that are most alike to an image, or to a region of it."""
    from eden_hf.retrieval.searching import search

    hits = _call(search, arguments, prog)
    for rank, hit in enumerate(hits, start=1):
        print(rank, f"{hit.similarity:.4f}", hit.image, ",".join(map(str, hit.box or ())), sep="\t")


@_command
def leaks(arguments: list[str] | None, prog: str) -> None:
    """Find images that two sources share, by id, pixels and looks. Exits with 1 if there are, or unreadable ones."""
    from eden_hf.retrieval.leaks import find_leaks

    report = _call(find_leaks, arguments, prog, named=("a", "b"))
    for leak in report.leaks:
        print(*leak, sep="\t")
    print(f"{len(report.leaks)} pairs shared by {report.images[0]} and {report.images[1]} images: {report.file}")
    if report.unreadable:
        print(f"not compared, as they cannot be read: {report.unreadable}: {report.skipped_file}", file=sys.stderr)
    sys.exit(int(bool(report.leaks or report.unreadable)))


@_command
def lineage(arguments: list[str] | None, prog: str) -> None:
    """Show what a model was made of, and check it. Exits with 1 if files or parents changed since."""
    parser = ArgumentParser(prog=prog, description=lineage.__doc__)
    parser.add_argument("target", help="folder of a run or a model, or an exported file")
    chosen = parser.parse_args(arguments)
    from eden_hf.training.lineage import chain, changes

    print(*chain(chosen.target), sep="\n")
    changed = changes(chosen.target)
    print(*(changed or ["nothing changed"]), sep="\n")
    sys.exit(int(bool(changed)))


@_command
def landmarks(arguments: list[str] | None, prog: str) -> None:
    """Find the points of annotated images in others: tables and pictures. Exits with 1 if images were unreadable."""
    from eden_hf.matching.landmarks import find_landmarks

    done = _call(find_landmarks, arguments, prog, several=("images",))
    print(*done.files, sep="\n")
    print(f"{done.images} images searched for {done.points} points: {done.not_found} not found")
    if done.unreadable:
        print(f"images that cannot be read, see skipped.jsonl there: {done.unreadable}", file=sys.stderr)
        sys.exit(1)


@_command
def match(arguments: list[str] | None, prog: str) -> None:
    """Find points of one image in another, and draw them."""
    parser = ArgumentParser(prog=prog, description=match.__doc__)
    parser.add_argument("images", nargs=2, help="the image of the points, and the one to search")
    parser.add_argument("--model", required=True, help="any image encoder; best one with a dense decoder")
    parser.add_argument("--points", nargs="+", help="x,y in pixels of the first; a grid over the body by default")
    parser.add_argument("--output", default="outputs/match.png", help="the picture to write")
    chosen = parser.parse_args(arguments)
    from eden_hf.matching.pairs import match_images

    found = match_images(chosen.model, chosen.images, chosen.points, chosen.output)
    for name, point in found.items():
        place = f"{point.x:.1f},{point.y:.1f}" if point.found else "not found"
        print(f"{name}: {place} (confidence {point.confidence:.2f})")
    print(chosen.output)


@_command
def masks(arguments: list[str] | None, prog: str) -> None:
    """Find structures from annotated examples: masks as PNG, DICOM SEG. Exits with 1 if images were unreadable."""
    from eden_hf.matching.masks import find_masks

    written = _call(find_masks, arguments, prog, several=("images",))
    print(f"{', '.join(written.names)} of {len(written.images)} images: {written.output}")
    if written.skipped:
        print(f"images that cannot be read, see skipped.jsonl there: {written.skipped}", file=sys.stderr)
        sys.exit(1)


@_command
def stage(arguments: list[str] | None, prog: str) -> None:
    """Make the folder that is published of a model, with its card."""
    from eden_hf.hub.repository import stage_model

    print(_call(stage_model, arguments, prog, several=("results",)))


@_command
def card(arguments: list[str] | None, prog: str) -> None:
    """Write the card of a model repository (`eden card write FOLDER`), or check it (`eden card check FOLDER`)."""
    parser = ArgumentParser(prog=prog, description=(card.__doc__ or "").replace("`", ""))
    parser.add_argument("action", choices=["write", "check"])
    parser.add_argument("folder", help="of a model, with card.yaml")
    parser.add_argument("--model_id", help="Hub id that the card must be of")
    parser.add_argument("--online", action="store_true", help="ask the Hub about the metadata as well")
    chosen = parser.parse_args(arguments)
    from eden_hf.hub.cards import check_card, write_card

    if chosen.action == "write":
        print(write_card(chosen.folder))
        return
    problems = check_card(chosen.folder, chosen.model_id, chosen.online)
    print("\n".join(problems) or f"{Path(chosen.folder) / 'README.md'} is good")
    sys.exit(bool(problems))


@_command
def push(arguments: list[str] | None, prog: str) -> None:
    """Publish a model or a data set on the Hub: checked, in one commit."""
    from eden_hf.hub.push import push_to_hub

    print(_call(push_to_hub, arguments, prog, several=("results", "tags", "allow")))


@_command
def convert(arguments: list[str] | None, prog: str) -> None:
    """Convert a checkpoint from elsewhere to an Eden folder."""
    from eden_hf.hub.conversion import convert_checkpoint

    print(_call(convert_checkpoint, arguments, prog))


@_command
def export(arguments: list[str] | None, prog: str) -> None:
    """Export a model: ONNX, torch.export, or the trunk's weights under another library's names."""
    from eden_hf.hub.conversion import EXPORTS, export_trunk
    from eden_hf.hub.export import export_model

    parser = ArgumentParser(prog=prog, description=export.__doc__)
    parser.add_argument("--model", required=True, help="folder of an Eden model")
    parser.add_argument("--output", required=True, help="file to write: .onnx, .pt2 or .safetensors")
    parser.add_argument("--format", default="onnx", choices=["onnx", "program", *EXPORTS])
    chosen = parser.parse_args(arguments)
    function = export_trunk if chosen.format in EXPORTS else export_model
    print(function(chosen.model, chosen.output, chosen.format))


@_command
def bench(arguments: list[str] | None, prog: str) -> None:
    """Time what the package does on this machine, each beside a plain way of doing the same."""
    from eden_hf.benchmarks.bench import bench

    print(_call(bench, arguments, prog, several=("rows",)))


@_command
def doctor(arguments: list[str] | None, prog: str) -> None:
    """Tell what a pretraining run would take on this machine, and what binds it; settings as for `eden pretrain`."""
    from eden_hf.training.arguments import parse_arguments

    settings, _ = parse_arguments(arguments, prog=prog)
    from eden_hf.benchmarks.doctor import examine

    for line in examine(settings):
        print(line)


def _call(
    function: Callable,
    arguments: list[str] | None,
    prog: str,
    several: Sequence[str] = (),
    named: Sequence[str] = (),
) -> Any:
    """Call `function` by a command line.

    Args:
        function: Its parameters are the options.
        arguments: The words of the line.
        prog: What messages call the command.
        several: Options that take values one after the other: `--model a b`.
        named: Parameters that are given by place, without a dash.
    """
    from eden_hf.training.arguments import ConfigParser, at_home

    parser = ConfigParser(prog=prog, description=(function.__doc__ or "").partition("\n")[0])
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file of options; later ones override it")
    parameters = signature(function).parameters
    for name in several:
        required = parameters[name].default is Parameter.empty
        kind = get_args(parameters[name].annotation)[0]
        kind = get_args(kind)[0] if get_origin(kind) is list else kind  # of `list[str] | None`
        parser.add_argument(f"--{name}", nargs="+", type=kind, required=required, help="one or more values")
    for name in named:
        parser.add_argument(name, type=parameters[name].annotation)
    switches = [name for name, parameter in parameters.items() if parameter.default is False]
    for name in switches:
        parser.add_argument(*dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}")), action="store_true")
    parser.add_function_arguments(function, skip={*several, *named, *switches}, as_group=False)
    chosen = parser.instantiate(parser.parse_args(arguments))
    given = {name: at_home(chosen[name]) for name in parameters if not (name in several and chosen[name] is None)}
    return function(**given)


def main() -> None:
    """Run `eden COMMAND [options]`; exits with status 2 and the list of commands if there is none of that name."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("eden_hf").setLevel(logging.INFO)
    spin_briefly()
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in COMMANDS:
        return COMMANDS[name](arguments)
    asked = name in ("-h", "--help")
    lines = [f"  {command:10} {function.__doc__}" for command, function in COMMANDS.items()]
    complaint = "" if asked else f"eden: unknown command {name!r}\n"
    usage = "\n".join(["usage: eden COMMAND [options]; eden COMMAND --help lists them", "", *lines])
    print(complaint + usage, file=sys.stdout if asked else sys.stderr)
    sys.exit(0 if asked else 2)


if __name__ == "__main__":
    main()
