"""Settings of the reward service: what it serves and its limits.

`posttrain serve reward` writes them into the environment variable `POSTTRAIN_REWARD` as JSON; the service reads them
there, so that a container needs nothing but that variable. The API key is not among them: it stays in
`POSTTRAIN_API_KEY`.
"""

import json
import os

from pydantic import Field

from posttrain.core.config import Settings, validate
from posttrain.core.errors import RequestError

ENVIRONMENT = "POSTTRAIN_REWARD"


class RewardServiceSettings(Settings):
    """What the reward service serves, and how much of it at once."""

    sources: dict[str, str] = Field(default_factory=dict)
    """Name to checkpoint (folder or Hub id) or to `path/to/file.py:function`, beside the built-in verifiers."""
    threads: int = 0
    """Threads that a model's forward pass may use; 0 takes one for each core."""
    batch_tokens: int = 16384
    """Tokens of one forward pass, padding included: a bound on memory. An item that is longer goes alone."""
    max_items: int = 8192
    """Items of one request; more are refused."""
    max_waiting_items: int = 65536
    """Items that wait or are being scored at once, over all requests; a request beyond gets 503 and may come again."""
    max_body_bytes: int = 64 << 20
    """Bytes of one request's body; more are refused with 413."""


def from_environment() -> RewardServiceSettings:
    """The settings in `POSTTRAIN_REWARD`, the defaults where it is not set; RequestError names what is wrong in it."""
    try:
        mapping = json.loads(os.environ.get(ENVIRONMENT) or "{}")
    except ValueError:
        raise RequestError(f"{ENVIRONMENT} is not JSON; it holds the reward service's settings") from None
    return validate(RewardServiceSettings, mapping, ENVIRONMENT)
