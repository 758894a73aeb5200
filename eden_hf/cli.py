"""The `eden` command: each sub-command is the function that the script of the same purpose calls.

eden pretrain --config configs/adam_resnet18_small.yaml                     scripts/pretrain.py
eden prepare images/ prepared/ --shard 3/16                                 scripts/prepare_images.py
eden crops images/ crops/                                                   scripts/build_anatomy_crops.py
eden gallery --model outputs/run/last --source images/                      scripts/gallery.py
eden evaluate --model outputs/run/last random:outputs/run/last --source scr  scripts/evaluate.py
eden one-shot --model outputs/run/last --source scr --protocol uod
eden audit --run outputs/run --source scr --split test                      scripts/audit_pruner.py
eden probe --model outputs/run/last --source cxr --label-column label       scripts/probe.py
eden few-shot --config configs/few_shot_scr.yaml --encoders a b --frozen    scripts/few_shot_table.py
eden finetune --config configs/finetune_scr_heart.yaml                      scripts/finetune.py
eden embed images/ embeddings.parquet --model outputs/run/last              scripts/embed.py
eden search image.png --model outputs/run/last --embeddings embeddings.parquet --output sheet.png
eden leaks pretraining/ test/
eden check-phi images/ --output phi.csv
eden lineage outputs/run/last
eden landmarks --model outputs/run/last --references refs/ --images xrays/ --output outputs/landmarks
eden match --model outputs/run/last a.png b.png --output outputs/match.png
eden masks --model outputs/run/last --references refs/ --images images/ --output masks/
eden stage outputs/run repository/ --card card.yaml
eden card check repository/
eden push outputs/run user/name --card card.yaml                            scripts/push_to_hub.py
eden convert adam.pth adam/                                                 scripts/convert_checkpoint.py
eden export --model outputs/run/last --output model.onnx
eden space --model outputs/run/last --output space/
eden doctor --config configs/adam_resnet18_small.yaml
eden bench --quick                                                          scripts/benchmark.py
eden completion bash
"""

import logging
import sys
from dataclasses import asdict
from io import TextIOWrapper
from pathlib import Path
from typing import get_args

from eden_hf import __version__
from eden_hf.command_line import (
    COMMANDS,
    FOR_ALL,
    Answer,
    call,
    command,
    command_parser,
    completion_script,
    files_answer,
)
from eden_hf.training.processor import spin_briefly


@command
def pretrain(arguments: list[str], prog: str) -> Answer:
    """Pretrain by a YAML file of settings and --dotted.key overrides."""
    from eden_hf.training.arguments import parse_arguments

    settings, resume = parse_arguments(arguments, prog=prog, epilog=FOR_ALL)
    from accelerate import PartialState

    from eden_hf.hub.push import check_push, push_run
    from eden_hf.training.pretraining import Pretraining

    check_push(settings.run)
    run = Pretraining(settings, resume)
    folder = run.train()
    if run.finished and PartialState().is_main_process:
        push_run(folder, settings.run)
    return Answer([], {"folder": folder, "finished": run.finished})


@command
def prepare(arguments: list[str], prog: str) -> Answer:
    """Decode a source of any size once for pretraining, on one machine or many, to go on where one was stopped."""
    from eden_hf.data.chunks import prepare_in_chunks

    return files_answer(
        [call(prepare_in_chunks, arguments, prog, several=("columns",), by_place=("source", "output"))]
    )


@command
def crops(arguments: list[str], prog: str) -> Answer:
    """Cut the images of a source into anatomy crops, written as Parquet with a data set card."""
    from eden_hf.data.anatomy_crops import build_anatomy_crops

    made = call(build_anatomy_crops, arguments, prog, by_place=("source", "output"))
    counts = {
        name: ", ".join(f"{split}: {count} crops" for split, count in splits.items()) for name, splits in made.items()
    }
    return Answer([f"{name} {count}" for name, count in counts.items()], made)


@command
def gallery(arguments: list[str], prog: str) -> Answer:
    """Draw what a model learned: parts, t-SNE, correspondence, neighbours, loss."""
    from eden_hf.evaluation.gallery import draw_gallery

    return files_answer(call(draw_gallery, arguments, prog))


@command
def evaluate(arguments: list[str], prog: str) -> Answer:
    """Measure what encoders know of anatomy: report cards, side by side."""
    from eden_hf.evaluation.report_card import evaluate

    return files_answer(call(evaluate, arguments, prog, several=("model", "evaluations", "shots", "controls")))


@command
def one_shot(arguments: list[str], prog: str) -> Answer:
    """Find landmarks from one annotated image by a published protocol, beside its numbers."""
    from eden_hf.evaluation.one_shot import one_shot

    return files_answer([call(one_shot, arguments, prog, several=("model", "splits", "controls"))])


