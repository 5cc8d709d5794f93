"""Thin, synchronous HTTP clients of the policy, the reward and the judge service, contract 1.

They retry what can heal by itself (no connection, a broken one, 503, 429) with exponential back-off, and raise at
once what cannot. A client that meets another contract number says so and stops. What is different with a stock vLLM
server, which sends none, is in `stock_vllm.py`.
"""

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx
import orjson
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_random_exponential

from posttrain.core.errors import ContractError, RequestError, WorkError
from posttrain.core.hashing import digest_file, digest_weights
from posttrain.core.keys import SERVICE_KEY, read_key
from posttrain.core.serving import is_loopback
from posttrain.core.wire import (
    CONTRACT,
    CONTRACT_HEADER,
    DEADLINE_EXCEEDED,
    DIGEST_HEADER,
    FinishReason,
    ScoreError,
    ScoreItem,
)

RETRIED_STATUS = {429, 502, 503, 504}
MOST_RETRY_AFTER = 60.0
"""Seconds; a Retry-After of more is not believed."""
UNKNOWN_MODEL = ("model_not_found", 404)
"""How a policy service and a stock vLLM server say that they have no such model."""


class ServiceUnavailable(WorkError):
    """No usable answer within the patience of the client."""


class StaleVersion(WorkError):
    """The policy service does not hold the version asked for; push it and ask again."""


class _Transient(Exception):
    """Worth another attempt, after `retry_after` seconds at the earliest."""

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


_BACK_OFF = wait_random_exponential(multiplier=0.2, max=5)


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    return max(_BACK_OFF(state), error.retry_after if isinstance(error, _Transient) else 0.0)


@dataclass(frozen=True)
class Completion:
    """One sampled continuation. `logprobs[t]` belongs to `token_ids[t]`, in nats, before any truncation."""

    token_ids: list[int]
    logprobs: list[float]
    text: str
    finish_reason: FinishReason


@dataclass(frozen=True)
class ScoreResult:
    """Scores in the order of the items, the digest or version of each source, and the items that a source failed on.

    Those are in `errors`, and have in `scores` what `RewardClient.score` was told to give them.
    """

    scores: list[dict[str, float]]
    sources: dict[str, str]
    errors: list[ScoreError] = field(default_factory=list)


class _Patience:
    """Ends retrying after so many seconds of waiting: between attempts, and in attempts that were never answered.

    Time in which the service worked on an attempt before it broke is not held against it: a generation of ten
    minutes that is killed at its end is asked for again like one of a second.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._unanswered = 0.0
        self._started = 0.0

    def before(self, _: RetryCallState) -> None:
        """Notes when an attempt begins."""
        self._started = time.monotonic()

    def stop(self, state: RetryCallState) -> bool:
        """Whether the patience is at its end, after a failed attempt."""
        error = state.outcome.exception() if state.outcome else None
        if error and isinstance(error.__cause__, httpx.TimeoutException):
            self._unanswered += time.monotonic() - self._started
        return state.idle_for + self._unanswered >= self._seconds


class _Service:
    """What both clients share: address, key, contract check, retries."""

    def __init__(
        self, url: str, api_key: str | None = None, *, patience: float = 120.0, timeout: float = 660.0
    ) -> None:
        """`timeout`: seconds without a byte of an answer, a minute more than our services allow a request."""
        if not url.startswith(("http://", "https://")):
            raise RequestError(f"service address '{url}' must start with http:// or https://")
        try:
            host = httpx.URL(url).host
        except httpx.InvalidURL as error:
            raise RequestError(f"service address '{url}' is not a URL: {error}") from None
        self.url = url.rstrip("/")
        self.patience = patience
        key = api_key or read_key(SERVICE_KEY)
        headers = {CONTRACT_HEADER: str(CONTRACT), **({"Authorization": f"Bearer {key}"} if key else {})}
        # A new connection costs microseconds on loopback; a kept one to a restarted service costs a retry.
        limits = httpx.Limits(max_keepalive_connections=0)
        self._http = httpx.Client(
            headers=headers,
            limits=limits,
            timeout=httpx.Timeout(timeout, connect=5.0),
            # A proxy of the environment is for the world outside, not for this machine.
            trust_env=not is_loopback(host),
        )

    def close(self) -> None:
        """Ends the connections."""
        self._http.close()

    def request(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        """One request with retries; any status outside `RETRIED_STATUS` is returned as it is."""
        patience = _Patience(self.patience)
        retrying = Retrying(
            before=patience.before,
            retry=retry_if_exception_type(_Transient),
            wait=_wait,
            stop=patience.stop,
            reraise=True,
        )
        try:
            response: httpx.Response = retrying(self._once, method, path, **arguments)
        except _Transient as error:
            raise ServiceUnavailable(
                f"{self.url} did not answer within {self.patience:.0f} s ({error}); is the service running?"
            ) from None
        return response

    def _once(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        try:
            response = self._http.request(method, self.url + path, **arguments)
        except (httpx.TransportError, httpx.RemoteProtocolError) as error:
            raise _Transient(f"{type(error).__name__}: {error}") from error
        spoken = response.headers.get(CONTRACT_HEADER)
        if spoken is not None and spoken != str(CONTRACT):
            raise ContractError(
                f"{self.url} speaks contract {spoken[:20]}, this client {CONTRACT}; install matching versions of both"
            )
        # What took too long once takes as long again.
        if response.status_code in RETRIED_STATUS and error_code(response) != DEADLINE_EXCEEDED:
            after = response.headers.get("Retry-After", "")
            raise _Transient(
                f"status {response.status_code}: {error_message(response)}",
                min(float(after), MOST_RETRY_AFTER) if after.isdecimal() else 0.0,
            )
        return response

    def check(self, response: httpx.Response, doing: str) -> Any:
        """The JSON of a good answer, or one clear error."""
        if response.is_success:
            return orjson.loads(response.content)
        text = f"{self.url} refused to {doing} (status {response.status_code}): {error_message(response)}"
        raise (RequestError if response.status_code < 500 else WorkError)(text)

    def ready(self) -> bool:
        """Whether the service says that it can work."""
        try:
            return self._http.get(self.url + "/readyz", timeout=2.0).status_code == 200
        except httpx.TransportError:
            return False


class _Pieces:
    """A file's bytes in pieces, from its start whenever it is sent (again)."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __iter__(self) -> Iterator[bytes]:
        with self._path.open("rb") as file:
            while piece := file.read(1 << 20):
                yield piece


