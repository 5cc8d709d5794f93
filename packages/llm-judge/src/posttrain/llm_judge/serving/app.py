"""The judge service's routes. Errors have OpenAI's form on every one.

The key rule, the body limits and the contract header are those of `posttrain.core.asgi`; this app is mounted by
`posttrain.llm_judge.service`. Its lifespan makes what it works with, and goes on with the runs that the last one left.
"""

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from posttrain.core.clients import ServiceUnavailable
from posttrain.core.errors import PosttrainError, RequestError, StorageError
from posttrain.core.wire import DEADLINE_EXCEEDED, error_body
from posttrain.llm_judge import __version__
from posttrain.llm_judge.judgements import JudgeRefused
from posttrain.llm_judge.running.limits import BudgetSpent
from posttrain.llm_judge.serving.answers import JudgeAnswer, RunAnswer, RunList, RunRemoved, Served
from posttrain.llm_judge.serving.contest import DeadlineExceeded, Overloaded, Stopping
from posttrain.llm_judge.serving.description import complete, described
from posttrain.llm_judge.serving.discreet import log_place
from posttrain.llm_judge.serving.judging import Judging
from posttrain.llm_judge.serving.requests import JudgeRequest, RequestT, RunRequest, parse
from posttrain.llm_judge.serving.runs import RunNotEnded, Runs, UnknownRun
from posttrain.llm_judge.serving.settings import JudgeServiceSettings
from posttrain.llm_judge.serving.telemetry import telemetry
from posttrain.llm_judge.serving.wanted import Wanted

log = logging.getLogger(__name__)

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
ALLOWED = {
    "judge": "POST",
    "runs": "GET, POST",
    "runs/[^/]+": "DELETE, GET",
    "runs/[^/]+/cancel": "POST",
    "v1/judges": "GET",
}
"""Methods by the form of a path."""
CLIENT_GONE = 499
"""What a request whose client has gone is counted as; nobody reads the answer."""
ERRORS: list[tuple[type[PosttrainError], int, str | None]] = [
    (UnknownRun, 404, "run_not_found"),
    (RunNotEnded, 409, "run_not_ended"),
    (RequestError, 400, None),
    (BudgetSpent, 402, "budget_spent"),
    (Overloaded, 503, "overloaded"),
    (Stopping, 503, "stopping"),
    (ServiceUnavailable, 503, "judge_unavailable"),
    (DeadlineExceeded, 504, DEADLINE_EXCEEDED),
    (JudgeRefused, 500, "judge_refused"),
    (StorageError, 507, "no_space"),
    (PosttrainError, 500, "work_failed"),
]
"""Kinds of errors with their status and code, the most particular ones first."""
OUTCOMES = {402: "budget", CLIENT_GONE: "gone", 503: "unavailable", 504: "deadline"}
"""By which requests are counted; other statuses of 400 and more are `refused` or `error`."""


