"""The policy service under BentoML beside the same application on plain uvicorn, and beside nothing but JSON.

One prompt of one token a request, one after another over a kept connection, so that what is measured is the way there
and back. `json` is a bare ASGI application that parses the body and answers what was prepared: no server of Python
that speaks JSON is faster. A rollout's body and answer through `json` give the least that HTTP and JSON can cost of it.
It ends with one JSON object.

    python -m benchmarks.peers.http_overhead [--requests 100] [--rounds 9]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from benchmarks.side_by_side import alternate, report, seconds
from benchmarks.workloads import random_prompts
from posttrain.core.serving import free_port
from posttrain.data import nano

ROLLOUT, NEW = 64, 48


def main() -> None:
    """Prints requests a second of the three and their ratios to plain uvicorn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=100, help="requests a round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--serve", choices=["uvicorn", "json"], help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    wish = parser.parse_args()
    if wish.serve:
        serve(wish.serve, wish.port)
        return

    from posttrain.core.supervised import SupervisedService

    prompts = random_prompts(1024, ROLLOUT, 40)
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        service = SupervisedService("policy", ["policy", str(nano.BASE)], Path(folder) / "log")
        urls = {
            "service": stack.enter_context(service).url,
            "uvicorn": stack.enter_context(_server("uvicorn")),
            "json": stack.enter_context(_server("json")),
        }
        client = stack.enter_context(httpx.Client(trust_env=False, timeout=60))
        sides = {
            name: lambda url=url: [ask(client, url, prompts[:1], 1) for _ in range(wish.requests)]
            for name, url in urls.items()
        }
        rates = alternate(sides, wish.rounds, work=wish.requests)
        exchange = [seconds(lambda: ask(client, urls["json"], prompts, NEW)) for _ in range(wish.rounds)]
    report(
        "http_overhead",
        rates,
        "uvicorn",
        "requests/s",
        requests=wish.requests,
        milliseconds={name: round(1e3 / median(values), 3) for name, values in rates.items()},
        rollout_exchange_milliseconds=round(1e3 * median(exchange), 3),
    )


def ask(client: httpx.Client, url: str, prompts: list[list[int]], new: int) -> Any:
    """One request of ids with log-probabilities, and its answer."""
    body = {"model": "policy", "prompt": prompts, "max_tokens": new, "logprobs": 0, "return_token_ids": True, "seed": 0}
    response = client.post(f"{url}/v1/completions", json=body)
    assert response.status_code == 200, response.text
    return response.json()


@contextmanager
def _server(kind: str) -> Iterator[str]:
    """This script serving `kind` in a process of its own; gives its address."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.peers.http_overhead", "--serve", kind, "--port", str(port)]
    with subprocess.Popen(command) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            while process.poll() is None:
                try:
                    ask(httpx, url, [[10]], 1)  # type: ignore[arg-type]
                    break
                except httpx.TransportError:
                    time.sleep(0.1)
            else:
                raise RuntimeError(f"the server '{kind}' did not start")
            yield url
        finally:
            process.terminate()


def serve(kind: str, port: int) -> None:
    """Serves until it is ended: our application on uvicorn, or canned answers."""
    import uvicorn

    if kind == "json":
        uvicorn.run(canned, port=port, log_level="warning", access_log=False)
        return
    from posttrain.rollout import app as policy_app
    from posttrain.rollout.policy import Policy
    from posttrain.rollout.settings import PolicyServiceSettings

    application = policy_app.create_app()
    policy_app.serve(application, Policy.load(PolicyServiceSettings(checkpoint=str(nano.BASE))))
    uvicorn.run(application, port=port, log_level="warning", access_log=False)


async def canned(scope: Any, receive: Any, send: Any) -> None:
    """Parses the request and answers a list of choices of the size that it asks for."""
    if scope["type"] != "http":
        return
    body, more = b"", True
    while more:
        event = await receive()
        body, more = body + event["body"], event.get("more_body", False)
    asked = json.loads(body)
    new = asked["max_tokens"]
    choice = {
        "text": " answer" * new,
        "token_ids": [512] * new,
        "logprobs": {"token_logprobs": [-1.2345678] * new, "tokens": [" answer"] * new},
        "finish_reason": "length",
    }
    answer = json.dumps({"model": asked["model"], "choices": [choice for _ in asked["prompt"]]}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


if __name__ == "__main__":
    main()
