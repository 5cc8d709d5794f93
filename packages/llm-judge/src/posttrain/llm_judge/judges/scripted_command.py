"""`posttrain serve scripted-judge`: the scripted judge as a server in the foreground."""

import importlib.util
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from posttrain.core.errors import RequestError
from posttrain.core.keys import warn_without_key
from posttrain.core.serving import check_address

LengthForm = Literal["tanh", "linear"]


def serve_scripted_judge(
    host: Annotated[
        str, typer.Option(help="Address to listen on; beyond loopback it needs POSTTRAIN_API_KEY.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8005,
    position_bias: Annotated[
        float, typer.Option(help="Log-odds for the answer shown second; negative: for the first.")
    ] = 0.0,
    length_bias: Annotated[float, typer.Option(help="Log-odds for the longer answer.")] = 0.0,
    length_scale: Annotated[float, typer.Option(help="Characters that the length difference is divided by.")] = 1000.0,
    length_form: Annotated[LengthForm, typer.Option(help="How the length bias grows.")] = "tanh",
    noise: Annotated[float, typer.Option(help="Standard deviation of the noise in the log-odds.")] = 0.0,
    draws: Annotated[bool, typer.Option(help="Draw verdicts with their probability.")] = False,
    quality_spread: Annotated[
        float, typer.Option(help="Standard deviation of the answers' quality, which hangs on their texts alone.")
    ] = 1.0,
    quality_pattern: Annotated[
        str | None,
        typer.Option(help="Regular expression: the number in its group is the quality.", show_default=False),
    ] = None,
    quality_table: Annotated[
        Path | None, typer.Option(help="JSON object from answers to their quality.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of quality, noise, garbage and faults.")] = 0,
    latency: Annotated[float, typer.Option(help="Seconds from a request to its response.")] = 0.0,
    garbage: Annotated[float, typer.Option(help="Share of games whose first reply has no verdict.")] = 0.0,
    stubborn: Annotated[float, typer.Option(help="Share of those whose second reply has none either.")] = 0.0,
    rate_limited: Annotated[float, typer.Option(help="Share of requests answered 429 with Retry-After.")] = 0.0,
    retry_after: Annotated[float, typer.Option(help="Seconds in Retry-After.")] = 1.0,
    errors: Annotated[float, typer.Option(help="Share of requests answered 500.")] = 0.0,
    hangs: Annotated[float, typer.Option(help="Share of requests that hang.")] = 0.0,
    hang_seconds: Annotated[float, typer.Option(help="Until a request that hangs is answered 504.")] = 60.0,
    random_faults: Annotated[bool, typer.Option(help="Other faults each time, whatever the seed.")] = False,
    protocol: Annotated[
        list[str] | None,
        typer.Option(help="A template file of your own to understand as well. May be repeated.", show_default=False),
    ] = None,
    log: Annotated[
        Path | None, typer.Option(help="File to add a line to for each request.", show_default=False)
    ] = None,
) -> None:
    """Serve a judge whose inclinations are known, under OpenAI's chat protocol, for tests and demonstrations."""
    if importlib.util.find_spec("uvicorn") is None:
        raise RequestError("serving needs uvicorn, which is not installed; pip install 'posttrain-llm-judge[service]'")
    import uvicorn

    from posttrain.core.asgi import ServiceMiddleware
    from posttrain.core.config import validate
    from posttrain.llm_judge.judges import qualities
    from posttrain.llm_judge.judges.script import Script
    from posttrain.llm_judge.judges.scripted_server import Faults, ScriptedServer
    from posttrain.llm_judge.protocols import NAMES, load_protocol

    script = validate(
        Script,
        {
            "position_bias": position_bias,
            "length_bias": length_bias,
            "length_scale": length_scale,
            "length_form": length_form,
            "noise": noise,
            "draws": draws,
            "garbage_rate": garbage,
            "stubborn": stubborn,
            "seed": seed,
        },
        "scripted judge",
    )
    faults = validate(
        Faults,
        {
            "latency": latency,
            "rate_limited": rate_limited,
            "retry_after": retry_after,
            "errors": errors,
            "hangs": hangs,
            "hang_seconds": hang_seconds,
            "random": random_faults,
        },
        "scripted judge",
    )
    if quality_pattern is not None and quality_table is not None:
        raise RequestError("the quality comes from --quality-pattern or from --quality-table; leave one out")
    if quality_table is not None:
        quality = qualities.table(quality_table)
    elif quality_pattern is not None:
        quality = qualities.pattern(quality_pattern)
    else:
        quality = qualities.hashed(quality_spread, seed)
    protocols = [load_protocol(name) for name in (*NAMES, *(protocol or ()))]
    check_address(host, port)
    warn_without_key(host)
    app = ServiceMiddleware(ScriptedServer(protocols, script, quality, faults, log))
    print(f"scripted judge on http://{host}:{port}/v1", file=sys.stderr, flush=True)
    uvicorn.run(app, host=host, port=port, log_level="warning", access_log=False, timeout_graceful_shutdown=1)
