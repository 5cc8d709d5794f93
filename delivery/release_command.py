"""`python -m delivery release PACKAGE BUMP`: what make release calls."""

from pathlib import Path
from typing import Annotated

import typer

from delivery.checkout import checkout_root
from delivery.release import next_steps, plan_release, release
from delivery.release_image import build_release_image
from posttrain.core.termination import terminated_by_signal


def release_command(
    package: Annotated[str, typer.Argument(help="The package, by the name of its folder: core, rollout, …")],
    bump: Annotated[str, typer.Argument(help="major, minor or patch; first releases the version as it stands.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
) -> None:
    """Release one package: version, changelog, ranges, wheel, sdist, image, commit and tag. Nothing is pushed."""
    root = checkout_root(Path.cwd())
    plan = plan_release(root, package, bump)
    for line in plan.lines():
        typer.echo(line)
    if dry_run:
        typer.echo(f"\n{plan.entries}\n\nnothing was done")
        return
    with terminated_by_signal():  # as Ctrl-C, so that the worktree goes
        made = release(root, plan, build_release_image)
    for line in [*made, *next_steps(root, plan)]:
        typer.echo(line)
