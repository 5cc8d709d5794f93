"""The judge service does what its OpenAPI description says, whatever a client sends that it allows or forbids."""

import json
import sys
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from posttrain.core.asgi import ServiceMiddleware
from posttrain.llm_judge.serving.app import create_app

sys.path.insert(0, str(Path(__file__).parent))
from judge_service import Policy, Scripted, served, settings

pytestmark = pytest.mark.long

KEY = {"Authorization": "Bearer sesame"}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory):
    """The service behind its key: over a socket, for its judges belong to one event loop."""
    with served(Scripted()) as judge, served(Policy().app) as policy:
        app = create_app(settings(tmp_path_factory.mktemp("judge"), judge, policies={"sft": policy}))
        with served(ServiceMiddleware(app, api_key="sesame"), "on") as address:
            yield address


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_every_answer_is_one_that_the_description_has(url: str, mode: GenerationMode):
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json", headers=KEY)
    schemas = schema.raw_schema["components"]["schemas"]
    names = {"judge": ["scripted"], "protocol": ["alpaca", "arena_hard", "mt_bench", "mt_bench_grade"]}
    for kind in ("JudgeRequest", "RunRequest"):
        for name, known in names.items():
            schemas[kind]["properties"][name] = {"enum": known}
    schemas["FromPolicy"]["properties"]["policy"] = {"enum": ["sft"]}
    # What no schema says: instruction or questions, and as many texts as questions.
    excluded = [positive_data_acceptance]
    answered = set()
    for operation in (result.ok() for result in schema.get_all_operations()):

        @given(case=operation.as_strategy(generation_mode=mode))
        @hypothesis_settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        def check(case):
            response = case.call_and_validate(headers=KEY, excluded_checks=excluded)
            assert response.status_code < 500
            answered.add((case.operation.path, response.status_code))

        # Of what takes nothing nothing is forbidden.
        if mode is GenerationMode.POSITIVE or operation.body:
            check()
    assert {("/judge", 400), ("/runs", 400)} <= answered


@pytest.mark.parametrize(("path", "status"), [("/judge", 200), ("/runs", 202)])
def test_the_answer_to_a_request_that_is_taken_is_as_described(url: str, path: str, status: int):
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json", headers=KEY)
    body = {"comparisons": [{"instruction": "Name a prime number.", "output_1": "Four.", "output_2": "Seven."}]}
    case = schema[path]["POST"].Case(body=body, media_type="application/json")
    assert case.call_and_validate(headers=KEY).status_code == status


def test_references_of_the_description_lead_somewhere(tmp_path: Path):
    description = create_app(settings(tmp_path, "http://127.0.0.1:9")).openapi()
    text = json.dumps(description)
    names = {part.partition('"')[0] for part in text.split('"#/components/schemas/')[1:]}
    assert {"JudgeRequest", "RunRequest", "JudgeAnswer", "RunAnswer", "ErrorAnswer", "ComparisonItem"} <= names
    assert names <= set(description["components"]["schemas"])
    assert "#/$defs" not in text
    assert "HTTPValidationError" not in text
    judge, runs = description["paths"]["/judge"]["post"], description["paths"]["/runs"]["post"]
    assert judge["requestBody"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/JudgeRequest"
    }
    answer = judge["responses"]["200"]["content"]["application/json"]["schema"]
    assert answer == {"$ref": "#/components/schemas/JudgeAnswer"}
    assert set(runs["responses"]) == {"202", "400", "401", "403", "408", "413", "415", "500", "503", "504", "507"}
