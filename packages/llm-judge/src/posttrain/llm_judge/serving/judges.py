"""The judges of the settings, each with one server and one `Limits` that all requests to the service share."""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import httpx

from posttrain.core.clients import RewardClient
from posttrain.core.errors import PosttrainError, RequestError
from posttrain.core.serving import is_loopback
from posttrain.llm_judge.endpoints import KEY_VARIABLE, base_url, is_the_environments
from posttrain.llm_judge.judgements import Judge, JudgeRefused
from posttrain.llm_judge.judges.chat import ChatJudge
from posttrain.llm_judge.judges.completions import NO_KEY, ChatServer
from posttrain.llm_judge.judges.reward import RewardJudge
from posttrain.llm_judge.limits import Limits
from posttrain.llm_judge.protocols import Protocol
from posttrain.llm_judge.serving.discreet import DiscreetJudge, discreet
from posttrain.llm_judge.serving.settings import ChatBackend, JudgeSettings, RewardBackend

PATIENCE = 30.0
"""Seconds of waiting for a reward service."""


class Judges:
    """To be used in one event loop. RequestError, when it is made, where a chat server's key or address is missing."""

    def __init__(self, settings: Mapping[str, JudgeSettings]) -> None:
        self.settings = settings
        self.limits = {name: Limits(one.limits) for name, one in settings.items()}
        self._chat = {name: _server(one.chat, self.limits[name]) for name, one in settings.items() if one.chat}
        self._reward = {name: _client(one.reward) for name, one in settings.items() if one.reward}
        # A reward service that is away keeps its own thread waiting, and nobody else's.
        self._threads = ThreadPoolExecutor(max(len(self._reward), 1), thread_name_prefix="sources")
        self._asking: dict[str, asyncio.Task[dict[str, str]]] = {}

    def needs_protocol(self, name: str) -> bool:
        """Whether the judge is asked with a prompt."""
        return self.settings[name].chat is not None

    @asynccontextmanager
    async def open(self, name: str, protocol: Protocol | None) -> AsyncIterator[Judge]:
        """The judge, for one match. ServiceUnavailable or JudgeRefused when a reward service is away or has no such
        source."""
        settings = self.settings[name]
        if settings.chat and protocol:
            yield DiscreetJudge(ChatJudge(settings.chat, protocol, self._chat[name]), name)
        if settings.reward:
            judge = await self._reward_judge(name, settings.reward)
            # One for each match: it keeps every score that it had, and must notice when the model becomes another.
            async with judge:
                yield DiscreetJudge(judge, name, self.limits[name])

    async def _reward_judge(self, name: str, settings: RewardBackend) -> RewardJudge:
        try:
            digests = await self._digests(name)
            return RewardJudge(self._reward[name], settings.source, settings.scale, digests)
        except RequestError as error:
            raise discreet(JudgeRefused(str(error)), f"judge '{name}'") from None
        except PosttrainError as error:
            raise discreet(error, f"judge '{name}'") from None

    async def _digests(self, name: str) -> dict[str, str]:
        """What the judge's reward service says of its sources: asked once for all who want to know at the same time."""
        asking = self._asking.get(name)
        if asking is None:
            asking = self._asking[name] = asyncio.create_task(self._ask(self._reward[name]))
            asking.add_done_callback(lambda _: self._asking.pop(name))
        # Whoever waits may leave, and the others still want it.
        return await asyncio.shield(asking)

    async def _ask(self, client: RewardClient) -> dict[str, str]:
        return await asyncio.get_running_loop().run_in_executor(self._threads, client.sources)

    async def aclose(self) -> None:
        """Ends the connections."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for server in self._chat.values():
            await server.aclose()
        for client in self._reward.values():
            client.close()


def _server(settings: ChatBackend, limits: Limits) -> ChatServer:
    url = base_url(settings.base_url) if settings.base_url else None
    named = KEY_VARIABLE if url is None or is_the_environments(url) else None
    variable = settings.api_key_variable or named
    key = os.environ.get(variable) if variable else NO_KEY
    if not key and variable != KEY_VARIABLE:
        # What stands in where none is given is the key of another server.
        if url is None or not is_loopback(httpx.URL(url).host):
            raise RequestError(f"the key for model '{settings.model}' is missing; set {variable}")
        key = NO_KEY
    return ChatServer(limits, base_url=url, api_key=key, price=settings.price, timeout=settings.timeout_seconds)


def _client(settings: RewardBackend) -> RewardClient:
    return RewardClient(settings.url, os.environ.get(settings.api_key_variable), patience=PATIENCE)
