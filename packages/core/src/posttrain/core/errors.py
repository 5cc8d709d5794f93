"""The errors a person sees. Each is a sentence or two: what was wrong, the value, what to do.

`exit_status` is what the `posttrain` command ends with: 1 the work failed, 2 the request was wrong.
"""

import difflib
from collections.abc import Iterable


class PosttrainError(Exception):
    """Base of all errors that are shown as one line instead of a traceback."""

    exit_status = 1


class RequestError(PosttrainError):
    """The request was wrong: a bad key, value, file or name. Nothing was changed."""

    exit_status = 2


class WorkError(PosttrainError):
    """The request was fine and the work failed: a service went away, the disk is full."""


class StorageError(WorkError):
    """What was to be kept cannot be written: no space left, a quota, a disk or folder that is read-only. Nothing
    half-written is taken for finished; once there is room the same command goes on."""


class Interrupted(PosttrainError):
    """A person ended work that the same command does not resume; the message says what of it is kept."""

    exit_status = 130


class Diverged(WorkError):
    """Training came to numbers that are not finite: these settings fail, and would fail again."""

    SAYS = "training diverged: "
    """What its message starts with, by which it is known where only that came through."""

    def __init__(self, what: str) -> None:
        super().__init__(self.SAYS + what)


class ContractError(WorkError):
    """The other side of an HTTP connection speaks another contract number."""


def suggest(value: str, candidates: Iterable[str]) -> str:
    """A parenthesis to end an error with: the nearest candidate, or all of them if none is near."""
    names = sorted(candidates)
    close = difflib.get_close_matches(value, names, n=1)
    if close:
        return f"(did you mean '{close[0]}'?)"
    return f"(choose from: {', '.join(names)})" if names else "(there are none)"
