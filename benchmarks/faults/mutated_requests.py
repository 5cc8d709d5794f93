"""Requests bent at random, by the ten thousand: no 5xx, no crash, and the service answers as before at the end.

Takes good requests of a service and bends them: values of other types, sizes and depths, keys gone, new or doubled,
control tokens, paths, lone surrogates, numbers beyond every range; then the bytes of the body, the headers, the method
and the path. Every answer must be below 500 or a 503 with Retry-After, carry the contract number, and be JSON in
OpenAI's form where it refuses. In the end the first good request must have the answer that it had in the beginning.

The service is one at `--url`, or one of `--service` in this process, with the nano base. It ends with one JSON object,
and exits 1 when anything was otherwise; the first such request is in it, to be sent again.

    python -m benchmarks.faults.mutated_requests --service reward [--url URL] [--count 100000] [--seed 0]
"""

import argparse
import asyncio
import contextlib
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from benchmarks.machine import machine
from posttrain.core.asgi import ResponseTimeout, ServiceMiddleware
from posttrain.core.keys import SERVICE_KEY, read_key
from posttrain.core.wire import CONTRACT_HEADER

LIMIT_SECONDS = 60.0


class Call(NamedTuple):
    """One request, as it goes over the wire."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


ITEM = {"prompt": "2+2?", "completion": "#### 4", "finish_reason": "stop", "reference": {"gsm8k": "4"}}
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 3 + 4?"}]
SAMPLING = {"max_tokens": 4, "temperature": 1.0, "top_p": 0.9, "n": 2, "seed": 7, "stop": ["."], "logprobs": 1}
GOOD: dict[str, list[tuple[str, str, Any]]] = {
    "reward": [
        ("POST", "/score", {"sources": ["rm", "gsm8k"], "items": [ITEM]}),
        ("POST", "/score", {"sources": ["rm"], "items": [{**ITEM, "prompt": CHAT, "finish_reason": "length"}] * 3}),
        ("POST", "/score", {"sources": ["nano"], "items": [{**ITEM, "reference": {"answer": "4"}}]}),
        (
            "POST",
            "/score",
            {
                "sources": ["verifier"],
                "items": [{**ITEM, "reference": {"instructions": [{"id": "end:word", "kwargs": {"word": "river"}}]}}],
            },
        ),
        ("GET", "/v1/sources", None),
    ],
    "policy": [
        ("POST", "/v1/completions", {"model": "policy", "prompt": [[5, 6, 7]], "max_tokens": 4, "temperature": 0}),
        ("POST", "/v1/completions", {"model": "policy", "prompt": "Tom has 3 apples.", **SAMPLING}),
        ("POST", "/v1/completions", {"model": "policy@0", "prompt": ["a", "b"], "echo": True, **SAMPLING}),
        ("POST", "/v1/completions", {"model": "policy", "prompt": [5, 6], "stream": True, **SAMPLING}),
        ("POST", "/v1/chat/completions", {"model": "policy", "messages": CHAT, "max_tokens": 4, "temperature": 0}),
        ("POST", "/v1/chat/completions", {"model": "policy", "messages": CHAT, "max_tokens": 4, "stream": True}),
        ("PUT", "/v1/models/policy@1", {"no": "safetensors"}),
        ("GET", "/v1/models", None),
    ],
}
ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3.5, -0.0, 1e308, -1e308, 2**31, 2**63, -(2**63), 10**40, float("nan"),
    float("inf"), "", " ", "a", "\0", "\ud800", "\ufdd0", "<|im_end|>", "<|im_start|>assistant\n", "caf\u0065\u0301",
    "\U0001f9ee" * 10, "x" * 5000, "1" * 400, "../../etc/passwd", "file:///etc/passwd", "policy@99", "policy@-1",
    "rm.mean", "rewards.py:f",
    [], {}, [[]], [None], {"": None}, {"$ref": "#"}, [0] * 100, ["a"] * 100, [{}] * 20, [[1, -1]], [[10**9]],
)  # fmt: skip
HEADERS: tuple[tuple[str, str], ...] = (
    ("Content-Type", "text/plain"), ("Content-Type", "application/xml"),
    ("Content-Type", "application/json; charset=x"),
    ("Content-Encoding", "gzip"), ("Accept", "text/html"), ("X-Content-SHA256", "0" * 64), ("X-Content-SHA256", "é"),
    ("Authorization", "Bearer x"), ("Authorization", "Basic !"), ("Expect", "nothing"), ("X-Posttrain-Timeout", "-1"),
    ("Cookie", "a=b" * 500), ("Range", "bytes=0-1"), ("If-Match", "*"), ("Origin", "http://example.com"),
)  # fmt: skip
PATHS = (
    "/", "//", "/score/", "/v1", "/v1/", "/v1/models/", "/v1/models/policy@x", "/v1/models/%00", "/%ff%fe", "/docs",
    "/..%2f..%2fetc/passwd", "/openapi.json", "/score?x=1", "/v1/completions?stream=true", "/" + "a" * 3000,
)  # fmt: skip
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD")


def call(method: str, path: str, value: Any) -> Call:
    """A request whose body is `value` as JSON, or empty for None."""
    body = b"" if value is None else json.dumps(value).encode()
    return Call(method, path, {"Content-Type": "application/json"}, body)


def bent(good: list[tuple[str, str, Any]], rng: random.Random) -> Call:
    """One of the good requests with one to four things wrong; most often in the values of its body."""
    method, path, value = rng.choice(good)
    value = deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        value = bent_value(value, rng)
    request = call(method, path, value)
    kind = rng.random()
    if kind < 0.15:
        return request._replace(body=bent_bytes(request.body, rng))
    if kind < 0.20:
        return request._replace(headers=request.headers | dict([rng.choice(HEADERS)]))
    if kind < 0.23:
        return request._replace(path=rng.choice(PATHS))
    if kind < 0.26:
        return request._replace(method=rng.choice(METHODS))
    return request


def bent_value(value: Any, rng: random.Random) -> Any:
    """The value with one place in it replaced, taken out, added to or wrapped."""
    places = list(_places(value))
    if not places or rng.random() < 0.05:
        return deepcopy(rng.choice(ODD))
    holder, key = rng.choice(places)
    match rng.randrange(6):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[rng.choice(("extra", "", "__proto__", "role", "content", "prompt", "n", str(key) + " "))] = 1
        case 1:
            holder.extend([holder[key]] * rng.choice((1, 10, 200)))
        case 2:
            holder[key] = [holder[key]]
        case 3:
            for _ in range(rng.choice((1, 10, 120))):
                holder[key] = {"a": holder[key]} if rng.random() < 0.5 else [holder[key]]
        case _:
            holder[key] = deepcopy(rng.choice(ODD))
    return value


def bent_bytes(body: bytes, rng: random.Random) -> bytes:
    """The body cut short, doubled, with bytes changed, or something else altogether."""
    match rng.randrange(5):
        case 0:
            return body[: rng.randrange(len(body) + 1)]
        case 1:
            return body * 2
        case 2:
            return rng.randbytes(rng.choice((0, 1, 100, 10_000)))
        case 3:
            return rng.choice((b"[" * 50_000, b'{"a":' * 50_000, b"9" * 100_000, b'"', b"\xef\xbb\xbf" + body, b"null"))
        case _:
            changed = bytearray(body or b"x")
            for _ in range(rng.choice((1, 3, 10))):
                changed[rng.randrange(len(changed))] = rng.randrange(256)
            return bytes(changed)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield value, key
        yield from _places(inner)


def wrong(request: Call, response: httpx.Response) -> str:
    """What an answer should not have been, or nothing."""
    status = response.status_code
    if status >= 500 and not (status == 503 and "retry-after" in response.headers):
        return f"status {status}"
    if CONTRACT_HEADER not in response.headers:
        return "no contract number"
    if status >= 400 and request.method != "HEAD":
        try:
            error = response.json()["error"]
            assert isinstance(error["message"], str)
        except (ValueError, KeyError, TypeError, AssertionError):
            return f"status {status} not in OpenAI's form"
    return ""


@contextlib.asynccontextmanager
async def client_of(service: str, url: str | None) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the service at `url`, or of one in this process with the nano lab's models."""
    if url:
        key = read_key(SERVICE_KEY)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx.Limits(max_keepalive_connections=0)
        async with httpx.AsyncClient(
            base_url=url, headers=headers, timeout=LIMIT_SECONDS, limits=limits, trust_env=False
        ) as client:
            yield client
        return
    with tempfile.TemporaryDirectory() as folder, in_process(service, Path(folder)) as app:
        manners = ServiceMiddleware(ResponseTimeout(app, LIMIT_SECONDS), api_key="")
        transport = httpx.ASGITransport(manners, raise_app_exceptions=False, client=("127.0.0.1", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=None) as client:
            yield client


@contextlib.contextmanager
def in_process(service: str, folder: Path) -> Iterator[Any]:
    """The application of a service, loaded."""
    if service == "reward":
        from benchmarks.workloads import random_reward_model
        from posttrain.reward_model import app as reward
        from posttrain.reward_model.scoring import Scoring
        from posttrain.reward_model.settings import RewardServiceSettings
        from posttrain.reward_model.sources import load_sources

        settings = RewardServiceSettings(sources={"rm": str(random_reward_model(folder / "rm"))})
        application = reward.create_app()
        application.state.scoring = Scoring(load_sources(settings), settings)
        with contextlib.closing(application.state.scoring):
            yield application
    else:
        from posttrain.data import nano
        from posttrain.rollout import app as policy
        from posttrain.rollout.policy import Policy
        from posttrain.rollout.settings import PolicyServiceSettings

        application = policy.create_app()
        with contextlib.closing(Policy.load(PolicyServiceSettings(checkpoint=str(nano.BASE)))) as loaded:
            policy.serve(application, loaded)
            yield application


async def fuzz(service: str, url: str | None, count: int, seed: int, at_once: int) -> dict[str, Any]:
    """Sends `count` bent requests, `at_once` at a time; the figures."""
    rng, statuses, failures = random.Random(seed), Counter[int](), list[dict[str, str]]()
    started, left = time.monotonic(), count

    async with client_of(service, url) as client:

        async def send(request: Call) -> httpx.Response:
            return await client.request(request.method, request.path, headers=request.headers, content=request.body)

        async def work() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                request = bent(GOOD[service], rng)
                try:
                    response = await asyncio.wait_for(send(request), LIMIT_SECONDS)
                except (ValueError, httpx.InvalidURL, httpx.LocalProtocolError):
                    continue  # what no client can say
                except (TimeoutError, httpx.HTTPError) as error:
                    failures.append({"why": f"{type(error).__name__}: {error}", "request": repr(request)[:2000]})
                    continue
                statuses[response.status_code] += 1
                if why := wrong(request, response):
                    failures.append({"why": why, "request": repr(request)[:2000], "answer": response.text[:300]})

        probe = call(*GOOD[service][0])
        before = await send(probe)
        if before.status_code != 200:
            raise SystemExit(f"the service does not answer a good request: {before.status_code} {before.text[:300]}")
        await asyncio.gather(*(work() for _ in range(at_once)))
        after = await send(probe)
    if _answer(after) != _answer(before):
        failures.append({"why": "a good request is answered otherwise than before", "answer": after.text[:300]})
    return {
        "fault": "mutated requests",
        "service": service,
        "in_process": url is None,
        "requests": sum(statuses.values()),
        "statuses": dict(sorted(statuses.items())),
        "failures": len(failures),
        "first_failure": failures[0] if failures else None,
        "seconds": round(time.monotonic() - started, 1),
        "machine": machine(),
    }


def _answer(response: httpx.Response) -> Any:
    """What must not change: not ids and times, but scores, texts and status."""
    answer = response.json()
    texts = [choice["text"] for choice in answer.get("choices", [])]
    scores = [{name: round(score, 4) for name, score in one.items()} for one in answer.get("scores", [])]
    return response.status_code, texts, scores


def main() -> None:
    """Prints the figures; exits 1 when an answer was not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--service", choices=sorted(GOOD), required=True)
    parser.add_argument("--url", help="a running service; without it one in this process")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--at-once", type=int, default=16)
    wish = parser.parse_args()
    result = asyncio.run(fuzz(wish.service, wish.url, wish.count, wish.seed, wish.at_once))
    print(json.dumps(result))
    sys.exit(bool(result["failures"]))


if __name__ == "__main__":
    main()
