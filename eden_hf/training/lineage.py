"""Where a model comes from: `lineage.json` in every folder of a run or a model, and `eden lineage`, which checks it.

| key | holds |
| --- | --- |
| `made_by` | `pretrain`, `finetune`, `convert`, `stage`, `export`; `run` of a run's folder |
| `facts` | what made it: sha256 of the run's `config.yaml` and `environment.json`, hashes of lists of images, steps |
| `version`, `code_revision` | of this package |
| `files` | sha256 of each file that the folder is made of |
| `parents` | what it was made of: `name`, sha256 of the `weights`, the `license` of its card, its own `lineage` |

As each record holds those of its parents, the chain is told wherever the folder goes; parents that are still where
they were are checked as well. This finds what changed by mistake. It is no signature: who means to deceive can write
the record anew.
"""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Collection, Iterator
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, metadata_load, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from yaml import YAMLError

from eden_hf.data.text_files import read_record, write_text

LINEAGE = "lineage.json"
#: What may be made again or added to a published model without another model coming of it.
_LEFT_OUT = ("README.md", "card.yaml", "LICENSE", "evaluation", "SHA256SUMS", LINEAGE)


class LineageError(ValueError):
    """A folder or file without a record of where it comes from."""


def write_lineage(
    target: str | Path, made_by: str, parents: Collection[str | Path] = (), only: Collection[str] = (), **facts: Any
) -> Path:
    """Record what a folder, or an exported file, was made of: the last thing to write of it.

    Args:
        target: The folder, which gets `lineage.json`, or the file, which gets `NAME.lineage.json` beside it.
        made_by: The command.
        parents: Files, folders or Hub ids of models that it was made of.
        only: Names of the folder's files that are meant, instead of all that make a model.
        **facts: What else made it, as JSON holds it.

    Returns:
        The record's file.
    """
    return _write(Path(target), made_by, [_parent(str(name)) for name in parents], only, facts)


def write_model_lineage(folder: Path, run: Path, made_by: str, **facts: Any) -> Path:
    """Record a model that a run made: what it was made of is what the run recorded when it began."""
    if not record_file(run).exists():  # begun with a version that kept no record
        return _write(folder, made_by, [], (), facts)
    record = read_lineage(run)
    return _write(folder, made_by, record["parents"], (), {**record["facts"], **record["files"], **facts})


def stale_records(run: Path) -> list[str]:
    """What differs between the record of a run and its files, each told; nothing of a run without a record."""
    return list(_changed_files(run, read_lineage(run))) if record_file(run).exists() else []


def renew_lineage(run: Path) -> None:
    """Record the files of a run anew, where they changed."""
    if stale_records(run):
        record = read_lineage(run)
        _write(run, record["made_by"], record["parents"], record["files"], record["facts"])


def _write(
    target: Path, made_by: str, parents: list[dict[str, Any]], only: Collection[str], facts: dict[str, Any]
) -> Path:
    folder, names = (target, only or _files(target)) if target.is_dir() else (target.parent, [target.name])
    record = {
        "made_by": made_by,
        "facts": facts,
        "version": version("eden_hf"),
        "code_revision": package_revision(),
        "files": {name: file_hash(folder / name) for name in names},
        "parents": parents,
    }
    file = record_file(target)
    write_text(file, json.dumps(record, indent=2) + "\n")
    return file


def record_file(target: Path) -> Path:
    """Where the record of a folder or of an exported file is."""
    return target / LINEAGE if target.is_dir() else target.with_name(f"{target.name}.{LINEAGE}")


def read_lineage(target: str | Path) -> dict[str, Any]:
    """The record of a folder or an exported file.

    Raises:
        LineageError: it has none, or it is not readable as one.
    """
    file = record_file(Path(target))
    try:
        record = read_record(file)
        _refuse_others(record)
    except (OSError, ValueError, RecursionError) as error:
        raise LineageError(
            f"{file} is missing or no record of a lineage ({type(error).__name__}: {error}): name a folder of a run "
            "or a model that this version or a later one made"
        ) from error
    return record


def _refuse_others(record: dict[str, Any]) -> None:
    """Raise a `ValueError` of what has not the form of a record, nor of those of its parents."""
    _refuse_wrong(record, {"made_by": str, "files": dict, "parents": list})
    _refuse_wrong({"facts": {}, **record}, {"facts": dict})
    for name, digest in record["files"].items():
        if not isinstance(digest, str) or Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{name!r} is no file of its folder with its sha256")
    for parent in record["parents"]:
        _refuse_wrong(parent, {"name": str, "weights": dict | None, "lineage": dict | None})
        if parent["lineage"] is not None:
            _refuse_others(parent["lineage"])


def _refuse_wrong(values: Any, kinds: dict[str, Any]) -> None:
    for name, kind in kinds.items():
        if not isinstance(values, dict) or name not in values or not isinstance(values[name], kind):
            raise ValueError(f"`{name}` is missing or not of its kind in {str(values)[:60]!r}")


def chain(target: str | Path) -> list[str]:
    """Lines that tell where a folder comes from, its parents indented below it.

    Raises:
        LineageError: as of `read_lineage`.
    """
    return list(_told(Path(target).name or str(target), read_lineage(target), 0))


def changes(target: str | Path) -> list[str]:
    """What differs from the records: files that changed, are missing or came later, here and where parents lie.

    Raises:
        LineageError: as of `read_lineage`.
    """
    target = Path(target)
    record = read_lineage(target)
    found = list(_changed_files(target, record))
    for model in ("best", "last"):
        if record["made_by"] == "run" and (target / model).is_dir():
            found += changes(target / model)
    return list(dict.fromkeys([*found, *_changed_parents(record)]))


