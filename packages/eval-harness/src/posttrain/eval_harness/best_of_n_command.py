"""What `posttrain eval --best-of` is given, as the BestOf that evaluate() takes: services, and weights of rewards."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from posttrain.core.clients import RewardClient
from posttrain.core.errors import RequestError, suggest
from posttrain.core.hashing import digest_json
from posttrain.core.stock_vllm import connect_policy
from posttrain.eval_harness.best_of_n import BestOf
from posttrain.eval_harness.service_backend import holding


def connect(
    checkpoint: str, n: int, policy_url: str | None, reward_url: str | None, rewards: Sequence[str] | None, seed: int
) -> BestOf:
    """The services behind the addresses, the policy with the checkpoint's weights; RequestError when one is missing or
    lacks a source."""
    if policy_url is None or reward_url is None:
        missing = "--policy-url" if policy_url is None else "--reward-url"
        raise RequestError(f"--best-of samples and scores over HTTP; give the address of the service by {missing}")
    policy, reward = connect_policy(policy_url), RewardClient(reward_url)
    weights = _weights(rewards or ["rm=1"])
    known = reward.sources()
    for source in weights:
        if source not in known:
            raise RequestError(f"{reward_url} has no reward source '{source}' {suggest(source, known)}")
    return BestOf(n, partial(policy.complete, version=holding(policy, checkpoint)), reward, weights, seed)


def picking_identity(identity: Mapping[str, Any], best_of: BestOf) -> dict[str, Any]:
    """The identity of a checkpoint with what picks among its samples: another reward or seed is another result."""
    sources = best_of.reward.sources()
    picks = [best_of.n, best_of.seed, dict(best_of.rewards), {source: sources[source] for source in best_of.rewards}]
    return {**identity, "fingerprint": digest_json([identity["fingerprint"], picks])}


def _weights(options: Sequence[str]) -> dict[str, float]:
    """`["rm=1", "length=-0.1"]` as a mapping; RequestError for what is no number."""
    weights: dict[str, float] = {}
    for option in options:
        source, _, weight = option.partition("=")
        try:
            weights[source] = float(weight or 1)
        except ValueError:
            raise RequestError(f"--reward takes source=weight, not '{option}' (for example --reward rm=1)") from None
    return weights
