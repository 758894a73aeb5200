import time
from pathlib import Path

import pytest
import yaml
from accelerate.state import AcceleratorState
from huggingface_hub import constants
from huggingface_hub.utils import _xet

from eden_hf.data.phi import checking
from eden_hf.evaluation.results import Estimate, Results
from eden_hf.hub.repository import stage_model
from eden_hf.model_names import weights_revision

from ..hub_server import WRITE_TOKEN, XET_ENVIRONMENT, LocalHub
from ..training.test_pretraining import run_pretraining

DECLARED = {
    "model_id": "user/tiny",
    "license": "apache-2.0",
    "intended_use": "Tests of the package.",
    "training_data": [{"name": "phantoms", "description": "Drawn images of nobody.", "license": "apache-2.0"}],
}


def write_card_yaml(folder: Path, **declared) -> Path:
    file = folder / "declared.yaml"
    file.write_text(yaml.safe_dump(DECLARED | declared))
    return file


@pytest.fixture
def hub(request, monkeypatch, tmp_path_factory):
    """A Hub of this process, with Xet unless its parameter is `plain`, and without waiting between tries."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", getattr(request, "param", "xet") == "plain")
    monkeypatch.setattr(_xet, "_GLOBAL_XET_HOLDER", _xet.XetSessionHolder())
    cache = str(tmp_path_factory.mktemp("xet"))  # what another Hub holds is not deduplicated with this one's
    for name, value in (XET_ENVIRONMENT | {"HF_XET_CACHE": cache}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setenv("HF_TOKEN", WRITE_TOKEN)
    with LocalHub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        yield hub


@pytest.fixture(autouse=True)
def no_text(monkeypatch):
    """No look for burned-in text, which takes a third of a second an image; `tests/data/phi` has that."""
    monkeypatch.setattr(checking, "find_text", lambda picture: [])


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A pretraining run on phantoms: a few steps of a tiny trunk."""
    folder = run_pretraining(tmp_path_factory.mktemp("hub"))
    AcceleratorState._reset_state(reset_partial_state=True)
    return folder


@pytest.fixture(scope="session")
def report(run):
    """Result files of that run's last model."""
    folder = run.parent / "report"
    revision = weights_revision(str(run / "last"))
    values = {"auroc": Estimate(0.75, 0.5, 1.0, 4)}
    for name in ("locality", "correspondence"):
        settings = {"window": 0.25}
        Results(name, "run/last", revision, "phantoms:4", "0123456789ab", 0, values, settings).save(folder / name)
    return folder


@pytest.fixture(scope="session")
def staged(run, report):
    """The repository folder of the run's last model. Copy it before you change it."""
    card = write_card_yaml(run.parent)
    return stage_model(run / "last", run.parent / "staged", card, [report])


def write_dataset_yaml(folder: Path, **declared) -> Path:
    file = folder / "declared_dataset.yaml"
    provenance = {"license": "cc0-1.0", "provenance": "Drawn by the package; images of nobody."}
    file.write_text(yaml.safe_dump(provenance | {"images_may_be_shared": True} | declared))
    return file
