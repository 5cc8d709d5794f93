"""Judges and policies at work for strangers: within their limits, and with errors that repeat nothing of anybody.

A server's own message may quote the prompt that it refuses, or the address that the service keeps to itself. So what is
passed on is what went wrong and the status; the message itself is in the log at the level DEBUG.
"""

import logging
import re
import traceback
from collections.abc import Mapping
from typing import Any

from posttrain.core.clients import ServiceUnavailable
from posttrain.core.errors import PosttrainError, RequestError, WorkError
from posttrain.llm_judge.comparisons import Game
from posttrain.llm_judge.judgements import Decision, Judge, JudgeRefused
from posttrain.llm_judge.running.limits import BudgetSpent, Limits

log = logging.getLogger(__name__)

_STATUS = re.compile(r"status (\d{3})\b")


class DiscreetJudge:
    """A judge whose errors are `discreet`. `limits`: those to keep where the judge knows of none itself."""

    def __init__(self, judge: Judge, name: str, limits: Limits | None = None) -> None:
        self._judge, self._name, self._limits = judge, name, limits

    @property
    def identity(self) -> Mapping[str, Any]:
        """The judge's own."""
        return self._judge.identity

    def expected(self, game: Game) -> tuple[int, int, float | None]:
        """The judge's own."""
        return self._judge.expected(game)

    async def decide(self, game: Game) -> Decision:
        """As the judge's."""
        try:
            if self._limits is None:
                return await self._judge.decide(game)
            async with self._limits.request(0.0, 0.0):
                return await self._judge.decide(game)
        except PosttrainError as error:
            raise discreet(error, f"judge '{self._name}'") from None


def discreet(error: PosttrainError, who: str) -> PosttrainError:
    """An error of the same kind that says what `who` did, with the status, and nothing else."""
    log.debug("%s: %s", who, error)
    found = _STATUS.search(str(error))
    status = f" (status {found[1]})" if found else ""
    if isinstance(error, BudgetSpent):
        return error  # amounts only
    if isinstance(error, JudgeRefused):
        return JudgeRefused(f"{who} cannot be had{status}; the service's settings or its server have to be mended")
    if isinstance(error, ServiceUnavailable):
        return ServiceUnavailable(f"{who} gave no answer{status}")
    if isinstance(error, RequestError):
        return RequestError(f"{who} cannot be asked this: its protocol's template does not take it")
    return WorkError(f"{who} refused to answer this{status}")


def log_place(logger: logging.Logger, what: str, error: BaseException) -> None:
    """Writes down that `what` failed, with the kind of the error and its place: its own text may quote an answer."""
    place = "".join(traceback.format_tb(error.__traceback__))
    logger.error("%s failed with %s at\n%s", what, type(error).__name__, place)
