"""The services that a run uses: running ones that are named by URL, and what starting its own ones takes."""

import os
import sys
from contextlib import closing
from pathlib import Path

from posttrain.core.clients import RewardClient
from posttrain.core.errors import RequestError


def service_url(name: str) -> str | None:
    """The address in `POLICY_URL` or `REWARD_URL`: a running service to use instead of an own one."""
    return os.environ.get(f"{name.upper()}_URL") or None


def vllm_python() -> Path:
    """The interpreter of vLLM's environment: `.venv-vllm` beside this one, or what POSTTRAIN_VLLM_PYTHON names."""
    named = os.environ.get("POSTTRAIN_VLLM_PYTHON")
    python = Path(named) if named else Path(sys.prefix).parent / ".venv-vllm" / "bin" / "python"
    if not python.is_file():
        raise RequestError(
            f"engine vllm: there is no {python}; make vLLM's environment with `make vllm`, or name its interpreter in "
            "POSTTRAIN_VLLM_PYTHON"
        )
    return python


def external_rewards() -> dict[str, str]:
    """The sources of the reward service in `REWARD_URL`, with their digests; empty without that variable."""
    url = service_url("reward")
    if url is None:
        return {}
    with closing(RewardClient(url, patience=20.0)) as client:
        return client.sources()
