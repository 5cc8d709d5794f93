"""docker/compose.yaml: what it starts is ours, confined, reachable from this machine alone, and started in order.

It is checked by hand here, and against the compose specification's own schema where POSTTRAIN_COMPOSE_SCHEMA names that
file (schema/compose-spec.json of compose-spec/compose-go).
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import jsonschema_rs
import pytest
import yaml

from delivery.targets import TARGETS, tags
from posttrain.core.cli import run
from posttrain.core.config import validate
from posttrain.data import nano
from posttrain.llm_judge.serving.settings import JudgeServiceSettings
from posttrain.reward_model.settings import ENVIRONMENT as REWARD
from posttrain.rollout.settings import ENVIRONMENT as POLICY
from tests.compose_file import FILE, FOLDER, ROOT, command_of, compose_file

SERVICES = compose_file()["services"]
OURS = ["policy", "reward", "judge", "policy-vllm", "trainer"]
WATCHING = ["prometheus", "grafana"]
SERVING = {"policy": 8001, "reward": 8002, "judge": 8003, "policy-vllm": 8001}
"""Services with the port that they listen on in their container."""
KEYS = {
    *("build", "cap_drop", "command", "depends_on", "deploy", "environment", "healthcheck", "image", "logging"),
    *("networks", "ports", "profiles", "pull_policy", "read_only", "restart", "secrets", "security_opt", "shm_size"),
    *("stop_grace_period", "tmpfs", "volumes"),
}
"""Of a service, as the compose specification spells them."""


@pytest.mark.skipif(not os.environ.get("POSTTRAIN_COMPOSE_SCHEMA"), reason="POSTTRAIN_COMPOSE_SCHEMA names no schema")
def test_the_file_is_valid_by_the_specifications_schema():
    schema = json.loads(Path(os.environ["POSTTRAIN_COMPOSE_SCHEMA"]).read_text())
    jsonschema_rs.validator_for(schema).validate(compose_file())


def test_every_key_is_one_of_the_specifications():
    file = compose_file()
    assert {key for key in file if not key.startswith("x-")} == {"name", "services", "networks", "volumes", "secrets"}
    assert {key for service in SERVICES.values() for key in service} <= KEYS


def test_out_of_the_box_there_are_a_policy_a_reward_and_a_judge_service():
    assert [name for name, service in SERVICES.items() if "profiles" not in service] == ["policy", "reward", "judge"]
    profiles = {name: service["profiles"] for name, service in SERVICES.items() if "profiles" in service}
    watched = {name: ["observability"] for name in WATCHING}
    assert profiles == {"policy-vllm": ["gpu"], "trainer": ["trainer"], **watched}


@pytest.mark.parametrize("name", OURS)
def test_an_image_of_ours_is_one_that_make_images_builds_and_is_never_pulled(name: str):
    service = SERVICES[name]
    build = service["build"]
    target = TARGETS[build["target"]]
    assert service["image"] == tags(target, "0.0.0", build["args"]["ACCELERATOR"])[1]
    assert service["pull_policy"] == "never"
    assert name not in SERVING or target.port == SERVING[name]
    assert (FOLDER / build["context"]).resolve() == ROOT
    dockerfile = (ROOT / build["dockerfile"]).read_text()
    assert re.search(rf"^FROM .* AS {target.name}$", dockerfile, re.MULTILINE)
    arguments = " ".join(re.findall(r"^ARG (.*)", dockerfile, re.MULTILINE)).split()
    assert set(build["args"]) <= {argument.partition("=")[0] for argument in arguments}


@pytest.mark.parametrize("name", WATCHING)
def test_an_image_of_others_is_of_one_version(name: str):
    assert re.fullmatch(r"[\w-]+/[\w-]+:v?\d+\.\d+\.\d+", SERVICES[name]["image"])


def test_every_published_port_is_of_this_machine_alone():
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(published) == 5
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in published)
    assert len({port.rpartition(":")[0] for port in published}) == len(published)


@pytest.mark.parametrize("name", [*OURS, *WATCHING])
def test_a_container_may_do_nothing_but_its_work(name: str):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    limits = service["deploy"]["resources"]["limits"]
    assert set(limits) >= {"memory", "pids"}
    # A trainer and a GPU's policy take every core that they find.
    assert "cpus" in limits or name in ("trainer", "policy-vllm")


def test_no_key_is_in_the_file_or_in_what_the_containers_environment_holds():
    file = compose_file()
    assert {secret["file"].rpartition("/")[0] for secret in file["secrets"].values()} == {"./secrets"}
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            assert name.endswith("_FILE") or not re.search("KEY|TOKEN|PASSWORD|SECRET", name)
            assert not name.endswith("_FILE") or value in {f"/run/secrets/{key}" for key in service["secrets"]}
    assert not re.search(r"[0-9a-fA-F]{24}|sk-\w{8}", FILE.read_text())


def test_git_and_the_images_leave_the_keys_out():
    kept_out = ["docker/secrets/", "docker/secrets", "/docker/secrets/", "/docker/secrets", "docker/", "docker"]
    assert set(kept_out) & set((ROOT / ".gitignore").read_text().split())
    if shutil.which("git") and (ROOT / ".git").exists():
        ignored = ["git", "-C", str(ROOT), "check-ignore", "--quiet", "docker/secrets/posttrain_api_key"]
        assert subprocess.run(ignored, check=False).returncode == 0


def test_every_service_of_ours_has_the_key():
    for name in [*OURS, "prometheus"]:
        assert "posttrain_api_key" in SERVICES[name]["secrets"], name
    for name in OURS:
        assert SERVICES[name]["environment"]["POSTTRAIN_API_KEY_FILE"] == "/run/secrets/posttrain_api_key"


def test_what_is_asked_is_ready_before_who_asks_it_starts():
    waits = {name: service["depends_on"] for name, service in SERVICES.items() if "depends_on" in service}
    healthy = {"policy": {"condition": "service_healthy"}, "reward": {"condition": "service_healthy"}}
    started = {"prometheus": {"condition": "service_started"}}
    assert waits == {"judge": healthy, "trainer": healthy, "grafana": started}


@pytest.mark.parametrize(("name", "port"), SERVING.items())
def test_readiness_is_asked_at_the_port_that_is_published(name: str, port: int):
    service = SERVICES[name]
    assert service["healthcheck"]["test"] == ["CMD", "python", "-m", "posttrain.core.ready", f"http://127.0.0.1:{port}"]
    assert [one.rpartition(":")[2] for one in service["ports"]] == [str(port)]


def test_every_volume_network_and_secret_is_declared_and_used():
    file = compose_file()
    mounts = [mount for service in SERVICES.values() for mount in service.get("volumes", [])]
    assert {mount.partition(":")[0] for mount in mounts if not mount.startswith((".", "/"))} == set(file["volumes"])
    for kind in ("networks", "secrets"):
        assert {name for service in SERVICES.values() for name in service.get(kind, [])} == set(file[kind])
    bound = [mount.partition(":")[0] for mount in mounts if mount.startswith(".")]
    assert all((FOLDER / path).is_file() for path in bound)


def test_the_network_between_the_services_leads_nowhere_else():
    assert compose_file()["networks"]["services"] == {"internal": True}
    assert all("services" in service["networks"] for service in SERVICES.values())
    assert SERVICES["prometheus"]["networks"] == ["services"]


def served(monkeypatch: pytest.MonkeyPatch, module: str, name: str, **environment: str) -> dict:
    """What the service's command would start."""
    started: dict = {}
    monkeypatch.setattr(f"{module}.serve_in_foreground", lambda service, **how: started.update(how))
    assert run(command_of(compose_file(environment)["services"][name])) == 0
    return started


