"""Where a model comes from is told along the whole chain, and what changed since is named."""

import json
import shutil
import subprocess

import pytest

from eden_hf import EdenForPreTraining, EdenImageProcessor, cli
from eden_hf.hub.export import export_model
from eden_hf.hub.repository import stage_model
from eden_hf.training import lineage
from eden_hf.training.finetuning import finetune
from eden_hf.training.lineage import LineageError, chain, changes, package_revision, read_lineage, write_lineage

from ..hub.conftest import write_card_yaml
from ..launching import REPOSITORY
from ..tiny import tiny_config
from .test_finetuning import phantoms, settings
from .test_pretraining import run_pretraining


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model from elsewhere, a run that started from it, one fine-tuned from that, and its repository."""
    folder = tmp_path_factory.mktemp("lineage")
    start = EdenForPreTraining(tiny_config())
    start.save_pretrained(folder / "start")
    EdenImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder / "start")
    write_lineage(folder / "start", "convert", [folder / "start" / "config.json"])
    run_pretraining(folder, model={"start": str(folder / "start")})
    finetune(settings(folder / "tuned", phantoms(), start=folder / "run" / "last"))
    card = write_card_yaml(folder)
    stage_model(folder / "tuned", folder / "repository", card)
    return folder


@pytest.fixture
def folder(made, tmp_path):
    """A copy to change; records name places of the original, which stays as it is."""
    return shutil.copytree(made, tmp_path / "copy")


def test_the_whole_chain_is_told_wherever_it_goes(made, folder):
    told = chain(folder / "repository")
    steps = [line for line in told if "sha256" not in line or "no record" in line]
    wanted = ["repository: stage", "  tuned/best: finetune", "    run/last: pretrain", "      start: convert"]
    assert [step.partition(" (")[0] for step in steps] == [*wanted, "        config.json: no record"]
    assert "image_list_ha" not in told[0]
    assert "image_list_hash " in steps[2]
    assert str(made.parent) not in (folder / "repository" / "lineage.json").read_text()
    for name in ("start", "run", "run/last", "run/best", "tuned", "tuned/best", "repository"):
        assert changes(folder / name) == []


@pytest.mark.parametrize(
    ("target", "changed"),
    [
        ("run", "config.yaml"),
        ("run", "last/model.safetensors"),
        ("tuned", "environment.json"),
        ("repository", "training/metrics.json"),
        ("repository", "preprocessor_config.json"),
    ],
)
def test_a_changed_file_is_named(folder, target, changed, capsys):
    with (folder / target / changed).open("ab") as file:
        file.write(b" ")
    assert changes(folder / target) == [f"{folder / target / changed} changed since it was recorded"]
    with pytest.raises(SystemExit, match=r"^1$"):
        cli.lineage([str(folder / target)])
    assert f"{changed} changed" in capsys.readouterr().out


def test_missing_and_added_files_are_named_and_cards_may_be_written_anew(folder):
    repository = folder / "repository"
    (repository / "README.md").write_text("another")
    assert changes(repository) == []
    (repository / "config.json").unlink()
    (repository / "extra.safetensors").write_bytes(b"x")
    assert changes(repository) == [
        f"{repository / 'config.json'} is missing",
        f"{repository / 'extra.safetensors'} came later",
    ]


def test_a_parent_with_other_weights_is_named(tmp_path):
    parent = tmp_path / "parent.pth"
    parent.write_bytes(b"weights")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    write_lineage(tmp_path / "model", "convert", [parent])
    assert changes(tmp_path / "model") == []
    parent.write_bytes(b"others")
    assert changes(tmp_path / "model") == [f"{parent} has other weights than those that were taken: parent.pth"]
    parent.unlink()
    assert changes(tmp_path / "model") == []


def test_an_exported_file_has_its_record_beside_it(made, tmp_path):
    file = export_model(str(made / "run" / "last"), str(tmp_path / "trunk.pt2"), "program")
    assert read_lineage(file)["parents"][0]["lineage"]["made_by"] == "pretrain"
    assert changes(file) == []
    file.write_bytes(b"others")
    assert changes(file) == [f"{file} changed since it was recorded"]


@pytest.mark.parametrize("content", [None, "{}", "[", "[]"])
def test_a_folder_without_a_record_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "lineage.json").write_text(content)
    with pytest.raises(LineageError, match=r"lineage\.json is missing or no record"):
        chain(tmp_path)


PARENT = {"name": "a", "weights": None, "lineage": None}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("files", value) for value in (None, 3, "x", [1], {"a": None}, {"../a": "0"}, {"/etc/passwd": "0"})),
        *(("parents", value) for value in (None, {}, [3], [{}], [{**PARENT, "lineage": {}}], [{**PARENT, "name": 3}])),
        *(("parents", [{**PARENT, "weights": value}]) for value in (3, "x", [1])),
        ("made_by", None),
        ("facts", None),
    ],
)
def test_records_of_another_form_are_refused(tmp_path, key, value):
    record = {"made_by": "convert", "facts": {}, "files": {}, "parents": [PARENT]}
    (tmp_path / "lineage.json").write_text(json.dumps(record))
    assert chain(tmp_path)
    assert changes(tmp_path) == []
    (tmp_path / "lineage.json").write_text(json.dumps(record | {key: value}))
    with pytest.raises(LineageError, match=r"lineage\.json is missing or no record"):
        changes(tmp_path)


def test_a_parent_that_was_not_at_hand_is_not_compared(tmp_path):
    (tmp_path / "model").mkdir()
    parent = tmp_path / "parent.pth"
    write_lineage(tmp_path / "model", "convert", [parent])
    parent.write_bytes(b"weights")
    assert changes(tmp_path / "model") == []


def test_the_revision_is_that_of_the_package_alone(tmp_path, monkeypatch):
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-C", str(tmp_path)]
    for arguments in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "a user's own"]):
        subprocess.run([*git, *arguments], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    monkeypatch.setattr(lineage, "distribution", lambda name: Installed(None))
    assert package_revision(tmp_path) == head
    monkeypatch.setenv("GIT_DIR", str(REPOSITORY / ".git"))  # as in a hook of another repository
    assert package_revision(tmp_path) == head
    assert package_revision(tmp_path / "lib" / "site-packages") is None
    monkeypatch.setenv("PATH", "")
    assert package_revision(tmp_path) is None
    told = json.dumps({"url": "https://example.org/eden_hf", "vcs_info": {"vcs": "git", "commit_id": "abc"}})
    monkeypatch.setattr(lineage, "distribution", lambda name: Installed(told))
    assert package_revision(tmp_path / "lib" / "site-packages") == "abc"


class Installed:
    """Stands in for what pip wrote of a distribution."""

    def __init__(self, direct_url):
        self.direct_url = direct_url

    def read_text(self, name):
        return self.direct_url if name == "direct_url.json" else None


def test_the_weights_of_a_parent_are_those_that_a_run_takes(tmp_path):
    """Pickled ones where there are no others, and the whole model of a repository beside its trunk."""
    pickled, repository = tmp_path / "pickled", tmp_path / "repository"
    for file in (
        pickled / "pytorch_model.bin",
        repository / "model.safetensors",
        repository / "pretraining/model.safetensors",
    ):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(file.parent.name)
    (tmp_path / "made").mkdir()
    write_lineage(tmp_path / "made", "pretrain", [pickled, repository])
    one, two = (parent["weights"] for parent in read_lineage(tmp_path / "made")["parents"])
    assert list(one) == ["pytorch_model.bin"]
    assert list(two) == ["model.safetensors", "pretraining/model.safetensors"]
    assert changes(tmp_path / "made") == []
    (repository / "pretraining/model.safetensors").write_text("other")
    (told,) = changes(tmp_path / "made")
    assert told.endswith("other weights than those that were taken: pretraining/model.safetensors")
