"""The engine that is found, the command that it is given, and what is made of an image's size; no engine is needed."""

import json
import subprocess
import sys
from itertools import pairwise

import pytest

from delivery import images
from delivery.engines import Engine, find_engine
from delivery.sizes import COUNT, beyond, store
from delivery.targets import TARGETS
from posttrain.core.errors import RequestError, WorkError


def there(*names: str):
    return lambda command: command[0] in names


def test_docker_comes_first_and_a_tool_before_podman(tmp_path):
    tool = tmp_path / "shared" / "tools" / "container"
    tool.parent.mkdir(parents=True)
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    everything = there("docker", "podman", "buildah")
    assert find_engine("", {}, everything, tmp_path).name == "docker"
    assert find_engine("", {}, there("podman"), tmp_path) == find_engine("tool", {}, there(), tmp_path)
    assert find_engine("", {}, there("podman", "buildah"), tmp_path / "elsewhere").name == "podman"
    assert find_engine("", {}, there("buildah"), tmp_path / "elsewhere").name == "buildah"
    assert find_engine("podman", {}, everything, tmp_path).name == "podman"


def test_the_tool_that_the_environment_names_is_taken_and_shares_layers(tmp_path):
    tool = tmp_path / "mine"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    found = find_engine("", {"POSTTRAIN_CONTAINER_TOOL": str(tool)}, there(), tmp_path)
    assert (found.build, found.run[:2]) == ((str(tool), "build"), (str(tool), "run"))
    assert found.environment == {"LAYERS": "true"}


def test_a_tool_that_is_named_from_here_is_found_from_elsewhere_too(tmp_path, monkeypatch):
    """A release builds in a folder of its own."""
    (tmp_path / "mine").write_text("#!/bin/sh\n")
    (tmp_path / "mine").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    found = find_engine("", {"POSTTRAIN_CONTAINER_TOOL": "./mine"}, there(), tmp_path)
    assert found.build == (str(tmp_path / "mine"), "build")


@pytest.mark.parametrize("name", ["docker", "podman", "tool"])
def test_an_image_that_was_not_built_here_is_never_fetched_and_run(tmp_path, name):
    """Anybody may hold the names posttrain/… on a registry."""
    tool = tmp_path / "mine"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    found = find_engine(name, {"POSTTRAIN_CONTAINER_TOOL": str(tool)}, there(name), tmp_path)
    assert found.run[-2:] == ("--pull", "never")


def test_a_machine_without_an_engine_is_told_what_was_tried(tmp_path):
    with pytest.raises(RequestError) as refused:
        find_engine("", {}, there(), tmp_path)
    assert str(refused.value) == (
        "images need a container engine: no Docker daemon answers, POSTTRAIN_CONTAINER_TOOL names no program, "
        "podman does not answer, buildah does not answer; install Docker, podman or buildah"
    )


@pytest.mark.parametrize(
    ("wanted", "environment", "line"),
    [
        ("dokcer", {}, r"unknown engine 'dokcer' \(did you mean 'docker'\?\)"),
        ("", {"POSTTRAIN_CONTAINER_TOOL": "/nowhere/at/all"}, "POSTTRAIN_CONTAINER_TOOL=/nowhere/at/all is no program"),
        ("podman", {}, "images need a container engine: podman does not answer; .*"),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_line(tmp_path, wanted, environment, line):
    with pytest.raises(RequestError, match=line):
        find_engine(wanted, environment, there(), tmp_path)


def test_a_build_is_given_names_digests_and_the_indexes_of_the_environment():
    engine = Engine("docker", ("docker", "build"))
    index = {"PIP_EXTRA_INDEX_URL": "file:///wheels", "PIP_INDEX_URL": "", "HOME": "/root"}
    command = images.build_command(TARGETS["rollout"], engine, "cpu", index, "0123abc+")
    assert command[:2] == ["docker", "build"]
    assert command[command.index("--target") + 1] == "rollout"
    values = dict(word.split("=", 1) for before, word in pairwise(command) if before == "--build-arg")
    assert values["PIP_EXTRA_INDEX_URL"] == "file:///wheels"
    assert "PIP_INDEX_URL" not in values
    assert (values["ACCELERATOR"], values["GIT_COMMIT"]) == ("cpu", "0123abc+")
    assert len(values["PINS"]) == len(values["SOURCES"]) == 64
    names = [word for before, word in pairwise(command) if before == "--tag"]
    assert names == [f"posttrain/rollout:{values['VERSION']}", "posttrain/rollout:latest"]


def test_a_failed_build_is_an_error_and_leaves_no_note(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "BUILT", tmp_path)
    with pytest.raises(WorkError, match=r"building the image data failed \(exit status 3\)"):
        images.build_image(TARGETS["data"], Engine("tool", ("sh", "-c", "exit 3")))
    assert images.built(TARGETS["data"]) is None


def test_a_build_whose_layers_were_there_keeps_the_time_of_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "BUILT", tmp_path)
    tool, docker = (Engine(name, ("sh", "-c", "exit 0")) for name in ("tool", "docker"))
    images.build_image(TARGETS["data"], tool)
    (note,) = tmp_path.iterdir()
    first = {**images.built(TARGETS["data"]), "seconds": 3600.0}
    note.write_text(json.dumps(first))
    images.build_image(TARGETS["data"], tool)
    assert images.built(TARGETS["data"]) == first
    images.build_image(TARGETS["data"], docker)
    assert images.built(TARGETS["data"])["seconds"] < 3600


@pytest.mark.parametrize("said", ["5\n0\n300\n", '[{"size": 5}, {"size": 0}, {"size": 300}]'])
def test_layers_are_told_from_the_base_up_without_those_that_hold_nothing(said):
    assert Engine("podman", (), history=("sh", "-c", f"printf '%s' '{said}'")).layers("image") == [300, 5]
    assert Engine("tool", ()).layers("image") is None


def test_an_image_beyond_its_limit_is_named_with_both_numbers():
    limit = TARGETS["data"].limit
    assert beyond({"data": limit, "lab": 1}) == []
    (line,) = beyond({"data": limit + 1_000_000})
    assert line.startswith(f"the image data has {limit / 1e6 + 1:.0f} MB, and {limit / 1e6:.0f} are its limit")


def test_measuring_some_images_leaves_the_others_in_the_record(tmp_path):
    record = tmp_path / "images.json"
    store({"data": {"bytes": 1}, "lab": {"bytes": 2}}, record)
    store({"lab": {"bytes": 3}}, record)
    assert json.loads(record.read_text())["images"] == {"data": {"bytes": 1}, "lab": {"bytes": 3}}


def test_a_file_of_two_names_counts_once_and_links_do_not(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_bytes(b"x" * 1000)
    (tmp_path / "b").hardlink_to(tmp_path / "folder" / "a")
    (tmp_path / "c").symlink_to(tmp_path / "b")
    (tmp_path / "d").write_bytes(b"x" * 24)
    program = COUNT.replace('"/"', repr(str(tmp_path)))
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    counted = json.loads(done.stdout)
    assert (counted["bytes"], counted["files"]) == (1024, 2)
