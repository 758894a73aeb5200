"""Every snippet of the documentation runs, or is parsed by what it calls; the notebook runs, and the SLURM script too.

Python snippets of a page run in order, in one namespace, in a folder that has what they name. So do the commands of
`EXECUTED`; of any other command the options go through the parser of the program that it starts. A snippet that is
neither fails.
"""

import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from itertools import dropwhile
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from accelerate.commands.config.config_args import ClusterConfig
from accelerate.commands.launch import launch_command_parser
from jsonargparse import capture_parser
from PIL import Image
from torch.distributed.run import get_args_parser as torchrun_parser

from eden_hf import EdenForPreTraining, EdenImageProcessor, EdenModel, cli
from eden_hf.data.phantoms import draw_phantom, phantom_dataset
from eden_hf.hub.cards import EdenModelCardData
from eden_hf.training.arguments import parse_arguments
from eden_hf.training.pretraining import pretrain

from .data.readers import layouts
from .golden.reference import tensors_by_torchvision_name
from .hub.conftest import write_card_yaml
from .launching import ENVIRONMENT, REPOSITORY, takes_auto_image_processor
from .tiny import tiny_config
from .training.test_pretraining import settings_file

PAGES = [
    "README.md",
    *sorted(f"docs/{path.name}" for path in (REPOSITORY / "docs").glob("*.md")),
    *sorted(
        f"model_cards/{w.parent.name}/README.md" for w in (REPOSITORY / "model_cards").glob("*/model.safetensors")
    ),
]
SLOW = ("README.md",)
#: Sub-commands of `eden` that run where their page is tested; others would take minutes, or data that is not here.
EXECUTED = {
    "README.md": ("card", "convert", "crops", "evaluate", "export", "landmarks", "masks", "match", "stage"),
    "docs/evaluations.md": ("audit",),
    "docs/embeddings.md": ("embed", "search"),
}
SNIPPET = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SLURM_SCRIPT = "configs/slurm_pretrain.sh"


def snippets(page: str) -> list[tuple[str, str]]:
    """Language and text of each snippet of a page."""
    return SNIPPET.findall((REPOSITORY / page).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def furnished(tmp_path_factory) -> Path:
    """A folder with what the snippets name: the repository's own folders, a tiny run, images, a published layout."""
    folder = tmp_path_factory.mktemp("documentation")
    for name in ("Makefile", "configs", "docs", "eden_hf", "model_cards", "scripts", "tests"):
        (folder / name).symlink_to(REPOSITORY / name)
    (folder / "your-name").symlink_to(REPOSITORY / "model_cards")  # as if they were on the Hub
    run = pretrain(parse_arguments([f"--config={settings_file(folder, 'tiny')}"])[0])
    for name in ("demo/run", "run", "adam_resnet18_small"):
        shutil.copytree(run, folder / "outputs" / name)
    EdenModel(tiny_config(dense_dim=8)).save_pretrained(folder / "outputs" / "eve" / "last")
    EdenImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder / "outputs" / "eve" / "last")
    (folder / "my_xrays").mkdir()
    for row in phantom_dataset(8, size=64):
        row["image"].save(folder / "my_xrays" / f"{row['image_id']}.png")
    shutil.copy(REPOSITORY / "docs" / "phantoms.png", folder / "image.png")
    for name in ("a.png", "b.png"):
        shutil.copy(folder / "image.png", folder / name)
    _references(folder / "refs")
    write_card_yaml(folder).rename(folder / "card.yaml")
    checkpoint = tensors_by_torchvision_name(EdenForPreTraining(tiny_config("bottleneck")), "student")
    torch.save(checkpoint, folder / "checkpoint.pth")
    layouts.scr(folder / "data" / "jsrt-scr")
    return folder


def _references(folder: Path) -> None:
    """One annotated image: a point in a table, and a mask."""
    (folder / "masks" / "left_lung").mkdir(parents=True)
    phantom = draw_phantom(3, 64)
    Image.fromarray(phantom.image).save(folder / "one.png")
    x, y = (64 * share - 0.5 for share in phantom.landmarks["carina"])
    (folder / "landmarks.csv").write_text(f"image,name,x,y\none.png,carina,{x},{y}\n")
    Image.fromarray(phantom.masks["left_lung"]).save(folder / "masks" / "left_lung" / "one.png")


@pytest.fixture
def workspace(furnished, tmp_path, monkeypatch) -> Path:
    """A copy of that folder of the test's own, in which it runs."""
    folder = tmp_path / "workspace"
    shutil.copytree(furnished, folder, symlinks=True)
    monkeypatch.chdir(folder)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("eden_hf.data.prepared.CACHE_DIR", tmp_path / "cache")
    monkeypatch.setattr("eden_hf.evaluation.statistics.RESAMPLES", 50)
    return folder


