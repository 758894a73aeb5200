"""What keeps a folder from being published: a poor card, pickles, damaged weights, images of patients."""

import json
import pickletools
import re
import struct
import zipfile
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple, get_args

import numpy as np
from PIL import Image, UnidentifiedImageError
from safetensors import SafetensorError, safe_open

from eden_hf.data.folders import IMAGE_SUFFIXES
from eden_hf.data.phantoms import SMALLEST, draw_phantom
from eden_hf.data.phi import Finding, file_findings, in_short, name_findings, names_in, not_accepted
from eden_hf.data.text_files import read_record
from eden_hf.hub.repository import HANDLER, shows_images

Override = Literal["card", "pickle", "weights", "images", "files", "paths"]
OVERRIDES: tuple[Override, ...] = get_args(Override)

PICKLES = (".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth")
#: Of Python and of transformers.js, where it has one of its own.
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
#: Records in which no name of a source stands, but `EdenModel` of `eden`, a name of a person; words of one's own.
_OF_PROGRAMS = ("config.json", *PROCESSORS, "card.yaml", "skipped.jsonl")
_TEXTS = (".json", ".jsonl", ".md", ".yaml")
#: What is no text, of the files that have a known path.
BINARIES = (".onnx", ".onnx.data", ".parquet", ".wasm")
#: The code that a model takes along: the package's own, and the handler of endpoints.
CODE = {file.name: file for file in (*Path(__file__).parents[1].glob("*_eden*.py"), HANDLER)}
RepoType = Literal["model", "dataset", "space"]
#: What a repository holds, by its whole path, as patterns.
KNOWN: dict[RepoType, tuple[str, ...]] = {
    "model": (
        r"README\.md|LICENSE|NOTICE|SHA256SUMS|card\.yaml|(conversion|lineage)\.json|requirements\.txt",
        rf"(pretraining/)?({'|'.join(map(re.escape, ('config.json', *PROCESSORS, *CODE)))})",
        r"(pretraining/)?model(-\d+-of-\d+)?\.safetensors|(pretraining/)?model\.safetensors\.index\.json",
        r"(onnx/)?model(_\w+)?\.onnx(\.data)?",
        r"training/(config\.yaml|data\.json|environment\.json|metrics\.json|loss\.png)",
        r"evaluation/weights\.json|evaluation/[^/]+/(results\.json|results\.md|figure\.png)",
        r"evaluation/([^/]+/)?few_shot-[^/]+\.(md|png|jsonl)",
    ),
    "space": (
        r"README\.md|LICENCES\.txt|index\.html|style\.css|(app|engine)\.js|(space|lineage)\.json",
        r"(un)?trained\.onnx|ort/ort[\w.-]*\.(mjs|wasm)|examples/phantom-\d+\.png",
    ),
    "dataset": (r"README\.md|LICENSE|NOTICE", r"[\w.-]+/[\w.-]+\.parquet", r"[\w.-]+/skipped\.jsonl"),
}
#: Text that no file of ours has, and every picture as text has: 300 bytes of base64 or hexadecimal digits, in a piece
#: or in lines of at least 60 (as of MIME; a JSON text has the line breaks in letters); and 400 grey values in a row.
_ENCODED = re.compile(
    rb"[A-Za-z0-9+/_-]{400}|(?:[A-Za-z0-9+/_-]{60,}(?:\\[rn]|\s)+){5}|(?i:data:image/)|(?:\b\d{1,5}[\s,\[\]]+){400}"
)
#: A path in somebody's home folder or on a drive or share, where a value of JSON or YAML begins: it may hold names.
_HOME = re.compile(
    r"""(?<=["'`\s])(?:/(?:home|Users|root|mnt|media|scratch)/|~/|[A-Za-z]:[\\/]{1,4}(?!/)|\\\\)[^"'\n]*"""
)
#: What lets others act in the owner's name.
_TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{30,}\b")
#: Where a line of code lies, as exporters write it beside each node.
_LINE_OF_CODE = re.compile(rb'File "((?:/|[A-Za-z]:[\\/])[^"\n]*)", line \d')
_DAMAGED = "damaged"
#: Formats that PIL knows by their first bytes.
IMAGES = ("PNG", "JPEG", "JPEG2000", "TIFF", "BMP", "GIF", "WEBP", "PPM")
MEDICAL_IMAGES = (".dcm", ".dicom", ".mha", ".mhd", ".nii", ".nii.gz", ".nrrd")


class Refusal(NamedTuple):
    """Why something is not published, and the override that would publish it all the same, if any would."""

    reason: str
    override: Override | None

    def __str__(self) -> str:
        if self.override is None:
            return self.reason
        return f"{self.reason} (--allow {self.override} publishes it all the same)"


