"""The images: a target of docker/Dockerfile each, the package whose version tags it, its port, and its largest size.

Knows nothing of engines. What a size is, `sizes.py` says.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from delivery.packages import Package, read_packages
from posttrain.core.errors import RequestError, suggest

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = ROOT / "docker" / "Dockerfile"
PINS = ("constraints.txt", "constraints-vllm.txt", "requirements-build.txt", "docker/install.py", "docker/slim.py")
"""What is installed besides this repository's packages, and how."""
ACCELERATORS = ("cpu", "cuda")


@dataclass(frozen=True)
class Target:
    """A target of the Dockerfile. `limit` is the most bytes that the CPU image's files may have."""

    name: str
    limit: int
    package: str = ""
    """The package that it is of, where that is not its name."""
    port: int | None = None
    """Where its service listens; None where it runs commands."""

    @property
    def of(self) -> str:
        return self.package or self.name


_MB = 1_000_000
TARGETS = {
    target.name: target
    for target in (
        Target("llm-judge", 600 * _MB, port=8003),
        Target("data", 610 * _MB),
        Target("eval-harness", 880 * _MB),
        Target("rollout", 1400 * _MB, port=8001),
        Target("reward-model", 1380 * _MB, port=8002),
        Target("trainers", 1500 * _MB),
        Target("lab", 1820 * _MB),
        Target("rollout-vllm", 2800 * _MB, package="rollout", port=8001),
    )
}
"""Measured with constraints.txt as it is, and a tenth on top; that of rollout-vllm, never built yet, is a guess."""
STOCK = tuple(name for name in TARGETS if name != "rollout-vllm")
"""What is built unless something else is asked for: vLLM's image is large, and its CPU build a community's."""


def chosen(names: Iterable[str], default: Iterable[str] = STOCK) -> list[Target]:
    """The targets of these names, or the default ones; RequestError for an unknown one."""
    names = list(names)
    for name in names:
        if name not in TARGETS:
            raise RequestError(f"unknown target '{name}' {suggest(name, TARGETS)}")
    return [TARGETS[name] for name in (names or default)]


def version_of(target: Target, root: Path = ROOT) -> str:
    """The version of the target's package."""
    return str(read_packages(root)[target.of].version)


def tags(target: Target, version: str, accelerator: str) -> list[str]:
    """The image's names: the version first, then `latest`; those for CUDA end in `-cuda`."""
    end = "" if accelerator == "cpu" else f"-{accelerator}"
    return [f"posttrain/{target.name}:{version}{end}", f"posttrain/{target.name}:latest{end}"]


def installed_packages(name: str, packages: dict[str, Package]) -> list[str]:
    """This package and all of this repository's that it needs, by what they declare (extras included), sorted."""
    found, waiting = {name}, [name]
    while waiting:
        package = packages[waiting.pop()]
        for other in packages.values():
            if other.name not in found and package.needs(other):
                found.add(other.name)
                waiting.append(other.name)
    return sorted(found)


def digest_of_pins(root: Path = ROOT) -> str:
    """SHA-256 of what decides which other libraries are installed and how."""
    return _digest(root, [root / name for name in PINS])


def digest_of_sources(target: Target, root: Path = ROOT) -> str:
    """SHA-256 of the packages in a target's image, and of the pins. Engines that know a mount by its name only would
    otherwise take an old layer for a new one."""
    files = [root / name for name in PINS]
    for name in installed_packages(target.of, read_packages(root)):
        folder = root / "packages" / name
        files += [path for file in ("pyproject.toml", "README.md", "LICENSE") if (path := folder / file).is_file()]
        files += [path for path in (folder / "src").rglob("*") if path.is_file() and _in_context(path)]
    return _digest(root, sorted(files))


def _in_context(path: Path) -> bool:
    return "__pycache__" not in path.parts and not any(part.endswith(".egg-info") for part in path.parts)


def _digest(root: Path, files: Iterable[Path]) -> str:
    whole = hashlib.sha256()
    for path in files:
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        whole.update(f"{path.relative_to(root).as_posix()}\0{content}\n".encode())
    return whole.hexdigest()
