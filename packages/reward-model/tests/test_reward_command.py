"""`posttrain serve reward`: what it starts, and one line for what it cannot serve."""

import json
import socket
from pathlib import Path

import pytest

from posttrain.core import serving
from posttrain.core.cli import run
from posttrain.reward_model.settings import ENVIRONMENT, RewardServiceSettings, from_environment


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list:
    """What the command would have become, instead of becoming it."""
    calls: list = []
    monkeypatch.setattr(serving.os, "execve", lambda *arguments: calls.append(arguments))
    return calls


def test_it_becomes_the_server_with_its_settings_in_the_environment(
    reward_checkpoint: Path, tmp_path: Path, started: list
):
    (tmp_path / "mine.py").write_text("def f(prompt, completion, reference):\n    return 0.0\n")
    mine = f"mine={tmp_path / 'mine.py'}:f"
    port = serving.free_port()
    run(["serve", "reward", str(reward_checkpoint), "--source", mine, "--port", str(port), "--threads", "1"])
    _, command, environment = started[0]
    service = "posttrain.reward_model.service:RewardService"
    assert command[1:] == ["-m", "bentoml", "serve", service, "--host", "127.0.0.1", "--port", str(port)]
    settings = RewardServiceSettings.model_validate_json(environment[ENVIRONMENT])
    assert settings.sources == {"rm": str(reward_checkpoint), "mine": f"{tmp_path / 'mine.py'}:f"}
    assert settings.threads == 1
    assert environment["OMP_NUM_THREADS"] == "1"


def test_without_a_checkpoint_it_serves_the_verifiers(started: list):
    run(["serve", "reward", "--port", str(serving.free_port())])
    assert json.loads(started[0][2][ENVIRONMENT])["sources"] == {}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["no/such/folder"], "is not a folder"),
        (["{empty}"], "has no config.json"),
        (["--source", "mine"], "--source takes name=checkpoint"),
        (["--source", "mine={empty}/none.py:f"], "cannot be read"),
        (["--source", "gsm8k={empty}"], "exists already"),
        (["--source", "a=x/y", "--source", "a=x/y"], "given twice"),
        (["a=./no/such", "b=./no/such"], "is not a folder"),
        (["x/y", "rm=x/y"], "'rm' is given twice"),
        (["--ensemble", "rm"], "--ensemble takes name=model,model"),
        (["a=x/y", "--ensemble", "rm=a"], "needs two or more different reward models"),
        (["a=x/y", "--ensemble", "rm=a,a"], "needs two or more different reward models"),
        (
            ["alpha=x/y", "--ensemble", "rm=alpha,alhpa"],
            "'alhpa' is no reward model of this service (did you mean 'alpha'",
        ),
        (["a=x/y", "b=x/y", "--ensemble", "rm=a,gsm8k"], "'gsm8k' is no reward model"),
        (["a=x/y", "rm.std=x/y", "--ensemble", "rm=a,rm.std"], "'rm.std' exists already"),
        (["--port", "0"], "port 0"),
        (["--port", "abc"], "--port"),
    ],
)
def test_what_cannot_be_served_is_one_line_and_status_2(
    arguments: list[str], says: str, tmp_path: Path, started: list, capsys: pytest.CaptureFixture[str]
):
    assert run(["serve", "reward", *(argument.format(empty=tmp_path) for argument in arguments)]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ")
    assert says in message
    assert started == []


def test_a_port_in_use_is_refused(started: list, capsys: pytest.CaptureFixture[str]):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run(["serve", "reward", "--port", str(port)]) == 2
    assert f"127.0.0.1:{port}" in capsys.readouterr().err
    assert started == []


def test_settings_in_the_environment_that_are_wrong_are_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(ENVIRONMENT, '{"batch_token": 3}')
    with pytest.raises(serving.RequestError, match=r"POSTTRAIN_REWARD: unknown key 'batch_token' .*'batch_tokens'"):
        from_environment()
    monkeypatch.setenv(ENVIRONMENT, "{")
    with pytest.raises(serving.RequestError, match="POSTTRAIN_REWARD is not JSON"):
        from_environment()


def test_several_reward_models_and_an_ensemble_of_them_are_named(reward_checkpoint: Path, started: list):
    folder, port = str(reward_checkpoint), str(serving.free_port())
    run(["serve", "reward", f"a={folder}", f"b={folder}", "--ensemble", "rm=a,b", "--port", port])
    settings = RewardServiceSettings.model_validate_json(started[0][2][ENVIRONMENT])
    assert settings.sources == {"a": folder, "b": folder}
    assert settings.ensembles == {"rm": ["a", "b"]}
