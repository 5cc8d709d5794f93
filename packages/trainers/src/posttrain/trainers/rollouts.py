"""Rollouts: which prompts come next, and completions of them by exactly the weights in training.

Token ids go in and come out. The service is asked for a version; when it no longer holds it (it was killed and came
back with its first weights), the current weights are pushed again and the request is repeated. What heals by itself,
connection errors and 503, the client retries.
"""

import re
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from posttrain.core.clients import Completion, PolicyClient, StaleVersion
from posttrain.core.errors import WorkError
from posttrain.core.files import disk_errors
from posttrain.core.hashing import digest_weights
from posttrain.core.seeds import derive_seed
from posttrain.data.rows import Prompt
from posttrain.trainers.models import load_policy, write_weights
from posttrain.trainers.quiet import quiet

WriteWeights = Callable[[Path, torch.dtype], None]
"""Writes the weights to push as a safetensors file: full ones in this dtype, or an adapter."""
MAX_PUSHES = 5
"""How often one request may find the service without its version before something is wrong for good."""


@dataclass(frozen=True)
class RenderedPrompt:
    """A prompt and the ids that the policy continues."""

    prompt: Prompt
    ids: list[int]


def take_prompts(prompts: Sequence[RenderedPrompt], cursor: int, count: int, seed: int) -> list[RenderedPrompt]:
    """Numbers cursor … cursor + count − 1 of an endless sequence, whose every pass has its own seeded order."""
    taken = []
    orders: dict[int, list[int]] = {}
    for place in range(cursor, cursor + count):
        epoch, index = divmod(place, len(prompts))
        if epoch not in orders:
            generator = torch.Generator().manual_seed(derive_seed(seed, "prompts", epoch))
            orders[epoch] = torch.randperm(len(prompts), generator=generator).tolist()
        taken.append(prompts[orders[epoch][index]])
    return taken


class VersionedPolicy:
    """The policy service as the loop sees it: always the weights of one step, whatever happened to the service.

    The weights are pushed before the first request: whatever a service started with may be another checkpoint. Step s
    is version s unless the service holds that or a later one already (it outlived a trainer): versions only go up, so
    the numbers are then shifted beyond the one it holds.
    """

    def __init__(
        self, client: PolicyClient, write: WriteWeights, step: int, digest: str = "", folder: Path | None = None
    ) -> None:
        """`write` writes the current weights; they are sent from a temporary file in `folder`, None for the system's,
        so that they are in memory once. Nothing is sent to a service that says of what it holds that its `digest` is
        this."""
        self._client = client
        self._write = write
        self._folder = folder
        models = client.models()
        held = held_version(models)
        self._dtype = served_dtype(models)
        self._shift = 0 if held < step else held + 1 - step
        self._lock = threading.Lock()
        self._pushes = 0
        self._found = ""
        if digest and _current(models).get("sha256") == digest:
            self._shift, self._pushes, self._found = held - step, 1, digest
        self.repeated_pushes = 0
        """How often the weights had to be pushed again because the service had lost them."""

    def push(self, step: int) -> None:
        """Makes the current weights the service's version of `step`."""
        place = self._folder or Path(tempfile.gettempdir())
        with disk_errors(place):
            place.mkdir(parents=True, exist_ok=True)
            folder = tempfile.TemporaryDirectory(prefix="posttrain-weights-", dir=place)
        with folder as name:
            file = Path(name) / "weights.safetensors"
            with disk_errors(place):
                self._write(file, self._dtype)
            self._client.push(step + self._shift, file)
        self._pushes += 1
        self._found = ""

    def complete(
        self, prompts: Sequence[list[int]], step: int, *, n: int, max_tokens: int, temperature: float, seed: int
    ) -> list[list[Completion]]:
        """`n` completions of each prompt (ids) by the weights of `step`, each with a seed of (seed, prompt, choice).

        May be called from several threads.
        """
        for _ in range(MAX_PUSHES):
            with self._lock:
                if not self._pushes:
                    self.push(step)
                pushes = self._pushes
            try:
                found = self._client.complete(
                    prompts,
                    version=step + self._shift,
                    n=n,
                    max_tokens=max_tokens,
                    temperature=temperature,
                    seed=seed,
                )
                self._refuse_another_start()
                return found
            except StaleVersion:
                with self._lock:
                    if self._pushes == pushes:  # otherwise another thread has done it since
                        self._shift = max(self._shift, held_version(self._client.models()) + 1 - step)
                        self.push(step)
                        self.repeated_pushes += 1
        raise WorkError(
            f"the policy service lost the weights of step {step} {MAX_PUSHES} times; "
            "does something else push to it, or does it run out of memory?"
        )

    def _refuse_another_start(self) -> None:
        """StaleVersion where nothing was pushed, and the service came back with another checkpoint of that number."""
        if self._found and _current(self._client.models()).get("sha256") != self._found:
            raise StaleVersion("the service started anew, with other weights")


def fixed_policy(client: PolicyClient, checkpoint: Path) -> VersionedPolicy:
    """The service as a stage sees it that samples from one checkpoint and trains nothing; ask it for step 0."""

    def write(file: Path, dtype: torch.dtype) -> None:
        with quiet():
            model = load_policy(checkpoint, dtype)
        write_weights(model.named_parameters(), file, dtype)

    return VersionedPolicy(client, write, step=0, digest=digest_weights(checkpoint))


def held_version(models: Mapping[str, Any]) -> int:
    """The highest N of the ids `name@N` that `GET /v1/models` lists; 0 if none has a number."""
    matches = [re.search(r"@(\d+)$", str(model["id"])) for model in models["data"]]
    return max((int(match[1]) for match in matches if match), default=0)


def served_dtype(models: Mapping[str, Any]) -> torch.dtype:
    """What the service says that it computes in: rounded before they are sent, full weights are half the bytes for bf16
    and the same to the service. fp32 where it does not say."""
    said = getattr(torch, str(_current(models).get("dtype")), None)
    return said if isinstance(said, torch.dtype) and said.is_floating_point else torch.float32


def _current(models: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a posttrain service lists: the weights that serve, and nothing else."""
    return models["data"][0] if models["data"] else {}
