"""The judge service's Prometheus metrics; BentoML adds its own of HTTP. No text and no client in any label.

Games a second: `rate(posttrain_judge_games_total{outcome="asked"}[1m])`. Money an hour:
`increase(posttrain_judge_cost_total[1h])`.
"""

from collections.abc import Iterable
from functools import lru_cache

from prometheus_client import Counter, Histogram

from posttrain.llm_judge.judgements import Decision
from posttrain.llm_judge.running.progress import Tally

SECONDS = (0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600)
OUTCOMES = ("ok", "refused", "budget", "gone", "unavailable", "deadline", "error")
GAMES = ("asked", "unparsed", "stored", "failed")
ENDS = ("done", "failed", "cancelled")


class Telemetry:
    """Every metric of the service; made once a process, by `telemetry()`."""

    def __init__(self) -> None:
        self.requests = Counter(
            "posttrain_judge_requests", "Requests by route and how they ended.", ["route", "outcome"]
        )
        self.seconds = Histogram("posttrain_judge_request_seconds", "Seconds of a request.", ["route"], buckets=SECONDS)
        self.games = Counter(
            "posttrain_judge_games",
            "Games by how they ended: asked with a verdict, unparsed, stored or failed.",
            ["judge", "outcome"],
        )
        self.tokens = Counter("posttrain_judge_tokens", "Tokens of games asked.", ["judge", "kind"])
        self.cost = Counter("posttrain_judge_cost", "Cost of games asked, where prices are known.", ["judge"])
        self.runs = Counter("posttrain_judge_runs", "Background runs that ended, by how.", ["judge", "state"])

    def expect(self, judges: Iterable[str]) -> None:
        """Has every series of these judges from the start: of one that begins with its first event Prometheus does not
        see that event."""
        for outcome in OUTCOMES:
            self.requests.labels("/judge", outcome)
            self.requests.labels("/runs", outcome)
        for judge in judges:
            self.cost.labels(judge)
            for outcome in GAMES:
                self.games.labels(judge, outcome)
            for kind in ("prompt", "completion"):
                self.tokens.labels(judge, kind)
            for state in ENDS:
                self.runs.labels(judge, state)

    def answered(self, judge: str, decision: Decision) -> None:
        """Counts a game that was asked, as its answer arrives."""
        self.games.labels(judge, "unparsed" if decision.label is None else "asked").inc()
        self.tokens.labels(judge, "prompt").inc(decision.prompt_tokens)
        self.tokens.labels(judge, "completion").inc(decision.completion_tokens)
        self.cost.labels(judge).inc(decision.cost or 0.0)

    def match(self, judge: str, tally: Tally) -> None:
        """Counts what else one match came to, at its end."""
        self.games.labels(judge, "stored").inc(tally.stored)
        self.games.labels(judge, "failed").inc(tally.failed)


@lru_cache(maxsize=1)
def telemetry() -> Telemetry:
    """The metrics of this process. Made on the first use: prometheus_client looks at where BentoML collects then."""
    return Telemetry()
