"""What is read is data: no part of the package runs what it reads, or has a library do so."""

import ast
import json
import sys
from pathlib import Path

import pytest
import torch

from eden_hf import EdenImageProcessor, EdenModel
from eden_hf.encoders import load_encoder
from eden_hf.hub.conversion import CheckpointError, read_checkpoint

from .launching import REPOSITORY
from .tiny import tiny_config

SOURCES = sorted([*(REPOSITORY / "eden_hf").rglob("*.py"), *(REPOSITORY / "scripts").rglob("*.py")])
#: What loads the states that it has just made itself.
OWN = {"break_runs.py": "torch.load without weights_only"}
#: Of modules that run code in what they read, what does not.
HARMLESS = {"pickle": {"UnpicklingError"}}
RUNNING = ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle")
CALLS = {"unsafe_load", "full_load", "read_pickle", "load_module"}


def _wrong(tree):
    """Lines of a module that could run what is read."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in RUNNING:
            yield from (f"{node.lineno}: {node.module}.{a.name}" for a in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in RUNNING:
            if node.attr not in HARMLESS.get(node.value.id, ()):
                yield f"{node.lineno}: {node.value.id}.{node.attr}"
        elif isinstance(node, ast.Call):
            yield from _wrong_call(node)


def _wrong_call(node):
    called, given = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
    if called in ("eval", "exec", "compile") or called.split(".")[-1] in CALLS:
        yield f"{node.lineno}: {called}"
    if called == "torch.load" and given.get("weights_only") != "True":
        yield f"{node.lineno}: torch.load without weights_only"
    if called in ("np.load", "numpy.load") or given.get("allow_pickle", "False") != "False":
        yield f"{node.lineno}: {called} may unpickle"
    if called == "yaml.load" and not given.get("Loader", "").endswith("SafeLoader"):
        yield f"{node.lineno}: yaml.load"
    if given.get("trust_remote_code") == "True":
        yield f"{node.lineno}: consents to remote code"
    if called.endswith(("extractall", ".extract", "unpack_archive")):
        yield f"{node.lineno}: {called} writes where the archive says"


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(REPOSITORY)))
def test_nothing_that_is_read_is_run(file):
    own = OWN.get(file.name, "nothing")
    wrong = [line for line in _wrong(ast.parse(file.read_text())) if own not in line]
    assert wrong == []


@pytest.mark.parametrize(
    "line",
    [
        "pickle.loads(data)",
        "from joblib import load",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "np.load(file)",
        "read(file, allow_pickle=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.unsafe_load(text)",
        "eval(text)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "archive.extractall(folder)",
    ],
)
def test_the_test_sees_what_would(line):
    assert len(list(_wrong(ast.parse(line)))) == 1


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return Path.mkdir, (self.folder,)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    torch.save({"weight": torch.zeros(2), "more": Bomb(tmp_path / "ran")}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="which would run code of whoever wrote it"):
        read_checkpoint(tmp_path / "a.pth")
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def hostile(tmp_path):
    """A model folder whose code would run if anybody consented, and says so."""
    folder = tmp_path / "hostile"
    EdenModel(tiny_config()).save_pretrained(folder)
    EdenImageProcessor(size=32).save_pretrained(folder)
    for file, kind in (("config.json", "AutoConfig"), ("preprocessor_config.json", "AutoImageProcessor")):
        content = json.loads((folder / file).read_text())
        content["auto_map"] = {kind: "hostile.Hostile", "AutoModel": "hostile.Hostile"}
        content["model_type"] = "hostile"
        (folder / file).write_text(json.dumps(content))
    (folder / "hostile.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).mkdir()\n")
    return folder


def test_code_of_a_model_folder_runs_only_by_consent(tmp_path, hostile, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)  # nobody is there to consent
    with pytest.raises(OSError, match=r"no image model at .* contains custom code"):
        load_encoder(str(hostile))
    assert not (tmp_path / "ran").exists()
