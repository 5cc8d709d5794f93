"""The numbers that the online loop logs about a rollout, under fixed names, and the guard against stale weights.

Pure functions of what was sampled and computed; they change nothing.
"""

from collections.abc import Sequence

import torch

from posttrain.core.errors import WorkError
from posttrain.trainers.batch import Batch
from posttrain.trainers.kl import k1, k3
from posttrain.trainers.masked import masked_mean
from posttrain.trainers.online_method import Group
from posttrain.trainers.rewards import TruncationRule


def sampling_metrics(groups: Sequence[Group], gold_source: str | None, truncation: TruncationRule) -> dict[str, float]:
    """Rewards and lengths of all completions sampled in a step, those that the method refused included.

    `reward/mean` and `reward/std` are of what the method learns from: under the rule `mask` of finished completions,
    0 if there are none. `score/<source>/…` is raw; `gold/…` is the gold source's, also by kind of prompt.
    """
    completions = [completion for group in groups for completion in group.completions]
    rewards = torch.cat([group.rewards for group in groups])
    finished = torch.tensor([completion.finish_reason == "stop" for completion in completions])
    # Where nothing finished all rewards are the rule's zeros.
    metrics = _mean_and_std("reward", rewards[finished] if truncation == "mask" and finished.any() else rewards)
    for source in groups[0].scores:
        metrics |= _mean_and_std(f"score/{source}", torch.cat([group.scores[source] for group in groups]))
    if gold_source:
        metrics |= _mean_and_std("gold", torch.cat([group.scores[gold_source] for group in groups]))
        for kind in sorted({group.prompt.prompt["kind"] for group in groups}):
            of_kind = [group.scores[gold_source] for group in groups if group.prompt.prompt["kind"] == kind]
            metrics[f"gold/{kind}"] = float(torch.cat(of_kind).mean())
    lengths = [len(completion.token_ids) for completion in completions]
    return metrics | {
        "completion/length": sum(lengths) / len(lengths),
        "completion/truncated": sum(c.finish_reason == "length" for c in completions) / len(completions),
        "tokens_generated": float(sum(lengths)),
    }


def kl_metrics(batch: Batch) -> dict[str, float]:
    """With a reference the KL from it: `kl`, the mean over completions of Σ_t k1, and `kl/k3`, that of k3 a token."""
    if batch.ref_logprobs is None:
        return {}
    return {
        "kl": float(k1(batch.logprobs, batch.ref_logprobs).sum(dim=1).mean()),
        "kl/k3": float(masked_mean(k3(batch.logprobs, batch.ref_logprobs), batch.mask)),
    }


def mismatch_metrics(differences: Sequence[torch.Tensor]) -> dict[str, float]:
    """Engine against trainer: mean and largest of |log-probability difference| of tokens (at least one), in nats."""
    every = torch.cat([difference.flatten() for difference in differences])
    return {"engine/mismatch_mean": float(every.mean()), "engine/mismatch_max": float(every.max())}


def check_mismatch(metrics: dict[str, float], limit: float, step: int) -> None:
    """WorkError when the engine's log-probabilities are not those of the weights in training."""
    mismatch = metrics["engine/mismatch_mean"]
    if not mismatch <= limit:
        raise WorkError(
            f"step {step}: the policy service's log-probabilities differ from the trainer's by {mismatch:.3g} nats a "
            f"token on average (mismatch_limit {limit}); it serves other weights or samples in another way"
        )


def _mean_and_std(name: str, values: torch.Tensor) -> dict[str, float]:
    return {f"{name}/mean": float(values.mean()), f"{name}/std": float(values.std(correction=0))}
