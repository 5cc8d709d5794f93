"""How far a policy is from its reference and what its completions are worth: the table's KL, gold and learned reward.

KL is E over the prompts, y ~ policy at temperature 1, of Σ_t log π(y_t) − log π_ref(y_t), in nats a sequence: k1 on
samples, unbiased; both log-probabilities by the same forward pass here, the samples from the policy service. Trains
nothing and writes nothing.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from posttrain.core.clients import Completion, PolicyClient, RewardClient
from posttrain.core.errors import WorkError
from posttrain.core.seeds import derive_seed
from posttrain.core.statistics import mean_and_se
from posttrain.data.chat import load_tokenizer, render_prompt
from posttrain.data.rows import Prompt
from posttrain.trainers.forward import Layout, completion_logprobs
from posttrain.trainers.kl import k1
from posttrain.trainers.logit_batches import MOST_LOGITS
from posttrain.trainers.models import context_length, load_policy
from posttrain.trainers.online_inputs import fitting_prompts
from posttrain.trainers.packed_attention import read_packed
from posttrain.trainers.packed_rows import PackedRows
from posttrain.trainers.padded_rows import PaddedRows
from posttrain.trainers.quiet import quiet
from posttrain.trainers.rewards import score_completions
from posttrain.trainers.rollouts import RenderedPrompt, fixed_policy

MISMATCH_LIMIT = 0.1
"""Mean absolute difference in nats a token beyond which the service is taken to hold other weights."""


def measure(
    policy: PolicyClient,
    reward: RewardClient,
    prompts: Sequence[Prompt],
    checkpoint: Path,
    reference: Path,
    sources: Sequence[str],
    seed: int,
    *,
    max_new_tokens: int,
    max_prompt_tokens: int | None = None,
    micro_batch_tokens: int = 8192,
) -> dict[str, Any]:
    """Estimates over the prompts, one completion each at temperature 1, and the values that they are means of.

    `{"n", "kl": {"value", "standard_error"}, "rewards": {source: {"value", "standard_error"}}, "truncated",
    "length", "items": [{"id", "kind", "kl", "scores", "text", "finish_reason"}]}`. Scores are as the service gives
    them. The service is given the checkpoint's weights. RequestError for a prompt that does not fit the context.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with quiet():
        model, reference_model = (load_policy(folder).eval() for folder in (checkpoint, reference))
    tokenizer = load_tokenizer(checkpoint)
    rendered = fitting_prompts(
        [RenderedPrompt(prompt, render_prompt(tokenizer, prompt["prompt"])) for prompt in prompts],
        max_new_tokens,
        context_length(model),
        max_prompt_tokens,
    )
    service = fixed_policy(policy, checkpoint)
    choices = service.complete(
        [prompt.ids for prompt in rendered],
        0,
        n=1,
        max_tokens=max_new_tokens,
        temperature=1.0,
        seed=derive_seed(seed, "measure"),
    )
    completions = [completion for (completion,) in choices]
    scores = score_completions(reward, sources, [prompt.prompt for prompt in rendered], completions)
    micro_batch_tokens = min(micro_batch_tokens, MOST_LOGITS // model.config.get_text_config().vocab_size)
    kl = sequence_kl(model.to(device), reference_model.to(device), rendered, completions, micro_batch_tokens)
    items = [
        {
            "id": prompt.prompt["id"],
            "kind": prompt.prompt["kind"],
            "kl": kl[i],
            "scores": {source: float(values[i]) for source, values in scores.items()},
            "text": completion.text,
            "finish_reason": completion.finish_reason,
        }
        for i, (prompt, completion) in enumerate(zip(rendered, completions, strict=True))
    ]
    return {
        "n": len(items),
        "kl": mean_and_se(kl).with_error,
        "rewards": {source: mean_and_se(values.tolist()).with_error for source, values in scores.items()},
        "truncated": sum(completion.finish_reason == "length" for completion in completions) / len(items),
        "length": sum(len(completion.token_ids) for completion in completions) / len(items),
        "items": items,
    }


@torch.inference_mode()
def sequence_kl(
    model: Any,
    reference: Any,
    prompts: Sequence[RenderedPrompt],
    completions: Sequence[Completion],
    micro_batch_tokens: int,
) -> list[float]:
    """Σ_t k1 of each completion at temperature 1, in nats; WorkError if `model` is not what sampled them."""
    result, mismatch = [0.0] * len(prompts), 0.0
    layout: Layout = PackedRows() if read_packed(model) and read_packed(reference) else PaddedRows()
    prompt_ids, completion_ids = [prompt.ids for prompt in prompts], [c.token_ids for c in completions]
    groups = range(len(prompts))
    for index in layout.split(prompt_ids, completion_ids, groups, micro_batch_tokens):
        rows = layout.rows(
            [prompt_ids[i] for i in index],
            [completion_ids[i] for i in index],
            [groups[i] for i in index],
            model.device,
        )
        logprobs, _ = completion_logprobs(model, rows)
        ref_logprobs, _ = completion_logprobs(reference, rows)
        sampled = torch.zeros_like(logprobs).masked_scatter(
            rows.mask,
            torch.tensor([logprob for i in index for logprob in completions[i].logprobs], device=model.device),
        )
        mismatch += float((sampled - logprobs).abs().sum())
        for i, value in zip(index, k1(logprobs, ref_logprobs).sum(dim=1).tolist(), strict=True):
            result[i] = value
    mismatch /= sum(len(completion.token_ids) for completion in completions)
    if not mismatch <= MISMATCH_LIMIT:
        raise WorkError(
            f"the policy service's log-probabilities differ from the checkpoint's by {mismatch:.3g} nats a token on "
            "average; it serves other weights"
        )
    return result