class _Route(APIRoute):
    """A route whose failures are answered in OpenAI's form, whatever they are, and counted."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            began = time.monotonic()
            try:
                response = await handle(request)
            except PosttrainError as error:
                response = _told(error)
            except HTTPException as error:
                response = refusal(error.status_code, str(error.detail))
            except RequestValidationError as error:
                response = refusal(400, f"'{error.errors()[0]['loc'][-1]}' is not what this route takes")
            except ClientDisconnect:
                response = Response(status_code=CLIENT_GONE)
            except Exception as error:  # noqa: BLE001 - whatever it is, the client gets an answer in OpenAI's form
                log_place(log, "a request", error)
                response = refusal(500, "the service failed; its log says where", "internal_error")
            metrics, status = telemetry(), response.status_code
            outcome = OUTCOMES.get(status) or ("ok" if status < 400 else "refused" if status < 500 else "error")
            metrics.requests.labels(self.path, outcome).inc()
            metrics.seconds.labels(self.path).observe(time.monotonic() - began)
            return response

        return handler


def create_app(settings: JudgeServiceSettings) -> FastAPI:
    """The routes, and behind them the judges of the settings once the application is started."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.judging = judging = Judging(settings)
        telemetry().expect(settings.judges)
        app.state.runs = runs = Runs(judging)
        try:
            await runs.open()
            yield
        finally:
            await runs.aclose()
            await judging.aclose()

    app = FastAPI(
        title="posttrain judge service", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan
    )
    app.router.route_class = _Route

    @app.post("/judge", **described(JudgeAnswer, 402, 415, request=JudgeRequest))
    async def judge(request: Request) -> Response:
        """Judges one or many comparisons, and answers when that is done."""
        judging: Judging = request.app.state.judging
        until = time.monotonic() + settings.deadline_seconds
        wanted = await _read(JudgeRequest, request)
        answer = await judging.answer(wanted, partial(_disconnected, request), until)
        return Response(status_code=CLIENT_GONE) if answer is None else _json(answer)

    @app.post("/runs", **described(RunAnswer, 415, status=202, request=RunRequest))
    async def submit_run(request: Request) -> Response:
        """Judges comparisons in the background. The same request is the same run: asked again it is told how far that
        is, and one that failed or was cancelled is begun again."""
        return _json(await _runs(request).submit(await _read(RunRequest, request)), 202)

    @app.get("/runs", **described(RunList))
    async def list_runs(request: Request, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> Response:
        """The newest runs."""
        return _json(RunList(runs=_runs(request).summaries(limit)))

    @app.get("/runs/{run_id}", **described(RunAnswer, 404))
    async def retrieve_run(request: Request, run_id: str) -> Response:
        """How far a run is, its rates so far and, once it is done, its record."""
        return _json(await _runs(request).status(run_id))

    @app.delete("/runs/{run_id}", **described(RunRemoved, 404, 409))
    async def remove_run(request: Request, run_id: str) -> Response:
        """Removes a run that has ended. What was judged stays in the store, and its record where records are."""
        return _json(await _runs(request).remove(run_id))

    @app.post("/runs/{run_id}/cancel", **described(RunAnswer, 404))
    async def cancel_run(request: Request, run_id: str) -> Response:
        """Ends a run where it is; what was judged is kept. One that has ended stays as it is."""
        return _json(await _runs(request).cancel(run_id))

    @app.get("/v1/judges", **described(Served))
    async def list_judges(request: Request) -> Response:
        """The names that requests may use."""
        catalog = request.app.state.judging.catalog
        return _json(
            Served(
                judges=list(settings.judges),
                default_judge=catalog.default_judge,
                protocols=list(catalog.protocols),
                default_protocol=settings.default_protocol,
                policies=list(settings.policies),
            )
        )

    @app.api_route("/{path:path}", methods=METHODS, include_in_schema=False)
    async def unknown(path: str) -> Response:
        """BentoML answers by itself, in its own form, what no route of a mounted app takes."""
        return _no_route(path)

    @app.exception_handler(405)
    async def unknown_method(request: Request, _: Exception) -> Response:
        """Methods beyond HTTP's own, PROPFIND for example."""
        return _no_route(request.url.path.removeprefix("/"))

    complete(app)
    return app


def _no_route(path: str) -> Response:
    allowed = next((methods for form, methods in ALLOWED.items() if re.fullmatch(form, path)), None)
    if allowed:
        return refusal(405, "this route does not take this method", headers={"Allow": allowed})
    return refusal(404, "there is no such route; this service has POST /judge and POST /runs")


def refusal(status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None) -> Response:
    """An error in OpenAI's form."""
    more = {503: {"Retry-After": "1"}, 504: {"X-Should-Retry": "false"}}.get(status, {})
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return JSONResponse(error_body(message, kind, code), status, {**more, **(headers or {})})


def _told(error: PosttrainError) -> Response:
    status, code = next((status, code) for kind, status, code in ERRORS if isinstance(error, kind))
    return refusal(status, str(error), code)


def _json(answer: BaseModel, status: int = 200) -> Response:
    return Response(answer.model_dump_json(), status, media_type="application/json")


def _runs(request: Request) -> Runs:
    runs: Runs = request.app.state.runs
    return runs


async def _read(kind: type[RequestT], request: Request) -> Wanted[RequestT]:
    # A page in a browser may send other types to a service on loopback without being asked for permission first.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "send the request as JSON, with Content-Type: application/json")
    judging: Judging = request.app.state.judging
    return await asyncio.to_thread(_prepared, judging, kind, await request.body())


def _prepared(judging: Judging, kind: type[RequestT], body: bytes) -> Wanted[RequestT]:
    return judging.catalog.resolve(parse(kind, body))


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
