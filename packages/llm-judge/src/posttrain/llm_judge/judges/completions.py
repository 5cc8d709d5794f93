"""Requests to an OpenAI-compatible chat server: what heals by itself is asked again, what cannot is said in a line.

Retried, with exponential back-off and jitter and not before a Retry-After: 429, server errors, timeouts, broken
connections, answers that are no chat completion. Two things that some servers or models refuse are left out after
their first refusal, for good: log-probabilities, and the older name of the limit of tokens.

One route is all that a judge needs of such a server, so it is asked with aiohttp: openai's client takes 1.5 ms of a
core for each request, which 64 requests in flight at a fast server do not leave, and aiohttp 0.2.
"""

import json
import logging
import math
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import cached_property, partial
from typing import Any

import aiohttp
import httpx
import orjson
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from posttrain.core.clients import MOST_RETRY_AFTER, ServiceUnavailable
from posttrain.core.errors import RequestError, WorkError
from posttrain.core.keys import read_key
from posttrain.core.serving import is_loopback
from posttrain.llm_judge.endpoints import KEY_VARIABLE, URL_VARIABLE, check_plain
from posttrain.llm_judge.judgements import JudgeRefused
from posttrain.llm_judge.judges.prices import Price
from posttrain.llm_judge.protocols.verdicts import Token
from posttrain.llm_judge.running.limits import Limits

log = logging.getLogger(__name__)

OPENAI_URL = "https://api.openai.com/v1"
NO_KEY = "none"
"""What is sent where there is no key, and what a caller gives to have none of the environment sent."""
ATTEMPTS = 8
"""Of one request: with the back-off below about half a minute of waiting, more where the server asks for more."""
TIMEOUT = 300.0
"""Seconds without a byte of an answer; judges that reason take minutes."""
BYTES_PER_TOKEN = 4
"""Of English text, and near it for others, as an estimate before the server has counted."""

_BACK_OFF = wait_random_exponential(multiplier=0.5, max=30)
_NEVER_HEALS = ("insufficient_quota", "billing_hard_limit_reached")
"""Codes that come with 429 and mean that the account is empty."""


@dataclass(frozen=True)
class Completion:
    """What the model wrote, and what was counted."""

    text: str
    tokens: tuple[Token, ...]
    """With log-probabilities; empty where the server gives none."""
    cut: bool
    """It ended at the limit of tokens."""
    prompt_tokens: int
    completion_tokens: int
    cost: float | None