class PolicyClient(_Service):
    """Samples from a policy service and pushes weights to it."""

    def __init__(self, url: str, api_key: str | None = None, *, model: str = "policy", **options: float) -> None:
        super().__init__(url, api_key, **options)
        self.model = model
        self._digests: dict[Path, str] = {}

    def complete(
        self,
        prompts: Sequence[list[int]],
        *,
        version: int | None,
        max_tokens: int,
        n: int = 1,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> list[list[Completion]]:
        """`n` completions of each prompt of token ids, as `[prompt][choice]`, with ids and log-probabilities.

        `version` None takes the current weights. Raises StaleVersion when the service does not hold that version.
        """
        model = self.model if version is None else f"{self.model}@{version}"
        return self._complete(
            model,
            prompts,
            {
                "n": n,
                "max_tokens": max_tokens,
                "temperature": temperature,
                "top_p": top_p,
                "seed": seed,
                "return_tokens": False,  # the ids say it
            },
            exact=version is not None,
        )

    def _complete(
        self, model: str, prompts: Sequence[list[int]], sampling: Mapping[str, Any], *, exact: bool
    ) -> list[list[Completion]]:
        """One request. `exact`: StaleVersion unless the answer says that it is `model`'s."""
        body = {"model": model, "prompt": [list(prompt) for prompt in prompts], "logprobs": 0, "return_token_ids": True}
        response = self.request(
            "POST",
            "/v1/completions",
            content=orjson.dumps(body | dict(sampling)),
            headers={"Content-Type": "application/json"},
        )
        if response.status_code == 404 and error_code(response) in UNKNOWN_MODEL:
            raise StaleVersion(f"{self.url} does not hold {model}: {error_message(response)}")
        answer = self.check(response, "complete")
        if exact and answer["model"] != model:
            raise StaleVersion(f"{self.url} answered with {answer['model']} instead of {model}")
        choices, n = sorted(answer["choices"], key=lambda choice: choice["index"]), sampling["n"]
        if len(choices) != n * len(prompts):
            raise WorkError(f"{self.url} gave {len(choices)} choices for {len(prompts)} prompts with n = {n}")
        completions = [
            Completion(
                choice["token_ids"], choice["logprobs"]["token_logprobs"], choice["text"], choice["finish_reason"]
            )
            for choice in choices
        ]
        return [completions[start : start + n] for start in range(0, len(completions), n)]

    def push(self, version: int, weights: bytes | Path) -> dict[str, Any]:
        """Makes one safetensors file the weights of `version`; the service's `{"id", "sha256"}`. A path's file is sent
        as it is read, so gigabytes of it are never in memory."""
        content: bytes | _Pieces
        if isinstance(weights, bytes):
            content, digest, size = weights, hashlib.sha256(weights).hexdigest(), len(weights)
        else:
            content, digest, size = _Pieces(weights), digest_file(weights), weights.stat().st_size
        headers = {
            DIGEST_HEADER: digest,
            "Content-Type": "application/octet-stream",
            "Content-Length": str(size),
        }
        path = f"/v1/models/{self.model}@{version}"
        return self.check(self.request("PUT", path, content=content, headers=headers), f"take weights {version}")

    def models(self) -> dict[str, Any]:
        """`GET /v1/models`."""
        return self.check(self.request("GET", "/v1/models"), "list its models")

    def merges_into(self, checkpoint: Path) -> bool:
        """Whether the service's version 0, which a pushed adapter is merged into, is this checkpoint; False where the
        service does not say what it started with. The checkpoint is read when it is first asked for."""
        base = self.models()["data"][0].get("base_sha256")
        if checkpoint not in self._digests:
            self._digests[checkpoint] = digest_weights(checkpoint)
        return bool(base) and base == self._digests[checkpoint]


class RewardClient(_Service):
    """Scores completions at a reward service."""

    def score(
        self,
        sources: Sequence[str],
        items: Sequence[ScoreItem | dict[str, Any]],
        *,
        on_error: Literal["raise"] | float = "raise",
    ) -> ScoreResult:
        """Each item's score by each source.

        An item that a source failed on (a function of a user's own that raised, hung or crashed) is a WorkError that
        names it, or, where `on_error` is a number, has that as its score and is told in `errors`.
        """
        plain = [item.model_dump() if isinstance(item, ScoreItem) else item for item in items]
        response = self.request("POST", "/score", json={"sources": list(sources), "items": plain})
        answer = self.check(response, "score")
        if len(answer["scores"]) != len(plain):
            raise WorkError(f"{self.url} gave {len(answer['scores'])} scores for {len(plain)} items")
        errors = [ScoreError.model_validate(error) for error in answer.get("errors", [])]
        if errors and on_error == "raise":
            raise WorkError(
                f"{self.url} has no score for {len(errors)} of {len(plain)} items: source '{errors[0].source}' failed "
                f"on items[{errors[0].index}]: {errors[0].message}"
            )
        for error in errors:
            answer["scores"][error.index][error.source] = on_error
        return ScoreResult(answer["scores"], answer["sources"], errors)

    def sources(self) -> dict[str, str]:
        """The sources that the service has, with the digest or version of each."""
        return self.check(self.request("GET", "/v1/sources"), "list its sources")["sources"]


class JudgeClient(_Service):
    """Has answers compared at a judge service. Requests and answers are those of its OpenAPI description, as JSON."""

    def judge(self, comparisons: Sequence[Mapping[str, Any]], **more: Any) -> dict[str, Any]:
        """The answer on all comparisons; `more`: further fields of the request, `judge` and `protocol` for example.

        WorkError when they take longer than the service allows: what was judged is kept, and asked again it is quicker.
        """
        body = {"comparisons": list(comparisons), **more}
        return self.check(self.request("POST", "/judge", json=body), "judge")

    def submit(self, comparisons: Sequence[Mapping[str, Any]], **more: Any) -> dict[str, Any]:
        """The background run of these comparisons, a new one or the one that there is; `more` as for `judge`."""
        body = {"comparisons": list(comparisons), **more}
        return self.check(self.request("POST", "/runs", json=body), "begin a run")

    def run(self, id: str) -> dict[str, Any]:
        """How far a run is."""
        return self.check(self.request("GET", f"/runs/{id}"), "tell of a run")

    def cancel(self, id: str) -> dict[str, Any]:
        """Ends a run where it is."""
        return self.check(self.request("POST", f"/runs/{id}/cancel"), "cancel a run")

    def wait(self, id: str, every: float = 1.0) -> dict[str, Any]:
        """The run once it is done, asked for every so many seconds; WorkError when it failed or was cancelled."""
        while (run := self.run(id))["state"] in ("queued", "running"):
            time.sleep(every)
        if run["state"] != "done":
            raise WorkError(f"run {id} of {self.url} has ended as {run['state']}: {run['error'] or 'nobody says why'}")
        return run


def error_message(response: httpx.Response) -> str:
    """The message in an error of OpenAI's form, or the start of whatever came."""
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return response.text[:200]


def error_code(response: httpx.Response) -> str | int | None:
    """The code in an error of OpenAI's form."""
    try:
        return response.json()["error"]["code"]
    except (ValueError, KeyError, TypeError):
        return None
