"""The reward service's Prometheus metrics; BentoML adds its own of HTTP. No text and no client in any label.

Items a second: `rate(posttrain_reward_items_total[1m])`. Occupancy of batches (the share that is not padding):
`rate(posttrain_reward_batch_tokens_total[1m]) / rate(posttrain_reward_padded_tokens_total[1m])`. Median score:
`histogram_quantile(0.5, sum by (le, source) (rate(posttrain_reward_score_bucket[1m])))`.
"""

import math
from bisect import bisect_left
from collections import Counter as Counts
from collections.abc import Iterable, Sequence
from functools import lru_cache

from prometheus_client import Counter, Gauge, Histogram

from posttrain.reward_model.batching import BatchRecord

SECONDS = (0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)
SCORES = (-10, -5, -3, -2, -1, -0.5, -0.25, -0.01, 0, 0.1, 0.2, 0.4, 0.6, 0.8, 0.99, 1, 1.19, 1.2, 2, 3, 5, 10)
"""Upper bounds of a score's bucket. Those of reward models lie on both sides of 0, those of verifiers from 0 to 1.2;
what verifiers give most has narrow buckets, in which quantiles are not far from it."""
OUTCOMES = ("ok", "refused", "overloaded", "gone", "error")


class Distribution(Histogram):
    """A histogram that takes many values at once: one by one, those of a large request took as long as its verifier."""

    def observe_all(self, values: Sequence[float]) -> None:
        """As `observe` of each value."""
        for index, count in Counts(bisect_left(self._upper_bounds, value) for value in values).items():
            self._buckets[index].inc(count)
        self._sum.inc(math.fsum(values))


class Telemetry:
    """Every metric of the service; made once a process, by `telemetry()`."""

    def __init__(self) -> None:
        self.items = Counter("posttrain_reward_items", "Items scored, by source.", ["source"])
        self.failed = Counter("posttrain_reward_failed_items", "Items that a source failed on, by source.", ["source"])
        self.requests = Counter("posttrain_reward_requests", "Requests to score, by how they ended.", ["outcome"])
        self.seconds = Histogram("posttrain_reward_request_seconds", "Seconds to score one request.", buckets=SECONDS)
        self.queue = Histogram(
            "posttrain_reward_queue_seconds", "Seconds until a request's first batch.", ["source"], buckets=SECONDS
        )
        self.tokens = Counter("posttrain_reward_batch_tokens", "Tokens scored, without padding.", ["source"])
        self.padded = Counter("posttrain_reward_padded_tokens", "Tokens computed, with padding.", ["source"])
        self.rows = Histogram(
            "posttrain_reward_batch_rows", "Items of a batch.", ["source"], buckets=[2**power for power in range(13)]
        )
        self.score = Distribution("posttrain_reward_score", "Scores of items, by source.", ["source"], buckets=SCORES)
        self.mean_score = Gauge(
            "posttrain_reward_request_mean_score",
            "Mean score of the latest request's items, by source.",
            ["source"],
            multiprocess_mode="mostrecent",
        )

    def expect(self, sources: Iterable[str]) -> None:
        """Has every series of these sources from the start: of one that begins with its first event Prometheus does not
        see that event."""
        for outcome in OUTCOMES:
            self.requests.labels(outcome)
        for source in sources:
            for metric in (self.items, self.failed, self.score):
                metric.labels(source)

    def scored(self, source: str, scores: Sequence[float]) -> None:
        """Counts what a source gave the items of one request, those left out that it failed on."""
        if not scores:
            return
        self.score.labels(source).observe_all(scores)
        self.mean_score.labels(source).set(math.fsum(scores) / len(scores))

    def batch(self, source: str, record: BatchRecord) -> None:
        """Counts one forward pass of a reward model."""
        self.tokens.labels(source).inc(record.tokens)
        self.padded.labels(source).inc(record.padded_tokens)
        self.rows.labels(source).observe(record.rows)
        for seconds in record.waits:
            self.queue.labels(source).observe(seconds)


@lru_cache(maxsize=1)
def telemetry() -> Telemetry:
    """The metrics of this process. Made on the first use: prometheus_client looks at where BentoML collects then."""
    return Telemetry()
