"""The policy service's routes, contract 1, as a FastAPI application that any ASGI server can carry.

Every answer that is not a success has OpenAI's form of an error. Key, loopback rule, body limits and the contract
header are `posttrain.core.asgi`'s; BentoML adds liveness, readiness and metrics.
"""

import asyncio
import logging
import traceback
from collections.abc import Awaitable, Callable, Coroutine
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Header, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from posttrain.core.errors import PosttrainError, RequestError, StorageError, WorkError
from posttrain.core.wire import DEADLINE_EXCEEDED, DIGEST_HEADER, TIMEOUT_HEADER
from posttrain.rollout import __version__
from posttrain.rollout.answering import DeadlineExceeded, answer, refusal
from posttrain.rollout.chat_page import page_routes
from posttrain.rollout.policy import Policy
from posttrain.rollout.requests import ChatRequest, CompletionRequest, GenerationRequest, parse
from posttrain.rollout.scheduler import Overloaded, VersionNotHeld
from posttrain.rollout.upload import Conflict, TooLarge, Uploads

log = logging.getLogger(__name__)

LARGE_BODY = 1 << 20
"""Bytes from which on a body is parsed in a thread: it would hold the event loop for tens of milliseconds."""
RequestT = TypeVar("RequestT", bound=GenerationRequest)


class _Route(APIRoute):
    """A route whose unforeseen failures are answered too; Starlette would answer and then raise them on."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            try:
                return await handle(request)
            except (PosttrainError, RequestValidationError, HTTPException, ClientDisconnect):
                raise
            except Exception as error:  # noqa: BLE001 - whatever it is, the client gets an answer in OpenAI's form
                # The error's own text may quote a prompt, so only its kind and place are logged.
                place = "".join(traceback.format_tb(error.__traceback__))
                log.error("a request failed with %s at\n%s", type(error).__name__, place)
                return refusal(500, "the service failed on this request; its log says where", "internal_error")

        return handler


class ErrorDetail(BaseModel):
    """What went wrong, in words; `code` is for programs."""

    message: str
    type: str
    code: str | None


class Error(BaseModel):
    """OpenAI's form of an error."""

    error: ErrorDetail


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Error} for status in (400, 401, 403, 408, 413, 503, *statuses)}


def _generation(kind: type[GenerationRequest]) -> dict[str, Any]:
    """What FastAPI is told of a route that reads its own body: reading it so costs a fifth of FastAPI's way."""
    schema = {"$ref": f"#/components/schemas/{kind.__name__}"}
    timeout = {
        "name": TIMEOUT_HEADER,
        "in": "header",
        "description": "Seconds that the request may take; then it is ended with 504.",
        "schema": {"type": "number", "exclusiveMinimum": 0},
    }
    body = {"required": True, "content": {"application/json": {"schema": schema}}}
    return {
        "responses": _errors(404, 415, 504),
        "response_model": None,
        "openapi_extra": {"requestBody": body, "parameters": [timeout]},
    }


async def _read(kind: type[RequestT], http: Request) -> RequestT:
    # A page in a browser may send other types to a service on loopback without being asked for permission first.
    if http.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "send the request as JSON, with Content-Type: application/json")
    body = await http.body()
    if len(body) > LARGE_BODY:
        return await asyncio.to_thread(parse, kind, body)
    return parse(kind, body)


