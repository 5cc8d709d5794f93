"""One request to `/score`, from its bytes to its answer, without blocking the event loop.

Parsing, checking and encoding run in one thread (tokenizers do not stand two), verifiers, functions and models in
theirs; while one request is scored the next is encoded. A request is checked whole before any of it is scored: the
first item that a source cannot take is a RequestError with its index. What a request held is never repeated in an
error. Cancelling `score` cancels all that has not run.
"""

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pydantic import ValidationError

from posttrain.core.errors import RequestError, WorkError, suggest
from posttrain.core.wire import ScoreError, ScoreRequest, ScoreResponse
from posttrain.reward_model.encoding import RefusedItem
from posttrain.reward_model.ensembles import Ensemble, build_ensembles
from posttrain.reward_model.functions.pool import Failure
from posttrain.reward_model.settings import RewardServiceSettings
from posttrain.reward_model.sources import Column, Source

ANSWERING_SECONDS = 1.0
"""What a request's deadline leaves for its answer."""


class Overloaded(WorkError):
    """Too many items wait already; the same request may succeed later."""


class Scoring:
    """Scores requests with a set of sources. `digests`: of everything that may be asked for, by name."""

    def __init__(self, sources: Mapping[str, Source], settings: RewardServiceSettings) -> None:
        self.sources, self.settings = sources, settings
        digests = {name: source.digest for name, source in sources.items()}
        self.ensembles: dict[str, Ensemble] = build_ensembles(settings.ensembles, digests)
        self.digests = digests | {name: ensemble.digest for name, ensemble in self.ensembles.items()}
        self.waiting_items = 0
        self._intake = ThreadPoolExecutor(1, thread_name_prefix="intake")

    def close(self) -> None:
        """Ends every source's threads and processes."""
        self._intake.shutdown(cancel_futures=True)
        for source in self.sources.values():
            source.close()

    async def score(self, body: bytes, began: float | None = None) -> ScoreResponse:
        """The answer to a request's JSON. RequestError, WorkError or Overloaded, with nothing scored in part.

        `began`: the monotonic time from which the request's deadline counts; without it, now.
        """
        loop = asyncio.get_running_loop()
        until = (time.monotonic() if began is None else began) + self.settings.deadline_seconds - ANSWERING_SECONDS
        names, prepared, count = await loop.run_in_executor(self._intake, self._prepare, body)
        # A lone large request is never refused for its own size: that is what `max_items` is for.
        if self.waiting_items and self.waiting_items + count > self.settings.max_waiting_items:
            raise Overloaded(f"{self.waiting_items} items wait already; come again later")
        self.waiting_items += count
        futures: list[asyncio.Future[Column]] = []
        try:
            for name, part in prepared.items():
                futures.append(asyncio.wrap_future(self.sources[name].submit(part, until)))
            columns = dict(zip(prepared, await asyncio.gather(*futures), strict=True))
        finally:
            self.waiting_items -= count
            for future in futures:  # where one source failed, what the others have not done is not wanted any more
                future.cancel()
        for name, column in columns.items():
            _check(name, column, count)
        for name in names:
            if name in self.ensembles:
                columns[name] = _combined(self.ensembles[name], columns)
        return _response(names, columns, self.digests)

    def _prepare(self, body: bytes) -> tuple[list[str], dict[str, Sequence[Any]], int]:
        """The names asked for, what each source that is needed prepared, and the number of items."""
        if self.waiting_items >= self.settings.max_waiting_items:
            raise Overloaded(f"{self.waiting_items} items wait already; come again later")
        request = parse(body)
        names = list(dict.fromkeys(request.sources))
        for index, name in enumerate(request.sources):
            if name not in self.digests:
                known = suggest(name[:80], self.digests)
                raise RequestError(f"sources[{index}] is not a source of this service {known}")
        if len(request.items) > self.settings.max_items:
            raise RequestError(
                f"{len(request.items)} items are more than the {self.settings.max_items} of one request; split it"
            )
        members = [self.ensembles[name].members if name in self.ensembles else (name,) for name in names]
        prepared: dict[str, Sequence[Any]] = {}
        for name in dict.fromkeys(member for group in members for member in group):
            try:
                prepared[name] = self.sources[name].prepare(request.items)
            except RefusedItem as error:
                raise RequestError(f"items[{error.index}], source '{name}': {error}") from None
        return names, prepared, len(request.items)


def _check(name: str, column: Column, count: int) -> None:
    """WorkError when a source did not give each item a finite score or a Failure."""
    if len(column) != count:
        raise WorkError(f"source '{name}' gave {len(column)} scores for {count} items")
    if not all(isinstance(score, Failure) or math.isfinite(score) for score in column):
        raise WorkError(f"source '{name}' gave a score that is not finite; its weights are broken")


def _combined(ensemble: Ensemble, columns: Mapping[str, Column]) -> Column:
    rows = zip(*(columns[member] for member in ensemble.members), strict=True)
    # Reward models give every item a score.
    return [ensemble.combine([score for score in row if not isinstance(score, Failure)]) for row in rows]


def _response(names: Sequence[str], columns: Mapping[str, Column], digests: Mapping[str, str]) -> ScoreResponse:
    errors = [
        ScoreError(index=index, source=name, message=score.message)
        for name in names
        for index, score in enumerate(columns[name])
        if isinstance(score, Failure)
    ]
    rows = zip(*(columns[name] for name in names), strict=True)
    scores = [
        {name: None if isinstance(score, Failure) else score for name, score in zip(names, row, strict=True)}
        for row in rows
    ]
    return ScoreResponse.model_construct(scores=scores, sources={name: digests[name] for name in names}, errors=errors)


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
