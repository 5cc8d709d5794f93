"""The `posttrain` command: it shows and runs the subcommands of whatever packages are installed.

A package offers a function by an entry point of group `posttrain.commands`, whose name is the place in the command
tree (`serve.policy` is `posttrain serve policy`) and whose value is a plain function with typer annotations.
"""

import errno
import logging
import os
import sys
import traceback
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import click
import typer
from rich.console import Console

from posttrain.core.errors import PosttrainError, suggest
from posttrain.core.files import NO_ROOM, storage_error
from posttrain.core.process import PARENT_VARIABLE, die_with_parent
from posttrain.core.termination import STATUS, Terminated, terminated_by_signal

GROUP = "posttrain.commands"
USAGE_ERROR: Any = typer.BadParameter.__bases__[0]
"""Newer versions of typer carry a click of their own, whose errors are not click's; this name fits both."""
SECTIONS = {
    "serve": "Run a service in the foreground.",
    "runs": "What lies under runs/, what it cost, what can go.",
    "results": "The committed record of what was measured.",
    "judge": "Pairwise comparison of answers.",
    "data": "Look at data as the trainers see them.",
}


class CommandTree(click.Group):
    """A group whose commands are entry points below `prefix`, loaded when they are shown or called."""

    def __init__(self, prefix: str = "", **options: Any) -> None:
        super().__init__(**options)
        self.prefix = prefix

    @cached_property
    def _entries(self) -> dict[str, EntryPoint]:
        found = {entry.name: entry for entry in entry_points(group=GROUP)}
        return {name[len(self.prefix) :]: entry for name, entry in found.items() if name.startswith(self.prefix)}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({name.partition(".")[0] for name in self._entries})

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if entry := self._entries.get(name):
            return _command(name, entry.load())
        if any(known.startswith(name + ".") for known in self._entries):
            return CommandTree(f"{self.prefix}{name}.", name=name, help=SECTIONS.get(name), no_args_is_help=True)
        return None

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        # A command may have companions: `eval show DIR` beside `eval CHECKPOINT`.
        companion = self._entries.get(".".join(args[:2])) if args[0] in self._entries else None
        if companion and len(args) > 1:
            return args[1], _command(f"{args[0]} {args[1]}", companion.load()), args[2:]
        if not self.get_command(ctx, args[0]):
            ctx.fail(f"unknown command '{args[0]}' {suggest(args[0], self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)


def _command(name: str, function: Any) -> Any:
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command(name=name)(function)
    return typer.main.get_command(app)


def _version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import distributions

        names = {d.metadata["Name"]: d.version for d in distributions() if d.metadata["Name"].startswith("posttrain-")}
        click.echo("\n".join(f"{name} {version}" for name, version in sorted(names.items())))
        ctx.exit()


def root() -> CommandTree:
    """The whole command tree."""
    options = [
        click.Option(["--debug"], is_flag=True, help="Show the traceback of an error."),
        click.Option(["--version"], is_flag=True, is_eager=True, expose_value=False, callback=_version),
    ]
    return CommandTree(
        name="posttrain", help="A laboratory for LLM post-training.", params=options, callback=lambda debug: None
    )


def main(arguments: list[str] | None = None) -> None:
    """Runs the command and exits: 0 done, 1 the work failed, 2 the request was wrong, 130 interrupted, 143 ended by
    SIGTERM."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if parent := os.environ.pop(PARENT_VARIABLE, None):
        die_with_parent(int(parent))
    # One switch for a person who wants to see everything, wherever in the line it stands.
    debug = "--debug" in arguments or bool(os.environ.get("POSTTRAIN_DEBUG"))
    arguments = [argument for argument in arguments if argument != "--debug"]
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, format="%(name)s: %(message)s")
    with terminated_by_signal():
        status = run(arguments, debug)
    sys.exit(status)


def run(arguments: list[str], debug: bool = False) -> int:
    """The exit status of one command line."""
    try:
        result = root().main(arguments, prog_name="posttrain", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except (click.exceptions.Exit, typer.Exit) as error:
        return error.exit_code
    except (click.ClickException, USAGE_ERROR) as error:
        _say(error.format_message())
        return 2
    except (KeyboardInterrupt, click.Abort, typer.Abort) as error:
        terminated = _is_terminated(error)
        _say(f"{'ended by SIGTERM' if terminated else 'interrupted'}; start the same command again to resume")
        return STATUS if terminated else 130
    except PosttrainError as error:
        if debug:
            traceback.print_exc()
        _say(str(error))
        return STATUS if _is_terminated(error) else error.exit_status
    except OSError as error:
        # Of a library's own files, such as its cache in the home folder.
        if error.errno not in (*NO_ROOM, errno.EROFS) or debug:
            raise
        _say(str(storage_error(error, Path(str(error.filename or "a file of a library's")))))
        return 1


def _is_terminated(error: BaseException) -> bool:
    """Whether SIGTERM is behind it: click turns what ends a command into an error of its own."""
    return isinstance(error, Terminated) or isinstance(error.__cause__, Terminated)


def _say(message: str) -> None:
    Console(stderr=True).print(f"[bold red]error[/]: {_escape(message)}", soft_wrap=True, highlight=False)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
