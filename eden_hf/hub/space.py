"""`eden space`: a page that anyone can try a model on, as a static Space; it runs in the visitor's browser alone.

`page/` beside this file holds the page's sources. npm fetches what they import, pinned by `package-lock.json`, and
bundles it when a Space is made; the page itself fetches nothing but its own files.
"""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from jinja2 import Template
from PIL import Image

from eden_hf.data.phantoms import draw_phantom
from eden_hf.data.text_files import read_record
from eden_hf.encoders import load_encoder
from eden_hf.hub.export import export_model
from eden_hf.hub.repository import write_public_lineage
from eden_hf.matching.matcher import CONFIDENCE, MatcherArguments
from eden_hf.training.checkpoints import replace_folder

PAGE, README = (Path(__file__).with_name(name) for name in ("page", "space_readme.md.jinja"))
#: The pictures shown: rows of `phantom_dataset(..., seed=0, size=256)`, the only ones that show nobody.
EXAMPLES, SIDE = (3, 11, 0, 5, 7, 8), 256
#: What the page loads of onnxruntime-web.
RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
#: Seed of the untrained network that the page compares with.
_UNTRAINED_SEED = 0
_NPM_SECONDS = 600


class SpaceError(ValueError):
    """A page that cannot be made; the message says why."""


def make_space(model: str, output: str) -> Path:
    """Write a complete static Space for a model: a page on which a point of one X-ray is found in others.

    Needs npm (of Node.js 20 or newer), which fetches what `page/package-lock.json` pins, and the extra `export`.

    Args:
        model: Folder of an Eden model with a dense decoder.
        output: Folder to make; a Space that was made before is replaced.

    Returns:
        `output`, with `README.md` (the Space's metadata), `index.html`, two scripts, both networks as ONNX, the
        runtime, examples and licences.

    Raises:
        SpaceError: npm is missing or fails, or `output` holds something else.
        ExportError: `model` is none that the page can run.
        ImportError: the extra `export` is not installed.
    """
    folder, space = Path(model), Path(output)
    if space.exists() and any(space.iterdir()) and not (space / "space.json").is_file():
        raise SpaceError(f"{space} holds something else than a Space: choose another output")
    if shutil.which("npm") is None:
        raise SpaceError("npm is needed to build the page and is not found: install Node.js 20 or newer")

    def write(made: Path) -> None:
        _write_page(made)  # first, as it fails first
        _write_networks(folder, made)
        examples = _write_examples(made / "examples")
        (made / "space.json").write_text(json.dumps(_settings(folder, made, examples), indent=1) + "\n")
        (made / "README.md").write_text(_readme(folder))

    replace_folder(space, write)
    return space


def _write_networks(model: Path, made: Path) -> None:
    """`trained.onnx` and, of fresh weights, `untrained.onnx`: from grey values to the embeddings of points."""
    with tempfile.TemporaryDirectory() as scratch:
        for name, origin in {"trained": str(model), "untrained": scratch}.items():
            if name == "untrained":
                fresh = load_encoder(f"random:{model}", seed=_UNTRAINED_SEED)
                fresh.model.save_pretrained(scratch)
                fresh.processor.save_pretrained(scratch)
            file = str(made / f"{name}.onnx")
            export_model(origin, file, preprocessing="normalize", outputs=("dense_embeddings",), half=True)
    for lineage in made.glob("*.lineage.json"):  # which names folders of this machine
        lineage.unlink()
    write_public_lineage(made, "space", model)


def _write_page(made: Path) -> None:
    """The page, its scripts, the runtime and the licences of all of them."""
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch) / "page"
        shutil.copytree(PAGE, work, ignore=shutil.ignore_patterns("node_modules", "built"))
        _npm(work, "ci", "--ignore-scripts", "--no-audit", "--no-fund")
        _npm(work, "run", "build")
        for file in (work / "index.html", work / "style.css", *sorted((work / "built").iterdir())):
            shutil.copy(file, made)
        (made / "ort").mkdir()
        for name in RUNTIME:
            shutil.copy(work / "node_modules" / "onnxruntime-web" / "dist" / name, made / "ort")
        (made / "LICENCES.txt").write_text("\n\n".join(_licences(work)))


def _npm(folder: Path, *arguments: str) -> None:
    try:
        subprocess.run(
            ["npm", *arguments], cwd=folder, check=True, capture_output=True, text=True, timeout=_NPM_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise SpaceError(f"npm {arguments[0]} took over {_NPM_SECONDS} s: is its registry reached?") from error
    except subprocess.CalledProcessError as error:
        said = [line for line in error.stderr.splitlines() if line.strip()] or [error.stdout.strip()[-200:]]
        raise SpaceError(f"npm {arguments[0]} failed, which builds the page: {' '.join(said[:3])}") from error


def _licences(work: Path) -> Iterator[str]:
    """The licence of each package that the page is made of, and of this one."""
    own = distribution("eden_hf")
    yield f"eden_hf {own.version} (Apache-2.0)\n\n{own.read_text('licenses/LICENSE') or ''}"
    locked = json.loads((work / "package-lock.json").read_text())["packages"]
    for path, package in sorted(locked.items()):
        if not path or package.get("dev"):
            continue
        name = path.removeprefix("node_modules/")
        files = [*sorted((work / path).glob("LICEN[CS]E*")), work / "licences" / f"{name.rpartition('/')[2]}.txt"]
        text = next((file.read_text() for file in files if file.is_file()), "")
        yield f"{name} {package['version']} ({package.get('license', 'licence not told')})\n\n{text}"


def _write_examples(folder: Path) -> list[dict[str, Any]]:
    """Phantoms as PNG, and what the page is told of them."""
    folder.mkdir()
    examples = []
    for index in EXAMPLES:
        phantom, name = draw_phantom((0, index), SIDE), f"phantom-{index}.png"
        Image.fromarray(phantom.image).save(folder / name, optimize=True)
        landmarks = {mark: {"x": round(x, 5), "y": round(y, 5)} for mark, (x, y) in phantom.landmarks.items()}
        examples.append({"file": f"examples/{name}", "landmarks": landmarks})
    return examples


def _settings(model: Path, made: Path, examples: list[dict[str, Any]]) -> dict[str, Any]:
    """What the page is told: `space.json`."""
    processor = read_record(model / "preprocessor_config.json")
    sizes = {"runtime": made / "ort" / RUNTIME[-1], "trained": made / "trained.onnx"}
    name, licence = _named(model)
    return {
        "about": f"Network: {name} ({licence}). The pictures are phantoms, drawn by a program; they show nobody.",
        "side": processor["size"]["height"],
        "sizes": {part: file.stat().st_size for part, file in sizes.items()},
        "matcher": asdict(MatcherArguments()) | {"confidence": CONFIDENCE},
        "examples": examples,
    }


def _named(model: Path) -> tuple[str, str]:
    """The name of a model and of its licence, as its card tells them."""
    declared = read_record(model / "card.yaml") if (model / "card.yaml").is_file() else {}
    licence = declared.get("license_name") or declared.get("license") or "no licence is told"
    return declared.get("model_id") or model.resolve().name, licence


def _readme(model: Path) -> str:
    name, licence = _named(model)
    return Template(README.read_text(), keep_trailing_newline=True).render(name=name, licence=licence)
