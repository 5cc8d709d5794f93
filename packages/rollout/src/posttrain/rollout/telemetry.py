"""The policy service's Prometheus metrics; BentoML adds its own of HTTP. No prompt, no text, no client in any label.

Tokens per second are the rates of the counters; occupancy is running sequences over slots.
"""

from prometheus_client import Counter, Gauge, Histogram

SECONDS = [0.001 * 2**power for power in range(20)]
"""A millisecond to nine minutes."""

GENERATED_TOKENS = Counter("posttrain_policy_generated_tokens", "Tokens sampled.")
PROMPT_TOKENS = Counter("posttrain_policy_prompt_tokens", "Prompt tokens of the sequences that were started.")
GENERATION_SECONDS = Counter("posttrain_policy_generation_seconds", "Seconds spent generating.")
OUTCOMES = ("completed", "disconnected", "deadline", "overloaded", "refused", "failed")
REQUESTS = Counter("posttrain_policy_requests", f"Requests by how they ended: {', '.join(OUTCOMES)}.", ["outcome"])
# All there from the start: of a series that begins with its first event Prometheus does not see that event.
for _outcome in OUTCOMES:
    REQUESTS.labels(_outcome)
WEIGHTS_VERSION = Gauge("posttrain_policy_weights_version", "Version that serves now.", multiprocess_mode="mostrecent")
WAITING = Gauge("posttrain_policy_waiting_sequences", "Sequences not started yet.", multiprocess_mode="mostrecent")
RUNNING = Gauge("posttrain_policy_running_sequences", "Sequences in flight.", multiprocess_mode="mostrecent")
SLOTS = Gauge("posttrain_policy_slots", "Sequences that may be in flight.", multiprocess_mode="mostrecent")
BATCH_SIZE = Histogram(
    "posttrain_policy_batch_size", "Sequences in flight, at each step.", buckets=[2**power for power in range(11)]
)
QUEUE_SECONDS = Histogram(
    "posttrain_policy_queue_seconds", "From a request's acceptance until its first sequence starts.", buckets=SECONDS
)
FIRST_TOKEN_SECONDS = Histogram(
    "posttrain_policy_first_token_seconds", "From a request's acceptance to its first token.", buckets=SECONDS
)
OUTPUT_TOKEN_SECONDS = Histogram(
    "posttrain_policy_output_token_seconds",
    "Seconds a token of a request's longest sequence, after its first.",
    buckets=[0.00001 * 2**power for power in range(20)],
)
