"""The reward service does what its OpenAPI description says, whatever a client sends that the description allows."""

import json
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from posttrain.core.asgi import ServiceMiddleware
from posttrain.reward_model.app import create_app
from posttrain.reward_model.scoring import Scoring
from posttrain.reward_model.settings import RewardServiceSettings
from posttrain.reward_model.sources import load_sources

REWARDS = "def length(prompt, completion, reference):\n    return len(completion)\n"


@pytest.fixture(scope="module")
def app(reward_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory):
    file = tmp_path_factory.mktemp("rewards") / "rewards.py"
    file.write_text(REWARDS)
    sources = {"rm": str(reward_checkpoint), "length": f"{file}:length"}
    settings = RewardServiceSettings(sources=sources, function_processes=1)
    app = create_app()
    app.state.scoring = Scoring(load_sources(settings), settings)
    yield app
    app.state.scoring.close()


def described(app, sources: list[str]):
    """The service behind its key, as it describes itself, with the names of its sources."""
    headers = {"Authorization": "Bearer sesame"}
    schema = schemathesis.openapi.from_asgi("/openapi.json", ServiceMiddleware(app, api_key="sesame"), headers=headers)
    request = schema.raw_schema["components"]["schemas"]["ScoreRequest"]
    request["properties"]["sources"]["items"] = {"enum": sources}
    return schema


@pytest.mark.parametrize(
    ("sources", "mode"),
    [
        (["length"], GenerationMode.POSITIVE),  # takes every item
        (["rm", "verifier", "gsm8k"], GenerationMode.POSITIVE),  # have their own ideas of what they can take
        (["length", "rm"], GenerationMode.NEGATIVE),
    ],
)
def test_every_answer_is_one_that_the_description_has(app, sources: list[str], mode: GenerationMode):
    excluded = [] if sources == ["length"] else [positive_data_acceptance]
    for operation in (result.ok() for result in described(app, sources).get_all_operations()):

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        def check(case):
            case.call_and_validate(headers={"Authorization": "Bearer sesame"}, excluded_checks=excluded)

        if mode is GenerationMode.POSITIVE or operation.body:  # nothing is forbidden where nothing is taken
            check()


def test_references_of_the_description_lead_somewhere(app):
    description = app.openapi()
    text = json.dumps(description)
    names = {part.partition('"')[0] for part in text.split('"#/components/schemas/')[1:]}
    assert names
    assert names <= set(description["components"]["schemas"])
    assert "#/$defs" not in text
    body = description["paths"]["/score"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/ScoreRequest"}
