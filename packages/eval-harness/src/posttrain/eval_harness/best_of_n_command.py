"""What `posttrain eval --best-of` is given, as the BestOf that evaluate() takes: services, and weights of rewards."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from posttrain.core.clients import PolicyClient, RewardClient
from posttrain.core.errors import RequestError, suggest
from posttrain.core.hashing import digest_file, digest_json
from posttrain.core.stock_vllm import connect_policy
from posttrain.eval_harness.best_of_n import BestOf


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
    return BestOf(n, partial(policy.complete, version=_holding(policy, checkpoint)), reward, weights, seed)


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


def _holding(policy: PolicyClient, checkpoint: str) -> int | None:
    """The version under which the service holds this checkpoint's weights, which are pushed if it holds others.

    None, the current weights taken on trust, for a stock vLLM server, which does not say what it holds, and for a
    checkpoint that is not one file.
    """
    file = Path(checkpoint) / "model.safetensors"
    held = policy.models()["data"][0]
    if "sha256" not in held or not file.is_file():
        return None
    version = int(held["version"])
    if held["sha256"] != digest_file(file):
        version += 1
        policy.push(version, file)
    return version
