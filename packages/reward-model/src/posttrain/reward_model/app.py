"""The reward service's routes: `POST /score` of contract 1 and `GET /v1/sources`. Errors have OpenAI's form on every
route.

The key rule, the body limit and the contract header are `posttrain.core.asgi.ServiceMiddleware`'s; this app is
mounted by `posttrain.reward_model.service` and scores with the `Scoring` in its `state.scoring`.
"""

import time
from functools import lru_cache

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import Counter, Histogram
from starlette.exceptions import HTTPException

from posttrain.core.errors import PosttrainError, RequestError
from posttrain.core.wire import ScoreRequest, ScoreResponse, error_body
from posttrain.reward_model.scoring import Overloaded, Scoring

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


@lru_cache(maxsize=1)
def _metrics() -> tuple[Counter, Histogram]:
    # Made on the first use: prometheus_client looks at where BentoML collects when a metric is made.
    items = Counter("posttrain_reward_items", "Items scored, by source.", ["source"])
    return items, Histogram("posttrain_reward_request_seconds", "Seconds to score one request.")


def create_app() -> FastAPI:
    """The routes, without sources: set `app.state.scoring` before the first request."""
    app = FastAPI(title="posttrain reward service", docs_url=None, redoc_url=None)
    schema = {"application/json": {"schema": ScoreRequest.model_json_schema()}}

    @app.post("/score", openapi_extra={"requestBody": {"content": schema, "required": True}})
    async def score(request: Request) -> ScoreResponse:
        scoring: Scoring = request.app.state.scoring
        items, seconds = _metrics()
        start = time.perf_counter()
        answer = await scoring.score(await request.body())
        for name in answer.sources:
            items.labels(source=name).inc(len(answer.scores))
        seconds.observe(time.perf_counter() - start)
        return answer

    @app.get("/v1/sources")
    async def sources(request: Request) -> dict[str, dict[str, str]]:
        """Each source's name and its digest or version."""
        scoring: Scoring = request.app.state.scoring
        return {"sources": {name: source.digest for name, source in scoring.sources.items()}}

    @app.api_route("/{path:path}", methods=METHODS, include_in_schema=False)
    async def unknown(path: str) -> None:
        """BentoML answers by itself, in its own form, what no route of a mounted app takes."""
        raise HTTPException(405 if path == "score" else 404)

    app.add_exception_handler(PosttrainError, _posttrain_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected_error)
    return app


async def _posttrain_error(request: Request, error: Exception) -> Response:
    if isinstance(error, RequestError):
        return JSONResponse(error_body(str(error)), 400)
    if isinstance(error, Overloaded):
        return JSONResponse(error_body(str(error), "server_error", "overloaded"), 503)
    return JSONResponse(error_body(str(error), "server_error", "source_failed"), 500)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # what it is registered for
    headers = dict(error.headers or {})
    return JSONResponse(error_body(f"{error.detail}; this service has POST /score"), error.status_code, headers)


async def _unexpected_error(request: Request, error: Exception) -> Response:
    return JSONResponse(error_body("the service failed; its log has the traceback", "server_error", "internal"), 500)
