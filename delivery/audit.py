"""`python -m delivery audit`: pip-audit over the pinned sets, with whether a fixed version fits what we declare.

pip-audit asks its database for every pin by name; nothing is installed or resolved. Where the database cannot be
reached that is said and is no failure; a known hole in a pin is one.
"""

import json
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from delivery.packages import declared, read_packages
from delivery.targets import ROOT
from posttrain.core.errors import RequestError, WorkError

PINNED = ("constraints.txt", "constraints-vllm.txt")
PROBE = 3
"""Pins that are asked about first: a mirror of the index that has no database is not asked for all of them in vain."""
UNREACHABLE = (
    "connect",
    "failed to resolve",
    "name resolution",
    "timed out",
    "proxy",
    "403 client error",
    "server error",
)
"""Words by which pip-audit says that its database did not answer, in lower case."""


@dataclass(frozen=True)
class Hole:
    """The known vulnerabilities of a pinned version."""

    name: str
    version: str
    ids: tuple[str, ...]
    fixed: str
    """The lowest later version that has none of them; empty where there is none."""

    def line(self, needs: Mapping[str, list[tuple[str, Requirement]]]) -> str:
        """One line, with the lowest fixed version and whether every package's declaration admits it."""
        said = f"{self.name} {self.version}: {', '.join(self.ids)}"
        if not self.fixed:
            return f"{said}; no version without it is known"
        refusing = [
            f"{package} declares {requirement}"
            for package, requirement in needs.get(canonicalize_name(self.name), [])
            if not requirement.specifier.contains(self.fixed, prereleases=True)
        ]
        fits = f"but {', '.join(refusing)}" if refusing else "which what we declare admits"
        return f"{said}; fixed in {self.fixed}, {fits}"


@dataclass(frozen=True)
class Report:
    """What the database said of one pinned set."""

    audited: int
    unknown: tuple[str, ...]
    """Pins that it does not know."""
    holes: tuple[Hole, ...]


def audit(
    pinned: Annotated[list[Path] | None, typer.Argument(help="Pinned sets.", show_default=", ".join(PINNED))] = None,
    program: Annotated[str, typer.Option(help="pip-audit's command.")] = "pip-audit",
    service: Annotated[str, typer.Option(help="pip-audit's database: pypi or osv.")] = "pypi",
) -> None:
    """Look for known vulnerabilities of the pinned versions; exit status 1 where there are some."""
    needs = declared(read_packages(ROOT).values())
    holes = 0
    for path in pinned or [ROOT / name for name in PINNED]:
        try:
            read_report(run_pip_audit(program, service, path, PROBE))
            found = read_report(run_pip_audit(program, service, path))
        except Unreachable as error:
            typer.echo(f"{path.name}: skipped, the database {service} cannot be reached: {error}")
            continue
        holes += len(found.holes)
        unknown = f"; not in the database: {', '.join(found.unknown)}" if found.unknown else ""
        typer.echo(f"{path.name}: {found.audited} pins audited, {len(found.holes)} with known holes{unknown}")
        for hole in found.holes:
            typer.echo(f"  {hole.line(needs)}")
    if holes:
        raise WorkError(f"{holes} pinned versions have known holes")


class Unreachable(WorkError):
    """The database did not answer."""


def run_pip_audit(program: str, service: str, pinned: Path, first: int | None = None) -> dict[str, Any]:
    """pip-audit's JSON report of a file of pins, or of the first few of them.

    Unreachable where its database does not answer, RequestError where pip-audit or the file is not there, WorkError
    with its last words where it fails otherwise.
    """
    if not pinned.is_file():
        raise RequestError(f"{pinned} does not exist")
    with tempfile.TemporaryDirectory() as folder:
        report, asked = Path(folder) / "report.json", Path(folder) / pinned.name
        lines = pinned.read_text(encoding="utf-8").splitlines()
        pins = [line for line in lines if line and not line.startswith("#")]
        asked.write_text("\n".join(pins[:first]) + "\n", encoding="utf-8")
        command = [
            program,
            "--requirement",
            str(asked),
            "--no-deps",
            "--disable-pip",
            "--vulnerability-service",
            service,
        ]
        command += ["--format", "json", "--desc", "off", "--progress-spinner", "off", "--output", str(report)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise RequestError(f"{program} is not installed; make audit calls it from .venv") from None
        # Its exit status is 1 where it found something and where it failed: only the report tells them apart.
        if report.is_file() and report.stat().st_size:
            return dict(json.loads(report.read_text(encoding="utf-8")))
    words = (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}").splitlines()[-1]
    if any(word in done.stderr.lower() for word in UNREACHABLE):
        raise Unreachable(words[:300])
    raise WorkError(f"pip-audit failed on {pinned.name}: {words[:300]}")


def read_report(report: Mapping[str, Any]) -> Report:
    """What a report says. Unreachable where the database knew none of the pins: a mirror of an index often has none."""
    audited, unknown, holes = 0, [], []
    for dependency in report["dependencies"]:
        if "skip_reason" in dependency:
            unknown.append(dependency["name"])
            continue
        audited += 1
        if dependency["vulns"]:
            holes.append(_hole(dependency["name"], dependency["version"], dependency["vulns"]))
    if not audited:
        raise Unreachable(f"it answered, and knows none of {len(unknown)} pins")
    return Report(audited, tuple(unknown), tuple(holes))


def _hole(name: str, version: str, vulnerabilities: Iterable[Mapping[str, Any]]) -> Hole:
    """All holes of one pin as one: the fixed version is the lowest that is fixed of all of them."""
    vulnerabilities = list(vulnerabilities)
    fixes = [[Version(text) for text in found["fix_versions"]] for found in vulnerabilities]
    # Of several series with a fix each the lowest above the pin counts; a hole without any leaves none.
    lowest = [min((fix for fix in versions if fix > Version(version)), default=None) for versions in fixes]
    known = [fix for fix in lowest if fix is not None]
    fixed = str(max(known)) if len(known) == len(lowest) else ""
    return Hole(name, version, tuple(found["id"] for found in vulnerabilities), fixed)
