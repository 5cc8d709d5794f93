"""The reward service's routes: `POST /score` of contract 1 and `GET /v1/sources`. Errors have OpenAI's form on every
route.

The key rule, the body limits, the deadline and the contract header are those of `posttrain.core.asgi`; this app is
mounted by `posttrain.reward_model.service` and scores with the `Scoring` in its `state.scoring`. A client that goes
away takes its work with it.
"""

import asyncio
import logging
import time
import traceback
from collections.abc import Coroutine
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from posttrain.core.errors import PosttrainError, RequestError
from posttrain.core.wire import ScoreRequest, ScoreResponse, error_body
from posttrain.reward_model.description import describe
from posttrain.reward_model.scoring import Overloaded, Scoring
from posttrain.reward_model.telemetry import telemetry

log = logging.getLogger(__name__)

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
CLIENT_GONE = 499
"""What a request whose client has gone is counted as; nobody reads the answer."""


def create_app() -> FastAPI:
    """The routes, without sources: set `app.state.scoring` before the first request."""
    app = FastAPI(title="posttrain reward service", docs_url=None, redoc_url=None)

    @app.post("/score")
    async def score(request: Request) -> Response:
        """The score of each item by each source."""
        began = time.monotonic()
        outcome = "error"
        try:
            body = await request.body()
            answer = await _while_connected(request, request.app.state.scoring.score(body, began))
            outcome = "gone" if answer is None else "ok"
        except Overloaded:
            outcome = "overloaded"
            raise
        except RequestError:
            outcome = "refused"
            raise
        except ClientDisconnect:
            outcome, answer = "gone", None
        except PosttrainError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets an answer in OpenAI's form
            # The error's own text may quote an item, so only its kind and place are logged.
            place = "".join(traceback.format_tb(error.__traceback__))
            log.error("a request failed with %s at\n%s", type(error).__name__, place)
            message = "the service failed; its log says where"
            return JSONResponse(error_body(message, "server_error", "internal_error"), 500)
        finally:
            telemetry().requests.labels(outcome).inc()
            telemetry().seconds.observe(time.monotonic() - began)
        if answer is None:
            return Response(status_code=CLIENT_GONE)
        _count(answer)
        left_out = None if answer.errors else {"errors"}
        return Response(answer.model_dump_json(exclude=left_out), media_type="application/json")

    @app.get("/v1/sources")
    async def sources(request: Request) -> dict[str, dict[str, str]]:
        """Each source's name and its digest or version."""
        scoring: Scoring = request.app.state.scoring
        return {"sources": scoring.digests}

    @app.api_route("/{path:path}", methods=METHODS, include_in_schema=False)
    async def unknown(path: str) -> None:
        """BentoML answers by itself, in its own form, what no route of a mounted app takes."""
        allowed = {"score": "POST", "v1/sources": "GET"}.get(path)
        raise HTTPException(405, headers={"Allow": allowed}) if allowed else HTTPException(404)

    app.add_exception_handler(PosttrainError, _posttrain_error)
    app.add_exception_handler(HTTPException, _http_error)
    describe(app, requests={"/score": ScoreRequest}, answers={"/score": ScoreResponse})
    return app


async def _while_connected(request: Request, scoring: Coroutine[Any, Any, ScoreResponse]) -> ScoreResponse | None:
    """The answer, or None when the client has gone away before, and its work with it."""
    work = asyncio.ensure_future(scoring)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        return work.result() if work.done() else None
    finally:
        work.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _count(answer: ScoreResponse) -> None:
    metrics = telemetry()
    for name in answer.sources:
        metrics.items.labels(name).inc(len(answer.scores))
        column = [scores[name] for scores in answer.scores]
        metrics.scored(name, [score for score in column if score is not None])
    for error in answer.errors:
        metrics.failed.labels(error.source).inc()


async def _posttrain_error(request: Request, error: Exception) -> Response:
    if isinstance(error, RequestError):
        return JSONResponse(error_body(str(error)), 400)
    if isinstance(error, Overloaded):
        return JSONResponse(error_body(str(error), "server_error", "overloaded"), 503, {"Retry-After": "1"})
    return JSONResponse(error_body(str(error), "server_error", "source_failed"), 500)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # what it is registered for
    headers = dict(error.headers or {})
    return JSONResponse(error_body(f"{error.detail}; this service has POST /score"), error.status_code, headers)