class _Transient(Exception):
    """Worth another attempt, after `retry_after` seconds at the earliest."""

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class _Refusal(Exception):
    """A status that is no success, with the message and the code of an error of OpenAI's form."""

    def __init__(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        self.status, self.headers = status, headers
        self.code: Any = None
        said = content.decode("utf-8", "replace")
        with suppress(ValueError, LookupError, TypeError):  # a proxy's page is not in OpenAI's form: told as it stands
            error = json.loads(said)["error"]
            said, self.code = (error["message"], error.get("code")) if isinstance(error, dict) else (error, None)
        super().__init__(" ".join(str(said).split()))


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    return max(_BACK_OFF(state), error.retry_after if isinstance(error, _Transient) else 0.0)


class ChatServer:
    """Any server with OpenAI's `/chat/completions`, to be used in one event loop.

    `base_url` and `api_key` are by default OPENAI_BASE_URL and OPENAI_API_KEY; a server on loopback needs no key.
    RequestError without what is needed. `limits` is asked before each request, repeated ones included.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        price: Price | None = None,
        attempts: int = ATTEMPTS,
        timeout: float = TIMEOUT,
    ) -> None:
        url = base_url or os.environ.get(URL_VARIABLE) or OPENAI_URL
        check_plain(url, "the address" if base_url else URL_VARIABLE)
        if not url.startswith(("http://", "https://")):
            raise RequestError(f"the address '{url}' must start with http:// or https://")
        try:
            self._local = is_loopback(httpx.URL(url).host)
        except httpx.InvalidURL as error:
            raise RequestError(f"the address '{url}' is not a URL: {error}") from None
        key = api_key or read_key(KEY_VARIABLE)
        if not key and not self._local:
            raise RequestError(f"{url} needs a key; set {KEY_VARIABLE}")
        self.url, self.limits, self.price = url.rstrip("/"), limits, price
        self._key, self._timeout, self._attempts = key or NO_KEY, timeout, attempts
        self._left_out: set[str] = set()

    @cached_property
    def _session(self) -> aiohttp.ClientSession:
        """The connections; made in the event loop that uses them."""
        return aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"},
            connector=aiohttp.TCPConnector(limit=self.limits.settings.concurrency),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10.0, sock_read=self._timeout),
            # A proxy of the environment is for the world outside, not for this machine.
            trust_env=not self._local,
        )

    async def aclose(self) -> None:
        """Ends the connections."""
        if "_session" in self.__dict__:
            await self._session.close()

    async def complete(self, body: Mapping[str, Any], prompt_tokens: int, max_tokens: int) -> Completion:
        """One completion of a request's `body`, expected to have so many tokens.

        ServiceUnavailable when the attempts are used up, JudgeRefused when no request would be answered, WorkError when
        this one is refused; BudgetSpent by the limits.
        """
        attempt = partial(self._once, body, prompt_tokens, max_tokens)
        try:
            return await attempt()
        except _Transient as error:
            # Nearly all requests end above: what repeats them takes a tenth of one's time.
            return await self._again(error, attempt)

    async def _again(self, first: _Transient, attempt: Callable[[], Awaitable[Completion]]) -> Completion:
        failed = [first]

        async def first_or_next() -> Completion:
            if failed:
                raise failed.pop()
            return await attempt()

        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_Transient),
            wait=_wait,
            stop=stop_after_attempt(self._attempts),
            reraise=True,
        )
        try:
            return await retrying(first_or_next)
        except _Transient as error:
            raise ServiceUnavailable(f"{self.url} gave no answer in {self._attempts} attempts ({error})") from None

    async def _once(self, body: Mapping[str, Any], prompt_tokens: int, max_tokens: int) -> Completion:
        cost = self.price.cost(prompt_tokens, max_tokens) if self.price else None
        while True:
            sent = self._in_its_dialect(body)
            async with self.limits.request(prompt_tokens + max_tokens, cost) as use:
                try:
                    completion = self._read(await self._post(sent), prompt_tokens)
                except _Refusal as error:
                    use.tokens = 0
                    if self._learn(sent, error):
                        continue
                    raise self._failure(error) from None
                use.tokens = completion.prompt_tokens + completion.completion_tokens
                use.cost = completion.cost
                return completion

    async def _post(self, sent: Mapping[str, Any]) -> bytes:
        try:
            async with self._session.post(f"{self.url}/chat/completions", data=orjson.dumps(sent)) as response:
                content = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _Transient(f"{type(error).__name__}: {error}") from None
        if response.status != 200:
            raise _Refusal(response.status, content, response.headers)
        return content

    def _read(self, content: bytes, expected_prompt_tokens: int) -> Completion:
        """What an answer says; _Transient if it is no chat completion."""
        try:
            answer = _parsed(content)
            choice = answer["choices"][0]
            message = choice["message"]
            # A refusal is what the model had to say, and holds no verdict.
            text = message.get("content") or message.get("refusal") or ""
            usage = answer.get("usage") or {}
            prompt_tokens = int(usage.get("prompt_tokens") or expected_prompt_tokens)
            completion_tokens = int(usage.get("completion_tokens") or estimated_tokens(text))
            cost = self.price.cost(prompt_tokens, completion_tokens) if self.price else None
            cut = choice.get("finish_reason") == "length"
            return Completion(text, _tokens(choice), cut, prompt_tokens, completion_tokens, cost)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise _Transient(f"the answer is no chat completion ({type(error).__name__})") from None

    def _in_its_dialect(self, body: Mapping[str, Any]) -> dict[str, Any]:
        sent = dict(body)
        if "logprobs" in self._left_out:
            sent.pop("logprobs", None)
            sent.pop("top_logprobs", None)
        if "max_tokens" in self._left_out and "max_tokens" in sent:
            sent["max_completion_tokens"] = sent.pop("max_tokens")
        return sent

    def _learn(self, sent: Mapping[str, Any], refusal: _Refusal) -> bool:
        """Whether the server refused something that it can be asked without."""
        if refusal.status in (401, 429):
            return False
        if "logprobs" in sent and "logprob" in str(refusal):
            if "logprobs" not in self._left_out:
                log.warning("%s gives no log-probabilities: verdicts have no probability", self.url)
            self._left_out.add("logprobs")
            return True
        if "max_tokens" in sent and "max_completion_tokens" in str(refusal):
            self._left_out.add("max_tokens")
            return True
        return False

    def _failure(self, refusal: _Refusal) -> Exception:
        status, said = refusal.status, str(refusal).replace(self._key, "…")[:300]
        if status == 401 and self._key == NO_KEY:
            # Its list of models is open, else it would have got the key.
            return JudgeRefused(
                f"{self.url} asks for a key (status 401); set {KEY_VARIABLE}, and {URL_VARIABLE} to this address"
            )
        if status == 401:
            return JudgeRefused(f"{self.url} does not take the key (status 401); set {KEY_VARIABLE} to a valid one")
        if refusal.code in _NEVER_HEALS or status in (402, 403, 404):
            return JudgeRefused(f"{self.url} refuses this model (status {status}): {said}")
        if status in (408, 409, 425, 429) or status >= 500:
            return _Transient(f"status {status}: {said}", retry_after(refusal.headers))
        return WorkError(f"{self.url} refused a request (status {status}): {said}")


def estimated_tokens(text: str) -> int:
    """About how many tokens a text has."""
    return math.ceil(len(text.encode("utf-8", "replace")) / BYTES_PER_TOKEN)


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds to wait by a Retry-After, a number or a date; 0 without one, 60 at most: more is not believed."""
    said = headers.get("Retry-After", "")
    try:
        seconds = float(said)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(said).timestamp() - time.time()
        except ValueError:
            return 0.0
    return min(max(seconds, 0.0), MOST_RETRY_AFTER) if math.isfinite(seconds) else 0.0


def _parsed(content: bytes) -> Any:
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        # A reply that was cut within a pair of surrogates is not Unicode, and paid for all the same.
        return json.loads(json.dumps(json.loads(content), ensure_ascii=False).encode("utf-8", "replace"))


def _tokens(choice: Mapping[str, Any]) -> tuple[Token, ...]:
    content: Sequence[Mapping[str, Any]] = (choice.get("logprobs") or {}).get("content") or ()
    return tuple(
        Token(token["token"], tuple((top["token"], float(top["logprob"])) for top in token.get("top_logprobs") or ()))
        for token in content
    )
