"""Preference pairs out of scored completions: which two of a prompt's answers are compared, and noise in the labels.

Pure functions of texts, scores and seeds.
"""

import random
from collections.abc import Sequence
from itertools import combinations

from posttrain.core.seeds import derive_seed
from posttrain.data.rows import Pair, Prompt


def pairs_of_prompt(prompt: Prompt, texts: Sequence[str], scores: Sequence[float], limit: int, seed: int) -> list[Pair]:
    """Up to `limit` pairs of a higher and a lower score, drawn at random by (seed, prompt's id).

    Equal texts count once, and equal scores make no pair.
    """
    score_of = dict(zip(texts, scores, strict=True))
    candidates = [(a, b) if score_of[a] > score_of[b] else (b, a) for a, b in combinations(score_of, 2)]
    candidates = [(better, worse) for better, worse in candidates if score_of[better] != score_of[worse]]
    random.Random(derive_seed(seed, "pairs", prompt["id"])).shuffle(candidates)
    return [
        {
            "id": f"{prompt['id']}-{number}",
            "prompt": prompt["prompt"],
            "chosen": [{"role": "assistant", "content": better}],
            "rejected": [{"role": "assistant", "content": worse}],
            "kind": prompt["kind"],
        }
        for number, (better, worse) in enumerate(candidates[:limit])
    ]


def flip_labels(pairs: Sequence[Pair], probability: float, seed: int) -> tuple[list[Pair], int]:
    """The pairs with each one's labels swapped with this probability by (seed, pair's id), and how many were."""
    flipped = [random.Random(derive_seed(seed, "label noise", pair["id"])).random() < probability for pair in pairs]
    noisy: list[Pair] = [
        {**pair, "chosen": pair["rejected"], "rejected": pair["chosen"]} if flip else pair
        for pair, flip in zip(pairs, flipped, strict=True)
    ]
    return noisy, sum(flipped)
