"""The fast engine on a CPU: the kernel of `native/`, with sequences that enter and leave at any step.

A sequence's bits depend on its own tokens, settings and seed alone, never on what else runs or when it entered. A
prompt is computed once for all samples of it that are in flight at a time. Where a request needs more than the kernel
draws by itself (top-k, top-p, min-p, biases, the most probable tokens), the kernel gives logits and `sampling.py`
draws from them.
"""

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakValueDictionary

import numpy as np
import torch
from transformers import PreTrainedModel

from posttrain.rollout.decode import top_logprobs
from posttrain.rollout.engine import MAX_BATCH, Engine, Step
from posttrain.rollout.native.families import family_of
from posttrain.rollout.native.kernel import load_kernel
from posttrain.rollout.native.logit_draws import LogitDraws, needs_logits
from posttrain.rollout.native.packed import PackedModel
from posttrain.rollout.native.structs import ENDED, IDLE, RUNNING, SEGMENT, SEQUENCE
from posttrain.rollout.sample import PromptLogprobs, Sample, Weights
from posttrain.rollout.sampling import Sampler, uniform_draws
from posttrain.rollout.weights import load_weights

STEPS = 8
"""Tokens a sequence may advance in one call where nobody follows token by token."""
FIRST_CAPACITY = 256
"""Positions that a sequence has room for at first; its segment doubles as it grows beyond."""
ECHO_ROWS = 256
"""Positions of a prompt whose log-probabilities are made at a time."""


