"""`make up`, `make down` and `make train TRAINER=container`: what they call with what, and the keys that they make."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from delivery import compose
from delivery.keys import make_keys
from posttrain.core.errors import RequestError, WorkError

PROGRAM = """#!{python}
import json, os, sys
with open({log!r}, "a") as file:
    file.write(json.dumps([{name!r}, *sys.argv[1:]]) + "\\n")
sys.exit(1 if " ".join(sys.argv[1:]).startswith({fails!r}) else 0)
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts a program into the otherwise empty PATH; it fails where its arguments begin with `fails`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("POSTTRAIN_COMPOSE", raising=False)

    def put(name: str, fails: str = "nothing") -> None:
        log = str(tmp_path / "calls")
        (folder / name).write_text(PROGRAM.format(python=sys.executable, log=log, name=name, fails=fails))
        (folder / name).chmod(0o755)

    return put


@pytest.fixture
def calls(tmp_path: Path) -> Callable[[], list[list[str]]]:
    def read() -> list[list[str]]:
        lines = (tmp_path / "calls").read_text().splitlines()
        return [
            call for call in map(json.loads, lines) if call[1:] not in (["compose", "version"], ["version"], ["info"])
        ]

    return read


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of keys, in a repository of the test's own."""
    monkeypatch.setattr(compose, "ROOT", tmp_path)
    monkeypatch.setattr(compose, "SECRETS", tmp_path / "secrets")
    return tmp_path / "secrets"


