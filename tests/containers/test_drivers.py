"""The parts of these tests that need no container: command lines, and what is said about what was found."""

from pathlib import Path

import pytest

from posttrain.core.errors import RequestError
from tests.containers.driver import Launch, Mount, Ran
from tests.containers.sdk_driver import config_of
from tests.containers.survey import canonical, keys_among, not_pinned, own, own_tests, pins, secrets
from tests.containers.tool_driver import arguments, store_of


def test_the_tools_command_line_says_all_of_a_launch():
    launch = Launch(
        "posttrain/data:latest",
        ("data", "show"),
        ("python", "-c"),
        {"A": "1"},
        (Mount(Path("/here"), "/models", read_only=True), Mount(Path("/there"), "/data")),
        {"/tmp": "8m"},
        read_only=True,
    )
    assert arguments(launch) == [
        "-e", "A=1",
        "-v", "/here:/models:ro",
        "-v", "/there:/data:rw",
        "--tmpfs", "/tmp:size=8m,mode=1777",
        "--read-only", "--read-only-tmpfs=false",
        "--entrypoint", '["python", "-c"]',
        "posttrain/data:latest", "data", "show",
    ]  # fmt: skip
    assert arguments(Launch("posttrain/data:latest")) == ["posttrain/data:latest"]


def test_an_image_says_nothing_where_its_config_has_null():
    bare = config_of({"Labels": None, "Entrypoint": None, "Cmd": None, "Healthcheck": None, "Env": None})
    assert (bare.labels, bare.entrypoint, bare.command, bare.healthcheck) == ({}, (), (), ())
    full = config_of({"Healthcheck": {"Test": ["CMD", "python", "-m", "ready"]}, "User": "posttrain"})
    assert (full.healthcheck, full.user) == (("python", "-m", "ready"), "posttrain")


def test_what_is_installed_otherwise_than_pinned_is_named_whatever_way_its_name_is_written():
    pinned = pins("# all\nPyYAML==6.0.3\ntyping_extensions==4.16.0  # why\n\ntorch==2.13.0\n")
    installed = {"pyyaml": "6.0.3", "typing-extensions": "4.15.0", "torch": "2.13.0+cpu", "left.pad": "1"}
    assert not_pinned(installed | {"posttrain-core": "0.1.0"}, pinned) == {
        "typing-extensions": "4.15.0",
        "left-pad": "1",
    }
    assert own({"posttrain_core": "0.1.0", "numpy": "2"}) == {"posttrain-core": "0.1.0"}
    assert canonical("Ruamel__Yaml.clib") == "ruamel-yaml-clib"


def test_secrets_keys_and_tests_are_told_from_what_only_looks_like_them():
    environment = [
        "HF_TOKEN=hf_x",
        "POSTTRAIN_API_KEY=",
        "POSTTRAIN_API_KEY_FILE=/run/secrets/k",
        "GPG_KEY=A",
        "LANG=C",
    ]
    assert secrets(environment) == ["HF_TOKEN"]
    library = "/opt/posttrain/lib/python3.11/site-packages"
    public = ["/etc/ssl/certs/ca.pem", f"{library}/certifi/cacert.pem", f"{library}/tornado/test/test.key"]
    assert keys_among([*public, "/data/id_rsa", "/root/.env"]) == ["/data/id_rsa", "/root/.env"]
    assert own_tests([f"{library}/posttrain/core/files.py", f"{library}/posttrain/tests/x.py", "/opt/conftest.py"]) == [
        f"{library}/posttrain/tests/x.py",
        "/opt/conftest.py",
    ]


def test_errors_are_the_lines_that_the_command_ends_with():
    assert Ran(2, "warning: a\nerror: there is no folder\n").errors == ["error: there is no folder"]


def test_the_store_is_where_the_program_says_unless_it_is_told_another(tmp_path, monkeypatch):
    tool = tmp_path / "container"
    tool.write_text("store=${CONTAINER_STORE:-/some/store}\n")
    monkeypatch.delenv("CONTAINER_STORE", raising=False)
    assert store_of(tool) == "/some/store"
    monkeypatch.setenv("CONTAINER_STORE", "/told")
    assert store_of(tool) == "/told"
    monkeypatch.delenv("CONTAINER_STORE")
    tool.write_text("podman run\n")
    with pytest.raises(RequestError, match="set CONTAINER_STORE"):
        store_of(tool)
