"""Every package that this one installs, extras too, has a permissive licence, or stands excepted with a reason."""

import re
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError, distribution, metadata
from pathlib import Path

from packaging.requirements import Requirement

LICENCES = tomllib.loads((Path(__file__).parents[1] / ".ci" / "licences.toml").read_text())


def installed() -> dict[str, Distribution]:
    """Of this package's requirements and theirs, by name, those that are installed here."""
    found: dict[str, Distribution] = {}
    wanted = [("eden_hf", frozenset(metadata("eden_hf").get_all("Provides-Extra", [])))]
    seen = set()
    while wanted:
        name, extras = wanted.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            package = distribution(name)
        except PackageNotFoundError:  # of an extra that is not installed
            continue
        found[name] = package
        for line in package.requires or []:
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                wanted.append((re.sub(r"[-_.]+", "-", needed.name).lower(), frozenset(needed.extras)))
    del found["eden_hf"]
    return found


def licences(package: Distribution) -> set[str]:
    """What the metadata of a package say: its expression, else its field if that is a name, else its classifiers."""
    about = package.metadata
    expression = about["License-Expression"] or ""
    field = about["License"] or ""
    classified = [line.split(" :: ")[-1] for line in about.get_all("Classifier", []) if line.startswith("License ::")]
    named = [expression] if expression else classified or ([field] if len(field) < 100 else [field[:40]])
    parts = {part for name in named for part in re.split(r"\s+(?:AND|OR)\s+|;\s*", name)}
    return {part.strip("()") if expression else part for part in parts} - {"OSI Approved", "DFSG approved"}


def test_licences_are_permissive_or_excepted_with_a_reason():
    packages = installed()
    assert len(packages) > 60
    permissive, exceptions = set(LICENCES["permissive"]), LICENCES["exceptions"]
    told = {name: licences(package) for name, package in packages.items() if name not in exceptions}
    wrong = {
        name: sorted(names - permissive) or "no licence"
        for name, names in told.items()
        if not names or names - permissive
    }
    assert wrong == {}, "put the licence into .ci/licences.toml if it is permissive, or the package with the reason"


def test_exceptions_are_of_packages_that_need_one():
    packages = installed()
    permissive = set(LICENCES["permissive"])
    needless = [name for name in LICENCES["exceptions"] if name in packages and licences(packages[name]) <= permissive]
    assert needless == []
    assert all(len(reason) > 20 for reason in LICENCES["exceptions"].values())
