"""The reward service: BentoML runs it, `posttrain.reward_model.app` answers.

`bentoml serve posttrain.reward_model.service:RewardService` serves what the environment variable `POSTTRAIN_REWARD`
says (`posttrain.reward_model.settings`); `posttrain serve reward` sets it. Everything is kept in one worker.
"""

import gc
from functools import partial

import bentoml
from bentoml._internal.server.http import instruments
from prometheus_client import values

from posttrain.core.asgi import OPEN_PATHS, ResponseTimeout, ServiceMiddleware, seeing_only
from posttrain.core.keys import SERVICE_KEY, read_key
from posttrain.core.metrics_room import roomy
from posttrain.core.process import die_with_parent
from posttrain.reward_model.app import create_app
from posttrain.reward_model.scoring import Scoring
from posttrain.reward_model.settings import from_environment
from posttrain.reward_model.sources import load_sources
from posttrain.reward_model.telemetry import telemetry

PATHS = {*OPEN_PATHS, "/metrics", "/openapi.json", "/score", "/v1/sources"}
values.MmapedDict = roomy(values.MmapedDict)  # type: ignore[assignment,misc]
instruments.RunnerTrafficMetricsMiddleware = seeing_only(instruments.RunnerTrafficMetricsMiddleware, PATHS)
# A key that cannot be read ends the start: the middleware is made with the first request.
read_key(SERVICE_KEY)
settings = from_environment()
app = create_app()


@bentoml.service(
    name="reward",
    workers=1,
    # BentoML's own limit comes after ours (`deadline_seconds`). It keeps a timer for each request until it fires, so it
    # is not endless.
    traffic={"timeout": 600, "max_concurrency": 100_000},
    logging={"access": {"enabled": False}},
)
@bentoml.asgi_app(app)
class RewardService:
    """`POST /score`, `GET /v1/sources`, and BentoML's `/livez`, `/readyz` and `/metrics`."""

    def __init__(self) -> None:
        die_with_parent()
        sources = load_sources(settings, on_batch=lambda name: partial(telemetry().batch, name))
        app.state.scoring = self.scoring = Scoring(sources, settings)
        telemetry().expect(self.scoring.digests)
        # Models and libraries stay: the garbage collector need not look at them with every request of many items.
        gc.collect()
        gc.freeze()

    @bentoml.on_shutdown
    def close(self) -> None:
        """Ends the processes of users' functions."""
        self.scoring.close()


RewardService.add_asgi_middleware(ResponseTimeout, timeout=settings.deadline_seconds)  # type: ignore[attr-defined]
RewardService.add_asgi_middleware(  # type: ignore[attr-defined]
    ServiceMiddleware, max_body_bytes=settings.max_body_bytes, drains=True
)
