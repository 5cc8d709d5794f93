"""The policy service does what its OpenAPI description says, whatever a client sends that it allows or forbids."""

import json

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from posttrain.core.asgi import ServiceMiddleware

pytestmark = pytest.mark.long

KEY = {"Authorization": "Bearer sesame"}
# What only the model can tell (a context, a vocabulary, which version is here) no description has: 400, 404 or 409.
# And it takes more than it describes, where that is OpenAI's way: parameters that change nothing.
EXCLUDED = {
    GenerationMode.POSITIVE: [positive_data_acceptance],
    GenerationMode.NEGATIVE: [negative_data_rejection],
}


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_every_answer_is_one_that_the_description_has(client, mode):
    schema = schemathesis.openapi.from_asgi(
        "/openapi.json", ServiceMiddleware(client.app, api_key="sesame"), headers=KEY
    )
    for kind in ("CompletionRequest", "ChatRequest"):
        schema.raw_schema["components"]["schemas"][kind]["properties"]["model"] = {"enum": ["policy", "policy@0", "x"]}
    answered = set()
    for operation in (result.ok() for result in schema.get_all_operations()):

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        def check(case):
            response = case.call_and_validate(headers=KEY, excluded_checks=EXCLUDED[mode])
            assert response.status_code < 500
            answered.add(response.status_code)

        if mode is GenerationMode.POSITIVE or operation.method == "post":  # of bytes the description forbids none
            check()
    assert 400 in answered


def test_references_of_the_description_lead_somewhere(client):
    description = client.app.openapi()
    text = json.dumps(description)
    names = {part.partition('"')[0] for part in text.split('"#/components/schemas/')[1:]}
    assert {"CompletionRequest", "ChatRequest", "Error"} <= names
    assert names <= set(description["components"]["schemas"])
    assert "#/$defs" not in text
