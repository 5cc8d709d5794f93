"""The chat page on a port of its own: it lists one model or two, passes their answers on, and keeps the votes.

The models' servers and their keys stay behind it: the page asks this service only. Key, loopback rule and body limits
are `posttrain.core.asgi`'s; the page itself is `posttrain.rollout.chat_page`.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from posttrain.core.asgi import MIB, ServiceMiddleware
from posttrain.core.errors import PosttrainError
from posttrain.core.keys import warn_without_key
from posttrain.core.serving import is_loopback
from posttrain.core.wire import error_body
from posttrain.lab.chat_models import ChatModel
from posttrain.lab.chat_stream import TIMEOUT
from posttrain.lab.chat_votes import Vote, count_votes, store_vote
from posttrain.rollout.chat_page import PAGE_PATHS, page_routes

PASSED_ON = ("messages", "temperature", "max_tokens", "top_p", "seed", "stop")
"""Parameters of a chat request that reach the model."""
VOTES_PATH = "/chat/votes"


def chat_app(models: list[ChatModel], votes: Path) -> ServiceMiddleware:
    """The application: `models` have different labels, `votes` is the file that they are appended to."""
    by_label = {model.label: model for model in models}
    weights = {model.label: model.endpoint.digest for model in models}
    writing = asyncio.Lock()

    async def home(_: Request) -> Response:
        return RedirectResponse("/chat")

    async def list_models(_: Request) -> Response:
        data = [{"id": label, "object": "model", "owned_by": "posttrain"} for label in by_label]
        return JSONResponse(
            {"object": "list", "data": data, "votes": {"path": VOTES_PATH, "stored": count_votes(votes)}}
        )

    async def answer(request: Request) -> Response:
        body = await _json(request)
        model = by_label.get(str(body.get("model")))
        if model is None:
            return _refusal(404, f"there is no such model; ask for one of: {', '.join(by_label)}", "model_not_found")
        passed = {name: body[name] for name in PASSED_ON if name in body}
        return await _passed_on(request.app.state.clients[model.label], model, passed)

    async def vote(request: Request) -> Response:
        try:
            row = Vote.model_validate(await _json(request))
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            place = ".".join(str(part) for part in first["loc"])[:80]
            return _refusal(400, f"this is no vote: {place} {first['msg']}".replace("  ", " "))
        async with writing:
            await asyncio.to_thread(store_vote, votes, row, weights)
        return JSONResponse({"stored": count_votes(votes)})

    @asynccontextmanager
    async def clients(app: Starlette) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            app.state.clients = {m.label: await stack.enter_async_context(_client(m)) for m in models}
            yield

    routes = [
        Route("/", home),
        Route("/v1/models", list_models),
        Route("/v1/chat/completions", answer, methods=["POST"]),
        Route(VOTES_PATH, vote, methods=["POST"]),
        *page_routes(),
    ]
    handlers: dict[Any, Callable[[Request, Any], Awaitable[Response]]] = {
        HTTPException: _http_refusal,
        PosttrainError: _work_refusal,
    }
    app = Starlette(routes=routes, lifespan=clients, exception_handlers=handlers)
    return ServiceMiddleware(app, max_body_bytes=8 * MIB, pages=PAGE_PATHS | {"/"})


def serve_page(models: list[ChatModel], votes: Path, host: str, port: int) -> None:
    """Serves the page until Ctrl-C or SIGTERM."""
    import uvicorn

    warn_without_key(host)
    shown = f"[{host}]" if ":" in host else host
    print(f"chat page on http://{shown}:{port}/chat: {' and '.join(m.label for m in models)}", file=sys.stderr)
    print(f"votes: {votes}; Ctrl-C ends it", file=sys.stderr)
    config = uvicorn.Config(
        chat_app(models, votes), host=host, port=port, log_level="warning", timeout_graceful_shutdown=3
    )
    try:
        uvicorn.Server(config).run()
    except KeyboardInterrupt:
        pass  # the way to end it


def _client(model: ChatModel) -> httpx.AsyncClient:
    endpoint = model.endpoint
    key = {"Authorization": f"Bearer {endpoint.api_key}"} if endpoint.api_key else {}
    # A proxy of the environment is for the world outside, not for this machine.
    outside = not is_loopback(httpx.URL(endpoint.base_url).host)
    return httpx.AsyncClient(headers=key, timeout=httpx.Timeout(TIMEOUT, connect=5.0), trust_env=outside)


async def _passed_on(client: httpx.AsyncClient, model: ChatModel, passed: dict[str, Any]) -> Response:
    """The model's own answer, as it comes; its error, in its words."""
    body = {"model": model.endpoint.model, **passed, "stream": True}
    asked = client.build_request("POST", f"{model.endpoint.base_url}/chat/completions", json=body)
    try:
        response = await client.send(asked, stream=True)
    except httpx.TransportError as error:
        return _refusal(502, f"{model.label} does not answer ({type(error).__name__})", "no_answer")
    if not response.is_success:
        async with _closing(response):
            content = await response.aread()
        # A model's server that refuses this service's key must not make the page ask for another one.
        if response.status_code in (401, 403):
            return _refusal(502, f"{model.label} does not take the key that this service has for it", "no_answer")
        return Response(content, response.status_code, media_type=response.headers.get("content-type"))
    return StreamingResponse(_events(response), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


async def _events(response: httpx.Response) -> AsyncIterator[bytes]:
    async with _closing(response):
        try:
            async for piece in response.aiter_bytes():
                yield piece
        except httpx.TransportError as error:
            message = f"the model's server broke off ({type(error).__name__})"
            yield b"data: " + json.dumps(error_body(message, "server_error", "no_answer")).encode() + b"\n\n"


@asynccontextmanager
async def _closing(response: httpx.Response) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await response.aclose()  # whoever goes away ends the generation too


async def _json(request: Request) -> dict[str, Any]:
    # A page in a browser may send other types to a service on loopback without being asked for permission first.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "send the request as JSON, with Content-Type: application/json")
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError):
        raise HTTPException(400, "the body is not JSON") from None
    if not isinstance(body, dict):
        raise HTTPException(400, "the body must be a JSON object")
    return body


def _refusal(status: int, message: str, code: str | None = None) -> Response:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return JSONResponse(error_body(message, kind, code), status)


async def _http_refusal(_: Request, error: HTTPException) -> Response:
    return _refusal(error.status_code, str(error.detail))


async def _work_refusal(_: Request, error: PosttrainError) -> Response:
    return _refusal(500, str(error), "work_failed")