@command
def audit(arguments: list[str], prog: str) -> Answer:
    """Audit the pruner of a run: is what it drops the same anatomy?"""
    from eden_hf.evaluation.pruner_audit import audit_pruner

    return files_answer([call(audit_pruner, arguments, prog, several=("gammas",))])


@command
def probe(arguments: list[str], prog: str) -> Answer:
    """Train linear and nearest-neighbour probes on frozen embeddings of labelled images."""
    from eden_hf.evaluation.probes import probe

    return files_answer([call(probe, arguments, prog, several=("model", "probes", "label_columns"))])


@command
def few_shot(arguments: list[str], prog: str) -> Answer:
    """Compare encoders on segmentation with few labelled images, fine-tuned or frozen."""
    from eden_hf.evaluation.few_shot import compare_encoders

    return files_answer([call(compare_encoders, arguments, prog, several=("encoders", "shots"))])


@command
def finetune(arguments: list[str], prog: str) -> Answer:
    """Fine-tune on a labelled task by a YAML file of settings and --dotted.key overrides, and measure it."""
    from accelerate import PartialState

    from eden_hf.evaluation.downstream import draw_masks, evaluate_finetuned, evaluate_mean_mask
    from eden_hf.evaluation.results import table
    from eden_hf.hub.push import check_push, push_run
    from eden_hf.training.finetune_arguments import FinetuneArguments
    from eden_hf.training.finetuning import finetune
    from eden_hf.training.settings import parse_settings

    settings, resume = parse_settings(FinetuneArguments, arguments, prog=prog, epilog=FOR_ALL)
    check_push(settings.run)
    folder = finetune(settings, resume)
    written, results = [], []
    if (folder / "best").exists() and PartialState().is_main_process:  # a signal may have stopped it before
        results.append(evaluate_finetuned(folder))
        written.append(results[0].save(folder))
        if "dice" in results[0].values:
            results.append(evaluate_mean_mask(folder))
            written += [results[1].save(folder / "mean-mask"), draw_masks(folder)]
        push_run(folder, settings.run, [str(folder)])
    return Answer([*written, table(results)] if results else [], {"folder": folder, "files": written})


@command
def embed(arguments: list[str], prog: str) -> Answer:
    """Embed every image of a source, or its points, into one Parquet file."""
    from accelerate import PartialState

    from eden_hf.retrieval.embedding import embed_images

    made = call(embed_images, arguments, prog, by_place=("images", "output"))
    state = PartialState()
    main = state.is_main_process
    state.destroy_process_group()
    skipped = f", {made.skipped} could not be read: {made.skipped_file}" if made.skipped else ""
    return Answer([f"{made.file}: {made.images} images{skipped}"] if main else [], made._asdict())


@command
def search(arguments: list[str], prog: str) -> Answer:
    """Find the images of a collection that are most alike to an image, or to a region of it."""
    from eden_hf.retrieval.searching import search

    hits = call(search, arguments, prog, by_place=("query",))
    lines = [
        f"{rank}\t{hit.similarity:.4f}\t{hit.image}\t{','.join(map(str, hit.box or ()))}"
        for rank, hit in enumerate(hits, start=1)
    ]
    return Answer(lines, [hit._asdict() for hit in hits])


@command
def leaks(arguments: list[str], prog: str) -> Answer:
    """Find images that two sources share, by id, pixels and looks. Exits with 1 if there are, or unreadable ones."""
    from eden_hf.retrieval.leaks import find_leaks

    report = call(find_leaks, arguments, prog, by_place=("a", "b"))
    lines = ["\t".join(map(str, leak)) for leak in report.leaks]
    lines.append(
        f"{len(report.leaks)} pairs shared by {report.images[0]} and {report.images[1]} images: {report.file}"
    )
    complaint = f"not compared, as they cannot be read: {report.unreadable}: {report.skipped_file}"
    data = report._asdict() | {"leaks": [leak._asdict() for leak in report.leaks]}
    found = bool(report.leaks or report.unreadable)
    return Answer(lines, data, status=int(found), complaint=complaint if report.unreadable else None)


