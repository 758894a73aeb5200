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
