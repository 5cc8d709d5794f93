"""A request while it is worked on: what is known of it so far, for whoever asks meanwhile."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from posttrain.core.errors import WorkError
from posttrain.llm_judge.judgements import Judge
from posttrain.llm_judge.matches import Match, Played
from posttrain.llm_judge.serving.noting import NotingStore, Watching
from posttrain.llm_judge.serving.outcomes import Keyed, rates_of, total_cost
from posttrain.llm_judge.serving.requests import Generated
from posttrain.llm_judge.serving.wanted import Wanted


class Overloaded(WorkError):
    """Too much waits already; the same request may succeed later."""


class DeadlineExceeded(WorkError):
    """The request took longer than the service allows."""


class Stopping(WorkError):
    """The service is being ended."""


class KeptAnswers(Protocol):
    """Where generated answers are kept, by the comparison's place in the request and its side, 1 or 2."""

    def get(self, index: int, side: int) -> Generated | None: ...

    def put(self, index: int, side: int, generated: Generated) -> None: ...


@dataclass
class Contest:
    """What a request has come to."""

    wanted: Wanted[Any]
    noting: NotingStore
    expected: Mapping[str, Any] | None = None
    """The identity that the judge must have; None: whichever it has."""
    kept: KeptAnswers | None = None
    """None: generated answers are for this request only."""
    drawn_by: str | None = None
    """What the order of the comparisons is drawn from; None: that of the request."""
    watching: Watching = field(default_factory=Watching)
    interrupted: asyncio.Event = field(default_factory=asyncio.Event)
    generated: dict[tuple[int, int], Generated] = field(default_factory=dict)
    """By place of the comparison and side."""
    missing: dict[int, str] = field(default_factory=dict)
    """Places of comparisons that lack an answer, and why."""
    places: list[int] = field(default_factory=list)
    """Where in the request each comparison of the match stands."""
    judge: Judge | None = None
    match: Match | None = None
    """None until the judge and the answers are there."""
    played: Played | None = None
    """None until it has ended."""

    @cached_property
    def keyed(self) -> Keyed:
        """The games of the match, once there is one."""
        assert self.match is not None
        assert self.judge is not None
        return Keyed.of(self.judge.identity, self.match.games())

    def generated_for(self, index: int) -> dict[int, Generated]:
        """What was generated for a comparison, by its side."""
        return {side: self.generated[index, side] for side in (1, 2) if (index, side) in self.generated}

    def rates(self) -> dict[str, Any] | None:
        """The rates of the comparisons that have all their games so far."""
        return rates_of(self.keyed.whole(self.noting.found)) if self.match else None

    def cost(self) -> float | None:
        """Of all judgements so far, whenever they were asked."""
        return total_cost(self.noting.found)