@command
def check_phi(arguments: list[str], prog: str) -> Answer:
    """Look in images and their names for what tells who a patient is. Exits with 1 on findings, and with 0 without."""
    parser = command_parser(prog, check_phi.__doc__)
    parser.add_argument("paths", nargs="+", help="files, folders, or other sources of images")
    parser.add_argument("--output", default="phi.csv", help="CSV of what was found; keep it where the images are")
    parser.add_argument("--accepted", help="CSV of findings that you accept: rows kept of an earlier one")
    parser.add_argument("--skip_text", action="store_true", help="do not look for burned-in text")
    chosen = parser.parse_args(arguments)
    from eden_hf.data.phi import check_phi as check

    report = check(chosen.paths, chosen.output, chosen.accepted, chosen.skip_text)
    told = [finding[:-1] for finding in report.findings]  # without the values, which are in the file alone
    without = "without burned-in text; " * chosen.skip_text
    others = f"of {report.others} other files the names, of {report.hidden} hidden ones nothing"
    lines = [
        *("\t".join(finding) for finding in told),
        f"looked at {report.images} images, {without}{others}",
        f"{len(told)} findings, {report.accepted} accepted: {report.file}",
    ]
    return Answer(lines, {**report._asdict(), "findings": told}, status=int(bool(told)))


@command
def lineage(arguments: list[str], prog: str) -> Answer:
    """Show what a model was made of, and check it. Exits with 1 if files or parents changed since."""
    parser = command_parser(prog, lineage.__doc__)
    parser.add_argument("target", help="folder of a run or a model, or an exported file")
    chosen = parser.parse_args(arguments)
    from eden_hf.training.lineage import chain, changes

    links, changed = chain(chosen.target), changes(chosen.target)
    lines = [*links, *(changed or ["nothing changed"])]
    return Answer(lines, {"chain": links, "changed": changed}, status=int(bool(changed)))


@command
def landmarks(arguments: list[str], prog: str) -> Answer:
    """Find the points of annotated images in others: tables and pictures. Exits with 1 if images were unreadable."""
    from eden_hf.matching.landmarks import find_landmarks

    done = call(find_landmarks, arguments, prog, several=("images",))
    lines = [*done.files, f"{done.images} images searched for {done.points} points: {done.not_found} not found"]
    complaint = f"images that cannot be read, see skipped.jsonl there: {done.unreadable}" if done.unreadable else None
    return Answer(lines, done._asdict(), status=int(bool(done.unreadable)), complaint=complaint)


@command
def match(arguments: list[str], prog: str) -> Answer:
    """Find points of one image in another, and draw them."""
    parser = command_parser(prog, match.__doc__)
    parser.add_argument("images", nargs=2, help="the image of the points, and the one to search")
    parser.add_argument("--model", required=True, help="any image encoder; best one with a dense decoder")
    parser.add_argument("--points", nargs="+", help="x,y in pixels of the first; a grid over the body by default")
    parser.add_argument("--output", default="outputs/match.png", help="the picture to write")
    chosen = parser.parse_args(arguments)
    from eden_hf.matching.pairs import match_images

    found = match_images(chosen.model, chosen.images, chosen.points, chosen.output)
    places = {name: f"{point.x:.1f},{point.y:.1f}" if point.found else "not found" for name, point in found.items()}
    lines = [f"{name}: {place} (confidence {found[name].confidence:.2f})" for name, place in places.items()]
    points = {name: point._asdict() for name, point in found.items()}
    return Answer([*lines, chosen.output], {"points": points, "file": chosen.output})


@command
def masks(arguments: list[str], prog: str) -> Answer:
    """Find structures from annotated examples: masks as PNG, DICOM SEG. Exits with 1 if images were unreadable."""
    from eden_hf.matching.masks import find_masks

    done = call(find_masks, arguments, prog, several=("images",))
    complaint = f"images that cannot be read, see skipped.jsonl there: {done.skipped}" if done.skipped else None
    lines = [f"{', '.join(done.names)} of {len(done.images)} images: {done.output}"]
    return Answer(lines, done._asdict(), status=int(bool(done.skipped)), complaint=complaint)


@command
def stage(arguments: list[str], prog: str) -> Answer:
    """Make the folder that is published of a model, with its card."""
    from eden_hf.hub.repository import stage_model

    return files_answer([call(stage_model, arguments, prog, several=("results",), by_place=("source", "output"))])


@command
def card(arguments: list[str], prog: str) -> Answer:
    """Write the card of a model repository (`eden card write FOLDER`), or check it (`eden card check FOLDER`)."""
    parser = command_parser(prog, card.__doc__)
    parser.add_argument("action", choices=["write", "check"], help="write the card, or check it")
    parser.add_argument("folder", help="of a model, with card.yaml")
    parser.add_argument("--model_id", help="Hub id that the card must be of")
    parser.add_argument("--online", action="store_true", help="ask the Hub about the metadata as well")
    chosen = parser.parse_args(arguments)
    from eden_hf.hub.cards import check_card, write_card

    if chosen.action == "write":
        return files_answer([write_card(chosen.folder)])
    problems = check_card(chosen.folder, chosen.model_id, chosen.online)
    lines = problems or [f"{Path(chosen.folder) / 'README.md'} is good"]
    return Answer(lines, {"problems": problems}, status=int(bool(problems)))


