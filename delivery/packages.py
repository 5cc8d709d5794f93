"""The packages of a checkout as their files declare them: versions, what they need of each other and of others."""

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from delivery.versions import parse_version
from posttrain.core.errors import RequestError, suggest

PREFIX = "posttrain-"
_VERSION = re.compile(r"^__version__ = \"(?P<version>[^\"]+)\"$", re.MULTILINE)


@dataclass(frozen=True)
class Package:
    """One folder under packages/."""

    folder: Path
    version_file: Path
    version: Version
    requirements: tuple[Requirement, ...]
    """What it declares, extras included."""

    @property
    def name(self) -> str:
        """The name of its folder, as commands and tags have it: `reward-model`."""
        return self.folder.name

    @property
    def distribution(self) -> str:
        """The name of its wheel: `posttrain-reward-model`."""
        return PREFIX + self.name

    @property
    def pyproject(self) -> Path:
        return self.folder / "pyproject.toml"

    @property
    def changelog(self) -> Path:
        return self.folder / "CHANGELOG.md"

    def needs(self, other: "Package") -> list[Requirement]:
        """Its requirements on another package; several where extras repeat it."""
        return [found for found in self.requirements if canonicalize_name(found.name) == other.distribution]


def read_packages(root: Path) -> dict[str, Package]:
    """Name to package, of all under `root`/packages; RequestError where there are none or one is malformed."""
    found = {}
    for path in sorted((root / "packages").glob("*/pyproject.toml")):
        found[path.parent.name] = _read_package(path)
    if not found:
        raise RequestError(f"{root} holds no packages; start it in the root of a checkout")
    return found


def named(packages: dict[str, Package], name: str) -> Package:
    """The package that a person names, as `rollout` or `posttrain-rollout`; RequestError suggests one."""
    short = name.removeprefix(PREFIX)
    if short not in packages:
        raise RequestError(f"unknown package '{name}' {suggest(short, packages)}")
    return packages[short]


def set_version(package: Package, version: Version) -> None:
    """Writes the version into the one place that holds it."""
    text = package.version_file.read_text(encoding="utf-8")
    package.version_file.write_text(_VERSION.sub(f'__version__ = "{version}"', text, count=1), encoding="utf-8")


def set_range(package: Package, other: Package, specifier: str) -> None:
    """Writes the range of other's versions that a package works with, wherever it requires it; extras stay."""
    required = re.compile(rf"(\"{re.escape(other.distribution)}(?:\[[^\]\"]*\])?)\s*[<>=!~][^;\"]*(?=[;\"])")
    text = package.pyproject.read_text(encoding="utf-8")
    package.pyproject.write_text(required.sub(rf"\g<1>{specifier}", text), encoding="utf-8")


def declared(packages: Iterable[Package]) -> dict[str, list[tuple[str, Requirement]]]:
    """Canonical name of every library from elsewhere to the packages that declare it, and how."""
    found: dict[str, list[tuple[str, Requirement]]] = {}
    for package in packages:
        for requirement in package.requirements:
            name = canonicalize_name(requirement.name)
            if not name.startswith(PREFIX):
                found.setdefault(name, []).append((package.name, requirement))
    return found


def _read_package(path: Path) -> Package:
    try:
        content: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        file = path.parent / content["tool"]["hatch"]["version"]["path"]
        project = content["project"]
    except tomllib.TOMLDecodeError as error:
        raise RequestError(f"{path} is not TOML: {error}") from None
    except KeyError as error:
        raise RequestError(
            f"{path} lacks {error}; its version must lie in one file (tool.hatch.version.path)"
        ) from None
    version = _VERSION.search(file.read_text(encoding="utf-8"))
    if version is None:
        raise RequestError(f'{file} lacks its line __version__ = "…"')
    extras = project.get("optional-dependencies", {}).values()
    texts = [*project.get("dependencies", []), *(text for extra in extras for text in extra)]
    return Package(path.parent, file, parse_version(version["version"]), tuple(Requirement(text) for text in texts))
