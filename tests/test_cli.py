import subprocess
import sys

import pytest

from .launching import ENVIRONMENT, REPOSITORY


def python_program(*arguments):
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=REPOSITORY, env=ENVIRONMENT, capture_output=True, text=True, check=False)


def eden(*arguments):
    return python_program("-c", "from eden_hf.cli import main; main()", *arguments)


def test_help_lists_the_commands():
    finished = eden("--help")
    assert finished.returncode == 0
    for name in (
        "pretrain",
        "crops",
        "gallery",
        "evaluate",
        "audit",
        "probe",
        "few-shot",
        "finetune",
        "embed",
        "search",
        "landmarks",
        "match",
        "stage",
        "card",
        "push",
    ):
        assert name in finished.stdout
    assert eden().stdout == finished.stdout


def test_an_unknown_command_says_which_there_are():
    finished = eden("pretrian")
    assert finished.returncode == 2
    assert "pretrian" in finished.stderr
    assert "pretrain" in finished.stderr


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("pretrain", "--training.batch_size"),
        ("crops", "--num_proc"),
        ("gallery", "--source"),
        ("evaluate", "--evaluations"),
        ("audit", "--gammas"),
        ("probe", "--label_columns"),
        ("few-shot", "--recipe.training.steps"),
        ("finetune", "--task.data_dir"),
        ("embed", "--dense"),
        ("search", "--region"),
        ("landmarks", "--unlabelled"),
        ("match", "--points"),
        ("stage", "--half"),
        ("card", "check"),
        ("push", "--dry_run"),
        ("convert", "--pretraining"),
        ("export", "--format"),
    ],
)
def test_each_command_explains_its_options(command, option):
    finished = eden(command, "--help")
    assert finished.returncode == 0, finished.stderr
    assert option in finished.stdout


def test_a_misspelt_setting_exits_with_a_suggestion():
    finished = eden("pretrain", "--training.batchsize", "3")
    assert finished.returncode == 2
    assert "training.batch_size" in finished.stderr
    assert "Traceback" not in finished.stderr


def test_both_modules_are_the_command():
    for module in ("eden_hf", "eden_hf.cli"):
        finished = python_program("-m", module, "pretrain", "--training.batchsize", "3")
        assert finished.returncode == 2
        assert "training.batch_size" in finished.stderr


BARE = """
import sys
for name in ("matplotlib", "sklearn", "scipy", "evaluate", "pydicom", "onnxruntime", "SimpleITK", "highdicom", "peft"):
    sys.modules[name] = None  # as where it is not installed
from eden_hf.cli import COMMANDS, main
for name in COMMANDS:
    sys.argv = ["eden", name, "--help"]
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            print(ended.code, file=sys.stderr)
"""


@pytest.mark.slow
def test_without_extras_commands_work_or_name_what_to_install():
    finished = python_program("-c", BARE)
    assert finished.returncode == 0, finished.stderr
    told = finished.stderr.splitlines()
    needy = ("gallery", "evaluate", "one-shot", "audit", "probe", "few-shot", "finetune")
    assert [line.partition(":")[0] for line in told] == [f"eden {name}" for name in needy]
    assert [line for line in told if not line.endswith("pip install 'eden_hf[evaluation]'")] == []
