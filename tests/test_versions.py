"""Versions of the packages: one place each, ranges that fit among them, and the arithmetic of bumps."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.version import Version

from delivery.packages import declared, named, read_packages, set_range, set_version
from delivery.versions import bumped, compatible_range, next_breaking, parse_version
from posttrain.core.errors import RequestError
from tests.miniature import write_package

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = read_packages(ROOT)


@pytest.mark.parametrize("package", PACKAGES.values(), ids=lambda package: package.name)
def test_ranges_among_packages_admit_the_current_version_and_exclude_the_next_breaking_one(package):
    for other in PACKAGES.values():
        for needed in package.needs(other):
            assert needed.specifier.contains(other.version), f"{package.name} refuses {other.name} as it stands"
            assert not needed.specifier.contains(next_breaking(other.version)), f"{package.name}: {needed} is too wide"


def test_every_package_but_core_needs_another_one():
    """The claim above is about something: were no requirement found, it would hold of nothing."""
    needing = {name for name, package in PACKAGES.items() if any(package.needs(other) for other in PACKAGES.values())}
    assert needing == set(PACKAGES) - {"core"}


@pytest.mark.parametrize("package", PACKAGES.values(), ids=lambda package: package.name)
def test_a_version_stands_in_one_place(package):
    project = tomllib.loads(package.pyproject.read_text())["project"]
    assert "version" not in project
    assert project["dynamic"] == ["version"]
    sources = [path for path in package.folder.rglob("*.py") if path.is_file()]
    written = re.compile(r"^(__)?version(__)? *= *[\"'][0-9]", re.MULTILINE)
    found = [path for path in [package.pyproject, *sources] if written.search(path.read_text(encoding="utf-8"))]
    assert found == [package.version_file]


@pytest.mark.parametrize("package", PACKAGES.values(), ids=lambda package: package.name)
def test_a_changelog_has_a_section_for_what_is_unreleased_or_the_current_version_on_top(package):
    first = next(line for line in package.changelog.read_text().splitlines() if line.startswith("## "))
    assert first == "## Unreleased" or first.startswith(f"## {package.version} (")


@pytest.mark.parametrize("package", PACKAGES.values(), ids=lambda package: package.name)
def test_a_package_carries_the_licence_that_it_names(package):
    """A wheel goes to people without the repository; hatchling takes the file along."""
    assert tomllib.loads(package.pyproject.read_text())["project"]["license"] == "Apache-2.0"
    assert (package.folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


@pytest.mark.parametrize(
    ("version", "bump", "expected"),
    [
        ("0.1.4", "patch", "0.1.5"),
        ("0.1.4", "minor", "0.2.0"),
        ("0.1.4", "major", "1.0.0"),
        ("1.9.3", "minor", "1.10.0"),
        ("1.9.3", "major", "2.0.0"),
        ("0.1.0", "first", "0.1.0"),
    ],
)
def test_a_bump_raises_its_part_and_zeroes_those_behind(version, bump, expected):
    assert str(bumped(Version(version), bump)) == expected


def test_an_unknown_bump_is_refused_with_the_nearest():
    with pytest.raises(RequestError, match=r"unknown bump 'minr' \(did you mean 'minor'\?\)"):
        bumped(Version("0.1.0"), "minr")


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("0.1.0", ">=0.1,<0.2"),
        ("0.2.3", ">=0.2.3,<0.3"),
        ("1.0.0", ">=1,<2"),
        ("2.4.0", ">=2.4,<3"),
        ("0.10.0", ">=0.10,<0.11"),
    ],
)
def test_a_compatible_range_ends_before_the_next_breaking_version(version, expected):
    assert compatible_range(Version(version)) == expected


@pytest.mark.parametrize("text", ["0.1", "0.1.0rc1", "one", "0.1.0.1", "1!0.1.0", "0.01.0"])
def test_a_version_is_three_plain_numbers(text):
    with pytest.raises(RequestError):
        parse_version(text)


def test_a_package_is_named_by_its_folder_or_its_distribution():
    assert named(PACKAGES, "reward-model") is named(PACKAGES, "posttrain-reward-model")
    with pytest.raises(RequestError, match=r"unknown package 'rolout' \(did you mean 'rollout'\?\)"):
        named(PACKAGES, "rolout")


def test_no_package_is_found_outside_a_checkout(tmp_path):
    with pytest.raises(RequestError, match="holds no packages"):
        read_packages(tmp_path)


def test_a_range_is_written_wherever_it_stands_and_nothing_else_changes(tmp_path):
    write_package(tmp_path, "core")
    write_package(tmp_path, "core_extra")
    needs = '["posttrain-core[stats]>=0.1,<0.2", "posttrain-core-extra>=0.1,<0.2", "numpy>=1.26"]'
    extra = "\n[project.optional-dependencies]\nservice = [\"posttrain-core >=0.1,<0.2; sys_platform != 'win32'\"]\n"
    folder = write_package(tmp_path, "lab", needs=needs, extra=extra)
    before = (folder / "pyproject.toml").read_text()
    packages = read_packages(tmp_path)
    set_range(packages["lab"], packages["core"], ">=0.2,<0.3")
    after = (folder / "pyproject.toml").read_text()
    assert after == before.replace('"posttrain-core[stats]>=0.1,<0.2"', '"posttrain-core[stats]>=0.2,<0.3"').replace(
        "posttrain-core >=0.1,<0.2;", "posttrain-core>=0.2,<0.3;"
    )
    assert {str(needed.specifier) for needed in read_packages(tmp_path)["lab"].needs(packages["core"])} == {
        "<0.3,>=0.2"
    }


def test_a_version_is_written_where_it_is_read(tmp_path):
    write_package(tmp_path, "core")
    package = read_packages(tmp_path)["core"]
    set_version(package, Version("0.2.0"))
    assert read_packages(tmp_path)["core"].version == Version("0.2.0")
    assert package.version_file.read_text() == '"""core."""\n\n__version__ = "0.2.0"\n'


def test_what_packages_declare_of_others_is_known_by_library():
    assert {package for package, _ in declared(PACKAGES.values())["trl"]} == {"trainers"}
    assert not [name for name in declared(PACKAGES.values()) if name.startswith("posttrain")]


def test_a_malformed_package_is_a_line_that_names_its_file(tmp_path):
    folder = write_package(tmp_path, "core")
    (folder / "src/posttrain/core/__init__.py").write_text("")
    with pytest.raises(RequestError, match=r"core/__init__.py lacks its line __version__"):
        read_packages(tmp_path)
    (folder / "pyproject.toml").write_text("[project]\n")
    with pytest.raises(RequestError, match=r"pyproject.toml lacks 'tool'"):
        read_packages(tmp_path)
