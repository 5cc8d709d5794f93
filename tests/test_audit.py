"""The audit of the pins: what pip-audit's report means, and that a database that is away is no failure."""

import json
import stat
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from typer.testing import CliRunner

from delivery.__main__ import app
from delivery.audit import Hole, Unreachable, read_report, run_pip_audit
from posttrain.core.errors import RequestError, WorkError

HOLES = [
    {"id": "PYSEC-1", "fix_versions": ["4.4.2", "5.0.1"], "aliases": ["CVE-1"]},
    {"id": "PYSEC-2", "fix_versions": ["5.0.3", "6.1"], "aliases": []},
]
REPORT = {
    "dependencies": [
        {"name": "left", "version": "1.0", "vulns": []},
        {"name": "right", "version": "5.0.0", "vulns": HOLES},
        {"name": "ours", "skip_reason": "Dependency not found on PyPI and could not be audited: ours (1.0)"},
    ],
    "fixes": [],
}


def test_a_report_counts_what_was_audited_and_names_what_the_database_lacks():
    found = read_report(REPORT)
    assert (found.audited, found.unknown) == (2, ("ours",))
    assert found.holes == (Hole("right", "5.0.0", ("PYSEC-1", "PYSEC-2"), "5.0.3"),)


def test_one_hole_without_a_fix_leaves_no_version_to_go_to():
    holes = [*HOLES, {"id": "PYSEC-3", "fix_versions": ["4.9"], "aliases": []}]
    report = {"dependencies": [{"name": "right", "version": "5.0.0", "vulns": holes}]}
    assert read_report(report).holes[0].fixed == ""


def test_a_line_says_whether_the_fixed_version_fits_what_is_declared():
    hole = Hole("Right", "5.0.0", ("PYSEC-1",), "6.1")
    needs = {"right": [("core", Requirement("right>=4")), ("lab", Requirement("right<6"))]}
    assert hole.line(needs) == "Right 5.0.0: PYSEC-1; fixed in 6.1, but lab declares right<6"
    assert (
        hole.line({"right": needs["right"][:1]}) == "Right 5.0.0: PYSEC-1; fixed in 6.1, which what we declare admits"
    )
    assert Hole("Right", "5.0.0", ("X",), "").line(needs) == "Right 5.0.0: X; no version without it is known"


def test_a_database_that_knows_no_pin_at_all_is_no_database():
    skipped = [{"name": name, "skip_reason": "not found"} for name in ("left", "right")]
    with pytest.raises(Unreachable, match="knows none of 2 pins"):
        read_report({"dependencies": skipped})


@pytest.fixture
def pins(tmp_path: Path) -> Path:
    path = tmp_path / "pins.txt"
    path.write_text("left==1.0\nright==5.0.0\nours==1.0\n")
    return path


def stand_in(folder: Path, script: str) -> str:
    """A program in pip-audit's place."""
    path = folder / "pip-audit"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def reporting(folder: Path, report: dict, status: int) -> str:
    (folder / "answer.json").write_text(json.dumps(report))
    find_output = 'while [ "$1" != --output ]; do shift; done'
    return stand_in(folder, f'{find_output}\ncat "{folder / "answer.json"}" > "$2"\nexit {status}')


def invoke(program: str, pins: Path):
    return CliRunner().invoke(app, ["audit", str(pins), "--program", program])


def test_holes_are_listed_and_fail(tmp_path, pins):
    done = invoke(reporting(tmp_path, REPORT, 1), pins)
    assert "pins.txt: 2 pins audited, 1 with known holes; not in the database: ours" in done.output
    assert "  right 5.0.0: PYSEC-1, PYSEC-2; fixed in 5.0.3, which what we declare admits" in done.output
    assert isinstance(done.exception, WorkError)
    assert "1 pinned versions have known holes" in str(done.exception)


def test_no_holes_is_a_line(tmp_path, pins):
    done = invoke(reporting(tmp_path, {"dependencies": REPORT["dependencies"][:1]}, 0), pins)
    assert (done.exit_code, done.output) == (0, "pins.txt: 1 pins audited, 0 with known holes\n")


def test_a_database_that_is_away_is_skipped_with_the_reason(tmp_path, pins):
    program = stand_in(tmp_path, "echo 'ERROR:pip_audit._cli:Could not connect to the vulnerability feed' >&2; exit 1")
    done = invoke(program, pins)
    assert done.exit_code == 0
    assert done.output == (
        "pins.txt: skipped, the database pypi cannot be reached: "
        "ERROR:pip_audit._cli:Could not connect to the vulnerability feed\n"
    )


@pytest.mark.parametrize("said", ["requirement pins.txt: invalid line", "pins.txt has an unresolved name"])
def test_another_failure_of_pip_audit_is_one(tmp_path, pins, said):
    program = stand_in(tmp_path, f"echo '{said}' >&2; exit 1")
    with pytest.raises(WorkError, match=f"pip-audit failed on pins.txt: {said}") as failed:
        run_pip_audit(program, "pypi", pins)
    assert not isinstance(failed.value, Unreachable)


def test_a_missing_program_or_file_is_said(tmp_path, pins):
    with pytest.raises(RequestError, match="is not installed; make audit calls it"):
        run_pip_audit(str(tmp_path / "none"), "pypi", pins)
    with pytest.raises(RequestError, match="does not exist"):
        run_pip_audit("pip-audit", "pypi", tmp_path / "none.txt")


def test_a_mirror_without_a_database_is_asked_for_three_pins_only(tmp_path):
    pins = tmp_path / "pins.txt"
    pins.write_text("# Pins.\n" + "".join(f"library{number}==1.0\n" for number in range(9)))
    skipped = {"dependencies": [{"name": f"library{number}", "skip_reason": "not found"} for number in range(3)]}
    program = reporting(tmp_path, skipped, 0)
    log = tmp_path / "asked"
    Path(program).write_text(Path(program).read_text().replace("#!/bin/sh\n", f'#!/bin/sh\ncat "$2" >> "{log}"\n'))
    done = invoke(program, pins)
    assert (
        done.output == "pins.txt: skipped, the database pypi cannot be reached: it answered, and knows none of 3 pins\n"
    )
    assert log.read_text() == "library0==1.0\nlibrary1==1.0\nlibrary2==1.0\n"
