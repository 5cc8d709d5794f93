"""What a bento installs: this repository's wheels that it carries, in the versions that the repository tests.

Called by the service.py of a bento when it is built; it knows nothing of BentoML but where that installs from.
"""

from pathlib import Path

PINS = "requirements.txt"
"""Beside the wheels: the version of everything that they need. BentoML takes constraints for requirements, so these are
of what is needed and nothing else."""


def bento_requirements(folder: Path, distribution: str) -> list[str]:
    """Lines of a requirements file, to be read in `folder`: the wheels in its dist/ and the pins beside them. Where one
    or the other is not there, `distribution` with its extra [service], from pip's index unless its wheel is there."""
    dist = folder / "dist"
    pins = dist / PINS
    wheels = [f"./dist/{wheel.name}" for wheel in sorted(dist.glob("*.whl"))]
    if not wheels or not pins.is_file():
        return [*wheels, f"{distribution}[service]"]
    return wheels + pins.read_text(encoding="utf-8").split()