def test_the_policy_is_nanos_base_and_any_other_by_a_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("POSTTRAIN_API_KEY", "any")
    started = served(monkeypatch, "posttrain.rollout.command", "policy")
    assert (started["host"], started["port"]) == ("0.0.0.0", 8001)
    settings = json.loads(started["environment"][POLICY])
    assert (settings["checkpoint"], settings["threads"]) == (str(nano.BASE), 2)
    copy = shutil.copytree(nano.BASE, tmp_path / "mine")
    other = served(monkeypatch, "posttrain.rollout.command", "policy", POSTTRAIN_POLICY_MODEL=str(copy))
    assert json.loads(other["environment"][POLICY])["checkpoint"] == str(copy)


def test_the_reward_service_has_its_verifiers_and_more_by_a_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("POSTTRAIN_API_KEY", "any")
    started = served(monkeypatch, "posttrain.reward_model.command", "reward")
    assert (started["host"], started["port"]) == ("0.0.0.0", 8002)
    # Which it has anyway.
    assert json.loads(started["environment"][REWARD])["sources"] == {"verifier": "verifier"}
    (tmp_path / "mine.py").write_text("def short(prompt, completion, reference): return -len(completion)")
    more = {"POSTTRAIN_REWARD_SOURCE": f"short={tmp_path}/mine.py:short"}
    settings = served(monkeypatch, "posttrain.reward_model.command", "reward", **more)["environment"][REWARD]
    assert list(json.loads(settings)["sources"]) == ["short"]


def test_the_judges_settings_ask_services_of_the_same_file():
    settings = validate(JudgeServiceSettings, yaml.safe_load((FOLDER / "judge.yaml").read_text()), "docker/judge.yaml")
    urls = [judge.reward.url for judge in settings.judges.values() if judge.reward]
    urls += [policy.url for policy in settings.policies.values()]
    assert {url.removeprefix("http://") for url in urls} == {"reward:8002", "policy:8001"}
    written = [mount for mount in SERVICES["judge"]["volumes"] if mount.endswith(":/data")]
    assert written == ["data:/data"]
    assert all(path.startswith("/data/") for path in (settings.store, settings.runs, settings.records))


def test_the_trainer_trains_the_policy_of_the_same_file_with_its_rewards():
    trainer = SERVICES["trainer"]
    assert trainer["environment"]["POLICY_URL"] == "http://policy:8001"
    assert trainer["environment"]["REWARD_URL"] == "http://reward:8002"
    other = compose_file({"POLICY_URL": "http://policy-vllm:8001"})["services"]["trainer"]
    assert other["environment"]["POLICY_URL"] == "http://policy-vllm:8001"
    alone = compose_file({"REWARD_URL": ""})["services"]["trainer"]
    assert alone["environment"]["REWARD_URL"] == ""
    # What it trains lies where the services read checkpoints.
    assert "data:/data" in trainer["volumes"]
    assert all("data:/data:ro" in SERVICES[name]["volumes"] for name in ("policy", "reward"))


@pytest.mark.parametrize("program", [("docker", "compose"), ("podman-compose",)])
def test_compose_itself_reads_the_file(program: tuple[str, ...]):
    if (
        not shutil.which(program[0])
        or subprocess.run([*program, "version"], capture_output=True, check=False).returncode
    ):
        pytest.skip(f"{' '.join(program)} is not installed")
    command = [*program, "--file", str(FILE), "--profile", "observability", "config"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
