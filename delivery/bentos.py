"""`python -m delivery bentos`: the three services as BentoML packages them, for who deploys with BentoML.

Each bento carries the wheels of the packages that its service needs, and the versions of all that these need as they
are tested, so that it is installed and served where this repository is not. Built into BentoML's own store
(`bentoml list`).
"""

import email.parser
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Annotated

import typer
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from delivery.targets import ROOT
from posttrain.core.bentos import PINS
from posttrain.core.errors import RequestError, WorkError, suggest
from posttrain.core.files import atomic_write_text

PACKAGES: Mapping[str, tuple[str, ...]] = {
    "policy": ("core", "data", "rollout"),
    "reward": ("core", "data", "reward-model"),
    "judge": ("core", "llm-judge"),
}
"""Of each service: the packages whose wheels its bento carries; the last one has the service."""


def bentos(
    service: Annotated[
        list[str] | None, typer.Argument(help="policy, reward or judge; all without.", show_default=False)
    ] = None,
) -> None:
    """Build the bentos of the services, with this repository's wheels and pins in them."""
    wanted = service or list(PACKAGES)
    for name in wanted:
        if name not in PACKAGES:
            raise RequestError(f"there is no service {name} {suggest(name, PACKAGES)}")
    for name in wanted:
        print(f"{name}: {build_bento(name)}")


def build_bento(name: str, root: Path = ROOT) -> str:
    """Makes the wheels of a service's folder anew, and a bento of it; its tag."""
    folder = root / "services" / name
    fill_dist(folder / "dist", PACKAGES[name], root)
    command = [sys.executable, "-m", "bentoml", "build", "--output", "tag", "."]
    return _run(command, f"the bento of {name}", folder).split()[-1].removeprefix("__tag__:")


def fill_dist(dist: Path, packages: Iterable[str], root: Path) -> None:
    """Leaves in `dist` the wheels of these packages and the pins of what they need, and nothing else."""
    # What cannot be removed has to be told: an older wheel left there would go into the bento.
    if dist.exists():
        shutil.rmtree(dist)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(dist)]
    _run([*command, *(str(root / "packages" / package) for package in packages)], "the wheels", root)
    needs = [need for wheel in sorted(dist.glob("*.whl")) for need in declared(wheel)]
    lines = pinned(needs, read_pins(root / "constraints.txt"))
    atomic_write_text(dist / PINS, "".join(f"{line}\n" for line in lines))


def declared(wheel: Path) -> list[Requirement]:
    """What a wheel declares, with the extra of services."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.parser.Parser().parsestr(archive.read(name).decode())
    requirements = [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]
    return [need for need in requirements if _applies(need, {"service"})]


def read_pins(constraints: Path) -> dict[str, str]:
    """Versions by canonical name."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==(\S+)$", constraints.read_text(encoding="utf-8"), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def pinned(needs: Iterable[Requirement], pins: Mapping[str, str]) -> list[str]:
    """`name==version`, sorted, of all that is needed directly or not, as far as it is pinned. What needs what is taken
    from the distributions that are installed here."""
    waiting, seen = list(needs), set[tuple[str, frozenset[str]]]()
    while waiting:
        need = waiting.pop()
        key = (canonicalize_name(need.name), frozenset(need.extras))
        if key in seen:
            continue
        seen.add(key)
        try:
            texts = distribution(need.name).requires or []
        except PackageNotFoundError:
            continue  # of another platform, or of torch's other build
        waiting += [further for further in map(Requirement, texts) if _applies(further, need.extras)]
    return sorted(f"{name}=={pins[name]}" for name in {name for name, _ in seen} if name in pins)


def _applies(need: Requirement, extras: Iterable[str]) -> bool:
    return need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in ("", *extras))


def _run(command: list[str], what: str, folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise WorkError(f"building {what} failed: {' '.join((done.stderr or done.stdout).split())[-800:]}")
    return done.stdout
