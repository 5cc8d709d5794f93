"""A rollout with its raw scores: prompts and a step go in, completions and what each source says of them come out.

All prompts in one request and all completions in another, or prompt by prompt: then completions are scored as soon as
those of their prompt have ended, while the service goes on with the rest. Completions and the scores of verifiers do
not depend on who is faster. Those of a reward model do in their last digits (1e-4): the reward service merges the
requests that wait, so the shapes of its batches, and with them its rounding, follow the times of arrival.
"""

import time
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from posttrain.core.clients import Completion, RewardClient
from posttrain.core.seeds import derive_seed
from posttrain.trainers.online_settings import OnlineSettings
from posttrain.trainers.phases import Phases
from posttrain.trainers.rewards import score_completions
from posttrain.trainers.rollouts import RenderedPrompt, VersionedPolicy

REQUESTS_AT_ONCE = 256
"""As many sequences as our engine runs together; a thread each, which waits for its answer most of the time."""


class ScoredRollout(NamedTuple):
    """`completions[prompt][choice]`, and each source's scores of all of them in that order."""

    completions: list[list[Completion]]
    scores: dict[str, Float[Tensor, " batch"]]


class ScoredRollouts:
    """Both services as one source of scored completions; `settings` say how many, how long, and in how many requests.

    `sources` are what the reward service is asked for.
    """

    def __init__(
        self, policy: VersionedPolicy, reward: RewardClient, sources: Sequence[str], settings: OnlineSettings
    ) -> None:
        self.policy, self.reward, self.sources, self.settings = policy, reward, sources, settings

    def take(self, prompts: Sequence[RenderedPrompt], step: int, seed: int, phases: Phases) -> ScoredRollout:
        """Completions by the weights of `step`. The phase `generation` ends with the last of them, `reward` is the
        time after it."""
        if self.settings.overlap_scoring:
            return self._by_prompt(prompts, step, seed, phases)
        with phases("generation"):
            completions = self._complete(prompts, step, seed)
        with phases("reward"):
            return ScoredRollout(completions, self._score(prompts, completions))

    def _complete(self, prompts: Sequence[RenderedPrompt], step: int, seed: int) -> list[list[Completion]]:
        return self.policy.complete(
            [prompt.ids for prompt in prompts],
            step,
            n=self.settings.samples_per_prompt,
            max_tokens=self.settings.max_new_tokens,
            temperature=self.settings.temperature,
            seed=seed,
        )

    def _score(
        self, prompts: Sequence[RenderedPrompt], completions: Sequence[Sequence[Completion]]
    ) -> dict[str, Float[Tensor, " batch"]]:
        pairs = [(p.prompt, c) for p, choices in zip(prompts, completions, strict=True) for c in choices]
        return score_completions(self.reward, self.sources, [p for p, _ in pairs], [c for _, c in pairs])

    def _by_prompt(self, prompts: Sequence[RenderedPrompt], step: int, seed: int, phases: Phases) -> ScoredRollout:
        began = time.perf_counter()
        failures: list[BaseException] = []  # the first is the cause; after it nothing further is asked

        def unless_failed() -> None:
            if failures:
                raise CancelledError

        def one(place: int) -> tuple[list[Completion], float, dict[str, Tensor]]:
            try:
                unless_failed()
                (choices,) = self._complete([prompts[place]], step, derive_seed(seed, "prompt", place))
                ended = time.perf_counter()
                unless_failed()
                return choices, ended, self._score([prompts[place]], [choices])
            except BaseException as error:
                failures.append(error)
                raise

        pool = ThreadPoolExecutor(min(len(prompts), REQUESTS_AT_ONCE), "rollout")
        try:
            futures = [pool.submit(one, place) for place in range(len(prompts))]
            wait(futures, return_when=FIRST_EXCEPTION)
            if failures:
                raise failures[0]
            parts = [future.result() for future in futures]
        except BaseException as error:
            failures.append(error)  # an interrupt of this thread stops the others too
            raise
        finally:
            # A request under way may take minutes, and the failure should be known before: its thread ends by itself
            # when the answer comes, which nobody reads.
            pool.shutdown(wait=not failures, cancel_futures=True)
        generated = max(ended for _, ended, _ in parts)
        phases.add("generation", generated - began)
        phases.add("reward", time.perf_counter() - generated)
        scores = {source: torch.cat([part[source] for _, _, part in parts]) for source in self.sources}
        return ScoredRollout([choices for choices, _, _ in parts], scores)
