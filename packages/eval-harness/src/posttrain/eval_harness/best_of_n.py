"""Best of n on lm-eval's generation tasks: the policy service samples n answers, the reward service picks one.

The prompts' ids, stop strings, number of new tokens and the reading of an answer are those of CheckpointLM, so that the
rows of a table differ in the policy only. Sampling is at temperature 1, whatever a task says, because the KL of best
of n is known for the policy's own samples. The reward sees the conversation that lm-eval renders and the answer up to
its stop string, and no reference: a source that needs one (a verifier) would be the test's own judge and is refused by
the service. An answer that was cut at its length counts as the lowest of all scores.

An item's answer depends on the seed, its task and its number, and on nothing else that is asked with it.
"""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from posttrain.core.clients import Completion, RewardClient
from posttrain.core.errors import RequestError
from posttrain.core.seeds import derive_seed
from posttrain.eval_harness.taskwise import Limits
from posttrain.eval_harness.weightless import WeightlessLM


class Sampler(Protocol):
    """Samples from the checkpoint that is evaluated: `functools.partial(policy_client.complete, version=None)`, or with
    the version that holds its weights."""

    def __call__(
        self, prompts: Sequence[list[int]], *, n: int, max_tokens: int, temperature: float, seed: int
    ) -> list[list[Completion]]:
        """`[prompt][choice]`, decided by the arguments alone; called from several threads."""


@dataclass(frozen=True)
class BestOf:
    """How many samples, whence, and what picks."""

    n: int
    sample: Sampler
    reward: RewardClient
    rewards: Mapping[str, float]
    """Reward source to weight; the weighted sum of the scores picks."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n < 1 or not self.rewards:
            raise RequestError(f"best of {self.n} by {len(self.rewards)} rewards picks nothing; both are at least 1")

    @property
    def backend(self) -> str:
        """What stands in a result's key."""
        return f"best_of_{self.n}"

    @property
    def note(self) -> str:
        """What a reader of the numbers should know."""
        weights = " + ".join(f"{weight:g} · {source}" for source, weight in self.rewards.items())
        return f"each answer is the best of {self.n} samples at temperature 1 by {weights}"


class BestOfLM(WeightlessLM):
    """The checkpoint without its weights; answers come from `best_of`."""

    def __init__(self, checkpoint: str, batch_size: int, revision: str | None, best_of: BestOf) -> None:
        super().__init__(checkpoint, batch_size, revision)
        self._best_of = best_of
        self._conversations: dict[str, tuple[list[dict[str, str]], str]] = {}
        """Rendered prompt to its messages and to what the assistant is made to begin its answer with."""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """As CheckpointLM's, and remembers the messages for the reward."""
        text = super().apply_chat_template(chat_history, add_generation_prompt)
        if add_generation_prompt:
            self._conversations[text] = (chat_history, "")
        else:
            self._conversations[text] = (chat_history[:-1], chat_history[-1]["content"])
        return text

    def _generate(
        self, requests: Sequence[Any], prompts: Sequence[list[int]], limits: Limits, shared: Any
    ) -> list[str]:
        seeds = [self.seed_of(request) for request in requests]

        def sample(ids: list[int], seed: int) -> list[Completion]:
            (choices,) = self._best_of.sample(
                [ids], n=self._best_of.n, max_tokens=limits.new_tokens, temperature=1.0, seed=seed
            )
            return choices

        # The service generates for all of them together. They are scored one by one: a reward model's last digits, and
        # with them a close call, would depend on what else is in its batch.
        with ThreadPoolExecutor(len(requests)) as pool:
            sampled = pool.map(sample, prompts, seeds)
            return [
                self._pick(request, choices, limits.stops) for request, choices in zip(requests, sampled, strict=True)
            ]

    def seed_of(self, request: Any) -> int:
        """As the checkpoint's samples, by the seed of the choice."""
        item = (request.task_name, request.doc_id)
        self._asked[item] += 1
        return derive_seed(self._best_of.seed, "best of n", *item, self._asked[item])

    def _pick(self, request: Any, choices: Sequence[Completion], stops: list[str]) -> str:
        """The answer with the highest reward among those that ended, the first of equals."""
        messages, begun = self._conversations.get(request.args[0], (request.args[0], ""))
        answers = list(dict.fromkeys(self._answer(choice.token_ids, stops) for choice in choices))
        answered = [
            {"prompt": messages, "completion": begun + text, "finish_reason": reason, "reference": None}
            for text, reason in answers
        ]
        scores = self._best_of.reward.score(list(self._best_of.rewards), answered).scores
        rewards = [
            sum(weight * score[source] for source, weight in self._best_of.rewards.items())
            if reason == "stop"
            else -math.inf
            for score, (_, reason) in zip(scores, answers, strict=True)
        ]
        text, reason = answers[max(range(len(answers)), key=rewards.__getitem__)]
        self._note_reason(request, reason)
        return text

    def _likelihoods(self, requests: list[Any], batch_size: int) -> list[tuple[float, bool]]:
        raise RequestError(f"task {self._task} asks for likelihoods, which best of n has not; leave it out")