class _Segment:
    """Keys and values of some positions, and the array that holds them."""

    def __init__(self, model: PackedModel, positions: int, lanes: int) -> None:
        self.capacity = -(-positions // lanes) * lanes
        self.data = torch.empty(model.segment_floats(self.capacity))
        self.length = 0

    @property
    def struct(self) -> tuple[int, int, int]:
        """As the kernel reads it."""
        return self.data.data_ptr(), self.capacity, self.length


_NOTHING = (0, 0, 0)


@dataclass(eq=False)
class _Flight:
    """A sample in a slot, and the memory that its struct points to."""

    sample: Sample
    weights: Weights
    prefix: _Segment | None
    own: _Segment
    uniforms: np.ndarray
    tokens: np.ndarray
    logprobs: np.ndarray
    by_logits: bool
    """Drawn by `sampling.py`, since the kernel alone cannot."""

    @property
    def followed(self) -> bool:
        """Whether somebody wants each token as it comes."""
        return self.by_logits or self.sample.watcher is not None


class NativeEngine(Engine):
    """Runs the kernel on `threads` threads; see `Engine`. NoKernel or NotCovered when it cannot."""

    def __init__(
        self,
        model: PreTrainedModel,
        eos_ids: Collection[int],
        max_batch: int = MAX_BATCH,
        digest: str = "",
        threads: int | None = None,
    ) -> None:
        super().__init__(model, eos_ids, max_batch)
        self.threads = threads or torch.get_num_threads()
        self._kernel = load_kernel()
        self._family = family_of(model, self._kernel.lanes)
        self.weights = Weights(0, digest, self._packed(model))
        self._ends = np.zeros(self.vocab_size, np.uint8)
        self._ends[[token for token in self.eos_ids if token < self.vocab_size]] = 1
        self._slots = np.zeros(max_batch, SEQUENCE)
        self._flights: dict[int, _Flight] = {}
        self._prefixes: WeakValueDictionary[tuple[Weights, tuple[int, ...]], _Segment] = WeakValueDictionary()
        self._ended: list[Sample] = []
        self._draws = LogitDraws(self.vocab_size)

    @property
    def free(self) -> int:
        return self.max_batch - len(self._flights)

    @property
    def running(self) -> int:
        return len(self._flights) + len(self._ended)

    def load(self, tensors: Mapping[str, torch.Tensor], version: int, digest: str) -> Weights:
        model = copy.deepcopy(self.model)
        load_weights(model, tensors)
        self.model, self.weights = model, Weights(version, digest, self._packed(model))
        return self.weights

    def drop(self) -> None:
        self._flights.clear()
        self._ended.clear()
        self._slots["state"] = IDLE

    def add(self, samples: Sequence[Sample]) -> None:
        for sample in samples:
            sample.weights = sample.weights or self.weights
        prefixes = self._compute_prefixes(samples)
        empty = iter(np.flatnonzero(self._slots["state"] == IDLE).tolist())
        draws = uniform_draws([s.seed for s in samples], max(s.sampling.max_tokens for s in samples)).numpy()
        for sample, prefix, uniforms in zip(samples, prefixes, draws, strict=True):
            if sample.sampling.max_tokens == 0:
                sample.finish_reason = "length"
                self._ended.append(sample)
            else:
                self._take_off(next(empty), sample, prefix, uniforms)

    def step(self) -> Step:
        ended, self._ended = self._ended, []
        for slot, flight in list(self._flights.items()):
            if flight.sample.cancelled:
                flight.sample.finish_reason = "cancelled"
                ended.append(self._land(slot))
        tokens = 0
        for weights in dict.fromkeys(flight.weights for flight in self._flights.values()):
            slots = [slot for slot, flight in self._flights.items() if flight.weights is weights]
            tokens += self._advance(weights.held, np.array(slots, np.int32))
            for slot in slots:
                if self._flights[slot].sample.finish_reason:
                    ended.append(self._land(slot))
        return Step(tokens, ended)

    def _packed(self, model: PreTrainedModel) -> PackedModel:
        return PackedModel(model, self._family, self._kernel.panel, self.context)

    def _compute_prefixes(self, samples: Sequence[Sample]) -> list[_Segment | None]:
        """The segment of all but the last token of each sample's prompt; those that are not there are computed."""
        new: dict[Weights, dict[tuple[int, ...], _Segment]] = {}
        found: list[_Segment | None] = []
        for sample in samples:
            weights, text = sample.weights, sample.prompt[:-1]
            assert weights is not None
            computing = new.setdefault(weights, {})
            segment = computing.get(text) or self._prefixes.get((weights, text))
            if sample.sampling.echo:
                segment = self._echo(sample, weights.held)
            elif text and segment is None:
                segment = computing[text] = _Segment(weights.held, len(text), self._kernel.lanes)
            found.append(segment)
        for weights, segments in new.items():
            if segments:
                self._prefill(weights.held, segments)
            # Only now: after a failure nobody may go on from one that is empty.
            self._prefixes.update({(weights, text): segment for text, segment in segments.items()})
        return found

    def _prefill(self, model: PackedModel, segments: Mapping[tuple[int, ...], _Segment]) -> None:
        structs = np.array([segment.struct for segment in segments.values()], SEGMENT)
        self._kernel.prefill(model, list(segments), structs, threads=self.threads)
        for text, segment in segments.items():
            segment.length = len(text)

    def _echo(self, sample: Sample, model: PackedModel) -> _Segment | None:
        """Computes the prompt and what it says of its own tokens."""
        sample.prompt_logprobs = PromptLogprobs()
        text = sample.prompt[:-1]
        if not text:
            return None
        segment = _Segment(model, len(text), self._kernel.lanes)
        logits = self._kernel.prefill(
            model, [text], np.array([segment.struct], SEGMENT), threads=self.threads, logits=True
        )
        assert logits is not None
        segment.length = len(text)
        count = sample.sampling.top_logprobs
        settings = sample.sampling.model_copy(update={"max_tokens": 0})
        for start in range(0, len(text), ECHO_ROWS):
            rows = logits[start : start + ECHO_ROWS]
            logprobs = Sampler([settings] * len(rows), [0] * len(rows), rows.device).logprobs(rows)
            following = torch.tensor(sample.prompt[start + 1 : start + 1 + len(rows)])
            sample.prompt_logprobs.logprobs += logprobs.gather(1, following[:, None])[:, 0].tolist()
            sample.prompt_logprobs.top += top_logprobs(logprobs, [count] * len(rows))
        return segment

    def _take_off(self, slot: int, sample: Sample, prefix: _Segment | None, uniforms: np.ndarray) -> None:
        assert sample.weights is not None
        sampling, limit = sample.sampling, sample.sampling.max_tokens
        flight = _Flight(
            sample,
            sample.weights,
            prefix,
            _Segment(sample.weights.held, min(limit, FIRST_CAPACITY), self._kernel.lanes),
            uniforms,
            np.empty(limit, np.int32),
            np.empty(limit, np.float32),
            needs_logits(sampling),
        )
        self._flights[slot] = flight
        self._slots[slot] = (
            prefix.struct if prefix else _NOTHING,
            flight.own.struct,
            uniforms.ctypes.data,
            flight.tokens.ctypes.data,
            flight.logprobs.ctypes.data,
            0,
            sampling.temperature,
            sample.prompt[-1],
            0,
            limit,
            sampling.ignore_eos,
            RUNNING,
        )

    def _advance(self, model: PackedModel, slots: np.ndarray) -> int:
        """Some tokens for the sequences in `slots`, all on one model's weights; how many in all."""
        flights = [self._flights[slot] for slot in slots.tolist()]
        steps = 1 if any(flight.followed for flight in flights) else STEPS
        before = self._slots["count"][slots]
        self._make_room(model, slots, steps)
        by_logits = {slot: flight for slot, flight in zip(slots.tolist(), flights, strict=True) if flight.by_logits}
        self._draws.prepare(self._slots, list(by_logits), [flight.sample for flight in by_logits.values()])
        self._kernel.decode(model, self._slots, slots, self._ends, steps=steps, threads=self.threads)
        drawn = self._draws.draw(self._slots, list(by_logits))
        rows = zip(by_logits.values(), drawn.tokens, drawn.logprobs, drawn.top, strict=True)
        for flight, token, logprob, top in rows:
            flight.sample.take(token, logprob, top, token in self.eos_ids)
        states, counts = self._slots["state"][slots].tolist(), self._slots["count"][slots]
        for flight, state, old, count in zip(flights, states, before.tolist(), counts.tolist(), strict=True):
            if flight.by_logits:
                continue
            if flight.sample.watcher is not None:
                for token, logprob in zip(flight.tokens[old:count], flight.logprobs[old:count], strict=True):
                    flight.sample.take(int(token), float(logprob), [], int(token) in self.eos_ids)
            elif state != RUNNING:
                flight.sample.token_ids = flight.tokens[:count].tolist()
                flight.sample.logprobs = flight.logprobs[:count].tolist()
                flight.sample.finish_reason = "stop" if state == ENDED else "length"
        return int((counts - before).sum())

    def _make_room(self, model: PackedModel, slots: np.ndarray, steps: int) -> None:
        """Gives sequences that would outgrow their segment in the next `steps` tokens one of twice the size."""
        now = self._slots[slots]
        needed = now["own"]["length"] + np.minimum(steps, now["limit"] - now["count"])
        for slot in slots[needed > now["own"]["capacity"]].tolist():
            flight = self._flights[slot]
            length = int(self._slots["own"]["length"][slot])
            grown = _Segment(model, min(2 * flight.own.capacity, flight.sample.sampling.max_tokens), self._kernel.lanes)
            copy_segment(model, flight.own, grown, length)
            flight.own = grown
            self._slots["own"]["data"][slot], self._slots["own"]["capacity"][slot] = grown.struct[:2]

    def _land(self, slot: int) -> Sample:
        """Frees a slot; its sample."""
        self._slots["state"][slot] = IDLE
        return self._flights.pop(slot).sample


def copy_segment(model: PackedModel, source: _Segment, target: _Segment, length: int) -> None:
    """The first `length` positions of a segment in a larger one."""
    heads, width = model.kv_heads, model.head_dim
    for layer in range(model.layers):
        for part, shape in ((0, (heads, width, -1)), (1, (heads, -1, width))):
            views = []
            for segment in (source, target):
                size = heads * width * segment.capacity
                at = (2 * layer + part) * size
                views.append(segment.data[at : at + size].view(shape))
            old, new = views
            if part == 0:
                new[:, :, :length] = old[:, :, :length]
            else:
                new[:, :length] = old[:, :length]
