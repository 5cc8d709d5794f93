"""The policy service's Prometheus metrics; BentoML adds its own of HTTP. No prompt, no text, no client in any label."""

from prometheus_client import Counter, Gauge, Histogram

GENERATED_TOKENS = Counter("posttrain_policy_generated_tokens", "Tokens sampled.")
PROMPT_TOKENS = Counter("posttrain_policy_prompt_tokens", "Prompt tokens of the sequences that were started.")
GENERATION_SECONDS = Counter("posttrain_policy_generation_seconds", "Seconds spent generating.")
REQUESTS = Counter("posttrain_policy_requests", "Requests by how they ended.", ["outcome"])
WEIGHTS_VERSION = Gauge("posttrain_policy_weights_version", "Version that serves now.", multiprocess_mode="mostrecent")
WAITING = Gauge("posttrain_policy_waiting_sequences", "Sequences not started yet.", multiprocess_mode="mostrecent")
BATCH_SIZE = Histogram(
    "posttrain_policy_batch_size", "Sequences of a batch as it starts.", buckets=[2**power for power in range(11)]
)
