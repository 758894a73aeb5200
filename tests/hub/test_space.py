"""Spaces: what is refused with what words, the page's geometry, and the push of one."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from eden_hf import EdenModel
from eden_hf.anatomy import child_indices, parent_index, part_boxes
from eden_hf.data.phantoms import draw_phantom
from eden_hf.hub import space
from eden_hf.hub.cards import CardError
from eden_hf.hub.push import push_to_hub
from eden_hf.hub.refusals import RefusedError
from eden_hf.hub.space import PAGE, SpaceError, make_space
from eden_hf.image_processing_eden import EdenImageProcessor

from ..tiny import tiny_config


def exported(model, output, **settings):
    """Stands in for `export_model`, which takes ten seconds."""
    Path(output).write_text(json.dumps(settings))


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.setattr(space, "export_model", exported)
    EdenModel(tiny_config(dense_dim=6)).save_pretrained(tmp_path / "model")
    EdenImageProcessor(size={"height": 96, "width": 96}).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def npm(folder, *arguments):
    """Stands in for npm: a runtime, and both scripts."""
    for name in (
        "built/app.js",
        "built/engine.js",
        *(f"node_modules/onnxruntime-web/dist/{n}" for n in space.RUNTIME),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def test_a_space_is_complete(model, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(space, "_npm", npm)
    made = make_space(model, str(tmp_path / "space"))
    files = {file.relative_to(made).as_posix() for file in made.rglob("*") if file.is_file()}
    assert files == {
        *("README.md", "LICENCES.txt", "index.html", "style.css", "app.js", "engine.js", "space.json", "lineage.json"),
        *("trained.onnx", "untrained.onnx", *(f"ort/{name}" for name in space.RUNTIME)),
        *(f"examples/phantom-{index}.png" for index in space.EXAMPLES),
    }
    told = json.loads((made / "space.json").read_text())
    assert told["side"] == 96
    assert told["matcher"]["confidence"] == [3.87, 1.77, -17.53]
    assert "onnxruntime-web 1.30.0 (MIT)\n\nMIT License" in (made / "LICENCES.txt").read_text()
    assert "esbuild" not in (made / "LICENCES.txt").read_text()  # which is not part of the page
    assert str(tmp_path) not in "".join(
        (made / name).read_text() for name in ("space.json", "lineage.json", "README.md")
    )
    assert make_space(model, str(made)) == made  # again, over itself


def test_errors(model, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SpaceError, match=r"npm is needed .* not found: install Node\.js 20 or newer"):
        make_space(model, str(tmp_path / "space"))
    monkeypatch.setattr(shutil, "which", lambda name: name)
    with pytest.raises(SpaceError, match=r"model holds something else than a Space: choose another output"):
        make_space(model, model)
    failing = ["sh", "-c", "echo npm error code EAI_AGAIN >&2; exit 1"]
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda command, **options: run(failing, **options))
    with pytest.raises(SpaceError, match=r"npm ci failed, which builds the page: npm error code EAI_AGAIN"):
        make_space(model, str(tmp_path / "space"))
    assert not (tmp_path / "space").exists()


def test_the_lock_file_names_no_registry_and_pins_everything():
    text = (PAGE / "package-lock.json").read_text()
    packages = json.loads(text)["packages"]
    wanted = json.loads((PAGE / "package.json").read_text())
    assert "://" not in "".join(line for line in text.splitlines() if '"url"' not in line)
    assert packages[""]["dependencies"] == wanted["dependencies"]
    assert [path for path, package in packages.items() if path and not package.get("integrity")] == []


GEOMETRY = """
import { childrenOf, parentOf, partBoxes } from "./levels.js";
const found = {};
for (let level = 0; level < 5; level++) {
  const boxes = partBoxes(301, 277, level);
  found[level] = boxes.map((box, part) => [box, level ? parentOf(level, part) : null, childrenOf(level, part)]);
}
console.log(JSON.stringify(found));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no Node.js")
def test_levels_are_those_of_the_decomposer():
    command = ["node", "--input-type=module", "-e", GEOMETRY]
    finished = subprocess.run(command, cwd=PAGE / "src", capture_output=True, text=True, check=True, timeout=60)
    for level, parts in json.loads(finished.stdout).items():
        boxes = part_boxes(301, 277, int(level))
        told = [
            [list(box), parent_index(int(level), part), list(child_indices(int(level), part))]
            for part, box in enumerate(boxes)
        ]
        assert parts == told


@pytest.fixture
def folder(tmp_path):
    """A Space of one example, to push."""
    made = tmp_path / "space"
    (made / "examples").mkdir(parents=True)
    for name in ("README.md", "space.json", "index.html", "app.js"):
        (made / name).write_text("{}")
    Image.fromarray(draw_phantom((0, 3), 64).image).save(made / "examples" / "phantom-3.png")
    return made


def test_a_push_makes_a_static_space(hub, folder):
    push_to_hub(str(folder), "user/page", repo_type="space")
    repository = hub.repository("user/page", "space")
    assert repository.sdk == "static"
    assert set(repository.files) == {
        ".gitattributes",
        "README.md",
        "space.json",
        "index.html",
        "app.js",
        "examples/phantom-3.png",
    }


def test_a_push_refuses_what_is_no_space_or_shows_somebody(hub, folder):
    with pytest.raises(SpaceError, match=r"examples is no Space: make one with eden space"):
        push_to_hub(str(folder / "examples"), "user/page", repo_type="space")
    with pytest.raises(CardError, match=r"a Space takes no `card`"):
        push_to_hub(str(folder), "user/page", "card.yaml", repo_type="space")
    Image.fromarray(draw_phantom((0, 4), 64).image).save(folder / "examples" / "phantom-3.png")
    Image.fromarray(draw_phantom((0, 3), 64).image).save(folder / "me.png")
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(RefusedError) as caught:
        push_to_hub(str(folder), "user/page", repo_type="space")
    assert [refusal.override for refusal in caught.value.refusals] == ["images", "images", "files"]
    assert "examples/phantom-3.png is an image (PNG) and is not the phantom that it is called" in str(caught.value)
