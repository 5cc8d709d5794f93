"""The sources of reward that a service offers: each has a name, a digest or version, and takes or refuses items.

A request is handled in two passes. `prepare` looks at every item and raises before anything is scored; `submit` then
scores. What each source prepares differs: a reward model encodes the items, a verifier checks their references, a
user's function takes whatever comes. An item of which a verifier or function fails has a Failure instead of a score.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import Any, Protocol

from posttrain.core.errors import RequestError
from posttrain.core.wire import ScoreItem
from posttrain.reward_model.batching import BatchRecord
from posttrain.reward_model.encoding import Answer, RefusedItem
from posttrain.reward_model.ensembles import check_ensembles
from posttrain.reward_model.functions.pool import Failure, FunctionLimits, FunctionPool
from posttrain.reward_model.functions.spec import UserFunction, function_of_file, installed_functions, is_function_spec
from posttrain.reward_model.settings import RewardServiceSettings
from posttrain.reward_model.verifiers import BUILT_IN, Verifier

Column = list[float | Failure]
"""What became of each item of a request at one source; scores are finite."""

OnBatch = Callable[[BatchRecord], None]


class Source(Protocol):
    """Anything that scores items."""

    digest: str

    def prepare(self, items: Sequence[ScoreItem]) -> Sequence[Any]:
        """What `submit` needs of the items; RefusedItem names the first that this source cannot take."""

    def submit(self, prepared: Sequence[Any], until: float) -> "Future[Column]":
        """What becomes of prepared items, in order; to be cancelled when nobody wants it. `until`: monotonic time."""

    def close(self) -> None:
        """Ends threads and processes."""


class VerifierSource:
    """A built-in verifier, in a thread of its own: many long completions keep nobody from being answered."""

    def __init__(self, name: str, verifier: Verifier) -> None:
        self.verifier, self.digest = verifier, verifier.version
        self._jobs: SimpleQueue[tuple[Sequence[ScoreItem], float, Future[Column]] | None] = SimpleQueue()
        self._thread = Thread(target=self._work, name=f"verify {name}", daemon=True)
        self._thread.start()

    def prepare(self, items: Sequence[ScoreItem]) -> Sequence[ScoreItem]:
        for index, item in enumerate(items):
            try:
                self.verifier.check(item.reference)
            except RequestError as error:
                raise RefusedItem(index, str(error)) from None
        return items

    def submit(self, prepared: Sequence[ScoreItem], until: float) -> "Future[Column]":
        future: Future[Column] = Future()
        self._jobs.put((prepared, until, future))
        return future

    def close(self) -> None:
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        while job := self._jobs.get():
            items, until, future = job
            column: Column = []
            for item in items:
                if future.cancelled():
                    break
                column.append(self._score(item) if time.monotonic() < until else Failure("it was not reached in time"))
            if future.set_running_or_notify_cancel():
                future.set_result(column)

    def _score(self, item: ScoreItem) -> float | Failure:
        try:
            score = float(self.verifier.score(plain_prompt(item), item.completion, item.reference))
        except Exception as error:  # noqa: BLE001 - a defect, which costs its item; its message may repeat the item
            return Failure(f"it raised {type(error).__name__}")
        return score if math.isfinite(score) else Failure(f"it gave {score}, which is not finite")


class FunctionSource:
    """A user's own function, in processes of its own."""

    def __init__(self, function: UserFunction, settings: RewardServiceSettings) -> None:
        self.digest = function.version
        limits = FunctionLimits(settings.function_seconds, settings.function_processes, settings.function_memory_mib)
        self._pool = FunctionPool(function, limits)

    def prepare(self, items: Sequence[ScoreItem]) -> Sequence[list[Any]]:
        return [[plain_prompt(item), item.completion, item.reference] for item in items]

    def submit(self, prepared: Sequence[list[Any]], until: float) -> "Future[Column]":
        return self._pool.submit(prepared, until)

    def close(self) -> None:
        self._pool.close()


class ModelSource:
    """A reward model, batched over all requests. A score that is not finite fails the request: its weights are bad."""

    def __init__(self, checkpoint: str, settings: RewardServiceSettings, on_batch: OnBatch | None = None) -> None:
        # torch and transformers take seconds to import; a service of verifiers alone does without them.
        from posttrain.reward_model.scorer import RewardModel

        self.model = RewardModel(checkpoint, batch_tokens=settings.batch_tokens, threads=settings.threads)
        self.digest = self.model.digest
        if on_batch is not None:
            self.model.queue.on_batch = on_batch

    def prepare(self, items: Sequence[ScoreItem]) -> Sequence[list[int]]:
        answers = [Answer(plain_prompt(item), item.completion, item.finish_reason == "stop") for item in items]
        return self.model.encode_batch(answers)

    def submit(self, prepared: Sequence[list[int]], until: float) -> "Future[Column]":
        return self.model.queue.submit(prepared)  # type: ignore[return-value]  # list[float] is a column

    def close(self) -> None:
        self.model.close()


def load_sources(
    settings: RewardServiceSettings, on_batch: Callable[[str], OnBatch | None] = lambda name: None
) -> dict[str, Source]:
    """Every source by name, loaded: the built-in verifiers, installed functions, and those of the settings.

    `on_batch` gives, for a reward model's name, what to call after each of its batches. WorkError or RequestError when
    one cannot be loaded.
    """
    found, models = resolve(settings.sources)
    check_ensembles(settings.ensembles, models, {**found, **models})
    sources: dict[str, Source] = {}
    for name, what in found.items():
        sources[name] = VerifierSource(name, what) if isinstance(what, Verifier) else FunctionSource(what, settings)
    return sources | {name: ModelSource(path, settings, on_batch(name)) for name, path in models.items()}


def resolve(specs: Mapping[str, str]) -> tuple[dict[str, Verifier | UserFunction], dict[str, str]]:
    """All verifiers and functions by name, and the checkpoints among `specs` by name. Nothing of a user's is run.

    A spec is `file.py:function`, the name of a source that is there anyway, or else a checkpoint. RequestError names a
    file that cannot be read or a name that is taken.
    """
    found: dict[str, Verifier | UserFunction] = dict(BUILT_IN)
    for name, function in installed_functions().items():
        _refuse_taken(name, found)
        found[name] = function
    offered, models = dict(found), {}
    for name, spec in specs.items():
        if spec in offered:
            if name != spec:
                _refuse_taken(name, found)
            found[name] = offered[spec]
            continue
        _refuse_taken(name, found)
        if is_function_spec(spec):
            found[name] = function_of_file(name, spec)
        elif spec.endswith(".py"):
            raise RequestError(f"source '{name}': {spec} names no function; give path/to/file.py:function")
        else:
            models[name] = spec
    return found, models


def plain_prompt(item: ScoreItem) -> Any:
    """The item's prompt as plain JSON: a text or a list of messages."""
    return item.prompt if isinstance(item.prompt, str) else [message.model_dump() for message in item.prompt]


def _refuse_taken(name: str, taken: Mapping[str, Verifier | UserFunction]) -> None:
    if name in taken:
        raise RequestError(f"source '{name}' exists already (version {taken[name].version}); choose another name")
