"""How good a reward model is, and where its zero lies: held-out pairwise accuracy and the reward offset.

Takes a model and tokenised comparisons; trains nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from trl.trainer.utils import pad

from posttrain.core.errors import RequestError
from posttrain.core.seeds import derive_seed
from posttrain.core.statistics import mean_and_se, paired_difference
from posttrain.data.chat import render_completion, render_prompt
from posttrain.trainers.comparisons import Comparison
from posttrain.trainers.rollouts import VersionedPolicy

BATCH = 64


@dataclass(frozen=True)
class Accuracy:
    """A share of `n` pairs. Pairs of one prompt depend on each other: the standard error is clustered by prompt, and
    None where there is one prompt only."""

    accuracy: float
    standard_error: float | None
    n: int


@torch.no_grad()
def score(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, sequences: Sequence[list[int]]
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The model's score of each id list, in order, without offset; batched by length, in evaluation mode."""
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    order = sorted(range(len(sequences)), key=lambda index: len(sequences[index]))
    scores = np.zeros(len(sequences))
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        ids = [torch.tensor(sequences[index]) for index in chosen]
        # Under an adapter the body may be held in bf16 and the head in fp32.
        with torch.autocast(device.type, torch.bfloat16, enabled=model.dtype == torch.bfloat16):
            logits = model(
                input_ids=pad(ids, padding_value=tokenizer.pad_token_id).to(device),
                attention_mask=pad([torch.ones_like(row) for row in ids], padding_value=0).to(device),
                use_cache=False,
            ).logits
        scores[chosen] = logits.squeeze(-1).double().cpu().numpy()
    model.train(was_training)
    return scores


def pairwise_accuracy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, rows: Sequence[Comparison]
) -> dict[str, Accuracy]:
    """Share of pairs whose better answer scores higher (a tie counts half), under "all" and under each kind."""
    scores = score(model, tokenizer, [sequence for row in rows for sequence in row.sequences])
    right: list[float] = []
    prompts: list[str] = []
    kinds: list[str] = []
    first = 0
    for row in rows:
        for better, worse in combinations(scores[first : first + len(row.answers)], 2):
            right.append(float(better > worse) + 0.5 * float(better == worse))
            prompts.append(row.prompt_key)
            kinds.append(row.kind)
        first += len(row.answers)
    result = {"all": _accuracy(right, prompts)}
    for kind in sorted(set(kinds)):
        chosen = [index for index, of in enumerate(kinds) if of == kind]
        result[kind] = _accuracy([right[i] for i in chosen], [prompts[i] for i in chosen])
    return result


def reward_offset(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    rows: Sequence[Comparison],
    policy: VersionedPolicy | None,
    prompts: int,
    max_tokens: int,
    seed: int,
) -> tuple[float, dict[str, Any]]:
    """Mean score of the SFT policy's samples, and what these were, with standard error and n.

    With a policy service, one sample each for up to `prompts` held-out prompts; without, the answers of the held-out
    comparisons stand in, which are the SFT policy's own where the preferences stage made them. RequestError for fewer
    than two.
    """
    if policy is None:
        sequences = [sequence for row in rows for sequence in row.sequences]
        origin = "answers of the held-out comparisons"
    else:
        messages = list({row.prompt_key: row.prompt for row in rows}.values())[:prompts]
        sampled = policy.complete(
            [render_prompt(tokenizer, prompt) for prompt in messages],
            step=0,
            n=1,
            max_tokens=max_tokens,
            temperature=1.0,
            seed=derive_seed(seed, "reward offset"),
        )
        sequences = [
            render_completion(tokenizer, prompt, choices[0].text, choices[0].finish_reason == "stop")
            for prompt, choices in zip(messages, sampled, strict=True)
        ]
        origin = "samples from the policy service"
    if len(sequences) < 2:
        raise RequestError(
            f"the reward model's zero is the mean score of two held-out answers or more, there are {len(sequences)}; "
            "give more pairs, or raise rm.held_out or rm.offset_prompts"
        )
    estimate = mean_and_se(score(model, tokenizer, sequences))
    return estimate.value, {"origin": origin, "standard_error": estimate.standard_error, "n": estimate.n}


def _accuracy(right: list[float], prompts: list[str]) -> Accuracy:
    error = None
    if len(set(prompts)) > 1:
        error = paired_difference(right, np.zeros(len(right)), prompts).standard_error
    return Accuracy(float(np.mean(right)), error, len(right))
