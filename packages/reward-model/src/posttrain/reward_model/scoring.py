"""One request to `/score`, from its bytes to its answer, without blocking the event loop.

Parsing, checking and encoding run in one thread (tokenizers do not stand two), verifiers and models in theirs. A
request is checked whole before any of it is scored: the first item that a source cannot take is a RequestError with
its index. What a request held is never repeated in an error.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pydantic import ValidationError

from posttrain.core.errors import RequestError, WorkError, suggest
from posttrain.core.wire import ScoreRequest, ScoreResponse
from posttrain.reward_model.settings import RewardServiceSettings
from posttrain.reward_model.sources import Source


class Overloaded(WorkError):
    """Too many items wait already; the same request may succeed later."""


class Scoring:
    """Scores requests with a set of sources."""

    def __init__(self, sources: dict[str, Source], settings: RewardServiceSettings) -> None:
        self.sources, self.settings = sources, settings
        self.waiting_items = 0
        self._intake = ThreadPoolExecutor(1, thread_name_prefix="intake")

    async def score(self, body: bytes) -> ScoreResponse:
        """The answer to a request's JSON. RequestError, WorkError or Overloaded, with nothing scored in part."""
        loop = asyncio.get_running_loop()
        names, prepared, count = await loop.run_in_executor(self._intake, self._prepare, body)
        if self.waiting_items + count > self.settings.max_waiting_items:
            raise Overloaded(f"{self.waiting_items} items wait already; come again later")
        self.waiting_items += count
        try:
            futures = [self.sources[name].submit(prepared[name]) for name in names]
            columns = await asyncio.gather(*map(asyncio.wrap_future, futures))
        finally:
            self.waiting_items -= count
        for name, column in zip(names, columns, strict=True):
            if len(column) != count:
                raise WorkError(f"source '{name}' gave {len(column)} scores for {count} items")
        scores = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
        return ScoreResponse(scores=scores, sources={name: self.sources[name].digest for name in names})

    def _prepare(self, body: bytes) -> tuple[list[str], dict[str, list[Any]], int]:
        request = parse(body)
        names = list(dict.fromkeys(request.sources))
        for index, name in enumerate(request.sources):
            if name not in self.sources:
                known = suggest(name[:80], self.sources)
                raise RequestError(f"sources[{index}] is not a source of this service {known}")
        if len(request.items) > self.settings.max_items:
            raise RequestError(
                f"{len(request.items)} items are more than the {self.settings.max_items} of one request; split it"
            )
        prepared: dict[str, list[Any]] = {name: [] for name in names}
        for index, item in enumerate(request.items):
            for name in names:
                try:
                    prepared[name].append(self.sources[name].prepare(item))
                except RequestError as error:
                    raise RequestError(f"items[{index}], source '{name}': {error}") from None
        return names, prepared, len(request.items)


def parse(body: bytes) -> ScoreRequest:
    """The request in a JSON body; RequestError says where it is malformed and repeats nothing of it."""
    try:
        return ScoreRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    if first["type"] == "json_invalid":
        raise RequestError("the body is not valid JSON")
    place = ""
    for part in first["loc"]:
        place += f"[{part}]" if isinstance(part, int) else f".{part}"
    if first["type"] == "extra_forbidden":  # the unknown key is the caller's text
        raise RequestError(f"{place.rpartition('.')[0].lstrip('.') or 'the request'} has an unknown key")
    raise RequestError(f"{place.lstrip('.') or 'the body'}: {first['msg'][0].lower()}{first['msg'][1:]}")
