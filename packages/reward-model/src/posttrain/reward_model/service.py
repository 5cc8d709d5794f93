"""The reward service: BentoML runs it, `posttrain.reward_model.app` answers.

`bentoml serve posttrain.reward_model.service:RewardService` serves what the environment variable `POSTTRAIN_REWARD`
says (`posttrain.reward_model.settings`); `posttrain serve reward` sets it. Everything is kept in one worker.
"""

import bentoml

from posttrain.core.asgi import ServiceMiddleware
from posttrain.core.process import die_with_parent
from posttrain.reward_model.app import create_app
from posttrain.reward_model.scoring import Scoring
from posttrain.reward_model.settings import from_environment
from posttrain.reward_model.sources import load_sources

settings = from_environment()
app = create_app()


@bentoml.service(
    name="reward",
    workers=1,
    # Seconds to the first byte of an answer. BentoML keeps a timer for each request until it fires: not endless.
    traffic={"timeout": 600},
    logging={"access": {"enabled": False}},
)
@bentoml.asgi_app(app)
class RewardService:
    """`POST /score`, `GET /v1/sources`, and BentoML's `/livez`, `/readyz` and `/metrics`."""

    def __init__(self) -> None:
        die_with_parent()
        app.state.scoring = Scoring(load_sources(settings), settings)


RewardService.add_asgi_middleware(ServiceMiddleware, max_body_bytes=settings.max_body_bytes)  # type: ignore[attr-defined]
