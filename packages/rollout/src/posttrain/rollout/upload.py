"""New weights over HTTP: to a temporary file with limits and digest check, then checked, then swapped in.

Versions only go up. Until a push has succeeded, nothing of what serves changes.
"""

import asyncio
import hashlib
import re
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from io import FileIO
from pathlib import Path
from typing import Any

from posttrain.core.errors import PosttrainError, RequestError, StorageError
from posttrain.core.files import NO_ROOM
from posttrain.rollout.policy import Policy
from posttrain.rollout.scheduler import Overloaded
from posttrain.rollout.weights import read_weights

SLACK_BYTES = 64 << 20
"""What a weights file may hold beyond twice the model's own size: names, metadata, a wider dtype."""

MOST_UPLOADS = 4
"""Bodies on their way at a time: each may fill the disk with as much as the model is large."""


class Conflict(RequestError):
    """The version is older than what serves, or is here with another digest."""


class TooLarge(RequestError):
    """The body is larger than weights of this model can be."""


class Uploads:
    """Takes pushed weights for one policy, one at a time."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        own = sum(p.numel() * p.element_size() for p in policy.engine.model.parameters())
        self.limit = min(policy.settings.max_upload_mb << 20, 2 * own + SLACK_BYTES)
        self._one_at_a_time = asyncio.Lock()
        self._coming = 0

    async def take(self, version: int, digest: str | None, body: AsyncIterator[bytes]) -> str:
        """Makes the safetensors file in `body` the weights of `version`; returns its SHA-256 when they serve."""
        if digest is None or not re.fullmatch("[0-9a-fA-F]{64}", digest):
            raise RequestError("the header X-Content-SHA256 must hold the body's SHA-256 as 64 hexadecimal digits")
        if self._coming >= MOST_UPLOADS:
            raise Overloaded(f"{self._coming} weights files are on their way already; come again")
        self._coming += 1
        try:
            return await self._take(version, digest.lower(), body)
        finally:
            self._coming -= 1

    async def _take(self, version: int, digest: str, body: AsyncIterator[bytes]) -> str:
        # Without a name, so that nothing stays on the disk when the service is killed.
        with ExitStack() as stack:
            try:
                file = stack.enter_context(tempfile.TemporaryFile(buffering=0))
            except OSError as error:
                async for _ in body:  # as below
                    pass
                raise _unwritable(error) from error
            # The body is read also when it will be refused: a client that cannot finish sending sees a broken
            # connection instead of the answer.
            found = await self._store(body, file)
            if found != digest:
                raise RequestError(f"the body's SHA-256 is {found}, the header says {digest}; send it again")
            async with self._one_at_a_time:
                if not self._refuse_or_know(version, digest):
                    await _to_the_end(self._swap, Path(f"/dev/fd/{file.fileno()}"), version, digest)
        return digest

    def _swap(self, file: Path, version: int, digest: str) -> None:
        tensors = read_weights(file, self.policy.engine.model, self.policy.base)
        self.policy.scheduler.swap(version, digest, tensors)

    def _refuse_or_know(self, version: int, digest: str) -> bool:
        weights = self.policy.scheduler.weights
        newest, newest_digest = weights.version, weights.digest
        if version < newest:
            raise Conflict(f"version {version} is older than the current {newest}; versions only go up")
        if version == newest and digest != newest_digest:
            raise Conflict(f"version {version} is here already with another digest; push it as a later version")
        return version == newest

    async def _store(self, body: AsyncIterator[bytes], file: FileIO) -> str:
        """Writes the body to `file` and returns its SHA-256."""
        sha, size = hashlib.sha256(), 0
        failure: PosttrainError | None = None
        async for chunk in body:
            size += len(chunk)
            if size > self.limit or failure:
                failure = failure or TooLarge(f"the body is larger than {self.limit} bytes")
                continue
            sha.update(chunk)
            try:
                rest = memoryview(chunk)
                while rest:  # a disk that fills up takes a part first
                    rest = rest[file.write(rest) :]
            except OSError as error:
                failure = _unwritable(error)
        if failure:
            raise failure
        return sha.hexdigest()


def _unwritable(error: OSError) -> StorageError:
    # Not by name: whoever pushes need not know the service's folders.
    why = "no space is left on the service's disk for the weights"
    if error.errno not in NO_ROOM:
        why = f"the weights cannot be written on the service's disk ({error.strerror})"
    return StorageError(f"{why}; the old ones serve on")


async def _to_the_end(work: Callable[..., None], *arguments: Any) -> None:
    """Does work in a thread; whoever is cancelled meanwhile stays until it is done, with the locks that it holds."""
    doing = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
    try:
        await asyncio.shield(doing)
    except asyncio.CancelledError:
        await asyncio.wait([doing])
        raise