def file_hash(file: Path) -> str:
    """The sha256 of a file."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _files(folder: Path) -> Iterator[str]:
    """Files that a model's folder is made of, by their paths in it, in order."""
    for file in sorted(folder.rglob("*")):
        parts = file.relative_to(folder).parts
        if file.is_file() and parts[0] not in _LEFT_OUT and not any(part.startswith((".", "__")) for part in parts):
            yield file.relative_to(folder).as_posix()


def _parent(name: str) -> dict[str, Any]:
    """What tells a parent: its name, its weights and where it came from itself, as far as it is at hand."""
    place = _at_hand(name)
    if place is None:
        return {"name": name, "weights": None, "license": None, "lineage": None}
    terms = license_of(name)
    name = str(Path(name).resolve()) if Path(name).exists() else name
    try:
        lineage = read_lineage(place)
    except LineageError:  # of another program, or older
        lineage = None
    return {"name": name, "weights": _weights(place), "license": terms, "lineage": lineage}


def license_of(name: str) -> str | None:
    """The licence that the card of a model's folder or Hub id declares, with its name where it is `other`.

    `None` where there is no card, it declares none, or the Hub cannot be asked.
    """
    try:
        file = Path(name) / "README.md" if Path(name).exists() else Path(hf_hub_download(name, "README.md"))
        data = metadata_load(file) if file.is_file() else None
    except (HFValidationError, HfHubHTTPError, OSError, ValueError, YAMLError):  # no id, not reached, or no metadata
        return None
    declared, named = ((data or {}).get(key) for key in ("license", "license_name"))
    declared = ", ".join(map(str, declared)) if isinstance(declared, list) else declared
    return f"{declared} ({named})" if declared == "other" and named else declared


def _at_hand(name: str) -> Path | None:
    """The file or folder of a model: its own, or the cache's of one of the Hub."""
    if Path(name).exists():
        return Path(name)
    try:
        cached = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return None
    return Path(cached).parent if isinstance(cached, str) else None


def _weights(place: Path) -> dict[str, str]:
    """The sha256 of a file, or of each file of weights in a folder: pickled ones count where there are no others.

    A repository's `pretraining/` is what a run goes on from, where there is one.
    """
    if not place.is_dir():
        return {place.name: file_hash(place)}
    files = [*place.glob("*.safetensors")] or [*place.glob("pytorch_model*.bin")]
    files += place.glob("pretraining/*.safetensors")
    return {file.relative_to(place).as_posix(): file_hash(file) for file in sorted(files)}


def _changed_files(target: Path, record: dict[str, Any]) -> Iterator[str]:
    folder = target if target.is_dir() else target.parent
    for name, recorded in record["files"].items():
        if not (folder / name).is_file():
            yield f"{folder / name} is missing"
        elif file_hash(folder / name) != recorded:
            yield f"{folder / name} changed since it was recorded"
    if target.is_dir() and record["made_by"] != "run":
        yield from (f"{folder / name} came later" for name in _files(folder) if name not in record["files"])


def _changed_parents(record: dict[str, Any]) -> Iterator[str]:
    """Of parents that are where they were: weights that are others now."""
    for parent in record["parents"]:
        place = Path(parent["name"])  # a published record holds names alone, and a name may be of anything
        known = parent["weights"]  # none of what was not at hand
        if known is not None and place.is_absolute() and place.exists() and (now := _weights(place)) != known:
            names = [name for name in {**known, **now} if now.get(name) != known.get(name)]
            yield f"{place} has other weights than those that were taken: {', '.join(names)}"
        if parent["lineage"] is not None:
            yield from _changed_parents(parent["lineage"])


def _told(name: str, record: dict[str, Any], depth: int, terms: str = "") -> Iterator[str]:
    facts = {"code": record.get("code_revision") or record.get("version"), **record.get("facts", {})}
    told = ", ".join(f"{key} {str(value)[:12]}" for key, value in facts.items() if isinstance(value, str | int))
    yield f"{'  ' * depth}{name}: {record['made_by']} ({told}){terms}"
    for file, digest in record["files"].items():
        if file.endswith((".safetensors", ".onnx", ".pt2")):
            yield f"{'  ' * depth}  {file} sha256 {digest[:12]}"
    for parent in record["parents"]:
        terms = f", licence {parent['license']}" if parent.get("license") else ""
        if parent["lineage"] is not None:
            yield from _told(parent["name"], parent["lineage"], depth + 1, terms)
            continue
        weights = ", ".join(f"{file} sha256 {digest[:12]}" for file, digest in (parent["weights"] or {}).items())
        yield f"{'  ' * (depth + 1)}{parent['name']}: no record ({weights or 'weights not at hand'}){terms}"


def package_revision(root: Path = Path(__file__).parents[2]) -> str | None:
    """The commit of this package: of its clone, or that pip installed it from; `None` where neither is known.

    A wheel has none: the repository that its environment may lie in is the user's.

    Args:
        root: The folder that holds the package.
    """
    if (root / ".git").exists() and (git := shutil.which("git")):
        asked = [git, f"--git-dir={root / '.git'}", "rev-parse", "HEAD"]
        return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() or None
    try:
        told = distribution("eden_hf").read_text("direct_url.json")
    except PackageNotFoundError:
        return None
    return json.loads(told or "{}").get("vcs_info", {}).get("commit_id")
