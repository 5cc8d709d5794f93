"""The reward service's Prometheus metrics; BentoML adds its own of HTTP. No text and no client in any label.

Items a second: `rate(posttrain_reward_items_total[1m])`. Occupancy of batches (the share that is not padding):
`rate(posttrain_reward_batch_tokens_total[1m]) / rate(posttrain_reward_padded_tokens_total[1m])`.
"""

from functools import lru_cache

from prometheus_client import Counter, Histogram

from posttrain.reward_model.batching import BatchRecord

SECONDS = (0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)


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