class RefusedError(ValueError):
    """A folder is not to be published as it is; `refusals` says why."""

    def __init__(self, folder: Path, refusals: list[Refusal]) -> None:
        self.refusals = refusals
        super().__init__("\n  ".join([f"{folder} is not published:", *map(str, refusals)]))


def refuse(folder: Path, refusals: Iterable[Refusal], allow: Collection[str]) -> None:
    """Raise `RefusedError` with the refusals that `allow` does not override.

    Raises:
        ValueError: `allow` names no override.
    """
    if unknown := set(allow).difference(OVERRIDES):
        raise ValueError(f"`allow` must be of {', '.join(OVERRIDES)}, got {', '.join(sorted(unknown))}")
    if left := [refusal for refusal in refusals if refusal.override not in allow]:
        raise RefusedError(folder, left)


def local_files(folder: Path) -> list[str]:
    """Paths of the files of a folder in it, without hidden ones, in order.

    Raises:
        FileNotFoundError: there is no such folder, or nothing in it.
    """
    paths = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    shown = [path for path in paths if not is_hidden(path)]
    if not shown:
        raise FileNotFoundError(f"nothing to publish in {folder}: it is no folder, or has no files")
    return shown


def is_hidden(path: str) -> bool:
    """Whether a file, or a folder above it, has a name that starts with a dot."""
    return any(part.startswith(".") for part in path.split("/"))


def file_refusals(folder: Path, files: list[str], repo_type: RepoType) -> Iterator[Refusal]:
    """What is wrong with files of `folder` (their paths in it): content first, then the path."""
    for name in files:
        read = _weight_refusals if name.endswith(".safetensors") else _refusals
        wrong = list(read(folder, name))
        if name.endswith(".parquet") and repo_type == "model":
            wrong = [Refusal(f"{name} is Parquet, which holds images and no model: push it as a data set", None)]
        if not wrong and not any(re.fullmatch(pattern, name) for pattern in KNOWN[repo_type]):
            wrong = [Refusal(f"{name} is none of the files that the repository of a {repo_type} holds", "files")]
        yield from wrong


def phi_refusals(folder: Path, files: list[str], accepted: frozenset[Finding]) -> Iterator[Refusal]:
    """What images, tables of them and records tell of patients that nobody accepted; of our own figures tags alone."""
    left: list[Finding] = []
    for name in files:
        ours = _image_format(folder / name) is not None and _not_ours(folder, name) is None
        found = [*file_findings(folder, name, text=not ours)]
        if not ours and name.endswith((".parquet", *IMAGE_SUFFIXES)):
            parts = (name, *map(str, PurePosixPath(name).parents))
            found += [finding for part in parts for finding in names_in(part)]
        if _is_record(name) and name.endswith(_TEXTS) and PurePosixPath(name).name not in _OF_PROGRAMS:
            told = _names(name, (folder / name).read_text(encoding="utf-8", errors="replace"))
            found += [finding for finding in told if finding.where != "date"]  # of programs
        if name.endswith("skipped.jsonl"):  # names the images that could not be read
            found += _names(name, (folder / name).read_text(encoding="utf-8"))
        if name.endswith(".safetensors"):
            found += [finding for text in _metadata(folder / name) for finding in _names(name, text)]
        left += not_accepted(found, accepted)
    if left:
        yield Refusal(
            f"it may tell who the patients are: {in_short(left)}\n  eden check-phi of this folder writes down what it "
            "is: mend it, or keep in that CSV what may be, and give it as --accepted",
            None,
        )


def _names(name: str, text: str) -> list[Finding]:
    return [Finding(name, "name", what, words) for what, words in name_findings(text)]


def _metadata(file: Path) -> list[str]:
    """Words about weights; none of a file that is damaged, which is told elsewhere."""
    try:
        with safe_open(file, framework="pt") as tensors:
            return list((tensors.metadata() or {}).values())
    except SafetensorError:
        return []


def _refusals(folder: Path, name: str) -> Iterator[Refusal]:
    """What is wrong with the content of a file that holds no weights."""
    file = folder / name
    if _is_medical_image(file):
        yield Refusal(f"{name} is a DICOM file or another medical image", "images")
    elif format_ := _image_format(file):
        if reason := _not_ours(folder, name):
            yield Refusal(f"{name} is an image ({format_}) and {reason}", "images")
    elif name.endswith(PICKLES) or _is_pickle(file):
        yield Refusal(f"{name} is a pickle, which can run code when loaded: save it as safetensors", "pickle")
    elif name.endswith(".onnx"):
        yield from _onnx_refusals(name, file.read_bytes())
    elif not name.endswith(BINARIES):
        yield from _text_refusals(name, file.read_bytes(), _is_record(name))


def _onnx_refusals(name: str, content: bytes) -> Iterator[Refusal]:
    if _TOKEN.search(content):
        yield Refusal(f"{name} holds a token of the Hub: take it out, and revoke it at the Hub", None)
    elif path := _LINE_OF_CODE.search(content):
        yield Refusal(
            f"{name} holds a path of a machine, {path[1].decode(errors='replace')!r}: export it again", "paths"
        )


