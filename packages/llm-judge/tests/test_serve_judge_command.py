"""`posttrain serve judge`: what it starts, and one line for what it cannot serve."""

import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from posttrain.core import cli, serving
from posttrain.core.errors import RequestError
from posttrain.llm_judge.serving.command import parse_judges
from posttrain.llm_judge.serving.judges import Judges
from posttrain.llm_judge.serving.policies import Policies
from posttrain.llm_judge.serving.run_files import lock_runs
from posttrain.llm_judge.serving.settings import (
    ENVIRONMENT,
    JudgeServiceSettings,
    JudgeSettings,
    PolicySettings,
    from_environment,
)

sys.path.insert(0, str(Path(__file__).parent))
from judge_service import KEY, Scripted, served

PACKAGE = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _as_declared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The entry points of this package's pyproject.toml, whatever is installed; no key and no address around, and the
    files in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    declared = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]["entry-points"][cli.GROUP]
    entries = [EntryPoint(name, value, cli.GROUP) for name, value in declared.items()]
    monkeypatch.setattr(cli, "entry_points", lambda group: entries)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list:
    """What the command would have become, instead of becoming it."""
    calls: list = []
    monkeypatch.setattr(serving.os, "execve", lambda *arguments: calls.append(arguments))
    return calls


def serve(*arguments: str) -> int:
    return cli.run(["serve", "judge", "--port", str(serving.free_port()), *arguments])


def settings_of(started: list) -> JudgeServiceSettings:
    return JudgeServiceSettings.model_validate_json(started[0][2][ENVIRONMENT])


