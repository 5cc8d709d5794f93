"""Many clients at a policy service, some of whom leave: nothing lost, nothing mixed up, memory flat.

Each client asks, one request after the other, for one of a pool of wishes of random lengths, greedy or sampled, alone
or several choices, at once or streamed; some break off, some allow too little time. Weights are pushed meanwhile: the
same under new versions, so that every answer can be checked. Every completed one is: with the native engine its ids,
text and log-probabilities are those of the same engine in this process, exactly; with the plain one, whose last digits
depend on the batch, the log-probabilities are those of a forward pass over the ids. The only refusals are 503 and 429
with a Retry-After, and 504 where too little time was allowed. In the end nothing runs or waits, and the service's
memory is what it was after its warm-up.

It serves the nano base itself, ends with one JSON object, and exits 1 when anything was otherwise.

    python -m benchmarks.faults.policy_load [--clients 256] [--seconds 60] [--engine native] [--seed 0]
"""

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx
import numpy as np
import orjson
import psutil
import torch

from benchmarks.machine import machine
from posttrain.core.clients import PolicyClient
from posttrain.core.serving import free_port
from posttrain.data import nano
from posttrain.data.chat import end_token_id, load_tokenizer
from posttrain.rollout.engine import Engine
from posttrain.rollout.load import load_engine
from posttrain.rollout.sample import Sample
from posttrain.rollout.sampling import Sampling
from posttrain.rollout.text import decode

WISHES = 200
TOLERANCE = 1e-4
"""Of log-probabilities, where the engine's last digits depend on the batch."""
GROWTH = 0.10
"""Share by which memory may end above what it was after the warm-up, and what allocators may always keep: 24 MiB."""
SLACK_MIB = 24.0
WARM_UP = 0.3
"""Share of the time after which memory should have its size."""


class Wish:
    """A request and the samples that it must be answered with."""

    def __init__(self, rng: random.Random, engine: Engine) -> None:
        prompts = [[rng.randrange(3, engine.vocab_size) for _ in range(rng.randrange(1, 60))] for _ in range(2)]
        self.prompts, self.n = prompts[: rng.choice((1, 1, 2))], rng.choice((1, 1, 2, 4))
        self.sampling = Sampling(
            max_tokens=rng.choice((1, 2, 7, 16, 40, 64)),
            temperature=rng.choice((0.0, 1.0, 1.0, 0.7)),
            top_p=rng.choice((1.0, 1.0, 0.9)),
            ignore_eos=rng.random() < 0.5,
        )
        self.seed = rng.randrange(2**40)
        self.expected = [s for group in engine.generate(self.prompts, self.sampling, self.n, self.seed) for s in group]
        wish = self.sampling.model_dump(include={"max_tokens", "temperature", "top_p", "ignore_eos"})
        self.body = {"prompt": self.prompts, "n": self.n, "seed": self.seed, "logprobs": 0, "return_token_ids": True}
        self.body |= wish | {"model": "policy"}


class Judge:
    """Says what is wrong with an answer, if anything is."""

    def __init__(self, engine: Engine, tokenizer: Any, exact: bool) -> None:
        self.engine, self.tokenizer, self.exact = engine, tokenizer, exact

    def of(self, wish: Wish, choices: dict[int, dict[str, Any]]) -> str:
        """`choices` by index, each with token_ids, logprobs, text and finish_reason."""
        if sorted(choices) != list(range(len(wish.expected))):
            return f"choices {sorted(choices)} of {len(wish.expected)}"
        for index, sample in enumerate(wish.expected):
            if why := self._choice(sample, choices[index]):
                return f"choice {index}: {why}"
        return ""

    def _choice(self, sample: Sample, choice: dict[str, Any]) -> str:
        ids, logprobs = choice["token_ids"], np.array(choice["logprobs"], np.float32)
        if choice["text"] != decode(self.tokenizer, ids):
            return "the text is not that of the ids"
        if len(ids) != len(logprobs) or not 1 <= len(ids) <= sample.sampling.max_tokens:
            return f"{len(ids)} ids, {len(logprobs)} log-probabilities, at most {sample.sampling.max_tokens} asked for"
        if self.exact:
            if ids != sample.token_ids or choice["finish_reason"] != sample.finish_reason:
                return "other ids or another end than the reference"
            same = np.array_equal(logprobs, np.array(sample.logprobs, np.float32))
            return "" if same else "other log-probabilities than the reference"
        with torch.inference_mode():
            logits = self.engine.model(torch.tensor([[*sample.prompt, *ids]])).logits[0].float()
        expected = (logits / (sample.sampling.temperature or 1.0)).log_softmax(-1)[len(sample.prompt) - 1 : -1]
        worst = float((expected.gather(1, torch.tensor(ids)[:, None])[:, 0] - torch.from_numpy(logprobs)).abs().max())
        return "" if worst < TOLERANCE else f"log-probabilities are {worst:.1e} off"