@takes_auto_image_processor
@pytest.mark.parametrize("page", [pytest.param(p, marks=[pytest.mark.slow] if p in SLOW else []) for p in PAGES])
def test_the_snippets_of_a_page_run(page, workspace):
    names: dict = {}
    for number, (language, text) in enumerate(snippets(page), start=1):
        if language == "python":
            exec(compile(text, f"{page}, snippet {number}", "exec"), names)
        elif language == "bash":
            for command in commands(text):
                check_command(command, EXECUTED.get(page, ()))
        elif language == "yaml":
            Path("snippet.yaml").write_text(text)
            if "model_id" in text:
                EdenModelCardData.load("snippet.yaml")
                continue
            assert ClusterConfig.from_yaml_file("snippet.yaml").num_processes >= 1
        else:
            assert language in ("text", "bibtex"), f"{page}: nothing checks snippets of the language {language!r}"
    FURTHER.get(page, lambda names: None)(SimpleNamespace(**names))


def _heads(page):
    assert {found["label"] for found in page.structures} == {"heart", "left_lung", "right_lung"}
    assert all(found["mask"].size == page.image.size for found in page.structures)
    assert page.scores["linear"]["accuracy"].n == 8


def _readme(page):
    assert page.outputs.pooler_output.shape[0] == page.outputs.last_hidden_state.shape[0] == 1
    assert len(page.crops["train"]) == 8 * 4


def _embeddings(page):
    assert page.collection[0]["image"] == page.nearest[0]


def _points(page):
    assert {*page.matches[0]} == {"keypoint_image_0", "keypoint_image_1", "score"}
    assert len(page.found[0]["keypoints0"]) > 0


#: What else must hold after a page ran.
FURTHER = {
    "docs/embeddings.md": _embeddings, "docs/heads.md": _heads, "docs/points.md": _points, "README.md": _readme
}  # fmt: skip


# commands


def commands(text: str) -> list[list[str]]:
    """The commands of a shell snippet as words, without comments and settings of environment variables."""
    lines = text.replace("\\\n", " ").splitlines()
    found = [shlex.split(line, comments=True) for line in lines]
    return [words[_settings(words) :] for words in found if words]


def _settings(words: list[str]) -> int:
    """How many words at the start set environment variables."""
    return next((i for i, word in enumerate(words) if not re.fullmatch(r"[A-Z_]+=\S*", word)), len(words))


def check_command(words: list[str], executed: Sequence[str] = ()) -> None:
    """Run a command that is quick; of any other see that it would start: files and targets exist, options parse."""
    program, *arguments = words
    assert program in PROGRAMS, f"nothing checks the command {shlex.join(words)}"
    for word in arguments:
        if re.match(r"(configs|docs|eden_hf|scripts|tests)/", word):
            assert (REPOSITORY / word.split("::")[0]).exists(), f"{shlex.join(words)} names {word}, which is not there"
    if program == "eden" and arguments[0] in executed:
        cli.COMMANDS[arguments[0]](arguments[1:])
    else:
        PROGRAMS[program](arguments)
        print(f"not run, but read by its parser: {shlex.join(words)}")  # scripts/release.sh tells these


def parse(start, arguments: list[str]) -> None:
    """Let the parser that `start()` makes read `arguments`, without running anything."""
    parser = capture_parser(start)
    parser.instantiate(parser.parse_args(arguments))


def check_eden(arguments):
    name, *options = arguments
    parse(lambda: cli.COMMANDS[name](options), options)


def check_script(script, options):
    with patch.object(sys, "argv", [script, *options]):  # what is given by name is not asked for by place
        parse(lambda: runpy.run_path(script, run_name="__main__"), options)


def check_python(arguments):
    module, *options = arguments
    if module == "-m":
        assert options[0] in ("http.server", "venv", "pytest")
    else:
        check_script(module, options)


def check_accelerate(arguments):
    assert arguments[0] == "launch"
    launched = launch_command_parser().parse_args(arguments[1:])
    check_script(launched.training_script, launched.training_script_args)


def check_torchrun(arguments):
    launched = torchrun_parser().parse_args(arguments)
    check_script(launched.training_script, launched.training_script_args)


def check_make(arguments):
    targets = re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert {word for word in arguments if "=" not in word} <= set(targets)


