"""The OpenAPI description of the judge service: what its routes take, and every answer that they may give.

The service parses bodies on its own, in a thread and with errors that repeat no text, so they are put in here.
"""

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from posttrain.llm_judge.serving.requests import JudgeRequest, RunRequest

REFERENCES = "#/components/schemas/{model}"
REQUESTS: tuple[type[JudgeRequest], ...] = (JudgeRequest, RunRequest)
ERRORS = {
    400: "The request is wrong; the message says where. Nothing was asked.",
    401: "A bearer token is needed.",
    402: "The money for this judge is spent.",
    403: "Without a key the service answers only on loopback.",
    404: "There is no such run.",
    408: "The body came too slowly.",
    409: "The run has not ended.",
    413: "The body is too large.",
    415: "The body is not said to be JSON.",
    500: "The judge or the store failed.",
    503: "Too much waits already, or the judge is away; come again after Retry-After seconds.",
    504: "No answer within the deadline. What was judged is kept.",
    507: "The service's disk is full or cannot be written. What was judged before is kept.",
}
EVERYWHERE = (400, 401, 403, 408, 413, 500, 503, 504, 507)
"""Errors that any route may give."""


class Problem(BaseModel):
    """What went wrong."""

    message: str
    type: str
    code: str | None


class ErrorAnswer(BaseModel):
    """OpenAI's form of an error."""

    error: Problem


def described(
    answer: type[BaseModel], *errors: int, status: int = 200, request: type[JudgeRequest] | None = None
) -> dict[str, Any]:
    """What FastAPI is told of a route: its answer, the errors that it has beyond those of every route, its body."""
    responses: dict[int, dict[str, Any]] = {status: {"model": answer}}
    responses |= {code: {"model": ErrorAnswer, "description": ERRORS[code]} for code in (*EVERYWHERE, *errors)}
    about: dict[str, Any] = {"status_code": status, "response_model": None, "responses": responses}
    if request:
        content = {"application/json": {"schema": {"$ref": REFERENCES.format(model=request.__name__)}}}
        about["openapi_extra"] = {"requestBody": {"required": True, "content": content}}
    return about


def complete(app: FastAPI) -> None:
    """Adds the requests to the description of `app`, and takes FastAPI's own validation errors out of it."""
    description = app.openapi()
    schemas = description["components"]["schemas"]
    for operations in description["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    _, found = models_json_schema([(kind, "validation") for kind in REQUESTS], ref_template=REFERENCES)
    schemas |= found["$defs"]
