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
    ensembles: dict[str, list[str]] = Field(default_factory=dict)
    """Name to names of reward models in `sources`; offers `name.mean`, `name.min` and `name.std` of their scores."""
    threads: int = Field(default=0, ge=0)
    """Cores that a model computes on; 0 takes all."""
    batch_tokens: int = Field(default=0, ge=0)
    """Tokens of one forward pass, padding included; an item that is longer goes alone. 0 takes what measured best on
    the device: 2048 on a CPU, 32768 on a GPU."""
    max_items: int = Field(default=8192, ge=1)
    """Items of one request; more are refused."""
    max_waiting_items: int = Field(default=65536, ge=1)
    """Items that wait or are being scored at once, over all requests; a request beyond gets 503 and may come again."""
    max_body_bytes: int = Field(default=64 << 20, ge=1)
    """Bytes of one request's body; more are refused with 413."""
    deadline_seconds: float = Field(default=300.0, gt=0, le=540)
    """Seconds that a request may take, its wait included; then 504. Items that a user's function has not been asked
    for a second before that are failed items instead."""
    function_seconds: float = Field(default=5.0, gt=0)
    """Seconds that a user's own function may take for one item, before its process is ended and replaced."""
    function_processes: int = Field(default=2, ge=1)
    """Processes of each user's own function."""
    function_memory_mib: int = Field(default=4096, ge=0)
    """Memory that such a process may take, in MiB; 0 is no limit."""


def from_environment() -> RewardServiceSettings:
    """The settings in `POSTTRAIN_REWARD`, the defaults where it is not set; RequestError names what is wrong in it."""
    try:
        mapping = json.loads(os.environ.get(ENVIRONMENT) or "{}")
    except ValueError:
        raise RequestError(f"{ENVIRONMENT} is not JSON; it holds the reward service's settings") from None
    return validate(RewardServiceSettings, mapping, ENVIRONMENT)