def create_app() -> FastAPI:
    """The application; `serve` gives it its policy before the first request."""
    app = FastAPI(title="posttrain policy service", version=__version__, docs_url=None, redoc_url=None)
    app.router.route_class = _Route

    @app.get("/v1/models", responses=_errors())
    async def list_models(http: Request) -> dict[str, Any]:
        """The weights that serve now."""
        return {"object": "list", "data": [_model(http.app.state.policy)]}

    @app.get("/v1/models/{model_id}", responses=_errors(404))
    async def retrieve_model(http: Request, model_id: str) -> dict[str, Any]:
        """The current weights, if `model_id` names them."""
        policy = http.app.state.policy
        version = policy.version(model_id)
        current = policy.scheduler.weights.version
        if version not in (None, current):
            raise VersionNotHeld(f"version {version} is not here, the current one is {current}")
        return _model(policy)

    octets = {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }

    @app.put("/v1/models/{model_id}", responses=_errors(404, 409, 507), openapi_extra={"requestBody": octets})
    async def push_weights(
        http: Request, model_id: str, sha256: Annotated[str | None, Header(alias=DIGEST_HEADER)] = None
    ) -> dict[str, str]:
        """Makes a safetensors file the weights of a version; the old ones serve until it has succeeded."""
        policy = http.app.state.policy
        version = policy.version(model_id)
        if version is None:
            raise RequestError(f"name a version to push to: '{policy.settings.name}@VERSION'")
        digest = await http.app.state.uploads.take(version, sha256, http.stream())
        return {"id": policy.model_id(version), "sha256": digest}

    @app.post("/v1/completions", **_generation(CompletionRequest))
    async def completions(http: Request) -> Response:
        """Continues prompts of text or token ids."""
        return await answer(http.app.state.policy, await _read(CompletionRequest, http), http)

    @app.post("/v1/chat/completions", **_generation(ChatRequest))
    async def chat_completions(http: Request) -> Response:
        """Answers a conversation through the model's own chat template."""
        return await answer(http.app.state.policy, await _read(ChatRequest, http), http)

    app.router.routes.extend(page_routes())
    _answer_errors(app)
    _describe(app)
    return app


def serve(app: FastAPI, policy: Policy) -> None:
    """Gives the application what it serves."""
    app.state.policy, app.state.uploads = policy, Uploads(policy)


def _model(policy: Policy) -> dict[str, Any]:
    weights = policy.scheduler.weights
    return {
        "id": policy.model_id(weights.version),
        "object": "model",
        "created": policy.created,
        "owned_by": "posttrain",
        "root": policy.settings.name,
        "version": weights.version,
        "sha256": weights.digest,
        "base_sha256": policy.base_digest,
        "dtype": str(policy.engine.model.dtype).removeprefix("torch."),
        "instance": policy.instance,
        "max_model_len": policy.engine.context,
    }


def _answer_errors(app: FastAPI) -> None:
    statuses: list[tuple[type[Exception], int, str | None]] = [
        (VersionNotHeld, 404, "model_not_found"),
        (Conflict, 409, "version_conflict"),
        (TooLarge, 413, "request_too_large"),
        (StorageError, 507, "no_space"),
        (DeadlineExceeded, 504, DEADLINE_EXCEEDED),
        (RequestError, 400, None),
        (ClientDisconnect, 400, "client_disconnected"),
        (WorkError, 500, "work_failed"),
    ]
    for kind, status, code in statuses:
        app.add_exception_handler(kind, _saying(status, code))

    @app.exception_handler(Overloaded)
    async def overloaded(_: Request, error: Overloaded) -> Response:
        return refusal(503, str(error), "overloaded", retry_after=error.retry_after)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return refusal(400, f"'{error.errors()[0]['loc'][-1]}' is not what this route takes")

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> Response:
        return refusal(error.status_code, str(error.detail))


def _saying(status: int, code: str | None) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def handler(_: Request, error: Exception) -> Response:
        return refusal(status, str(error) or "the request was not sent completely", code)

    return handler


def _describe(app: FastAPI) -> None:
    """Adds the requests to the description of the API, and takes FastAPI's own validation errors out of it."""
    schema = app.openapi()
    for path in schema["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        schema["components"]["schemas"].pop(name, None)
    _, requests = models_json_schema(
        [(CompletionRequest, "validation"), (ChatRequest, "validation")], ref_template="#/components/schemas/{model}"
    )
    schema["components"]["schemas"] |= requests["$defs"]
