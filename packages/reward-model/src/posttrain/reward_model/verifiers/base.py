"""What a verifier is: a named, versioned function of prompt, completion and reference, and a check of the reference.

The check runs over every item of a request before the first one is scored, so that a request with a bad reference is
refused whole.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Prompt = str | list[dict[str, Any]]
"""A text or a list of messages, as the request gave it."""

Reference = Any
"""Any JSON value."""


def _anything(reference: Reference) -> None:
    """Takes every reference: what a user's function needs, only that function knows."""


@dataclass(frozen=True)
class Verifier:
    """A reward computed from a known reference.

    `score(prompt, completion, reference)` gives a finite float. `check(reference)` raises RequestError, whose message
    says what the reference must look like and does not repeat it. `version` is raised when scores change, and is what
    provenance records.
    """

    name: str
    version: str
    score: Callable[[Prompt, str, Reference], float]
    check: Callable[[Reference], None] = _anything
