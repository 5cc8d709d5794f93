"""Bills of materials: an environment made by hand, this test's own one, and what a container would say of itself."""

import json
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from delivery import inventory as collector
from delivery import subjects
from delivery.__main__ import app
from delivery.engines import Engine
from delivery.inventory import inventory
from delivery.sbom import bill_of_materials, validated
from posttrain.core.errors import RequestError, WorkError

WHEN = datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)
COMMIT = "c0ffee"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """A file system with two of our packages, three libraries (one carried along by another) and two of Debian's."""
    site = tmp_path / "opt/posttrain/lib/python3.11/site-packages"
    write(
        site / "posttrain_core-0.1.0.dist-info/METADATA",
        "Metadata-Version: 2.4\nName: posttrain-core\nVersion: 0.1.0\nSummary: Ours.\nLicense-Expression: Apache-2.0\n"
        'Requires-Dist: Numpy>=1.26\nRequires-Dist: scipy; extra == "stats"\n'
        'Requires-Dist: pywin32; sys_platform == "win32"\n\nA description with\nName: another\n',
    )
    write(
        site / "posttrain_core-0.1.0.dist-info/direct_url.json",
        json.dumps({"url": "file:///w.whl", "archive_info": {"hashes": {"sha256": "ab" * 32}}}),
    )
    write(
        site / "numpy-2.4.6.dist-info/METADATA",
        "Name: numpy\nVersion: 2.4.6\nLicense: BSD\nClassifier: License :: OSI Approved :: BSD License\n",
    )
    write(
        site / "numpy-2.4.6.dist-info/licenses/LICENSE.txt",
        "Redistribution and use in source and binary forms ... Neither the name",
    )
    write(
        site / "scipy-1.17.1.dist-info/METADATA",
        "Name: scipy\nVersion: 1.17.1\nLicense-Expression: BSD-3-Clause AND MIT\n",
    )
    write(site / "scipy/_vendor/numpy-1.0.dist-info/METADATA", "Name: numpy\nVersion: 1.0\n")
    write(site / "gone-1.0.dist-info/RECORD", "")
    write(tmp_path / "proc/1/numpy-9.dist-info/METADATA", "Name: numpy\nVersion: 9\n")
    write(
        tmp_path / "var/lib/dpkg/status",
        "Package: zlib1g\nStatus: install ok installed\nArchitecture: amd64\nSource: zlib\nVersion: 1:1.2.13-1\n"
        "Description: compression library\n with a long\n .\n text\n\n"
        "Package: gone\nStatus: deinstall ok config-files\nArchitecture: amd64\nVersion: 1\n\n"
        "Package: libgcc-s1\nStatus: install ok installed\nArchitecture: amd64\nSource: gcc-12 (12.2.0-14)\n"
        "Version: 12.2.0-14+b1\n",
    )
    write(
        tmp_path / "usr/share/doc/zlib1g/copyright",
        "Format: https\nFiles: *\nLicense: Zlib\nText\n\nFiles: debian/*\nLicense: GPL-2+\n",
    )
    write(tmp_path / "usr/share/doc/gcc-12-base/copyright", "In prose, see /usr/share/common-licenses/GPL-3.\n")
    (tmp_path / "usr/share/doc/libgcc-s1").symlink_to("gcc-12-base")
    write(tmp_path / "etc/os-release", 'ID=debian\nVERSION_ID="12"\n')
    write(tmp_path / "pyvenv.cfg", "home = /usr/bin\nversion = 3.11.9\n")
    return tmp_path


@pytest.fixture
def document(system: Path) -> dict:
    return json.loads(bill_of_materials("posttrain/data:0.1.0", inventory(system), COMMIT, WHEN))


def component(document: dict, ref: str) -> dict:
    return next(found for found in document["components"] if found["bom-ref"] == ref)


def properties(found: dict) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in found["properties"]}


def test_everything_that_is_installed_stands_there_once_a_version(document):
    assert sorted(found["bom-ref"] for found in document["components"]) == [
        "cpython@3.11.9",
        "debian:libgcc-s1:amd64@12.2.0-14+b1",
        "debian:zlib1g:amd64@1:1.2.13-1",
        "python:numpy@1.0",
        "python:numpy@2.4.6",
        "python:posttrain-core@0.1.0",
        "python:scipy@1.17.1",
    ]
    top = document["metadata"]["component"]
    assert (top["type"], top["name"], top["version"]) == ("container", "posttrain/data", "0.1.0")


def test_our_packages_are_marked_with_the_commit_and_are_no_index_packages(document):
    ours = component(document, "python:posttrain-core@0.1.0")
    assert properties(ours)["posttrain:ours"] == "true"
    assert properties(ours)["posttrain:commit"] == COMMIT
    assert ours["purl"] == "pkg:generic/posttrain-core@0.1.0"
    assert ours["hashes"] == [{"alg": "SHA-256", "content": "ab" * 32}]
    others = [found for found in document["components"] if found is not ours and "properties" in found]
    assert len(others) == 5
    assert not [found for found in others if "posttrain:ours" in properties(found)]


