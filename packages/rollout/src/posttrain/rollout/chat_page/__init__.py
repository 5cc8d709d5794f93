"""The chat page: static files that any service with OpenAI's chat route can carry at `/chat`.

The page lists `/v1/models` of the service that it came from, streams its `/v1/chat/completions`, and asks a person for
the service's key where it needs one. Two models answer blind, side by side; a vote is posted to what the list of models
names as `votes`, or kept in the page to be saved as a file. Nothing is loaded from elsewhere.
"""

from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_FILES = {
    "/chat": ("page.html", "text/html"),
    "/chat/page.css": ("page.css", "text/css"),
    "/chat/page.js": ("page.js", "text/javascript"),
    "/chat/stream.js": ("stream.js", "text/javascript"),
    "/chat/votes.js": ("votes.js", "text/javascript"),
}
PAGE_PATHS = frozenset(_FILES)
"""Paths of the page itself, which hold nothing to protect: who opens it has no key to send yet."""

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def page_routes() -> list[Route]:
    """The page's routes, for a Starlette or FastAPI application."""
    return [Route(path, _send, methods=["GET"], include_in_schema=False) for path in _FILES]


async def _send(request: Request) -> Response:
    name, media_type = _FILES[request.url.path]
    content = (files("posttrain.rollout.chat_page") / name).read_bytes()
    return Response(content, media_type=media_type, headers=_HEADERS)
