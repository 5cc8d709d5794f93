"""`posttrain serve reward`: checks what it is asked to serve, then becomes the BentoML server.

What can be refused is refused here, in one line and before a server starts; loading itself is the service's.
"""

import os
import sys
from typing import Annotated

import typer

from posttrain.core.errors import RequestError
from posttrain.core.serving import check_address, is_loopback, serve_in_foreground

SERVICE = "posttrain.reward_model.service:RewardService"


def serve_reward(
    checkpoint: Annotated[
        str | None,
        typer.Argument(help="Reward model, folder or Hub id; served as the source 'rm'.", show_default=False),
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(
            help="A further source: name=checkpoint or name=path/to/file.py:function. May be repeated.",
            show_default=False,
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; beyond loopback it needs POSTTRAIN_API_KEY.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8002,
    threads: Annotated[int, typer.Option(min=0, help="Threads of a model's forward pass; 0 is one for each core.")] = 0,
) -> None:
    """Serve rewards over HTTP: reward models, verifiers and your own functions.

    The verifiers gsm8k, nano and verifier are always there. POST /score scores, GET /v1/sources lists what there is.
    """
    from posttrain.reward_model.settings import ENVIRONMENT, RewardServiceSettings

    settings = RewardServiceSettings(sources=parse_sources(checkpoint, source or []), threads=threads)
    check_address(host, port)
    check_sources(settings.sources)
    if not is_loopback(host) and not os.environ.get("POSTTRAIN_API_KEY"):
        print("warning: POSTTRAIN_API_KEY is not set, so only requests from this machine are answered", file=sys.stderr)
    served = ", ".join(f"{name} ({spec})" for name, spec in settings.sources.items())
    print(f"reward service on http://{host}:{port}: {served or 'the built-in verifiers'}", file=sys.stderr)
    environment = {ENVIRONMENT: settings.model_dump_json()}
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    serve_in_foreground(SERVICE, host=host, port=port, environment=environment, extra="posttrain-reward-model[service]")


def parse_sources(checkpoint: str | None, named: list[str]) -> dict[str, str]:
    """`rm` and the `name=what` of `--source` as one mapping; RequestError for a malformed or repeated one."""
    sources = {"rm": checkpoint} if checkpoint is not None else {}
    for text in named:
        name, equals, spec = text.partition("=")
        if not equals or not name or not spec:
            raise RequestError(f"--source takes name=checkpoint or name=path/to/file.py:function, not '{text}'")
        if name in sources:
            raise RequestError(f"source '{name}' is given twice; choose another name")
        sources[name] = spec
    return sources


def check_sources(sources: dict[str, str]) -> None:
    """RequestError for the first source that cannot be loaded, told without loading a model."""
    from posttrain.data.tokenizer import load_tokenizer
    from posttrain.reward_model.checkpoint import check_reward_checkpoint, local_folder
    from posttrain.reward_model.sources import resolve

    _, models = resolve(sources)
    for spec in models.values():
        folder = local_folder(spec)
        check_reward_checkpoint(folder)
        load_tokenizer(folder)
