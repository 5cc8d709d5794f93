"""The judge service: BentoML runs it, `posttrain.llm_judge.serving.app` answers.

`bentoml serve posttrain.llm_judge.service:JudgeService` serves what the environment variable `POSTTRAIN_JUDGE` says
(`posttrain.llm_judge.serving.settings`); `posttrain serve judge` sets it. Everything is kept in one worker: it is one
process that knows how much of a judge is in use. Importing this module is cheap: BentoML's supervisor does so too, and
needs neither the statistics nor the routes.
"""

from contextlib import AsyncExitStack
from typing import Any

import bentoml
from bentoml._internal.server.http import instruments
from prometheus_client import values

from posttrain.core.asgi import OPEN_PATHS, ResponseTimeout, ServiceMiddleware, seeing_only
from posttrain.core.keys import SERVICE_KEY, read_key
from posttrain.core.metrics_room import roomy
from posttrain.core.process import die_with_parent
from posttrain.llm_judge.serving.settings import from_environment

PATHS = {*OPEN_PATHS, "/metrics", "/openapi.json", "/judge", "/runs", "/runs/", "/v1/judges"}
values.MmapedDict = roomy(values.MmapedDict)  # type: ignore[assignment,misc]
instruments.RunnerTrafficMetricsMiddleware = seeing_only(instruments.RunnerTrafficMetricsMiddleware, PATHS)

ENDING_SECONDS = 15.0
"""What a request's deadline leaves for its answer, before it is ended from outside."""

# A key that cannot be read ends the start: the middleware is made with the first request.
read_key(SERVICE_KEY)
settings = from_environment()


class _Mounted:
    """Passes every request on to the application that the worker made; BentoML wants to mount it before."""

    app: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


mounted = _Mounted()


@bentoml.service(
    name="judge",
    workers=1,
    # BentoML's own limit comes after ours (`deadline_seconds`). It keeps a timer for each request until it fires, so it
    # is not endless.
    traffic={"timeout": 600, "max_concurrency": 100_000},
    logging={"access": {"enabled": False}},
)
@bentoml.asgi_app(mounted)
class JudgeService:
    """`POST /judge`, `POST /runs`, `GET /runs`, and BentoML's `/livez`, `/readyz` and `/metrics`."""

    def __init__(self) -> None:
        die_with_parent()
        from posttrain.llm_judge.serving.app import create_app

        mounted.app = create_app(settings)
        self._open = AsyncExitStack()

    @bentoml.on_startup
    async def open(self) -> None:
        """Goes on with the runs that the last service left."""
        await self._open.enter_async_context(mounted.app.router.lifespan_context(mounted.app))

    @bentoml.on_shutdown
    async def close(self) -> None:
        """Lets what is in flight arrive; unfinished runs go on when the service is started again."""
        await self._open.aclose()


JudgeService.add_asgi_middleware(ResponseTimeout, timeout=settings.deadline_seconds + ENDING_SECONDS)  # type: ignore[attr-defined]
JudgeService.add_asgi_middleware(  # type: ignore[attr-defined]
    ServiceMiddleware, max_body_bytes=settings.max_body_bytes, drains=True
)
