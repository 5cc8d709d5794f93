"""`python -m delivery …`: what make images, release, sbom and audit call. Each command is in its own module."""

import typer

from benchmarks.commands import run_command
from delivery.audit import audit
from delivery.bentos import bentos
from delivery.images import images
from delivery.pipeline import pipeline
from delivery.release_command import release_command
from delivery.sbom_command import licences, sbom
from delivery.sizes import sizes

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
app.command()(images)
app.command()(sizes)
app.command()(pipeline)
app.command("release")(release_command)
app.command()(sbom)
app.command()(licences)
app.command()(audit)
app.command()(bentos)

if __name__ == "__main__":
    run_command(app)
