"""What the service answers, as the OpenAPI description has it."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from posttrain.llm_judge.comparisons import Order
from posttrain.llm_judge.running.progress import Tally

State = Literal["queued", "running", "done", "failed", "cancelled"]


class Answer(BaseModel):
    """Base of what goes out; descriptions are the docstrings below the fields."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class GameAnswer(Answer):
    """What the judge said of one showing of the answers."""

    order: Order
    """Which were shown, in this order: a is output_1."""
    turn: int
    """How many turns the judge saw."""
    replicate: int
    label: str | None = None
    """The verdict on the protocol's scale; null: none could be read."""
    value: float | None = None
    """P(the second shown is better); of one answer its grade."""
    preference: float | None = None
    """P(output_2 is better); null for a grade."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = 0.0
    """What it cost when it was asked, in the currency of the judge's prices; null: not known."""
    stored: bool = False
    """It was in the store, and cost nothing now."""
    error: str | None = None
    """Why there is no answer."""


class ComparisonAnswer(Answer):
    """What became of one comparison."""

    prompt_id: str | None
    """Null where an answer is missing."""
    preference: float | None
    """Mean over both orders of P(output_2 is better), over turns and replicates too; null where an order has none."""
    games: list[GameAnswer]
    output_1: list[str] | None = None
    """What the policy answered that was asked."""
    output_2: list[str] | None = None
    error: str | None = None
    """Why it could not be judged: a policy gave no answer."""


class Usage(Answer):
    """What was asked and paid for now."""

    asked: int = 0
    stored: int = 0
    """Different games that were in the store."""
    unparsed: int = 0
    """Of those asked, the ones without a verdict."""
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = 0.0
    """Null: prices are not known."""

    @staticmethod
    def of(tally: Tally) -> "Usage":
        """The counts of a run."""
        return Usage(**{name: getattr(tally, name) for name in Usage.model_fields})


class JudgeAnswer(Answer):
    """`POST /judge`."""

    judge: str
    protocol: str | None
    """Null: the judge needs none."""
    identity: dict[str, Any]
    """All that defines the judge's verdicts."""
    comparisons: list[ComparisonAnswer]
    """In the order of the request."""
    rates: dict[str, Any] | None
    """output_2's win rate in per cent with its standard error, counts, biases and warnings; null for a single
    comparison, and where no comparison has a preference."""
    usage: Usage


class Progress(Usage):
    """How far a run is."""

    games: int = 0
    """Different ones; 0 until it has begun."""
    done: int = 0


class RunSummary(Answer):
    """A background run in a line."""

    id: str
    """A digest of the request and the judge's identity: the same request is the same run."""
    state: State
    judge: str
    protocol: str | None
    comparisons: int
    created: float
    """Unix seconds, as all times here."""
    started: float | None = None
    ended: float | None = None
    error: str | None = None
    """Why it failed. The same request begins it again, and asks only what is missing."""


class RunAnswer(RunSummary):
    """A background run."""

    progress: Progress
    """Of this start of the service: what was answered before counts as stored."""
    cost: float | None = 0.0
    """Of all judgements of the run so far, whenever they were asked; null: prices are not known."""
    rates: dict[str, Any] | None = None
    """As in an answer to `POST /judge`, of the comparisons that have all their games; null: none has."""
    result: dict[str, Any] | None = None
    """The record of a run that is done."""


class RunRemoved(Answer):
    """`DELETE /runs/{id}`."""

    id: str
    deleted: Literal[True] = True


class RunList(Answer):
    """`GET /runs`, the newest first."""

    runs: list[RunSummary]


class Served(Answer):
    """`GET /v1/judges`: the names that requests may use."""

    judges: list[str]
    default_judge: str | None
    protocols: list[str]
    default_protocol: str
    policies: list[str]
