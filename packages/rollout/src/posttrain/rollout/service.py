"""The policy service as BentoML runs it: one worker that holds the model, the routes of `app.py` mounted on it.

Start it with `posttrain serve policy CHECKPOINT`, or with `bentoml serve posttrain.rollout.service:PolicyService` and
the settings in `POSTTRAIN_POLICY` (see `settings.py`). Importing this module is cheap: BentoML's supervisor does so
too, and needs neither torch nor the routes.
"""

import gc
import os
from typing import Any

import bentoml
from bentoml._internal.server.http import instruments, traffic
from prometheus_client import values

from posttrain.core.asgi import MIB, OPEN_PATHS, ResponseTimeout, ServiceMiddleware, seeing_only
from posttrain.core.keys import SERVICE_KEY, read_key
from posttrain.core.metrics_room import roomy
from posttrain.core.process import die_with_parent
from posttrain.rollout.chat_page import PAGE_PATHS
from posttrain.rollout.settings import ENVIRONMENT, PolicyServiceSettings, from_environment

# BentoML's own leaves a timer behind for every request until it fires, with all that it holds, and answers in a form of
# its own.
traffic.TimeoutMiddleware = ResponseTimeout
PATHS = {
    *OPEN_PATHS,
    *PAGE_PATHS,
    "/metrics",
    "/openapi.json",
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/models",
    "/v1/models/",
}
values.MmapedDict = roomy(values.MmapedDict)  # type: ignore[assignment,misc]
instruments.RunnerTrafficMetricsMiddleware = seeing_only(instruments.RunnerTrafficMetricsMiddleware, PATHS)
# A key that cannot be read ends the start: the middleware is made with the first request.
read_key(SERVICE_KEY)


def _settings() -> PolicyServiceSettings:
    # BentoML imports this module to describe the service too, where no settings need to be.
    return from_environment() if os.environ.get(ENVIRONMENT) else PolicyServiceSettings(checkpoint="")


class _Mounted:
    """Passes every request on to the application that the worker made; BentoML wants to mount it before."""

    app: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


mounted = _Mounted()


@bentoml.service(
    name="posttrain_policy",
    workers=1,
    # To the first byte of an answer, whatever the route: the service's own deadline comes before it. How many may wait
    # is the scheduler's to say, which counts sequences.
    traffic={"timeout": _settings().max_seconds + 60},
    logging={"access": {"enabled": False}},
)
@bentoml.asgi_app(mounted)
class PolicyService:
    """Loads the checkpoint that the settings name and serves it as version 0."""

    def __init__(self) -> None:
        # A worker whose supervisor was killed must not go on holding the port and the memory.
        die_with_parent()
        settings = from_environment()

        import torch
        from transformers.utils.logging import disable_progress_bar

        from posttrain.rollout.app import create_app, serve
        from posttrain.rollout.policy import Policy

        disable_progress_bar()
        torch.set_num_threads(settings.threads or os.cpu_count() or 1)
        self.policy = Policy.load(settings)
        mounted.app = create_app()
        serve(mounted.app, self.policy)
        # What lives from here to the end is not looked through again whenever a large answer is made of many objects.
        gc.collect()
        gc.freeze()

    @bentoml.on_shutdown
    def close(self) -> None:
        """Ends the generation thread."""
        self.policy.close()


def _limits() -> dict[str, Any]:
    settings = _settings()
    uploads = {f"/v1/models/{settings.name}@": settings.max_upload_mb * MIB}
    return {
        "max_body_bytes": settings.max_body_mb * MIB,
        "upload_limits": uploads,
        "pages": PAGE_PATHS,
        "drains": True,
    }


PolicyService.add_asgi_middleware(ServiceMiddleware, **_limits())  # type: ignore[attr-defined]
