"""Some hundreds of the tries of `python -m tests.fuzzing`, and that it sees what it is there to see."""

import logging
import os
import re
import signal
import socket
import subprocess
import warnings
from functools import partial

import datasets
import numpy as np
import PIL.Image
import pytest

from eden_hf.data.reading import ImageReadError

from . import fuzzing
from .fuzzing import KINDS, MAX_PIXELS, OUTSIDE, SLOW, attempt, outcomes


@pytest.fixture(autouse=True)
def _small(tmp_path, monkeypatch):
    """As in a process of tries."""
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", MAX_PIXELS)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_read_or_refused(tmp_path, kind):
    fuzzing.watch()
    tries = [attempt(kind, number, tmp_path) for number in range(4 if kind in SLOW else 25)]
    assert [outcome for outcome in tries if outcome.what == "fault"] == []
    assert len({outcome.text for outcome in tries}) > 1  # the damage is not the same each time


def _raise(error, file):
    raise error(file)


def _use_memory(file):
    np.ones(3 * fuzzing.MEGABYTES * 2**17)


def _without_end(file):
    while True:
        pass


FAULTS = {
    "an error of another kind": (partial(_raise, lambda file: KeyError("a.png")), r"KeyError"),
    "an error without a name": (partial(_raise, lambda file: ImageReadError("it is wrong somehow")), r"does not name"),
    "an error without a cause": (partial(_raise, lambda file: ImageReadError(f"{file}")), r"tells no cause"),
    "a program": (lambda file: subprocess.run(["true"], check=True), r"caused subprocess\.Popen"),
    "a connection": (lambda file: socket.create_connection(("192.0.2.1", 9), 1), r"caused socket\.|tests run offline"),
    "a file outside": (lambda file: (file.parents[1] / OUTSIDE).read_bytes(), r"caused open"),
}
LETHAL = {
    "a crash": (lambda file: os.kill(os.getpid(), signal.SIGKILL), r"the process died \(-9\)"),
    "an end": (lambda file: os._exit(0), r"the process died \(0\)"),
    "memory": (_use_memory, r"\d+ MB: "),
    "no end": (_without_end, r"no end within 1 s"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_seen(tmp_path, monkeypatch, fault):
    read, message = FAULTS[fault]
    monkeypatch.setitem(KINDS, "png", KINDS["png"]._replace(read=read))
    fuzzing.watch()
    outcome = attempt("png", 0, tmp_path)
    assert outcome.what == "fault"
    assert re.search(message, outcome.text)


@pytest.mark.parametrize("fault", LETHAL)
def test_what_ends_the_process_is_a_fault_of_one_try(monkeypatch, fault):
    read, message = LETHAL[fault]
    calls = iter([KINDS["png"].read])
    monkeypatch.setitem(KINDS, "png", KINDS["png"]._replace(read=lambda file: next(calls, read)(file)))
    if fault == "no end":
        monkeypatch.setattr(fuzzing, "SECONDS", 1)
    first, second = outcomes([("png", 0), ("png", 1)], start_method="fork")
    assert (first.what, second.what) == ("refused", "fault")
    assert re.search(message, second.text)


def test_the_sound_files_are_read(tmp_path, monkeypatch):
    for kind in KINDS:
        monkeypatch.setitem(KINDS, kind, KINDS[kind]._replace(damage=lambda data, rng: data))
        assert any(attempt(kind, number, tmp_path).what == "read" for number in range(5)), kind
