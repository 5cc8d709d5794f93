"""The judges of the settings, each with one server and one `Limits` that all requests to the service share."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, TypeVar

import httpx

from posttrain.core.clients import RewardClient
from posttrain.core.errors import PosttrainError, RequestError
from posttrain.core.keys import read_key
from posttrain.core.serving import is_loopback
from posttrain.llm_judge.endpoints import KEY_VARIABLE, base_url, find_endpoint, is_the_environments
from posttrain.llm_judge.judgements import Judge, JudgeRefused
from posttrain.llm_judge.judges.chat import ChatJudge
from posttrain.llm_judge.judges.completions import NO_KEY, ChatServer
from posttrain.llm_judge.judges.reward import RewardJudge
from posttrain.llm_judge.protocols import Protocol
from posttrain.llm_judge.running.limits import Limits
from posttrain.llm_judge.serving.discreet import DiscreetJudge, discreet
from posttrain.llm_judge.serving.settings import ChatBackend, JudgeSettings, RewardBackend

T = TypeVar("T")

PATIENCE = 30.0
"""Seconds of waiting for a reward service."""


class Judges:
    """To be used in one event loop. RequestError, when it is made, where a chat server's key or address is missing."""

    def __init__(self, settings: Mapping[str, JudgeSettings]) -> None:
        self.settings = settings
        self.limits = {name: Limits(one.limits) for name, one in settings.items()}
        self._chat = {name: _server(one.chat, self.limits[name]) for name, one in settings.items() if one.chat}
        self._reward = {name: _client(one.reward) for name, one in settings.items() if one.reward}
        # A service that is away keeps its own thread waiting, and nobody else's.
        self._threads = ThreadPoolExecutor(max(len(settings), 1), thread_name_prefix="judges")
        self._asking: dict[str, asyncio.Task[Any]] = {}

    def needs_protocol(self, name: str) -> bool:
        """Whether the judge is asked with a prompt."""
        return self.settings[name].chat is not None

    @asynccontextmanager
    async def open(self, name: str, protocol: Protocol | None) -> AsyncIterator[Judge]:
        """The judge, for one match, with the weights that its server has now. ServiceUnavailable or JudgeRefused when
        the server is away or has no such model or source."""
        settings = self.settings[name]
        if settings.chat and protocol:
            with _discreetly(name):
                chat = await self._with_its_weights(name, settings.chat)
            yield DiscreetJudge(ChatJudge(chat, protocol, self._chat[name]), name)
        if settings.reward:
            with _discreetly(name):
                digests = await self._ask(name, self._reward[name].sources)
                judge = RewardJudge(self._reward[name], settings.reward.source, settings.reward.scale, digests)
            # One for each match: it keeps every score that it had, and must notice when the model becomes another.
            async with judge:
                yield DiscreetJudge(judge, name, self.limits[name])

    async def _with_its_weights(self, name: str, settings: ChatBackend) -> ChatBackend:
        """A policy service gets new weights while it serves, and its model is named by their version: it is found again
        for each match, lest verdicts be kept as the old one's."""
        model, version, _ = settings.model.partition("@")
        if not (settings.base_url and settings.sha256 and version):
            return settings
        found = await self._ask(name, partial(find_endpoint, settings.base_url, model))
        now = {"model": found.model, "sha256": found.digest} if found.digest else {}
        return settings.model_copy(update=now)

    async def _ask(self, name: str, ask: Callable[[], T]) -> T:
        """What a judge's server says of itself: asked once for all who want to know at the same time."""
        asking: asyncio.Task[T] | None = self._asking.get(name)
        if asking is None:
            asking = self._asking[name] = asyncio.create_task(self._in_thread(ask))
            asking.add_done_callback(lambda _: self._asking.pop(name))
        # Whoever waits may leave, and the others still want it.
        return await asyncio.shield(asking)

    async def _in_thread(self, ask: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, ask)

    async def aclose(self) -> None:
        """Ends the connections."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for server in self._chat.values():
            await server.aclose()
        for client in self._reward.values():
            client.close()


@contextmanager
def _discreetly(name: str) -> Iterator[None]:
    """What a server has to say against being asked, as it may be told."""
    try:
        yield
    except RequestError as error:
        raise discreet(JudgeRefused(str(error)), f"judge '{name}'") from None
    except PosttrainError as error:
        raise discreet(error, f"judge '{name}'") from None


def _server(settings: ChatBackend, limits: Limits) -> ChatServer:
    url = base_url(settings.base_url) if settings.base_url else None
    named = KEY_VARIABLE if url is None or is_the_environments(url) else None
    variable = settings.api_key_variable or named
    key = read_key(variable) if variable else NO_KEY
    if not key and variable != KEY_VARIABLE:
        # What stands in where none is given is the key of another server.
        if url is None or not is_loopback(httpx.URL(url).host):
            raise RequestError(f"the key for model '{settings.model}' is missing; set {variable}")
        key = NO_KEY
    return ChatServer(limits, base_url=url, api_key=key, price=settings.price, timeout=settings.timeout_seconds)


def _client(settings: RewardBackend) -> RewardClient:
    return RewardClient(settings.url, read_key(settings.api_key_variable), patience=PATIENCE)
