"""A release of one package: version, changelog, ranges of those that need it, wheel, sdist, image, commit and tag.

Everything is made from the release's own commit before anybody sees that commit: it is committed in a worktree on no
branch, wheel, sdist and image are built there, and only then the tag is set and main moved forward to it. So a build
that fails leaves the clone as it was, and what was built is what the tag names. Nothing is pushed.
"""

import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from packaging.version import Version

from delivery import changelog
from delivery.build import build_distributions, commit_time
from delivery.checkout import detached_worktree, git, require_clean_main, run_git
from delivery.packages import Package, named, read_packages, set_range, set_version
from delivery.versions import bumped, compatible_range
from posttrain.core.errors import RequestError, WorkError
from posttrain.core.files import disk_errors

BuildImage = Callable[[Path, Package], str]
"""Builds the image of a package from the tree that it lies in; gives a line: what was built, or why nothing was."""


@dataclass(frozen=True)
class Plan:
    """What a release will do."""

    package: Package
    version: Version
    entries: str
    """What the changelog says of it."""
    dependants: tuple[Package, ...]
    """Packages whose ranges leave the new version out: their ranges move, and they need a release to be installed
    beside it."""

    @property
    def tag(self) -> str:
        return f"{self.package.name}-v{self.version}"

    def lines(self) -> list[str]:
        """The plan in sentences."""
        package = self.package
        same = self.version == package.version
        lines = [
            f"{package.distribution} {self.version if same else f'{package.version} → {self.version}'}, {self.tag}"
        ]
        for dependant in self.dependants:
            old = ", ".join(str(found.specifier) for found in dependant.needs(package))
            lines.append(
                f"{dependant.distribution}: {old} → {compatible_range(self.version)}; it needs a release as well"
            )
        return lines


def plan_release(root: Path, name: str, bump: str) -> Plan:
    """What releasing a package would do; RequestError for everything that stands in the way of it."""
    packages = read_packages(root)
    package = named(packages, name)
    version = bumped(package.version, bump)
    require_clean_main(root)
    earlier = _tags(root, package)
    if bump == "first" and earlier:
        raise RequestError(f"{package.name} was released before ({earlier[-1]}); BUMP is major, minor or patch")
    if bump != "first" and not earlier:
        raise RequestError(f"{package.name} {package.version} was never released; BUMP=first releases it as it is")
    entries = changelog.unreleased(_read(package.changelog))
    if not entries:
        raise RequestError(f"{package.changelog.relative_to(root)} has nothing under Unreleased; nothing to release")
    others = [other for other in packages.values() if other.name != package.name]
    left = [o for o in others if any(not r.specifier.contains(version) for r in o.needs(package))]
    plan = Plan(package, version, entries, tuple(left))
    if plan.tag in earlier:
        raise RequestError(
            f"the tag {plan.tag} exists, {package.version_file.relative_to(root)} is behind ({earlier[-1]})"
        )
    return plan


def release(root: Path, plan: Plan, build_image: BuildImage) -> list[str]:
    """Does what was planned; gives what was made, a line each.

    WorkError where a step failed: clone and dist/ are as they were. Only an image that was built by then stays.
    """
    dist = root / "dist"
    with ExitStack() as stack:
        stack.enter_context(disk_errors(dist))
        dist.mkdir(exist_ok=True)
        folder = stack.enter_context(tempfile.TemporaryDirectory(dir=dist, prefix=".release-"))
        tree = stack.enter_context(detached_worktree(root))
        commit = _commit(tree, plan)
        package = read_packages(tree)[plan.package.name]
        built = build_distributions(package, commit_time(tree), Path(folder))
        image = build_image(tree, package)
        _publish_locally(root, plan, commit)
        for path in built:
            os.replace(path, dist / path.name)
    return [f"commit {commit[:12]}, tag {plan.tag}", *(f"dist/{path.name}" for path in built), image]


def _commit(tree: Path, plan: Plan) -> str:
    """Writes version, changelog and ranges into a worktree and commits them; gives the commit."""
    packages = read_packages(tree)
    package = packages[plan.package.name]
    day = datetime.now(UTC).date().isoformat()
    set_version(package, plan.version)
    _write(package.changelog, changelog.released(_read(package.changelog), str(plan.version), day))
    for old in plan.dependants:
        dependant = packages[old.name]
        set_range(dependant, package, compatible_range(plan.version))
        entry = f"Works with {package.distribution} {compatible_range(plan.version)}."
        _write(dependant.changelog, changelog.with_entry(_read(dependant.changelog), entry))
    _check(tree, plan)
    git(tree, "commit", "--quiet", "--all", "--message", f"Release {package.distribution} {plan.version}")
    return git(tree, "rev-parse", "HEAD")


def _check(tree: Path, plan: Plan) -> None:
    """What was written is what was meant; a pyproject written in an unusual way could have escaped the edits."""
    packages = read_packages(tree)
    package = packages[plan.package.name]
    if package.version != plan.version:
        raise WorkError(f"{package.version_file.relative_to(tree)} still says {package.version}")
    for other in packages.values():
        refused = [str(found) for found in other.needs(package) if not found.specifier.contains(plan.version)]
        if refused:
            raise WorkError(f"{other.pyproject.relative_to(tree)} still requires {', '.join(refused)}; write it there")


def _publish_locally(root: Path, plan: Plan, commit: str) -> None:
    """Sets the tag and moves main to the commit: both or none."""
    message = f"{plan.package.distribution} {plan.version}\n\n{plan.entries}\n"
    git(root, "tag", "--annotate", "--cleanup=verbatim", "--message", message, plan.tag, commit)
    moved = run_git(root, "merge", "--quiet", "--ff-only", commit)
    if moved.returncode != 0:
        git(root, "tag", "--delete", plan.tag)
        words = " ".join(moved.stderr.split())
        raise WorkError(f"main could not move to the release, so nothing was changed; start again: {words}")


def next_steps(root: Path, plan: Plan) -> list[str]:
    """What is left to a person after a release."""
    steps = [f"nothing was pushed: git push --atomic origin main {plan.tag}"]
    for dependant in plan.dependants:
        bump = "patch" if _tags(root, dependant) else "first"
        steps.append(f"its range moved, so release it too: make release PACKAGE={dependant.name} BUMP={bump}")
    return steps


def _tags(root: Path, package: Package) -> list[str]:
    """The tags of a package's earlier releases."""
    return git(root, "tag", "--list", f"{package.name}-v[0-9]*", "--sort=version:refname").split()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RequestError(f"{path} does not exist; a package has a changelog") from None


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
