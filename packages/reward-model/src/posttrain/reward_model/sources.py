"""The sources of reward that a service offers: each has a name, a digest or version, and takes or refuses items.

A request is handled in two passes. `prepare` looks at every item and raises before anything is scored; `submit` then
scores. What each source prepares differs: a reward model encodes the item, a verifier checks its reference.
"""

import logging
import math
import numbers
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

from posttrain.core.errors import RequestError, WorkError
from posttrain.core.wire import ScoreItem
from posttrain.reward_model.batching import BatchingQueue
from posttrain.reward_model.settings import RewardServiceSettings
from posttrain.reward_model.verifiers import BUILT_IN, Verifier, installed_verifiers, load_function
from posttrain.reward_model.verifiers.functions import is_function_spec

log = logging.getLogger(__name__)


class Source(Protocol):
    """Anything that scores items."""

    digest: str

    def prepare(self, item: ScoreItem) -> Any:
        """What `submit` needs of the item; RequestError when this source cannot take it."""

    def submit(self, prepared: Sequence[Any]) -> Future[list[float]]:
        """The scores of prepared items, in order and finite; WorkError names the item that failed."""


class VerifierSource:
    """A verifier, run in a thread of its own: a user's function may be slow, and need not stand several threads."""

    def __init__(self, name: str, verifier: Verifier) -> None:
        self.name, self.verifier, self.digest = name, verifier, verifier.version
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"score {name}")

    def prepare(self, item: ScoreItem) -> ScoreItem:
        self.verifier.check(item.reference)
        return item

    def submit(self, prepared: Sequence[ScoreItem]) -> Future[list[float]]:
        return self._thread.submit(lambda: [self._score(index, item) for index, item in enumerate(prepared)])

    def _score(self, index: int, item: ScoreItem) -> float:
        where = f"source '{self.name}' failed on items[{index}]"
        try:
            score = self.verifier.score(_plain_prompt(item), item.completion, item.reference)
        except Exception as error:
            # Its message may repeat the item: it is for the owner's log, not for the caller.
            log.exception(where)
            raise WorkError(
                f"{where}: it raised {type(error).__name__}; the service's log has the traceback"
            ) from error
        if not isinstance(score, numbers.Real):
            raise WorkError(f"{where}: it returned a {type(score).__name__}, not a number")
        if not math.isfinite(score):
            raise WorkError(f"{where}: it returned {float(score)}, which is not finite")
        return float(score)


class ModelSource:
    """A reward model, batched over all requests."""

    def __init__(self, name: str, checkpoint: str, settings: RewardServiceSettings) -> None:
        # torch and transformers take seconds to import; a service of verifiers alone does without them.
        import torch

        from posttrain.reward_model.scorer import RewardModel

        if settings.threads:
            torch.set_num_threads(settings.threads)
        self.model = RewardModel(checkpoint, batch_tokens=settings.batch_tokens)
        self.digest = self.model.digest
        self._queue = BatchingQueue(self.model.score, name)

    def prepare(self, item: ScoreItem) -> list[int]:
        return self.model.encode(_plain_prompt(item), item.completion, item.finish_reason == "stop")

    def submit(self, prepared: Sequence[list[int]]) -> Future[list[float]]:
        return self._queue.submit(prepared)


def load_sources(settings: RewardServiceSettings) -> dict[str, Source]:
    """Every source by name, loaded: the built-in verifiers, installed ones, and those of the settings."""
    verifiers, models = resolve(settings.sources)
    sources: dict[str, Source] = {name: VerifierSource(name, verifier) for name, verifier in verifiers.items()}
    return sources | {name: ModelSource(name, checkpoint, settings) for name, checkpoint in models.items()}


def resolve(specs: Mapping[str, str]) -> tuple[dict[str, Verifier], dict[str, str]]:
    """All verifiers by name, and the checkpoints among `specs` by name.

    A spec is `file.py:function`, the name of a verifier that is there anyway, or else a checkpoint. RequestError
    names a function that cannot be loaded or a name that is taken.
    """
    verifiers = dict(BUILT_IN)
    for name, verifier in installed_verifiers().items():
        _refuse_taken(name, verifiers)
        verifiers[name] = verifier
    offered, models = dict(verifiers), {}
    for name, spec in specs.items():
        if spec in offered:
            if name != spec:
                _refuse_taken(name, verifiers)
            verifiers[name] = offered[spec]
            continue
        _refuse_taken(name, verifiers)
        if is_function_spec(spec):
            verifiers[name] = load_function(name, spec)
        elif spec.endswith(".py"):
            raise RequestError(f"source '{name}': {spec} names no function; give path/to/file.py:function")
        else:
            models[name] = spec
    return verifiers, models


def _plain_prompt(item: ScoreItem) -> Any:
    """The item's prompt as plain JSON: a text or a list of messages."""
    return item.prompt if isinstance(item.prompt, str) else [message.model_dump() for message in item.prompt]


def _refuse_taken(name: str, taken: dict[str, Verifier]) -> None:
    if name in taken:
        raise RequestError(f"source '{name}' exists already (version {taken[name].version}); choose another name")