def test_libraries_have_package_urls_and_licences(document):
    numpy = component(document, "python:numpy@2.4.6")
    assert numpy["purl"] == "pkg:pypi/numpy@2.4.6"
    assert numpy["licenses"] == [{"license": {"id": "BSD-3-Clause", "acknowledgement": "concluded"}}]
    scipy = component(document, "python:scipy@1.17.1")
    assert scipy["licenses"] == [{"expression": "BSD-3-Clause AND MIT", "acknowledgement": "declared"}]
    assert "licenses" not in component(document, "python:numpy@1.0")


def test_debian_packages_have_package_urls_sources_and_licences(document):
    zlib = component(document, "debian:zlib1g:amd64@1:1.2.13-1")
    assert zlib["purl"] == "pkg:deb/debian/zlib1g@1:1.2.13-1?arch=amd64&distro=debian-12"
    assert zlib["description"] == "compression library"
    assert properties(zlib) == {"posttrain:source": "zlib 1:1.2.13-1"}
    assert {entry["license"]["id"] for entry in zlib["licenses"]} == {"Zlib", "GPL-2.0-or-later"}
    gcc = component(document, "debian:libgcc-s1:amd64@12.2.0-14+b1")
    assert properties(gcc) == {"posttrain:source": "gcc-12 12.2.0-14"}
    assert gcc["licenses"] == [{"license": {"name": "GPL-3", "acknowledgement": "declared"}}]


def test_dependencies_are_those_of_this_machine_without_extras_and_of_the_version_that_is_imported(document):
    edges = {entry["ref"]: set(entry.get("dependsOn", [])) for entry in document["dependencies"]}
    assert edges["python:posttrain-core@0.1.0"] == {"python:numpy@2.4.6"}
    assert edges["posttrain/data:0.1.0"] == {found["bom-ref"] for found in document["components"]}


def test_the_same_content_gives_the_same_document(system):
    first, second = (bill_of_materials("x", inventory(system), COMMIT, WHEN) for _ in range(2))
    assert first == second
    assert (
        json.loads(bill_of_materials("y", inventory(system), COMMIT, WHEN))["serialNumber"]
        != json.loads(first)["serialNumber"]
    )


def test_a_document_that_breaks_the_schema_is_refused(document):
    document["components"][0]["type"] = "novel"
    with pytest.raises(WorkError, match=r"not valid CycloneDX: .*novel"):
        validated(json.dumps(document))


def test_the_collector_runs_alone_in_any_python(system):
    """As in an image: isolated, without site-packages, from its source."""
    source = Path(collector.__file__).read_text().replace('Path("/")', f"Path({str(system)!r})")
    done = subprocess.run([sys.executable, "-I", "-S", "-c", source], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {**inventory(system), "commit": "", "interpreter": platform.python_version()}


def test_the_commit_of_an_image_is_what_it_says_itself(system, monkeypatch, tmp_path):
    """An engine that runs the program here stands in for a container."""

    class Local(Engine):
        def run_program(self, image, program):
            assert image == "posttrain/data:0.1.0"
            program = program.replace('Path("/")', f"Path({str(system)!r})")
            environment = {"POSTTRAIN_GIT_COMMIT": COMMIT}
            return subprocess.run(
                [sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True, env=environment
            ).stdout

    monkeypatch.setattr(subjects, "find_engine", lambda name: Local("local", ()))
    out = tmp_path / "sbom"
    done = CliRunner().invoke(app, ["sbom", "posttrain/data:0.1.0", "--out", str(out)], catch_exceptions=False)
    assert done.exit_code == 0
    found = json.loads((out / "data-0.1.0.cdx.json").read_text())
    assert properties(component(found, "python:posttrain-core@0.1.0"))["posttrain:commit"] == COMMIT


def test_a_folder_needs_no_engine_and_gives_both_documents(system, monkeypatch, tmp_path):
    def no_engine(name):
        raise AssertionError("an engine was looked for")

    monkeypatch.setattr(subjects, "find_engine", no_engine)
    for command in ("sbom", "licences"):
        arguments = [command, str(system), "--out", str(tmp_path / command)]
        assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0
    assert [path.name for path in (tmp_path / "sbom").iterdir()] == [f"{system.name}.cdx.json"]
    listed = (tmp_path / "licences" / f"{system.name}.md").read_text()
    assert "| posttrain-core | 0.1.0 | Apache-2.0 |" in listed
    arguments = ["sbom", str(system), "--out", str(tmp_path / "sbom"), "--licences", str(tmp_path / "both")]
    assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0
    assert (tmp_path / "both" / f"{system.name}.md").read_text() == listed


def test_a_folder_without_distributions_is_refused(tmp_path):
    with pytest.raises(RequestError, match="holds no Python distribution"):
        CliRunner().invoke(app, ["sbom", str(tmp_path)], catch_exceptions=False)


@pytest.mark.long
def test_this_environment_has_a_valid_document_with_every_distribution():
    """A thousand files of real metadata: every name and version that pip sees stands in it, and it is valid."""
    from importlib.metadata import distributions

    from packaging.utils import canonicalize_name

    site = Path(next(path for path in sys.path if path.endswith("site-packages")))
    document = json.loads(bill_of_materials("environment", inventory(site), COMMIT, WHEN))
    refs = {found["bom-ref"] for found in document["components"]}
    expected = {f"python:{canonicalize_name(d.metadata['Name'])}@{d.version}" for d in distributions(path=[str(site)])}
    assert len(expected) > 100
    assert expected <= refs
    licensed = [found for found in document["components"] if found.get("licenses")]
    assert len(licensed) / len(refs) > 0.95