class Load:
    """The clients, and what has come of their requests."""

    def __init__(self, url: str, wishes: list[Wish], judge: Judge, seconds: float, seed: int) -> None:
        self.url, self.wishes, self.judge, self.seed = url, wishes, judge, seed
        self.ends = time.monotonic() + seconds
        self.outcomes: Counter[str] = Counter()
        self.failures: list[str] = []
        self.tokens = 0
        self.versions: set[str] = set()

    async def client(self, number: int, http: httpx.AsyncClient) -> None:
        """One client until the time is over."""
        rng = random.Random(f"{self.seed}-{number}")
        while time.monotonic() < self.ends:
            wish, kind = rng.choice(self.wishes), rng.random()
            try:
                if kind < 0.60:
                    outcome = await self._ask(http, wish)
                elif kind < 0.80:
                    outcome = await self._stream(http, wish, None)
                elif kind < 0.87:
                    outcome = await self._stream(http, wish, rng.randrange(6))
                elif kind < 0.95:
                    outcome = await self._leave(http, wish, rng.random() * 0.3)
                else:
                    outcome = await self._ask(http, wish, rng.random() * 0.2)
            except httpx.HTTPError as error:
                outcome = self._failed(f"{type(error).__name__}: {error}")
            self.outcomes[outcome] += 1

    async def _ask(self, http: httpx.AsyncClient, wish: Wish, allowed: float | None = None) -> str:
        headers = {} if allowed is None else {"X-Posttrain-Timeout": f"{allowed:.4f}"}
        response = await http.post("/v1/completions", json=wish.body, headers=headers)
        if response.status_code != 200:
            return await self._refused(response, allowed is not None)
        answer = orjson.loads(response.content)
        choices = {c["index"]: {**c, "logprobs": c["logprobs"]["token_logprobs"]} for c in answer["choices"]}
        return self._judged(wish, choices, answer["model"])

    async def _stream(self, http: httpx.AsyncClient, wish: Wish, leave_after: int | None) -> str:
        choices: dict[int, dict[str, Any]] = {}
        model, done, events = "", False, 0
        async with http.stream("POST", "/v1/completions", json={**wish.body, "stream": True}) as response:
            if response.status_code != 200:
                await response.aread()
                return await self._refused(response, False)
            async for line in response.aiter_lines():
                if not line:
                    continue
                done = line == "data: [DONE]"
                if done or (leave_after is not None and events >= leave_after):
                    break
                event = orjson.loads(line.removeprefix("data: "))
                if "error" in event:
                    return self._failed(f"an event says {event['error']}")
                events, model, part = events + 1, event["model"], event["choices"][0]
                choice = choices.setdefault(part["index"], {"token_ids": [], "logprobs": [], "text": ""})
                choice["text"] += part["text"]
                choice["token_ids"] += part.get("token_ids", [])
                choice["logprobs"] += (part["logprobs"] or {}).get("token_logprobs", [])
                choice["finish_reason"] = part["finish_reason"]
        if leave_after is not None and not done:
            return "left a stream"
        return self._judged(wish, choices, model) if done else self._failed("a stream ended without [DONE]")

    async def _leave(self, http: httpx.AsyncClient, wish: Wish, after: float) -> str:
        try:
            async with asyncio.timeout(after):
                return await self._ask(http, wish)
        except TimeoutError:
            return "left"

    async def _refused(self, response: httpx.Response, short: bool) -> str:
        error = response.json()["error"]
        if response.status_code == 504 and error["code"] == "deadline_exceeded" and short:
            return "deadline"
        if response.status_code in (429, 503) and int(response.headers["retry-after"]) >= 1:
            # Less than it asks for, or a short run would do nothing else.
            await asyncio.sleep(0.2)
            return "refused"
        return self._failed(f"status {response.status_code}: {error}")

    def _judged(self, wish: Wish, choices: dict[int, dict[str, Any]], model: str) -> str:
        self.versions.add(model)
        if why := self.judge.of(wish, choices):
            return self._failed(f"{why} ({model}, {wish.body})")
        self.tokens += sum(len(choice["token_ids"]) for choice in choices.values())
        return "completed"

    def _failed(self, why: str) -> str:
        self.failures.append(why[:1000])
        return "failed"


