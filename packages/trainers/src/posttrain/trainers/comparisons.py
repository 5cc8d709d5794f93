"""Pairs and rankings to what the methods that learn from them train on: token ids of whole answers, best first.

Every answer is rendered as the reward service renders it for scoring (posttrain.data.chat.render_completion), with
its end token unless the data say that it was cut short: its end must not be learnt as one. An answer that does not fit
is not cut here, since what is judged is the whole: its example is dropped and counted.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from posttrain.core.errors import RequestError
from posttrain.data.chat import render_completion, render_prompt
from posttrain.data.rows import Message, Pair, Ranking
from posttrain.trainers.accounts import RowAccount, prompt_number


@dataclass(frozen=True)
class Comparison:
    """One prompt's K answers, best first, as ids; `answers[k]` goes on where `prompt_ids` ends."""

    prompt: list[Message]
    prompt_ids: list[int]
    answers: list[list[int]]
    kind: str

    @property
    def prompt_key(self) -> str:
        """Equal for comparisons of one prompt."""
        return prompt_key(self.prompt)

    @property
    def sequences(self) -> list[list[int]]:
        """Prompt and answer together, for each answer: what the reward service scores."""
        return [self.prompt_ids + answer for answer in self.answers]

    @property
    def tokens(self) -> int:
        """Tokens of the prompt, counted once, and of all answers: the length by which batches are sorted."""
        return len(self.prompt_ids) + sum(map(len, self.answers))

    @property
    def account(self) -> RowAccount:
        """What training on it counts."""
        return RowAccount(sum(map(len, self.sequences)), (prompt_number(self.prompt_ids),))


@dataclass(frozen=True)
class Comparisons:
    """Tokenised comparisons, and how many were too long."""

    rows: list[Comparison]
    dropped: int


def prompt_key(prompt: Sequence[Message]) -> str:
    """A text that is equal for equal prompts."""
    return json.dumps(prompt, ensure_ascii=False, sort_keys=True)


def from_pair(pair: Pair) -> Ranking:
    """A pair as the ranking of two that it is."""
    answers = [pair["chosen"][0], pair["rejected"][0]]
    return {
        "id": pair["id"],
        "prompt": pair["prompt"],
        "completions": [answer["content"] for answer in answers],
        "finished": [not answer.get("interrupted", False) for answer in answers],
        "kind": pair["kind"],
    }


def comparisons(
    tokenizer: PreTrainedTokenizerFast, rankings: Sequence[Ranking], max_length: int, setting: str = "rm.max_length"
) -> Comparisons:
    """Renders every ranking; RequestError, which names the `setting`, when none fits in `max_length` tokens."""
    rows = []
    for ranking in rankings:
        prompt = render_prompt(tokenizer, ranking["prompt"])
        finished = ranking.get("finished", [True] * len(ranking["completions"]))
        whole = [
            render_completion(tokenizer, ranking["prompt"], text, ended)
            for text, ended in zip(ranking["completions"], finished, strict=True)
        ]
        if max(map(len, whole)) <= max_length:
            answers = [ids[len(prompt) :] for ids in whole]
            rows.append(Comparison(ranking["prompt"], prompt, answers, ranking["kind"]))
    if not rows:
        raise RequestError(
            f"none of {len(rankings)} comparisons fits in {max_length} tokens; raise {setting} or shorten the data"
        )
    return Comparisons(rows, len(rankings) - len(rows))