@command
def push(arguments: list[str], prog: str) -> Answer:
    """Publish a model, a data set or a Space on the Hub: checked, in one commit."""
    from eden_hf.hub.push import push_to_hub

    options = ("results", "tags", "allow")
    done = call(push_to_hub, arguments, prog, several=options, by_place=("source", "repo_id"))
    return Answer([done], asdict(done))


@command
def convert(arguments: list[str], prog: str) -> Answer:
    """Convert a checkpoint from elsewhere to an Eden folder."""
    from eden_hf.hub.conversion import convert_checkpoint

    done = call(convert_checkpoint, arguments, prog, by_place=("source", "output"))
    return Answer([done], asdict(done))


@command
def export(arguments: list[str], prog: str) -> Answer:
    """Export a model: ONNX, torch.export, or the trunk's weights under another library's names."""
    from eden_hf.hub.conversion import EXPORTS, export_trunk
    from eden_hf.hub.export import export_model
    from eden_hf.hub.export_pixels import Preprocessing

    parser = command_parser(prog, export.__doc__)
    parser.add_argument("--model", required=True, help="folder of an Eden model")
    parser.add_argument("--output", required=True, help="file to write: .onnx, .pt2 or .safetensors")
    parser.add_argument("--format", default="onnx", choices=["onnx", "program", *EXPORTS], help="of the file")
    parser.add_argument(
        "--preprocessing",
        default="none",
        choices=get_args(Preprocessing),
        help="what of the image processor's work the exported model does by itself, given pixels from 0 to 255",
    )
    parser.add_argument("--outputs", nargs="+", default=(), help="names of the outputs wanted; all by default")
    parser.add_argument("--half", action="store_true", help="store weights with 16 bits (onnx)")
    chosen = parser.parse_args(arguments)
    asked = (chosen.preprocessing, chosen.outputs, chosen.half)
    if chosen.format not in EXPORTS:
        return files_answer([export_model(chosen.model, chosen.output, chosen.format, *asked)])
    if asked != ("none", (), False):
        raise ValueError(f"--preprocessing, --outputs and --half are for onnx and program, not for {chosen.format}")
    return files_answer([export_trunk(chosen.model, chosen.output, chosen.format)])


@command
def space(arguments: list[str], prog: str) -> Answer:
    """Write a static Space: a page on which a point of one X-ray is found in others, in the browser alone."""
    from eden_hf.hub.space import make_space

    return files_answer([call(make_space, arguments, prog)])


@command
def bench(arguments: list[str], prog: str) -> Answer:
    """Time what the package does on this machine, each beside a plain way of doing the same."""
    from eden_hf.benchmarks.bench import bench

    made = call(bench, arguments, prog, several=("rows",))
    return Answer([made.table], made._asdict())


@command
def doctor(arguments: list[str], prog: str) -> Answer:
    """Tell what a pretraining run would take on this machine, and what binds it; settings as for `eden pretrain`."""
    from eden_hf.training.arguments import parse_arguments

    settings, _ = parse_arguments(arguments, prog=prog, epilog=FOR_ALL)
    from eden_hf.benchmarks.doctor import examine

    lines = examine(settings)
    return Answer(lines, {"lines": lines})


@command
def completion(arguments: list[str], prog: str) -> Answer:
    """Print what makes a shell complete commands and options: eval "$(eden completion bash)"."""
    parser = command_parser(prog, completion.__doc__)
    parser.add_argument("shell", choices=["bash", "zsh", "tcsh"], help="the shell to print it for")
    chosen = parser.parse_args(arguments)
    script = completion_script(chosen.shell)
    return Answer([script], {"script": script})


def main() -> None:
    """Run `eden COMMAND [options]`; exits with status 2 and the list of commands if there is none of that name."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("eden_hf").setLevel(logging.INFO)
    spin_briefly()
    for stream in (sys.stdout, sys.stderr):  # names of files may be of no encoding, or not of the terminal's
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    words = sys.argv[1:] or ["--help"]
    first = next((index for index, word in enumerate(words) if word not in ("--quiet", "--json")), 0)
    name = words.pop(first)
    if name in COMMANDS:
        return COMMANDS[name](words)
    if name == "--version":
        return print(f"eden_hf {__version__}")
    asked = name in ("-h", "--help")
    lines = [f"  {name:10} {function.__doc__}" for name, function in COMMANDS.items()]
    complaint = "" if asked else f"eden: unknown command {name!r}\n"
    usage = ["usage: eden COMMAND [options]; eden COMMAND --help lists them, eden --version", "", *lines, "", FOR_ALL]
    print(complaint + "\n".join(usage), file=sys.stdout if asked else sys.stderr)
    sys.exit(0 if asked else 2)


if __name__ == "__main__":
    main()