@contextmanager
def service(engine: str, max_waiting: int) -> Iterator[tuple[str, psutil.Process]]:
    """The nano base behind `posttrain serve policy`, and its process."""
    port = free_port()
    with tempfile.TemporaryFile() as log:
        command = [sys.executable, "-m", "posttrain.core", "serve", "policy", str(nano.BASE), "--port", str(port)]
        command += ["--engine", engine, "--set", f"max_waiting={max_waiting}"]
        if threads := os.environ.get("OMP_NUM_THREADS"):
            command += ["--threads", threads]
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 120
            while time.monotonic() < deadline and process.poll() is None:
                with suppress(httpx.TransportError):
                    if httpx.get(f"{url}/readyz", timeout=2, trust_env=False).status_code == 200:
                        break
                time.sleep(0.1)
            else:
                log.seek(0)
                raise RuntimeError(f"the service did not start: {log.read().decode()[-2000:]}")
            yield url, psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(30)


def memory_mib(process: psutil.Process) -> float:
    """What the process and those below it hold for themselves, in MiB."""
    family = [process, *process.children(recursive=True)]
    return sum(member.memory_full_info().uss for member in family) / 2**20


def tenths(memory: list[float]) -> list[float]:
    """The median of each tenth of the time."""
    return [round(float(np.median(part)), 1) for part in np.array_split(memory, 10) if len(part)]


def idle(url: str) -> tuple[bool, dict[str, float]]:
    """Whether nothing runs or waits after at most 20 seconds, and the service's figures then."""
    deadline = time.monotonic() + 20
    while True:
        lines = httpx.get(f"{url}/metrics", timeout=10, trust_env=False).text.splitlines()
        figures = {n: float(v) for n, _, v in (line.rpartition(" ") for line in lines if line.startswith("posttrain_"))}
        busy = figures["posttrain_policy_running_sequences"] + figures["posttrain_policy_waiting_sequences"]
        if not busy or time.monotonic() > deadline:
            return not busy, figures
        time.sleep(0.2)


async def run(load: Load, clients: int, process: psutil.Process, push_seconds: float) -> list[float]:
    """All clients until their time is over; the service's memory, in MiB, four times a second."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    memory: list[float] = []
    weights = nano.BASE / "model.safetensors"

    async def watch() -> None:
        while True:
            memory.append(memory_mib(process))
            await asyncio.sleep(0.25)

    async def push() -> None:
        pusher, version = PolicyClient(load.url), 0
        while True:
            await asyncio.sleep(push_seconds)
            version += 1
            await asyncio.to_thread(pusher.push, version, weights)

    async with httpx.AsyncClient(base_url=load.url, timeout=120, limits=limits, trust_env=False) as http:
        aside = [asyncio.create_task(watch()), asyncio.create_task(push())]
        await asyncio.gather(*(load.client(number, http) for number in range(clients)))
        for task in aside:
            if task.done():
                task.result()  # a failed push is a failure
            task.cancel()
    return memory


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--clients", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--engine", choices=("native", "torch"), default="native")
    parser.add_argument("--max-waiting", type=int, default=256)
    parser.add_argument("--push-seconds", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()

    tokenizer = load_tokenizer(nano.BASE)
    engine = load_engine(nano.BASE, {end_token_id(tokenizer)}, kind=asked.engine)
    rng = random.Random(asked.seed)
    wishes = [Wish(rng, engine) for _ in range(WISHES)]
    with service(asked.engine, asked.max_waiting) as (url, process):
        load = Load(url, wishes, Judge(engine, tokenizer, exact=asked.engine == "native"), asked.seconds, asked.seed)
        memory = asyncio.run(run(load, asked.clients, process, asked.push_seconds))
        quiet, figures = idle(url)
        if not quiet:
            load.failures.append("sequences still run or wait 20 s after the last client left")
        warm = float(np.median(memory[int(len(memory) * WARM_UP) :][: max(4, len(memory) // 10)]))
        end = memory_mib(process)
        if end > warm * (1 + GROWTH) + SLACK_MIB:
            load.failures.append(f"memory grew from {warm:.0f} to {end:.0f} MiB")
    print(
        json.dumps(
            {
                "fault": "policy load",
                "engine": asked.engine,
                "clients": asked.clients,
                "seconds": asked.seconds,
                "requests": sum(load.outcomes.values()),
                "outcomes": dict(sorted(load.outcomes.items())),
                "checked_tokens": load.tokens,
                "versions": len(load.versions),
                "generated_tokens": int(figures["posttrain_policy_generated_tokens_total"]),
                "memory_mib": {"warm": round(warm, 1), "end": round(end, 1), "by_tenth": tenths(memory)},
                "failures": len(load.failures),
                "first_failures": load.failures[:3],
                "machine": machine(),
            }
        )
    )
    return 1 if load.failures or not load.outcomes["completed"] else 0


if __name__ == "__main__":
    sys.exit(main())
