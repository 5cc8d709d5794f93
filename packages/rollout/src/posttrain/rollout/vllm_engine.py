"""vLLM's engine as one of ours: its scheduler, paged cache and kernels behind the same requests, routes and metrics.

Takes vLLM's `LLMEngine`, made by `vllm_load.py` in an environment that has vllm, and runs it in the thread that steps.
vLLM holds one version of the weights: samples of another wait in here until those in flight have ended, then the
weights are replaced and the prefix cache is emptied. Where top_p, top_k or min_p truncate, vLLM's log-probabilities
are those after truncation (training leaves these off).
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import PreTrainedModel

from posttrain.core.errors import RequestError, WorkError
from posttrain.rollout.engine import MAX_BATCH, Engine, Step
from posttrain.rollout.sample import PromptLogprobs, Sample, TopLogprobs, Weights
from posttrain.rollout.sampling import Sampling
from posttrain.rollout.vllm_weights import renew_weights

if TYPE_CHECKING:
    from vllm.v1.engine.llm_engine import LLMEngine

LARGEST_SEED = 2**63 - 1


class VllmEngine(Engine):
    """Generates with `llm`; `model` gives names and shapes of its parameters only and may be without storage.

    `sleeps`: vLLM gives the device's memory back whenever nothing is in flight, and takes it again for the next sample.
    """

    def __init__(
        self,
        llm: "LLMEngine",
        model: PreTrainedModel,
        eos_ids: Collection[int],
        max_batch: int = MAX_BATCH,
        digest: str = "",
        sleeps: bool = False,
    ) -> None:
        super().__init__(model, eos_ids, max_batch)
        self._llm, self._sleeps = llm, sleeps
        self.context = min(self.context, llm.model_config.max_model_len)
        # `held` is a copy in the host's memory; the first weights are in the checkpoint still.
        self.weights = Weights(0, digest, None)
        self._loaded: Weights | None = self.weights
        self._waiting: list[Sample] = []
        self._flying: dict[str, Sample] = {}
        self._names = map(str, count())

    @property
    def free(self) -> int:
        # A few more than run together, so that vLLM never waits for us to refill it.
        return max(0, 2 * self.max_batch - self.running)

    @property
    def running(self) -> int:
        return len(self._waiting) + len(self._flying)

    def check(self, prompt: Sequence[int], sampling: Sampling) -> None:
        """As `Engine.check`; also RequestError for `echo` at a temperature that vLLM does not apply to prompts."""
        super().check(prompt, sampling)
        if sampling.echo and sampling.temperature not in (0.0, 1.0):
            raise RequestError("vLLM tells a prompt's log-probabilities at temperature 1 only; echo with temperature 1")
        if len(prompt) == self.context:
            raise RequestError(f"vLLM samples a token at least, and the prompt fills the context of {self.context}")

    def add(self, samples: Sequence[Sample]) -> None:
        for sample in samples:
            sample.weights = sample.weights or self.weights
        self._waiting.extend(samples)

    def step(self) -> Step:
        ended = self._take_out_cancelled()
        self._admit()
        tokens = 0
        for output in self._llm.step() if self._flying else ():
            sample = self._flying[output.request_id]
            tokens += self._record(sample, output)
            if output.finished or sample.finish_reason:
                del self._flying[output.request_id]
                sample.finish_reason = sample.finish_reason or _end_of(output)
                ended.append(sample)
                if not output.finished:
                    self._llm.abort_request([output.request_id])
        if self._sleeps and not self.running and not self._llm.is_sleeping():
            self._llm.sleep(level=1)
        return Step(tokens, ended)

    def drop(self) -> None:
        self._llm.abort_request(list(self._flying))
        self._flying.clear()
        self._waiting.clear()

    def load(self, tensors: Mapping[str, torch.Tensor], version: int, digest: str) -> Weights:
        self.weights = Weights(version, digest, dict(tensors))
        return self.weights

    def _take_out_cancelled(self) -> list[Sample]:
        names = [name for name, sample in self._flying.items() if sample.cancelled]
        self._llm.abort_request(names)
        ended = [self._flying.pop(name) for name in names] + [sample for sample in self._waiting if sample.cancelled]
        self._waiting = [sample for sample in self._waiting if not sample.cancelled]
        for sample in ended:
            sample.finish_reason = "cancelled"
        return ended

    def _admit(self) -> None:
        """Hands to vLLM what waits for the weights that it holds; others have to wait until nothing is in flight."""
        if self._waiting and self._sleeps and self._llm.is_sleeping():
            self._llm.wake_up()
        while self._waiting:
            if self._loaded is None:
                raise WorkError("vLLM failed to load weights before and is not sound since; restart the service")
            entering = [sample for sample in self._waiting if sample.weights is self._loaded]
            if entering:
                self._waiting = [sample for sample in self._waiting if sample.weights is not self._loaded]
                for sample in entering:
                    name = next(self._names)
                    self._llm.add_request(name, {"prompt_token_ids": list(sample.prompt)}, self._parameters(sample))
                    self._flying[name] = sample
                return
            if self._flying:
                return
            weights = self._waiting[0].weights
            assert weights is not None
            self._renew(weights)

    def _renew(self, weights: Weights) -> None:
        self._loaded = None  # vLLM 0.32 keeps parts of a load that failed among those of later ones
        self._llm.collective_rpc(renew_weights, args=(weights.held,))
        if not self._llm.reset_prefix_cache():
            raise WorkError("vLLM did not empty its prefix cache, which holds keys and values of other weights")
        self._loaded = weights

    def _parameters(self, sample: Sample) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        asked = sample.sampling
        return SamplingParams(
            max_tokens=max(asked.max_tokens, 1),
            temperature=asked.temperature,
            top_p=asked.top_p,
            top_k=max(asked.top_k, 0),
            min_p=asked.min_p,
            logit_bias=asked.logit_bias or None,
            seed=sample.seed & LARGEST_SEED if asked.temperature else None,
            stop_token_ids=[] if asked.ignore_eos else sorted(self.eos_ids),
            ignore_eos=asked.ignore_eos,
            logprobs=asked.top_logprobs,
            prompt_logprobs=asked.top_logprobs if asked.echo else None,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )

    def _record(self, sample: Sample, output: Any) -> int:
        """Adds to the sample what vLLM says of it since the last step; how many tokens that are."""
        if sample.sampling.echo and output.prompt_logprobs is not None:
            sample.prompt_logprobs = _prompt_logprobs(output.prompt_logprobs, sample.sampling.top_logprobs)
        if sample.sampling.max_tokens == 0:
            sample.finish_reason = "length"
            return 0
        completion, taken = output.outputs[0], 0
        for token, start, end in zip(
            completion.token_ids, completion.logprobs.start_indices, completion.logprobs.end_indices, strict=True
        ):
            taken += 1
            logprob, top = _place(completion.logprobs, start, end, sample.sampling.top_logprobs)
            sample.take(token, logprob, top, token in self.eos_ids)
            if sample.finish_reason:
                break
        return taken


def _end_of(output: Any) -> Literal["stop", "length"]:
    """Why vLLM ended what we did not end; WorkError when nothing that was asked for did."""
    reason = output.outputs[0].finish_reason
    if reason not in ("stop", "length"):
        raise WorkError(f"vLLM ended a sequence with '{reason}'; see its log")
    return reason


def _place(flat: Any, start: int, end: int, top: int) -> tuple[float, TopLogprobs]:
    """One position of vLLM's flat log-probabilities: the token's own, which comes first, and the `top` best."""
    best = range(start + 1, min(end, start + 1 + top))
    return flat.logprobs[start], [(flat.token_ids[i], flat.logprobs[i]) for i in best]


def _prompt_logprobs(flat: Any, top: int) -> PromptLogprobs:
    told = PromptLogprobs()
    # Nothing predicts the first token, whose place is empty.
    for start, end in zip(flat.start_indices[1:], flat.end_indices[1:], strict=True):
        logprob, best = _place(flat, start, end, top)
        told.logprobs.append(logprob)
        if top:
            told.top.append(best)
    return told
