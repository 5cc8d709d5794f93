"""The files of one background run: what was asked, the answers that policies gave to it, and how it ended.

A run is there once `run.json` is, and has ended once `outcome.json` is there; each file is whole or absent. So whatever
ends the service, the next one knows which runs are to go on.
"""

import shutil
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from posttrain.core.config import validate
from posttrain.core.errors import RequestError
from posttrain.core.files import atomic_write_bytes, atomic_write_json, disk_errors, read_json
from posttrain.llm_judge.serving.answers import Answer, RunAnswer, RunSummary
from posttrain.llm_judge.serving.requests import Generated, RunRequest, parse


def lock_runs(folder: Path, patience: float = 0.0) -> FileLock:
    """The lock of a folder of runs, taken: one service has it. RequestError where another one still has it after so
    many seconds, WorkError where the folder cannot be written."""
    # Taken in one thread and given back in another.
    lock = FileLock(folder / ".lock", thread_local=False)
    try:
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=patience)
    except Timeout:
        raise RequestError(f"another judge service uses {folder}; name another folder with --set runs=FOLDER") from None
    return lock


class RunBeginning(Answer):
    """`run.json`."""

    summary: RunSummary
    """As it was when the run was asked for."""
    identity: dict[str, Any]
    """The judge's."""


class RunFiles:
    """In a folder with the run's id as its name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def create(self, beginning: RunBeginning, request: RunRequest) -> None:
        """Makes the run, over what a removal that was cut off has left."""
        shutil.rmtree(self.folder, ignore_errors=True)
        atomic_write_bytes(self.folder / "request.json", request.model_dump_json(exclude_defaults=True).encode())
        atomic_write_json(self.folder / "run.json", beginning.model_dump(mode="json"))

    def beginning(self) -> RunBeginning:
        """RequestError where the file is none."""
        path = self.folder / "run.json"
        return validate(RunBeginning, read_json(path), str(path))

    def request(self) -> RunRequest:
        """What was asked. RequestError where this release does not take it any more."""
        return parse(RunRequest, (self.folder / "request.json").read_bytes())

    def outcome(self) -> RunAnswer | None:
        """How it ended; None: it has not."""
        path = self.folder / "outcome.json"
        return validate(RunAnswer, read_json(path), str(path)) if path.exists() else None

    def end(self, outcome: RunAnswer) -> None:
        """Ends the run."""
        atomic_write_json(self.folder / "outcome.json", outcome.model_dump(mode="json"))

    def reopen(self) -> None:
        """Takes back that it has ended."""
        (self.folder / "outcome.json").unlink(missing_ok=True)

    def remove(self) -> None:
        """Removes the run with all its files; WorkError where they cannot be."""
        with disk_errors(self.folder):
            # Without this the run is not there, whatever ends the removal of the others.
            (self.folder / "run.json").unlink()
            shutil.rmtree(self.folder)

    def get(self, index: int, side: int) -> Generated | None:
        """What a policy answered for a side, 1 or 2, of the comparison at this place."""
        path = self._answer(index, side)
        return validate(Generated, read_json(path), str(path)) if path.exists() else None

    def put(self, index: int, side: int, generated: Generated) -> None:
        """Keeps what a policy answered."""
        atomic_write_json(self._answer(index, side), generated.model_dump(mode="json"))

    def _answer(self, index: int, side: int) -> Path:
        return self.folder / "answers" / f"{index}-{side}.json"
