"""`posttrain chat`: talk to any checkpoint, run or server, at the terminal or on a page."""

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from posttrain.core.errors import RequestError
from posttrain.lab.runs_command import RUNS, Json, RunsFolder

VOTES = Path("runs") / "chat" / "votes.jsonl"


def chat(
    checkpoint_or_url: Annotated[
        str, typer.Argument(help="nano, a folder, a run or its fingerprint, a Hub id, or the URL of a server.")
    ],
    second: Annotated[
        str | None, typer.Argument(help="Another one, asked the same beside it.", show_default=False)
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", help="Which model of a URL; twice for two URLs.", show_default=False),
    ] = None,
    system: Annotated[str | None, typer.Option(help="The system message.", show_default=False)] = None,
    temperature: Annotated[
        float, typer.Option(min=0, max=100, help="0 is greedy, 1 samples from the model as it is.")
    ] = 0.7,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer; none: the context.", show_default=False)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the sampling.", show_default=False)] = None,
    web: Annotated[bool, typer.Option("--web", help="Serve a page instead, with votes between two models.")] = False,
    host: Annotated[str, typer.Option(help="Of --web; beyond loopback it needs POSTTRAIN_API_KEY.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Of --web.")] = 8010,
    votes: Annotated[Path, typer.Option(help="Where --web keeps votes, as preference pairs.")] = VOTES,
    threads: Annotated[int, typer.Option(min=0, help="Threads of a served checkpoint; 0: one a core.")] = 0,
    runs: RunsFolder = RUNS,
    as_json: Json = False,
) -> None:
    """Talk to a checkpoint, a run or a server; to two of them side by side.

    At a terminal /help lists the commands. Lines of a pipe are messages and commands too; the first error ends it.
    """
    from posttrain.lab.chat_conversation import Conversation, Side
    from posttrain.lab.chat_models import ChatModels, distinct, state_folder
    from posttrain.lab.chat_screen import Screen
    from posttrain.lab.chat_stream import ChatSampling
    from posttrain.lab.chat_terminal import TerminalChat, script_lines, typed_lines
    from posttrain.llm_judge.endpoints import is_url

    names = [checkpoint_or_url, *([second] if second is not None else [])]
    chosen = model or []
    servers = sum(is_url(name) for name in names)
    if len(chosen) > servers:
        raise RequestError(f"--model chooses among the models of a URL; it stands {len(chosen)} times for {servers}")
    if web and as_json:
        raise RequestError("--web and --json exclude each other: a page has no last line of output")
    if web:
        from posttrain.core.serving import check_address
        from posttrain.lab.chat_votes import refuse_unwritable

        check_address(host, port)
        refuse_unwritable(votes)
    script = not sys.stdin.isatty()
    with _ended_in_order(), ChatModels(runs, threads or None) as models:
        for name in names:
            models.check(name)
        print("connecting…" if servers == len(names) else "starting…", file=sys.stderr)
        wanted = iter(chosen)
        opened = distinct([models.open(name, next(wanted, None) if is_url(name) else None) for name in names])
        sampling = ChatSampling(temperature, max_tokens, seed)
        if web:
            from posttrain.lab.chat_web import serve_page

            serve_page(opened, votes, host, port)
            return
        conversation = Conversation([Side(each) for each in opened], sampling, system)
        screen = Screen(sys.stderr if as_json else sys.stdout, sys.stderr)
        if not script:
            screen.note(f"{' and '.join(each.label for each in opened)}; /help lists the commands")
        lines = script_lines(sys.stdin) if script else typed_lines(state_folder() / "chat_history")
        TerminalChat(conversation, models.open, screen, script).run(lines)
        if as_json:
            print(json.dumps({"conversations": conversation.rows()}, ensure_ascii=False))


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """SIGTERM, and SIGHUP of a terminal that is closed, end the block as Ctrl-C does: what it started is ended and
    tidied up."""

    def leave(number: int, _: object) -> None:
        sys.exit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