def check_pip(arguments):
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert arguments[0] == "install"
    for word in arguments[1:]:
        asked = re.fullmatch(r"(?:\.|eden_hf)\[([\w,-]+)\]", word)
        assert word == "-e" or (asked and set(asked[1].split(",")) <= set(extras)), word


def check_pytest(arguments):
    """Every test that is named is there."""
    for word in arguments:
        path, _, name = word.partition("::")
        if path.endswith(".py"):
            assert f"def {name}" in (REPOSITORY / path).read_text(), word
    if "-k" in arguments:
        pattern = arguments[arguments.index("-k") + 1]
        files = [REPOSITORY / word for word in arguments if word.endswith(".py")]
        assert any(re.search(rf"def test_\w*{pattern}", file.read_text()) for file in files), pattern


def check_sbatch(arguments):
    batch, *options = dropwhile(lambda word: word.startswith("-"), arguments)
    if batch == "configs/slurm_prepare.sh":  # tests/data/test_chunks.py tests what it starts
        return check_script("scripts/prepare_images.py", options)
    assert batch == SLURM_SCRIPT
    script, *options = launched_by_slurm(Path("job").absolute(), *options)
    return check_script(script, options)


PROGRAMS = {
    "accelerate": check_accelerate, "eden": check_eden, "make": check_make, "pip": check_pip, "pytest": check_pytest,
    "python": check_python, "sbatch": check_sbatch, "torchrun": check_torchrun,
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("frobnicate --now", "nothing checks the command"),
        ("eden pretrain --config configs/absent.yaml", "which is not there"),
        ("make absent", "absent"),
        ("pip install '.[absent]'", "absent"),
        ("pytest tests/test_anatomy.py::test_absent", "test_absent"),
    ],
)
def test_a_wrong_command_is_found(text, words):
    with pytest.raises(AssertionError, match=words):
        check_command(commands(text)[0])


