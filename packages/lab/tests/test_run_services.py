"""The services of a run as another process borrows them: those that it needs, and no others."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from posttrain.lab import run_services as module
from posttrain.lab.pipeline import run_services
from posttrain.lab.recipe import load_recipe
from posttrain.lab.run_services import Lent, RunServices

PIDS = {"policy": 11, "reward": 12}


@pytest.fixture
def started(monkeypatch) -> list[str]:
    """Names of the services that were started."""
    names: list[str] = []

    class Service:
        def __init__(self, name: str, arguments: Any, log: Path, *_: Any) -> None:
            self.name, self.url, self.pid = name, f"http://{name}", PIDS[name]

        def __enter__(self) -> "Service":
            names.append(self.name)
            return self

        def __exit__(self, *_: object) -> None: ...

    client = SimpleNamespace(close=lambda: None)
    monkeypatch.setattr(module, "SupervisedService", Service)
    monkeypatch.setattr(module, "connect_policy", lambda url: client)
    monkeypatch.setattr(module, "RewardClient", lambda url: client)
    return names


def test_only_what_is_asked_for_is_started_and_lent(tmp_path, started):
    with RunServices(tmp_path, {}, 1) as services:
        assert services.lend(tmp_path, False, None) == Lent("http://policy", None, (11,))
        assert started == ["policy"]
        assert services.lend(None, True, None) == Lent(None, "http://reward", (12,))
        assert services.lend(tmp_path, True, None) == Lent("http://policy", "http://reward", (11, 12))
        assert started == ["policy", "reward"]


def test_the_reward_service_is_started_anew_when_a_reward_model_joins_it(tmp_path, started):
    with RunServices(tmp_path, {}, 1) as services:
        services.lend(None, True, None)
        services.lend(None, True, tmp_path / "rm")
        services.lend(None, True, None)  # one that needs no model can do with the one that is there
    assert started == ["reward", "reward"]


def test_the_policy_service_is_started_anew_for_an_adapter_of_another_checkpoint_only(tmp_path, started):
    first, second = tmp_path / "sft", tmp_path / "dpo"
    with RunServices(tmp_path, {}, 1) as services:
        services.policy(first)
        services.policy(second)  # full weights are pushed to whatever it began with
        services.policy(first, adapter=True)
        assert started == ["policy"]
        services.policy(second, adapter=True)
        assert services.lend(second, False, None, adapter=True).policy == "http://policy"
    assert started == ["policy", "policy"]


@pytest.mark.parametrize(("precision", "said"), [("fp32", []), ("bf16", ["--set", "dtype=bfloat16"])])
def test_the_policy_service_computes_in_what_the_recipe_trains_in(tmp_path, started, monkeypatch, precision, said):
    monkeypatch.delenv("POLICY_URL", raising=False)
    asked: list[list[str]] = []

    class Noting(module.SupervisedService):
        def __init__(self, name: str, arguments: list[str], *more: Any) -> None:
            asked.append(arguments)
            super().__init__(name, arguments, *more)

    monkeypatch.setattr(module, "SupervisedService", Noting)
    plan: Any = SimpleNamespace(recipe=load_recipe("nano", [f"precision={precision}", "threads=null"]))
    with run_services(plan, tmp_path) as services:
        services.policy(tmp_path / "sft")
    assert asked == [["policy", str(tmp_path / "sft"), "--engine", "auto", *said]]


def test_services_of_others_are_lent_without_their_processes(tmp_path, started):
    with RunServices(tmp_path, {}, 1, "http://theirs", "http://also-theirs") as services:
        assert services.lend(tmp_path, True, None) == Lent("http://theirs", "http://also-theirs", ())
        services.policy(tmp_path / "another", adapter=True)
    assert not started
