"""What may be used of a judge's server: requests at once, requests and tokens a minute, money.

One `Limits` stands for one server and account: everything that asks there shares it, in one event loop. Whoever waits
is served in the order of asking, and may be cancelled while waiting without taking anything from those behind.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from pydantic import Field

from posttrain.core.config import Settings
from posttrain.core.errors import RequestError, WorkError

LATENESS = 0.05
"""Seconds by which a timer may fire late without the rate falling: what was missed is made up for, and no more."""
ROUNDING = 1e-9
"""Share of the money by which sums of prices may be off."""


class BudgetSpent(WorkError):
    """What is left of the money may not pay for the next request."""


class LimitSettings(Settings):
    """What one run or service may use at most."""

    concurrency: int = Field(default=16, ge=1)
    """Requests in flight."""
    unkept: int = Field(default=0, ge=0)
    """Answers that may be on their way to the disk beside the requests in flight: without any, each holds its place
    until it is kept, and a kill loses no more than `concurrency`; with some a kill may lose as many more. They are for
    servers that answer within ten times as long as a disk takes: half of `concurrency` keeps all places taken."""
    requests_per_minute: float | None = Field(default=None, gt=0)
    """None: not limited."""
    tokens_per_minute: float | None = Field(default=None, gt=0)
    """Of prompts and answers together. A request counts as many as are expected, and what it took once that is
    known."""
    max_cost: float | None = Field(default=None, ge=0)
    """Money, in the currency of the prices; the request that may exceed it is not made."""


class Rate:
    """So many units a minute, evenly: each amount pushes the time of the next one back by its share of a minute.

    In any t seconds at most (t + LATENESS) · per_minute / 60 units start, and the amount that was last let through.
    """

    def __init__(
        self,
        per_minute: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._seconds_each = 60 / per_minute
        self._clock, self._sleep = clock, sleep
        self._next = clock()
        self._turn = asyncio.Lock()

    async def acquire(self, amount: float = 1.0) -> None:
        """Waits until `amount` more may start."""
        async with self._turn:
            # `correct` may move the time while this waits.
            while (wait := self._next - self._clock()) > 0:
                await self._sleep(wait)
            self.correct(amount)

    def correct(self, amount: float) -> None:
        """Counts `amount` more, or fewer, than were acquired."""
        self._next = max(self._next, self._clock() - LATENESS) + amount * self._seconds_each


class Money:
    """What was spent, and what requests in flight may cost at most. Without a limit it only adds up."""

    def __init__(self, limit: float | None = None) -> None:
        self.limit = limit
        self.spent = 0.0
        self.known = True
        """False: something was asked whose price is not known; then `spent` is only a part."""
        self._reserved = 0.0
        self._turn = asyncio.Lock()
        self._settled = asyncio.Event()

    async def reserve(self, cost: float | None) -> float:
        """Sets aside what a request may cost; what was set aside. Where requests in flight may take what it needs, it
        waits for their true figures. BudgetSpent when even their costing nothing would not leave enough."""
        if self.limit is None:
            return 0.0
        if cost is None:
            raise RequestError("a limit of cost needs the judge's prices; give them, or leave the limit out")
        most = self.limit * (1 + ROUNDING)
        async with self._turn:
            while self.spent + self._reserved + cost > most:
                if self.spent + cost > most:
                    raise BudgetSpent(
                        f"{self.spent:.4f} of {self.limit:.4f} are spent and the next request may cost {cost:.4f}"
                    )
                self._settled.clear()
                await self._settled.wait()
            self._reserved += cost
        return cost

    def settle(self, reserved: float, cost: float | None) -> None:
        """Replaces what was set aside by what it cost; None: its price is not known."""
        self._reserved -= reserved
        self.spent += cost or 0.0
        self.known = self.known and cost is not None
        self._settled.set()


@dataclass
class Use:
    """What a request turned out to take: whoever makes it writes it here, else `tokens` stay as expected and it was
    free."""

    tokens: float
    cost: float | None = 0.0


class Limits:
    """The limits at work."""

    def __init__(self, settings: LimitSettings | None = None) -> None:
        self.settings = settings or LimitSettings()
        self.money = Money(self.settings.max_cost)
        self._slots = asyncio.Semaphore(self.settings.concurrency)
        self._requests = _rate(self.settings.requests_per_minute)
        self._tokens = _rate(self.settings.tokens_per_minute)

    @asynccontextmanager
    async def request(self, tokens: float, cost: float | None) -> AsyncIterator[Use]:
        """Surrounds one request that is expected to take so many tokens and to cost so much at most; waits until it may
        be made. BudgetSpent when there is not money enough."""
        use = Use(tokens)
        async with self._slots:
            reserved = await self.money.reserve(cost)
            try:
                if self._requests:
                    await self._requests.acquire()
                if self._tokens:
                    await self._tokens.acquire(tokens)
                yield use
            finally:
                self.money.settle(reserved, use.cost)
                if self._tokens and use.tokens != tokens:
                    self._tokens.correct(use.tokens - tokens)


def _rate(per_minute: float | None) -> Rate | None:
    return Rate(per_minute) if per_minute else None
