"""Run directories: where a stage's files live, when it is finished, and who may write.

A stage lies in `runs/<recipe>/<stage>/<first 12 of fingerprint>/` with `config.yaml`, `metrics.jsonl`, `checkpoint/`,
`eval/` and, written last, `provenance.json`: a directory without it is unfinished, whatever else it holds.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from posttrain.core.errors import RequestError, WorkError
from posttrain.core.files import atomic_write_json, disk_errors, read_json
from posttrain.core.hashing import digest_json


def refuse_unwritable(root: Path) -> None:
    """RequestError for a runs folder (an absolute path) that is a file or below one, WorkError for one that cannot be
    written or made. Makes nothing."""
    there = next(place for place in (root, *root.parents) if os.path.lexists(place))
    if not there.is_dir():
        raise RequestError(f"--runs {root}: {there} is a file; name a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise WorkError(f"cannot write to {there}; name another folder with --runs")


@dataclass(frozen=True)
class StageIdentity:
    """What makes two stages the same experiment, and two runs of it the same run.

    `definition` holds every setting that changes the result: base, tokenizer and template, adapter, data, method.
    """

    stage: str
    version: int
    definition: dict[str, Any]
    seed: int
    parents: tuple["StageIdentity", ...] = field(default=())

    @cached_property
    def config_hash(self) -> str:
        """Hex SHA-256 of the definition, the stage's version and the parents' config hashes; free of the seed."""
        parents = [parent.config_hash for parent in self.parents]
        return digest_json([self.stage, self.version, self.definition, parents])

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 of the config hash, the seed and the parents' fingerprints."""
        return digest_json([self.config_hash, self.seed, [parent.fingerprint for parent in self.parents]])


@dataclass(frozen=True)
class RunDirectory:
    """One stage's folder."""

    path: Path

    @classmethod
    def of(cls, root: Path, recipe: str, identity: StageIdentity) -> "RunDirectory":
        """The folder that `identity` has below `root` (usually `runs/`)."""
        return cls(Path(root) / recipe / identity.stage / identity.fingerprint[:12])

    @property
    def root(self) -> Path:
        """The runs folder: three levels up."""
        return self.path.parents[2]

    @property
    def checkpoint(self) -> Path:
        """A standard Hugging Face folder, or absent."""
        return self.path / "checkpoint"

    @property
    def state(self) -> Path:
        """What a stage needs to resume; removed when it is finished."""
        return self.path / "state"

    @property
    def metrics_path(self) -> Path:
        """One object a step."""
        return self.path / "metrics.jsonl"

    @property
    def eval(self) -> Path:
        """One JSON Lines file a task, one object an item."""
        return self.path / "eval"

    @property
    def provenance_path(self) -> Path:
        """Written last: its presence means finished."""
        return self.path / "provenance.json"

    @property
    def finished(self) -> bool:
        """Whether the stage ran to its end."""
        return self.provenance_path.exists()

    def provenance(self) -> dict[str, Any]:
        """What was recorded when the stage finished."""
        return read_json(self.provenance_path)

    def finish(self, provenance: dict[str, Any]) -> None:
        """Marks the stage finished."""
        atomic_write_json(self.provenance_path, provenance)

    @contextmanager
    def lock(self, wait: bool = False) -> Iterator[None]:
        """Holds the directory against a second writer; if somebody else has it, waits and says so, or raises WorkError
        at once."""
        lock = FileLock(self.path / ".lock")
        try:
            with disk_errors(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
                lock.acquire(timeout=0)
        except Timeout:
            if not wait:
                raise WorkError(f"{self.path} is being written by another process; wait for it or stop it") from None
            print(f"{self.path} is being written by another process; waiting for it", file=sys.stderr, flush=True)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()
