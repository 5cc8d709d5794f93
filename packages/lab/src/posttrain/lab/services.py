"""The services that a run uses: running ones that are named by URL, and what starting its own ones takes."""

import os
from contextlib import closing

from posttrain.core.clients import RewardClient


def service_url(name: str) -> str | None:
    """The address in `POLICY_URL` or `REWARD_URL`: a running service to use instead of an own one."""
    return os.environ.get(f"{name.upper()}_URL") or None


def external_rewards() -> dict[str, str]:
    """The sources of the reward service in `REWARD_URL`, with their digests; empty without that variable."""
    url = service_url("reward")
    if url is None:
        return {}
    with closing(RewardClient(url, patience=20.0)) as client:
        return client.sources()
