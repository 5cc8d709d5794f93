"""Runs a command line of these benchmarks: an error that has a sentence is that sentence, without a traceback."""

import sys

import typer

from posttrain.core.errors import PosttrainError


def run_command(app: typer.Typer) -> None:
    """Runs the command; a PosttrainError is one line and its exit status."""
    try:
        app()
    except PosttrainError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
