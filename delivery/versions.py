"""Semantic versions of this repository's packages: what a bump gives, and which range is compatible with a version.

Below 1.0 a minor version may break what uses it, from 1.0 on a major one; a patch never does. Pure functions of
versions with three parts.
"""

from packaging.version import InvalidVersion, Version

from posttrain.core.errors import RequestError, suggest

BUMPS = ("first", "major", "minor", "patch")
"""`first` releases the version as it stands, which no tag names yet."""


def parse_version(text: str) -> Version:
    """A version of three numbers; RequestError for anything else (pre-releases, `1.0`, words)."""
    try:
        version = Version(text)
    except InvalidVersion:
        raise RequestError(f"'{text}' is no version; write three numbers, as 0.2.0") from None
    if text != f"{version.major}.{version.minor}.{version.micro}":
        raise RequestError(f"version '{text}' must be three numbers, as 0.2.0")
    return version


def bumped(version: Version, bump: str) -> Version:
    """The version after a bump; RequestError for an unknown one."""
    major, minor, patch = version.release
    match bump:
        case "first":
            return version
        case "major":
            return Version(f"{major + 1}.0.0")
        case "minor":
            return Version(f"{major}.{minor + 1}.0")
        case "patch":
            return Version(f"{major}.{minor}.{patch + 1}")
    raise RequestError(f"unknown bump '{bump}' {suggest(bump, BUMPS)}")


def next_breaking(version: Version) -> Version:
    """The first version that may break what works with this one: 0.1.4 → 0.2.0, 1.2.3 → 2.0.0."""
    return Version(f"0.{version.minor + 1}.0") if version.major == 0 else Version(f"{version.major + 1}.0.0")


def compatible_range(version: Version) -> str:
    """The specifier that admits what is compatible with a version and not older: 0.2.0 → `>=0.2,<0.3`."""
    return f">={_short(version)},<{_short(next_breaking(version))}"


def _short(version: Version) -> str:
    """Without zeros at its end, as ranges are written: 0.2.0 → 0.2, 2.0.0 → 2, 0.2.1 stays."""
    return str(version).removesuffix(".0").removesuffix(".0")
