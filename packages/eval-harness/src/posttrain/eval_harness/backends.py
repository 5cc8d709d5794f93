"""Who computes an evaluation: `hf` here, `service` a policy endpoint, `vllm` an endpoint that is started for it."""

from importlib.util import find_spec

from posttrain.core.errors import RequestError, suggest

BACKENDS = ("hf", "service", "vllm")
NEEDED_HERE = ("torch", "accelerate")
"""What `hf` and `vllm` import, and the extra `hf` brings; `service` does without."""


def refuse_backend(backend: str) -> None:
    """RequestError for a backend that there is not, or one that lacks its libraries here."""
    if backend not in BACKENDS:
        raise RequestError(f"unknown backend '{backend}' {suggest(backend, BACKENDS)}")
    missing = [name for name in NEEDED_HERE if find_spec(name) is None]
    if backend != "service" and missing:
        raise RequestError(
            f"--backend {backend} needs {' and '.join(missing)}, not installed here: pip install "
            "'posttrain-eval-harness[hf]', or let a policy service compute by --backend service --policy-url URL"
        )
