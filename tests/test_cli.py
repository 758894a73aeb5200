import subprocess
import sys

import pytest

from .launching import ENVIRONMENT, REPOSITORY


def eden(*arguments):
    command = [sys.executable, "-c", "from eden_hf.cli import main; main()", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, env=ENVIRONMENT, capture_output=True, text=True, check=False)


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
