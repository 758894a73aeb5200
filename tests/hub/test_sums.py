import shutil
import subprocess

import pytest

from eden_hf.hub.sums import SUMS, sums_problems, write_sums


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "training").mkdir()
    for name in ("model.safetensors", "training/data.json", ".gitattributes"):
        (tmp_path / name).write_text(name)
    write_sums(tmp_path)
    return tmp_path


def test_sha256sum_reads_the_sums(folder):
    assert list(sums_problems(folder)) == []
    if shutil.which("sha256sum"):
        asked = ["sha256sum", "--check", "--strict", SUMS]
        assert b"training/data.json: OK" in subprocess.run(asked, cwd=folder, check=True, capture_output=True).stdout


def test_what_is_not_as_it_was_is_named(folder):
    (folder / "model.safetensors").write_text("other")
    (folder / "training" / "data.json").unlink()
    (folder / "later.txt").write_text("")
    told = [problem.partition(": ")[2].partition(":")[0] for problem in sums_problems(folder)]
    assert told == ["later.txt came later", "model.safetensors changed", "training/data.json is missing"]
    (folder / SUMS).unlink()
    assert [problem.split(":")[0] for problem in sums_problems(folder)] == [f"{folder / SUMS} is missing"]


@pytest.mark.parametrize("change", [
    lambda text: text.replace("\n", "\r\n"),
    lambda text: text.replace("  ", " *"),  # sha256sum --binary
    lambda text: "\ufeff# of a model\n\n" + "".join(line[:64].upper() + line[64:] for line in text.splitlines(True)),
])  # fmt: skip
def test_sums_may_be_written_as_other_programs_do(change, folder):
    (folder / SUMS).write_text(change((folder / SUMS).read_text()), encoding="utf-8", newline="")
    assert list(sums_problems(folder)) == []


def test_a_line_that_is_no_sum_is_told(folder):
    (folder / SUMS).write_text("<<<<<<< ours\n" + (folder / SUMS).read_text())
    (problem,) = sums_problems(folder)
    assert problem.startswith(f"{SUMS}: '<<<<<<< ours' is no line of sha256sum: restore it")


def test_all_that_is_published_has_its_sum(folder):
    """Names of any letters; caches of Python are of this machine, as hidden files are."""
    for name in ("_weights.txt", "Übersicht der Läufe.txt", "__pycache__/handler.pyc"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("")
    told = [problem.partition(" came later")[0] for problem in sums_problems(folder)]
    assert told == [f"{SUMS}: _weights.txt", f"{SUMS}: Übersicht der Läufe.txt"]