@pytest.mark.parametrize(
    "text",
    [
        "eden pretrain --training.batchsize 3",
        "eden evaluate --models a",
        "python scripts/show_views.py --rezept a",
        "accelerate launch scripts/pretrain.py --config configs/demo.yaml \\\n  --stages '[{level: -1}]'",
        "torchrun --nproc_per_node 2 scripts/pretrain.py --optimiser sgd",
    ],
)
def test_a_wrong_option_is_found(text, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises((SystemExit, ValueError)):
        check_command(commands(text)[0])


# links


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if not target.startswith("http"):
            assert (REPOSITORY / page).parent.joinpath(target).exists(), f"{page} links to {target}"


@pytest.mark.parametrize("page", PAGES)
def test_names_in_code_exist(page):
    """`folder/file.py` and, after a colon pair, the test or function in it."""
    text = SNIPPET.sub("", (REPOSITORY / page).read_text(encoding="utf-8"))
    for path, name in re.findall(r"`((?:eden_hf|scripts|configs|tests)/[\w/.-]+\.(?:py|yaml|sh))(?:::(\w+))?`", text):
        assert (REPOSITORY / path).exists(), f"{page} names {path}"
        if name:
            assert re.search(rf"\b(def|class) {name}\b", (REPOSITORY / path).read_text()), f"{page} names {name}"


# the figure of the method


@pytest.mark.filterwarnings("ignore:constrained_layout not applied")  # where hardly anything is left to draw
@pytest.mark.parametrize("gamma", [-1.0, 0.5, 1.0])
def test_the_figure_of_the_method_is_drawn_whatever_is_dropped(gamma, workspace):
    draw = runpy.run_path("scripts/draw_method.py")["draw_method"]
    draw("outputs/run/last", "method.png", source="phantoms:3", level=2, part=1, prune_threshold=gamma)
    with Image.open("method.png") as picture:
        assert picture.width > 2 * picture.height


# the notebook

NOTEBOOK = REPOSITORY / "docs" / "eden_hf.ipynb"
NUMBER = re.compile(r"[+-]?\d[\d.]*")


def code_cells() -> list[dict]:
    """The code cells of the notebook."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def shown(cell: dict) -> tuple[str, int]:
    """What a cell printed, numbers left out, and how many figures it showed."""
    printed = "".join("".join(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream")
    return NUMBER.sub("n", printed), sum(output["output_type"] == "display_data" for output in cell["outputs"])


def test_the_notebook_is_kept_with_outputs():
    assert [cell["execution_count"] for cell in code_cells()] == list(range(1, len(code_cells()) + 1))
    outputs = [output for cell in code_cells() for output in cell["outputs"]]
    assert {output.get("name", "figure") for output in outputs} == {"stdout", "figure"}
    assert all("image/png" in output["data"] for output in outputs if "name" not in output)
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 1 << 20
    assert not re.search(r"/(home|root|tmp|Users)/", text)


@takes_auto_image_processor
@pytest.mark.slow
def test_the_notebook_runs(workspace, capsys):
    """With few images and steps, it prints and shows what is kept of it, but for the numbers."""
    figures: list = []
    names: dict = {"display": figures.append}
    for number, cell in enumerate(code_cells(), start=1):
        exec(compile("".join(cell["source"]), f"code cell {number}", "exec"), names)
        assert (NUMBER.sub("n", capsys.readouterr().out), len(figures)) == shown(cell)
        figures.clear()
        if "parameters" in cell["metadata"].get("tags", ()):
            assert names.keys() >= {"EPOCHS", "IMAGES"}
            names |= {"EPOCHS": 1, "IMAGES": 72}  # a batch, and one image in ten held out
    assert names["embeddings"].shape[0] == 16


# SLURM

#: In place of the interpreter: keep what was asked for, then do something.
RECORD = """#!/usr/bin/env bash
echo "$RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR" > {folder}/environment
printf '%s\\n' "$@" > {folder}/arguments
{then}
"""
SRUN = """#!/usr/bin/env bash
shift
SLURM_PROCID=3 SLURM_LOCALID=1 exec "$@"
"""
SCONTROL = """#!/usr/bin/env bash
echo "$*" >> {folder}/scontrol-calls
if [ "$1" = show ]; then printf 'node-a\\nnode-b\\n'; fi
"""


def start_slurm_job(folder: Path, *arguments: str, then: str = "exit 0") -> subprocess.Popen:
    """The batch script with an `srun` that starts one process, which records what it got and then does `then`."""
    folder.mkdir(exist_ok=True)
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "python": RECORD}.items():
        (folder / name).write_text(text.replace("{folder}", str(folder)).replace("{then}", then))
        (folder / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_JOB_NODELIST": "node-[a-b]"}
    paths = {"PYTHON": str(folder / "python"), "PATH": f"{folder}:{ENVIRONMENT['PATH']}"}
    return subprocess.Popen(
        ["bash", SLURM_SCRIPT, *arguments], cwd=REPOSITORY, env={**ENVIRONMENT, **job, **paths}, stderr=subprocess.PIPE
    )


def launched_by_slurm(folder: Path, *arguments: str) -> list[str]:
    """The program and the options that the batch script starts in each process."""
    job = start_slurm_job(folder, *arguments)
    assert job.wait(30) == 0, job.stderr.read()
    return (folder / "arguments").read_text().splitlines()


def test_a_slurm_job_starts_a_process_a_gpu_and_resumes_what_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    run = str(tmp_path / "run")
    started = launched_by_slurm(tmp_path / "job", "configs/demo.yaml", run, "--data.source", "with a blank")
    options = ["--config", "configs/demo.yaml", "--run.output_dir", run, "--data.source", "with a blank"]
    assert started == ["scripts/pretrain.py", *options]
    assert (tmp_path / "job" / "environment").read_text().split() == ["3", "1", "8", "node-a"]
    settings, resume = parse_arguments(options)
    assert (settings.run.output_dir, settings.data.source, resume) == (run, "with a blank", False)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    assert launched_by_slurm(tmp_path / "job", "configs/demo.yaml", run)[-1] == "--resume"


def test_a_slurm_job_that_is_stopped_saves_and_goes_back_into_the_queue(tmp_path):
    saves = f"trap 'touch {tmp_path}/saved; exit 0' TERM; touch {tmp_path}/ready; while :; do sleep 0.05; done"
    job = start_slurm_job(tmp_path / "job", "configs/demo.yaml", str(tmp_path / "run"), then=saves)
    for _ in range(600):
        if (tmp_path / "ready").exists():
            break
        time.sleep(0.05)
    job.terminate()
    assert job.wait(30) == 0
    assert (tmp_path / "saved").exists()
    assert (tmp_path / "job" / "scontrol-calls").read_text().splitlines()[-1] == "requeue 7"


def test_a_slurm_job_that_fails_says_so_and_does_not_come_back(tmp_path):
    job = start_slurm_job(tmp_path / "job", "configs/demo.yaml", str(tmp_path / "run"), then="exit 3")
    assert job.wait(30) == 3
    assert "requeue" not in (tmp_path / "job" / "scontrol-calls").read_text()
    job = start_slurm_job(tmp_path / "job")
    assert job.wait(30) == 1
    assert b"usage: sbatch" in job.stderr.read()