def test_it_becomes_the_server_with_its_settings_in_the_environment(
    started: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.chdir(tmp_path)
    options = ["--policy", "sft=http://127.0.0.1:8001", "--protocol", "arena_hard", "--store", "some/store.db"]
    options += ["--reward", "http://127.0.0.1:8002", "--source", "gsm8k"]
    options += [
        "--set",
        "judges.gpt-4o.limits.max_cost=5",
        "--set",
        "judges.gpt-4o.chat.price={input: 2.5, output: 10}",
    ]
    serve("--judge", "gpt-4o", *options)
    _, command, _ = started[0]
    assert command[1:5] == ["-m", "bentoml", "serve", "posttrain.llm_judge.service:JudgeService"]
    settings = settings_of(started)
    judge = settings.judges["gpt-4o"]
    assert (judge.chat.model, judge.chat.base_url, judge.limits.max_cost, judge.chat.price.output) == (
        "gpt-4o",
        None,
        5,
        10,
    )
    assert settings.judges["reward"].reward.source == "gsm8k"
    assert settings.policies["sft"].url == "http://127.0.0.1:8001"
    assert settings.default_protocol == "arena_hard"
    assert settings.store == str(tmp_path / "some" / "store.db")
    assert settings.runs == str(tmp_path / "runs" / "judge" / "service")
    assert KEY not in started[0][2][ENVIRONMENT]


def test_a_url_is_asked_for_its_model_and_what_key_it_takes(started: list):
    with served(Scripted()) as url:
        serve("--judge", url, "--judge", f"other={url}/v1")
    judges = settings_of(started).judges
    assert [(name, one.chat.model, one.chat.base_url) for name, one in judges.items()] == [
        ("scripted", "scripted", f"{url}/v1"),
        ("other", "scripted", f"{url}/v1"),
    ]
    # By its weights the judge is the same at another address.
    assert judges["scripted"].chat.sha256 == judges["other"].chat.sha256 is not None


@pytest.mark.parametrize(
    ("demands", "named", "sent"), [(False, False, False), (True, False, True), (False, True, True)]
)
def test_a_judge_gets_the_key_where_it_asks_for_it_or_the_environment_names_it(
    started: list, monkeypatch: pytest.MonkeyPatch, demands: bool, named: bool, sent: bool
):
    """With a file of settings an address is asked for nothing beforehand: what it has to get stands there."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    async def models(request: Request) -> Response:
        if demands and request.headers.get("authorization") != f"Bearer {KEY}":
            return JSONResponse({}, 401)
        return JSONResponse({"data": [{"id": "m"}]})

    with served(Starlette(routes=[Route("/v1/models", models)])) as url:
        if named:
            monkeypatch.setenv("OPENAI_BASE_URL", f"{url}/v1")
        serve("--judge", url)
    judges = settings_of(started).judges
    assert (Judges(judges)._chat["m"]._key == KEY) is sent
    written = JudgeSettings.model_validate({"chat": {"model": "m", "base_url": url}})
    assert (Judges({"m": written})._chat["m"]._key == KEY) is named


def test_a_judge_without_a_name_gets_one_that_requests_and_set_can_use(started: list, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    models = {"policy@0": "policy-0", "/models/llama": "models/llama", "gpt-4.1": "gpt-4-1", "org/m:7b": "org/m:7b"}
    chosen = ["--set", "judges.gpt-4-1.limits.concurrency=3"]
    serve(*(part for model in models for part in ("--judge", model)), *chosen)
    judges = settings_of(started).judges
    assert {one.chat.model: name for name, one in judges.items()} == models
    assert judges["gpt-4-1"].limits.concurrency == 3
    with pytest.raises(RequestError, match="choose one"):
        parse_judges(["@"])


def test_a_file_of_settings_comes_below_the_options(started: list, tmp_path: Path):
    file = tmp_path / "judge.yaml"
    file.write_text(
        "judges: {a: {reward: {url: 'http://127.0.0.1:1'}}}\n"
        "policies: {p: {url: 'http://127.0.0.1:2', max_tokens: 9}}\nmax_comparisons: 7\n"
    )
    serve("--settings", str(file), "--reward", "http://127.0.0.1:3", "--set", "max_comparisons=8")
    settings = settings_of(started)
    assert list(settings.judges) == ["a", "reward"]
    assert settings.policies["p"].max_tokens == 9
    assert settings.max_comparisons == 8


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "there is no judge to serve; name one with --judge"),
        (["--judge", "gpt-4o"], "needs a key; set OPENAI_API_KEY"),
        (["--judge", "http://127.0.0.1:9"], "does not answer"),
        (["--judge", "a=m", "--judge", "a=n"], "judge 'a' is given twice"),
        (["--reward", "localhost:8002"], "judges.reward.reward.url"),
        (["--reward", "http://127.0.0.1:9", "--policy", "sft"], "--policy takes NAME=URL, not 'sft'"),
        (["--reward", "http://127.0.0.1:9", "--policy", "p=http://a", "--policy", "p=http://b"], "'p' is given twice"),
        (["--reward", "http://127.0.0.1:9", "--protocol", "alpacca"], "(did you mean 'alpaca'?)"),
        (["--reward", "http://127.0.0.1:9", "--set", "protocols.x=none.yaml"], "none.yaml does not exist"),
        (["--reward", "http://127.0.0.1:9", "--set", "protocols.alpaca=x.yaml"], "comes with the package"),
        (["--reward", "http://127.0.0.1:9", "--set", "max_comparison=3"], "(did you mean 'max_comparisons'?)"),
        (["--reward", "http://127.0.0.1:9", "--set", "default_judge=x"], "default_judge 'x' is no judge"),
        (["--reward", "http://127.0.0.1:9", "--set", "judges.x.limits.concurrency=3"], "either 'chat' or 'reward'"),
        (["--judge", "m", "--set", "judges.m.limits.max_cost=3"], "'limits.max_cost' needs 'chat.price'"),
        (
            ["--reward", "http://127.0.0.1:9", "--set", "judges.reward.limits.tokens_per_minute=3"],
            "leave 'limits.tokens_per_minute' out",
        ),
        (["--judge", "m", "--set", "judges.m.chat.api_key_variable=NO_SUCH_KEY"], "set NO_SUCH_KEY"),
        (["--settings", "none.yaml"], "none.yaml does not exist"),
        (["--reward", "http://127.0.0.1:9", "--port", "0"], "port 0"),
    ],
)
def test_what_cannot_be_served_is_one_line(arguments: list[str], says: str, started: list, capsys):
    assert serve(*arguments) in (1, 2)
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ")
    assert says in message
    assert started == []


def test_folders_of_another_service_and_a_store_that_is_none_are_one_line(started: list, tmp_path: Path, capsys):
    with lock_runs(tmp_path / "runs" / "judge" / "service"):
        assert serve("--reward", "http://127.0.0.1:9") == 2
    assert "another judge service uses" in capsys.readouterr().err
    (tmp_path / "none.db").write_text("no store " * 1000)
    assert serve("--reward", "http://127.0.0.1:9", "--store", "none.db") == 2
    assert "none.db" in capsys.readouterr().err.strip().splitlines()[-1]
    assert started == []
    serve("--reward", "http://127.0.0.1:9")
    assert len(started) == 1


def test_another_servers_key_is_never_sent_in_place_of_a_missing_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    chat = {"model": "m", "base_url": "http://127.0.0.1:9", "api_key_variable": "MINE"}
    local = Judges({"m": JudgeSettings.model_validate({"chat": chat})})
    policies = Policies({"p": PolicySettings(url="https://policy.example")})
    assert KEY not in (local._chat["m"]._key, policies._servers["p"]._key)
    with pytest.raises(RequestError, match="set MINE"):
        Judges({"m": JudgeSettings.model_validate({"chat": chat | {"base_url": "https://judge.example"}})})


def test_settings_in_the_environment_that_are_wrong_are_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(ENVIRONMENT, '{"jugdes": {}}')
    with pytest.raises(RequestError, match=r"POSTTRAIN_JUDGE: unknown key 'jugdes' .*'judges'"):
        from_environment()
    monkeypatch.setenv(ENVIRONMENT, "{")
    with pytest.raises(RequestError, match="POSTTRAIN_JUDGE is not JSON"):
        from_environment()
