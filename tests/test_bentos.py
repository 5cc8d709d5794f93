"""BentoML's own packaging: a bento of each service carries what it needs, and serves where this repository is not."""

import json
import os
import shutil
import subprocess
import sys
import time
import venv

import httpx
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from delivery.bentos import PACKAGES, build_bento, declared, pinned, read_pins
from delivery.targets import ROOT
from posttrain.core.bentos import bento_requirements
from posttrain.core.serving import free_port
from posttrain.data import nano

SERVED = {"policy": "posttrain-rollout", "reward": "posttrain-reward-model", "judge": "posttrain-llm-judge"}
SETTINGS = {
    "policy": {"checkpoint": str(nano.BASE), "threads": 1},
    "reward": {},
    "judge": {"judges": {"rm": {"reward": {"url": "http://127.0.0.1:9"}}}},
}
ASKED = {"policy": "/v1/models", "reward": "/v1/sources", "judge": "/v1/judges"}


def test_pins_are_of_what_is_needed_directly_or_not_and_of_nothing_else():
    pins = read_pins(ROOT / "constraints.txt")
    lines = pinned([Requirement("httpx>=0.27")], pins)
    assert {line.partition("==")[0] for line in lines} == {
        "httpx",
        "httpcore",
        "h11",
        "anyio",
        "certifi",
        "idna",
        "typing-extensions",
    }
    assert f"httpx=={pins['httpx']}" in lines
    assert pinned([Requirement("no-such-library")], pins) == []


def test_a_bento_installs_its_wheels_with_their_pins(tmp_path):
    dist = tmp_path / "dist"
    assert bento_requirements(tmp_path, "posttrain-rollout") == ["posttrain-rollout[service]"]
    dist.mkdir()
    for package in ("core", "rollout"):
        (dist / f"posttrain_{package}-0.1.0-py3-none-any.whl").touch()
    wheels = ["./dist/posttrain_core-0.1.0-py3-none-any.whl", "./dist/posttrain_rollout-0.1.0-py3-none-any.whl"]
    assert bento_requirements(tmp_path, "posttrain-rollout") == [*wheels, "posttrain-rollout[service]"]
    (dist / "requirements.txt").write_text("bentoml==1.4.39\nuvloop==0.23.0\n")
    assert bento_requirements(tmp_path, "posttrain-rollout") == [*wheels, "bentoml==1.4.39", "uvloop==0.23.0"]


@pytest.mark.parametrize("name", PACKAGES)
def test_a_key_that_cannot_be_read_ends_the_start_and_not_each_request(name, tmp_path):
    """BentoML imports a bento's service.py before anything listens."""
    environment = {**os.environ, "POSTTRAIN_API_KEY_FILE": str(tmp_path / "none"), "BENTOML_HOME": str(tmp_path)}
    environment[f"POSTTRAIN_{name.upper()}"] = json.dumps(SETTINGS[name])
    command = [sys.executable, "-c", "import service"]
    done = subprocess.run(
        command, cwd=ROOT / "services" / name, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"POSTTRAIN_API_KEY_FILE names {tmp_path}/none, which cannot be read" in done.stderr.splitlines()[-1]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Name of a service -> the folder of its bento, built in a copy of the tree and into a store of its own."""
    root, home = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("bentoml")
    left_out = shutil.ignore_patterns("__pycache__", "dist", "tests")
    for name in ("packages", "services"):
        shutil.copytree(ROOT / name, root / name, ignore=left_out)
    for name in ("constraints.txt", "README.md"):
        shutil.copy(ROOT / name, root / name)
    before, found = os.environ.get("BENTOML_HOME"), {}
    os.environ["BENTOML_HOME"] = str(home)
    try:
        for name in PACKAGES:
            found[name] = home / "bentos" / build_bento(name, root).replace(":", "/")
    finally:
        os.environ.pop("BENTOML_HOME")
        if before is not None:
            os.environ["BENTOML_HOME"] = before
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKAGES)
def test_a_bento_carries_wheels_pins_and_settings_and_no_key(built, name):
    source = built[name] / "src"
    wheels = sorted(source.glob("dist/*.whl"))
    assert [wheel.name.partition("-")[0] for wheel in wheels] == sorted(
        f"posttrain_{package.replace('-', '_')}" for package in PACKAGES[name]
    )
    lines = (built[name] / "env" / "python" / "requirements.txt").read_text().split()
    assert {f"./dist/{wheel.name}" for wheel in wheels} <= set(lines)
    pins = {canonicalize_name(line.partition("==")[0]): line.partition("==")[2] for line in lines if "==" in line}
    assert pins.items() <= read_pins(ROOT / "constraints.txt").items()
    needed = {canonicalize_name(need.name) for wheel in wheels for need in declared(wheel)}
    assert {need for need in needed if not need.startswith("posttrain-")} <= set(pins)
    assert {"uvloop", "httptools", "bentoml"} <= set(pins)
    assert ("torch" in pins) is (name != "judge")
    assert (source / "settings.yaml").is_file()
    dockerfile = (built[name] / "env" / "docker" / "Dockerfile").read_text()
    assert "COPY --chown=bentoml:bentoml ./src/dist ./src/dist" in dockerfile
    assert "API_KEY" not in dockerfile


@pytest.mark.slow
@pytest.mark.service
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", PACKAGES)
def test_a_bento_serves_from_an_empty_environment(built, name, tmp_path, request):
    environment = tmp_path / "environment"
    request.addfinalizer(lambda: shutil.rmtree(environment))  # gigabytes
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    outside = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "BENTOML_HOME")}
    install = [python, "-m", "pip", "install", "--quiet", "--requirement", built[name] / "env/python/requirements.txt"]
    done = subprocess.run(install, cwd=built[name] / "src", env=outside, capture_output=True, text=True, check=False)
    # A pin that an index knows in other versions only is a wrong pin.
    if done.returncode and "(from versions: none)" in done.stderr:
        pytest.skip(f"pip reaches no index that has it: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    assert subprocess.run([python, "-m", "pip", "check"], cwd=tmp_path, env=outside).returncode == 0
    port = free_port()
    outside |= {"BENTOML_HOME": str(tmp_path / "bentoml"), "OMP_NUM_THREADS": "1", "PATH": os.defpath}
    outside[f"POSTTRAIN_{name.upper()}"] = json.dumps(SETTINGS[name])
    serve = [environment / "bin" / "bentoml", "serve", built[name], "--port", str(port)]
    with subprocess.Popen(serve, cwd=tmp_path, env=outside) as process:
        try:
            answer = _asked(process, f"http://127.0.0.1:{port}", ASKED[name])
        finally:
            process.terminate()
    assert (answer.status_code, answer.headers["X-Posttrain-Contract"]) == (200, "1")
    assert process.returncode == 0


def _asked(process: subprocess.Popen, url: str, path: str) -> httpx.Response:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None
        try:
            if httpx.get(f"{url}/readyz", timeout=2).status_code == 200:
                return httpx.get(url + path, timeout=20)
        except httpx.TransportError:
            time.sleep(0.2)
    raise AssertionError("the bento was not ready in time")
