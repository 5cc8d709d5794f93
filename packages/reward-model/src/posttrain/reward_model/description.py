"""The OpenAPI description of the reward service: what its routes take, and every answer that they may give.

FastAPI describes what it parses itself; the service parses `/score` on its own (in a thread, and with errors that
repeat nothing), so the body and the errors in OpenAI's form are put in here.
"""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

REFERENCES = "#/components/schemas/{model}"
ERRORS = {
    400: "The request is wrong; the message says where. Nothing was scored.",
    401: "A bearer token is needed.",
    403: "Without a key the service answers only on loopback.",
    408: "The body came too slowly.",
    413: "The body is too large.",
    500: "A source failed.",
    503: "Too much waits already; come again after Retry-After seconds.",
    504: "No answer within the deadline.",
}


class Problem(BaseModel):
    """What went wrong."""

    message: str
    type: str
    code: str | None


class ErrorAnswer(BaseModel):
    """OpenAI's form of an error."""

    error: Problem


def describe(app: FastAPI, requests: Mapping[str, type[BaseModel]], answers: Mapping[str, type[BaseModel]]) -> None:
    """Completes the description of `app`: bodies of the POST routes at these paths, and errors of every route."""
    description = app.openapi()
    wanted: list[tuple[type[BaseModel], str]] = [(model, "validation") for model in requests.values()]
    wanted += [(model, "serialization") for model in answers.values()] + [(ErrorAnswer, "serialization")]
    places, definitions = models_json_schema(wanted, ref_template=REFERENCES)  # type: ignore[arg-type]
    schemas = description.setdefault("components", {}).setdefault("schemas", {})
    schemas.update(definitions["$defs"])
    for path, operations in description["paths"].items():
        for operation in operations.values():
            for status, text in ERRORS.items():
                schema = places[ErrorAnswer, "serialization"]
                operation["responses"][str(status)] = {"description": text, **_content(schema)}
        if path in requests:
            body = {"required": True, **_content(places[requests[path], "validation"])}
            operations["post"]["requestBody"] = body
            operations["post"]["responses"]["200"] |= _content(places[answers[path], "serialization"])


def _content(schema: Any) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema}}}