@pytest.fixture
def ready_port() -> Iterator[int]:
    """A port at which `/readyz`, and nothing else, answers 200."""

    class Ready(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/readyz" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Ready)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def test_docker_is_taken_first(install: Callable[..., None]):
    install("docker")
    install("podman")
    install("podman-compose")
    assert compose.find_compose() == ["docker", "compose"]


def test_a_docker_without_its_engine_leaves_the_work_to_podman(install: Callable[..., None]):
    install("docker", fails="info")
    install("podman", fails="compose")
    install("podman-compose")
    assert compose.find_compose() == ["podman-compose"]


def test_without_any_compose_it_says_of_each_why(install: Callable[..., None]):
    install("docker", fails="compose")
    with pytest.raises(RequestError) as refused:
        compose.find_compose()
    assert "docker compose: this docker has no compose" in str(refused.value)
    assert "podman-compose: podman-compose is not installed" in str(refused.value)


def test_a_compose_that_is_named_is_taken_as_it_is(install: Callable[..., None], monkeypatch: pytest.MonkeyPatch):
    install("docker")
    install("podman-compose")
    monkeypatch.setenv("POSTTRAIN_COMPOSE", "podman-compose --podman-path '/opt/my podman'")
    assert compose.find_compose() == ["podman-compose", "--podman-path", "/opt/my podman"]


@pytest.mark.parametrize("named", ["no-such-compose --file x", "docker 'compose", " "])
def test_a_compose_that_is_none_is_a_line(named: str, install: Callable[..., None], tmp_path: Path):
    install("docker")
    done = started(tmp_path, "down", POSTTRAIN_COMPOSE=named)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: POSTTRAIN_COMPOSE={named} ")


def test_ctrl_c_while_services_start_says_what_becomes_of_them(
    install: Callable[..., None], secrets: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    install("docker")
    monkeypatch.setattr(compose, "why_not_ready", interrupted)
    assert compose.main(["up"]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted; what was started goes on, make down ends it"


def test_an_unknown_profile_is_refused():
    with pytest.raises(RequestError, match="no profile 'gpus'; choose from gpu, observability, trainer"):
        compose.compose_command(["docker", "compose"], ["gpus"], "up")


@pytest.mark.parametrize("text", ["0", "65536", "policy", "-1"])
def test_a_port_that_is_none_is_refused(text: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("POSTTRAIN_POLICY_PORT", text)
    with pytest.raises(RequestError, match=f"POSTTRAIN_POLICY_PORT={text} is not a port"):
        compose.port_of(compose.PORTS["policy"])


def test_up_makes_the_key_starts_the_containers_and_says_where_they_answer(
    install: Callable[..., None], calls: Callable[[], list[list[str]]], secrets: Path, ready_port: int,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    install("docker")
    for variable in ("POSTTRAIN_POLICY_PORT", "POSTTRAIN_REWARD_PORT", "POSTTRAIN_JUDGE_PORT"):
        monkeypatch.setenv(variable, str(ready_port))
    assert compose.main(["--profile", "observability", "up", "--build"]) == 0
    file = ["--file", str(compose.FILE), "--profile", "observability"]
    assert calls() == [["docker", "compose", *file, "up", "--detach", "--build"]]
    printed = capsys.readouterr()
    key = (secrets / "posttrain_api_key").read_text().strip()
    assert key not in printed.out + printed.err
    for name in ("policy", "reward", "judge"):
        assert f"{name:12} http://127.0.0.1:{ready_port}" in printed.out
    assert "http://127.0.0.1:3000" in printed.out
    assert "secrets/posttrain_api_key" in printed.out


def test_up_fails_as_compose_does(
    install: Callable[..., None], secrets: Path, capsys: pytest.CaptureFixture[str]
):  # fmt: skip
    install("docker", fails=f"compose --file {compose.FILE} up")
    assert compose.main(["up"]) == 1
    assert "error: docker compose up failed; what it said is above" in capsys.readouterr().err
    assert (secrets / "posttrain_api_key").exists()


def test_a_service_that_does_not_get_ready_is_named_with_the_command_that_shows_why(ready_port: int):
    compose.wait_until_ready({"policy": ready_port}, str, seconds=5)
    with pytest.raises(WorkError, match="reward is not ready after 0 s; see docker logs reward"):
        compose.wait_until_ready({"policy": ready_port, "reward": 1}, lambda name: f"docker logs {name}", seconds=0)


def started(tmp_path: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The command as make calls it, with a Python that has nothing but its standard library."""
    paths = os.pathsep.join([str(compose.FILE.parent.parent), str(compose.FILE.parent.parent / "packages/core/src")])
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": paths, **variables}
    command = [sys.executable, "-S", "-m", "delivery.compose", *arguments]
    return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)


def test_down_ends_the_containers_of_every_profile_and_keeps_the_volumes(
    install: Callable[..., None], calls: Callable[[], list[list[str]]], tmp_path: Path
):
    install("docker")
    done = started(tmp_path, "down")
    assert done.returncode == 0, done.stderr
    profiles = [flag for name in ("gpu", "observability", "trainer") for flag in ("--profile", name)]
    assert calls() == [["docker", "compose", "--file", str(compose.FILE), *profiles, "down"]]


def test_without_containers_the_command_ends_with_2_and_one_line(install: Callable[..., None], tmp_path: Path):
    done = started(tmp_path, "down")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "no compose was found" in done.stderr


def test_train_runs_posttrain_train_in_the_trainers_container_with_its_arguments(
    install: Callable[..., None], calls: Callable[[], list[list[str]]], ready_port: int, monkeypatch: pytest.MonkeyPatch
):
    install("docker")
    for variable in ("POSTTRAIN_POLICY_PORT", "POSTTRAIN_REWARD_PORT"):
        monkeypatch.setenv(variable, str(ready_port))

    def instead(program: str, command: list[str], environment: dict[str, str]) -> None:
        raise SystemExit(subprocess.run(command, check=False).returncode)

    monkeypatch.setattr(os, "execvpe", instead)
    with pytest.raises(SystemExit):
        compose.main(["train", "ppo", "--recipe", "nano", "--seed", "1", "--set", "ppo.steps=2"])
    file = ["--file", str(compose.FILE), "--profile", "trainer"]
    trained = ["train", "ppo", "--recipe", "nano", "--seed", "1", "--set", "ppo.steps=2"]
    assert calls() == [["docker", "compose", *file, "run", "--rm", "--no-deps", "trainer", *trained]]


def test_train_without_the_services_says_how_to_start_them(
    install: Callable[..., None], ready_port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    install("docker")
    monkeypatch.setenv("POSTTRAIN_POLICY_PORT", str(ready_port))
    monkeypatch.setenv("POSTTRAIN_REWARD_PORT", "1")
    assert compose.main(["train", "ppo"]) == 2
    assert re.search(r"error: the reward service is not ready \(.*\); start it with make up", capsys.readouterr().err)


def test_keys_are_random_once_made_stay_and_only_their_folder_is_closed(tmp_path: Path):
    folders = [tmp_path / name for name in ("one", "two")]
    keys = []
    for folder in folders:
        assert [path.name for path in make_keys(folder)] == ["posttrain_api_key", "openai_api_key"]
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o644}
        keys.append((folder / "posttrain_api_key").read_text())
        assert make_keys(folder) == []
        assert (folder / "posttrain_api_key").read_text() == keys[-1]
    assert len(set(keys)) == 2
    assert all(len(key.strip()) == 64 for key in keys)


def test_an_empty_key_is_none(tmp_path: Path):
    (tmp_path / "posttrain_api_key").touch()
    assert tmp_path / "posttrain_api_key" in make_keys(tmp_path)
    assert (tmp_path / "posttrain_api_key").read_text().strip()


def test_openais_key_is_taken_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "of-openai")
    make_keys(tmp_path)
    assert (tmp_path / "openai_api_key").read_text().strip() == "of-openai"


def test_openais_key_that_comes_later_fills_the_empty_file_and_replaces_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    make_keys(tmp_path)
    for key, made in (("of-openai", [tmp_path / "openai_api_key"]), ("another", [])):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        assert make_keys(tmp_path) == made
        assert (tmp_path / "openai_api_key").read_text().strip() == "of-openai"


def test_a_key_that_no_container_could_read_is_refused(tmp_path: Path):
    make_keys(tmp_path)
    (tmp_path / "posttrain_api_key").chmod(0o600)
    with pytest.raises(RequestError, match="chmod 644"):
        make_keys(tmp_path)


ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_make_up_with_an_old_python_is_a_line_before_anything_is_started(tmp_path: Path):
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = subprocess.run(["make", "up", f"PYTHON={old}"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert f"{old} is older than Python 3.11" in done.stderr
    assert "delivery.compose" not in done.stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_arguments_of_the_images_tests_are_none_of_their_build():
    command = ["make", "--no-print-directory", "--dry-run", "images-test", "ARGS=-k drivers"]
    planned = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert "python -m delivery images" in planned
    assert planned[-1].endswith("-k drivers")
