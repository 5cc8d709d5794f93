"""The policy service over real HTTP beside transformers `generate` in process: the same model, prompts and lengths.

Ids go in and out with log-probabilities, as a trainer asks, once as one request of all prompts and once as that many
concurrent requests of one. `generate` reports no log-probabilities and pays for no HTTP, which favours the peer. Our
engine in this process is measured in the same turns: what the endpoint takes longer is what HTTP and JSON cost. It
ends with one JSON object.

    python -m benchmarks.peers.policy_endpoint [--sequences 64] [--prompt 40] [--new 48] [--threads 2] [--rounds 11]
"""

import argparse
import asyncio
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import torch

from benchmarks.side_by_side import alternate, ratio, report, seconds
from benchmarks.workloads import fastest_threads, generate, on_threads, random_prompts
from posttrain.core.clients import PolicyClient
from posttrain.core.supervised import SupervisedService
from posttrain.data import nano
from posttrain.rollout.load import load_engine
from posttrain.rollout.sampling import Sampling
from posttrain.trainers.models import load_policy

GENERATION_SECONDS = "posttrain_policy_generation_seconds_total"


def main() -> None:
    """Prints tokens a second of all sides, their ratios to `generate`, and the share of HTTP and JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=nano.BASE)
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=40, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=48, help="tokens of a completion")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=11)
    wish = parser.parse_args()

    torch.set_num_threads(wish.threads)
    model, engine = load_policy(wish.checkpoint).eval(), load_engine(wish.checkpoint)
    prompts = random_prompts(engine.vocab_size, wish.sequences, wish.prompt)
    sampling = Sampling(max_tokens=wish.new, ignore_eos=True)

    def peer() -> object:
        return generate(model, prompts, wish.new)

    peer_threads = fastest_threads(peer)
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner() as loop:
        arguments = ["policy", str(wish.checkpoint), "--threads", str(wish.threads)]
        with SupervisedService("policy", arguments, Path(folder) / "log") as service:
            client = PolicyClient(service.url)
            session = loop.run(_session(wish.sequences))
            one, many = "one request", f"{wish.sequences} requests"
            rates = alternate(
                {
                    one: lambda: one_request(client, prompts, wish.new),
                    many: lambda: loop.run(many_requests(session, service.url, prompts, wish.new)),
                    "engine": on_threads(wish.threads, lambda: engine.generate(prompts, sampling)),
                    "generate": on_threads(peer_threads, peer),
                },
                wish.rounds,
                work=wish.sequences * wish.new,
            )
            outside = outside_generation(client, prompts, wish.new, wish.rounds)
            loop.run(session.close())
            client.close()
    report(
        "policy_endpoint",
        rates,
        "generate",
        "tokens/s",
        sequences=wish.sequences,
        prompt=wish.prompt,
        new=wish.new,
        threads=wish.threads,
        peer_threads=peer_threads,
        http_share={name: _share(rates[name], rates["engine"]) for name in (one, many)},
        http_share_by_the_service=round(outside, 4),
    )


def _body(prompts: list[list[int]], new: int) -> dict[str, Any]:
    return {
        "model": "policy",
        "prompt": prompts,
        "max_tokens": new,
        "ignore_eos": True,
        "logprobs": 0,
        "return_token_ids": True,
        "return_tokens": False,
        "seed": 0,
    }


def _tokens(answer: dict[str, Any]) -> int:
    return sum(
        len(choice["token_ids"])
        for choice in answer["choices"]
        if len(choice["logprobs"]["token_logprobs"]) == len(choice["token_ids"])
    )


def one_request(client: PolicyClient, prompts: list[list[int]], new: int) -> None:
    """All prompts in one request, by the client that trainers use."""
    response = client.request(
        "POST",
        "/v1/completions",
        content=orjson.dumps(_body(prompts, new)),
        headers={"Content-Type": "application/json"},
    )
    assert _tokens(client.check(response, "complete")) == len(prompts) * new


async def _session(connections: int) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=connections))


async def many_requests(session: aiohttp.ClientSession, url: str, prompts: list[list[int]], new: int) -> None:
    """Each prompt in a request of its own, all at once, over connections that are kept."""

    headers = {"Content-Type": "application/json"}

    async def ask(prompt: list[int]) -> int:
        body = orjson.dumps(_body([prompt], new))
        async with session.post(f"{url}/v1/completions", data=body, headers=headers) as response:
            return _tokens(orjson.loads(await response.read()))

    assert sum(await asyncio.gather(*map(ask, prompts))) == len(prompts) * new


def outside_generation(client: PolicyClient, prompts: list[list[int]], new: int, requests: int) -> float:
    """The share of requests' time, one after the other, that the service, by its own clock, did not generate in."""

    def ask() -> None:
        for _ in range(requests):
            one_request(client, prompts, new)

    before = _generating(client)
    spent = seconds(ask)
    return 1 - (_generating(client) - before) / spent


def _generating(client: PolicyClient) -> float:
    text = client.request("GET", "/metrics").text
    return sum(float(value) for value in re.findall(rf"^{GENERATION_SECONDS}(?:{{.*}})? (\S+)$", text, re.MULTILINE))


def _share(endpoint: list[float], engine: list[float]) -> list[float]:
    """The share of the endpoint's time that the engine alone does not need: median, and its interval."""
    middle, low, high = ratio(endpoint, engine)
    return [round(1 - middle, 4), round(1 - high, 4), round(1 - low, 4)]


if __name__ == "__main__":
    main()