def _text_refusals(name: str, content: bytes, record: bool) -> Iterator[Refusal]:
    """What is wrong with what is to be text, and the record of a program or not."""
    code = CODE.get(name.split("/")[-1])
    if not _is_text(content):
        yield Refusal(f"{name} is no text in UTF-8", "files")
    elif _TOKEN.search(content):
        yield Refusal(f"{name} holds a token of the Hub: take it out, and revoke it at the Hub", None)
    elif _ENCODED.search(content):
        yield Refusal(f"{name} holds what looks like an image in base64 or in numbers", "images")
    elif code and content != code.read_bytes():
        yield Refusal(f"{name} is not the code of this version of eden_hf: stage the model again", "files")
    elif record and (path := _HOME.search(content.decode())):
        yield Refusal(f"{name} holds a path of a machine, {path[0]!r}: eden stage leaves its name alone", "paths")


def _is_record(name: str) -> bool:
    """Whether a program wrote it, which knows of folders here; words of one's own may name some."""
    return name.endswith((".json", ".jsonl", ".yaml")) or name.startswith("evaluation/")


def _is_text(content: bytes) -> bool:
    """Whether it is UTF-8 without the control characters that no text has."""
    try:
        return not re.search(r"[\x00-\x08\x0e-\x1f]", content.decode())
    except UnicodeDecodeError:
        return False


def _weight_refusals(folder: Path, name: str) -> Iterator[Refusal]:
    try:
        with safe_open(folder / name, framework="pt") as tensors:
            words = json.dumps(tensors.metadata() or {}, ensure_ascii=False)
            yield from _text_refusals(f"the metadata of {name}", words.encode(errors="replace"), record=True)
            for key in tensors.keys():  # noqa: SIM118 (no mapping)
                tensor = tensors.get_tensor(key)
                if tensor.is_floating_point() and not tensor.isfinite().all():
                    count = (~tensor.isfinite()).sum().item()
                    yield Refusal(f"{name}: {count} of {tensor.numel()} values of {key} are not finite", "weights")
    except SafetensorError as error:
        yield Refusal(f"{name} cannot be read as safetensors: {error}", "weights")


def _is_medical_image(file: Path) -> bool:
    with file.open("rb") as content:
        content.seek(128)
        return content.read(4) == b"DICM" or file.name.lower().endswith(MEDICAL_IMAGES)


def _image_format(file: Path) -> str | None:
    try:
        with Image.open(file, formats=IMAGES) as image:
            return image.format
    except UnidentifiedImageError:
        return None
    except Exception:  # decoders raise anything on damaged bytes
        return _DAMAGED


def _not_ours(folder: Path, name: str) -> str | None:
    """Why an image is none of the package's own figures of numbers; `None` if it is one."""
    file = folder / name
    if _image_format(file) == _DAMAGED:
        return "cannot be read"
    if phantom := re.fullmatch(r"examples/phantom-(\d+)\.png", name):
        return None if _shows_phantom(file, int(phantom[1])) else "is not the phantom that it is called"
    of_scores = re.fullmatch(r"training/loss\.png|evaluation/([^/]+/)?few_shot-[^/]+\.png", name)
    if not of_scores and not re.fullmatch(r"evaluation/.+/figure\.png", name):
        return "none of the package's figures (training/loss.png, evaluation/NAME/figure.png, few_shot-NAME.png)"
    with Image.open(file) as image:
        if not str(image.info.get("Software", "")).startswith("Matplotlib"):
            return "was not drawn by the package (no matplotlib figure)"
    results = file.with_name("results.json")
    if not of_scores and (not results.is_file() or shows_images(read_record(results))):
        return "shows images that were measured on, or has no results.json beside it"
    return None


def _shows_phantom(file: Path, index: int) -> bool:
    with Image.open(file) as image:
        drawn = draw_phantom((0, index), image.width).image if image.width == image.height >= SMALLEST else None
        return drawn is not None and image.mode == "L" and np.array_equal(np.asarray(image), drawn)


def _is_pickle(file: Path) -> bool:
    """Whether a file is a pickle, starts as one of protocol 2 or later, or is a zip with one in it, as torch's are."""
    with file.open("rb") as content:
        start = content.read(2)
        if start[:1] == b"\x80" and start[1:] and start[1] in range(2, 6):
            return True
        content.seek(0)
        try:  # older protocols have no mark: opcodes from the first byte to the last
            *_, (_, _, end) = pickletools.genops(content)
            if end == file.stat().st_size - 1:
                return True
        except (ValueError, IndexError, struct.error):
            pass  # no opcodes, so no pickle
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(member.endswith(PICKLES) for member in archive.namelist())
