"""Fetch transformers' own test mixins, of the version installed, for `tests/test_mixins.py`.

python scripts/fetch_mixins.py

They are part of transformers' source distribution and of no wheel. What they import beside it (tests of exporters and
of generation, which models of images have no use for) is replaced by empty classes. All of it goes to `.mixins/`,
which git ignores.
"""

import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

MIXINS = Path(__file__).parents[1] / ".mixins"
PARAMETERIZED = "parameterized==0.9.0"  # of which the mixins make some of their tests
FILES = ("test_modeling_common.py", "test_backbone_common.py", "test_image_processing_common.py")
STAND_INS = {
    "transformers_tests/__init__.py": "",
    "transformers_tests/exporters/__init__.py": "",
    "transformers_tests/exporters/test_export.py": "class ExportTesterMixin: ...\n",
    "transformers_tests/generation/__init__.py": "",
    "transformers_tests/generation/test_utils.py": "class GenerationTesterMixin: ...\n",
    "utils/fetch_hub_objects_for_ci.py": "def url_to_local_path(url):\n    return url\n",
}


def fetch_mixins() -> Path:
    """The folder of the mixins, fetched if it is not there or of another version of transformers."""
    wanted = f"transformers=={version('transformers')}"
    stamp = MIXINS / "version.txt"
    if stamp.is_file() and stamp.read_text() == wanted:
        return MIXINS
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    with TemporaryDirectory() as folder:
        source = ["--no-deps", "--no-build-isolation", "--no-binary", ":all:", "--dest", folder]
        subprocess.run([*pip, "download", *source, wanted], check=True)
        subprocess.run([*pip, "install", "--upgrade", "--target", str(MIXINS), PARAMETERIZED], check=True)
        for name, text in STAND_INS.items():
            (MIXINS / name).parent.mkdir(parents=True, exist_ok=True)
            (MIXINS / name).write_text(text)
        with tarfile.open(next(Path(folder).glob("*.tar.gz"))) as archive:
            for member in archive:
                if member.name.split("/")[1:-1] == ["tests"] and (name := Path(member.name).name) in FILES:
                    content = archive.extractfile(member)
                    assert content is not None
                    (MIXINS / "transformers_tests" / name).write_bytes(content.read())
    stamp.write_text(wanted)
    return MIXINS


if __name__ == "__main__":
    print(fetch_mixins())
