"""The image of a release, built from the release's own tree by that tree's own `delivery images`."""

import os
import subprocess
import sys
from pathlib import Path

from delivery.engines import VARIABLE, Engine, find_engine
from delivery.packages import Package
from delivery.targets import STOCK, TARGETS
from posttrain.core.errors import RequestError, WorkError


def build_release_image(tree: Path, package: Package) -> str:
    """Builds the image of the package that lies in `tree`; says in a line what was built, or why nothing was.

    WorkError when the build fails; an engine that is not there is a reason and no failure.
    """
    names = [name for name in STOCK if TARGETS[name].of == package.name]
    if not names:
        return f"no image: {package.name} has none of its own"
    try:
        engine = find_engine()
    except RequestError as error:
        return f"no image: {error}"
    targets = [word for name in names for word in ("--target", name)]
    command = [sys.executable, "-m", "delivery", "images", "--engine", engine.name, *targets]
    done = subprocess.run(command, cwd=tree, env=_environment(tree, engine), check=False)
    if done.returncode != 0:
        raise WorkError(f"building the image of {package.name} failed; why is said above. Nothing was changed")
    return ", ".join(f"image posttrain/{name}:{package.version}" for name in names)


def _environment(tree: Path, engine: Engine) -> dict[str, str]:
    """This process's, with the tree's sources before those that are installed, and the engine as it was found here."""
    sources = [str(tree), *(str(path) for path in sorted(tree.glob("packages/*/src")))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sources)}
    if engine.name == "tool":
        environment[VARIABLE] = engine.build[0]
    return environment
