"""`posttrain serve reward`: checks what it is asked to serve, then becomes the BentoML server.

What can be refused is refused here, in one line and before a server starts; loading itself is the service's.
"""

import re
import sys
from typing import Annotated

import typer

from posttrain.core.errors import RequestError
from posttrain.core.keys import warn_without_key
from posttrain.core.serving import check_address, serve_in_foreground

SERVICE = "posttrain.reward_model.service:RewardService"
_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)=(.+)")


def serve_reward(
    checkpoint: Annotated[
        list[str] | None,
        typer.Argument(
            help="Reward model, folder or Hub id, as the source 'rm'; or several as NAME=CHECKPOINT.",
            show_default=False,
        ),
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(
            help="A further source: name=checkpoint or name=path/to/file.py:function. May be repeated.",
            show_default=False,
        ),
    ] = None,
    ensemble: Annotated[
        list[str] | None,
        typer.Option(
            help="name=a,b,…: offers name.mean, name.min and name.std of these reward models. May be repeated.",
            show_default=False,
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; beyond loopback it needs POSTTRAIN_API_KEY.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8002,
    threads: Annotated[int, typer.Option(min=0, help="Cores that a model computes on; 0 is all.")] = 0,
    function_seconds: Annotated[
        float, typer.Option(min=0.001, help="Seconds that a function of your own may take for an item.")
    ] = 5.0,
) -> None:
    """Serve rewards over HTTP: reward models, verifiers and your own functions.

    The verifiers gsm8k, math, nano and verifier are always there. POST /score scores, GET /v1/sources lists what there
    is.
    """
    from posttrain.reward_model.settings import ENVIRONMENT, RewardServiceSettings

    settings = RewardServiceSettings(
        sources=parse_sources(checkpoint or [], source or []),
        ensembles=parse_ensembles(ensemble or []),
        threads=threads,
        function_seconds=function_seconds,
    )
    check_address(host, port)
    check_sources(settings.sources, settings.ensembles)
    warn_without_key(host)
    served = ", ".join(f"{name} ({spec})" for name, spec in settings.sources.items())
    print(f"reward service on http://{host}:{port}: {served or 'the built-in verifiers'}", file=sys.stderr)
    environment = {ENVIRONMENT: settings.model_dump_json()}
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    serve_in_foreground(SERVICE, host=host, port=port, environment=environment, extra="posttrain-reward-model[service]")


def parse_sources(checkpoints: list[str], named: list[str]) -> dict[str, str]:
    """The checkpoints and the `name=what` of `--source` as one mapping; RequestError for a malformed or repeated one.

    A checkpoint is `name=checkpoint`, or without a name the source `rm`.
    """
    pairs = [match.groups() if (match := _NAMED.fullmatch(text)) else ("rm", text) for text in checkpoints]
    for text in named:
        name, equals, spec = text.partition("=")
        if not equals or not name or not spec:
            raise RequestError(f"--source takes name=checkpoint or name=path/to/file.py:function, not '{text}'")
        pairs.append((name, spec))
    sources: dict[str, str] = {}
    for name, spec in pairs:
        if name in sources:
            raise RequestError(f"source '{name}' is given twice; choose another name (name=checkpoint)")
        sources[name] = spec
    return sources


def parse_ensembles(named: list[str]) -> dict[str, list[str]]:
    """The `name=a,b` of `--ensemble`; RequestError for a malformed or repeated one."""
    ensembles: dict[str, list[str]] = {}
    for text in named:
        name, equals, members = text.partition("=")
        if not equals or not name or not all(members.split(",")):
            raise RequestError(f"--ensemble takes name=model,model,…, not '{text}'")
        if name in ensembles:
            raise RequestError(f"ensemble '{name}' is given twice; choose another name")
        ensembles[name] = members.split(",")
    return ensembles


def check_sources(sources: dict[str, str], ensembles: dict[str, list[str]]) -> None:
    """RequestError for the first source or ensemble that cannot be loaded, told without loading a model."""
    from posttrain.data.tokenizer import load_tokenizer
    from posttrain.reward_model.checkpoint import check_reward_checkpoint, local_folder
    from posttrain.reward_model.ensembles import check_ensembles
    from posttrain.reward_model.functions.loading import load_function
    from posttrain.reward_model.functions.spec import UserFunction
    from posttrain.reward_model.sources import resolve

    found, models = resolve(sources)
    check_ensembles(ensembles, models, {**found, **models})
    for what in found.values():
        if isinstance(what, UserFunction):
            load_function(what)
    for spec in models.values():
        folder = local_folder(spec)
        check_reward_checkpoint(folder)
        load_tokenizer(folder)
